//! The processor as a device: the backend Flex.

use burn::tensor::Device;

/// Whether the device computes in the host's own memory, so that looking at a value costs nothing.
pub fn is_host(device: &Device) -> bool {
    *device == Device::flex()
}
