//! Whether this machine can run pods: each need tried for real where that leaves nothing behind, and one line each that
//! says what to do.

use crate::cgroup::{self, DeviceRules, Hierarchy};
use crate::image::overlay;
use crate::layout::Layout;
use crate::net::{Network, NetworkConfig};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fmt::Display;
use std::fs;
use std::path::Path;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Pods run, with something less.
    Warning,
    /// Pods cannot run.
    Failed,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `kernel`, `cgroups`, …
    pub check: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found; for what is not as it should be, what to do.
    pub message: String,
}

/// mount_setattr(2), without which libcontainer mounts nothing.
const KERNEL_LEAST: (u32, u32) = (5, 12);
/// `cgroup.kill`.
const KERNEL_GOOD: (u32, u32) = (5, 14);
/// Below this not even a small pod fits beside the system.
const MEMORY_LEAST_BYTES: u64 = 200 << 20;
/// The store must be able to write.
const DISK_LEAST_BYTES: u64 = 16 << 20;
const DISK_GOOD_BYTES: u64 = 256 << 20;

/// Looks at everything. Blocking, under a second; leaves nothing behind. Needs root.
pub fn examine(layout: &Layout, network: NetworkConfig, shim: &Path) -> Vec<Finding> {
    vec![
        kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
        cgroups(),
        devices(),
        namespaces(),
        seccomp(),
        overlayfs(&layout.data),
        pod_network(network),
        program(shim),
        directory(&layout.data),
        memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        pressure(),
        clock(jiff::Timestamp::now()),
    ]
}

/// What the kernel must have and no other step of the agent's start would miss: the message of the check that fails.
pub(crate) fn needs() -> Result<(), String> {
    let kernel = kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default());
    if kernel.verdict == Verdict::Failed {
        return Err(kernel.message);
    }
    if let Err(error) = overlay::supported() {
        return Err(no_overlayfs(&error));
    }
    let seccomp = seccomp();
    if seccomp.verdict == Verdict::Failed { Err(seccomp.message) } else { Ok(()) }
}

fn no_overlayfs(error: &dyn Display) -> String {
    format!(
        "images cannot be stacked: {error}; load module overlay (CONFIG_OVERLAY_FS), and keep the data directory on ext4, f2fs, xfs or btrfs"
    )
}

fn ok(check: &'static str, message: impl Display) -> Finding {
    Finding { check, verdict: Verdict::Ok, message: message.to_string() }
}

fn warning(check: &'static str, message: impl Display) -> Finding {
    Finding { check, verdict: Verdict::Warning, message: message.to_string() }
}

fn failed(check: &'static str, message: impl Display) -> Finding {
    Finding { check, verdict: Verdict::Failed, message: message.to_string() }
}

fn kernel(release: &str) -> Finding {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let ((major, minor), good) = (KERNEL_LEAST, KERNEL_GOOD);
    if version < KERNEL_LEAST {
        failed("kernel", format!("Linux {release} is too old: install {major}.{minor} or newer"))
    } else if version < KERNEL_GOOD {
        let (major, minor) = good;
        warning("kernel", format!("Linux {release}; {major}.{minor} and newer end pods faster (cgroup.kill)"))
    } else {
        ok("kernel", format!("Linux {release}"))
    }
}

fn cgroups() -> Finding {
    match cgroup::detect() {
        Ok(Hierarchy::V2 { root }) => ok("cgroups", format!("v2 at {}", root.display())),
        Ok(Hierarchy::V1 { .. }) => ok("cgroups", "v1, without pressure figures and memory protection"),
        Err(error) => failed("cgroups", error),
    }
}

fn devices() -> Finding {
    match cgroup::detect() {
        Ok(Hierarchy::V2 { .. }) => match DeviceRules::load() {
            Ok(_) => ok("devices", "kept from containers by BPF"),
            Err(error) => failed("devices", error),
        },
        Ok(Hierarchy::V1 { controllers, .. }) if controllers.contains_key("devices") => {
            ok("devices", "kept from containers by the devices controller")
        }
        Ok(_) => failed(
            "devices",
            "the devices controller is not mounted: containers could open the host's devices",
        ),
        Err(_) => warning("devices", "not looked at without cgroups"),
    }
}

fn namespaces() -> Finding {
    let missing: Vec<&str> = ["mnt", "pid", "net", "ipc", "uts", "cgroup"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if missing.is_empty() {
        ok("namespaces", "mnt, pid, net, ipc, uts, cgroup")
    } else {
        let list = missing.join(", ");
        failed(
            "namespaces",
            format!("the kernel has no {list} namespaces: it needs CONFIG_NAMESPACES and CONFIG_*_NS"),
        )
    }
}

fn seccomp() -> Finding {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        ok("seccomp", "filters")
    } else {
        failed(
            "seccomp",
            "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): only pods with seccompProfile Unconfined would run",
        )
    }
}

/// Runs `work` in a thread with namespaces of its own: what it mounts or makes there ends with it.
fn apart<T: Send>(flags: CloneFlags, work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    let inside = || {
        unshare(flags).map_err(|e| e.desc().to_string())?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err("the check panicked".into()))
}

/// On the file system that writable layers will lie on: not every one can be an upper layer.
fn overlayfs(data: &Path) -> Finding {
    let text = |e: std::io::Error| e.to_string();
    let tried = (|| {
        let dir = tempfile::Builder::new().prefix(".doctor").tempdir_in(data).map_err(text)?;
        let [lower, upper, work, target] =
            ["lower", "upper", "work", "target"].map(|name| dir.path().join(name));
        for path in [&lower, &upper, &work, &target] {
            fs::create_dir(path).map_err(text)?;
        }
        apart(CloneFlags::CLONE_NEWNS, || {
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
                .map_err(|e| e.desc().to_string())?;
            overlay::mount(&[lower], &upper, &work, &target).map_err(text)
        })
    })();
    match tried {
        Ok(()) => ok("overlayfs", format!("on {}", data.display())),
        Err(error) => failed("overlayfs", format!("{}: {}", data.display(), no_overlayfs(&error))),
    }
}

/// A whole network, in a namespace of its own.
fn pod_network(config: NetworkConfig) -> Finding {
    let tried = (|| {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let config = NetworkConfig { leases: dir.path().join("leases"), ..config };
        apart(CloneFlags::CLONE_NEWNET, || {
            let network = Network::open(config).map_err(|e| e.to_string())?;
            network.teardown().map_err(|e| e.to_string())
        })
    })();
    match tried {
        Ok(()) => ok("network", "bridge, veth, nftables with nat"),
        Err(error) => failed("network", error),
    }
}

fn program(shim: &Path) -> Finding {
    if shim.is_file() {
        ok("programs", shim.display())
    } else {
        failed("programs", format!("{} is missing: it belongs beside coracle", shim.display()))
    }
}

fn directory(data: &Path) -> Finding {
    if let Err(error) = tempfile::tempfile_in(data) {
        return failed(
            "directory",
            format!(
                "{} cannot be written: {error}; mount it writable, or choose another --root",
                data.display()
            ),
        );
    }
    let free = match rustix::fs::statvfs(data) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return failed("directory", format!("{}: {error}", data.display())),
    };
    let told = format!("{} has {} MiB free", data.display(), free >> 20);
    if free < DISK_LEAST_BYTES {
        failed("directory", format!("{told}: free some space (coracle image prune)"))
    } else if free < DISK_GOOD_BYTES {
        warning("directory", format!("{told}: little room for images"))
    } else {
        ok("directory", told)
    }
}

fn memory(meminfo: &str) -> Finding {
    let total = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024;
    let told = format!("{} MiB", total >> 20);
    if total < MEMORY_LEAST_BYTES {
        warning("memory", format!("{told}: very little for pods"))
    } else {
        ok("memory", told)
    }
}

fn pressure() -> Finding {
    match cgroup::pressure(Path::new("/proc/pressure/memory")) {
        Some(_) => ok("pressure", "the kernel tells of memory pressure"),
        None => warning(
            "pressure",
            "no PSI: no pod is evicted when memory runs out, the OOM killer decides; add psi=1 to the kernel's command line",
        ),
    }
}

fn clock(now: jiff::Timestamp) -> Finding {
    // Before this program was written.
    const IMPOSSIBLE_BEFORE: &str = "2025-01-01T00:00:00Z";
    let earliest: jiff::Timestamp = IMPOSSIBLE_BEFORE.parse().expect("a timestamp");
    if now < earliest {
        warning(
            "clock",
            format!(
                "{now} is in the past: pods run, but certificates of registries may be refused; set up time sync"
            ),
        )
    } else {
        ok("clock", now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_what_is_found() {
        let check = |finding: Finding, verdict: Verdict, part: &str| {
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.message.contains(part) && !finding.message.contains('\n'), "{finding:?}");
        };
        check(kernel("5.10.103-v7l+\n"), Verdict::Failed, "5.12");
        check(kernel("5.13.0"), Verdict::Warning, "cgroup.kill");
        check(kernel("6.12.25+rpt-rpi-v8"), Verdict::Ok, "6.12.25");
        check(kernel(""), Verdict::Failed, "too old");
        check(memory("MemTotal:  100000 kB\n"), Verdict::Warning, "97 MiB");
        check(memory("MemTotal:  1000000 kB\n"), Verdict::Ok, "976 MiB");
        check(clock(jiff::Timestamp::UNIX_EPOCH), Verdict::Warning, "time sync");
        check(directory(Path::new("/proc/nowhere")), Verdict::Failed, "mount it writable");
        check(program(Path::new("/nowhere/coracle-shim")), Verdict::Failed, "beside coracle");
    }
}
