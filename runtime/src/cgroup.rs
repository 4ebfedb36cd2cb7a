//! The pods' cgroups: one tree per agent, on cgroup v2 and on the v1/hybrid hierarchies of older boards.
//!
//! ```text
//! /NAME/kubepods[/burstable|/besteffort]/podUID/CONTAINER.ATTEMPT   made by the agent down to podUID
//! /NAME/shims/UID                                                  shim and pause: outside the pod's limits
//! ```
//! The pod's own limits are written here; a container's by libcontainer. On hybrid hosts the shim sits in the
//! cgroup2 mount as well, and its containers with it, so that one `cgroup.kill` ends them all. Everything is
//! idempotent; removal goes by directory, so it also clears what a crash left. Device rules on v2 are not
//! here yet (ARCHITECTURE.md).

use coracle_pod::observed::InstanceId;
use coracle_pod::spec::{PodSpec, PodUid, QosClass, Resources};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::layout::instance_name;

/// A cgroup that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither cgroup v2 nor the v1 controllers that pods need are mounted.
    #[error(
        "no usable cgroup hierarchy: {0}; mount cgroup2 at /sys/fs/cgroup, or enable the controller (cgroup_enable=memory on Raspberry Pi OS)"
    )]
    Unusable(String),
    /// The kernel refused.
    #[error("cgroup {path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Processes of a killed cgroup did not go away in time (uninterruptible sleep, a dead disk or NFS).
    #[error("cgroup {path}: processes survive SIGKILL; see /proc/PID/stack", path = .0.display())]
    Unkillable(PathBuf),
}

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
const REQUIRED: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// Controllers that the agent itself writes to on v1; libcontainer handles the others.
const POD_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// CFS period, the kernel's default; the kubelet's too.
pub const CPU_PERIOD_MICROSECONDS: u64 = 100_000;
/// Rounds of SIGKILL before a cgroup is called unkillable; each waits up to [`KILL_WAIT_MILLISECONDS`].
const KILL_ROUNDS: u32 = 50;
const KILL_WAIT_MILLISECONDS: u16 = 40;

/// The cgroup tree of one agent.
#[derive(Clone, Debug)]
pub struct Tree {
    hierarchy: Hierarchy,
    name: String,
}

impl Tree {
    /// Finds the hierarchies and makes `/NAME`. Idempotent; blocking.
    pub fn open(name: &str) -> Result<Tree, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|source| CgroupError::Io { path: "/proc/self/mountinfo".into(), source })?;
        let tree = Tree { hierarchy: detect(&mounts)?, name: name.into() };
        if let Hierarchy::V2 { root } = &tree.hierarchy {
            enable_controllers(root)?;
        }
        for root in tree.pod_roots() {
            let top = root.join(&tree.name);
            make(&top)?;
            // v1 without systemd: limits of a parent bind its children only with this. memory.rst, section 6.
            let hierarchical = top.join("memory.use_hierarchy");
            if hierarchical.exists() {
                write(&hierarchical, "1").or_else(ignore_invalid)?;
            }
        }
        Ok(tree)
    }

    /// What kind of host this is.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// `/coracle/kubepods/burstable/podUID`, the form of OCI's `cgroupsPath`.
    pub fn pod_path(&self, uid: &PodUid, qos: QosClass) -> String {
        let class = match qos {
            QosClass::Guaranteed => "",
            QosClass::Burstable => "/burstable",
            QosClass::BestEffort => "/besteffort",
        };
        format!("/{}/kubepods{class}/pod{}", self.name, uid.0)
    }

    /// The cgroup of one instance.
    pub fn instance_path(&self, uid: &PodUid, qos: QosClass, instance: &InstanceId) -> String {
        format!("{}/{}", self.pod_path(uid, qos), instance_name(instance))
    }

    /// Makes the pod's cgroup with its limits, and the shim's. Idempotent; blocking.
    pub fn create_pod(&self, pod: &PodSpec, pids_max: u64) -> Result<(), CgroupError> {
        let path = self.pod_path(&pod.uid, pod.qos);
        for root in self.pod_roots() {
            self.make_chain(&root, &path)?;
            let dir = root.join(path.trim_start_matches('/'));
            for (file, value) in self.limits(&pod.resources, pids_max) {
                let file = dir.join(file);
                if file.exists() {
                    write(&file, &value)?;
                }
            }
        }
        for root in self.shim_roots() {
            self.make_chain(&root, &format!("/{}/shims/{}", self.name, pod.uid.0))?;
        }
        Ok(())
    }

    /// The files into which the shim's pid goes.
    pub fn shim_procs(&self, uid: &PodUid) -> Vec<PathBuf> {
        let below = |root: PathBuf| root.join(&self.name).join("shims").join(&uid.0).join("cgroup.procs");
        self.shim_roots().into_iter().map(below).collect()
    }

    /// The files that put a further process into a running instance's cgroups.
    pub fn instance_procs(&self, uid: &PodUid, qos: QosClass, instance: &InstanceId) -> Vec<PathBuf> {
        let path = self.instance_path(uid, qos, instance);
        let below = |root: &PathBuf| root.join(path.trim_start_matches('/')).join("cgroup.procs");
        self.all_roots().iter().map(below).filter(|file| file.exists()).collect()
    }

    /// The file that counts out-of-memory kills of an instance (`oom_kill N` in it).
    pub fn oom_file(&self, uid: &PodUid, qos: QosClass, instance: &InstanceId) -> PathBuf {
        let path = self.instance_path(uid, qos, instance);
        let (root, file) = match &self.hierarchy {
            Hierarchy::V2 { root } => (root, "memory.events"),
            Hierarchy::V1 { controllers, .. } => (&controllers["memory"], "memory.oom_control"),
        };
        root.join(path.trim_start_matches('/')).join(file)
    }

    /// SIGKILLs every process of one instance and waits until they are gone. Idempotent; blocking.
    pub fn kill_instance(
        &self,
        uid: &PodUid,
        qos: QosClass,
        instance: &InstanceId,
    ) -> Result<(), CgroupError> {
        let path = self.instance_path(uid, qos, instance);
        kill_all(&self.counting_root().join(path.trim_start_matches('/')))
    }

    /// Kills everything of a pod, its shim too, and waits for it. Idempotent; blocking.
    pub fn kill_pod(&self, uid: &PodUid) -> Result<(), CgroupError> {
        self.dirs_of(uid).iter().try_for_each(|dir| kill_all(dir))
    }

    /// Removes an instance's cgroups, which must be empty. Idempotent.
    pub fn remove_instance(
        &self,
        uid: &PodUid,
        qos: QosClass,
        instance: &InstanceId,
    ) -> Result<(), CgroupError> {
        let path = self.instance_path(uid, qos, instance);
        self.all_roots().iter().try_for_each(|root| remove_tree(&root.join(path.trim_start_matches('/'))))
    }

    /// Removes every cgroup of a pod, which must hold no process. Idempotent.
    pub fn remove_pod(&self, uid: &PodUid) -> Result<(), CgroupError> {
        self.dirs_of(uid).iter().try_for_each(|dir| remove_tree(dir))
    }

    /// Pods that have a cgroup here, running or left behind.
    pub fn pods(&self) -> BTreeSet<PodUid> {
        let mut found = BTreeSet::new();
        for root in self.all_roots() {
            let top = root.join(&self.name);
            for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
                let names = entries(&top.join(class));
                found.extend(names.iter().filter_map(|n| n.strip_prefix("pod")).map(|n| PodUid(n.into())));
            }
            found.extend(entries(&top.join("shims")).into_iter().map(PodUid));
        }
        found
    }

    /// Whether nothing of `uid` is left in any hierarchy.
    pub fn is_clear_of(&self, uid: &PodUid) -> bool {
        self.dirs_of(uid).is_empty()
    }

    /// Removes the whole tree once it is empty: the reverse of [`Tree::open`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.all_roots().iter().try_for_each(|root| remove_tree(&root.join(&self.name)))
    }

    /// CPU time and memory in use of a cgroup path. `None` when it is gone.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        let path = path.trim_start_matches('/');
        let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let field = |text: &str, name: &str| {
            text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        match &self.hierarchy {
            Hierarchy::V2 { root } => {
                let dir = root.join(path);
                let cpu = fs::read_to_string(dir.join("cpu.stat")).ok()?;
                let memory = fs::read_to_string(dir.join("memory.stat")).ok()?;
                let used = number(dir.join("memory.current"))?;
                Some(Usage {
                    cpu_nanoseconds: field(&cpu, "usage_usec ")? * 1000,
                    working_set_bytes: used.saturating_sub(field(&memory, "inactive_file ").unwrap_or(0)),
                })
            }
            Hierarchy::V1 { controllers, .. } => {
                let memory = controllers["memory"].join(path);
                let stat = fs::read_to_string(memory.join("memory.stat")).ok()?;
                let used = number(memory.join("memory.usage_in_bytes"))?;
                Some(Usage {
                    cpu_nanoseconds: number(controllers["cpuacct"].join(path).join("cpuacct.usage"))?,
                    working_set_bytes: used.saturating_sub(field(&stat, "total_inactive_file ").unwrap_or(0)),
                })
            }
        }
    }

    /// File and value of each pod limit; files that this hierarchy lacks are skipped by the caller.
    fn limits(&self, resources: &Resources, pids_max: u64) -> Vec<(&'static str, String)> {
        let shares = cpu_shares(resources);
        let quota = resources.cpu_limit_millis.map(cpu_quota_microseconds);
        let mut limits = vec![("pids.max", pids_max.to_string())];
        match &self.hierarchy {
            Hierarchy::V2 { .. } => {
                limits.push(("cpu.weight", cpu_weight(shares).to_string()));
                limits.extend(quota.map(|q| ("cpu.max", format!("{q} {CPU_PERIOD_MICROSECONDS}"))));
                limits.extend(resources.memory_limit_bytes.map(|b| ("memory.max", b.to_string())));
            }
            Hierarchy::V1 { .. } => {
                limits.push(("cpu.shares", shares.to_string()));
                limits.extend(quota.map(|q| ("cpu.cfs_quota_us", q.to_string())));
                limits.extend(resources.memory_limit_bytes.map(|b| ("memory.limit_in_bytes", b.to_string())));
            }
        }
        limits
    }

    /// Makes each directory of an absolute cgroup path; on v2 also hands the controllers down to it.
    fn make_chain(&self, root: &Path, path: &str) -> Result<(), CgroupError> {
        let mut dir = root.to_path_buf();
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        for part in parts {
            dir.push(part);
            make(&dir)?;
            let shim = path.contains("/shims/");
            if matches!(self.hierarchy, Hierarchy::V2 { .. }) && !shim {
                enable_controllers(&dir)?;
            }
        }
        Ok(())
    }

    fn pod_roots(&self) -> Vec<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => vec![root.clone()],
            Hierarchy::V1 { controllers, .. } => {
                let roots: BTreeSet<_> = POD_CONTROLLERS.iter().map(|c| controllers[*c].clone()).collect();
                roots.into_iter().collect()
            }
        }
    }

    /// v1: pids and memory for accounting and killing, cgroup2 for `cgroup.kill` where there is one.
    fn shim_roots(&self) -> Vec<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => vec![root.clone()],
            Hierarchy::V1 { controllers, unified } => {
                let mut roots = vec![controllers["pids"].clone()];
                roots.extend(unified.clone());
                roots
            }
        }
    }

    fn all_roots(&self) -> Vec<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => vec![root.clone()],
            Hierarchy::V1 { controllers, unified } => {
                let roots: BTreeSet<_> = controllers.values().chain(unified).cloned().collect();
                roots.into_iter().collect()
            }
        }
    }

    /// The hierarchy whose `cgroup.procs` is taken for the truth.
    fn counting_root(&self) -> PathBuf {
        match &self.hierarchy {
            Hierarchy::V2 { root } => root.clone(),
            Hierarchy::V1 { controllers, .. } => controllers["pids"].clone(),
        }
    }

    fn dirs_of(&self, uid: &PodUid) -> Vec<PathBuf> {
        let mut dirs = Vec::new();
        for root in self.all_roots() {
            let top = root.join(&self.name);
            dirs.push(top.join("shims").join(&uid.0));
            for class in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
                dirs.push(top.join(class).join(format!("pod{}", uid.0)));
            }
        }
        dirs.retain(|dir| dir.exists());
        dirs
    }
}

/// What a cgroup uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Since the cgroup was made.
    pub cpu_nanoseconds: u64,
    /// Memory that could not be reclaimed at once, as the kubelet counts it.
    pub working_set_bytes: u64,
}

/// The kubelet's `MilliCPUToShares`: a request, else the limit, else the minimum.
pub fn cpu_shares(resources: &Resources) -> u64 {
    let millis = resources.cpu_request_millis.or(resources.cpu_limit_millis).unwrap_or(0);
    (millis * 1024 / 1000).clamp(2, 262_144)
}

/// The kubelet's `MilliCPUToQuota`, in microseconds of each period.
pub fn cpu_quota_microseconds(millis: u64) -> u64 {
    (millis * CPU_PERIOD_MICROSECONDS / 1000).max(1000)
}

/// Shares 2–262144 to weight 1–10000, as the OCI runtimes do.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

fn detect(mountinfo: &str) -> Result<Hierarchy, CgroupError> {
    let (mut controllers, mut unified) = (BTreeMap::new(), None);
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): "… root mountpoint options … - fstype source superoptions".
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) => unified = unified.or(Some(point)),
            (Some("cgroup"), Some(options)) => {
                for option in options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr")) {
                    controllers.entry(option.to_string()).or_insert_with(|| point.clone());
                }
            }
            _ => {}
        }
    }
    if controllers.keys().all(|c| c.starts_with("name=")) {
        let root = unified.ok_or_else(|| CgroupError::Unusable("no cgroup file system is mounted".into()))?;
        return Ok(Hierarchy::V2 { root });
    }
    match REQUIRED.iter().find(|c| !controllers.contains_key(**c)) {
        Some(missing) => Err(CgroupError::Unusable(format!("the {missing} controller is not mounted"))),
        None => Ok(Hierarchy::V1 { controllers, unified }),
    }
}

/// Hands every controller that the directory has to its children. cgroup-v2.rst, "Controlling Controllers".
fn enable_controllers(dir: &Path) -> Result<(), CgroupError> {
    let available = fs::read_to_string(dir.join("cgroup.controllers"))
        .map_err(|source| CgroupError::Io { path: dir.join("cgroup.controllers"), source })?;
    for controller in
        available.split_whitespace().filter(|c| matches!(*c, "cpu" | "memory" | "pids" | "io" | "cpuset"))
    {
        write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
    }
    Ok(())
}

fn kill_all(dir: &Path) -> Result<(), CgroupError> {
    let kill_file = dir.join("cgroup.kill");
    for round in 0..KILL_ROUNDS {
        let pids = pids_below(dir)?;
        if pids.is_empty() {
            return Ok(());
        }
        if kill_file.exists() {
            write(&kill_file, "1")?;
        } else {
            for pid in &pids {
                match kill(*pid, Signal::SIGKILL) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(e) => return Err(CgroupError::Io { path: dir.into(), source: e.into() }),
                }
            }
        }
        wait_for_exit(&pids, if round == 0 { 1 } else { KILL_WAIT_MILLISECONDS });
    }
    Err(CgroupError::Unkillable(dir.into()))
}

/// Waits for the first of `pids` to end, at most `milliseconds`. Others are looked for in the next round.
fn wait_for_exit(pids: &[Pid], milliseconds: u16) {
    use nix::poll::{PollFd, PollFlags, poll};
    use std::os::fd::AsFd;
    // A pid that is already gone needs no waiting.
    let Some(Ok(fd)) = pids.first().map(|pid| crate::sys::pidfd_open(pid.as_raw())) else { return };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if let Err(error) = poll(&mut fds, milliseconds) {
        // Interrupted or timed out alike: the caller counts rounds and looks again.
        tracing::debug!(%error, "waiting for a killed process");
    }
}

/// Live processes of a cgroup and its children. Zombies count: they leave when their parent reaps them.
fn pids_below(dir: &Path) -> Result<Vec<Pid>, CgroupError> {
    let mut pids = Vec::new();
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(pids),
        Err(source) => return Err(CgroupError::Io { path: dir.join("cgroup.procs"), source }),
    };
    pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw));
    for child in entries(dir) {
        pids.extend(pids_below(&dir.join(child))?);
    }
    Ok(pids)
}

/// Names of the directories in `dir`; empty when it is gone.
fn entries(dir: &Path) -> Vec<String> {
    let Ok(read) = fs::read_dir(dir) else { return Vec::new() };
    read.filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    for child in entries(dir) {
        remove_tree(&dir.join(child))?;
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::Io { path: dir.into(), source })
        }
        _ => Ok(()),
    }
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::Io { path: dir.into(), source })
        }
        _ => Ok(()),
    }
}

fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(file, value).map_err(|source| CgroupError::Io { path: file.into(), source })
}

/// EINVAL here says that the flag already holds and cannot be changed.
fn ignore_invalid(error: CgroupError) -> Result<(), CgroupError> {
    match &error {
        CgroupError::Io { source, .. }
            if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EBUSY)) =>
        {
            Ok(())
        }
        _ => Err(error),
    }
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
        assert_eq!(detect(V2).unwrap(), Hierarchy::V2 { root: "/sys/fs/cgroup".into() });
        let Hierarchy::V1 { controllers, unified } = detect(HYBRID).unwrap() else { panic!("hybrid is v1") };
        assert_eq!(controllers["cpuacct"], Path::new("/c/cpu,cpuacct"));
        assert_eq!(unified.as_deref(), Some(Path::new("/c/unified")));
        let without_memory =
            HYBRID.replace("/c/memory rw - cgroup cgroup rw,memory", "/c/memory rw - cgroup cgroup rw,blkio");
        assert!(detect(&without_memory).unwrap_err().to_string().contains("memory controller"));
        assert!(detect("").is_err());
    }

    #[test]
    fn cpu_figures_follow_the_kubelet() {
        let check = |request, limit, shares| {
            let r = Resources { cpu_request_millis: request, cpu_limit_millis: limit, ..Default::default() };
            assert_eq!(cpu_shares(&r), shares, "{request:?} {limit:?}");
        };
        check(None, None, 2);
        check(Some(1), None, 2);
        check(Some(250), None, 256);
        check(None, Some(500), 512);
        check(Some(1_000_000), None, 262_144);
        assert_eq!(cpu_quota_microseconds(250), 25_000);
        assert_eq!(cpu_quota_microseconds(1), 1000);
        assert_eq!((cpu_weight(2), cpu_weight(262_144)), (1, 10_000));
    }
}
