//! The driver library, loaded as a program loads it, and calls of it by name.

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Where cargo puts the library: beside the folder of this test's executable. `cargo test` builds it, `cargo test --test`
/// does not, so a library that is missing or older than its sources is told.
pub fn library_path() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/libcuda.so");
    let built = std::fs::metadata(&path).and_then(|data| data.modified());
    let newest = ["examples/libcuda", "src/driver"]
        .iter()
        .filter_map(|folder| newest(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder)))
        .max();
    assert!(
        built.is_ok_and(|built| newest.is_none_or(|newest| newest <= built)),
        "{} is missing or out of date: run cargo build --profile test --example cuda first",
        path.display()
    );
    path
}

/// The newest time of change below a folder.
fn newest(folder: &std::path::Path) -> Option<std::time::SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    let time = |path: PathBuf| if path.is_dir() { newest(&path) } else { path.metadata().ok()?.modified().ok() };
    entries.filter_map(|entry| time(entry.path())).max()
}

fn library() -> *mut c_void {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    *LIBRARY.get_or_init(|| {
        let path = CString::new(library_path().to_str().unwrap()).unwrap();
        // SAFETY: loading runs no code of the library.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "cannot load {path:?}");
        handle as usize
    }) as *mut c_void
}

/// The address of an entry point, 0 if there is none.
pub fn symbol(name: &str) -> usize {
    let name = CString::new(name).unwrap();
    // SAFETY: a live library and a C string.
    unsafe { libc::dlsym(library(), name.as_ptr()) as usize }
}

/// Calls a function of the interface: all parameters are integers and pointers, so all are words.
pub fn call_at(address: usize, arguments: &[usize]) -> u32 {
    type Entry = extern "C" fn(usize, usize, usize, usize, usize, usize, usize, usize, usize, usize, usize) -> u32;
    assert_ne!(address, 0);
    // SAFETY: an entry point; C's calling convention lets surplus words be.
    let entry: Entry = unsafe { std::mem::transmute(address) };
    let word = |index: usize| arguments.get(index).copied().unwrap_or(0);
    entry(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7), word(8), word(9), word(10))
}

/// Calls an entry point and gives its code.
pub fn code(name: &str, arguments: &[usize]) -> u32 {
    let address = symbol(name);
    assert_ne!(address, 0, "{name} is not there");
    call_at(address, arguments)
}

/// Calls an entry point that must succeed.
#[track_caller]
pub fn ok(name: &str, arguments: &[usize]) {
    let code = code(name, arguments);
    assert_eq!(code, 0, "{name} failed");
}

/// Calls an entry point that must succeed and gives its first result.
#[track_caller]
pub fn get(name: &str, arguments: &[usize]) -> usize {
    let mut result = 0usize;
    let mut all = vec![at(&mut result)];
    all.extend_from_slice(arguments);
    ok(name, &all);
    result
}

/// The same for an int.
#[track_caller]
pub fn get_int(name: &str, arguments: &[usize]) -> i32 {
    get(name, arguments) as u32 as i32
}

/// The address of a value, as an argument.
pub fn at<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<u8>() as usize
}

/// A context of this thread, with a module in it.
pub struct Session {
    pub context: usize,
    pub module: usize,
}

impl Session {
    pub fn new(ptx: &str) -> Self {
        ok("cuInit", &[0]);
        let context = get("cuCtxCreate_v2", &[0, 0]);
        let text = CString::new(ptx).unwrap();
        let module = get("cuModuleLoadData", &[text.as_ptr() as usize]);
        Self { context, module }
    }

    pub fn function(&self, name: &str) -> usize {
        let name = CString::new(name).unwrap();
        get("cuModuleGetFunction", &[self.module, name.as_ptr() as usize])
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        ok("cuCtxDestroy_v2", &[self.context]);
    }
}

/// Device memory with these values.
pub fn upload<T: Copy>(values: &[T]) -> usize {
    let address = get("cuMemAlloc_v2", &[size_of_val(values)]);
    ok("cuMemcpyHtoD_v2", &[address, values.as_ptr() as usize, size_of_val(values)]);
    address
}

pub fn download<T: Copy + Default>(address: usize, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    ok("cuMemcpyDtoH_v2", &[values.as_mut_ptr() as usize, address, count * size_of::<T>()]);
    values
}

/// Launches with one word per parameter.
pub fn launch(function: usize, grid: usize, block: usize, stream: usize, parameters: &[usize]) -> u32 {
    let mut words = parameters.to_vec();
    let mut pointers: Vec<usize> = words.iter_mut().map(at).collect();
    code("cuLaunchKernel", &[function, grid, 1, 1, block, 1, 1, 0, stream, at(pointers.as_mut_slice()), 0])
}

/// Runs one test of this file in a process of its own, with these variables, and gives what it printed. In that process
/// it gives `None`.
pub fn in_child(test: &str, variables: &[(&str, &str)]) -> Option<(bool, String)> {
    const MARK: &str = "LIBCUDA_TEST_CHILD";
    if std::env::var(MARK).is_ok_and(|name| name == test) {
        return None;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Some((output.status.success(), text))
}
