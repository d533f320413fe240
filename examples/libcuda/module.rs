//! Modules and their functions; libraries, which are modules that belong to no context.
//!
//! A kernel of a library (`CUkernel`) and the function of it (`CUfunction`) are one object with one handle here.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex};

use engine::driver::emulator::{self, FunctionInfo};

use crate::context::usable;
use crate::errors::{Answer, Code, FILE_NOT_FOUND, INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, answer};
use crate::image::{self, Image};
use crate::jit::JitOptions;
use crate::state::{Driver, driver, lock};
use crate::stepwise::Pending;
use crate::types::{DevicePointer, Handle, In, Name, Out};

pub struct Module {
    pub handle: Handle,
    /// 0 for a library.
    pub context: Handle,
    /// Empty only while it is dropped.
    loaded: Option<emulator::Module>,
    /// Handles given out, and names for C.
    functions: Mutex<HashMap<String, Handle>>,
}

impl Drop for Module {
    fn drop(&mut self) {
        if let (Some(loaded), Ok(driver)) = (self.loaded.take(), driver()) {
            driver.emulator.unload(loaded);
        }
    }
}

pub struct Function {
    pub handle: Handle,
    pub module: Arc<Module>,
    /// The name, with a zero at the end.
    pub c_name: Vec<u8>,
    index: usize,
    /// Dynamic shared memory that launches may ask for, and the carve-out hint.
    pub max_dynamic_shared: AtomicI32,
    pub carveout: AtomicI32,
    pub pending: Mutex<Pending>,
}

impl Module {
    pub fn loaded(&self) -> Answer<&emulator::Module> {
        self.loaded.as_ref().ok_or(INVALID_HANDLE)
    }

    fn kernel_names(&self) -> Vec<String> {
        self.loaded
            .as_ref()
            .map_or_else(Vec::new, |loaded| loaded.kernels().map(|kernel| kernel.name.clone()).collect())
    }
}

impl Function {
    pub fn info(&self) -> Answer<&FunctionInfo> {
        self.module.loaded()?.program().functions.get(self.index).ok_or(INVALID_HANDLE)
    }
}

/// Loads a PTX text for a context, or as a library for context 0.
pub fn load(driver: &Driver, context: Handle, file: &str, image: Image) -> Result<Arc<Module>, (Code, String)> {
    let loaded = driver.emulator.load(file, &image?).map_err(|error| (Code::refused(&error), error.to_string()))?;
    Ok(driver.modules.add(|handle| Module { handle, context, loaded: Some(loaded), functions: Mutex::default() }))
}

fn load_for_current(
    target: Out<Handle>,
    file: &str,
    options: &JitOptions,
    image: impl FnOnce(u32) -> Answer<Image>,
) -> Answer {
    let context = usable()?;
    if target.is_null() {
        return Err(INVALID_VALUE);
    }
    let driver = driver()?;
    let loaded = load(driver, context.handle, file, image(driver.emulator.facts().architecture)?);
    let handle = loaded.as_ref().map_or(0, |module| module.handle);
    options.finish(loaded.map(|_| ()))?;
    target.put(handle)
}

fn no_options() -> Answer<JitOptions> {
    JitOptions::read(0, In::from_address(0), Out::from_address(0))
}

/// What messages call a text that came without a file.
pub const UNNAMED: &str = "ptx";

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoad(module: Out<Handle>, path: Name) -> Code {
    answer("cuModuleLoad", || {
        let path = path.string()?;
        load_for_current(module, &path, &no_options()?, |architecture| {
            let bytes = std::fs::read(&path).map_err(|_| FILE_NOT_FOUND)?;
            Ok(image::of_bytes(&bytes, architecture))
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadData(module: Out<Handle>, data: In<u8>) -> Code {
    answer("cuModuleLoadData", || {
        load_for_current(module, UNNAMED, &no_options()?, |architecture| image::at(data, architecture))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadDataEx(
    module: Out<Handle>,
    data: In<u8>,
    count: c_uint,
    options: In<c_uint>,
    values: Out<usize>,
) -> Code {
    answer("cuModuleLoadDataEx", || {
        let options = JitOptions::read(count, options, values)?;
        load_for_current(module, UNNAMED, &options, |architecture| image::at(data, architecture))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadFatBinary(module: Out<Handle>, data: In<u8>) -> Code {
    answer("cuModuleLoadFatBinary", || {
        load_for_current(module, UNNAMED, &no_options()?, |architecture| image::at(data, architecture))
    })
}

/// Takes a module and its functions out of the tables; graphs that use them keep them.
fn unload(handle: Handle) -> Answer {
    let driver = driver()?;
    let module = driver.modules.remove(handle).ok_or(INVALID_HANDLE)?;
    driver.flush();
    for function in lock(&module.functions).values() {
        driver.functions.remove(*function);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> Code {
    answer("cuModuleUnload", || {
        usable()?;
        unload(module)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetLoadingMode(mode: Out<c_uint>) -> Code {
    // Eager: a module is ready once it is loaded.
    answer("cuModuleGetLoadingMode", || driver().and_then(|_| mode.put(1)))
}

fn module(handle: Handle) -> Answer<Arc<Module>> {
    driver()?.modules.get(handle).ok_or(INVALID_HANDLE)
}

/// The function of a handle.
pub fn function(handle: Handle) -> Answer<Arc<Function>> {
    driver()?.functions.get(handle).ok_or(INVALID_HANDLE)
}

fn get_function(module: &Arc<Module>, name: &str) -> Answer<Handle> {
    let driver = driver()?;
    let mut known = lock(&module.functions);
    if let Some(handle) = known.get(name) {
        return Ok(*handle);
    }
    let functions = &module.loaded()?.program().functions;
    let index = functions
        .iter()
        .position(|function| function.is_entry && function.is_defined && function.name == name)
        .ok_or(NOT_FOUND)?;
    if let Some(refusal) = &functions[index].refusal {
        crate::options::log(|| refusal.to_string());
        return Err(NOT_SUPPORTED);
    }
    let function = driver.functions.add(|handle| Function {
        handle,
        module: module.clone(),
        c_name: name.bytes().chain([0]).collect(),
        index,
        max_dynamic_shared: AtomicI32::new(crate::function::default_dynamic_shared(&functions[index])),
        carveout: AtomicI32::new(-1),
        pending: Mutex::default(),
    });
    known.insert(name.into(), function.handle);
    Ok(function.handle)
}

fn put_function(target: Out<Handle>, handle: Handle, name: Name) -> Answer {
    let name = name.string()?;
    let module = module(handle)?;
    match get_function(&module, &name) {
        Ok(function) => target.put(function),
        Err(NOT_SUPPORTED) => Err(NOT_SUPPORTED),
        Err(code) => {
            crate::options::log(|| format!("no kernel '{name}'; the module has {}", module.kernel_names().join(", ")));
            Err(code)
        }
    }
}

fn put_count(count: Out<c_uint>, handle: Handle) -> Answer {
    count.put(module(handle)?.kernel_names().len() as c_uint)
}

fn put_functions(functions: Out<Handle>, room: c_uint, handle: Handle) -> Answer {
    let module = module(handle)?;
    let names = module.kernel_names();
    let handles: Answer<Vec<Handle>> =
        names.iter().take(room as usize).map(|name| get_function(&module, name)).collect();
    functions.put_all(&handles?)
}

fn put_global(address: Out<DevicePointer>, bytes: Out<usize>, handle: Handle, name: Name) -> Answer {
    let (start, length) = module(handle)?.loaded()?.global(&name.string()?).ok_or(NOT_FOUND)?;
    if address.is_null() && bytes.is_null() {
        return Err(INVALID_VALUE);
    }
    address.put_if_wanted(start);
    bytes.put_if_wanted(length as usize);
    Ok(())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Name) -> Code {
    answer("cuModuleGetFunction", || usable().and_then(|_| put_function(function, module, name)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunctionCount(count: Out<c_uint>, module: Handle) -> Code {
    answer("cuModuleGetFunctionCount", || put_count(count, module))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleEnumerateFunctions(functions: Out<Handle>, room: c_uint, module: Handle) -> Code {
    answer("cuModuleEnumerateFunctions", || put_functions(functions, room, module))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetGlobal_v2(
    address: Out<DevicePointer>,
    bytes: Out<usize>,
    module: Handle,
    name: Name,
) -> Code {
    answer("cuModuleGetGlobal", || usable().and_then(|_| put_global(address, bytes, module, name)))
}

fn load_library(
    target: Out<Handle>,
    file: &str,
    options: &JitOptions,
    image: impl FnOnce(u32) -> Answer<Image>,
) -> Answer {
    let driver = driver()?;
    if target.is_null() {
        return Err(INVALID_VALUE);
    }
    let loaded = load(driver, 0, file, image(driver.emulator.facts().architecture)?);
    let handle = loaded.as_ref().map_or(0, |module| module.handle);
    options.finish(loaded.map(|_| ()))?;
    target.put(handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryLoadData(
    library: Out<Handle>,
    data: In<u8>,
    options: In<c_uint>,
    values: Out<usize>,
    count: c_uint,
    _library_options: In<c_uint>,
    _library_values: Out<usize>,
    _library_count: c_uint,
) -> Code {
    answer("cuLibraryLoadData", || {
        let options = JitOptions::read(count, options, values)?;
        load_library(library, UNNAMED, &options, |architecture| image::at(data, architecture))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryLoadFromFile(
    library: Out<Handle>,
    path: Name,
    options: In<c_uint>,
    values: Out<usize>,
    count: c_uint,
    _library_options: In<c_uint>,
    _library_values: Out<usize>,
    _library_count: c_uint,
) -> Code {
    answer("cuLibraryLoadFromFile", || {
        let path = path.string()?;
        let options = JitOptions::read(count, options, values)?;
        load_library(library, &path, &options, |architecture| {
            let bytes = std::fs::read(&path).map_err(|_| FILE_NOT_FOUND)?;
            Ok(image::of_bytes(&bytes, architecture))
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryUnload(library: Handle) -> Code {
    answer("cuLibraryUnload", || unload(library))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryGetKernel(kernel: Out<Handle>, library: Handle, name: Name) -> Code {
    answer("cuLibraryGetKernel", || put_function(kernel, library, name))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryGetKernelCount(count: Out<c_uint>, library: Handle) -> Code {
    answer("cuLibraryGetKernelCount", || put_count(count, library))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryEnumerateKernels(kernels: Out<Handle>, room: c_uint, library: Handle) -> Code {
    answer("cuLibraryEnumerateKernels", || put_functions(kernels, room, library))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryGetModule(target: Out<Handle>, library: Handle) -> Code {
    answer("cuLibraryGetModule", || target.put(module(library)?.handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryGetGlobal(
    address: Out<DevicePointer>,
    bytes: Out<usize>,
    library: Handle,
    name: Name,
) -> Code {
    answer("cuLibraryGetGlobal", || put_global(address, bytes, library, name))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuLibraryGetManaged(
    _address: Out<DevicePointer>,
    _bytes: Out<usize>,
    library: Handle,
    _name: Name,
) -> Code {
    // PTX says `.attribute(.managed)`; variables live in device memory here.
    answer("cuLibraryGetManaged", || module(library).and(Err(NOT_SUPPORTED)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelGetFunction(target: Out<Handle>, kernel: Handle) -> Code {
    answer("cuKernelGetFunction", || target.put(function(kernel)?.handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelGetLibrary(library: Out<Handle>, kernel: Handle) -> Code {
    answer("cuKernelGetLibrary", || library.put(function(kernel)?.module.handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetModule(target: Out<Handle>, handle: Handle) -> Code {
    answer("cuFuncGetModule", || target.put(function(handle)?.module.handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetName(name: Out<*const c_char>, handle: Handle) -> Code {
    // The name lives as long as the module, which is as long as the interface promises.
    answer("cuFuncGetName", || name.put(function(handle)?.c_name.as_ptr().cast()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuKernelGetName(name: Out<*const c_char>, kernel: Handle) -> Code {
    answer("cuKernelGetName", || name.put(function(kernel)?.c_name.as_ptr().cast()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncIsLoaded(state: Out<c_int>, handle: Handle) -> Code {
    answer("cuFuncIsLoaded", || function(handle).and_then(|_| state.put(1)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncLoad(handle: Handle) -> Code {
    answer("cuFuncLoad", || function(handle).map(|_| ()))
}
