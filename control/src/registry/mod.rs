//! The verbs of the API over every kind: one code path, and a table of what differs ([`Resource`]).
//!
//! ```text
//! create   body ─► accept (type, schema) ─► default ─► admit ─► prepare ─► validate ─► charge ─► storage.create
//! update ┐ stored ─► new object ─► accept ─► default ─► keep what is the system's ─► validate ─► storage.update(at)
//! patch  ┘    └────────────── again, when somebody else was faster ◄──────────────────────────────────┘
//! delete   stored ─► grace or finalizers? mark it : storage.delete(at)
//! ```
//! Invariants: what is stored has been accepted, defaulted and validated as its kind; `resourceVersion` is the storage's
//! revision and is never stored; an update names the version that it read, or is made of the latest one; errors
//! are upstream's, word by word.
//!
//! Left out on purpose: who may do what ([`crate::auth`]), and how objects are shown (`coracle_api::table`).

mod accept;
mod admit;
mod allocate;
mod delete;
mod evict;
mod judge;
mod limits;
mod list;
mod meta;
pub mod options;
mod priority;
mod quota;
mod recent;
mod resource;
mod scale;
pub mod selector;
mod watch;
mod write;

pub(crate) use accept::accept_review;
pub(crate) use admit::ROOT_CA;
pub use allocate::{NODE_PORTS, ServiceRange};
pub(crate) use meta::labels as validate_labels;
pub use resource::{
    Name, PROXIED, Part, Resource, SCALE, Stored, Subresource, Verbs, api_version, cluster, connect,
    namespaced, part, status,
};
pub use scale::Rescale;
pub use watch::{WatchEvent, WatchStream};

use crate::auth::Authorizer;
use crate::object;
use crate::storage::{Entry, Revision, Storage, StorageError};
use bytes::Bytes;
use coracle_api::status::StatusError;
use recent::Recent;
use serde_json::Value;
use std::sync::Arc;

/// How often a write is tried again because another one was faster.
const RETRIES_MAX: usize = 8;
/// Objects that a step of a list or of a deletecollection reads at once.
const PAGE: usize = 500;
/// Where the seconds of a deletion begin to be unreasonable: upstream's bound is the type's.
const GRACE_SECONDS_MAX: i64 = i32::MAX as i64;

/// Which object, or which objects.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind.
    pub resource: &'static Resource,
    /// Empty for all, and for kinds of the cluster.
    pub namespace: String,
    /// Empty for a collection.
    pub name: String,
}

impl Target {
    fn key(&self) -> String {
        self.resource.key(&self.namespace, &self.name)
    }

    fn not_found(&self) -> StatusError {
        StatusError::not_found(self.resource.group_resource(), &self.name)
    }
}

/// An object as it is after a request.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object; for a deletion that took effect it may be a `Status`.
    pub object: Value,
    /// For the header `Warning`.
    pub warnings: Vec<String>,
}

/// The registry. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    storage: Storage,
    services: ServiceRange,
    /// The authority's certificate, for `kube-root-ca.crt`.
    root_ca: Bytes,
    /// Who may do what.
    authorizer: Authorizer,
    /// What watches read.
    recent: Arc<Recent>,
    /// Whose turn it is at quotas.
    quota_turn: Arc<tokio::sync::Mutex<()>>,
}

impl Registry {
    /// Over a storage; `root_ca` is PEM.
    pub fn new(storage: Storage, services: ServiceRange, root_ca: impl Into<Bytes>) -> Registry {
        Registry {
            storage,
            services,
            root_ca: root_ca.into(),
            authorizer: Authorizer::default(),
            recent: Arc::new(Recent::new()),
            quota_turn: Arc::default(),
        }
    }

    /// The storage beneath.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Who may do what; kept up by [`crate::auth::start`].
    pub fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// One object.
    ///
    /// # Errors
    /// 404.
    pub async fn get(&self, target: &Target) -> Result<Value, StatusError> {
        let entry = self.storage.get(&target.key()).await.map_err(refused)?;
        load(target.resource, &entry.ok_or_else(|| target.not_found())?)
    }
}

impl Registry {
    /// An entry of the storage as the API shows it: for those in this process that follow the storage itself.
    ///
    /// # Errors
    /// 500 for what is no object.
    pub(crate) fn read(&self, resource: &'static Resource, entry: &Entry) -> Result<Arc<Value>, StatusError> {
        self.recent.object(resource, entry)
    }
}

/// An object as the API shows it.
fn load(resource: &Resource, entry: &Entry) -> Result<Value, StatusError> {
    let mut object: Value = serde_json::from_slice(&entry.value)
        .map_err(|error| StatusError::internal(format!("{}: {error}", entry.key)))?;
    if let Some(stored) = resource.stored {
        (stored.from)(&mut object);
    }
    let fields = object::fields(&mut object);
    fields.insert("apiVersion".into(), resource.api_version().into());
    fields.insert("kind".into(), resource.kind.into());
    object::set_meta(&mut object, "resourceVersion", entry.modified.to_string());
    Ok(object)
}

/// An object as it is stored.
fn seal(resource: &Resource, object: &Value) -> Bytes {
    let mut object = object.clone();
    object::set_meta(&mut object, "resourceVersion", Value::Null);
    if let Some(stored) = resource.stored {
        (stored.to)(&mut object);
        object::fields(&mut object)
            .insert("apiVersion".into(), api_version(stored.group, stored.version).into());
    }
    object.to_string().into()
}

fn stamp(object: &mut Value, revision: Revision) {
    object::set_meta(object, "resourceVersion", revision.to_string());
}

/// What of the storage's errors has no meaning of its own for the request.
fn refused(error: StorageError) -> StatusError {
    match error {
        StorageError::TooLarge(bytes) => StatusError::too_large(format!(
            "limit is {}, the object has {bytes}",
            crate::storage::VALUE_BYTES_MAX
        )),
        StorageError::Compacted { .. } => {
            StatusError::expired("The resourceVersion for the provided list is too old.")
        }
        StorageError::Future { asked, current } => {
            StatusError::timeout(format!("Too large resource version: {asked}, current: {current}"), 1)
        }
        error => StatusError::internal(error),
    }
}

/// Now, as Kubernetes writes times: whole seconds, UTC.
fn now() -> jiff::Timestamp {
    crate::clock::seconds(crate::clock::now())
}

/// [`now`] as text.
pub(crate) fn timestamp() -> String {
    now().to_string()
}

fn random<const N: usize>() -> Result<[u8; N], StatusError> {
    use ring::rand::SecureRandom;
    let mut bytes = [0; N];
    #[cfg(test)]
    if crate::simulated::fill(&mut bytes) {
        return Ok(bytes);
    }
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StatusError::internal("the kernel gives no random numbers"))?;
    Ok(bytes)
}

/// As `k8s.io/apimachinery/pkg/util/rand`: no vowels, no digits that look like letters.
fn random_suffix() -> Result<String, StatusError> {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    Ok(random::<5>()?.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect())
}

/// A name that nobody else has.
///
/// # Errors
/// When the kernel gives no random numbers.
pub(crate) fn random_id() -> Result<String, StatusError> {
    new_uid()
}

/// A random UUID, version 4.
pub(crate) fn new_uid() -> Result<String, StatusError> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}
