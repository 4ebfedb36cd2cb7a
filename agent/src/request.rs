//! What the node API may ask of the engine: a closed set, each with the channel for its answer.

use coracle_runtime::shim_client::ShimClient;
use k8s_openapi::api::core::v1::{Event, Pod};
use std::collections::BTreeSet;
use tokio::sync::{mpsc, oneshot};

/// A question, and where the answer goes. An asker who has gone away is no error.
#[derive(Debug)]
pub(crate) enum Request {
    /// Every pod with its status, by namespace and name.
    Pods(oneshot::Sender<Vec<Pod>>),
    /// Pods as they change, after one `ADDED` each for those that are.
    Watch(oneshot::Sender<mpsc::Receiver<Change>>),
    /// Events, oldest first.
    Events(oneshot::Sender<Vec<Event>>),
    /// Make these pods exist. Answered once they are stored.
    Apply { pods: Vec<Pod>, answer: oneshot::Sender<Result<Vec<Applied>, Refusal>> },
    /// Delete one. Answered once that is stored; the pod goes away in its own time.
    Delete {
        namespace: String,
        name: String,
        grace_seconds: Option<i64>,
        answer: oneshot::Sender<Result<Pod, Refusal>>,
    },
    /// The way to a running container.
    Container {
        namespace: String,
        name: String,
        container: String,
        answer: oneshot::Sender<Result<Target, Refusal>>,
    },
    /// Images that pods use: never collected.
    ImagesInUse(oneshot::Sender<BTreeSet<String>>),
    /// An image was pulled, imported or removed: look again.
    ImagesChanged,
}

/// A line of a watch.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub kind: ChangeKind,
    pub pod: Pod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    /// As in `WatchEvent.type`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            ChangeKind::Added => "ADDED",
            ChangeKind::Modified => "MODIFIED",
            ChangeKind::Deleted => "DELETED",
        }
    }
}

/// What became of one applied pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub namespace: String,
    pub name: String,
    pub outcome: Outcome,
}

/// kubectl's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Outcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Configured => "configured",
            Outcome::Unchanged => "unchanged",
        }
    }
}

/// Why not, as an HTTP status and `Status.reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

impl Refusal {
    pub(crate) fn not_found(name: &str) -> Refusal {
        Refusal { code: 404, reason: "NotFound", message: format!("pods \"{name}\" not found") }
    }

    pub(crate) fn bad_request(message: String) -> Refusal {
        Refusal { code: 400, reason: "BadRequest", message }
    }

    pub(crate) fn invalid(name: &str, message: &str) -> Refusal {
        Refusal { code: 422, reason: "Invalid", message: format!("Pod \"{name}\" is invalid: {message}") }
    }

    pub(crate) fn method_not_allowed() -> Refusal {
        let message = "the server does not allow this method on the requested resource".into();
        Refusal { code: 405, reason: "MethodNotAllowed", message }
    }

    pub(crate) fn unavailable(message: String) -> Refusal {
        Refusal { code: 503, reason: "ServiceUnavailable", message }
    }
}

/// A running container and its shim.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub spec: std::sync::Arc<coracle_pod::PodSpec>,
    pub instance: coracle_pod::observed::InstanceId,
    pub shim: ShimClient,
    pub tty: bool,
    pub stdin: bool,
}
