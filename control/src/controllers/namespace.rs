//! Namespaces that are on their way out: everything in them is deleted, then they are.
//!
//! ```text
//! deletionTimestamp ──► pods ──► everything else ──► nothing left ──► the finalizer `kubernetes` is taken away ──► gone
//!                         └─ something is held: conditions say what ─┘
//! ```
//! Pods go first, as upstream does since 1.33: what they need outlives them.

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{NAMESPACES, PODS};
use crate::kinds::RESOURCES;
use crate::object::{self, fields, is_terminating, items, text};
use crate::registry::options::Propagation;
use coracle_api::status::StatusError;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FINALIZER: &str = "kubernetes";

/// The controller.
pub struct Namespaces {
    client: Client,
}

impl Namespaces {
    /// Over a client.
    pub fn new(client: Client) -> Namespaces {
        Namespaces { client }
    }
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*NAMESPACES) {
            return vec![change.key.clone()];
        }
        // Something came or went.
        let namespace = change.key.namespace();
        if namespace.is_empty() || (change.old.is_some() && change.new.is_some()) {
            return Vec::new();
        }
        let key = Key::of(*NAMESPACES, "", namespace);
        let ends = cache.get(&key).is_some_and(|namespace| is_terminating(&namespace));
        if ends { vec![key] } else { Vec::new() }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let cache = self.client.cache();
        let Some(namespace) = cache.get(key) else { return Ok(Next::Done) };
        let finalizers = items(&namespace, &["spec", "finalizers"]);
        if !is_terminating(&namespace) || !finalizers.iter().any(|name| name == FINALIZER) {
            return Ok(Next::Done);
        }
        let mut failures = Vec::new();
        if self.delete(&cache.keys(*PODS, key.name()), &mut failures).await == 0 {
            for resource in RESOURCES.iter().filter(|row| row.namespaced && row.stored.is_none()) {
                self.delete(&cache.keys(resource, key.name()), &mut failures).await;
            }
        }
        let mut left = Vec::new();
        for resource in RESOURCES.iter().filter(|row| row.namespaced && row.stored.is_none()) {
            left.extend(cache.keys(resource, key.name()));
        }
        if left.is_empty() {
            let mut namespace = (*namespace).clone();
            let finalizers: Vec<Value> = items(&namespace, &["spec", "finalizers"])
                .iter()
                .filter(|name| *name != FINALIZER)
                .cloned()
                .collect();
            fields(object::child(&mut namespace, "spec")).insert("finalizers".into(), finalizers.into());
            // Its status may have been written meanwhile; what is taken away is the same.
            object::set_meta(&mut namespace, "resourceVersion", Value::Null);
            self.client.update(namespace, Some("finalize")).await?;
            return Ok(Next::Done);
        }
        let objects: Vec<_> = left.iter().filter_map(|key| Some((key.clone(), cache.get(key)?))).collect();
        let held = objects.iter().map(|(key, object)| (key, &**object));
        let conditions = conditions(&namespace, held, &failures, &crate::registry::timestamp());
        if conditions != items(&namespace, &["status", "conditions"]) {
            self.client.merge(key, Some("status"), json!({"status": {"conditions": conditions}})).await?;
        }
        match failures.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(Next::Done),
        }
    }
}

impl Namespaces {
    /// Deletes what is not on its way out yet; how many are left.
    async fn delete(&self, keys: &[Key], failures: &mut Vec<StatusError>) -> usize {
        let live = keys.iter().filter_map(|key| {
            let object = self.client.cache().get(key)?;
            (!is_terminating(&object)).then(|| (key.clone(), object::uid(&object).to_string()))
        });
        let how = Delete { grace: None, propagation: Some(Propagation::Background) };
        failures.extend(self.client.delete_all(live.collect(), how).await);
        keys.iter().filter(|key| self.client.cache().get(key).is_some()).count()
    }
}

/// What the status of a namespace says of what is left.
fn conditions<'a>(
    namespace: &Value,
    left: impl Iterator<Item = (&'a Key, &'a Value)>,
    failures: &[StatusError],
    now: &str,
) -> Vec<Value> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<String, usize> = BTreeMap::new();
    for (key, object) in left {
        let resource = key.resource();
        *kinds.entry(format!("{}.{}", resource.plural, resource.group)).or_default() += 1;
        for finalizer in items(object, &["metadata", "finalizers"]).iter().filter_map(Value::as_str) {
            *finalizers.entry(finalizer.to_string()).or_default() += 1;
        }
    }
    let list = |counts: &BTreeMap<String, usize>, word: &str| {
        let texts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name} {word} {count} resource instances")).collect();
        texts.join(", ")
    };
    let failed = |error: &StatusError| {
        (
            "True",
            "ContentDeletionFailed",
            format!("Failed to delete all resource types, {} remaining: {error}", failures.len()),
        )
    };
    let content = match failures.first() {
        Some(error) => failed(error),
        None => (
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".into(),
        ),
    };
    let remaining = if kinds.is_empty() {
        ("False", "ContentRemoved", "All content successfully removed".to_string())
    } else {
        ("True", "SomeResourcesRemain", format!("Some resources are remaining: {}", list(&kinds, "has")))
    };
    let held = if finalizers.is_empty() {
        ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_string())
    } else {
        let text =
            format!("Some content in the namespace has finalizers remaining: {}", list(&finalizers, "in"));
        ("True", "SomeFinalizersRemain", text)
    };
    let discovered = ("False", "ResourcesDiscovered", "All resources successfully discovered".to_string());
    let parsed = ("False", "ParsedGroupVersions", "All legacy kube types successfully parsed".to_string());
    let old = items(namespace, &["status", "conditions"]);
    [
        ("NamespaceDeletionDiscoveryFailure", discovered),
        ("NamespaceDeletionGroupVersionParsingFailure", parsed),
        ("NamespaceDeletionContentFailure", content),
        ("NamespaceContentRemaining", remaining),
        ("NamespaceFinalizersRemaining", held),
    ]
    .into_iter()
    .map(|(kind, (status, reason, message))| {
        let before = old.iter().find(|condition| text(condition, &["type"]) == kind);
        let since = before
            .filter(|condition| text(condition, &["status"]) == status)
            .map_or(now, |condition| text(condition, &["lastTransitionTime"]));
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": since,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_says_what_holds_it() {
        let pod = Key::of(*PODS, "shop", "a");
        let held = json!({"metadata": {"finalizers": ["example.com/lock"]}});
        let conditions = conditions(&json!({}), [(&pod, &held), (&pod, &held)].into_iter(), &[], "now");
        let told: Vec<String> = conditions
            .iter()
            .map(|condition| {
                let of = |key: &str| text(condition, &[key]).to_string();
                format!("{}={} {}: {}", of("type"), of("status"), of("reason"), of("message"))
            })
            .collect();
        assert_eq!(
            told[2..],
            [
                "NamespaceDeletionContentFailure=False ContentDeleted: All content successfully deleted, may be waiting on finalization",
                "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: pods. has 2 resource instances",
                "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/lock in 2 resource instances",
            ]
        );
    }
}
