//! Where tensors live and what is computed fast: devices by name, fused operations, files mapped into memory.

pub mod capture;
pub mod device;
#[cfg(any(feature = "wgpu", feature = "cuda", test))]
mod driver;
#[cfg(all(feature = "gpu", feature = "persistence"))]
mod kernel_cache;
mod mapped_file;
pub mod memory;
pub mod ops;
mod out_of_memory;
mod recompute;
pub mod signals;

pub use capture::Captured;
pub use device::{DeviceError, DeviceReport};
pub use mapped_file::MappedFile;
pub use out_of_memory::ExitWhenOutOfMemory;
pub use recompute::recomputed;
