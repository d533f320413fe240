//! PyTorch as a partner that takes turns: a Python process that runs one step whenever it is told to.
//!
//! The scripts of `benches/pytorch` are built into the program and handed to Python on its command line, so a
//! comparison needs neither the source tree nor a temporary file. A script prints `ready` once it has warmed up; then
//! each line on its standard input is answered by one line.

use crate::util::atomic_file::plainly;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Names the Python interpreter to use; `python3` where it is not set.
pub const PYTHON_VARIABLE: &str = "ENGINE_PYTHON";

/// A script, and the modules of ours that it imports.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub name: &'static str,
    pub source: &'static str,
    /// Name and source.
    pub modules: &'static [(&'static str, &'static str)],
}

/// Whole training steps of a GPT-2 shape.
pub const TRAIN_STEP: Script = Script {
    name: "train_step.py",
    source: include_str!("../../benches/pytorch/train_step.py"),
    modules: &[("gpt", include_str!("../../benches/pytorch/gpt.py"))],
};

/// Single operations.
pub const KERNELS: Script =
    Script { name: "kernels.py", source: include_str!("../../benches/pytorch/kernels.py"), modules: &[] };

/// Runs a script whose source and modules are arguments: count of modules, (name, source) of each, script, source.
const LOADER: &str = "\
import sys, types
_, count, *rest = sys.argv
for i in range(int(count)):
    name, source = rest[2 * i : 2 * i + 2]
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name + '.py', 'exec'), module.__dict__)
name, source, *arguments = rest[2 * int(count) :]
sys.argv = [name, *arguments]
exec(compile(source, name, 'exec'), {'__name__': '__main__', '__doc__': None})
";

/// PyTorch cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start {python}: {why}; set {PYTHON_VARIABLE} to a Python that has PyTorch")]
    Start { python: String, why: String },
    #[error("{python} has no PyTorch; set {PYTHON_VARIABLE} to a Python that has it, or leave --compare out")]
    NoPyTorch { python: String },
    #[error("{script} failed in {python}: {what}")]
    Failed { python: String, script: &'static str, what: String },
}

/// The running process; it ends when this is dropped.
pub struct Partner {
    python: String,
    script: &'static str,
    process: Child,
    /// `None` only while it is being ended.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Partner {
    /// Starts `script` with `arguments` and waits until it is ready.
    ///
    /// # Errors
    /// There is no such Python, it has no PyTorch, or the script fails.
    pub fn start(script: &Script, arguments: &[String]) -> Result<Self, Error> {
        let python = std::env::var(PYTHON_VARIABLE).ok().filter(|name| !name.is_empty());
        let python = python.unwrap_or_else(|| "python3".to_owned());
        let mut command = Command::new(&python);
        command.arg("-c").arg(LOADER).arg(script.modules.len().to_string());
        for (name, source) in script.modules {
            command.arg(name).arg(source);
        }
        command.arg(script.name).arg(script.source).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process =
            command.spawn().map_err(|error| Error::Start { python: python.clone(), why: plainly(&error) })?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("standard output is piped"));
        let mut partner = Self { python, script: script.name, process, input, output };
        let line = partner.line()?;
        partner.check(&line, "ready")?;
        Ok(partner)
    }

    /// Sends a line; the answer.
    fn ask(&mut self, line: &str) -> Result<String, Error> {
        let sent = match &mut self.input {
            Some(input) => writeln!(input, "{line}").and_then(|()| input.flush()),
            None => Ok(()),
        };
        match sent {
            Ok(()) => self.line(),
            Err(_) => Err(self.why_it_ended()),
        }
    }

    /// Sends a line that has one right answer.
    ///
    /// # Errors
    /// The process has ended, or answers something else.
    pub fn expect(&mut self, line: &str, answer: &str) -> Result<(), Error> {
        let found = self.ask(line)?;
        self.check(&found, answer)
    }

    /// Sends a line; the answer is the seconds of one or more calls.
    ///
    /// # Errors
    /// The process has ended, or answers something else.
    pub fn seconds(&mut self, line: &str) -> Result<Vec<f64>, Error> {
        let answer = self.ask(line)?;
        let seconds: Result<Vec<f64>, _> = answer.split_whitespace().map(str::parse).collect();
        match seconds {
            Ok(seconds) if !seconds.is_empty() => Ok(seconds),
            _ => Err(self.failed(format!("it answered {answer:?} to {line:?}"))),
        }
    }

    /// The most memory that the process has occupied so far.
    pub fn peak_resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    fn line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(count) if count > 0 => Ok(line.trim_end().to_owned()),
            _ => Err(self.why_it_ended()),
        }
    }

    fn check(&self, found: &str, expected: &str) -> Result<(), Error> {
        if found == expected {
            Ok(())
        } else {
            Err(self.failed(format!("it printed {found:?} instead of {expected:?}")))
        }
    }

    fn failed(&self, what: String) -> Error {
        Error::Failed { python: self.python.clone(), script: self.script, what }
    }

    /// The last line of what the process wrote to standard error, which for Python is the error itself.
    fn why_it_ended(&mut self) -> Error {
        self.input = None;
        let text = self.process.stderr.take().map(std::io::read_to_string).and_then(Result::ok).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it ended without a word");
        if last.contains("No module named 'torch'") {
            return Error::NoPyTorch { python: self.python.clone() };
        }
        self.failed(last.trim().to_owned())
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        // The end of its input ends it; killing makes sure where it hangs in a step.
        self.input = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
