//! So many pods of a template (`apps/v1` ReplicaSet).
//!
//! ```text
//! pods that are its ──► too few: made, in batches that double while they succeed ; too many: the least useful go
//!                  └──► status
//! ```

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::Recorder;
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{PODS, REPLICA_SETS};
use super::owned::{
    claim, concerned, controlled, delete_pods, from_template, is_active, make_pods, ready_since,
    until_available,
};
use crate::object::{at, is_terminating, items, text};
use coracle_api::selector::LabelSelector;
use coracle_api::status::{Reason, StatusError};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Pods that one look makes or deletes, as upstream.
const BURST: usize = 500;

/// The controller.
pub struct ReplicaSets {
    client: Client,
    recorder: Recorder,
}

impl ReplicaSets {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> ReplicaSets {
        ReplicaSets { client, recorder }
    }

    /// Makes or deletes pods; what failed.
    async fn scale(&self, set: &Value, pods: &[Arc<Value>]) -> Result<(), StatusError> {
        let active: Vec<&Arc<Value>> = pods.iter().filter(|pod| is_active(pod)).collect();
        let wanted = usize::try_from(replicas(set)).unwrap_or_default();
        if active.len() < wanted {
            let pod = from_template(at(set, &["spec", "template"]), set);
            let pods = vec![pod; (wanted - active.len()).min(BURST)];
            make_pods(&self.client, &self.recorder, set, pods).await
        } else {
            let victims = surplus(&active, (active.len() - wanted).min(BURST));
            delete_pods(&self.client, &self.recorder, set, &victims).await
        }
    }
}

fn replicas(set: &Value) -> i64 {
    at(set, &["spec", "replicas"]).as_i64().unwrap_or(1)
}

/// The pods that go first (`ActivePodsWithRanks`): without a node, pending, not ready, cheap, crowded, ready late, restarted, new.
pub(super) fn surplus(pods: &[&Arc<Value>], count: usize) -> Vec<Arc<Value>> {
    let mut on: HashMap<&str, usize> = HashMap::new();
    for pod in pods {
        *on.entry(text(pod, &["spec", "nodeName"])).or_default() += 1;
    }
    let mut ranked: Vec<_> = pods
        .iter()
        .map(|pod| {
            let node = text(pod, &["spec", "nodeName"]);
            let phase = match text(pod, &["status", "phase"]) {
                "Pending" | "" => 0,
                "Unknown" => 1,
                _ => 2,
            };
            let cost = text(pod, &["metadata", "annotations", "controller.kubernetes.io/pod-deletion-cost"]);
            let cost: i32 = cost.parse().unwrap_or_default();
            let statuses = items(pod, &["status", "containerStatuses"]).iter();
            let restarts = statuses.filter_map(|status| at(status, &["restartCount"]).as_i64()).max();
            let ready = ready_since(pod);
            let rank = (
                !node.is_empty(),
                phase,
                ready.is_some(),
                cost,
                Reverse(on.get(node).copied().unwrap_or_default()),
                Reverse(ready),
                Reverse(restarts.unwrap_or_default()),
                Reverse(text(pod, &["metadata", "creationTimestamp"]).to_string()),
            );
            (rank, (*pod).clone())
        })
        .collect();
    ranked.sort_by(|(a, _), (b, _)| a.cmp(b));
    ranked.into_iter().take(count).map(|(_, pod)| pod).collect()
}

/// The status, and when a pod becomes available by the clock.
fn status(
    set: &Value,
    pods: &[Arc<Value>],
    failed: Option<&StatusError>,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let least = at(set, &["spec", "minReadySeconds"]).as_i64().unwrap_or_default();
    let template = LabelSelector::from_value(&json!({
        "matchLabels": at(set, &["spec", "template", "metadata", "labels"]),
    }));
    let (mut all, mut labelled, mut ready, mut available) = (0_i64, 0_i64, 0_i64, 0_i64);
    let mut again: Option<Duration> = None;
    for pod in pods.iter().filter(|pod| is_active(pod)) {
        all += 1;
        labelled += i64::from(template.as_ref().is_ok_and(|template| template.matches_object(pod)));
        let Some(since) = ready_since(pod) else { continue };
        ready += 1;
        let left = until_available(since, least, now);
        if left.is_zero() {
            available += 1;
        } else {
            again = Some(again.map_or(left, |again| again.min(left)));
        }
    }
    let mut status = json!({"replicas": all, "observedGeneration": at(set, &["metadata", "generation"])});
    for (key, count) in
        [("fullyLabeledReplicas", labelled), ("readyReplicas", ready), ("availableReplicas", available)]
    {
        // Go leaves a zero out.
        if count > 0 || key == "availableReplicas" && at(set, &["status", key]).is_number() {
            status[key] = count.into();
        }
    }
    let old = items(set, &["status", "conditions"]);
    let mut conditions: Vec<Value> =
        old.iter().filter(|told| text(told, &["type"]) != "ReplicaFailure").cloned().collect();
    if let Some(error) = failed {
        let before = old.iter().find(|told| text(told, &["type"]) == "ReplicaFailure");
        let since = before
            .map_or_else(|| crate::clock::stamp(now), |told| text(told, &["lastTransitionTime"]).to_string());
        let reason = if all < replicas(set) { "FailedCreate" } else { "FailedDelete" };
        conditions.push(json!({
            "type": "ReplicaFailure", "status": "True", "reason": reason, "message": error.to_string(),
            "lastTransitionTime": since,
        }));
    }
    if !conditions.is_empty() {
        status["conditions"] = conditions.into();
    }
    (status, again)
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*REPLICA_SETS) {
            return vec![change.key.clone()];
        }
        if !change.of(*PODS) {
            return Vec::new();
        }
        let free = change.new.is_some();
        change.states(cache).flat_map(|pod| concerned(&pod, free, *REPLICA_SETS, cache)).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(set) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let mut pods = claim(&self.client, &set, *PODS).await?;
        let failed = if is_terminating(&set) { None } else { self.scale(&set, &pods).await.err() };
        // What was made or deleted is in the cache by now.
        pods = controlled(self.client.cache(), &set, *PODS);
        let (status, again) = status(&set, &pods, failed.as_ref(), crate::clock::now());
        if status != *at(&set, &["status"]) {
            let mut set = (*set).clone();
            crate::object::fields(&mut set).insert("status".into(), status);
            match self.client.update(set, Some("status")).await {
                Ok(_) => {}
                Err(error) if error.reason == Reason::NotFound => return Ok(Next::Done),
                Err(error) => return Err(error),
            }
        }
        failed.map_or(Ok(Next::at(again)), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::name;

    #[test]
    fn the_least_useful_pods_go_first() {
        let pod = |name: &str, change: Value| {
            let mut pod = json!({
                "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": name},
                "status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z"},
                ]},
            });
            coracle_api::patch::merge(&mut pod, change);
            Arc::new(pod)
        };
        let check = |first: &str, change: Value| {
            let pods = [pod("other", json!({})), pod(first, change)];
            let pods: Vec<_> = pods.iter().collect();
            let gone = surplus(&pods, 1);
            assert_eq!(name(&gone[0]), first);
        };
        check("unplaced", json!({"spec": {"nodeName": null}}));
        check("pending", json!({"status": {"phase": "Pending"}}));
        check("unready", json!({"status": {"conditions": []}}));
        check(
            "cheap",
            json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}}),
        );
        check(
            "late",
            json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:02:00Z"},
            ]}}),
        );
        check("restarted", json!({"status": {"containerStatuses": [{"restartCount": 2}]}}));
        check("new", json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:30Z"}}));
    }
}
