//! What controllers of pods share: whose a pod is, whether it counts, how one is made of a template, made and deleted.

use super::cache::Cache;
use super::client::{Client, Delete};
use super::events::{Kind, Recorder};
use super::key::Key;
use super::kinds::PODS;
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

/// Whether an owner controls an object.
pub fn controls(owner: &Value, object: &Value) -> bool {
    controller_of(object).is_some_and(|controller| text(controller, &["uid"]) == uid(owner))
}

/// The objects of a kind that an owner controls, as they are now; see [`claim`] for those that it should.
pub fn controlled(cache: &Cache, owner: &Value, resource: &'static Resource) -> Vec<Arc<Value>> {
    let keys = cache.dependents(uid(owner)).into_iter().filter(|key| key.is(resource));
    keys.filter_map(|key| cache.get(&key)).filter(|object| controls(owner, object)).collect()
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

/// The controllers of a kind that an object is of concern to: its own, or those that may claim it, if it is `free` for that.
pub fn concerned(object: &Value, free: bool, resource: &'static Resource, cache: &Cache) -> Vec<Key> {
    match controller_of(object) {
        Some(_) => controller_key(object, resource, cache).into_iter().collect(),
        None if free => candidates(object, resource, cache),
        None => Vec::new(),
    }
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
    claim_as(client, owner, resource, None, |_| true).await
}

/// The same for pods; what is adopted gets this finalizer, what is let go loses it.
pub async fn claim_held(
    client: &Client,
    owner: &Value,
    finalizer: &str,
) -> Result<Vec<Arc<Value>>, StatusError> {
    claim_as(client, owner, *PODS, Some(finalizer), |_| true).await
}

/// The same for pods that can be members; others are left alone.
pub async fn claim_members(
    client: &Client,
    owner: &Value,
    is_member: impl Fn(&Value) -> bool,
) -> Result<Vec<Arc<Value>>, StatusError> {
    claim_as(client, owner, *PODS, None, is_member).await
}

async fn claim_as(
    client: &Client,
    owner: &Value,
    resource: &'static Resource,
    finalizer: Option<&str>,
    is_member: impl Fn(&Value) -> bool,
) -> Result<Vec<Arc<Value>>, StatusError> {
    let Some(selector) = selector_of(owner) else { return Ok(Vec::new()) };
    let mut mine = Vec::new();
    for object in client.cache().list(resource, namespace(owner)) {
        if !is_member(&object) {
            continue;
        }
        let matches = selector.matches_object(&object);
        let key = Key::of(resource, namespace(&object), name(&object));
        match controller_of(&object) {
            Some(controller) if text(controller, &["uid"]) != uid(owner) => {}
            Some(_) if matches || is_terminating(owner) => mine.push(object),
            Some(_) => {
                let owners = items(&object, &["metadata", "ownerReferences"]).iter();
                let left: Vec<_> =
                    owners.filter(|other| text(other, &["uid"]) != uid(owner)).cloned().collect();
                let finalizers = without_finalizer(&object, finalizer.unwrap_or_default());
                own(client, &key, &object, (left, finalizers)).await?;
            }
            None if matches && !is_terminating(&object) && !is_terminating(owner) => {
                let mut owners = items(&object, &["metadata", "ownerReferences"]).to_vec();
                owners.push(controller_reference(owner));
                let mut finalizers = without_finalizer(&object, finalizer.unwrap_or_default());
                finalizers.extend(finalizer.map(Value::from));
                if let Some(adopted) = own(client, &key, &object, (owners, finalizers)).await? {
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
    (owners, finalizers): (Vec<Value>, Vec<Value>),
) -> Result<Option<Value>, StatusError> {
    let list = |items: Vec<Value>| if items.is_empty() { Value::Null } else { items.into() };
    let version = text(object, &["metadata", "resourceVersion"]);
    let patch = json!({"metadata": {
        "uid": uid(object), "resourceVersion": version, "ownerReferences": list(owners),
        "finalizers": list(finalizers),
    }});
    match client.merge(key, None, patch).await {
        Ok(written) => Ok(Some(written)),
        Err(error) if error.reason == Reason::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The finalizers of an object but one.
pub fn without_finalizer(object: &Value, finalizer: &str) -> Vec<Value> {
    items(object, &["metadata", "finalizers"]).iter().filter(|name| *name != finalizer).cloned().collect()
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

/// Makes pods for an owner, in batches of 1, 2, 4, …: when they cannot be made, few are tried.
///
/// # Errors
/// The first of the batch that failed.
pub async fn make_pods(
    client: &Client,
    recorder: &Recorder,
    owner: &Value,
    pods: Vec<Value>,
) -> Result<(), StatusError> {
    let (mut pods, mut batch) = (pods.into_iter(), 1);
    loop {
        let next: Vec<Value> = pods.by_ref().take(batch).collect();
        if next.is_empty() {
            return Ok(());
        }
        let mut failed = None;
        for pod in client.create_all(*PODS, next).await {
            match pod {
                Ok(pod) => {
                    let text = format!("Created pod: {}", name(&pod));
                    recorder.say(owner, Kind::Normal, "SuccessfulCreate", text);
                }
                Err(error) if ends_with_namespace(&error) => return Ok(()),
                Err(error) => {
                    let text = format!("Error creating: {error}");
                    recorder.say(owner, Kind::Warning, "FailedCreate", text);
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        batch *= 2;
    }
}

/// Deletes pods of an owner.
///
/// # Errors
/// The first that failed, once all were tried.
pub async fn delete_pods(
    client: &Client,
    recorder: &Recorder,
    owner: &Value,
    pods: &[Arc<Value>],
) -> Result<(), StatusError> {
    let key = |pod: &Value| Key::of(*PODS, namespace(pod), name(pod));
    let keys = pods.iter().map(|pod| (key(pod), uid(pod).to_string())).collect();
    let mut outcome = Ok(());
    for (key, deleted) in client.delete_each(keys, Delete::default()).await {
        match deleted {
            Ok(()) => {
                let text = format!("Deleted pod: {}", key.name());
                recorder.say(owner, Kind::Normal, "SuccessfulDelete", text);
            }
            Err(error) => {
                recorder.say(owner, Kind::Warning, "FailedDelete", format!("Error deleting: {error}"));
                outcome = Err(error);
            }
        }
    }
    outcome
}

/// Whether something was not made because its namespace ends: it would have ended with it.
pub fn ends_with_namespace(error: &StatusError) -> bool {
    error.message.contains("because it is being terminated")
}
