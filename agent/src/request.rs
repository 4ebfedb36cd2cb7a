//! What the node API may ask of the engine: a closed set, each with the channel for its answer.

use crate::record::Source;
use coracle_api::manifest::Object;
use coracle_pod::objects::ObjectKind;
use coracle_runtime::shim_client::ShimClient;
use k8s_openapi::api::core::v1::{Event, Pod};
use serde::{Deserialize, Serialize};
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
    /// Make these exist. Answered once they are stored.
    Apply { objects: Vec<Object>, answer: oneshot::Sender<Result<Vec<Applied>, Refusal>> },
    /// Delete one. Answered once that is stored; the pod goes away in its own time.
    Delete {
        namespace: String,
        name: String,
        grace_seconds: Option<i64>,
        answer: oneshot::Sender<Result<Pod, Refusal>>,
    },
    /// Delete a ConfigMap or a Secret. Answered once that is stored.
    DeleteObject {
        kind: ObjectKind,
        namespace: String,
        name: String,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    /// What the pod is called here that the API calls so.
    LocalName { namespace: String, name: String, answer: oneshot::Sender<Result<String, Refusal>> },
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

/// What a board keeps by namespace and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    Pod,
    ConfigMap,
    Secret,
}

impl Kind {
    /// `kind`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Pod => "Pod",
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
        }
    }

    /// As kubectl writes it before a name.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Pod => "pod",
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        }
    }

    /// As paths have it.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Kind::Pod => "pods",
            Kind::ConfigMap => "configmaps",
            Kind::Secret => "secrets",
        }
    }
}

impl From<ObjectKind> for Kind {
    fn from(kind: ObjectKind) -> Kind {
        match kind {
            ObjectKind::ConfigMap => Kind::ConfigMap,
            ObjectKind::Secret => Kind::Secret,
        }
    }
}

/// What became of one applied object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub kind: Kind,
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
    pub(crate) fn not_found(kind: Kind, name: &str) -> Refusal {
        let message = format!("{} \"{name}\" not found", kind.resource());
        Refusal { code: 404, reason: "NotFound", message }
    }

    /// Another source has it.
    pub(crate) fn conflict(kind: Kind, namespace: &str, name: &str, source: &Source) -> Refusal {
        let owner = match source {
            Source::Manifest(file) => format!("the manifest {file}"),
            Source::Apply => "coracle apply".into(),
            Source::Api => "the API server".into(),
        };
        let message = format!("{} {namespace}/{name} belongs to {owner}; change it there", kind.word());
        Refusal { code: 409, reason: "Conflict", message }
    }

    /// A manifest file has it, so that nobody else can delete it.
    pub(crate) fn owned(kind: Kind, namespace: &str, name: &str, file: &str) -> Refusal {
        let kind = kind.word();
        let message =
            format!("{kind} {namespace}/{name} belongs to the manifest {file}; remove that file instead");
        Refusal { code: 403, reason: "Forbidden", message }
    }

    /// The API server has it, so that it can be deleted there alone.
    pub(crate) fn of_the_api(kind: Kind, namespace: &str, name: &str) -> Refusal {
        let message =
            format!("{} {namespace}/{name} belongs to the API server; delete it there", kind.word());
        Refusal { code: 403, reason: "Forbidden", message }
    }

    pub(crate) fn bad_request(message: String) -> Refusal {
        Refusal { code: 400, reason: "BadRequest", message }
    }

    pub(crate) fn invalid(kind: Kind, name: &str, message: &str) -> Refusal {
        let message = format!("{} \"{name}\" is invalid: {message}", kind.name());
        Refusal { code: 422, reason: "Invalid", message }
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
