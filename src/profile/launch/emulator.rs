//! A launch on the emulator: sanitized, counted and timed, each on a fresh device.

use super::{Contents, Launch, LaunchError, Outcome, POISON};
use crate::driver::emulator::{Counters, Emulator, LaunchReport, Module, Result};
use crate::profile::timing::seconds;

/// A device with the module and the buffers on it.
struct Prepared {
    emulator: Emulator,
    module: Module,
    /// Addresses, by argument.
    addresses: Vec<Option<u64>>,
    params: Vec<u8>,
}

impl Launch {
    pub(super) fn run_on_emulator(&self) -> std::result::Result<(Outcome, Option<Contents>), LaunchError> {
        self.emulate().map_err(|error| self.explain(error))
    }

    fn emulate(&self) -> Result<(Outcome, Option<Contents>)> {
        let (kernel, config) = (self.kernel(), self.options.config);
        let mut outcome = Outcome::default();
        if self.options.is_sanitized {
            let Prepared { emulator, module, params, .. } = self.prepare(true)?;
            let (report, findings) = emulator.launch_sanitized(&module, kernel, config, &params)?;
            outcome.device = emulator.facts().name.clone();
            outcome.printed = report.output;
            outcome.findings = Some(findings);
        }
        let prepared = self.prepare(false)?;
        outcome.device = prepared.emulator.facts().name.clone();
        match prepared.emulator.launch_counted(&prepared.module, kernel, config, &prepared.params) {
            Ok((report, counters)) => self.keep(&mut outcome, report, counters),
            // The sanitizer has told of it already.
            Err(_) if outcome.findings.as_ref().is_some_and(|findings| !findings.is_empty()) => {
                return Ok((outcome, None));
            }
            Err(error) => return Err(error),
        }
        let contents = self.contents(&prepared)?;
        drop(prepared);
        for _ in 0..self.options.repeat {
            let Prepared { emulator, module, params, .. } = self.prepare(false)?;
            let launch = || emulator.launch(&module, kernel, config, &params).map(|_| ());
            outcome.seconds.push(seconds(launch)?);
        }
        Ok((outcome, Some(contents)))
    }

    fn keep(&self, outcome: &mut Outcome, report: LaunchReport, counters: Counters) {
        outcome.printed = report.output;
        outcome.counters = Some(counters);
    }

    /// A fresh device. For the sanitizer, buffers without contents stay as they are: memory that nobody wrote.
    fn prepare(&self, is_sanitized: bool) -> Result<Prepared> {
        let mut emulator = Emulator::new(self.device_facts());
        if let Some(budget) = self.options.budget {
            emulator = emulator.with_budget(budget);
        }
        if let Some(threads) = self.options.threads {
            emulator = emulator.with_threads(threads);
        }
        if is_sanitized {
            emulator = emulator.with_initialisation_tracking();
        }
        let module = emulator.load(&self.file, &self.text)?;
        let mut addresses = Vec::with_capacity(self.buffers.len());
        for buffer in &self.buffers {
            let Some(buffer) = buffer else {
                addresses.push(None);
                continue;
            };
            let address = emulator.allocate(buffer.bytes() as u64)?;
            match &buffer.data {
                Some(data) => emulator.write(address, data)?,
                None if is_sanitized => {}
                None => emulator.fill(address, &[POISON], buffer.bytes())?,
            }
            addresses.push(Some(address));
        }
        let params = self.packed_parameters(&addresses);
        Ok(Prepared { emulator, module, addresses, params })
    }

    /// The buffers that go to files, after the launch.
    fn contents(&self, prepared: &Prepared) -> Result<Contents> {
        let mut contents = Vec::with_capacity(self.buffers.len());
        for ((argument, buffer), address) in self.arguments.iter().zip(&self.buffers).zip(&prepared.addresses) {
            contents.push(match (buffer, address, argument.output()) {
                (Some(buffer), Some(address), Some(_)) => {
                    let mut data = vec![0; buffer.bytes()];
                    prepared.emulator.read(*address, &mut data)?;
                    Some(data)
                }
                _ => None,
            });
        }
        Ok(contents)
    }
}
