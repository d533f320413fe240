//! What a machine lacks is one line that says so: no GPU, an old driver, an old GPU, as `libcuda` pretends them.

use engine::driver::Cuda;

use crate::libcuda::with_libcuda_on;

#[track_caller]
fn refuses(test: &str, device: &str, expected: &str) {
    if std::env::var("ENGINE_TEST_LIBCUDA").is_ok_and(|value| value == "system") {
        eprintln!("skipped: the machine's own driver pretends nothing");
        return;
    }
    with_libcuda_on(test, device, || {
        let message = Cuda::open(0).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{message:?} lacks {expected:?}");
    });
}

#[test]
fn a_machine_without_a_gpu_is_told() {
    let expected = "an NVIDIA driver is installed, but it finds no GPU";
    refuses("requirements::a_machine_without_a_gpu_is_told", "count=0", expected);
}

#[test]
fn an_old_driver_is_told_with_the_version_that_is_needed() {
    let expected = "the NVIDIA driver is for CUDA 11.8: install one for CUDA 12.0 or newer";
    refuses("requirements::an_old_driver_is_told_with_the_version_that_is_needed", "driver=11.8", expected);
}

#[test]
fn an_old_gpu_is_told_with_what_the_kernels_need() {
    let expected = "Tesla T4 has compute capability 7.5; the kernels need 8.0";
    let test = "requirements::an_old_gpu_is_told_with_what_the_kernels_need";
    refuses(test, "name=Tesla T4,sm=75", expected);
}
