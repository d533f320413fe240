//! What a machine needs for our kernels: a driver, a GPU, both new enough. Each that is missing is one line.

use super::{DeviceFacts, Error, Result};

/// The oldest driver that loads our PTX: for CUDA 12.0, the 525 series.
const OLDEST_VERSION: i32 = 12_000;
/// 10 times the compute capability that the kernels are compiled for.
const OLDEST_ARCHITECTURE: u32 = 80;

/// An error that keeps a device from being opened.
pub(super) fn unavailable<T>(result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::Failed { call, message } => Error::Unavailable(format!("{call}: {message}")),
        other => other,
    })
}

/// The library loads, but is not NVIDIA's.
pub(super) fn foreign_library() -> Error {
    Error::Unavailable("the libcuda on this machine is not an NVIDIA driver's: it has no driver interface".into())
}

/// The driver is there, but no GPU.
pub(super) fn no_gpu() -> Error {
    Error::Unavailable(
        "an NVIDIA driver is installed, but it finds no GPU (is one built in, and not hidden by CUDA_VISIBLE_DEVICES?)"
            .into(),
    )
}

/// `version` as `cuDriverGetVersion` tells it: 1000 times the major version and 10 times the minor one.
pub(super) fn check_version(version: i32) -> Result<()> {
    let written = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    if version >= OLDEST_VERSION {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "the NVIDIA driver is for CUDA {}: install one for CUDA {} or newer",
        written(version),
        written(OLDEST_VERSION)
    )))
}

/// Whether there is a GPU of this number among so many.
pub(super) fn check_ordinal(ordinal: usize, count: i32) -> Result<()> {
    match usize::try_from(count).unwrap_or(0) {
        0 => Err(no_gpu()),
        count if ordinal < count => Ok(()),
        1 => Err(Error::Unavailable("this machine has 1 GPU, number 0".into())),
        count => Err(Error::Unavailable(format!("this machine has {count} GPUs, numbers 0 to {}", count - 1))),
    }
}

pub(super) fn check_architecture(facts: &DeviceFacts) -> Result<()> {
    if facts.architecture >= OLDEST_ARCHITECTURE {
        return Ok(());
    }
    let (major, minor) = (facts.architecture / 10, facts.architecture % 10);
    Err(Error::Unavailable(format!(
        "{} has compute capability {major}.{minor}; the kernels need {}.{} or newer",
        facts.name,
        OLDEST_ARCHITECTURE / 10,
        OLDEST_ARCHITECTURE % 10
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_says(result: Result<()>, text: &str) {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(text) && !message.contains('\n'), "{message:?} lacks {text:?}");
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_needed() {
        assert_says(check_version(11_080), "the NVIDIA driver is for CUDA 11.8: install one for CUDA 12.0");
        assert_says(check_ordinal(0, 0), "finds no GPU");
        assert_says(check_ordinal(1, 1), "this machine has 1 GPU, number 0");
        assert_says(check_ordinal(8, 8), "this machine has 8 GPUs, numbers 0 to 7");
        let turing = DeviceFacts { name: "T4".into(), architecture: 75, ..DeviceFacts::default() };
        assert_says(check_architecture(&turing), "T4 has compute capability 7.5; the kernels need 8.0");
    }

    #[test]
    fn what_suffices_is_taken() {
        assert_eq!(check_version(12_000).and(check_version(13_000)), Ok(()));
        assert_eq!(check_ordinal(0, 1).and(check_ordinal(7, 8)), Ok(()));
        assert_eq!(check_architecture(&DeviceFacts::default()), Ok(()));
    }
}
