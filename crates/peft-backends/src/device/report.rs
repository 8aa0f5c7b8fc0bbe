//! What `peft doctor` shows of each device.

use std::thread;

use burn::tensor::{DType, Device};

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
        memory: super::memory::capacity(&Device::flex()),
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
    use burn::{
        backend::DispatchDevice,
        tensor::{Device, DeviceType},
    };

    use super::DeviceReport;
    use crate::device::gpu::{enumerated, guarded, total_memory};

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
            "wgpu" => crate::device::driver::of_wgpu(kind),
            #[cfg(feature = "cuda")]
            "cuda" => crate::device::driver::of_cuda(),
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
}
