//! Pods that nobody else removes (`podgc`): of nodes that are gone, on their way out without a node, and ended ones beyond a bound.

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{NODES, PODS};
use crate::object::{self, is_terminating, text};
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A node that is missing may only be late: it registers after its pods are listed.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods that are kept, as upstream's `--terminated-pod-gc-threshold`.
const ENDED_MAX: usize = 12_500;

/// The controller. Its keys are pods, and nodes for what was on them.
pub struct PodGarbage {
    client: Client,
    /// Nodes that pods name and that are not there; forgotten when they come, or their pods are gone.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodGarbage {
    /// Over a client.
    pub fn new(client: Client) -> PodGarbage {
        PodGarbage { client, missing: Mutex::default() }
    }

    fn missing_for(&self, node: &str) -> Duration {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.entry(node.to_string()).or_insert_with(Instant::now).elapsed()
    }

    async fn node(&self, key: &Key) -> Result<Next, StatusError> {
        let pods = self.client.cache().pods_on(key.name());
        if self.client.cache().get(key).is_some() || pods.is_empty() {
            self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(key.name());
            return Ok(Next::Done);
        }
        let missing = self.missing_for(key.name());
        if let Some(left) = QUARANTINE.checked_sub(missing).filter(|left| !left.is_zero()) {
            return Ok(Next::After(left));
        }
        match self.client.registry().get(&key.target()).await {
            Ok(_) => return Ok(Next::Done),
            Err(error) if error.reason == Reason::NotFound => {}
            Err(error) => return Err(error),
        }
        for pod in pods {
            self.remove(&pod, "PodGC: node no longer exists").await?;
        }
        Ok(Next::Done)
    }

    /// Ends a pod that nobody runs, and deletes it.
    async fn remove(&self, pod: &Value, why: &str) -> Result<(), StatusError> {
        let key = Key::of(*PODS, object::namespace(pod), object::name(pod));
        if !ended(pod) {
            let condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": why,
                "lastTransitionTime": crate::registry::timestamp(),
            });
            let patch = json!({
                "metadata": {"uid": object::uid(pod)}, "status": {"phase": "Failed", "conditions": [condition]},
            });
            self.client.merge_lists(&key, Some("status"), patch).await?;
        }
        self.client.delete(&key, object::uid(pod), Delete { grace: Some(0), propagation: None }).await
    }
}

fn ended(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed")
}

impl Controller for PodGarbage {
    const NAME: &'static str = "pod-garbage-collector";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*NODES) {
            let same = change.old.is_some() && change.new.is_some();
            return if same { Vec::new() } else { vec![change.key.clone()] };
        }
        if !change.of(*PODS) {
            return Vec::new();
        }
        let Some(pod) = change.new.as_ref().and_then(|entry| cache.object(&change.key, entry)) else {
            return Vec::new();
        };
        let node = text(&pod, &["spec", "nodeName"]);
        if node.is_empty() || ended(&pod) {
            return vec![change.key.clone()];
        }
        let node = Key::of(*NODES, "", node);
        if cache.get(&node).is_none() { vec![node] } else { Vec::new() }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        if key.is(*NODES) {
            return self.node(key).await;
        }
        let Some(pod) = self.client.cache().get(key) else { return Ok(Next::Done) };
        if is_terminating(&pod) && text(&pod, &["spec", "nodeName"]).is_empty() {
            self.remove(&pod, "PodGC: unscheduled pod is being terminated").await?;
        } else if ended(&pod) {
            let pods = self.client.cache().list(*PODS, "");
            if pods.len() > ENDED_MAX {
                for pod in surplus(pods.iter().map(|pod| &**pod), ENDED_MAX) {
                    self.remove(pod, "").await?;
                }
            }
        }
        Ok(Next::Done)
    }
}

/// The oldest ended pods beyond a bound.
fn surplus<'a>(pods: impl Iterator<Item = &'a Value>, most: usize) -> Vec<&'a Value> {
    let mut ended: Vec<&Value> = pods.filter(|pod| ended(pod)).collect();
    ended.sort_by_key(|pod| text(pod, &["metadata", "creationTimestamp"]));
    let surplus = ended.len().saturating_sub(most);
    ended.truncate(surplus);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_those_that_ended_go() {
        let pod = |name: &str, phase: &str, day: u8| {
            let created = format!("2026-01-{day:02}T00:00:00Z");
            json!({"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": phase}})
        };
        let pods = [
            pod("new", "Failed", 9),
            pod("old", "Succeeded", 1),
            pod("older-but-runs", "Running", 0),
            pod("middle", "Failed", 5),
        ];
        let check = |most: usize, expected: &[&str]| {
            let names: Vec<&str> = surplus(pods.iter(), most).into_iter().map(object::name).collect();
            assert_eq!(names, expected);
        };
        check(3, &[]);
        check(2, &["old"]);
        check(0, &["old", "middle", "new"]);
    }
}
