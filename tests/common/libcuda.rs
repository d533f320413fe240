//! Our driver library in place of the machine's: tests that take the path of a GPU user, without a GPU.
//!
//! The dynamic linker reads `LD_LIBRARY_PATH` when a process starts, so what is to meet the library runs in a process of
//! its own: a program of ours, or the test itself, once more.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Where cargo puts the library: beside the folder of this test's executable. `cargo test` builds it, `cargo test --test`
/// does not, so a library that is missing or older than its sources is told.
fn library_path() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples/libcuda.so");
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    // Cargo writes down what it was made from, spaces escaped.
    let sources = std::fs::read_to_string(path.with_extension("d")).unwrap_or_default().replace("\\ ", "\0");
    let sources = sources.split_whitespace().skip(1).map(|source| source.replace('\0', " "));
    let newest = sources.filter_map(|source| time(Path::new(&source))).max();
    assert!(
        newest.is_some() && time(&path) >= newest,
        "{} is missing or out of date: run cargo build --profile test --example cuda first",
        path.display()
    );
    path
}

/// A folder to search for libraries.
pub struct Library {
    folder: TempDir,
}

impl Library {
    /// With the emulator as `libcuda`, under the names that programs open or link.
    pub fn emulator() -> Self {
        let library = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["libcuda.so.1", "libcuda.so"] {
            std::os::unix::fs::symlink(library_path(), library.folder.path().join(name)).unwrap();
        }
        library
    }

    /// With a text file as `libcuda.so.1`.
    pub fn broken() -> Self {
        let library = Self { folder: tempfile::tempdir().unwrap() };
        for name in ["libcuda.so.1", "libcuda.so"] {
            std::fs::write(library.folder.path().join(name), "no library").unwrap();
        }
        library
    }

    /// Makes a program search the folder first.
    pub fn lend<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_LIBRARY_PATH", self.folder.path())
    }
}

/// Runs `body` in a process of its own that finds the emulator as its `libcuda`: `test` is the full name of the test that
/// calls this. `ENGINE_TEST_LIBCUDA=system` leaves the machine's own library in place, for machines with a GPU.
#[track_caller]
pub fn with_libcuda(test: &str, body: impl FnOnce()) {
    with_libcuda_on(test, "", body);
}

/// The same with an emulated device as `ENGINE_EMULATOR_DEVICE` describes it.
#[track_caller]
pub fn with_libcuda_on(test: &str, device: &str, body: impl FnOnce()) {
    const MARK: &str = "ENGINE_TEST_CHILD";
    if std::env::var(MARK).is_ok_and(|name| name == test) {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, test);
    let is_system = std::env::var("ENGINE_TEST_LIBCUDA").is_ok_and(|value| value == "system");
    let library = (!is_system).then(Library::emulator);
    if let Some(library) = &library {
        library.lend(&mut command).env("ENGINE_EMULATOR_LOG", "1").env("ENGINE_EMULATOR_DEVICE", device);
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "in the process with libcuda:\n{text}");
    assert!(text.contains("1 passed"), "no test is called {test}:\n{text}");
}
