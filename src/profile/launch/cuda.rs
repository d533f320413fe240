//! A launch on a GPU: once for the results, then timed, each with a fresh module and fresh buffers.
//!
//! A GPU neither counts nor checks, so there are no counters and no findings. What a kernel prints, the driver prints.

use super::{Contents, DeviceKind, Launch, LaunchError, Options, Outcome, POISON};
use crate::driver::{Cuda, Driver, Error, Event, Function, Module, Params, Stream};

/// Opens the GPU that the options ask for, if they do.
///
/// # Errors
/// There is no such GPU, or the options have something that only the emulator can do.
pub(super) fn open(options: &Options) -> Result<Option<Cuda>, LaunchError> {
    let DeviceKind::Cuda(number) = options.device else { return Ok(None) };
    let of_the_emulator = [
        (options.is_sanitized, "--sanitize"),
        (options.gpu.is_some(), "--profile"),
        (options.budget.is_some(), "--budget"),
        (options.threads.is_some(), "--threads"),
    ];
    if let Some((_, option)) = of_the_emulator.iter().find(|(is_given, _)| *is_given) {
        return Err(LaunchError::Usage(format!("{option} needs the emulator; leave out --device cuda")));
    }
    let opened = Cuda::open(number as usize);
    opened.map(Some).map_err(|error| LaunchError::Device(format!("cuda:{number}: {error}; use --device emulator")))
}

/// The kernel and the buffers on the device, until it is dropped.
struct Prepared<'a> {
    driver: &'a Cuda,
    module: Module,
    function: Function,
    /// Addresses, by argument.
    addresses: Vec<Option<u64>>,
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        // Where this fails the device is lost, and its memory with it.
        for address in self.addresses.iter().flatten() {
            let _ = self.driver.free(*address);
        }
        let _ = self.driver.unload(self.module);
    }
}

impl Launch {
    pub(super) fn run_on_cuda(&self, driver: &Cuda) -> Result<(Outcome, Option<Contents>), LaunchError> {
        let fail = |error: Error| LaunchError::Device(format!("{}: {error}", driver.facts().name));
        let mut outcome = Outcome { device: driver.facts().name.clone(), ..Outcome::default() };
        let prepared = self.prepare_on(driver)?;
        self.launch_on(&prepared, None)?;
        let contents = self.contents_of(&prepared).map_err(fail)?;
        drop(prepared);
        let [start, end] = [driver.create_event().map_err(fail)?, driver.create_event().map_err(fail)?];
        for _ in 0..self.options.repeat {
            self.launch_on(&self.prepare_on(driver)?, Some((start, end)))?;
            outcome.seconds.push(driver.elapsed_seconds(start, end).map_err(fail)?);
        }
        Ok((outcome, Some(contents)))
    }

    fn prepare_on<'a>(&self, driver: &'a Cuda) -> Result<Prepared<'a>, LaunchError> {
        let fail = |error: Error| match error {
            Error::OutOfMemory { .. } => LaunchError::Usage(error.to_string()),
            _ => LaunchError::Device(error.to_string()),
        };
        let module = driver.load(&self.file, &self.text).map_err(fail)?;
        let function = driver.function(module, self.kernel());
        let function = function.map_err(|error| LaunchError::Device(format!("{}: {error}", self.file)))?;
        let mut prepared = Prepared { driver, module, function, addresses: Vec::with_capacity(self.buffers.len()) };
        for buffer in &self.buffers {
            let Some(buffer) = buffer else {
                prepared.addresses.push(None);
                continue;
            };
            // Whole words: fills have no smaller unit.
            let words = buffer.bytes().div_ceil(4).max(1) as u64;
            let address = driver.allocate(4 * words).map_err(fail)?;
            prepared.addresses.push(Some(address));
            match &buffer.data {
                Some(data) => driver.write(Stream::DEFAULT, address, data),
                None => driver.fill(Stream::DEFAULT, address, u32::from_ne_bytes([POISON; 4]), words),
            }
            .map_err(fail)?;
        }
        Ok(prepared)
    }

    /// Launches, between the events where they are given, and waits.
    fn launch_on(&self, prepared: &Prepared, events: Option<(Event, Event)>) -> Result<(), LaunchError> {
        let driver = prepared.driver;
        let fail = |error: Error| LaunchError::Device(format!("{}: {error} in {}", driver.facts().name, self.kernel()));
        let params = Params::new().bytes(&self.packed_parameters(&prepared.addresses), 1);
        driver.synchronize(Stream::DEFAULT).map_err(fail)?;
        if let Some((start, _)) = events {
            driver.record(start, Stream::DEFAULT).map_err(fail)?;
        }
        // Nothing was under way, so what the call itself refuses is what it was asked for.
        driver
            .launch(Stream::DEFAULT, prepared.function, self.options.config, &params)
            .map_err(|error| LaunchError::Usage(format!("{}: {error}", driver.facts().name)))?;
        if let Some((_, end)) = events {
            driver.record(end, Stream::DEFAULT).map_err(fail)?;
        }
        driver.synchronize(Stream::DEFAULT).map_err(fail)
    }

    /// The buffers that go to files, after the launch.
    fn contents_of(&self, prepared: &Prepared) -> Result<Contents, Error> {
        let mut contents = Vec::with_capacity(self.buffers.len());
        for ((argument, buffer), address) in self.arguments.iter().zip(&self.buffers).zip(&prepared.addresses) {
            contents.push(match (buffer, address, argument.output()) {
                (Some(buffer), Some(address), Some(_)) => {
                    let mut data = vec![0; buffer.bytes()];
                    prepared.driver.read(Stream::DEFAULT, *address, &mut data)?;
                    Some(data)
                }
                _ => None,
            });
        }
        Ok(contents)
    }
}
