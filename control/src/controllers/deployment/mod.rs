//! Deployments: replica sets, one for each template, and how many pods each has while one follows the other.
//!
//! ```text
//! template ─► its replica set, NAME-HASH (made, or found again: a rollback) ─► rolling: new up by maxSurge, old down to
//! maxUnavailable ─► old ones kept for history ─► status, conditions
//! ```
//! How many is decided by [`plan`], which is pure; this file finds, makes and writes.

mod plan;
mod status;

use super::cache::{Cache, Change};
use super::client::Client;
use super::client::Delete;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{DEPLOYMENTS, PODS, REPLICA_SETS};
use super::owned::{claim, concerned, controller_key, controller_reference, controls};
use crate::object::{self, at, child, fields, is_terminating, name, namespace, text, uid};
use coracle_api::status::{Reason, StatusError};
use plan::{Sets, desired, replicas};
use serde_json::{Value, json};
use std::sync::Arc;

/// The label that tells the pods of one template from those of another.
pub const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that a deployment keeps to itself.
const OWN: &[&str] = &["kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, MOST];

/// The controller.
pub struct Deployments {
    client: Client,
    recorder: Recorder,
}

impl Deployments {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> Deployments {
        Deployments { client, recorder }
    }
}

fn revision(object: &Value) -> i64 {
    text(object, &["metadata", "annotations", REVISION]).parse().unwrap_or_default()
}

/// The template without the label that only its replica set has.
fn template(owner: &Value) -> Value {
    let mut template = at(owner, &["spec", "template"]).clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels") {
        object::remove(labels, HASH);
    }
    template
}

/// FNV-1a over the canonical text, in the letters that upstream writes it with.
pub(super) fn hash(template: &Value, collisions: i64) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash: u32 = 0x811c_9dc5;
    for byte in template.to_string().bytes().chain(collisions.to_le_bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string().bytes().map(|byte| char::from(LETTERS[usize::from(byte) % LETTERS.len()])).collect()
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*DEPLOYMENTS) {
            return vec![change.key.clone()];
        }
        let Some(object) = cache.object(&change.key, change.latest()) else { return Vec::new() };
        if change.of(*REPLICA_SETS) {
            return concerned(&object, change.new.is_some(), *DEPLOYMENTS, cache);
        }
        // A Recreate waits until the last old pod is gone.
        if change.of(*PODS) && change.new.is_none() {
            let set = controller_key(&object, *REPLICA_SETS, cache).and_then(|key| cache.get(&key));
            return set.and_then(|set| controller_key(&set, *DEPLOYMENTS, cache)).into_iter().collect();
        }
        Vec::new()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(deployment) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let all = claim(&self.client, &deployment, *REPLICA_SETS).await?;
        if is_terminating(&deployment) {
            return self.report(&deployment, &all, false).await;
        }
        let paused = at(&deployment, &["spec", "paused"]).as_bool() == Some(true);
        let wanted = template(&deployment);
        let mut new: Option<Arc<Value>> = {
            let mut same: Vec<_> = all.iter().filter(|set| template(set) == wanted).cloned().collect();
            same.sort_by_key(|set| text(set, &["metadata", "creationTimestamp"]).to_string());
            same.into_iter().next()
        };
        let mut made = false;
        if !paused {
            let found = self.current(&deployment, &all, new.take()).await?;
            made = found.1;
            new = Some(found.0.into());
        }
        let old: Vec<Arc<Value>> =
            all.iter().filter(|set| new.as_ref().is_none_or(|new| uid(new) != uid(set))).cloned().collect();
        let sets = Sets { new: new.as_deref(), old: old.iter().map(|set| &**set).collect() };
        let old_pods = old.iter().any(|set| {
            self.client.cache().owned(uid(set)).iter().any(|(key, pod)| {
                key.is(*PODS) && !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
            })
        });
        for (set, wanted) in desired(&deployment, &sets, old_pods, paused) {
            self.scale(&deployment, set, wanted).await?;
        }
        // As they are now.
        let cache = self.client.cache();
        let fresh = |set: &Arc<Value>| cache.get(&Key::of(*REPLICA_SETS, namespace(set), name(set)));
        let mut now: Vec<Arc<Value>> = old.iter().filter_map(fresh).collect();
        let complete =
            new.as_ref().and_then(fresh).is_some_and(|new| status::is_complete(&deployment, &new, &now));
        if complete {
            self.forget(&deployment, &now).await?;
        }
        now.extend(new.as_ref().and_then(fresh));
        self.report(&deployment, &now, made).await
    }
}

impl Deployments {
    /// The replica set of the template: found and brought up to date, or made.
    async fn current(
        &self,
        deployment: &Value,
        all: &[Arc<Value>],
        found: Option<Arc<Value>>,
    ) -> Result<(Value, bool), StatusError> {
        let others = all.iter().filter(|set| found.as_ref().is_none_or(|found| uid(found) != uid(set)));
        let newest = others.map(|set| revision(set)).max().unwrap_or_default();
        let (set, made) = match found {
            Some(found) => {
                let mut set = (*found).clone();
                self.annotate(deployment, &mut set, newest);
                (if set == *found { set } else { self.client.update(set, None).await? }, false)
            }
            None => (self.make(deployment, newest).await?, true),
        };
        let number = text(&set, &["metadata", "annotations", REVISION]).to_string();
        if text(deployment, &["metadata", "annotations", REVISION]) != number {
            let key = Key::of(*DEPLOYMENTS, namespace(deployment), name(deployment));
            let patch = json!({"metadata": {"uid": uid(deployment), "annotations": {REVISION: number}}});
            self.client.merge(&key, None, patch).await?;
        }
        Ok((set, made))
    }

    /// Revision, history, and what the deployment's annotations say.
    fn annotate(&self, deployment: &Value, set: &mut Value, newest_other: i64) {
        let own = |key: &str| OWN.contains(&key);
        let said = at(deployment, &["metadata", "annotations"]).clone();
        let old = revision(set);
        let annotations = fields(child(child(set, "metadata"), "annotations"));
        for (key, value) in said.as_object().into_iter().flatten().filter(|(key, _)| !own(key)) {
            annotations.insert(key.clone(), value.clone());
        }
        if old <= newest_other {
            let history = annotations.get(HISTORY).and_then(Value::as_str).unwrap_or_default();
            if old > 0 {
                let history = if history.is_empty() { old.to_string() } else { format!("{history},{old}") };
                annotations.insert(HISTORY.into(), history.into());
            }
            annotations.insert(REVISION.into(), (newest_other + 1).to_string().into());
        }
        let wanted = replicas(deployment);
        annotations.insert(DESIRED.into(), wanted.to_string().into());
        annotations.insert(MOST.into(), (wanted + plan::surge(deployment)).to_string().into());
        let seconds = at(deployment, &["spec", "minReadySeconds"]).clone();
        if !seconds.is_null() {
            fields(child(set, "spec")).insert("minReadySeconds".into(), seconds);
        }
    }

    async fn make(&self, deployment: &Value, newest: i64) -> Result<Value, StatusError> {
        let wanted = template(deployment);
        let collisions = at(deployment, &["status", "collisionCount"]).as_i64().unwrap_or_default();
        let hash = hash(&wanted, collisions);
        let mut own = wanted.clone();
        fields(child(child(&mut own, "metadata"), "labels")).insert(HASH.into(), hash.clone().into());
        let mut selector = at(deployment, &["spec", "selector"]).clone();
        fields(child(&mut selector, "matchLabels")).insert(HASH.into(), hash.clone().into());
        let mut set = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": format!("{}-{hash}", name(deployment)),
                "namespace": namespace(deployment),
                "labels": at(&own, &["metadata", "labels"]),
                "ownerReferences": [controller_reference(deployment)],
            },
            "spec": {"replicas": 0, "selector": selector, "template": own},
        });
        self.annotate(deployment, &mut set, newest);
        let first = plan::first(deployment, &self.client.cache().owned(uid(deployment)));
        fields(child(&mut set, "spec")).insert("replicas".into(), first.into());
        match self.client.create(*REPLICA_SETS, set.clone()).await {
            Ok(made) => {
                if first > 0 {
                    self.say_scaled(deployment, &made, 0, first);
                }
                Ok(made)
            }
            Err(error) if error.reason == Reason::AlreadyExists => {
                let key = Key::of(*REPLICA_SETS, namespace(deployment), name(&set));
                let there = self.client.registry().get(&key.target()).await?;
                if controls(deployment, &there) && template(&there) == wanted {
                    return Ok(there);
                }
                // Another template with the same hash: the next name.
                let key = Key::of(*DEPLOYMENTS, namespace(deployment), name(deployment));
                let patch = json!({"status": {"collisionCount": collisions + 1}});
                self.client.merge(&key, Some("status"), patch).await?;
                Err(error)
            }
            Err(error) => {
                let text = format!("Failed to create new replica set {:?}: {error}", name(&set));
                self.recorder.say(deployment, Kind::Warning, "ReplicaSetCreateError", text);
                Err(error)
            }
        }
    }

    fn say_scaled(&self, deployment: &Value, set: &Value, from: i64, to: i64) {
        let way = if to > from { "up" } else { "down" };
        let text = format!("Scaled {way} replica set {} from {from} to {to}", name(set));
        self.recorder.say(deployment, Kind::Normal, "ScalingReplicaSet", text);
    }

    async fn scale(&self, deployment: &Value, set: &Value, wanted: i64) -> Result<(), StatusError> {
        let from = replicas(set);
        let total = replicas(deployment);
        let annotations = json!({
            DESIRED: total.to_string(), MOST: (total + plan::surge(deployment)).to_string(),
        });
        let key = Key::of(*REPLICA_SETS, namespace(set), name(set));
        let same = |key: &str| at(set, &["metadata", "annotations", key]) == &annotations[key];
        if from == wanted && (wanted == 0 || (same(DESIRED) && same(MOST))) {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": uid(set), "annotations": annotations}, "spec": {"replicas": wanted},
        });
        self.client.merge(&key, None, patch).await?;
        if from != wanted {
            self.say_scaled(deployment, set, from, wanted);
        }
        Ok(())
    }

    /// Old replica sets beyond `revisionHistoryLimit`, the oldest first.
    async fn forget(&self, deployment: &Value, old: &[Arc<Value>]) -> Result<(), StatusError> {
        let kept = at(deployment, &["spec", "revisionHistoryLimit"]).as_u64().unwrap_or(10);
        let number = |path: &[&str], set: &Value| at(set, path).as_i64().unwrap_or_default();
        let mut empty: Vec<&Arc<Value>> = old.iter().filter(|set| !is_terminating(set)).collect();
        let surplus = empty.len().saturating_sub(usize::try_from(kept).unwrap_or(usize::MAX));
        empty.sort_by_key(|set| revision(set));
        for set in empty.into_iter().take(surplus) {
            let idle = number(&["status", "replicas"], set) == 0
                && replicas(set) == 0
                && number(&["metadata", "generation"], set) <= number(&["status", "observedGeneration"], set);
            if idle {
                let key = Key::of(*REPLICA_SETS, namespace(set), name(set));
                self.client.delete(&key, uid(set), Delete::default()).await?;
            }
        }
        Ok(())
    }

    async fn report(&self, deployment: &Value, sets: &[Arc<Value>], made: bool) -> Result<Next, StatusError> {
        let key = Key::of(*DEPLOYMENTS, namespace(deployment), name(deployment));
        let Some(deployment) = self.client.cache().get(&key) else { return Ok(Next::Done) };
        let wanted = template(&deployment);
        let new = sets.iter().find(|set| template(set) == wanted);
        let (status, again) = status::of(&deployment, new.map(|set| &**set), sets, made, crate::clock::now());
        if status != *at(&deployment, &["status"]) {
            let mut deployment = (*deployment).clone();
            fields(&mut deployment).insert("status".into(), status);
            self.client.update(deployment, Some("status")).await?;
        }
        Ok(Next::at(again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_one_hash_and_another_after_a_collision() {
        let a = json!({"spec": {"containers": [{"image": "a:1"}]}});
        let b = json!({"spec": {"containers": [{"image": "a:2"}]}});
        assert_eq!(hash(&a, 0), hash(&a, 0));
        assert_ne!(hash(&a, 0), hash(&b, 0));
        assert_ne!(hash(&a, 0), hash(&a, 1));
        assert!(hash(&a, 0).bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte)));
        let labelled = json!({"spec": {"template": {"metadata": {"labels": {"app": "x", HASH: "y"}}}}});
        assert_eq!(template(&labelled), json!({"metadata": {"labels": {"app": "x"}}}));
    }
}
