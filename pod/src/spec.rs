//! What a pod asks for: `v1.Pod`, translated and validated once.
//!
//! Wire types stop here. A [`PodSpec`] holds no impossible value: quantities are numbers, durations are
//! [`Duration`], enumerations are enums, names are checked. Fields follow `k8s.io/api/core/v1`.

use crate::objects::{ObjectName, TokenRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

/// A validated pod. `PodSpec::from_api` (module `admission`) is the only way to make one from a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct PodSpec {
    pub uid: PodUid,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub generation: i64,
    /// Set once deletion was asked for; the grace period runs from when this board first saw it.
    pub deletion: Option<Deletion>,
    pub restart_policy: RestartPolicy,
    pub termination_grace: Duration,
    pub active_deadline: Option<Duration>,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_process_namespace: bool,
    /// Hostname inside the pod's UTS namespace, at most 63 bytes (`spec.hostname`, else the pod's name cut).
    pub hostname: String,
    pub subdomain: Option<String>,
    pub set_hostname_as_fqdn: bool,
    pub host_aliases: Vec<HostAlias>,
    pub dns: Dns,
    pub init_containers: Vec<ContainerSpec>,
    pub containers: Vec<ContainerSpec>,
    /// Added to a pod that is there already, to look into it; without resources and probes, never started again.
    pub ephemeral_containers: Vec<ContainerSpec>,
    /// Conditions that others set, and that must hold before the pod is ready.
    pub readiness_gates: Vec<String>,
    pub volumes: Vec<Volume>,
    pub security: PodSecurity,
    pub qos: QosClass,
    /// The pod's own limits, computed from its containers as the kubelet does.
    pub resources: Resources,
    pub image_pull_secrets: Vec<String>,
    /// For `fieldRef` `spec.serviceAccountName`.
    pub service_account_name: String,
    pub priority: i32,
}

/// `metadata.uid`; identifies a pod for ever. Safe as a file name: checked at admission.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodUid(pub String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// `metadata.deletionGracePeriodSeconds`, else `spec.terminationGracePeriodSeconds`.
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAlias {
    pub ip: std::net::IpAddr,
    pub hostnames: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    pub policy: DnsPolicy,
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    /// `ndots:5` or a bare name.
    pub options: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPolicy {
    #[default]
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ContainerSpec {
    pub name: String,
    /// Of an ephemeral container: whose processes it sees (`targetContainerName`).
    pub target: Option<String>,
    pub image: String,
    pub pull_policy: PullPolicy,
    /// Overrides the image's entrypoint when not empty; `$(VAR)` not yet expanded.
    pub command: Vec<String>,
    pub args: Vec<String>,
    /// Whole objects as variables, in order, before `env`.
    pub env_from: Vec<EnvFrom>,
    /// In order; `$(VAR)` not yet expanded.
    pub env: Vec<EnvVar>,
    pub working_dir: Option<String>,
    pub ports: Vec<ContainerPort>,
    pub resources: Resources,
    pub restart_on_resize: RestartOnResize,
    pub mounts: Vec<Mount>,
    pub security: ContainerSecurity,
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
    pub startup: Option<Probe>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Default `/dev/termination-log`.
    pub termination_message_path: String,
    pub termination_message_from_logs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    pub name: String,
    pub value: EnvValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    Literal(String),
    /// `valueFrom`.
    From(EnvSource),
}

/// `valueFrom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvSource {
    /// `fieldRef.fieldPath`, such as `metadata.name` or `status.podIP`.
    Field(String),
    /// `resourceFieldRef`.
    Resource(ResourceField),
    /// `configMapKeyRef`, `secretKeyRef`.
    Key { object: ObjectName, key: String, optional: bool },
}

/// One entry of `envFrom`: every value of an object is a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFrom {
    pub prefix: String,
    pub object: ObjectName,
    pub optional: bool,
}

/// A request or limit of a container, divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceField {
    /// The container that has the variable when `None`.
    pub container: Option<String>,
    pub resource: Resource,
    /// In thousandths for CPU, in bytes for the others.
    pub divisor: NonZeroU64,
}

/// `resourceFieldRef.resource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    CpuLimit,
    CpuRequest,
    MemoryLimit,
    MemoryRequest,
    EphemeralStorageLimit,
    EphemeralStorageRequest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    pub name: Option<String>,
    pub container_port: u16,
    pub host_port: Option<u16>,
    pub host_ip: Option<std::net::IpAddr>,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// `resizePolicy`: which of its resources a container can have changed only by a new start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartOnResize {
    pub cpu: bool,
    pub memory: bool,
}

/// Requests and limits of one container, or of the pod. `None` = not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage_request_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage_limit_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    EmptyDir {
        medium: Medium,
        size_limit_bytes: Option<u64>,
    },
    HostPath {
        path: String,
        kind: HostPathType,
    },
    /// `configMap`, `secret`, `downwardAPI`, each alone, and `projected`.
    Projected(Projected),
}

/// A volume whose files the board writes, and containers only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projected {
    /// In order: of two files at one path the later is there.
    pub sources: Vec<Projection>,
    pub default_mode: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projection {
    /// All values of an object, or those that `items` names.
    Object {
        object: ObjectName,
        items: Option<Vec<KeyToPath>>,
        optional: bool,
    },
    DownwardApi {
        items: Vec<DownwardFile>,
    },
    ServiceAccountToken {
        request: TokenRequest,
        path: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyToPath {
    pub key: String,
    /// Relative, without `..`; checked at admission.
    pub path: String,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownwardFile {
    /// Relative, without `..`; checked at admission.
    pub path: String,
    pub value: DownwardValue,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownwardValue {
    /// `fieldRef.fieldPath`.
    Field(String),
    Resource(ResourceField),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Disk,
    Memory,
}

/// `hostPath.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPathType {
    Unset,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub volume: String,
    pub mount_path: String,
    pub read_only: bool,
    /// Relative, without `..`; checked at admission.
    pub sub_path: Option<String>,
    pub propagation: Propagation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    None,
    HostToContainer,
    Bidirectional,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSecurity {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub run_as_non_root: bool,
    pub supplemental_groups: Vec<u32>,
    pub fs_group: Option<u32>,
    pub seccomp: Option<Seccomp>,
    pub sysctls: Vec<(String, String)>,
}

/// A container's own settings; `None` falls back to the pod's, resolved at admission where both exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSecurity {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
    pub run_as_non_root: bool,
    pub read_only_root: bool,
    pub privileged: bool,
    /// Inverse of `allowPrivilegeEscalation`.
    pub no_new_privs: bool,
    /// Without the `CAP_` prefix; `ALL` allowed.
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    /// Resolved: container's, else pod's, else `RuntimeDefault`; `Unconfined` when privileged.
    pub seccomp: Seccomp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// Path below the agent's seccomp profile directory; relative, without `..`.
    Localhost(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub action: ProbeAction,
    pub initial_delay: Duration,
    pub timeout: Duration,
    pub period: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
    pub termination_grace: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    Exec {
        command: Vec<String>,
    },
    /// Port already resolved from its name.
    HttpGet {
        https: bool,
        host: Option<String>,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    TcpSocket {
        host: Option<String>,
        port: u16,
    },
}
