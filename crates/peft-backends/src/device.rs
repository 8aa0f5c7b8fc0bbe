//! Devices by name: `cpu`, `wgpu`, `wgpu:1`, `cuda:0`, or the best one that works.

pub mod capture;
#[cfg(any(feature = "wgpu", feature = "cuda", test))]
mod driver;
mod error;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod host;
#[cfg(all(feature = "gpu", feature = "persistence"))]
mod kernel_cache;
pub(crate) mod memory;
mod report;

use std::path::PathBuf;

use burn::tensor::Device;

pub use self::{
    error::DeviceError,
    host::is_host,
    report::{DeviceReport, report},
};

/// The backends that are part of this program, the best first.
pub fn built_in() -> Vec<&'static str> {
    [("cuda", cfg!(feature = "cuda")), ("wgpu", cfg!(feature = "wgpu")), ("cpu", true)]
        .into_iter()
        .filter_map(|(name, there)| there.then_some(name))
        .collect()
}

/// The device of that name; without a name the first of [`built_in`] that works, other than a GPU imitated in software.
///
/// # Errors
/// [`DeviceError`] if the word names no device, the backend is not built in, or no such device works on this machine.
pub fn parse(name: Option<&str>) -> Result<Device, DeviceError> {
    let Some(name) = name else {
        let mut working = built_in().into_iter().filter_map(|backend| open(backend, None).ok());
        let best = working.find(|device| !is_software(device));
        return Ok(best.unwrap_or_else(Device::flex));
    };
    let unknown = || DeviceError::Unknown { name: name.to_owned() };
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => (backend, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (name, None),
    };
    match (backend, index) {
        ("cpu", None) | ("wgpu" | "cuda", _) => open(backend, index),
        _ => Err(unknown()),
    }
}

#[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), expect(unused_variables, reason = "the CPU has no index"))]
fn open(backend: &str, index: Option<usize>) -> Result<Device, DeviceError> {
    match backend {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => gpu::open("wgpu", burn::tensor::DeviceType::Wgpu, index, || {
            Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)
        }),
        #[cfg(feature = "cuda")]
        "cuda" => gpu::open("cuda", burn::tensor::DeviceType::Cuda, index, || Device::cuda(0_usize)),
        #[cfg(not(feature = "wgpu"))]
        "wgpu" => Err(not_built_in("wgpu")),
        #[cfg(not(feature = "cuda"))]
        "cuda" => Err(not_built_in("cuda")),
        _ => Err(DeviceError::Unknown { name: backend.to_owned() }),
    }
}

/// Whether a graphics device is the processor after all, and slower than the processor's own backend.
fn is_software(device: &Device) -> bool {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    let is_card = device.identity().is_some_and(|identity| identity.physical.is_some());
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    let is_card = false;
    !is_host(device) && !is_card
}

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
fn not_built_in(backend: &'static str) -> DeviceError {
    DeviceError::NotBuiltIn { backend, built_in: built_in().join(", ") }
}

/// Makes the random numbers of a device, and those that dropout draws, follow from `seed` alone.
///
/// What is dropped is drawn on the processor whatever the device: a GPU's numbers would have to be waited for.
pub fn seed(device: &Device, seed: u64) {
    device.seed(seed);
    if !is_host(&device.clone().inner()) {
        Device::flex().seed(seed);
    }
}

/// Where it is kept which of a GPU's kernels was the fastest for a shape and what they were compiled to, for the next run; none if
/// this program was built without `persistence`.
pub fn kernel_cache() -> Option<PathBuf> {
    #[cfg(all(feature = "gpu", feature = "persistence"))]
    return Some(kernel_cache::file());
    #[cfg(not(all(feature = "gpu", feature = "persistence")))]
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn words_that_name_no_device_are_wrong_use() {
        for word in ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "wgpu:x", "CPU"] {
            let error = parse(Some(word)).unwrap_err();
            assert_eq!((error.exit_code(), error), (2, DeviceError::Unknown { name: word.to_owned() }));
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert!(is_host(&parse(Some("cpu")).unwrap()));
        assert!(report().iter().any(|device| device.name == "cpu" && device.works));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_backend_that_is_not_built_in_names_its_feature() {
        let error = parse(Some("cuda:1")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--features cuda"), "{error}");
    }
}
