//! How much memory a device has for this program, and how much the program holds.

use std::fs;

use burn::tensor::Device;

use crate::device::is_host;

/// The most that the program may hold on the device, in bytes: on the processor what it holds already and what the system, or the
/// program's control group, would still give it; none where nobody says.
pub fn capacity(device: &Device) -> Option<u64> {
    if !is_host(&device.clone().inner()) {
        return crate::device::total_memory(device);
    }
    let free = [system_free(), group_free()].into_iter().flatten().min()?;
    Some(resident()?.saturating_add(free))
}

/// Resident memory of this process, from `/proc`; none where the system does not say.
pub fn resident() -> Option<u64> {
    field("/proc/self/status", "VmRSS:")
}

/// The largest resident memory of this process so far, from `/proc`; none where the system does not say.
pub fn peak_resident() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// What the system would give without swapping.
fn system_free() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// What the limits of the control groups leave, the tightest of those that this process is in.
fn group_free() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let left = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (kind, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, names) = match kind {
            "" => ("/sys/fs/cgroup", ["memory.max", "memory.current"]),
            "memory" => ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
            _ => return Vec::new(),
        };
        // A limit of a group is one of all groups in it.
        let mut left = Vec::new();
        let mut path = path.trim_end_matches('/');
        loop {
            left.extend(group_left(&format!("{root}{path}"), names));
            match path.rsplit_once('/') {
                Some((outer, _)) => path = outer,
                None => return left,
            }
        }
    });
    left.min()
}

fn group_left(group: &str, [limit, used]: [&str; 2]) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(format!("{group}/{file}")).ok()?.trim().parse::<u64>().ok();
    // The system takes back what it has read from files before it refuses memory.
    let files = fs::read_to_string(format!("{group}/memory.stat")).unwrap_or_default();
    let files = files.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(files.unwrap_or(0))))
}

fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_more_than_the_program_holds() {
        let (capacity, resident) = (capacity(&Device::flex()), resident());
        assert!(resident.is_some_and(|bytes| bytes > 1 << 20));
        assert!(capacity > resident, "{capacity:?} {resident:?}");
    }
}
