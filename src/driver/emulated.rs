//! The emulator as a [`Driver`]: work is done when it is queued, and what a capture keeps is
//! a list of it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::emulator::{self, Emulator, EmulatorError};
use super::handles::Table;
use super::{
    CAPTURED, DeviceFacts, Driver, Error, Event, Function, FunctionFacts, Graph, LaunchConfig, LaunchLog, LaunchRecord,
    Module, Params, Result, Stream, refuse_default,
};

/// A [`Driver`] that executes PTX on the CPU.
pub struct Emulated {
    emulator: Emulator,
    watch: Watch,
    log: Option<LaunchLog>,
    modules: Table<emulator::Module>,
    functions: Table<Kernel>,
    /// What was queued since a capture began, where one did.
    streams: Table<Mutex<Option<Vec<Work>>>>,
    events: Table<Moment>,
    graphs: Table<Vec<Work>>,
    /// What the first launch that failed said: the device is lost.
    fault: Mutex<Option<Error>>,
}

/// How launches run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    Nothing,
    /// Under the sanitizer; a finding is an error.
    Sanitize,
    Count,
}

struct Kernel {
    module: Arc<emulator::Module>,
    name: String,
}

/// When an event was recorded last.
type Moment = Mutex<Option<Instant>>;

/// One piece of work of a stream.
#[derive(Clone)]
enum Work {
    Write { address: u64, bytes: Vec<u8> },
    Copy { target: u64, source: u64, bytes: u64 },
    Fill { address: u64, word: u32, count: u64 },
    Launch { kernel: Arc<Kernel>, config: LaunchConfig, params: Params },
    Record(Arc<Moment>),
}

// What is locked here is whole between any two statements, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl From<EmulatorError> for Error {
    fn from(error: EmulatorError) -> Self {
        Self::failed("emulator", error)
    }
}

/// Text that kernels print goes where a program's output goes.
fn print(output: &[u8]) {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    // A closed standard output is no reason to stop a computation.
    let _ = stdout.write_all(output).and_then(|()| stdout.flush());
}

impl Emulated {
    /// The emulator with a device of these facts.
    pub fn new(facts: DeviceFacts) -> Self {
        Self::from_emulator(Emulator::new(facts))
    }

    /// An emulator that is set up already.
    pub fn from_emulator(emulator: Emulator) -> Self {
        let streams = Table::new("stream");
        let default = streams.add(Mutex::new(None));
        debug_assert_eq!(Stream(default), Stream::DEFAULT);
        Self {
            emulator,
            watch: Watch::Nothing,
            log: None,
            modules: Table::new("module"),
            functions: Table::new("function"),
            streams,
            events: Table::new("event"),
            graphs: Table::new("graph"),
            fault: Mutex::default(),
        }
    }

    /// Every launch goes through the sanitizer; what it finds is the launch's error.
    #[must_use]
    pub fn sanitized(self) -> Self {
        Self { emulator: self.emulator.with_initialisation_tracking(), watch: Watch::Sanitize, ..self }
    }

    /// Every launch is counted; see [`logged`](Self::logged).
    #[must_use]
    pub fn counted(self) -> Self {
        Self { watch: Watch::Count, ..self }
    }

    /// Every launch is written down in `log`.
    #[must_use]
    pub fn logged(self, log: &LaunchLog) -> Self {
        Self { log: Some(log.clone()), ..self }
    }

    /// Fails where an earlier launch failed.
    fn check_sound(&self) -> Result<()> {
        lock(&self.fault).clone().map_or(Ok(()), Err)
    }

    /// Runs `work`, or keeps it where the stream is being captured.
    fn queue(&self, stream: Stream, work: Work) -> Result<()> {
        self.check_sound()?;
        let stream = self.streams.get(stream.0)?;
        if let Some(captured) = &mut *lock(&stream) {
            if let Work::Launch { kernel, config, params } = &work {
                self.emulator.check_launch(&kernel.module, &kernel.name, *config, params.as_bytes())?;
            }
            captured.push(work);
            return Ok(());
        }
        self.run(&work)
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Write { address, bytes } => self.emulator.write(*address, bytes)?,
            Work::Copy { target, source, bytes } => self.emulator.copy(*target, *source, *bytes as usize)?,
            Work::Fill { address, word, count } => {
                self.emulator.fill(*address, &word.to_le_bytes(), *count as usize)?;
            }
            Work::Launch { kernel, config, params } => return self.run_launch(kernel, *config, params.as_bytes()),
            Work::Record(moment) => *lock(moment) = Some(Instant::now()),
        }
        Ok(())
    }

    fn run_launch(&self, kernel: &Kernel, config: LaunchConfig, params: &[u8]) -> Result<()> {
        let Kernel { module, name } = kernel;
        let emulator = &self.emulator;
        let result = match self.watch {
            Watch::Nothing => emulator.launch(module, name, config, params).map(|report| (report, None, vec![])),
            Watch::Sanitize => emulator
                .launch_sanitized(module, name, config, params)
                .map(|(report, findings)| (report, None, findings)),
            Watch::Count => emulator
                .launch_counted(module, name, config, params)
                .map(|(report, counters)| (report, Some(counters), vec![])),
        };
        let error = match result {
            Ok((report, counters, findings)) => {
                print(&report.output);
                if let Some(log) = &self.log {
                    let blocks = config.grid.iter().map(|&size| u64::from(size)).product();
                    let (kernel, findings) = (name.clone(), findings.clone());
                    log.push(LaunchRecord { kernel, blocks, counters, findings });
                }
                let Some(first) = findings.first() else { return Ok(()) };
                let more = match findings.len() - 1 {
                    0 => String::new(),
                    more => format!(" (and {more} more)"),
                };
                Error::failed(format!("sanitizer: {name}"), format!("{first}{more}"))
            }
            // What was refused has not run, so the device is as it was.
            Err(error @ EmulatorError::Launch { .. }) => return Err(error.into()),
            Err(error) => error.into(),
        };
        lock(&self.fault).get_or_insert_with(|| error.clone());
        Err(error)
    }

    /// Fails where the stream does not exist or is being captured.
    fn check_runs(&self, stream: Stream, call: &str) -> Result<()> {
        self.check_sound()?;
        let stream = self.streams.get(stream.0)?;
        match *lock(&stream) {
            None => Ok(()),
            Some(_) => Err(Error::failed(call, CAPTURED)),
        }
    }

    fn moment(&self, event: Event) -> Result<Instant> {
        let moment = self.events.get(event.0)?;
        let moment = *lock(&moment);
        moment.ok_or_else(|| Error::failed("event", format!("event {} was never recorded", event.0)))
    }
}

impl Driver for Emulated {
    fn facts(&self) -> &DeviceFacts {
        self.emulator.facts()
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn memory_info(&self) -> Result<(u64, u64)> {
        self.check_sound()?;
        Ok(self.emulator.memory_info())
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        self.check_sound()?;
        let (free, total) = self.emulator.memory_info();
        if bytes > free {
            return Err(Error::OutOfMemory { bytes, free, total });
        }
        Ok(self.emulator.allocate(bytes)?)
    }

    fn free(&self, address: u64) -> Result<()> {
        self.check_sound()?;
        Ok(self.emulator.free(address)?)
    }

    fn write(&self, stream: Stream, address: u64, source: &[u8]) -> Result<()> {
        self.queue(stream, Work::Write { address, bytes: source.to_vec() })
    }

    fn read(&self, stream: Stream, address: u64, target: &mut [u8]) -> Result<()> {
        self.check_runs(stream, "read")?;
        Ok(self.emulator.read(address, target)?)
    }

    fn copy(&self, stream: Stream, target: u64, source: u64, bytes: u64) -> Result<()> {
        self.queue(stream, Work::Copy { target, source, bytes })
    }

    fn fill(&self, stream: Stream, address: u64, word: u32, count: u64) -> Result<()> {
        self.queue(stream, Work::Fill { address, word, count })
    }

    fn load(&self, name: &str, ptx: &str) -> Result<Module> {
        self.check_sound()?;
        Ok(Module(self.modules.add(self.emulator.load(name, ptx)?)))
    }

    fn unload(&self, module: Module) -> Result<()> {
        self.check_sound()?;
        let removed = self.modules.remove(module.0)?;
        self.functions.retain(|kernel| !Arc::ptr_eq(&kernel.module, &removed));
        // A launch that is running on another thread, or a graph, still holds it; its variables then stay until the
        // emulator goes.
        if let Some(module) = Arc::into_inner(removed) {
            self.emulator.unload(module);
        }
        Ok(())
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        self.check_sound()?;
        let module = self.modules.get(module.0)?;
        if !module.kernels().any(|kernel| kernel.name == name) {
            return Err(Error::failed("function", format!("the module has no kernel {name}")));
        }
        Ok(Function(self.functions.add(Kernel { module, name: name.to_owned() })))
    }

    fn function_facts(&self, function: Function) -> Result<FunctionFacts> {
        self.check_sound()?;
        let kernel = self.functions.get(function.0)?;
        let info = kernel.module.kernels().find(|info| info.name == kernel.name);
        let info =
            info.ok_or_else(|| Error::failed("function", format!("the module has no kernel {}", kernel.name)))?;
        Ok(FunctionFacts {
            registers: info.register_words,
            shared_bytes: info.shared_bytes as u32,
            local_bytes: info.local_bytes as u32,
            max_threads: info
                .limits
                .max_threads
                .map_or(self.facts().max_threads_per_block, |most| most.iter().product()),
        })
    }

    fn launch(&self, stream: Stream, function: Function, config: LaunchConfig, params: &Params) -> Result<()> {
        let kernel = self.functions.get(function.0)?;
        self.queue(stream, Work::Launch { kernel, config, params: params.clone() })
    }

    fn create_stream(&self) -> Result<Stream> {
        self.check_sound()?;
        Ok(Stream(self.streams.add(Mutex::new(None))))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        self.check_sound()?;
        refuse_default(stream, "destroy_stream")?;
        self.streams.remove(stream.0).map(|_| ())
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.check_runs(stream, "synchronize")
    }

    fn create_event(&self) -> Result<Event> {
        self.check_sound()?;
        Ok(Event(self.events.add(Moment::default())))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        self.check_sound()?;
        self.events.remove(event.0).map(|_| ())
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.queue(stream, Work::Record(self.events.get(event.0)?))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        // All work queued before is done, so there is nothing to wait for, but the handles are checked.
        self.check_sound()?;
        self.events.get(event.0)?;
        self.streams.get(stream.0).map(|_| ())
    }

    fn elapsed_seconds(&self, start: Event, end: Event) -> Result<f64> {
        self.check_sound()?;
        let (start, end) = (self.moment(start)?, self.moment(end)?);
        Ok(match end.checked_duration_since(start) {
            Some(forwards) => forwards.as_secs_f64(),
            None => -(start - end).as_secs_f64(),
        })
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.check_sound()?;
        refuse_default(stream, "begin_capture")?;
        let stream = self.streams.get(stream.0)?;
        let captured = &mut *lock(&stream);
        if captured.is_some() {
            return Err(Error::failed("begin_capture", CAPTURED));
        }
        *captured = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        self.check_sound()?;
        let stream = self.streams.get(stream.0)?;
        let captured = lock(&stream).take();
        captured
            .map(|work| Graph(self.graphs.add(work)))
            .ok_or_else(|| Error::failed("end_capture", "the stream is not being captured"))
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        self.check_sound()?;
        self.graphs.get(graph.0)?.iter().try_for_each(|work| self.queue(stream, work.clone()))
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        self.check_sound()?;
        self.graphs.remove(graph.0).map(|_| ())
    }
}
