//! What is seen of one pod: facts only, never intentions.

use crate::action::ActionKey;
use crate::fit::Load;
use crate::resize::Allocation;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// The clocks, as the caller read them. Wall time is a hint: it may jump, or stand at 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`.
    pub monotonic: Duration,
    pub boot: BootId,
    pub wall: jiff::Timestamp,
}

/// `/proc/sys/kernel/random/boot_id`: monotonic times of two boots never compare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BootId(pub String);

/// A moment on both clocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub boot: BootId,
    pub monotonic: Duration,
    pub wall: jiff::Timestamp,
}

/// One start of one container: `web`, attempt 3. Attempts count from 0 and never repeat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    pub container: String,
    pub attempt: u32,
}

/// Everything the runtime knows of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandbox: Sandbox,
    pub instances: BTreeMap<InstanceId, Instance>,
    /// By image reference as the pod writes it. Missing = not asked yet.
    pub images: BTreeMap<String, ImageState>,
    /// The newest failure of each action, cleared when that action succeeds.
    pub failures: BTreeMap<ActionKey, Failure>,
    /// The newest result of each probe.
    pub probes: BTreeMap<ProbeKey, ProbeResult>,
    /// Actions handed out and not yet answered. The plan never repeats one of these.
    pub in_flight: BTreeSet<ActionKey>,
    /// Anything of this pod left on the board (directories, mounts, lease, cgroup), sandbox or not.
    pub residue: bool,
    /// Memory is short and this pod is the one to go, or it takes more of the disk than it may: the message for its status.
    pub eviction: Option<String>,
    /// The API server says that the pod has failed or succeeded: `status.reason` and its message.
    pub ended_elsewhere: Option<(String, String)>,
    /// What the pod names and cannot have yet.
    pub unmet: Unmet,
    /// The files of a volume are not what they should be by now.
    pub volumes_behind: bool,
    /// Conditions that others set, by type: `True`, `False`, `Unknown`.
    pub foreign_conditions: BTreeMap<String, String>,
    /// The board's own addresses, the primary first; may be empty without a network.
    pub host_ips: Vec<IpAddr>,
    /// What the board has; `None` while nobody asked.
    pub capacity: Option<Capacity>,
    /// What the other pods have of it. Looked at when this pod is first seen, and while it asks for other resources than
    /// it has.
    pub load: Load,
    /// What the cgroups were last changed to, since the agent started.
    pub resized: Option<Resized>,
}

/// A resize that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resized {
    pub allocation: Allocation,
    /// Those that ran, and were changed.
    pub instances: Vec<InstanceId>,
}

/// ConfigMaps, Secrets and tokens that are missing, or lack what is wanted of them: the message, or `None` while nobody has
/// answered. An entry goes away by itself when the object comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmet {
    /// By the volume's name.
    pub volumes: BTreeMap<String, Option<String>>,
    /// By the name of the container whose variables cannot be had.
    pub containers: BTreeMap<String, Option<String>>,
}

/// What a board can give its pods in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub pods: u64,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

/// The pod's namespaces, cgroup, network and shim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    #[default]
    Absent,
    /// Whole, and its shim answers.
    Ready { ips: Vec<IpAddr>, since: Stamp },
    /// Half-made, or its shim died: tear down before anything else.
    Broken { why: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub state: InstanceState,
    /// `coracle://…` id shown to users, and the digest of the image it runs.
    pub container_id: String,
    pub image_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceState {
    Created,
    Running { started: Stamp },
    Exited(Exit),
}

/// How an instance ended, from the shim's exit record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0–255; 128 + signal when killed.
    pub code: i32,
    pub signal: Option<i32>,
    #[serde(default)]
    pub cause: Cause,
    pub started: Option<Stamp>,
    pub finished: Stamp,
    /// The termination message, at most 4096 bytes.
    pub message: String,
}

/// What ended an instance, where the code does not say it all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It returned, or a signal ended it: `Completed` or `Error`.
    #[default]
    Process,
    /// `OOMKilled`.
    OutOfMemory,
    /// `StartError`: its program never ran (no such file, not executable, foreign architecture).
    NotStarted,
    /// `ContainerStatusUnknown`: it is gone and left no record (a reboot, a shim that was killed).
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    Absent,
    /// `id` is the image config's digest; `uid` its user when numeric, `user` as written.
    Present {
        id: String,
        repo_digest: Option<String>,
        user: String,
    },
}

/// Why an action failed. `reason` is the kubelet's word (`ErrImagePull`, `CreateContainerConfigError`, …).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    pub at: Stamp,
}

/// The kubelet's reasons that a runtime action may end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    ErrImagePull,
    ErrImageNeverPull,
    InvalidImageName,
    /// The registry answers 5xx or not at all.
    RegistryUnavailable,
    CreateContainerConfigError,
    CreateContainerError,
    RunContainerError,
    /// Sandbox: network, cgroup, shim.
    FailedCreatePodSandBox,
    /// Volumes: `FailedMount`.
    FailedMount,
    FailedKillPod,
    /// Of a resize; the API knows `Error` alone.
    FailedResize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProbeKey {
    pub instance: InstanceId,
    pub kind: ProbeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeKind {
    Startup,
    Readiness,
    Liveness,
}

/// What one run of a probe showed; messages are for events: `HTTP probe failed with statuscode: 500`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// Counts as success, and somebody should know why it may be none.
    Warning(String),
    Failure(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeResult {
    pub verdict: Verdict,
    pub at: Stamp,
    /// Counts results of this key since the agent started, so that a new one is told from an old one.
    pub sequence: u64,
}
