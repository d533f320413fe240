//! What a run shows while it goes on: one live line on a terminal, plain lines elsewhere.
//!
//! ```text
//! step  120/1000  loss 2.1345  val 2.2010  0:12 + 1:28 left  10.4k tok/s  117 GFLOP/s (71 % of peak)  lr 9.87e-4
//! ```
//!
//! Plain lines come every `log_every` updates, and every five seconds where updates are slow: enough to see that a job
//! in a log file is alive, few enough to read. Messages (samples, warnings, evaluations) go above the live line.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Longest silence of plain lines while updates go on.
const SILENCE: Duration = Duration::from_secs(5);

/// Figures of one update, as far as a progress line shows them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Updates made so far, this one included.
    pub step: usize,
    pub loss: f64,
    pub lr: f64,
    pub tokens_per_second: f64,
    /// Model FLOPs per second.
    pub flops_per_second: f64,
    /// The machine's measured peak; 0 where it was not measured.
    pub peak_flops_per_second: f64,
}

/// Shows a run.
pub struct Progress {
    total_steps: usize,
    first_step: usize,
    log_every: usize,
    started: Instant,
    /// Newest evaluation.
    val_loss: Option<f64>,
    output: Output,
}

enum Output {
    /// A live line on the terminal.
    Live(ProgressBar),
    /// A line now and then.
    Plain {
        sink: Box<dyn Write + Send>,
        printed: Option<(usize, Instant)>,
    },
    Silent,
}

impl Progress {
    /// Shows a run of `total_steps` updates, of which `done_steps` were made before, on standard error.
    pub fn new(total_steps: usize, done_steps: usize, log_every: usize) -> Self {
        let output = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total_steps as u64), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{bar:16} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.set_position(done_steps as u64);
            Output::Live(bar)
        } else {
            Output::Plain { sink: Box::new(std::io::stderr()), printed: None }
        };
        Self::with(output, total_steps, done_steps, log_every)
    }

    /// As [`Progress::new`], in plain lines to `sink`.
    pub fn plain(sink: Box<dyn Write + Send>, total_steps: usize, done_steps: usize, log_every: usize) -> Self {
        Self::with(Output::Plain { sink, printed: None }, total_steps, done_steps, log_every)
    }

    /// Shows nothing, for runs inside other programs and tests.
    pub fn silent() -> Self {
        Self::with(Output::Silent, 0, 0, 1)
    }

    fn with(output: Output, total_steps: usize, done_steps: usize, log_every: usize) -> Self {
        let log_every = log_every.max(1);
        Self { total_steps, first_step: done_steps, log_every, started: Instant::now(), val_loss: None, output }
    }

    /// Shows an update.
    pub fn update(&mut self, figures: &Figures) {
        let now = Instant::now();
        let elapsed = now - self.started;
        let (is_due, line) = match &self.output {
            Output::Silent => return,
            Output::Live(_) => (true, self.line(figures, elapsed)),
            Output::Plain { printed, .. } => (self.is_due(figures.step, *printed, now), self.line(figures, elapsed)),
        };
        match &mut self.output {
            Output::Live(bar) => {
                bar.set_position(figures.step as u64);
                bar.set_message(line);
            }
            Output::Plain { sink, printed } if is_due => {
                // A closed pipe is no reason to stop a run.
                let _ = writeln!(sink, "{line}");
                *printed = Some((figures.step, now));
            }
            Output::Plain { .. } | Output::Silent => {}
        }
    }

    /// Remembers an evaluation for the lines that follow.
    pub fn evaluated(&mut self, val_loss: f64) {
        self.val_loss = Some(val_loss);
    }

    /// Prints `text`, of one or more lines, above the live line.
    pub fn message(&mut self, text: &str) {
        match &mut self.output {
            Output::Live(bar) => bar.suspend(|| {
                let _ = writeln!(std::io::stderr(), "{text}");
            }),
            Output::Plain { sink, .. } => {
                let _ = writeln!(sink, "{text}");
            }
            Output::Silent => {}
        }
    }

    /// Ends the display: the live line becomes an ordinary one. Messages after it still print.
    pub fn finish(&mut self) {
        if let Output::Live(bar) = &self.output {
            bar.finish_and_clear();
            let mut sink = std::io::stderr();
            let _ = writeln!(sink, "{}", bar.message());
            self.output = Output::Plain { sink: Box::new(sink), printed: None };
        }
    }

    /// Whether a plain line is due: the first and the last update, every `log_every`th, and after a silence.
    fn is_due(&self, step: usize, printed: Option<(usize, Instant)>, now: Instant) -> bool {
        let Some((_, time)) = printed else { return true };
        step == self.total_steps
            || step.is_multiple_of(self.log_every)
            || now.saturating_duration_since(time) >= SILENCE
    }

    /// What matters most comes first: a narrow terminal cuts off the end.
    fn line(&self, figures: &Figures, elapsed: Duration) -> String {
        let width = self.total_steps.to_string().len();
        let mut line = format!("step {:>width$}/{}  loss {:.4}", figures.step, self.total_steps, figures.loss);
        if let Some(val_loss) = self.val_loss {
            line.push_str(&format!("  val {val_loss:.4}"));
        }
        line.push_str(&format!("  {}", clock(elapsed.as_secs_f64())));
        let made = figures.step.saturating_sub(self.first_step);
        let left = self.total_steps.saturating_sub(figures.step);
        if made > 0 && left > 0 {
            // The mean over the run, evaluations and checkpoints included, since more of both are to come.
            line.push_str(&format!(" + {} left", clock(elapsed.as_secs_f64() / made as f64 * left as f64)));
        }
        let (tokens, gflops) = (short(figures.tokens_per_second), figures.flops_per_second / 1e9);
        line.push_str(&format!("  {tokens} tok/s  {gflops:.0} GFLOP/s"));
        if figures.peak_flops_per_second > 0.0 {
            let percent = 100.0 * figures.flops_per_second / figures.peak_flops_per_second;
            line.push_str(&format!(" ({percent:.0} % of peak)"));
        }
        line.push_str(&format!("  lr {:.2e}", figures.lr));
        line
    }
}

/// `999`, `10.4k`, `1.25M`.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2}M", value / 1e6),
        value if value >= 1e4 => format!("{:.1}k", value / 1e3),
        value => format!("{value:.0}"),
    }
}

/// `0:05`, `12:34`, `1:02:03`, `3d 04:05:06`.
pub fn clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (days, hours, minutes, seconds) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}:{seconds:02}"),
        (0, hours) => format!("{hours}:{minutes:02}:{seconds:02}"),
        (days, hours) => format!("{days}d {hours:02}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(String::from).collect()
        }
    }

    fn figures(step: usize) -> Figures {
        let (flops_per_second, peak_flops_per_second) = (117e9, 165e9);
        Figures {
            step,
            loss: 2.13449,
            lr: 9.87e-4,
            tokens_per_second: 10_432.0,
            flops_per_second,
            peak_flops_per_second,
        }
    }

    #[test]
    fn a_line_shows_everything_a_reader_looks_for() {
        let mut progress = Progress::plain(Box::new(Sink::default()), 1000, 20, 10);
        progress.evaluated(2.201);
        assert_eq!(
            progress.line(&figures(120), Duration::from_secs(12)),
            "step  120/1000  loss 2.1345  val 2.2010  0:12 + 1:46 left  10.4k tok/s  \
             117 GFLOP/s (71 % of peak)  lr 9.87e-4"
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let progress = Progress::plain(Box::new(Sink::default()), 50, 0, 10);
        let line = progress.line(&Figures { peak_flops_per_second: 0.0, ..figures(50) }, Duration::from_secs(3600));
        assert_eq!(line, "step 50/50  loss 2.1345  1:00:00  10.4k tok/s  117 GFLOP/s  lr 9.87e-4");
    }

    #[test]
    fn plain_lines_come_first_last_and_every_so_often() {
        let sink = Sink::default();
        let mut progress = Progress::plain(Box::new(sink.clone()), 33, 0, 10);
        (1..=33).for_each(|step| progress.update(&figures(step)));
        let steps: Vec<String> = sink.lines().iter().map(|line| line.split("  loss").next().unwrap().into()).collect();
        assert_eq!(steps, ["step  1/33", "step 10/33", "step 20/33", "step 30/33", "step 33/33"]);
    }

    #[test]
    fn slow_updates_print_after_five_seconds_of_silence() {
        let progress = Progress::plain(Box::new(Sink::default()), 1000, 0, 100);
        let now = Instant::now();
        assert!(!progress.is_due(7, Some((6, now)), now + Duration::from_millis(4900)));
        assert!(progress.is_due(7, Some((6, now)), now + Duration::from_secs(5)));
    }

    #[test]
    fn messages_appear_at_once_and_in_order() {
        let sink = Sink::default();
        let mut progress = Progress::plain(Box::new(sink.clone()), 10, 0, 10);
        progress.message("before");
        progress.update(&figures(1));
        progress.message("two\nlines");
        progress.finish();
        let lines = sink.lines();
        assert_eq!((lines[0].as_str(), &lines[2..]), ("before", &["two".to_string(), "lines".to_string()][..]));
        Progress::silent().message("nowhere");
    }

    #[test]
    fn clocks_and_counts_read_well() {
        let clocks = [(5.0, "0:05"), (754.4, "12:34"), (3723.0, "1:02:03"), (273_906.0, "3d 04:05:06"), (-1.0, "0:00")];
        clocks.iter().for_each(|(seconds, text)| assert_eq!(clock(*seconds), *text));
        assert_eq!(clock(f64::NAN), "0:00");
        let counts = [(999.0, "999"), (10_432.0, "10.4k"), (1_250_000.0, "1.25M")];
        counts.iter().for_each(|(value, text)| assert_eq!(short(*value), *text));
    }
}
