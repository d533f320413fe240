//! The folder of a run: made, checked, and filled with what a person looks at when the run is over.

use super::config::{Config, ConfigError, Source};
use super::metrics::{self, METRICS_FILE, NOTES_FILE, Note, Record};
use super::report::Report;
use super::{Trainer, plot, report};
use crate::util::atomic_file::{PARTIAL_SUFFIX, WriteError, plainly, write_atomically};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the resolved configuration.
pub const CONFIG_FILE: &str = "config.toml";

/// Name of what the model said about each example in its best evaluation.
pub const PREDICTIONS_FILE: &str = "predictions.jsonl";

/// A folder cannot be used for a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} exists and is not empty: choose another --out, or go on with that run with --resume", .0.display())]
    Exists(PathBuf),
    #[error("{} is not a folder: choose another --out", .0.display())]
    NotAFolder(PathBuf),
    #[error("{} holds no run to resume (no {CONFIG_FILE}): check --out, or start without --resume", .0.display())]
    NoRun(PathBuf),
    #[error("{} is in use by another process that trains there: wait until it ends, or choose another --out", .0.display())]
    InUse(PathBuf),
    #[error("cannot use the folder {}: {}; or choose another --out", path.display(), plainly(source))]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Plot(#[from] plot::PlotError),
    #[error(transparent)]
    Read(#[from] metrics::ReadError),
}

/// `runs/<name>-<UTC time>`
pub fn default_path(name: &str) -> PathBuf {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    PathBuf::from("runs").join(format!("{name}-{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}"))
}

/// Today in UTC, as in `2026-11-24`.
pub fn today() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (year, month, day) = date(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar: years are counted from March,
/// so that the leap day is the last day of a year.
fn date(days: u64) -> (u64, u64, u64) {
    // 719 468 days lie between 0000-03-01 and 1970-01-01; 146 097 days make 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Fails unless a new run may use the folder: it is not there, or holds nothing but leftovers of a killed run.
///
/// # Errors
/// It is in use, is no folder, or cannot be read.
pub fn check_free(folder: &Path) -> Result<(), Error> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        return Err(Error::NotAFolder(folder.to_owned()));
    }
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        if !is_leftover(&entry.map_err(io(folder))?.path()) {
            return Err(Error::Exists(folder.to_owned()));
        }
    }
    Ok(())
}

/// Makes the folder of a new run.
///
/// # Errors
/// As [`check_free`]; or it cannot be made.
pub fn create(folder: &Path) -> Result<(), Error> {
    check_free(folder)?;
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    remove_leftovers(folder)
}

/// Keeps other processes that ask for the lock too out of a run's folder, until it is dropped or the process ends,
/// however it ends. The lock is on the folder itself (`flock`), so nothing is left behind.
#[derive(Debug)]
#[must_use]
pub struct Lock(#[allow(dead_code, reason = "held, not used")] Option<File>);

/// Takes the lock of the run's folder, which must be there. A file system without locks is used without.
///
/// # Errors
/// Another process has it; the folder cannot be opened.
pub fn lock(folder: &Path) -> Result<Lock, Error> {
    let handle = File::open(folder).map_err(io(folder))?;
    match handle.try_lock() {
        Ok(()) => Ok(Lock(Some(handle))),
        Err(TryLockError::WouldBlock) => Err(Error::InUse(folder.to_owned())),
        Err(TryLockError::Error(_)) => Ok(Lock(None)),
    }
}

/// Removes the unfinished files of a run that was killed.
///
/// # Errors
/// The folder cannot be read, or such a file not be removed.
pub fn remove_leftovers(folder: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(io(folder))? {
        let path = entry.map_err(io(folder))?.path();
        if is_leftover(&path) {
            std::fs::remove_file(&path).map_err(io(&path))?;
        }
    }
    Ok(())
}

/// Whether it is a file as [`write_atomically`] leaves one behind when the process is killed.
fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.starts_with('.') && name.ends_with(PARTIAL_SUFFIX) && path.is_file()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// The configuration of the run in a folder, with changes on top.
///
/// # Errors
/// No run, or a configuration that makes no sense.
pub fn load_config(folder: &Path, sets: &[String]) -> Result<Config, Error> {
    let path = folder.join(CONFIG_FILE);
    if !path.is_file() {
        return Err(Error::NoRun(folder.to_owned()));
    }
    Ok(Config::load(Source::File(&path), sets)?)
}

/// Writes the resolved configuration.
///
/// # Errors
/// The file cannot be written.
pub fn write_config(folder: &Path, config: &Config) -> Result<(), Error> {
    let text = config.to_toml();
    Ok(write_atomically(folder.join(CONFIG_FILE), |file| file.write_all(text.as_bytes()))?)
}

/// Writes what the model said about each example.
///
/// # Errors
/// The file cannot be written.
pub fn write_predictions(folder: &Path, predictions: &[serde_json::Value]) -> Result<(), Error> {
    let text = crate::score::prediction::lines(predictions);
    Ok(write_atomically(folder.join(PREDICTIONS_FILE), |file| file.write_all(text.as_bytes()))?)
}

/// Writes `loss.svg` and `report.html` from the run's records.
///
/// # Errors
/// Records that cannot be read, or files that cannot be written.
pub fn write_report(trainer: &Trainer, device: &str, ending: &str) -> Result<(), Error> {
    let folder = trainer.folder();
    let records: Vec<Record> = metrics::read(&folder.join(METRICS_FILE))?;
    let notes: Vec<Note> = metrics::read(&folder.join(NOTES_FILE))?;
    plot::write_loss_svg(&folder.join("loss.svg"), &records)?;
    let name = folder.file_name().map_or_else(|| folder.display().to_string(), |n| n.to_string_lossy().into_owned());
    let parameters: usize = trainer.model().specs().iter().map(|spec| spec.elements()).sum();
    let figures = [
        ("parameters".to_owned(), format!("{:.2} M", parameters as f64 / 1e6)),
        ("training time".to_owned(), super::progress::clock(trainer.seconds())),
        ("measured peak".to_owned(), format!("{:.0} GFLOP/s", trainer.peak_flops() / 1e9)),
    ];
    let report = Report {
        title: &name,
        summary: &format!("{device}; {ending} after {} updates", trainer.step()),
        figures: &figures,
        records: &records,
        notes: &notes,
        config_toml: &trainer.config().to_toml(),
        memory: Some(trainer.memory()),
        judged: trainer.judged().map(|(_, section)| section.as_str()),
    };
    Ok(report::write(&folder.join("report.html"), &report)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_gregorian_calendar() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_781, (2026, 11, 24)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected, "{days} days");
        }
    }

    #[test]
    fn a_folder_is_locked_once_until_the_lock_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err();
        assert!(matches!(error, Error::InUse(_)) && error.to_string().contains("--out"), "{error}");
        drop(held);
        let _held = lock(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left in the folder");
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        create(&folder.path().join("a/b")).unwrap();
        create(folder.path().join("a/b").as_path()).unwrap();
        let error = create(folder.path()).unwrap_err().to_string();
        assert!(error.contains("--resume") && error.contains("--out"), "{error}");
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(create(&file), Err(Error::NotAFolder(_))));
        assert!(matches!(load_config(folder.path(), &[]), Err(Error::NoRun(_))));
    }
}
