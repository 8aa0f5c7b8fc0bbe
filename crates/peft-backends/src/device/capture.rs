//! Computations that a GPU records once and repeats by one command, in place of hundreds of launches.

use std::fmt;

use burn::tensor::{Device, Graph, capture};

use super::host::is_host;

/// A computation and what it gave last.
///
/// Recorded are launches, with the memory that they read and write: nothing that the host decides is decided again. Whatever is
/// to differ from one time to the next comes through `ops::Slot`s; the rest follows from what the computation
/// owns. Where a device cannot record, or could not record this one, the computation runs again each time, with the same result.
///
/// The result lies in memory that the next [`replay`](Self::replay) writes over: what is to stay is computed from it before.
pub struct Captured<T> {
    graph: Graph<T, Box<dyn FnMut() -> T>>,
    device: Device,
}

impl<T> Captured<T> {
    /// Runs a computation on a device a few times, so that all its kernels are chosen and compiled, and records it.
    ///
    /// It must own every tensor that it looks at, and read nothing back: a device that records cannot be waited for, and panics.
    /// One that brings something from the host is not recorded, or recorded with it.
    pub fn new(device: &Device, computation: impl FnMut() -> T + 'static) -> Self {
        let device = device.clone().inner();
        let graph = capture(&device, Box::new(computation) as Box<dyn FnMut() -> T>);
        let captured = Self { graph, device };
        captured.launch_queued();
        captured
    }

    /// Does the computation on what its slots hold now.
    pub fn replay(&mut self) -> &T {
        // Operations that are queued may read what slots held before, or write what they hold now. A recording is repeated after
        // them by itself.
        if !self.is_recorded() {
            self.launch_queued();
        }
        // SAFETY: The tensors that the launches read and write live: they belong to the computation and to its last result, which
        // `self` owns, and CubeCL keeps the memory of intermediate ones for as long as the recording lives. Nobody else uses them
        // meanwhile and everything is launched on the stream that was recorded: the stream is the thread's, and the boxed closure
        // keeps `self`, and with it every replay, on the thread that recorded.
        #[expect(unsafe_code, reason = "the argument stands above")]
        unsafe {
            self.graph.replay()
        };
        if !self.is_recorded() {
            self.launch_queued();
        }
        self.graph.output()
    }

    /// Whether the device repeats a recording, or the computation runs again each time.
    pub fn is_recorded(&self) -> bool {
        self.graph.is_hardware()
    }

    /// Has whatever is queued launched, without waiting for it.
    fn launch_queued(&self) {
        // A device that fails here fails again where its results are read, and is reported there.
        drop(self.device.flush());
    }
}

impl<T> fmt::Debug for Captured<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured").field("is_recorded", &self.is_recorded()).finish_non_exhaustive()
    }
}

/// Whether a device may record computations: a GPU may, and says so when it is asked to.
pub fn is_recordable(device: &Device) -> bool {
    !is_host(&device.clone().inner())
}
