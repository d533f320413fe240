//! Programs that do not know this project: C, compiled against the vendor's header and linked as usual; Python, through
//! the vendor's bindings.

use std::path::PathBuf;
use std::process::Command;

use crate::driver::library_path;

/// A folder with cuda.h: `CUDA_HOME`, or the usual place.
fn include_folder() -> Option<PathBuf> {
    let homes = [std::env::var_os("CUDA_HOME").map(PathBuf::from), Some(PathBuf::from("/usr/local/cuda"))];
    homes.into_iter().flatten().map(|home| home.join("include")).find(|folder| folder.join("cuda.h").exists())
}

#[test]
fn a_c_program_runs_unchanged() {
    let Some(include) = include_folder() else {
        eprintln!("skipped: no cuda.h (set CUDA_HOME to a toolkit, or a PyPI nvidia-cuda-runtime folder)");
        return;
    };
    if Command::new("cc").arg("--version").output().is_err() {
        eprintln!("skipped: no C compiler");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libcuda.so.1");
    std::os::unix::fs::symlink(library_path(), &library).unwrap();
    let program = folder.path().join("program");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libcuda/program.c");
    let compiled = Command::new("cc").arg("-I").arg(include).arg(source).arg(&library).arg("-o").arg(&program).output();
    let compiled = compiled.unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let ran = Command::new(&program).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{text}");
    assert_eq!(text, "1000 right\n");
}

#[test]
fn a_python_program_runs_unchanged() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_bindings = Command::new(&python).args(["-c", "import cuda.bindings.driver"]).output();
    if !has_bindings.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: {python} has no cuda.bindings (set PYTHON to one with PyPI's cuda-bindings)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(library_path(), folder.path().join("libcuda.so.1")).unwrap();
    let folder_of_tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libcuda");
    let ran = Command::new(&python)
        .args(["program.py", "kernels.ptx"])
        .current_dir(folder_of_tests)
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(String::from_utf8_lossy(&ran.stdout), "[2.0, 4.0, 6.0]\n");
}
