//! Where tensors live: devices by name, and files mapped into memory.

pub mod device;
mod mapped_file;

pub use device::{DeviceError, DeviceReport};
pub use mapped_file::MappedFile;
