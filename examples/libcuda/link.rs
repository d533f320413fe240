//! The linker: PTX in, PTX out.
//!
//! What `cuLinkComplete` gives as the "cubin" is the PTX text of all inputs, one module: `cuModuleLoadData` takes it. Of
//! the second and later inputs the directives that a module has once are left out, so their lines keep their numbers
//! relative to the first line of their input. NVIDIA's device runtime library is machine code; a program that links it gets
//! our own PTX of it instead.

use std::ffi::{c_char, c_uint};
use std::sync::{Arc, Mutex};

use crate::context::usable;
use crate::errors::{Answer, Code, FILE_NOT_FOUND, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, answer};
use crate::image;
use crate::jit::JitOptions;
use crate::module::{self, UNNAMED};
use crate::state::{driver, lock};
use crate::types::{Handle, In, Name, Out};

const INPUT_CUBIN: c_uint = 0;
const INPUT_PTX: c_uint = 1;
const INPUT_FATBINARY: c_uint = 2;
const INPUT_LIBRARY: c_uint = 4;
const DEVICE_RUNTIME: &str = include_str!("device_runtime.ptx");

pub struct Linker {
    options: JitOptions,
    inputs: Vec<(String, String)>,
    /// The linked text with a zero at its end, which the caller may read until the linker is destroyed.
    output: Vec<u8>,
}

fn linker(handle: Handle) -> Answer<Arc<Mutex<Linker>>> {
    driver()?.linkers.get(handle).ok_or(INVALID_HANDLE)
}

fn add(handle: Handle, kind: c_uint, name: String, bytes: &[u8]) -> Answer {
    let linker = linker(handle)?;
    let mut linker = lock(&linker);
    if kind == INPUT_LIBRARY && name.contains("cudadevrt") {
        linker.inputs.push((name, DEVICE_RUNTIME.into()));
        return Ok(());
    }
    if !matches!(kind, INPUT_CUBIN | INPUT_PTX | INPUT_FATBINARY) {
        crate::options::log(|| format!("the linker takes PTX; '{name}' is of kind {kind}"));
        return Err(NOT_SUPPORTED);
    }
    // The output of another link is a "cubin" that is PTX.
    match image::of_bytes(bytes, driver()?.emulator.facts().architecture) {
        Ok(text) => {
            linker.inputs.push((name, text));
            Ok(())
        }
        Err(refusal) => linker.options.finish(Err(refusal)),
    }
}

/// One module of several: later ones without `.version`, `.target` and `.address_size`.
fn merge(inputs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (index, (_, input)) in inputs.iter().enumerate() {
        for line in input.lines() {
            let once = [".version", ".target", ".address_size"].iter().any(|word| line.trim_start().starts_with(word));
            if index == 0 || !once {
                text.push_str(line);
            }
            text.push('\n');
        }
    }
    text
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLinkCreate_v2(count: c_uint, options: In<c_uint>, values: Out<usize>, state: Out<Handle>) -> Code {
    answer("cuLinkCreate", || {
        usable()?;
        let options = JitOptions::read(count, options, values)?;
        if state.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = crate::state::new_handle();
        let linker = Linker { options, inputs: Vec::new(), output: Vec::new() };
        driver()?.linkers.put(handle, Arc::new(Mutex::new(linker)));
        state.put(handle)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLinkAddData_v2(
    state: Handle,
    kind: c_uint,
    data: In<u8>,
    bytes: usize,
    name: Name,
    _count: c_uint,
    _options: In<c_uint>,
    _values: Out<usize>,
) -> Code {
    answer("cuLinkAddData", || {
        let name = if name.is_null() { UNNAMED.into() } else { name.string()? };
        add(state, kind, name, data.bytes(bytes)?)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLinkAddFile_v2(
    state: Handle,
    kind: c_uint,
    path: Name,
    _count: c_uint,
    _options: In<c_uint>,
    _values: Out<usize>,
) -> Code {
    answer("cuLinkAddFile", || {
        let path = path.string()?;
        let bytes = std::fs::read(&path).map_err(|_| FILE_NOT_FOUND)?;
        add(state, kind, path, &bytes)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLinkComplete(state: Handle, cubin: Out<*const c_char>, bytes: Out<usize>) -> Code {
    answer("cuLinkComplete", || {
        let context = usable()?;
        let driver = driver()?;
        let linker = linker(state)?;
        let mut linker = lock(&linker);
        let (name, text) = match linker.inputs.as_slice() {
            [] => return Err(INVALID_VALUE),
            [(name, text)] => (name.clone(), text.clone()),
            inputs => (inputs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("+"), merge(inputs)),
        };
        // Loading is the check; what was loaded goes again.
        let loaded = module::load(driver, context.handle, &name, Ok(text.clone()));
        if let Ok(module) = &loaded {
            driver.modules.remove(module.handle);
        }
        linker.options.finish(loaded.map(|_| ()))?;
        linker.output = text.into_bytes();
        linker.output.push(0);
        cubin.put(linker.output.as_ptr().cast())?;
        bytes.put_if_wanted(linker.output.len());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLinkDestroy(state: Handle) -> Code {
    answer("cuLinkDestroy", || driver()?.linkers.remove(state).map(|_| ()).ok_or(INVALID_HANDLE))
}
