//! What a cgroup uses, and how long it waits for what it lacks.

use super::hierarchy::Hierarchy;
use crate::layout::parse_instance;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a cgroup uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Since the cgroup was made.
    pub cpu_nanoseconds: u64,
    /// Memory in use, with what could be reclaimed.
    pub memory_bytes: u64,
    /// Memory that could not be reclaimed at once, as the kubelet counts it.
    pub working_set_bytes: u64,
}

impl Usage {
    fn new(cpu_nanoseconds: u64, memory_bytes: u64, reclaimable_bytes: u64) -> Usage {
        let working_set_bytes = memory_bytes.saturating_sub(reclaimable_bytes);
        Usage { cpu_nanoseconds, memory_bytes, working_set_bytes }
    }
}

/// One line of a pressure file. Documentation/accounting/psi.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    /// As `avg10`.
    pub avg60: f64,
    /// As `avg10`.
    pub avg300: f64,
    /// Since the cgroup was made, or since boot.
    pub total_microseconds: u64,
}

/// Pressure stall information of one resource: time in which some, or all, tasks waited for it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All waited.
    pub full: Stall,
}

/// Reads `NAME.pressure` of a cgroup directory, or `NAME` of `/proc/pressure`. `None` where the kernel keeps none
/// (`psi=1` on its command line turns it on).
pub fn pressure(file: &Path) -> Option<Pressure> {
    parse_pressure(&fs::read_to_string(file).ok()?)
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let mut found = Pressure::default();
    for line in text.lines() {
        let (kind, fields) = line.split_once(' ')?;
        let field = |name: &str| fields.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| field(name)?.parse().ok();
        let stall = Stall {
            avg10: number("avg10")?,
            avg60: number("avg60")?,
            avg300: number("avg300")?,
            total_microseconds: field("total")?.parse().ok()?,
        };
        match kind {
            "some" => found.some = stall,
            "full" => found.full = stall,
            _ => {}
        }
    }
    Some(found)
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().trim_end_matches(" kB").parse().ok())
}

/// CPU time since a cgroup was made.
fn cpu_nanoseconds(hierarchy: &Hierarchy, path: &str) -> Option<u64> {
    match hierarchy {
        Hierarchy::V2 { root } => {
            let cpu = fs::read_to_string(root.join(path).join("cpu.stat")).ok()?;
            field(&cpu, "usage_usec ")?.checked_mul(1000)
        }
        Hierarchy::V1 { controllers, .. } => number(&controllers["cpuacct"].join(path).join("cpuacct.usage")),
    }
}

/// CPU time and memory in use of a cgroup path. `None` when it is gone.
pub(super) fn usage(hierarchy: &Hierarchy, path: &str) -> Option<Usage> {
    let path = path.trim_start_matches('/');
    let (dir, used, reclaimable) = match hierarchy {
        Hierarchy::V2 { root } => (root.join(path), "memory.current", "inactive_file "),
        Hierarchy::V1 { controllers, .. } => {
            (controllers["memory"].join(path), "memory.usage_in_bytes", "total_inactive_file ")
        }
    };
    let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
    let reclaimable = field(&stat, reclaimable).unwrap_or(0);
    Some(Usage::new(cpu_nanoseconds(hierarchy, path)?, number(&dir.join(used))?, reclaimable))
}

/// What the machine uses: CPU time from the root of the cgroups, which on v2 tells of no memory; that the kernel tells itself.
pub(super) fn machine(hierarchy: &Hierarchy) -> Option<Usage> {
    let (used, reclaimable) = parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(Usage::new(cpu_nanoseconds(hierarchy, "")?, used, reclaimable))
}

/// Bytes in use, and those of files that nobody has used for long.
fn parse_meminfo(text: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| field(text, name).map(|kib| kib.saturating_mul(1024));
    let used = bytes("MemTotal:")?.saturating_sub(bytes("MemFree:")?);
    Some((used, bytes("Inactive(file):").unwrap_or(0)))
}

/// What the containers of a pod use, by name: of each the one that was started last.
pub(super) fn containers(hierarchy: &Hierarchy, pod: &str) -> BTreeMap<String, Usage> {
    let root = match hierarchy {
        Hierarchy::V2 { root } => root,
        Hierarchy::V1 { controllers, .. } => &controllers["memory"],
    };
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    // A pod that is gone has no containers.
    for entry in fs::read_dir(root.join(pod.trim_start_matches('/'))).into_iter().flatten().flatten() {
        if let Some(instance) = entry.file_name().to_str().and_then(parse_instance) {
            let attempt = last.entry(instance.container.to_string()).or_default();
            *attempt = instance.attempt.max(*attempt);
        }
    }
    let used = |(name, attempt): (String, u32)| {
        let usage = usage(hierarchy, &format!("{pod}/{name}.{attempt}"))?;
        Some((name, usage))
    };
    last.into_iter().filter_map(used).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_files_are_read() {
        let text = "some avg10=1.50 avg60=0.20 avg300=0.00 total=1234\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=5\n";
        let found = parse_pressure(text).expect("parses");
        assert_eq!(found.some, Stall { avg10: 1.5, avg60: 0.2, avg300: 0.0, total_microseconds: 1234 });
        assert_eq!(found.full.total_microseconds, 5);
        // The CPU file of older kernels has no line for all tasks.
        assert!(parse_pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").is_some());
        assert_eq!(parse_pressure("some avg10=x"), None);
    }

    #[test]
    fn what_of_the_memory_is_in_use() {
        let check = |text: &str, expected: Option<(u64, u64)>| assert_eq!(parse_meminfo(text), expected);
        let text = "MemTotal:        1000 kB\nMemFree:          300 kB\nInactive(file):   200 kB\n";
        check(text, Some((700 << 10, 200 << 10)));
        check("MemTotal: 1000 kB\nMemFree: 1001 kB\n", Some((0, 0)));
        check("MemTotal: x kB\n", None);
    }
}
