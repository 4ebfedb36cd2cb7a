//! ConfigMaps, Secrets and service account tokens, as far as a pod can use them; and which of them a pod names.
//!
//! A pod names objects of its own namespace only, so that a name alone says which. What is known of each is handed in
//! as [`Objects`]; where they come from (manifests, an API server, the store of a board that is offline) is the agent's.
//!
//! Left out on purpose: the secrets of `imagePullSecrets`, which no container sees.

use crate::downward::PodFacts;
use crate::environment::variables;
use crate::observed::Unmet;
use crate::payload::payloads;
use crate::spec::{ContainerSpec, EnvSource, EnvValue, PodSpec, Projection, VolumeSource};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Bytes of all values of one object (`corev1.MaxSecretSize`).
pub const OBJECT_BYTES_MAX: usize = 1024 * 1024;

/// What kinds of object have keys and values that a pod can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    ConfigMap,
    Secret,
}

impl ObjectKind {
    /// As the kubelet's caches have it: `configmap`.
    pub fn word(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "configmap",
            ObjectKind::Secret => "secret",
        }
    }

    /// `kind`.
    pub fn name(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "ConfigMap",
            ObjectKind::Secret => "Secret",
        }
    }

    /// As paths have it.
    pub fn resource(self) -> &'static str {
        match self {
            ObjectKind::ConfigMap => "configmaps",
            ObjectKind::Secret => "secrets",
        }
    }
}

/// An object of the pod's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub kind: ObjectKind,
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind.word(), self.name)
    }
}

/// The values of one object.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keyed {
    /// `data`.
    pub data: BTreeMap<String, Vec<u8>>,
    /// A ConfigMap's `binaryData`: files for volumes, never variables.
    pub binary_data: BTreeMap<String, Vec<u8>>,
}

impl Keyed {
    /// Of all values.
    pub fn bytes(&self) -> usize {
        self.data.values().chain(self.binary_data.values()).map(Vec::len).sum()
    }
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds stays out of logs.
        f.debug_struct("Keyed").field("keys", &self.data.len()).finish_non_exhaustive()
    }
}

/// A token that is to be asked for: `serviceAccountToken`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenRequest {
    /// The API server's own when empty.
    pub audience: String,
    pub expiration_seconds: u64,
}

/// Why something is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Nobody has answered yet: wait, and say nothing.
    NotYet,
    /// There is none.
    NotFound,
    /// It could not be had: why.
    Failed(String),
}

/// What is known of the objects that a pod names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Missing = [`Lack::NotYet`].
    pub keyed: BTreeMap<ObjectName, Result<Arc<Keyed>, Lack>>,
    /// Missing = [`Lack::NotYet`].
    pub tokens: BTreeMap<TokenRequest, Result<Arc<str>, Lack>>,
}

impl Objects {
    /// An object, or why there is none; `Ok(None)` = it is not there and need not be.
    pub(crate) fn find(&self, object: &ObjectName, optional: bool) -> Result<Option<&Keyed>, ValueError> {
        match self.keyed.get(object) {
            Some(Ok(keyed)) => Ok(Some(keyed)),
            Some(Err(Lack::NotFound)) if optional => Ok(None),
            Some(Err(Lack::NotFound)) => Err(ValueError::NotFound(object.clone())),
            Some(Err(Lack::Failed(why))) => Err(ValueError::Failed(why.clone())),
            Some(Err(Lack::NotYet)) | None => Err(ValueError::NotYet),
        }
    }
}

/// A value that cannot be had, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Nobody has answered yet.
    #[error("not known yet")]
    NotYet,
    #[error("{0} not found")]
    NotFound(ObjectName),
    #[error("{0}")]
    Failed(String),
    /// `valueFrom` names a key that the object lacks.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}", kind = object.kind.name(), name = object.name)]
    Key { object: ObjectName, namespace: String, key: String },
    /// `items` names a key that the object lacks.
    #[error("{}", match object {
        ObjectKind::ConfigMap => format!("configmap references non-existent config key: {key}"),
        ObjectKind::Secret => format!("references non-existent secret key: {key}"),
    })]
    Item { object: ObjectKind, key: String },
    #[error("couldn't find field {0}")]
    Field(String),
    #[error("container {0} not found")]
    Container(String),
    /// Environment strings end at a NUL, and the runtime's documents are UTF-8.
    #[error("the value of environment variable {0} is not a text without NUL characters")]
    NotText(String),
    #[error("{0} is too long for the kernel once expanded: a string holds 128 KiB, all of them 6 MiB")]
    TooLong(String),
    /// A volume of more than the board holds in memory for one.
    #[error("the files of the volume are larger than {0} bytes")]
    TooLarge(usize),
}

/// What a pod cannot have yet of what it names, and why.
pub fn unmet(pod: &PodSpec, objects: &Objects) -> Unmet {
    let message = |error: ValueError| (error != ValueError::NotYet).then(|| error.to_string());
    // Facts change values, and never whether there is one.
    let facts = PodFacts::default();
    let volumes = payloads(pod, objects, &facts).into_iter();
    let containers = pod.all_containers().filter_map(|container| {
        let error = variables(pod, container, objects, &facts).err()?;
        Some((container.name.clone(), message(error)))
    });
    Unmet {
        volumes: volumes.filter_map(|(name, files)| Some((name, message(files.err()?)))).collect(),
        containers: containers.collect(),
    }
}

impl PodSpec {
    /// Every container, those that run once first.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerSpec> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }

    /// Every object that a volume or a variable names.
    pub fn object_names(&self) -> BTreeSet<ObjectName> {
        let mut names: BTreeSet<ObjectName> = self.projections().filter_map(of_projection).collect();
        for container in self.all_containers() {
            names.extend(container.env_from.iter().map(|source| source.object.clone()));
            names.extend(container.env.iter().filter_map(|variable| match &variable.value {
                EnvValue::From(EnvSource::Key { object, .. }) => Some(object.clone()),
                EnvValue::Literal(_) | EnvValue::From(_) => None,
            }));
        }
        names
    }

    /// Every token that a volume asks for.
    pub fn token_requests(&self) -> BTreeSet<TokenRequest> {
        let token = |projection: &Projection| match projection {
            Projection::ServiceAccountToken { request, .. } => Some(request.clone()),
            Projection::Object { .. } | Projection::DownwardApi { .. } => None,
        };
        self.projections().filter_map(token).collect()
    }

    fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.volumes.iter().flat_map(|volume| match &volume.source {
            VolumeSource::Projected(projected) => projected.sources.as_slice(),
            VolumeSource::EmptyDir { .. } | VolumeSource::HostPath { .. } => &[],
        })
    }
}

fn of_projection(projection: &Projection) -> Option<ObjectName> {
    match projection {
        Projection::Object { object, .. } => Some(object.clone()),
        Projection::DownwardApi { .. } | Projection::ServiceAccountToken { .. } => None,
    }
}
