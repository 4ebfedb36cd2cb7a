//! Which cgroup hierarchies the kernel gives us, and handing controllers down a v2 tree.

use super::{CgroupError, write};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which cgroup hierarchies the kernel gives us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// One tree with all controllers.
    V2 {
        /// Usually `/sys/fs/cgroup`.
        root: PathBuf,
    },
    /// One tree per controller, and perhaps an empty cgroup2 beside them.
    V1 {
        /// Mount point by controller name.
        controllers: BTreeMap<String, PathBuf>,
        /// The cgroup2 mount of a hybrid host.
        unified: Option<PathBuf>,
    },
}

/// Controllers without which a pod's limits would be a lie.
const REQUIRED_V1: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
const REQUIRED_V2: [&str; 3] = ["cpu", "memory", "pids"];
/// Handed down as well where the kernel has them.
const WELCOME_V2: [&str; 2] = ["io", "cpuset"];

/// What is mounted, with every controller that pods need. Blocking, briefly.
pub fn detect() -> Result<Hierarchy, CgroupError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| CgroupError::Io { path: path.into(), source })
    };
    let own = Path::new("/proc/self/mountinfo");
    let mut mounts = read(own)?;
    if cgroup_mounts(&mounts).next().is_none() {
        // `ip netns exec` mounts a new /sys over the one that holds the cgroups, in a mount namespace of its own.
        mount_like(&read(Path::new("/proc/1/mountinfo"))?)?;
        mounts = read(own)?;
    }
    let hierarchy = mounted(&mounts)?;
    if let Hierarchy::V2 { root } = &hierarchy {
        let available = read(&root.join("cgroup.controllers"))?;
        if let Some(missing) = REQUIRED_V2.iter().find(|c| !available.split_whitespace().any(|a| a == **c)) {
            return Err(CgroupError::Unusable(format!("the kernel offers no {missing} controller")));
        }
    }
    Ok(hierarchy)
}

/// Mounts cgroup file systems where another process has them, in this mount namespace alone: nothing is mounted where
/// the two share one, since then neither has any. A hierarchy is the same wherever it is mounted.
fn mount_like(mountinfo: &str) -> Result<(), CgroupError> {
    use nix::mount::{MsFlags, mount};
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounts: Vec<Mount<'_>> = cgroup_mounts(mountinfo).collect();
    let top = Path::new("/sys/fs/cgroup");
    let failed = |path: &Path, source| CgroupError::Io { path: path.into(), source };
    // With several hierarchies they lie in a tmpfs: sysfs itself takes no new directories.
    if mounts.iter().any(|m| m.point != top) {
        mount(Some("tmpfs"), top, Some("tmpfs"), flags, Some("mode=755"))
            .map_err(|e| failed(top, e.into()))?;
    }
    for found in mounts {
        let point = found.point.as_path();
        fs::create_dir_all(point).map_err(|e| failed(point, e))?;
        let options: Vec<&str> = found.options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).collect();
        mount(Some("cgroup"), point, Some(found.kind), flags, Some(options.join(",").as_str()))
            .map_err(|e| failed(point, e.into()))?;
    }
    Ok(())
}

/// One cgroup mount of a mountinfo.
struct Mount<'a> {
    point: PathBuf,
    /// `cgroup` or `cgroup2`.
    kind: &'a str,
    /// Of the file system: for v1 they name the controllers.
    options: &'a str,
}

/// proc_pid_mountinfo(5): "… root mountpoint options … - fstype source superoptions".
fn cgroup_mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?.into();
        let mut right = right.split(' ');
        let kind = right.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
        Some(Mount { point, kind, options: right.nth(1)? })
    })
}

fn mounted(mountinfo: &str) -> Result<Hierarchy, CgroupError> {
    let (mut controllers, mut unified) = (BTreeMap::new(), None);
    for found in cgroup_mounts(mountinfo) {
        if found.kind == "cgroup2" {
            unified = unified.or(Some(found.point));
            continue;
        }
        for option in found.options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr")) {
            controllers.entry(option.to_string()).or_insert_with(|| found.point.clone());
        }
    }
    if controllers.keys().all(|c| c.starts_with("name=")) {
        let root = unified.ok_or_else(|| CgroupError::Unusable("no cgroup file system is mounted".into()))?;
        return Ok(Hierarchy::V2 { root });
    }
    match REQUIRED_V1.iter().find(|c| !controllers.contains_key(**c)) {
        Some(missing) => Err(CgroupError::Unusable(format!("the {missing} controller is not mounted"))),
        None => Ok(Hierarchy::V1 { controllers, unified }),
    }
}

/// Hands the controllers that the directory has to its children. cgroup-v2.rst, "Controlling Controllers".
/// Idempotent: what is handed down already is not written again.
pub(super) fn hand_down(dir: &Path) -> Result<(), CgroupError> {
    let words = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|source| CgroupError::Io { path, source })
    };
    let (available, enabled) = (words("cgroup.controllers")?, words("cgroup.subtree_control")?);
    let file = dir.join("cgroup.subtree_control");
    for controller in available.split_whitespace().filter(|c| !enabled.split_whitespace().any(|e| e == *c)) {
        if REQUIRED_V2.contains(&controller) {
            write(&file, &format!("+{controller}"))?;
        } else if WELCOME_V2.contains(&controller)
            && let Err(error) = write(&file, &format!("+{controller}"))
        {
            // cpuset in a partition of somebody else's, io on a kernel with a policy of its own.
            tracing::debug!(controller, %error, "not handed down; pods go without it");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const HYBRID: &str = "31 30 0:27 / /c/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /c/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /c/memory rw - cgroup cgroup rw,memory
35 30 0:31 / /c/pids rw - cgroup cgroup rw,pids";

    #[test]
    fn hierarchies_are_told_apart() {
        assert_eq!(mounted(V2).expect("v2"), Hierarchy::V2 { root: "/sys/fs/cgroup".into() });
        let Hierarchy::V1 { controllers, unified } = mounted(HYBRID).expect("v1") else {
            panic!("hybrid is v1")
        };
        assert_eq!(controllers["cpuacct"], Path::new("/c/cpu,cpuacct"));
        assert_eq!(unified.as_deref(), Some(Path::new("/c/unified")));
        let without_memory =
            HYBRID.replace("/c/memory rw - cgroup cgroup rw,memory", "/c/memory rw - cgroup cgroup rw,blkio");
        let refused = mounted(&without_memory).expect_err("refused").to_string();
        assert!(
            refused.contains("memory controller") && refused.contains("cgroup_enable=memory"),
            "{refused}"
        );
        assert!(mounted("").is_err());
    }
}
