//! Devices by name, fused operations, and the process on its operating system.
//!
//! Arrows point one way: `process` ← `device` ← `kernels` ← `nodes` ← `ops`.

pub mod device;
mod kernels;
mod nodes;
pub mod ops;
mod process;

pub use device::{DeviceError, DeviceReport, capture, capture::Captured};
pub use nodes::recompute::recomputed;
pub use process::{mapped_file::MappedFile, out_of_memory::ExitWhenOutOfMemory, signals};

/// How much memory a device has for this program, how much the program holds, and what becomes of what it frees.
pub mod memory {
    pub use crate::{
        device::memory::capacity,
        process::memory::{keep_freed, peak_resident, resident},
    };
}
