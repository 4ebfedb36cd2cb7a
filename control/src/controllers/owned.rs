//! What controllers of pods share: whose a pod is, whether it counts, how one is made of a template.

use super::cache::Cache;
use super::client::Client;
use super::key::Key;
use crate::object::{at, is_terminating, items, name, namespace, text, uid};
use crate::registry::Resource;
use coracle_api::selector::LabelSelector;
use coracle_api::status::{Reason, StatusError};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The owner that controls an object.
pub fn controller_of(object: &Value) -> Option<&Value> {
    let mut owners = items(object, &["metadata", "ownerReferences"]).iter();
    owners.find(|owner| at(owner, &["controller"]).as_bool() == Some(true))
}

/// The reference by which an object controls another one.
pub fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": text(owner, &["apiVersion"]),
        "kind": text(owner, &["kind"]),
        "name": name(owner),
        "uid": uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The key of the controller of an object, if it is of that kind and still the same.
pub fn controller_key(object: &Value, resource: &'static Resource, cache: &Cache) -> Option<Key> {
    let controller = controller_of(object)?;
    let key = Key::of(resource, namespace(object), text(controller, &["name"]));
    let same = text(controller, &["kind"]) == resource.kind
        && uid(cache.get(&key)?.as_ref()) == text(controller, &["uid"]);
    same.then_some(key)
}

/// The controllers of a kind whose selector matches an object without a controller.
pub fn candidates(object: &Value, resource: &'static Resource, cache: &Cache) -> Vec<Key> {
    let keys = cache.keys(resource, namespace(object));
    let selects = |key: &Key| {
        let owner = cache.get(key);
        let selector = owner.and_then(|owner| selector_of(&owner));
        selector.is_some_and(|selector| selector.matches_object(object))
    };
    keys.into_iter().filter(selects).collect()
}

/// `spec.selector`; `None` for one that would take everything, or is malformed.
pub fn selector_of(owner: &Value) -> Option<LabelSelector> {
    let selector = LabelSelector::from_value(at(owner, &["spec", "selector"])).ok()?;
    (!selector.is_everything()).then_some(selector)
}

/// The objects of a kind that an owner controls. Those that match and are nobody's are adopted, those that match no more are
/// let go.
pub async fn claim(
    client: &Client,
    owner: &Value,
    resource: &'static Resource,
) -> Result<Vec<Arc<Value>>, StatusError> {
    let Some(selector) = selector_of(owner) else { return Ok(Vec::new()) };
    let mut mine = Vec::new();
    for object in client.cache().list(resource, namespace(owner)) {
        let matches = selector.matches_object(&object);
        let key = Key::of(resource, namespace(&object), name(&object));
        match controller_of(&object) {
            Some(controller) if text(controller, &["uid"]) != uid(owner) => {}
            Some(_) if matches || is_terminating(owner) => mine.push(object),
            Some(_) => {
                let owners = items(&object, &["metadata", "ownerReferences"]).iter();
                let left: Vec<_> =
                    owners.filter(|other| text(other, &["uid"]) != uid(owner)).cloned().collect();
                own(client, &key, &object, left).await?;
            }
            None if matches && !is_terminating(&object) && !is_terminating(owner) => {
                let mut owners = items(&object, &["metadata", "ownerReferences"]).to_vec();
                owners.push(controller_reference(owner));
                if let Some(adopted) = own(client, &key, &object, owners).await? {
                    mine.push(adopted.into());
                }
            }
            None => {}
        }
    }
    Ok(mine)
}

async fn own(
    client: &Client,
    key: &Key,
    object: &Value,
    owners: Vec<Value>,
) -> Result<Option<Value>, StatusError> {
    let owners = if owners.is_empty() { Value::Null } else { owners.into() };
    let version = text(object, &["metadata", "resourceVersion"]);
    let patch = json!({
        "metadata": {"uid": uid(object), "resourceVersion": version, "ownerReferences": owners},
    });
    match client.merge(key, None, patch).await {
        Ok(written) => Ok(Some(written)),
        Err(error) if error.reason == Reason::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a pod runs or is going to.
pub fn is_active(pod: &Value) -> bool {
    !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") && !is_terminating(pod)
}

/// Since when a pod is ready.
pub fn ready_since(pod: &Value) -> Option<Timestamp> {
    let mut conditions = items(pod, &["status", "conditions"]).iter();
    let ready =
        conditions.find(|told| text(told, &["type"]) == "Ready" && text(told, &["status"]) == "True")?;
    // One that does not say has been so for long.
    Some(text(ready, &["lastTransitionTime"]).parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// How long until a ready pod is available; zero when it is.
pub fn until_available(since: Timestamp, min_ready_seconds: i64, now: Timestamp) -> Duration {
    if min_ready_seconds <= 0 {
        return Duration::ZERO;
    }
    let at = since.saturating_add(jiff::SignedDuration::from_secs(min_ready_seconds));
    at.map_or(Duration::ZERO, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// A pod as a template of an owner makes it.
pub fn from_template(template: &Value, owner: &Value) -> Value {
    let mut metadata = Map::new();
    for key in ["labels", "annotations", "finalizers"] {
        let value = at(template, &["metadata", key]);
        if !value.is_null() {
            metadata.insert(key.into(), value.clone());
        }
    }
    // As upstream: a name that is too long is cut by the registry.
    metadata.insert("generateName".into(), format!("{}-", name(owner)).into());
    metadata.insert("namespace".into(), namespace(owner).into());
    metadata.insert("ownerReferences".into(), json!([controller_reference(owner)]));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": at(template, &["spec"])})
}
