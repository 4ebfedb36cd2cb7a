//! The OCI runtime configuration of one container: a pure function of what the agent has already found out.
//!
//! Follows the OCI runtime specification 1.0 and, for the defaults (mounts, masked paths, capabilities), what
//! containerd gives the kubelet. The traps of libcontainer that shape it: `noNewPrivileges` is left out rather
//! than false, a filter is never in the document, PATH and HOME are in the environment, mount propagation is
//! the root's alone (ARCHITECTURE.md).

use crate::cgroup::{self, CPU_PERIOD_MICROSECONDS, cpu_quota_microseconds, cpu_shares};
use crate::process::Identity;
use crate::rt::DROP_CAPABILITIES;
use coracle_pod::spec::{ContainerSpec, PodSpec, Propagation};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A bind mount from the host into the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host; exists.
    pub source: PathBuf,
    /// Absolute, in the container.
    pub destination: String,
    /// Not recursive, as Kubernetes' `readOnly`.
    pub read_only: bool,
}

/// A device node of the host, for privileged containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `/dev/…`.
    pub path: String,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Everything that the document depends on.
#[derive(Debug)]
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// The container.
    pub container: &'a ContainerSpec,
    /// Program and arguments, expanded.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// The image's, where the pod sets none.
    pub image_working_dir: Option<String>,
    /// Who it runs as.
    pub identity: Identity,
    /// Capabilities, from [`capabilities`].
    pub capabilities: Vec<&'static str>,
    /// Whether a compiled filter lies in the bundle.
    pub filtered: bool,
    /// The overlay's mount point.
    pub rootfs: PathBuf,
    /// `/coracle/kubepods/…/web.0`.
    pub cgroup_path: String,
    /// Namespace files of the sandbox; `None` = the host's.
    pub net: Option<PathBuf>,
    /// As `net`.
    pub ipc: Option<PathBuf>,
    /// As `net`.
    pub uts: Option<PathBuf>,
    /// The shared one of `shareProcessNamespace`; otherwise its own, or the host's with `hostPID`.
    pub shared_pid: Option<PathBuf>,
    /// Etc files, `/dev/shm`, volumes, the termination log: in order.
    pub binds: Vec<Bind>,
    /// The host's devices, for a privileged container.
    pub devices: Vec<Device>,
    /// `oom_score_adj`, already within what this process may set.
    pub oom_score_adj: Option<i32>,
    /// `pids.max` of the container.
    pub pids_max: u64,
    /// Whether the host is on cgroup v2: a private cgroup namespace and a read-only view of it.
    pub cgroup2: bool,
    /// Where the hierarchies appear in the container: [`cgroup::Tree::views`].
    pub cgroup_views: Vec<String>,
}

/// containerd's default set.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
/// capability.h, by bit number.
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// What a filter's installation needs while capabilities are already being dropped.
const FILTER_CAPABILITIES: [&str; 2] = ["SYS_ADMIN", "SETPCAP"];

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The container's capabilities (without `CAP_`), limited to `available`, a mask of what the agent itself has.
/// Kubernetes: `drop` first, then `add`; `ALL` in either; privileged = everything.
pub fn capabilities(container: &ContainerSpec, available: u64) -> Vec<&'static str> {
    let security = &container.security;
    let has = |list: &[String], name: &str| list.iter().any(|c| c == name || c == "ALL");
    let wanted = |name: &&str| {
        let base = security.privileged || DEFAULT_CAPABILITIES.contains(name);
        let named_drop = security.capabilities_drop.iter().any(|c| c == name);
        let kept = base && !has(&security.capabilities_drop, name);
        security.privileged || kept || (has(&security.capabilities_add, name) && !named_drop)
    };
    let possible = |name: &&str| bit(name).is_some_and(|b| available >> b & 1 == 1);
    ALL_CAPABILITIES.into_iter().filter(wanted).filter(possible).collect()
}

/// A list of names as a mask of capability.h's bits.
pub fn capability_mask(names: &[&str]) -> u64 {
    names.iter().filter_map(|name| bit(name)).fold(0, |mask, b| mask | 1 << b)
}

fn bit(name: &str) -> Option<usize> {
    ALL_CAPABILITIES.iter().position(|known| *known == name)
}

/// `config.json`. Pure.
///
/// # Panics
/// Never: the document is well-formed by construction, which the golden tests hold.
pub fn spec(input: &Input<'_>) -> oci_spec::runtime::Spec {
    let document = document(input);
    serde_json::from_value(document).expect("the document follows the OCI schema")
}

fn document(input: &Input<'_>) -> Value {
    let security = &input.container.security;
    let prefixed = |names: &[&str]| names.iter().map(|n| format!("CAP_{n}")).collect::<Vec<_>>();
    // Without no-new-privileges a filter needs CAP_SYS_ADMIN, so the helper drops that one itself, last.
    let extra: Vec<&str> = FILTER_CAPABILITIES
        .into_iter()
        .filter(|c| input.filtered && !security.no_new_privs && !input.capabilities.contains(c))
        .collect();
    let held = prefixed(&[input.capabilities.as_slice(), extra.as_slice()].concat());
    let cwd = input.container.working_dir.clone().or_else(|| input.image_working_dir.clone());
    let mut process = json!({
        "terminal": input.container.tty,
        "user": {"uid": input.identity.uid, "gid": input.identity.gid, "additionalGids": input.identity.groups},
        "args": input.args,
        "env": input.env,
        "cwd": cwd.filter(|d| !d.is_empty()).unwrap_or_else(|| "/".into()),
        "capabilities": {"bounding": held, "effective": held, "permitted": held},
    });
    if security.no_new_privs {
        process["noNewPrivileges"] = true.into();
    }
    if let Some(score) = input.oom_score_adj {
        process["oomScoreAdj"] = score.into();
    }
    let mut linux = json!({
        "cgroupsPath": input.cgroup_path,
        "resources": resources(input),
        "namespaces": namespaces(input),
        "rootfsPropagation": propagation(input.container),
        "devices": input.devices.iter().map(device).collect::<Vec<_>>(),
    });
    if !security.privileged {
        linux["maskedPaths"] = json!(MASKED);
        // libcontainer mounts v1 hierarchies writable whatever the mount says, and a container could lift its limits.
        let views = input.cgroup_views.iter().map(String::as_str);
        linux["readonlyPaths"] = READ_ONLY.into_iter().chain(views).collect();
    }
    json!({
        "ociVersion": "1.0.2",
        "hostname": Value::Null,
        "process": process,
        "root": {"path": input.rootfs, "readonly": security.read_only_root},
        "mounts": mounts(input),
        "annotations": {DROP_CAPABILITIES: prefixed(&extra).join(",")},
        "linux": linux,
    })
}

fn namespaces(input: &Input<'_>) -> Vec<Value> {
    let mut list = vec![json!({"type": "mount"})];
    for (kind, path) in [("network", &input.net), ("ipc", &input.ipc), ("uts", &input.uts)] {
        list.extend(path.as_ref().map(|path| json!({"type": kind, "path": path})));
    }
    match &input.shared_pid {
        Some(path) => list.push(json!({"type": "pid", "path": path})),
        None if !input.pod.host_pid => list.push(json!({"type": "pid"})),
        None => {}
    }
    if input.cgroup2 {
        list.push(json!({"type": "cgroup"}));
    }
    list
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let access = if input.container.security.privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        // Never the host's own with what is mounted in it: "ro" would stop at the cgroups, which are everybody's.
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", access]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", access]}),
    ];
    for bind in &input.binds {
        let access = if bind.read_only { "ro" } else { "rw" };
        list.push(json!({"destination": bind.destination, "type": "bind", "source": bind.source,
            "options": ["rbind", access]}));
    }
    list
}

/// libcontainer knows only the root's propagation, so the widest that a mount asks for is everybody's.
fn propagation(container: &ContainerSpec) -> &'static str {
    let asks = |wanted| container.mounts.iter().any(|m| m.propagation == wanted);
    if asks(Propagation::Bidirectional) {
        "shared"
    } else if asks(Propagation::HostToContainer) {
        "slave"
    } else {
        "private"
    }
}

fn resources(input: &Input<'_>) -> Value {
    let resources = &input.container.resources;
    let mut cpu = json!({"shares": cpu_shares(resources)});
    if let Some(millis) = resources.cpu_limit_millis {
        cpu["quota"] = cpu_quota_microseconds(millis).into();
        cpu["period"] = CPU_PERIOD_MICROSECONDS.into();
    }
    let mut value = json!({
        // For v1; on v2 the agent puts a program of its own on the cgroup.
        "devices": [{"allow": input.container.security.privileged, "access": "rwm"}],
        "cpu": cpu,
        "pids": {"limit": input.pids_max},
    });
    if let Some(bytes) = resources.memory_limit_bytes {
        value["memory"] = json!({"limit": bytes});
    }
    if input.cgroup2 {
        value["unified"] =
            cgroup::unified(input.pod.qos, resources).into_iter().map(|(f, v)| (f, json!(v))).collect();
    }
    value
}

fn device(device: &Device) -> Value {
    json!({"path": device.path, "type": device.kind.to_string(), "major": device.major, "minor": device.minor,
        "fileMode": device.mode, "uid": device.uid, "gid": device.gid})
}

#[cfg(test)]
mod tests;
