//! One kernel of a PTX file, launched with arguments from files: what it counts, prints, writes and does wrong.
//!
//! Each launch starts from a device of its own with fresh buffers, so that the sanitizer, the counters and the timed
//! repetitions all see the same memory, whatever the kernel overwrites. Results come from the counted launch. Buffers
//! that the kernel is to write are filled with ones before it (NaN for floats), and are memory that nobody wrote for the
//! sanitizer: what a kernel forgets to write, or reads too early, shows. On a GPU the same is launched and timed, and
//! neither counted nor checked.

mod argument;
mod cuda;
mod emulator;
pub mod report;
mod signature;

pub use argument::{Argument, Buffer, Content, FORMS, Value};
pub use signature::{Kind, Parameter, Signature, signatures, target_architecture};

use super::gpus::{self, Gpu};
use super::npy::{self, NpyError, shape_text};
use crate::driver::emulator::{Counters, DeviceFacts, Emulator, EmulatorError, Finding, LaunchConfig};
use crate::driver::{Cuda, Driver};
use crate::util::atomic_file::{AtomicFile, WriteError, plainly};
use std::path::{Path, PathBuf};

/// Where to launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Emulator,
    /// The CUDA device of this number.
    Cuda(u32),
}

/// How to launch.
#[derive(Clone, Debug)]
pub struct Options {
    pub device: DeviceKind,
    pub config: LaunchConfig,
    /// The GPU whose limits the emulated device has.
    pub gpu: Option<&'static Gpu>,
    /// Look for races, reads of what nobody wrote, and wild accesses.
    pub is_sanitized: bool,
    /// Stop after this many warp instructions.
    pub budget: Option<u64>,
    /// Host threads of the emulator; all cores where not given.
    pub threads: Option<usize>,
    /// Timed launches.
    pub repeat: usize,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The request does not fit the kernel or the device: nothing ran.
    #[error("{0}")]
    Usage(String),
    /// The PTX file cannot be read.
    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },
    #[error("argument {position}: {cause}")]
    Npy { position: usize, cause: NpyError },
    /// The device refused the module, or stopped the kernel.
    #[error("{0}")]
    Device(String),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl LaunchError {
    /// True if other arguments of the command would help, false if the files or the kernel are at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What it was launched on.
    pub device: String,
    /// None if the device does not count, or the kernel was stopped.
    pub counters: Option<Counters>,
    /// What the sanitizer found, where it was asked.
    pub findings: Option<Vec<Finding>>,
    /// Text that the kernel printed.
    pub printed: Vec<u8>,
    /// Seconds of the timed launches.
    pub seconds: Vec<f64>,
    pub outputs: Vec<Output>,
}

/// A buffer that was written to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Position among the arguments, from 1.
    pub position: usize,
    pub path: PathBuf,
    pub dtype: npy::Dtype,
    pub shape: Vec<usize>,
    /// Elements that still hold the ones of before the launch, in a buffer that had nothing else.
    pub unwritten_elements: Option<usize>,
}

/// A kernel with its arguments, ready to launch.
pub struct Launch {
    file: String,
    text: String,
    signature: Signature,
    arguments: Vec<Argument>,
    /// By argument; none for those that are no buffers.
    buffers: Vec<Option<Buffer>>,
    options: Options,
    /// The GPU, where it is not the emulator.
    cuda: Option<Cuda>,
    /// Things that are allowed and probably not meant.
    pub warnings: Vec<String>,
}

/// Largest PTX file that is read.
const MAX_PTX_BYTES: u64 = 1 << 28;

/// Reads PTX text.
///
/// # Errors
/// The file cannot be read, or is no text.
pub fn read_ptx(path: &Path) -> Result<String, LaunchError> {
    let fail = |message: String| LaunchError::File { path: path.into(), message };
    let length = std::fs::metadata(path).map_err(|error| fail(plainly(&error)))?.len();
    if length > MAX_PTX_BYTES {
        return Err(fail(format!("{length} bytes; PTX files of up to {MAX_PTX_BYTES} are read")));
    }
    let bytes = std::fs::read(path).map_err(|error| fail(plainly(&error)))?;
    String::from_utf8(bytes).map_err(|_| fail("not text; launch takes PTX, not a cubin or fatbin".into()))
}

impl Launch {
    /// Finds the kernel in `text` (the only one where no name is given), checks the arguments against its parameters, and
    /// reads their files. A GPU is opened.
    ///
    /// # Errors
    /// [`LaunchError::Usage`] if kernel, arguments, parameters and options do not fit; [`LaunchError::Npy`] for files;
    /// [`LaunchError::Device`] where there is no such GPU.
    pub fn new(
        file: &str,
        text: String,
        kernel: Option<&str>,
        arguments: Vec<Argument>,
        options: Options,
    ) -> Result<Self, LaunchError> {
        // Where the file is not PTX, the place where it stops being PTX says more than what its kernels seem to take.
        let refuse = |message: String| match options.device {
            DeviceKind::Emulator => match Emulator::new(facts(&options, &text)).load(file, &text) {
                Err(error) => LaunchError::Device(error.to_string()),
                Ok(_) => LaunchError::Usage(message),
            },
            DeviceKind::Cuda(_) => LaunchError::Usage(message),
        };
        let signature = choose(file, &text, kernel).map_err(refuse)?;
        let mut warnings = Vec::new();
        check_arguments(&signature, &arguments, &mut warnings).map_err(refuse)?;
        for (index, argument) in arguments.iter().enumerate() {
            let earlier = arguments[..index]
                .iter()
                .find(|earlier| earlier.output().is_some_and(|path| argument.output() == Some(path)));
            if let Some(earlier) = earlier {
                return Err(LaunchError::Usage(format!(
                    "'{}' and '{}' write the same file",
                    earlier.text, argument.text
                )));
            }
        }
        let cuda = cuda::open(&options)?;
        let (file, buffers) = (file.into(), Vec::new());
        let mut launch = Self { file, text, signature, arguments, buffers, options, cuda, warnings };
        launch.load_buffers()?;
        Ok(launch)
    }

    pub fn kernel(&self) -> &str {
        &self.signature.name
    }

    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The file as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Column where a line's text starts, from 1, so that editors jump to the instruction.
    pub fn column(&self, line: u32) -> u32 {
        let line = self.text.lines().nth((line as usize).saturating_sub(1)).unwrap_or("");
        (line.len() - line.trim_start().len()) as u32 + 1
    }

    /// Launches, and writes the output files, all or none.
    ///
    /// # Errors
    /// The device refuses the module or the launch, the kernel is stopped (not under the sanitizer, where that is a
    /// finding), or a file cannot be written.
    pub fn run(&self) -> Result<Outcome, LaunchError> {
        // Before the launch, which may take long: a folder that is missing is better said now.
        let mut files = Vec::new();
        for (index, argument) in self.arguments.iter().enumerate() {
            if let Some(path) = argument.output() {
                files.push((index, AtomicFile::create(path)?));
            }
        }
        let (mut outcome, contents) = match &self.cuda {
            None => self.run_on_emulator()?,
            Some(driver) => self.run_on_cuda(driver)?,
        };
        let Some(contents) = contents else { return Ok(outcome) };
        for (index, file) in &mut files {
            let (Some(buffer), Some(data)) = (&self.buffers[*index], &contents[*index]) else { continue };
            npy::write_into(file, buffer.dtype, &buffer.shape, data)?;
            file.seal()?;
            let untouched =
                |data: &[u8]| data.chunks(buffer.dtype.bytes()).filter(|e| e.iter().all(|b| *b == POISON)).count();
            outcome.outputs.push(Output {
                position: *index + 1,
                path: file.path().into(),
                dtype: buffer.dtype,
                shape: buffer.shape.clone(),
                unwritten_elements: buffer.data.is_none().then(|| untouched(data)),
            });
        }
        for (_, file) in files {
            file.commit()?;
        }
        Ok(outcome)
    }

    /// The parameters as the kernel reads them, given the device address of each buffer.
    fn packed_parameters(&self, addresses: &[Option<u64>]) -> Vec<u8> {
        let mut packed = vec![0; self.signature.bytes];
        for ((argument, parameter), address) in self.arguments.iter().zip(&self.signature.params).zip(addresses) {
            let target = &mut packed[parameter.offset..parameter.offset + parameter.bytes];
            match &argument.value {
                Value::Scalar { bytes, .. } | Value::Bytes(bytes) => target.copy_from_slice(bytes),
                Value::Buffer { .. } => target.copy_from_slice(&address.unwrap_or(0).to_le_bytes()),
                Value::Null => {}
            }
        }
        packed
    }

    fn device_facts(&self) -> DeviceFacts {
        self.cuda.as_ref().map_or_else(|| facts(&self.options, &self.text), |driver| driver.facts().clone())
    }

    fn load_buffers(&mut self) -> Result<(), LaunchError> {
        let made = self.arguments.iter().map(|argument| match &argument.value {
            Value::Buffer { content, .. } => content.made_bytes(),
            _ => 0,
        });
        let (bytes, most) = (made.fold(0, usize::saturating_add), self.device_facts().memory_bytes);
        if bytes as u64 > most {
            return Err(LaunchError::Usage(format!("the buffers take {bytes} bytes; the device has {most}")));
        }
        for (index, argument) in self.arguments.iter().enumerate() {
            self.buffers.push(match &argument.value {
                Value::Buffer { content, .. } => {
                    let fail = |cause| LaunchError::Npy { position: index + 1, cause };
                    Some(content.load().map_err(fail)?)
                }
                _ => None,
            });
        }
        Ok(())
    }

    /// What to do about a fault, where the launch itself may be at fault.
    fn hint(&self, fault: &str) -> &'static str {
        let is_shared = fault.contains("of shared memory") && self.text.contains(".extern .shared");
        match self.options.config.shared_bytes {
            0 if is_shared => "; if the kernel has dynamic shared memory, give its size with --shared",
            _ => "",
        }
    }

    /// An error of the emulator in this launch's terms.
    fn explain(&self, error: EmulatorError) -> LaunchError {
        match error {
            EmulatorError::Launch { .. } => LaunchError::Usage(error.to_string()),
            EmulatorError::Fault(fault) if fault.line > 0 => {
                // The fault's own words, with the column.
                let (text, place) = (fault.to_string(), format!("{}:{}", fault.file, fault.line));
                let rest = text.strip_prefix(&place).unwrap_or(&text);
                LaunchError::Device(format!("{place}:{}{rest}{}", self.column(fault.line), self.hint(rest)))
            }
            _ => LaunchError::Device(error.to_string()),
        }
    }
}

/// The emulated device: the named GPU, or the first one that the module can run on.
fn facts(options: &Options, text: &str) -> DeviceFacts {
    match options.gpu {
        Some(gpu) => gpu.device_facts(),
        None => gpus::device_facts(target_architecture(text).unwrap_or(80).max(80)),
    }
}

/// Buffers after a launch, by argument.
type Contents = Vec<Option<Vec<u8>>>;

/// What buffers without contents are filled with: NaN in every float type.
const POISON: u8 = 0xFF;

/// The kernel of this name, or the only one.
fn choose(file: &str, text: &str, kernel: Option<&str>) -> Result<Signature, String> {
    let mut known = signatures(text);
    let wanted = match kernel {
        Some(name) => known.iter().position(|signature| signature.name == name),
        None if known.len() == 1 => Some(0),
        None => None,
    };
    if let Some(index) = wanted {
        return Ok(known.swap_remove(index));
    }
    let names: Vec<&str> = known.iter().map(|signature| signature.name.as_str()).collect();
    Err(match (names.len(), kernel) {
        (0, _) => format!("{file}: no kernel (.entry) is defined in it"),
        (_, Some(name)) => format!("{file}: no kernel '{name}'; there are {}", names.join(", ")),
        (count, None) => format!("{file}: {count} kernels; choose one with --entry: {}", names.join(", ")),
    })
}

fn check_arguments(signature: &Signature, arguments: &[Argument], warnings: &mut Vec<String>) -> Result<(), String> {
    let (kernel, params) = (&signature.name, &signature.params);
    if arguments.len() > params.len() {
        let extra = &arguments[params.len()].text;
        return Err(format!(
            "{kernel} takes {}, {} given ('{extra}' is the first too many)",
            count(params.len()),
            arguments.len()
        ));
    }
    for (index, (argument, parameter)) in arguments.iter().zip(params).enumerate() {
        let place = format!("parameter {} of {kernel} ({} {})", index + 1, parameter.declared, parameter.name);
        let text = &argument.text;
        let given = match &argument.value {
            Value::Buffer { .. } | Value::Null if parameter.may_be_pointer() => continue,
            Value::Buffer { .. } | Value::Null => {
                return Err(format!("{place} is no pointer, '{text}' is; {}", suggestion(parameter)));
            }
            Value::Bytes(bytes) => bytes.len(),
            Value::Scalar { bytes, .. } => bytes.len(),
        };
        if given != parameter.bytes {
            let expected = parameter.bytes;
            return Err(format!("{place} takes {expected} bytes, '{text}' has {given}; {}", suggestion(parameter)));
        }
        if let Value::Scalar { dtype, .. } = &argument.value {
            let differs = match parameter.kind {
                Kind::Float => !dtype.is_float(),
                Kind::Integer => dtype.is_float(),
                Kind::Bits | Kind::Structure => false,
            };
            if differs {
                warnings.push(format!("{place} gets the bits of '{text}'; {}", suggestion(parameter)));
            }
        }
    }
    if let Some(missing) = params.get(arguments.len()) {
        let rest = &params[arguments.len()..];
        let hint = if rest.iter().all(Parameter::may_be_pointer) {
            let nulls = " --arg null".repeat(rest.len());
            // Triton adds pointers to scratch memory behind a kernel's own parameters.
            format!("if the rest are pointers that it does not use (Triton's scratch memory), add{nulls}")
        } else {
            suggestion(missing)
        };
        return Err(format!(
            "{kernel} takes {}, {} given; parameter {} is {} {}: {hint}",
            count(params.len()),
            arguments.len(),
            arguments.len() + 1,
            missing.declared,
            missing.name
        ));
    }
    Ok(())
}

fn count(parameters: usize) -> String {
    match parameters {
        1 => "1 argument".into(),
        _ => format!("{parameters} arguments"),
    }
}

/// What to give for a parameter.
fn suggestion(parameter: &Parameter) -> String {
    let example = match (parameter.kind, parameter.bytes) {
        (Kind::Structure, bytes) => return format!("give its {bytes} bytes as bytes:HEX"),
        (Kind::Float, 2) => "f16:0.5",
        (Kind::Float, 8) => "f64:0.5",
        (Kind::Float, _) => "f32:0.5",
        (_, 1) => "i8:5 or u8:5",
        (_, 2) => "i16:5, u16:5, f16:0.5 or bf16:0.5",
        (Kind::Integer, 4) => "i32:5 or u32:5",
        (_, 4) => "i32:5, u32:5 or f32:0.5",
        _ => "in:FILE.npy, out:DTYPE[SHAPE]:FILE.npy, i64:5 or null",
    };
    format!("give {example}")
}

/// A buffer's size in words.
pub fn describe(dtype: npy::Dtype, shape: &[usize]) -> String {
    format!("{}{}", dtype.name(), shape_text(shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(declarations: &str) -> Signature {
        signatures(&format!(".entry k({declarations}) {{")).remove(0)
    }

    fn check(declarations: &str, arguments: &[&str]) -> (Result<(), String>, Vec<String>) {
        let arguments: Vec<Argument> = arguments.iter().map(|text| Argument::parse(text).unwrap()).collect();
        let mut warnings = Vec::new();
        (check_arguments(&signature(declarations), &arguments, &mut warnings), warnings)
    }

    #[test]
    fn arguments_that_do_not_fit_are_named_with_what_would() {
        let declarations = ".param .u64 x, .param .u32 n, .param .f32 scale, .param .align 4 .b8 big[12]";
        for (arguments, parts) in [
            (
                &["null", "i32:1", "f32:1", "bytes:00"] as &[&str],
                &["parameter 4", "big", "12 bytes", "bytes:HEX"] as &[&str],
            ),
            (&["null", "i64:1"], &["parameter 2 of k (.u32 n) takes 4 bytes, 'i64:1' has 8", "i32:5"]),
            (&["i32:1"], &["parameter 1", ".u64 x", "8 bytes"]),
            (&["null", "null"], &["parameter 2", "no pointer", "i32:5 or u32:5"]),
            (&["null", "i32:1", "f64:1"], &["parameter 3 of k (.f32 scale) takes 4 bytes", "f32:0.5"]),
            (&["null"], &["takes 4 arguments, 1 given", "parameter 2 is .u32 n", "i32:5"]),
            (&["null"; 5], &["takes 4 arguments, 5 given", "'null' is the first too many"]),
        ] {
            let message = check(declarations, arguments).0.unwrap_err();
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn trailing_pointers_suggest_null() {
        let message = check(".param .u32 n, .param .u64 a, .param .u64 b", &["i32:1"]).0.unwrap_err();
        assert!(message.contains("Triton") && message.ends_with("add --arg null --arg null"), "{message}");
    }

    #[test]
    fn numbers_of_another_kind_are_allowed_and_mentioned() {
        let (result, warnings) = check(".param .f32 a, .param .u32 b, .param .b32 c", &["i32:1", "f32:1", "f32:1"]);
        assert_eq!(result, Ok(()));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("parameter 1 of k (.f32 a) gets the bits of 'i32:1'; give f32:0.5"));
    }
}
