//! Files that are whole or not there: written under a temporary name in the same folder, fsynced, renamed, and the
//! folder fsynced, so that neither a crash nor a full disk ever leaves half a file under the final name.
//!
//! A link is followed, so that the file it names is replaced and not the link. What is no plain file (a pipe, a terminal,
//! `/dev/null`) is written to as it stands.
//!
//! The temporary name starts with a dot and ends in `.partial`; it is removed when the write fails. Only a process
//! that was killed leaves one behind.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the name of an unfinished file ends.
pub const PARTIAL_SUFFIX: &str = ".partial";

/// A file could not be written; nothing stands under its final name that was not there before.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {}", path.display(), plainly(cause))]
pub struct WriteError {
    /// Final name of the file.
    pub path: PathBuf,
    /// What the operating system said. Part of the message, so it is not its `source`: it would be printed twice.
    pub cause: io::Error,
}

/// What an error of the operating system means to the person who started the program, and what to do about it.
pub fn plainly(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::StorageFull => "the disk is full; free some space and run it again".into(),
        ErrorKind::QuotaExceeded => "the disk quota is used up; free some space and run it again".into(),
        ErrorKind::FileTooLarge => "the file would exceed the largest size allowed (see ulimit -f)".into(),
        ErrorKind::PermissionDenied => "permission denied; choose a place that you may write to".into(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another place".into(),
        ErrorKind::NotFound => "no such file or folder; check the path".into(),
        _ => error.to_string(),
    }
}

/// Writes a whole file by `write`, or leaves everything as it was.
///
/// # Errors
/// The file cannot be created, `write` fails, or the disk does.
pub fn write_atomically(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut AtomicFile) -> io::Result<()>,
) -> Result<(), WriteError> {
    let mut file = AtomicFile::create(path)?;
    if let Err(cause) = write(&mut file) {
        return Err(WriteError { path: file.path.clone(), cause });
    }
    file.commit()
}

/// A file being written; it appears under its name by [`commit`](Self::commit) and vanishes if dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    /// What `path` is, or what it leads to if it is a link.
    target: PathBuf,
    temporary: PathBuf,
    /// None once sealed: the data is on the disk and the file closed.
    writer: Option<BufWriter<File>>,
    is_committed: bool,
    /// What has the name already is no plain file: it is written to, and there is no temporary file.
    is_direct: bool,
}

impl AtomicFile {
    /// Starts a file that will be called `path`. Its folder must exist.
    ///
    /// # Errors
    /// The temporary file cannot be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, WriteError> {
        // Two writers of one process, or of two processes, must not share a temporary file.
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let path = path.as_ref().to_path_buf();
        let is_link = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        let target = if is_link { std::fs::canonicalize(&path).ok() } else { None }.unwrap_or_else(|| path.clone());
        let fail = |cause| WriteError { path: path.clone(), cause };
        let found = std::fs::metadata(&target).ok();
        if found.is_some_and(|found| !found.is_file() && !found.is_dir()) {
            let file = OpenOptions::new().write(true).open(&target).map_err(fail)?;
            let writer = Some(BufWriter::with_capacity(1 << 18, file));
            let temporary = target.clone();
            return Ok(Self { path, target, temporary, writer, is_committed: false, is_direct: true });
        }
        let name = target.file_name().ok_or_else(|| fail(io::Error::other("this is not the name of a file")))?;
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(
            ".{}.{}-{unique}{PARTIAL_SUFFIX}",
            name.to_string_lossy().replace('\u{FFFD}', "_"),
            std::process::id()
        );
        let temporary = target.with_file_name(temporary);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary).map_err(fail)?;
        let writer = Some(BufWriter::with_capacity(1 << 18, file));
        Ok(Self { path, target, temporary, writer, is_committed: false, is_direct: false })
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings all data to the disk and closes the file, which keeps its temporary name. For sets of files that should
    /// appear together: seal each as it is done, commit all at the end.
    ///
    /// # Errors
    /// The data cannot be written.
    pub fn seal(&mut self) -> Result<(), WriteError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .and_then(|file| if self.is_direct { Ok(()) } else { file.sync_all() })
            .map_err(|cause| WriteError { path: self.path.clone(), cause })
    }

    /// Seals the file and gives it its final name, replacing a file of that name.
    ///
    /// # Errors
    /// The data cannot be written, or the file cannot be renamed.
    pub fn commit(mut self) -> Result<(), WriteError> {
        self.seal()?;
        if self.is_direct {
            return Ok(());
        }
        let renamed = std::fs::rename(&self.temporary, &self.target).and_then(|()| {
            self.is_committed = true;
            sync_folder_of(&self.target)
        });
        renamed.map_err(|cause| WriteError { path: self.path.clone(), cause })
    }

    fn writer(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.writer.as_mut().ok_or_else(|| io::Error::other("the file is already sealed"))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.writer()?.seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.is_committed && !self.is_direct {
            self.writer = None;
            // Nothing useful can be done where this fails as well; the name says that the file is not whole.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// Removes the unfinished files that killed processes left in a folder. Those of processes that still run are kept,
/// where the system tells (`/proc`).
///
/// # Errors
/// The folder cannot be read, or a file cannot be removed.
pub fn remove_abandoned(folder: impl AsRef<Path>) -> Result<(), WriteError> {
    let folder = folder.as_ref();
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |cause| WriteError { path, cause }
    };
    for entry in std::fs::read_dir(folder).map_err(fail(folder))? {
        let path = entry.map_err(fail(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let writer = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL_SUFFIX)).and_then(|name| {
            let (process, count) = name.rsplit_once('.')?.1.split_once('-')?;
            count.parse::<u64>().ok()?;
            process.parse::<u32>().ok()
        });
        let is_abandoned = writer.is_some_and(|process| {
            process != std::process::id() && !Path::new("/proc").join(process.to_string()).exists()
        });
        if is_abandoned {
            std::fs::remove_file(&path).map_err(fail(&path))?;
        }
    }
    Ok(())
}

/// Makes a rename, creation or removal inside the folder of `path` survive a crash.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_what_is_no_plain_file_stays_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target.bin"), folder.path().join("link"));
        std::fs::write(&target, b"old").unwrap();
        std::os::unix::fs::symlink("target.bin", &link).unwrap();
        write_atomically(&link, |file| file.write_all(b"new")).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["link", "target.bin"]);

        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        write_atomically(&pipe, |file| file.write_all(b"through the pipe")).unwrap();
        assert_eq!(reader.join().unwrap(), b"through the pipe");
        assert!(!std::fs::metadata(&pipe).unwrap().is_file());
        assert_eq!(names(folder.path()), ["link", "pipe", "target.bin"]);
    }

    #[test]
    fn a_finished_file_replaces_the_old_one_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |file| file.write_all(b"one")).unwrap();
        write_atomically(&path, |file| file.write_all(b"second")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_says_that_the_disk_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write_atomically(&path, |file| file.write_all(b"one")).unwrap();
        let error = write_atomically(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
        assert!(error.to_string().contains("a.bin"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_sealed_file_is_invisible_until_it_is_committed_and_a_dropped_one_vanishes() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = AtomicFile::create(folder.path().join("kept")).unwrap();
        kept.write_all(b"abc").unwrap();
        kept.seek(SeekFrom::Start(1)).unwrap();
        kept.write_all(b"X").unwrap();
        kept.seal().unwrap();
        assert!(kept.write_all(b"more").is_err());
        let mut dropped = AtomicFile::create(folder.path().join("dropped")).unwrap();
        dropped.write_all(b"abc").unwrap();
        drop(dropped);
        assert!(!folder.path().join("kept").exists());
        kept.commit().unwrap();
        assert_eq!(std::fs::read(folder.path().join("kept")).unwrap(), b"aXc");
        assert_eq!(names(folder.path()), ["kept"]);
    }

    #[test]
    fn only_what_dead_processes_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut running = AtomicFile::create(folder.path().join("running")).unwrap();
        running.write_all(b"abc").unwrap();
        // No process has this number: it is beyond the largest that Linux gives.
        for name in [".left.bin.4194999-0.partial", "kept.partial", ".kept.partial", ".kept.1-x.partial"] {
            std::fs::write(folder.path().join(name), b"half").unwrap();
        }
        remove_abandoned(folder.path()).unwrap();
        running.commit().unwrap();
        assert_eq!(names(folder.path()), [".kept.1-x.partial", ".kept.partial", "kept.partial", "running"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(folder.path().join("no/such"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("no/such: no such file or folder"), "{error}");
    }
}
