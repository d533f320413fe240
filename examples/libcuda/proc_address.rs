//! `cuGetProcAddress`: entry points by name and version.
//!
//! `symbols.txt` lists for each name the CUDA version from which on a symbol stands for it. The newest that the asked
//! version allows is given; a program that says it has a default stream per thread gets the variant for that.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::errors::{Answer, Code, INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, answer, answer_quietly};
use crate::options::log;
use crate::types::{In, Name, Out};

const LEGACY_STREAM: u64 = 1;
const PER_THREAD_STREAM: u64 = 2;

const FOUND: c_uint = 0;
const SYMBOL_NOT_FOUND: c_uint = 1;
const VERSION_NOT_SUFFICIENT: c_uint = 2;

type Versions = Vec<(c_int, &'static str)>;

fn symbols() -> &'static HashMap<&'static str, Versions> {
    static SYMBOLS: OnceLock<HashMap<&'static str, Versions>> = OnceLock::new();
    SYMBOLS.get_or_init(|| {
        let line = |line: &'static str| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            let version = |word: &'static str| {
                let (version, symbol) = word.split_once(':')?;
                Some((version.parse().ok()?, symbol))
            };
            Some((name, words.filter_map(version).collect()))
        };
        include_str!("symbols.txt").lines().filter(|line| !line.starts_with('#')).filter_map(line).collect()
    })
}

/// This library, as the dynamic linker knows it.
fn library() -> Answer<*mut c_void> {
    static HANDLE: OnceLock<usize> = OnceLock::new();
    let handle = *HANDLE.get_or_init(|| {
        // SAFETY: plain data, which dladdr fills in.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        let inside = crate::device::cuInit as *const () as *const c_void;
        // SAFETY: the address is ours, `info` is alive; the file name is the linker's and stays.
        unsafe {
            if libc::dladdr(inside, &mut info) == 0 || info.dli_fname.is_null() {
                return 0;
            }
            libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD) as usize
        }
    });
    if handle == 0 { Err(NOT_FOUND) } else { Ok(handle as *mut c_void) }
}

fn address(symbol: &str) -> Answer<*mut c_void> {
    let symbol = CString::new(symbol).map_err(|_| INVALID_VALUE)?;
    // SAFETY: a handle of dlopen that is never closed, and a C string.
    let address = unsafe { libc::dlsym(library()?, symbol.as_ptr()) };
    if address.is_null() { Err(NOT_FOUND) } else { Ok(address) }
}

/// The symbol for a name, and whether there is one for that version.
fn find(name: &str, version: c_int, flags: u64) -> Result<&'static str, c_uint> {
    let of = |name: &str| {
        let versions = symbols().get(name)?;
        Some(versions.iter().rev().find(|(since, _)| *since <= version).map(|(_, symbol)| *symbol))
    };
    if flags & PER_THREAD_STREAM != 0 {
        for suffix in ["_ptsz", "_ptds"] {
            if let Some(Some(symbol)) = of(&format!("{name}{suffix}")) {
                return Ok(symbol);
            }
        }
    }
    match of(name) {
        Some(Some(symbol)) => Ok(symbol),
        Some(None) => Err(VERSION_NOT_SUFFICIENT),
        None => Err(SYMBOL_NOT_FOUND),
    }
}

fn put_address(name: Name, function: Out<*mut c_void>, version: c_int, flags: u64, status: Out<c_uint>) -> Answer {
    let name = name.string()?;
    if function.is_null() || flags & !(LEGACY_STREAM | PER_THREAD_STREAM) != 0 {
        return Err(INVALID_VALUE);
    }
    let found = find(&name, version, flags).and_then(|symbol| address(symbol).map_err(|_| SYMBOL_NOT_FOUND));
    status.put_if_wanted(found.err().unwrap_or(FOUND));
    match found {
        Ok(address) => function.put(address),
        Err(_) => {
            function.put(std::ptr::null_mut())?;
            Err(NOT_FOUND)
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetProcAddress(name: Name, function: Out<*mut c_void>, version: c_int, flags: u64) -> Code {
    answer_quietly(|| put_address(name, function, version, flags, Out::from_address(0)))
}

/// With a status, an unknown name is not an error of the call.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetProcAddress_v2(
    name: Name,
    function: Out<*mut c_void>,
    version: c_int,
    flags: u64,
    status: Out<c_uint>,
) -> Code {
    answer_quietly(|| match put_address(name, function, version, flags, status) {
        Err(code) if code == NOT_FOUND && !status.is_null() => Ok(()),
        result => result,
    })
}

/// Tables of functions that NVIDIA's own libraries ask each other for: there are none.
#[unsafe(no_mangle)]
pub extern "C" fn cuGetExportTable(table: Out<usize>, id: In<[u8; 16]>) -> Code {
    answer("cuGetExportTable", || {
        let id = id.get()?;
        log(|| {
            let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("cuGetExportTable {digits}: an internal interface of NVIDIA's libraries, which is not documented")
        });
        table.put_if_wanted(0);
        Err(NOT_SUPPORTED)
    })
}
