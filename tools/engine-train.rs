//! `engine-train`: pretrain from a preset or a TOML file.

use clap::Parser;
use engine::data;
use engine::train::config::{Config, Source, Task};
use engine::train::estimate::{Estimate, estimate_run};
use engine::train::memory::{human_bytes, peak_resident_bytes};
use engine::train::progress::{Figures, Progress, clock};
use engine::train::trainer::Error;
use engine::train::{Observer, Outcome, StepReport, Trainer, checkpoint, device, presets, run_folder, signals};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  engine-train                                        train the default preset on the bundled text
  engine-train --preset shakespeare-char --set data.path=input.txt --out runs/shakespeare
  engine-train --preset austen --set train.steps=200 --set optimizer.learning_rate=1e-3
  engine-train --config my.toml --out runs/mine
  engine-train --resume --out runs/mine               go on from the newest checkpoint
  engine-train --resume --out runs/mine --set train.steps=5000
  engine-train --preset gpt2-124m --set data.path=shards --dry-run
  engine-train --help-config                          all keys with their meaning and defaults

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 130 or 143 stopped by Ctrl-C or SIGTERM after a
checkpoint was written.";

/// Train a transformer: from a preset or a TOML file, on the CPU.
#[derive(Parser)]
#[command(name = "engine-train", version, after_help = EXAMPLES)]
struct Arguments {
    /// A named configuration; `austen` where neither this nor --config is given.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    preset: Option<String>,
    /// A configuration file.
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Change a key of the configuration: section.key=value. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder of the run; runs/NAME-TIME where it is not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// auto, cpu, cuda, cuda:N or emulator: short for --set device.kind=...
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Number of updates: short for --set train.steps=...
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Go on from the newest checkpoint in --out.
    #[arg(long, requires = "out")]
    resume: bool,
    /// Show model, data and memory, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as one JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// Print all configuration keys with their meaning and defaults, as TOML, and stop.
    #[arg(long)]
    help_config: bool,
}

/// A failure and the exit code that belongs to it.
struct Failure {
    code: u8,
    error: anyhow::Error,
}

/// Bad usage or configuration.
fn usage(error: impl Into<anyhow::Error>) -> Failure {
    Failure { code: 2, error: error.into() }
}

/// Anything else.
fn failed(error: impl Into<anyhow::Error>) -> Failure {
    Failure { code: 1, error: error.into() }
}

/// A run that was refused: bad usage where other options are the remedy.
fn refused(error: Error) -> Failure {
    use run_folder::Error::{Exists, NotAFolder};
    match error {
        Error::Resume(_)
        | Error::Unsupported(_)
        | Error::Prompt(_)
        | Error::Data(data::Error::Resume { .. })
        | Error::Checkpoint(checkpoint::Error::Optimizer(_))
        | Error::Folder(Exists(_) | NotAFolder(_)) => usage(error),
        _ => failed(error),
    }
}

/// Prints to standard output. Whoever closed it does not want to know: no reason to fail.
fn show(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints a line to standard error.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.help_config {
        show(&Config::reference());
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(Failure { code, error }) => {
            // One line, whatever the error holds. Errors of the library say what caused them by themselves.
            tell(&format!("engine-train: {}", error.to_string().replace('\n', " ")));
            ExitCode::from(code)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let config = load_config(arguments)?;
    let chosen = device::open(&config.device).map_err(failed)?;
    if arguments.dry_run {
        let estimate = estimate_run(&config, &chosen.device).map_err(refused)?;
        show_estimate(arguments, &chosen.description, &estimate);
        estimate.memory.check(&chosen.device).map_err(failed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let name = arguments.preset.as_deref().or(stem(arguments.config.as_deref())).unwrap_or(presets::PRESETS[0].name);
    let folder = arguments.out.clone().unwrap_or_else(|| run_folder::default_path(name));
    if !arguments.resume {
        // Before the data is read, which may take a while.
        run_folder::check_free(&folder).map_err(|error| refused(error.into()))?;
    }
    signals::install().map_err(failed)?;
    let mut trainer = Trainer::new(config, &folder, chosen.device, arguments.resume).map_err(refused)?;
    let total = trainer.config().train.steps;
    let mut observer = Terminal {
        progress: Progress::new(total, trainer.step(), trainer.config().train.log_every),
        peak_flops: trainer.peak_flops(),
    };
    observer.progress.message(&introduction(&trainer, &chosen.description, arguments.resume));
    let outcome = trainer.run(&mut observer);
    observer.progress.finish();
    let ending = match &outcome {
        Ok(Outcome::Done) => "done".to_owned(),
        Ok(Outcome::Stopped(signal)) => format!("stopped by {}", signal.name()),
        Err(error) => format!("failed: {error}"),
    };
    let reported = run_folder::write_report(&trainer, &chosen.description, &ending);
    // What stopped the run comes first: a full disk fails the report as well.
    let outcome = outcome.map_err(failed)?;
    reported.map_err(failed)?;
    conclude(arguments, &trainer, &ending);
    Ok(match outcome {
        Outcome::Done => ExitCode::SUCCESS,
        Outcome::Stopped(signal) => ExitCode::from(signal.exit_code() as u8),
    })
}

fn stem(path: Option<&Path>) -> Option<&str> {
    path?.file_stem()?.to_str()
}

fn load_config(arguments: &Arguments) -> Result<Config, Failure> {
    let mut sets = arguments.set.clone();
    sets.extend(arguments.device.iter().map(|device| format!("device.kind={device}")));
    sets.extend(arguments.steps.iter().map(|steps| format!("train.steps={steps}")));
    if let (true, Some(folder)) = (arguments.resume, &arguments.out) {
        if arguments.preset.is_none() && arguments.config.is_none() {
            return run_folder::load_config(folder, &sets).map_err(usage);
        }
        if !folder.join(run_folder::CONFIG_FILE).is_file() {
            return Err(usage(run_folder::Error::NoRun(folder.clone())));
        }
    }
    let source = match (&arguments.preset, &arguments.config) {
        (_, Some(file)) => Source::File(file),
        (Some(name), None) => Source::Preset(name),
        (None, None) => Source::Preset(presets::PRESETS[0].name),
    };
    Config::load(source, &sets).map_err(usage)
}

/// What is trained on what, and the memory that it takes.
fn introduction(trainer: &Trainer, device: &str, is_resumed: bool) -> String {
    let (config, amount) = (trainer.config(), trainer.amount());
    let parameters: usize = trainer.model().specs().iter().map(|spec| spec.elements()).sum();
    let gpt = trainer.model().config();
    let mut text = format!(
        "device   {device}, measured peak {:.0} GFLOP/s\n\
         model    {} layers, {} heads, {} channels, block {}, vocabulary {}: {:.2} M parameters\n\
         data     {}\n\
         run      {} updates of {} tokens, {}\n\
         memory\n{}",
        trainer.peak_flops() / 1e9,
        gpt.layers,
        gpt.heads,
        gpt.channels,
        gpt.block,
        gpt.vocabulary,
        parameters as f64 / 1e6,
        amount.line,
        config.train.steps,
        amount.update_tokens,
        trainer.folder().display(),
        trainer.memory(),
    );
    if let Some(warning) = &amount.warning {
        text.push_str(&format!("\nnote: {warning}"));
    }
    if trainer.step() > 0 {
        text.push_str(&format!("\nresumed after update {}", trainer.step()));
    } else if is_resumed {
        text.push_str("\nthis run was stopped before its first checkpoint: it starts again");
    }
    text
}

fn show_estimate(arguments: &Arguments, device: &str, estimate: &Estimate) {
    if arguments.json {
        let rows: serde_json::Map<String, serde_json::Value> =
            estimate.memory.rows().iter().map(|(name, bytes)| (name.clone(), json!(bytes))).collect();
        let object = json!({
            "device": device,
            "parameters": estimate.parameters,
            "vocabulary": estimate.vocabulary,
            "train_tokens": estimate.amount.train_tokens,
            "val_tokens": estimate.amount.val_tokens,
            "flops_per_token": estimate.flops_per_token,
            "memory_bytes": rows,
            "memory_total_bytes": estimate.memory.total_bytes(),
        });
        show(&format!("{object}\n"));
        return;
    }
    show(&format!(
        "device   {device}\n\
         model    {:.2} M parameters, vocabulary {}\n\
         data     {}\n\
         work     {:.1} MFLOP a token\n\
         memory\n{}\n",
        estimate.parameters as f64 / 1e6,
        estimate.vocabulary,
        estimate.amount.line,
        estimate.flops_per_token / 1e6,
        estimate.memory,
    ));
}

fn conclude(arguments: &Arguments, trainer: &Trainer, ending: &str) {
    let folder = trainer.folder();
    let peak_bytes = peak_resident_bytes();
    if arguments.json {
        let object = json!({
            "out": folder,
            "ending": ending,
            "step": trainer.step(),
            "best_step": trainer.best().map(|best| best.step),
            "best_val_loss": trainer.best().map(|best| best.val_loss),
            "train_seconds": trainer.seconds(),
            "peak_resident_bytes": peak_bytes,
        });
        show(&format!("{object}\n"));
        return;
    }
    if let Some((table, _)) = trainer.judged() {
        tell(table.trim_end());
    }
    let best = trainer.best().map_or(String::new(), |best| match &best.score {
        Some(score) => format!(", best {} {:.4} at update {}", score.name.replace('_', " "), score.value, best.step),
        None => format!(", best validation loss {:.4} at update {}", best.val_loss, best.step),
    });
    let memory = peak_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", human_bytes(bytes)));
    tell(&format!("{ending} after {} updates in {}{best}{memory}", trainer.step(), clock(trainer.seconds())));
    tell(&format!("look at {}", folder.join("report.html").display()));
    let folder = folder.display();
    tell(&match trainer.config().train.task {
        Task::CausalLm => format!("try     engine-run generate {folder} --prompt \"It is a truth\""),
        Task::MaskedLm => format!("try     engine-run fill {folder} --text \"It is a [MASK].\""),
        Task::Classification | Task::MultiLabel | Task::Regression => {
            format!("try     engine-run classify {folder} --text \"It is a truth.\"")
        }
        Task::ImageClassification => format!("try     engine-run classify {folder} image.png"),
        Task::QuestionAnswering => format!("try     engine-run answer {folder} --question \"...\" --context \"...\""),
        Task::Translation => format!("try     engine-run translate {folder} --text \"...\""),
    });
}

struct Terminal {
    progress: Progress,
    peak_flops: f64,
}

impl Observer for Terminal {
    fn message(&mut self, text: &str) {
        self.progress.message(text);
    }

    fn step(&mut self, report: &StepReport) {
        self.progress.update(&Figures {
            step: report.step,
            loss: report.loss,
            lr: report.learning_rate,
            tokens_per_second: report.tokens_per_second,
            flops_per_second: report.flops_per_second,
            peak_flops_per_second: self.peak_flops,
        });
    }

    fn evaluation(&mut self, step: usize, val_loss: f64, figures: &[(&'static str, f64)]) {
        self.progress.evaluated(val_loss);
        let mut line = format!("step {step}: validation loss {val_loss:.4}");
        if figures.is_empty() {
            line.push_str(&format!(", perplexity {:.2}", val_loss.exp()));
        }
        for (name, value) in figures {
            line.push_str(&format!(", {} {value:.4}", name.replace('_', " ")));
        }
        self.progress.message(&line);
    }
}
