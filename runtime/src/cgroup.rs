//! The pods' cgroups: one tree per agent, on cgroup v2 and on the v1/hybrid hierarchies of older boards.
//!
//! ```text
//! /TOP/kubepods[/burstable|/besteffort]/podUID/CONTAINER.ATTEMPT   TOP is NAME, or NAME.slice under systemd with v2
//! /TOP/shims/UID                                                  shim and pause: outside the pod's limits
//! ```
//! The limits of pods and classes are written here, a container's by libcontainer. On v2 this module also makes the
//! container's cgroup, so that its device rules hold before anything runs in it. On hybrid hosts the shim sits in
//! the cgroup2 mount as well, and in systemd's hierarchy, so that no unit's stop takes it along.
//!
//! Under systemd, `coracle.service` lies in `coracle.slice` too and has `Delegate=yes`: for it systemd hands every
//! controller to the slice's children, and the kernel refuses to take one back that `kubepods` hands on. systemd
//! touches no cgroup that it did not make, so neither side fights the other.
//!
//! Everything is idempotent; removal goes by directory, so it also clears what a crash left.

mod devices;
mod hierarchy;
mod kill;
mod limits;
mod resize;
mod usage;

pub use devices::DeviceRules;
pub(crate) use devices::Instruction;
pub use hierarchy::{Hierarchy, detect};
pub use limits::{CPU_PERIOD_MICROSECONDS, cpu_quota_microseconds, cpu_shares, unified};
pub use usage::{Pressure, Stall, Usage, pressure};

use crate::layout::instance_name;
use coracle_pod::observed::InstanceId;
use coracle_pod::spec::{PodSpec, PodUid, QosClass};
use hierarchy::hand_down;
use kill::{kill_all, remove_tree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A cgroup that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither cgroup v2 nor the v1 controllers that pods need are mounted.
    #[error(
        "no usable cgroup hierarchy: {0}; mount cgroup2 at /sys/fs/cgroup, or enable the controller: on a Raspberry Pi add \"cgroup_enable=memory cgroup_memory=1\" to the line in /boot/firmware/cmdline.txt and reboot"
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
    /// A limit below what is in use: the kernel would have to kill.
    #[error("attempting to set {what} memory limit ({limit}) below current usage ({used})")]
    Used {
        /// `pod`, or the container.
        what: String,
        /// In bytes.
        limit: u64,
        /// In bytes.
        used: u64,
    },
    /// Processes of a killed cgroup did not go away in time (uninterruptible sleep, a dead disk or NFS).
    #[error("cgroup {path}: processes survive SIGKILL; see /proc/PID/stack", path = .0.display())]
    Unkillable(PathBuf),
    /// Containers cannot be kept from the host's devices.
    #[error(
        "containers cannot be kept from the host's devices: {0}; the kernel needs CONFIG_CGROUP_BPF, or cgroup v1 with the devices controller"
    )]
    Devices(#[source] io::Error),
}

/// The QoS classes' directories.
const CLASSES: [&str; 3] = ["kubepods", "kubepods/burstable", "kubepods/besteffort"];
/// Controllers that the agent itself writes to on v1; libcontainer handles the others.
const POD_CONTROLLERS: [&str; 4] = ["cpu", "cpuacct", "memory", "pids"];
/// systemd's own hierarchy on v1: by it systemd knows whose process is whose.
const SYSTEMD: &str = "name=systemd";

/// The cgroup tree of one agent.
#[derive(Clone, Debug)]
pub struct Tree {
    hierarchy: Hierarchy,
    /// `TOP`.
    name: String,
    /// For v2.
    devices: Option<Arc<DeviceRules>>,
    /// Held while the classes' promises are added up and written: pods come and go in several threads.
    balancing: Arc<Mutex<()>>,
}

impl Tree {
    /// Finds the hierarchies and makes `/TOP`. Idempotent; blocking.
    pub fn open(name: &str) -> Result<Tree, CgroupError> {
        let mut tree =
            Tree { hierarchy: detect()?, name: name.into(), devices: None, balancing: Arc::default() };
        if let Hierarchy::V2 { root } = &tree.hierarchy {
            if under_systemd() {
                tree.name = format!("{name}.slice");
            }
            tree.devices = Some(Arc::new(DeviceRules::load()?));
            hand_down(root)?;
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

    /// Where a container sees the hierarchies: `/sys/fs/cgroup`, and on v1 below it each controller's, the parent first.
    pub fn views(&self) -> Vec<String> {
        const TOP: &str = "/sys/fs/cgroup";
        let controllers = match &self.hierarchy {
            Hierarchy::V2 { .. } => BTreeSet::new(),
            Hierarchy::V1 { controllers, .. } => {
                controllers.values().filter_map(|root| root.file_name()).collect()
            }
        };
        let below = controllers.into_iter().map(|name| format!("{TOP}/{}", name.to_string_lossy()));
        std::iter::once(TOP.to_string()).chain(below).collect()
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
            for (file, value) in limits::of_pod(&self.hierarchy, pod, pids_max) {
                let file = dir.join(file);
                if file.exists() {
                    write(&file, &value)?;
                }
            }
        }
        for root in self.shim_roots() {
            self.make_chain(&root, &format!("/{}/shims/{}", self.name, pod.uid.0))?;
        }
        self.balance()
    }

    /// Makes an instance's cgroup with its device rules, on v2; on v1 libcontainer does both. Idempotent.
    pub fn create_instance(
        &self,
        uid: &PodUid,
        qos: QosClass,
        instance: &InstanceId,
        privileged: bool,
    ) -> Result<(), CgroupError> {
        let (Hierarchy::V2 { root }, Some(devices)) = (&self.hierarchy, &self.devices) else { return Ok(()) };
        let dir = root.join(self.instance_path(uid, qos, instance).trim_start_matches('/'));
        make(&dir)?;
        if privileged { Ok(()) } else { devices.attach(&dir) }
    }

    /// Gives the classes what their pods are promised together: a protection holds only as far as every level above
    /// grants it, and the classes share the CPU by their requests, as the kubelet has it. cgroup-v2.rst, "memory.min".
    fn balance(&self) -> Result<(), CgroupError> {
        let _alone = self.balancing.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |class: &Path, file: &str| -> u64 {
            let pods = entries(class).into_iter().filter(|name| name.starts_with("pod"));
            // A pod that goes away meanwhile is promised nothing any more.
            let read = |name: String| {
                fs::read_to_string(class.join(name).join(file)).ok()?.trim().parse::<u64>().ok()
            };
            pods.filter_map(read).sum()
        };
        let set = |dir: &Path, file: &str, value: u64| {
            let file = dir.join(file);
            if file.exists() { write(&file, &value.to_string()) } else { Ok(()) }
        };
        for root in self.pod_roots() {
            let top = root.join(&self.name);
            let [all, burstable, best_effort] = CLASSES.map(|class| top.join(class));
            match &self.hierarchy {
                Hierarchy::V2 { .. } => {
                    let (min, low) = (sum(&all, "memory.min"), sum(&burstable, "memory.low"));
                    for dir in [&top, &all] {
                        set(dir, "memory.min", min)?;
                        set(dir, "memory.low", low)?;
                    }
                    set(&burstable, "memory.low", low)?;
                    set(&burstable, "cpu.weight", sum(&burstable, "cpu.weight").clamp(1, 10_000))?;
                    set(&best_effort, "cpu.weight", 1)?;
                    set(&burstable, "io.weight", limits::io_weight(QosClass::Burstable))?;
                    set(&best_effort, "io.weight", limits::io_weight(QosClass::BestEffort))?;
                }
                Hierarchy::V1 { .. } => {
                    set(&burstable, "cpu.shares", sum(&burstable, "cpu.shares").clamp(2, 262_144))?;
                    set(&best_effort, "cpu.shares", 2)?;
                }
            }
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

    /// The processes in the shim's cgroup of a pod: its shim, and its pause process.
    pub(crate) fn shim_pids(&self, uid: &PodUid) -> Vec<u32> {
        let file = self.shim_procs(uid).into_iter().next();
        // A pod without that cgroup has no shim.
        let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The directory of `/TOP` that every host has: the first of the pods' hierarchies.
    pub(crate) fn top(&self) -> PathBuf {
        self.counting_root().join(&self.name)
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
        self.dirs_of(uid).iter().try_for_each(|dir| remove_tree(dir))?;
        self.balance()
    }

    /// Pods that have a cgroup here, running or left behind.
    pub fn pods(&self) -> BTreeSet<PodUid> {
        let mut found = BTreeSet::new();
        for root in self.all_roots() {
            let top = root.join(&self.name);
            for class in CLASSES {
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

    /// Removes the whole tree once no process is in it: the reverse of [`Tree::open`]. A slice is systemd's to remove.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.all_roots().iter().try_for_each(|root| {
            let top = root.join(&self.name);
            if self.name.ends_with(".slice") {
                ["kubepods", "shims"].iter().try_for_each(|name| remove_tree(&top.join(name)))
            } else {
                remove_tree(&top)
            }
        })
    }

    /// CPU time and memory in use of a cgroup path. `None` when it is gone.
    pub fn usage(&self, path: &str) -> Option<Usage> {
        usage::usage(&self.hierarchy, path)
    }

    /// What the whole machine uses.
    pub fn machine_usage(&self) -> Option<Usage> {
        usage::machine(&self.hierarchy)
    }

    /// What the containers of a pod's cgroup path use, by name.
    pub fn container_usage(&self, pod: &str) -> BTreeMap<String, Usage> {
        usage::containers(&self.hierarchy, pod)
    }

    /// How long tasks of a cgroup path waited for `resource`: `cpu`, `memory` or `io`. `None` on v1, and where the
    /// kernel keeps no account.
    pub fn pressure(&self, path: &str, resource: &str) -> Option<Pressure> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => {
                pressure(&root.join(path.trim_start_matches('/')).join(format!("{resource}.pressure")))
            }
            Hierarchy::V1 { .. } => None,
        }
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
                hand_down(&dir)?;
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

    /// v1: pids for killing, cgroup2 for `cgroup.kill` where there is one, and systemd's own hierarchy, by which it
    /// would end the shims with the unit that started them.
    fn shim_roots(&self) -> Vec<PathBuf> {
        match &self.hierarchy {
            Hierarchy::V2 { root } => vec![root.clone()],
            Hierarchy::V1 { controllers, unified } => {
                let mut roots = vec![controllers["pids"].clone()];
                roots.extend(unified.clone());
                roots.extend(controllers.get(SYSTEMD).cloned());
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
            for class in CLASSES {
                dirs.push(top.join(class).join(format!("pod{}", uid.0)));
            }
        }
        dirs.retain(|dir| dir.exists());
        dirs
    }
}

/// sd_booted(3).
fn under_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Names of the directories in `dir`; empty when it is gone.
fn entries(dir: &Path) -> Vec<String> {
    let Ok(read) = fs::read_dir(dir) else { return Vec::new() };
    read.filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
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
