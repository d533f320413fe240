//! Lines on standard output, and progress on standard error.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Standard output, until it fails.
#[derive(Default)]
pub struct Output {
    error: Option<io::Error>,
}

impl Output {
    /// Prints at once.
    pub fn print(&mut self, text: &str) -> ControlFlow<()> {
        let mut output = io::stdout().lock();
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// A reader that went away early (`| head`) has what it wanted.
    pub fn outcome(&mut self) -> anyhow::Result<()> {
        match self.error.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(anyhow::Error::new(error).context("cannot write to standard output"))
            }
            _ => Ok(()),
        }
    }
}

/// How far a long piece of work is, on a terminal.
pub struct Progress {
    what: &'static str,
    total: usize,
    started: Instant,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    pub fn new(what: &'static str, total: usize) -> Self {
        Self { what, total, started: Instant::now(), shown: None, is_terminal: io::stderr().is_terminal() }
    }

    pub fn show(&mut self, done: usize) {
        let is_due = self.shown.unwrap_or(self.started).elapsed() > Duration::from_millis(500);
        if self.is_terminal && is_due {
            let rate = done as f64 / self.started.elapsed().as_secs_f64();
            eprint!("\r\x1b[K{done} of {} {}, {rate:.0} a second", self.total, self.what);
            self.shown = Some(Instant::now());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
