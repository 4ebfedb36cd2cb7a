//! What holds volumes and claims that are deleted while somebody uses them, and lets them go then.
//!
//! ```text
//! claim, told to end ─► a pod on a node names it? ─ yes ─► it stays ; no ─► its finalizer goes
//! volume, told to end ─► bound to a claim?        ─ yes ─► it stays ; no ─► its finalizer goes
//! ```
//! The finalizers are set by the registry, when they are made.

use super::cache::{Cache, Change};
use super::client::Client;
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{CLAIMS, PODS, VOLUMES};
use super::owned::without_finalizer;
use crate::object::{is_terminating, items, namespace, text};
use coracle_api::status::StatusError;
use serde_json::Value;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// The controller.
pub struct Protection {
    client: Client,
}

impl Protection {
    /// Over a client.
    pub fn new(client: Client) -> Protection {
        Protection { client }
    }
}

/// The claims that a pod names.
fn claims(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = items(pod, &["spec", "volumes"]).iter();
    volumes
        .map(|volume| text(volume, &["persistentVolumeClaim", "claimName"]))
        .filter(|name| !name.is_empty())
}

/// Whether a pod uses a claim of its namespace. One that has no node does not: no board starts it with a claim that goes.
fn uses(pod: &Value, claim: &str) -> bool {
    !text(pod, &["spec", "nodeName"]).is_empty() && claims(pod).any(|name| name == claim)
}

/// Whether a volume has a claim.
fn is_bound(volume: &Value) -> bool {
    text(volume, &["status", "phase"]) == "Bound"
}

impl Controller for Protection {
    const NAME: &'static str = "volume-protection";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*CLAIMS) || change.of(*VOLUMES) {
            return change.new.is_some().then(|| change.key.clone()).into_iter().collect();
        }
        if !change.of(*PODS) || change.new.is_some() {
            return Vec::new();
        }
        let Some(pod) = cache.object(&change.key, change.latest()) else { return Vec::new() };
        claims(&pod).map(|claim| Key::of(*CLAIMS, namespace(&pod), claim)).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(object) = self.client.cache().get(key).filter(|object| is_terminating(object)) else {
            return Ok(Next::Done);
        };
        let (finalizer, held) = if key.is(*CLAIMS) {
            let pods = self.client.cache().list(*PODS, key.namespace());
            (CLAIM, pods.iter().any(|pod| uses(pod, key.name())))
        } else {
            (VOLUME, is_bound(&object))
        };
        let left = without_finalizer(&object, finalizer);
        if !held && left.len() < items(&object, &["metadata", "finalizers"]).len() {
            self.client.set_finalizers(&object, left).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_used_by_pods_on_nodes() {
        let check = |node: &str, claim: Value, expected: bool| {
            let pod = json!({"spec": {"nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": claim}]}});
            assert_eq!(uses(&pod, "data"), expected, "{pod}");
        };
        check("a", json!({"claimName": "data"}), true);
        check("a", json!({"claimName": "other"}), false);
        check("a", Value::Null, false);
        check("", json!({"claimName": "data"}), false);
        assert!(is_bound(&json!({"status": {"phase": "Bound"}})) && !is_bound(&json!({})));
    }
}
