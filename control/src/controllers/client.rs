//! How controllers write: the registry's verbs, and then the wait until the cache has what was written.
//!
//! That wait is why no controller keeps expectations: when a write has returned, the cache is at least as new. A second look
//! at the same object sees what the first one did.

use super::cache::Cache;
use super::key::Key;
use crate::auth::Identity;
use crate::object;
use crate::registry::options::{DeleteOptions, Propagation, WriteOptions};
use crate::registry::{Registry, Resource, Target};
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::status::{Reason, StatusError};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::Arc;

/// Writes of one reconciliation that are under way at once: they share a commit of the storage.
const AT_ONCE: usize = 16;
/// The field manager of what controllers write.
pub const MANAGER: &str = "coracle-control";

/// The verbs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    registry: Registry,
    cache: Arc<Cache>,
    who: Arc<Identity>,
}

impl Client {
    /// Over a registry, with the cache that follows it.
    pub fn new(registry: Registry, cache: Arc<Cache>) -> Client {
        let who = Arc::new(Identity::component("system:kube-controller-manager"));
        Client { registry, cache, who }
    }

    /// The same in another name.
    pub fn named(&self, user: &str) -> Client {
        Client { who: Arc::new(Identity::component(user)), ..self.clone() }
    }

    /// In whose name it writes.
    pub fn who(&self) -> &Identity {
        &self.who
    }

    /// The registry beneath.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    fn options() -> WriteOptions {
        WriteOptions { manager: MANAGER.into(), ..WriteOptions::default() }
    }

    /// Waits until the cache has all that is written.
    pub async fn settle(&self) {
        match self.registry.storage().revision().await {
            Ok(revision) => self.cache.reached(revision).await,
            // The follower says what is wrong with the storage; a look at an older state is undone by the next change.
            Err(error) => tracing::debug!(%error, "the storage does not say its revision"),
        }
    }

    /// Adds an object.
    ///
    /// # Errors
    /// The registry's.
    pub async fn create(&self, resource: &'static Resource, object: Value) -> Result<Value, StatusError> {
        let target =
            Target { resource, namespace: object::namespace(&object).to_string(), name: String::new() };
        let document = Document { value: object, duplicates: Vec::new() };
        let made = self.registry.create(&self.who, &target, document, &Client::options()).await;
        self.settle().await;
        Ok(made?.object)
    }

    /// Replaces an object that was read, or the named part of it: 409 when it is not that version any more.
    ///
    /// # Errors
    /// The registry's.
    pub async fn update(&self, object: Value, part: Option<&str>) -> Result<Value, StatusError> {
        let key = key_of(&object)?;
        let part = part.and_then(|name| key.resource().subresource(name));
        let document = Document { value: object, duplicates: Vec::new() };
        let written =
            self.registry.update(&self.who, &key.target(), part, document, &Client::options()).await;
        self.settle().await;
        Ok(written?.object)
    }

    /// Merges fields into an object, or into the named part of it.
    ///
    /// # Errors
    /// The registry's.
    pub async fn merge(&self, key: &Key, part: Option<&str>, patch: Value) -> Result<Value, StatusError> {
        let part = part.and_then(|name| key.resource().subresource(name));
        let patch = (PatchType::Merge, Document { value: patch, duplicates: Vec::new() });
        let written = self.registry.patch(&self.who, &key.target(), part, patch, &Client::options()).await;
        self.settle().await;
        Ok(written?.1.object)
    }

    /// Merges as [`Client::merge`], and lists by the keys of their items: conditions by their type.
    ///
    /// # Errors
    /// The registry's.
    pub async fn merge_lists(
        &self,
        key: &Key,
        part: Option<&str>,
        patch: Value,
    ) -> Result<Value, StatusError> {
        let part = part.and_then(|name| key.resource().subresource(name));
        let patch = (PatchType::StrategicMerge, Document { value: patch, duplicates: Vec::new() });
        let written = self.registry.patch(&self.who, &key.target(), part, patch, &Client::options()).await;
        self.settle().await;
        Ok(written?.1.object)
    }

    /// Replaces the finalizers of an object that is still the version that was read.
    ///
    /// # Errors
    /// The registry's.
    pub async fn set_finalizers(&self, object: &Value, finalizers: Vec<Value>) -> Result<(), StatusError> {
        let version = object::text(object, &["metadata", "resourceVersion"]);
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
        self.merge(&key_of(object)?, None, patch).await.map(drop)
    }

    /// Deletes an object if it has this uid; that it is gone already is no error.
    ///
    /// # Errors
    /// The registry's.
    pub async fn delete(&self, key: &Key, uid: &str, how: Delete) -> Result<(), StatusError> {
        let options = DeleteOptions {
            uid: (!uid.is_empty()).then(|| uid.to_string()),
            grace: how.grace,
            propagation: how.propagation,
            ..DeleteOptions::default()
        };
        let deleted = self.registry.delete(&self.who, &key.target(), &options).await;
        self.settle().await;
        match deleted {
            Ok(_) => Ok(()),
            Err(error) if error.reason == Reason::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Client {
    /// Deletes several objects, each if it has its uid; what became of each.
    pub async fn delete_each(
        &self,
        objects: Vec<(Key, String)>,
        how: Delete,
    ) -> Vec<(Key, Result<(), StatusError>)> {
        let one = |(key, uid): (Key, String)| {
            let client = self.clone();
            async move {
                let deleted = client.delete(&key, &uid, how).await;
                (key, deleted)
            }
        };
        futures_util::stream::iter(objects).map(one).buffer_unordered(AT_ONCE).collect().await
    }

    /// The same; what failed.
    pub async fn delete_all(&self, objects: Vec<(Key, String)>, how: Delete) -> Vec<StatusError> {
        let deleted = self.delete_each(objects, how).await;
        deleted.into_iter().filter_map(|(_, deleted)| deleted.err()).collect()
    }

    /// Merges a patch into several objects; what failed, but for those that are gone.
    pub async fn merge_all(&self, patches: Vec<(Key, Value)>) -> Vec<(Key, StatusError)> {
        let one = |(key, patch): (Key, Value)| {
            let client = self.clone();
            async move {
                let merged = client.merge(&key, None, patch).await;
                merged.err().filter(|error| error.reason != Reason::NotFound).map(|error| (key, error))
            }
        };
        let merges = futures_util::stream::iter(patches).map(one).buffer_unordered(AT_ONCE);
        merges.filter_map(std::future::ready).collect().await
    }

    /// Adds several objects; each as it was made, or what failed.
    pub async fn create_all(
        &self,
        resource: &'static Resource,
        objects: Vec<Value>,
    ) -> Vec<Result<Value, StatusError>> {
        let one = |object: Value| {
            let client = self.clone();
            async move { client.create(resource, object).await }
        };
        futures_util::stream::iter(objects).map(one).buffer_unordered(AT_ONCE).collect().await
    }
}

/// How a controller deletes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delete {
    /// Seconds; `None` is the object's own.
    pub grace: Option<i64>,
    /// Of what it owns.
    pub propagation: Option<Propagation>,
}

/// The key of an object that says its kind.
///
/// # Errors
/// For a kind that is not served.
pub fn key_of(object: &Value) -> Result<Key, StatusError> {
    let (version, kind) = (object::text(object, &["apiVersion"]), object::text(object, &["kind"]));
    let resource = super::kinds::of_reference(version, kind)
        .ok_or_else(|| StatusError::internal(format!("{version} {kind} is not served")))?;
    Ok(Key::of(resource, object::namespace(object), object::name(object)))
}
