//! Devices by name: `cpu`, `wgpu`, `wgpu:1`, `cuda:0`, or the best one that works.

use std::{path::PathBuf, thread};

use burn::tensor::{DType, Device};

/// Why a device cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The word names no device.
    #[error("unknown device `{name}` (devices: cpu, wgpu, wgpu:N, cuda, cuda:N)")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The backend is not part of this program.
    #[error(
        "device `{backend}` is not built into this program (built in: {built_in}): build it with `--features {backend}`"
    )]
    NotBuiltIn {
        /// The backend, which is also the name of the cargo feature.
        backend: &'static str,
        /// What would work, comma separated.
        built_in: String,
    },
    /// The machine has no such device, or its driver does not work.
    #[error("device `{name}` does not work here: {reason}")]
    Unavailable {
        /// What was asked for.
        name: String,
        /// What the backend said.
        reason: String,
    },
}

impl DeviceError {
    /// The exit code that a program ends with on this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown { .. } | Self::NotBuiltIn { .. } => 2,
            Self::Unavailable { .. } => 5,
        }
    }
}

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
        let best = working.find(|device| !is_imitation(device));
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
fn is_imitation(device: &Device) -> bool {
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

/// Whether the device computes in the host's own memory, so that looking at a value costs nothing.
pub fn is_host(device: &Device) -> bool {
    *device == Device::flex()
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
    return Some(crate::kernel_cache::file());
    #[cfg(not(all(feature = "gpu", feature = "persistence")))]
    None
}

/// The memory of a graphics device, in bytes; none of the processor, and where the driver does not say.
pub(crate) fn total_memory(device: &Device) -> Option<u64> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    return gpu::total_memory(device);
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    {
        _ = device;
        None
    }
}

/// A device of this machine, as `peft doctor` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// What `--device` takes: `cpu`, `wgpu:0`.
    pub name: String,
    /// What it calls itself.
    pub kind: String,
    /// Cores and instruction sets of a processor; why a backend found nothing.
    pub note: String,
    /// Whether it can be used.
    pub works: bool,
    /// Its memory in bytes, where its driver says.
    pub memory: Option<u64>,
    /// The driver and its version, of a GPU, where it is known.
    pub driver: Option<String>,
    /// What its kernels are compiled for, which names the driver's compiler and the generation of the card.
    pub compiles_for: Option<String>,
    /// Types of floats that it computes with.
    pub dtypes: Vec<&'static str>,
    /// Products of small matrices that it has instructions for, `16x16x16 f16`; none where there are none.
    pub cooperative_matrices: Vec<String>,
}

impl DeviceReport {
    /// A device of which nothing else is known.
    fn bare(name: String, kind: String, note: String, works: bool) -> Self {
        let (dtypes, cooperative_matrices) = (Vec::new(), Vec::new());
        Self { name, kind, note, works, memory: None, driver: None, compiles_for: None, dtypes, cooperative_matrices }
    }
}

/// The types of floats that a device computes with.
fn dtypes(device: &Device) -> Vec<&'static str> {
    [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16), ("f64", DType::F64)]
        .into_iter()
        .filter_map(|(name, dtype)| device.supports_dtype(dtype).then_some(name))
        .collect()
}

/// Every device of the backends that are built in.
pub fn report() -> Vec<DeviceReport> {
    [
        #[cfg(feature = "cuda")]
        gpu::report("cuda", burn::tensor::DeviceType::Cuda),
        #[cfg(feature = "wgpu")]
        gpu::report("wgpu", burn::tensor::DeviceType::Wgpu),
        vec![processor()],
    ]
    .concat()
}

fn processor() -> DeviceReport {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut notes = vec![format!("{threads} threads")];
    notes.extend(instruction_sets().into_iter().map(str::to_owned));
    DeviceReport {
        memory: crate::memory::capacity(&Device::flex()),
        dtypes: dtypes(&Device::flex()),
        ..DeviceReport::bare(
            "cpu".to_owned(),
            model.unwrap_or(std::env::consts::ARCH).to_owned(),
            notes.join(", "),
            true,
        )
    }
}

/// The vector instructions that the kernels choose from at run time.
fn instruction_sets() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let sets = [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let sets = [("neon", std::arch::is_aarch64_feature_detected!("neon"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let sets: [(&str, bool); 0] = [];
    sets.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu {
    use std::{
        any::Any,
        panic::{self, AssertUnwindSafe},
        sync::Mutex,
    };

    use burn::{
        backend::DispatchDevice,
        tensor::{Device, DeviceType, Tensor},
    };

    use super::{DeviceError, DeviceReport};

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
            Some(at) => {
                found.get(at).cloned().ok_or_else(|| unavailable(format!("there are {} of them", found.len())))?
            }
            None => default(),
        };
        guarded(|| Tensor::<1>::ones([1], &device).sum().try_into_data().map(drop))
            .map_err(unavailable)?
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(device)
    }

    /// The devices of a backend. What has to be said before the first one starts is said here.
    fn enumerated(device_type: DeviceType) -> Result<Vec<Device>, String> {
        #[cfg(feature = "persistence")]
        crate::kernel_cache::set_up();
        guarded(|| Device::enumerate(device_type).into_vec())
    }

    pub(super) fn report(backend: &str, device_type: DeviceType) -> Vec<DeviceReport> {
        let nothing = |reason: String| vec![DeviceReport::bare(backend.to_owned(), "none".to_owned(), reason, false)];
        match enumerated(device_type) {
            Err(reason) => nothing(reason),
            Ok(found) if found.is_empty() => nothing("no GPU or no driver was found".to_owned()),
            Ok(found) => found
                .iter()
                .enumerate()
                .map(|(index, device)| match guarded(|| device.identity()) {
                    Ok(identity) => {
                        let is_card = identity.as_ref().is_some_and(|identity| identity.physical.is_some());
                        let note = if is_card { String::new() } else { "not a card: software".to_owned() };
                        let (kind, compiles_for) = match identity {
                            Some(identity) => (identity.name, Some(identity.fingerprint)),
                            None => ("unnamed".to_owned(), None),
                        };
                        DeviceReport {
                            memory: total_memory(device),
                            driver: guarded(|| driver(backend, &kind)).ok().flatten(),
                            compiles_for,
                            dtypes: super::dtypes(device),
                            cooperative_matrices: cooperative_matrices(device),
                            ..DeviceReport::bare(format!("{backend}:{index}"), kind, note, true)
                        }
                    }
                    Err(note) => DeviceReport::bare(format!("{backend}:{index}"), "unnamed".to_owned(), note, false),
                })
                .collect(),
        }
    }

    #[cfg_attr(not(feature = "wgpu"), expect(unused_variables, reason = "NVIDIA's driver is that of all its cards"))]
    fn driver(backend: &str, kind: &str) -> Option<String> {
        match backend {
            #[cfg(feature = "wgpu")]
            "wgpu" => crate::driver::of_wgpu(kind),
            #[cfg(feature = "cuda")]
            "cuda" => crate::driver::of_cuda(),
            _ => None,
        }
    }

    /// The sizes and types of small matrices that one instruction multiplies.
    fn cooperative_matrices(device: &Device) -> Vec<String> {
        let DispatchDevice::Cube(device) = device.as_dispatch() else { return Vec::new() };
        let client = device.client();
        let found = client.properties().features.matmul.cmma.iter();
        let mut found: Vec<String> =
            found.map(|one| format!("{}x{}x{} {}", one.m, one.n, one.k, one.a_type).to_lowercase()).collect();
        found.dedup();
        found
    }

    pub(super) fn total_memory(device: &Device) -> Option<u64> {
        match device.as_dispatch() {
            DispatchDevice::Cube(device) => device.client().properties().memory.max_memory(),
            DispatchDevice::Autodiff(_) => total_memory(&device.clone().inner()),
            _ => None,
        }
    }

    /// CubeCL's runtimes panic where there is no driver or no adapter; to a user that is an error like any other.
    fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
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
