//! The emulator as a [`Driver`]: work is done when it is queued, and handles are indices that are never used again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::emulator::{self, Emulator, EmulatorError};
use super::{
    DeviceFacts, Driver, Error, Event, Function, FunctionFacts, Graph, LaunchConfig, Module, Params, Result, Stream,
};

/// A [`Driver`] that executes PTX on the CPU.
pub struct Emulated {
    emulator: Emulator,
    /// Launches go through the sanitizer; a finding is an error.
    is_sanitized: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    modules: Vec<Option<Arc<emulator::Module>>>,
    functions: Vec<Kernel>,
    streams: Vec<StreamState>,
    events: Vec<Option<Option<Instant>>>,
    graphs: Vec<Option<Arc<Vec<Work>>>>,
    /// What the first launch that failed said: the device is lost.
    fault: Option<Error>,
}

#[derive(Clone)]
struct Kernel {
    module: Module,
    name: String,
}

#[derive(Default)]
enum StreamState {
    #[default]
    Runs,
    Captures(Vec<Work>),
    Destroyed,
}

/// One piece of work of a stream.
#[derive(Clone)]
enum Work {
    Write { address: u64, bytes: Vec<u8> },
    Copy { target: u64, source: u64, bytes: u64 },
    Fill { address: u64, word: u32, count: u64 },
    Launch { function: Function, config: LaunchConfig, params: Params },
    Record(Event),
}

impl From<EmulatorError> for Error {
    fn from(error: EmulatorError) -> Self {
        Self::failed("emulator", error)
    }
}

/// Text that kernels print goes where a program's output goes.
fn print(output: &[u8]) {
    use std::io::Write;
    // A closed standard output is no reason to stop a computation.
    let _ = std::io::stdout().write_all(output);
}

impl Emulated {
    /// The emulator with a device of these facts.
    pub fn new(facts: DeviceFacts) -> Self {
        Self::from_emulator(Emulator::new(facts))
    }

    /// An emulator that is set up already.
    pub fn from_emulator(emulator: Emulator) -> Self {
        let state = State { streams: vec![StreamState::Runs], ..State::default() };
        Self { emulator, is_sanitized: false, state: Mutex::new(state) }
    }

    /// Every launch goes through the sanitizer; what it finds is the launch's error.
    #[must_use]
    pub fn sanitized(self) -> Self {
        Self { emulator: self.emulator.with_initialisation_tracking(), is_sanitized: true, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The state, unless an earlier launch failed.
    fn sound_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        match &state.fault {
            Some(fault) => Err(fault.clone()),
            None => Ok(state),
        }
    }

    /// Runs `work`, or keeps it where the stream is being captured.
    fn queue(&self, stream: Stream, work: Work) -> Result<()> {
        let mut state = self.sound_state()?;
        match state.streams.get_mut(stream.0 as usize) {
            Some(StreamState::Runs) => {}
            Some(StreamState::Captures(captured)) => {
                captured.push(work);
                return Ok(());
            }
            Some(StreamState::Destroyed) | None => return Err(no_such("stream", stream.0)),
        }
        drop(state);
        self.run(work)
    }

    fn run(&self, work: Work) -> Result<()> {
        match work {
            Work::Write { address, bytes } => self.emulator.write(address, &bytes)?,
            Work::Copy { target, source, bytes } => self.emulator.copy(target, source, bytes as usize)?,
            Work::Fill { address, word, count } => {
                self.emulator.fill(address, &word.to_le_bytes(), count as usize)?;
            }
            Work::Launch { function, config, params } => return self.run_launch(function, config, &params),
            Work::Record(event) => {
                let mut state = self.state();
                let moment = state.events.get_mut(event.0 as usize).and_then(Option::as_mut);
                *moment.ok_or_else(|| no_such("event", event.0))? = Some(Instant::now());
            }
        }
        Ok(())
    }

    fn run_launch(&self, function: Function, config: LaunchConfig, params: &Params) -> Result<()> {
        let (kernel, module) = self.kernel(function)?;
        let params = params.as_bytes();
        let result = if self.is_sanitized {
            self.emulator.launch_sanitized(&module, &kernel.name, config, params)
        } else {
            self.emulator.launch(&module, &kernel.name, config, params).map(|report| (report, Vec::new()))
        };
        let error = match result {
            Ok((report, findings)) => {
                print(&report.output);
                match findings.first() {
                    None => return Ok(()),
                    Some(first) => {
                        let more = if findings.len() > 1 {
                            format!(" (and {} more)", findings.len() - 1)
                        } else {
                            String::new()
                        };
                        Error::failed(format!("sanitizer: {}", kernel.name), format!("{first}{more}"))
                    }
                }
            }
            // What was refused has not run, so the device is as it was.
            Err(error @ EmulatorError::Launch { .. }) => return Err(error.into()),
            Err(error) => error.into(),
        };
        self.state().fault.get_or_insert_with(|| error.clone());
        Err(error)
    }

    fn kernel(&self, function: Function) -> Result<(Kernel, Arc<emulator::Module>)> {
        let state = self.state();
        let kernel = state.functions.get(function.0 as usize).ok_or_else(|| no_such("function", function.0))?;
        Ok((kernel.clone(), state.module(kernel.module)?))
    }

    /// Fails where the stream does not exist or is being captured.
    fn check_runs(&self, stream: Stream, call: &str) -> Result<()> {
        match self.sound_state()?.streams.get(stream.0 as usize) {
            Some(StreamState::Runs) => Ok(()),
            Some(StreamState::Captures(_)) => Err(Error::failed(call, "not permitted while the stream is captured")),
            Some(StreamState::Destroyed) | None => Err(no_such("stream", stream.0)),
        }
    }
}

impl State {
    fn module(&self, module: Module) -> Result<Arc<emulator::Module>> {
        self.modules.get(module.0 as usize).and_then(Clone::clone).ok_or_else(|| no_such("module", module.0))
    }

    fn moment(&self, event: Event) -> Result<Instant> {
        let moment = self.events.get(event.0 as usize).copied().flatten().ok_or_else(|| no_such("event", event.0))?;
        moment.ok_or_else(|| Error::failed("event", format!("event {} was never recorded", event.0)))
    }
}

fn no_such(kind: &str, handle: u64) -> Error {
    Error::failed(kind, format!("there is no {kind} {handle}"))
}

impl Driver for Emulated {
    fn facts(&self) -> &DeviceFacts {
        self.emulator.facts()
    }

    fn is_emulated(&self) -> bool {
        true
    }

    fn memory_info(&self) -> Result<(u64, u64)> {
        Ok(self.emulator.memory_info())
    }

    fn allocate(&self, bytes: u64) -> Result<u64> {
        drop(self.sound_state()?);
        let (free, total) = self.emulator.memory_info();
        if bytes > free {
            return Err(Error::OutOfMemory { bytes, free, total });
        }
        Ok(self.emulator.allocate(bytes)?)
    }

    fn free(&self, address: u64) -> Result<()> {
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
        drop(self.sound_state()?);
        let module = self.emulator.load(name, ptx)?;
        let mut state = self.state();
        state.modules.push(Some(Arc::new(module)));
        Ok(Module(state.modules.len() as u64 - 1))
    }

    fn unload(&self, module: Module) -> Result<()> {
        let removed = self.state().modules.get_mut(module.0 as usize).and_then(Option::take);
        let removed = removed.ok_or_else(|| no_such("module", module.0))?;
        // A launch that is running on another thread still holds it; its variables then stay until the emulator goes.
        if let Some(module) = Arc::into_inner(removed) {
            self.emulator.unload(module);
        }
        Ok(())
    }

    fn function(&self, module: Module, name: &str) -> Result<Function> {
        let mut state = self.sound_state()?;
        let loaded = state.module(module)?;
        if !loaded.kernels().any(|kernel| kernel.name == name) {
            return Err(Error::failed("function", format!("the module has no kernel {name}")));
        }
        state.functions.push(Kernel { module, name: name.to_owned() });
        Ok(Function(state.functions.len() as u64 - 1))
    }

    fn function_facts(&self, function: Function) -> Result<FunctionFacts> {
        let (kernel, module) = self.kernel(function)?;
        let info = module.kernels().find(|info| info.name == kernel.name);
        let info = info.ok_or_else(|| no_such("function", function.0))?;
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
        self.queue(stream, Work::Launch { function, config, params: params.clone() })
    }

    fn create_stream(&self) -> Result<Stream> {
        let mut state = self.sound_state()?;
        state.streams.push(StreamState::Runs);
        Ok(Stream(state.streams.len() as u64 - 1))
    }

    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        let mut state = self.state();
        match state.streams.get_mut(stream.0 as usize) {
            Some(found @ (StreamState::Runs | StreamState::Captures(_))) if stream != Stream::DEFAULT => {
                *found = StreamState::Destroyed;
                Ok(())
            }
            _ => Err(no_such("stream", stream.0)),
        }
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.check_runs(stream, "synchronize")
    }

    fn create_event(&self) -> Result<Event> {
        let mut state = self.sound_state()?;
        state.events.push(Some(None));
        Ok(Event(state.events.len() as u64 - 1))
    }

    fn destroy_event(&self, event: Event) -> Result<()> {
        let removed = self.state().events.get_mut(event.0 as usize).and_then(Option::take);
        removed.map(|_| ()).ok_or_else(|| no_such("event", event.0))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<()> {
        self.queue(stream, Work::Record(event))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<()> {
        // All work queued before is done, so there is nothing to wait for, but the handles are checked.
        let state = self.sound_state()?;
        state.events.get(event.0 as usize).copied().flatten().ok_or_else(|| no_such("event", event.0))?;
        match state.streams.get(stream.0 as usize) {
            Some(StreamState::Runs | StreamState::Captures(_)) => Ok(()),
            Some(StreamState::Destroyed) | None => Err(no_such("stream", stream.0)),
        }
    }

    fn elapsed_seconds(&self, start: Event, end: Event) -> Result<f64> {
        let state = self.sound_state()?;
        let (start, end) = (state.moment(start)?, state.moment(end)?);
        Ok(end.saturating_duration_since(start).as_secs_f64())
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.check_runs(stream, "begin_capture")?;
        if stream == Stream::DEFAULT {
            return Err(Error::failed("begin_capture", "the default stream cannot be captured"));
        }
        self.state().streams[stream.0 as usize] = StreamState::Captures(Vec::new());
        Ok(())
    }

    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let mut state = self.sound_state()?;
        let found = state.streams.get_mut(stream.0 as usize).ok_or_else(|| no_such("stream", stream.0))?;
        let StreamState::Captures(work) = found else {
            return Err(Error::failed("end_capture", "the stream is not being captured"));
        };
        let work = Arc::new(std::mem::take(work));
        *found = StreamState::Runs;
        state.graphs.push(Some(work));
        Ok(Graph(state.graphs.len() as u64 - 1))
    }

    fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        let work = self.sound_state()?.graphs.get(graph.0 as usize).and_then(Clone::clone);
        for work in work.ok_or_else(|| no_such("graph", graph.0))?.iter() {
            self.queue(stream, work.clone())?;
        }
        Ok(())
    }

    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        let removed = self.state().graphs.get_mut(graph.0 as usize).and_then(Option::take);
        removed.map(|_| ()).ok_or_else(|| no_such("graph", graph.0))
    }
}
