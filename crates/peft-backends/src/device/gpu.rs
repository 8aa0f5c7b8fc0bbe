//! GPUs: which there are, opening one, and runtimes that panic where there is no driver.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe},
    sync::Mutex,
};

use burn::{
    backend::DispatchDevice,
    tensor::{Device, DeviceType, Tensor},
};

use super::error::DeviceError;

/// The device of that index among those found, or the backend's own choice, after a first computation on it.
pub(super) fn open(
    backend: &str,
    device_type: DeviceType,
    index: Option<usize>,
    default: impl FnOnce() -> Device,
) -> Result<Device, DeviceError> {
    let name = index.map_or_else(|| backend.to_owned(), |index| format!("{backend}:{index}"));
    let unavailable = |reason| DeviceError::Unavailable { name: name.clone(), reason };
    let found = enumerated(device_type).map_err(unavailable)?;
    let device = match index {
        _ if found.is_empty() => return Err(unavailable("no GPU or no driver was found".to_owned())),
        Some(at) => found.get(at).cloned().ok_or_else(|| unavailable(format!("there are {} of them", found.len())))?,
        None => default(),
    };
    guarded(|| Tensor::<1>::ones([1], &device).sum().try_into_data().map(drop))
        .map_err(unavailable)?
        .map_err(|error| unavailable(error.to_string()))?;
    Ok(device)
}

/// The devices of a backend. What has to be said before the first one starts is said here.
pub(super) fn enumerated(device_type: DeviceType) -> Result<Vec<Device>, String> {
    #[cfg(feature = "persistence")]
    super::kernel_cache::set_up();
    guarded(|| Device::enumerate(device_type).into_vec())
}

/// CubeCL's runtimes panic where there is no driver or no adapter; to a user that is an error like any other.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // The hook belongs to the whole process: one caller at a time may silence it.
    static SILENCED: Mutex<()> = Mutex::new(());
    let _silenced = SILENCED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    panic::set_hook(hook);
    result.map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "its driver failed to start".to_owned())
}

pub(super) fn total_memory(device: &Device) -> Option<u64> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => device.client().properties().memory.max_memory(),
        DispatchDevice::Autodiff(_) => total_memory(&device.clone().inner()),
        _ => None,
    }
}
