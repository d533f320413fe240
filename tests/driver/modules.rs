//! PTX, loaded and unloaded, and its kernels.

use crate::{KERNELS, add, assert_refused, download, kernel, upload};
use engine::driver::{Driver, LaunchConfig, Params, Stream};

pub fn what_is_not_ptx_is_refused_with_name_and_line(driver: &dyn Driver) {
    let head = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\n";
    // In line 6 and 7.
    for (body, line) in [("    .reg .b32 %r;\n    mov.b99 %r, 1;\n", 7), ("    ret\n}\n", 7), ("    frobnicate;\n", 6)]
    {
        let message = driver.load("broken.ptx", &format!("{head}{body}}}\n")).unwrap_err().to_string();
        let is_told = message.contains(&format!(":{line}:")) || message.contains(&format!("line {line}"));
        assert!(message.contains("broken.ptx") && is_told && !message.contains('\n'), "line {line}: {message:?}");
    }
    assert_refused(driver.load("empty.ptx", ""), &["empty.ptx"]);
    assert_refused(driver.load("zero.ptx", "\0"), &["zero.ptx"]);
    let newer = KERNELS.replace(".target sm_80", ".target sm_999");
    assert_refused(driver.load("newer.ptx", &newer), &["newer.ptx"]);
}

pub fn a_kernel_that_is_not_there_is_named(driver: &dyn Driver) {
    let module = driver.load("kernels.ptx", KERNELS).unwrap();
    assert_refused(driver.function(module, "stepp"), &["stepp"]);
    assert_refused(driver.function(module, "ste\0p"), &[]);
    assert_refused(driver.function(module, ""), &[]);
    driver.function(module, "step").unwrap();
}

pub fn each_module_has_variables_of_its_own(driver: &dyn Driver) {
    let (one, other) = (kernel(driver, "count"), kernel(driver, "count"));
    let out = upload(driver, &[0]);
    let count = |function| {
        driver.launch(Stream::DEFAULT, function, LaunchConfig::linear(1, 1), &Params::new().u64(out)).unwrap();
        download(driver, Stream::DEFAULT, out, 1)[0]
    };
    assert_eq!([count(one), count(one), count(other), count(one)], [7, 8, 7, 9]);
}

pub fn an_unloaded_module_has_no_functions(driver: &dyn Driver) {
    let data = upload(driver, &[0; 4]);
    let stays = kernel(driver, "step");
    let module = driver.load("kernels.ptx", KERNELS).unwrap();
    let goes = driver.function(module, "step").unwrap();
    add(driver, Stream::DEFAULT, goes, data, 4, 1);
    driver.unload(module).unwrap();
    let params = Params::new().u64(data).u32(1);
    assert_refused(driver.launch(Stream::DEFAULT, goes, LaunchConfig::linear(4, 4), &params), &["function"]);
    assert_refused(driver.function_facts(goes), &["function"]);
    assert_refused(driver.function(module, "step"), &["module"]);
    assert_refused(driver.unload(module), &["module"]);
    add(driver, Stream::DEFAULT, stays, data, 4, 2);
    assert_eq!(download(driver, Stream::DEFAULT, data, 4), [3; 4]);
}

pub fn the_facts_of_a_function_are_those_of_its_ptx(driver: &dyn Driver) {
    let facts = driver.function_facts(kernel(driver, "limited")).unwrap();
    assert_eq!((facts.shared_bytes, facts.max_threads, facts.local_bytes), (4096, 64, 0));
    assert!(facts.registers > 0);
    let facts = driver.function_facts(kernel(driver, "step")).unwrap();
    assert_eq!((facts.shared_bytes, facts.max_threads), (0, driver.facts().max_threads_per_block));
}
