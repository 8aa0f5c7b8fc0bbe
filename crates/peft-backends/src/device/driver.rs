//! Which driver a GPU has, and in which version: what a report of a fault needs first.

/// The driver of the GPU that WGPU knows by that name, and the interface that it speaks. Equal cards have one driver.
#[cfg(feature = "wgpu")]
pub(crate) fn of_wgpu(name: &str) -> Option<String> {
    use burn_wgpu::wgpu::{Adapter, Backends, Instance, InstanceDescriptor};

    let backends = Backends::PRIMARY | Backends::GL;
    let instance = Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(backends));
    let found = adapters.iter().map(Adapter::get_info).find(|info| info.name == name)?;
    let parts = [found.driver, found.driver_info, format!("{:?}", found.backend)];
    Some(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "))
}

/// NVIDIA's driver, where Linux says which one is loaded.
#[cfg(feature = "cuda")]
pub(crate) fn of_cuda() -> Option<String> {
    version(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// The version in the kernel module's own words.
#[cfg(any(feature = "cuda", test))]
fn version(words: &str) -> Option<String> {
    let line = words.lines().find(|line| line.contains("NVRM"))?;
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit());
    line.split_whitespace().find(is_version).map(|version| format!("NVIDIA {version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_module_says_its_version() {
        for (words, expected) in [
            ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
            (
                "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\nGCC version:  gcc 12.2.0",
                "570.86.10",
            ),
        ] {
            assert_eq!(version(words), Some(format!("NVIDIA {expected}")));
        }
        assert_eq!(version("GCC version: 12.2.0"), None);
    }
}
