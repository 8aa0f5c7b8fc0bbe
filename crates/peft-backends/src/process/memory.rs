//! How much memory this process holds, how much the system would still give it, and what becomes of what it frees.

use std::fs;

/// Resident memory of this process, from `/proc`; none where the system does not say.
pub fn resident() -> Option<u64> {
    field("/proc/self/status", "VmRSS:")
}

/// The largest resident memory of this process so far, from `/proc`; none where the system does not say.
pub fn peak_resident() -> Option<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// Keeps what is freed for the next tensor, for the rest of the process: a program that trains says so once, before it starts
/// threads. Whether the system's allocator can do that; glibc's can.
///
/// Its default gives large blocks back to the system and takes them again, page by page, in every step: a quarter of the time of
/// a small model's. The peak stays what it was, since each step takes as much as the one before.
pub fn keep_freed() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // The most of the free end of the heap that is kept, and the size from which a block is one of the system's own. Setting
        // one alone would fix the other at its first value, which is small.
        let settings = [(libc::M_TRIM_THRESHOLD, libc::c_int::MAX), (libc::M_MMAP_THRESHOLD, 1 << 30)];
        settings.into_iter().all(|(setting, value)| {
            // SAFETY: `mallopt` takes two numbers, and changes where later blocks come from, not those that are there.
            #[expect(unsafe_code, reason = "the argument stands above")]
            let done = unsafe { libc::mallopt(setting, value) };
            done == 1
        })
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

/// Bytes that the system, or the control groups of this process, would still give it without swapping; none where nobody says.
pub(crate) fn free() -> Option<u64> {
    [system_free(), group_free()].into_iter().flatten().min()
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
    #[cfg(target_env = "gnu")]
    fn what_is_freed_stays_with_the_program() {
        const LARGE: usize = 32 << 20;
        assert!(keep_freed());
        let before = resident();
        drop(std::hint::black_box(vec![1_u8; LARGE]));
        assert!(resident() > before.map(|bytes| bytes + LARGE as u64 / 2));
    }
}
