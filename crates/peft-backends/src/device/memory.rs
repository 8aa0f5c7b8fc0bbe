//! How much memory of a device this program may use.

use burn::tensor::Device;

use super::host::is_host;
use crate::process::memory;

/// The most that the program may hold on the device, in bytes: on the processor what it holds already and what the system, or the
/// program's control group, would still give it; none where nobody says.
pub fn capacity(device: &Device) -> Option<u64> {
    if !is_host(&device.clone().inner()) {
        return total_memory(device);
    }
    Some(memory::resident()?.saturating_add(memory::free()?))
}

/// The memory of a graphics device, in bytes; none of the processor, and where the driver does not say.
fn total_memory(device: &Device) -> Option<u64> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    return super::gpu::total_memory(device);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    {
        _ = device;
        None
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::process::memory::resident;

    #[test]
    fn the_processor_has_more_than_the_program_holds() {
        let (capacity, resident) = (capacity(&Device::flex()), resident());
        assert!(resident.is_some_and(|bytes| bytes > 1 << 20));
        assert!(capacity > resident, "{capacity:?} {resident:?}");
    }
}
