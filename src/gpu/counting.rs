//! For the tests of launchers: an emulated device that counts what a launch moves.

use super::{Arguments, Source};
use crate::driver::emulator::{Counters, Emulator};
use crate::driver::{DeviceFacts, LaunchConfig};
use crate::ops::{View, ViewMut};

/// An emulator, and memory on it that lives as long as it does.
pub(crate) struct CountingDevice(Emulator);

impl CountingDevice {
    pub(crate) fn new() -> Self {
        Self(Emulator::new(DeviceFacts::default()))
    }

    /// Values to read.
    pub(crate) fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> View<'_, T> {
        // SAFETY: the range was just allocated, and nothing frees it.
        unsafe { View::on_device(self.0.upload(values).expect("memory"), values.len()) }
    }

    /// Values to write.
    pub(crate) fn upload_mut<T: bytemuck::Pod>(&self, values: &[T]) -> ViewMut<'_, T> {
        // SAFETY: as above; it is handed out once.
        unsafe { ViewMut::on_device(self.0.upload(values).expect("memory"), values.len()) }
    }

    /// What a launch left there.
    pub(crate) fn download<T: bytemuck::Pod>(&self, view: &View<'_, T>) -> Vec<T> {
        self.0.download(view.address(), view.len()).expect("memory of this device")
    }

    /// Runs one launch: what it did.
    pub(crate) fn count(
        &self,
        source: &Source,
        (kernel, config, arguments): (&str, LaunchConfig, Arguments),
    ) -> Counters {
        let module = self.0.load(source.name, source.ptx).expect("PTX of the project");
        self.0.launch_counted(&module, kernel, config, arguments.params.as_bytes()).expect("a launch that fits").1
    }
}
