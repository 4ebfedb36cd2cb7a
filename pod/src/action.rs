//! What to do next: a closed set of idempotent actions, each with a key.
//!
//! An action's result comes back as an observation: a changed fact, or an entry in `Observed::failures`.
//! While its key is in `Observed::in_flight`, the plan hands out nothing else with that key.

use crate::history::History;
use crate::observed::{InstanceId, ProbeKey};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What a call of `plan` decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In order; independent keys may run at once.
    pub actions: Vec<Action>,
    /// To be committed before the actions run, when its durable part changed.
    pub history: History,
    pub status: k8s_openapi::api::core::v1::PodStatus,
    pub events: Vec<Event>,
    /// Call again at this `CLOCK_BOOTTIME`, if nothing happens before.
    pub wake: Option<Duration>,
    /// Deletion was asked for, and nothing of the pod is left: forget it.
    pub gone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make `image` present. Legal before or beside the sandbox. `always` asks the registry even if present.
    PullImage { image: String, always: bool },
    /// Volumes, cgroup, namespaces, network, shim, `/etc/hosts`, `resolv.conf`. Legal when Absent.
    CreateSandbox,
    /// Write anew what has changed in volumes that the board writes. Legal when the sandbox is Ready.
    UpdateVolumes,
    /// Give the pod's cgroup and those of these instances what is allocated. Legal when the sandbox is Ready.
    Resize { instances: Vec<InstanceId> },
    /// Create and start one instance. Legal when the sandbox is Ready and the image Present.
    StartContainer { instance: InstanceId },
    /// Send `signal` to the instance's init; a no-op when it is gone. `SIGKILL` takes its whole cgroup.
    Signal { instance: InstanceId, signal: i32 },
    /// Free an exited instance's rootfs and records (its log stays for `--previous` until `log` is set).
    RemoveContainer { instance: InstanceId, log: bool },
    /// Run the probe once, now.
    Probe { key: ProbeKey },
    /// Kill what lives, then undo CreateSandbox; keeps volumes and logs. Legal when Ready or Broken.
    StopSandbox,
    /// Remove everything left on the board: volumes, logs, records. Legal when Absent.
    RemovePod,
}

/// Identity of an action: at most one in flight per key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ActionKey {
    /// CreateSandbox, StopSandbox, RemovePod.
    Sandbox,
    Volumes,
    Resize,
    Image(String),
    /// StartContainer, Signal, RemoveContainer: by container name.
    Container(String),
    Probe(ProbeKey),
}

impl Action {
    /// The key under which this action is in flight.
    pub fn key(&self) -> ActionKey {
        match self {
            Action::PullImage { image, .. } => ActionKey::Image(image.clone()),
            Action::CreateSandbox | Action::StopSandbox | Action::RemovePod => ActionKey::Sandbox,
            Action::UpdateVolumes => ActionKey::Volumes,
            Action::Resize { .. } => ActionKey::Resize,
            Action::StartContainer { instance }
            | Action::Signal { instance, .. }
            | Action::RemoveContainer { instance, .. } => ActionKey::Container(instance.container.clone()),
            Action::Probe { key } => ActionKey::Probe(key.clone()),
        }
    }
}

/// A `v1.Event` about this pod, without times and counts: the agent dedups and stamps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventType,
    /// The kubelet's reason: `Pulled`, `Created`, `Started`, `Killing`, `BackOff`, `Unhealthy`, …
    pub reason: &'static str,
    pub message: String,
    /// `spec.containers{web}`, for `involvedObject.fieldPath`.
    pub field_path: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}
