//! What a cgroup uses, and how long it waits for what it lacks.

use super::hierarchy::Hierarchy;
use std::fs;
use std::path::Path;

/// What a cgroup uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Since the cgroup was made.
    pub cpu_nanoseconds: u64,
    /// Memory that could not be reclaimed at once, as the kubelet counts it.
    pub working_set_bytes: u64,
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

/// CPU time and memory in use of a cgroup path. `None` when it is gone.
pub(super) fn usage(hierarchy: &Hierarchy, path: &str) -> Option<Usage> {
    let path = path.trim_start_matches('/');
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let field =
        |text: &str, name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok());
    match hierarchy {
        Hierarchy::V2 { root } => {
            let dir = root.join(path);
            let cpu = fs::read_to_string(dir.join("cpu.stat")).ok()?;
            let memory = fs::read_to_string(dir.join("memory.stat")).ok()?;
            let used = number(&dir.join("memory.current"))?;
            Some(Usage {
                cpu_nanoseconds: field(&cpu, "usage_usec ")? * 1000,
                working_set_bytes: used.saturating_sub(field(&memory, "inactive_file ").unwrap_or(0)),
            })
        }
        Hierarchy::V1 { controllers, .. } => {
            let memory = controllers["memory"].join(path);
            let stat = fs::read_to_string(memory.join("memory.stat")).ok()?;
            let used = number(&memory.join("memory.usage_in_bytes"))?;
            Some(Usage {
                cpu_nanoseconds: number(&controllers["cpuacct"].join(path).join("cpuacct.usage"))?,
                working_set_bytes: used.saturating_sub(field(&stat, "total_inactive_file ").unwrap_or(0)),
            })
        }
    }
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
}
