//! What must survive the agent: restart counts, back-off, first-seen times, how instances ended.
//!
//! Committed to the store before the actions of the same plan run. Fields that may be lost are skipped by
//! serde, so an idle, probed pod writes nothing.

use crate::observed::{Exit, Failure, InstanceId, ProbeKind, Stamp};
use crate::resize::Allocation;
use crate::spec::Resources;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// `status.startTime`: when this board first saw the pod.
    pub first_seen: Option<Stamp>,
    /// When deletion was first seen; the grace period runs from here.
    pub deletion_seen: Option<Stamp>,
    /// By container name, init containers too.
    pub containers: BTreeMap<String, ContainerHistory>,
    /// By image.
    pub pulls: BTreeMap<String, Backoff>,
    pub sandbox: Backoff,
    /// By condition type: when it last changed.
    pub transitions: BTreeMap<String, (bool, jiff::Timestamp)>,
    /// Why the pod as a whole failed, once it did (`DeadlineExceeded`, `Evicted`): reason and message.
    pub failed: Option<(String, String)>,
    /// What containers were granted; what the pod asks for may be something else.
    #[serde(default)]
    pub allocated: Allocation,
    /// Of which generation a resize is granted and not yet carried out.
    #[serde(default)]
    pub resizing: Option<i64>,
    /// Probe counters; lost with the agent, which starts them anew.
    #[serde(skip)]
    pub probes: BTreeMap<(String, ProbeKind), ProbeHistory>,
    /// Images whose pull was announced and has not ended.
    #[serde(skip)]
    pub pulling: BTreeSet<String>,
    /// Containers and their images: whether the image is here was asked before the first start with it.
    #[serde(skip)]
    pub asked: BTreeSet<(String, String)>,
    /// What was last said of a volume, or of a container's variables, that cannot be had, or of a resize.
    #[serde(skip)]
    pub told: BTreeMap<Told, String>,
}

impl History {
    /// Whether both would be written alike: counters that may be lost do not count.
    pub fn durable_eq(&self, other: &History) -> bool {
        // What is written is the definition of what is durable.
        let text = |history: &History| serde_json::to_vec(history).expect("a history serializes");
        text(self) == text(other)
    }
}

/// What something was said of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Told {
    Volume(String),
    Container(String),
    /// A resize that is not granted.
    Resize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerHistory {
    /// The attempt that runs, or ran last; `None` before the first start.
    pub current: Option<InstanceId>,
    /// The image of `current`, as the pod named it then; unknown of those that an older agent started.
    #[serde(default)]
    pub image: Option<String>,
    /// With what `current` runs; unknown as `image` is.
    #[serde(default)]
    pub resources: Option<Resources>,
    pub restart_count: u32,
    pub started: Option<Stamp>,
    /// How `current` ended.
    pub exit: Option<Exit>,
    /// To be started again whatever its exit code: an init container that succeeded in a sandbox that is gone, or a
    /// container that its probes ended, perhaps with code 0.
    #[serde(default)]
    pub rerun: bool,
    /// The attempt whose leftover processes were killed; lost with the agent, which kills again.
    #[serde(skip)]
    pub swept: Option<u32>,
    /// When `current` was ordered to start.
    #[serde(default)]
    pub begun: Option<Stamp>,
    /// Why `current` never ran.
    #[serde(default)]
    pub failed_start: Option<Failure>,
    /// How the attempt before it ended: `lastState`.
    pub last_exit: Option<Exit>,
    pub backoff: Backoff,
    /// SIGTERM was sent: to whom, when, why, and for how long it may take.
    pub stopping: Option<Stopping>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    pub instance: InstanceId,
    pub since: Stamp,
    pub grace: Duration,
    pub why: String,
    /// A probe failed: it is stopped only to be started again.
    #[serde(default)]
    pub for_restart: bool,
    /// The last signal sent; lost with the agent, which sends again.
    #[serde(skip)]
    pub sent: Option<i32>,
}

/// Exponential delay between attempts: 10 s, 20 s, … 5 min; forgotten after 10 min of running.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Backoff {
    /// Zero = no delay yet.
    pub delay: Duration,
    /// The delay runs from here. Of another boot: it has passed.
    pub from: Option<Stamp>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeHistory {
    pub attempt: u32,
    pub last_sequence: u64,
    pub successes: u32,
    pub failures: u32,
    pub last_run: Option<Duration>,
    pub passing: bool,
    /// What the last result warned of.
    pub warned: Option<String>,
}
