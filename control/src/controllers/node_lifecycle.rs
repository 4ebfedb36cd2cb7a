//! Which nodes are alive, and what their taints say of it (the node lifecycle controller).
//!
//! ```text
//! lease renewed, or status written ──► alive, for 40 s
//!            └─ silence ──► conditions Unknown ──► unreachable:NoSchedule, :NoExecute ──► (taint eviction, after its tolerations)
//!  it speaks again ──► its own conditions ──► the taints go; what runs there was never touched
//! ```
//! Silence is measured by this process's clock from when it saw the last sign of life: boards' clocks do not matter, and a new
//! leader gives every node its full time. When all nodes are silent it is more likely us: nothing is evicted then, as upstream
//! (`FullDisruption`), and likewise when most of a small cluster is.
//!
//! Left out on purpose: upstream's rate of one node in ten seconds; tolerations are what gives time.

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{LEASES, NODES, PODS};
use crate::object::{self, at, fields, items, name, text};
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Where nodes renew their leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The share of silent nodes from which a small cluster is not believed, as upstream.
const PARTIAL: f64 = 0.55;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Condition, the status that is bad, and the taint that says so.
const CONDITION_TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that only the node itself can tell.
const TOLD_BY_NODE: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The controller.
pub struct NodeLifecycle {
    client: Client,
    recorder: Recorder,
    grace: Duration,
    /// Per node: its last sign of life, and when it was seen. Forgotten with the node.
    signs: Mutex<HashMap<String, (String, Instant)>>,
    /// Every node, and whether it is ready.
    readiness: Mutex<HashMap<String, bool>>,
}

impl NodeLifecycle {
    /// With the silence after which a node is not believed to live.
    pub fn new(client: Client, recorder: Recorder, grace: Duration) -> NodeLifecycle {
        NodeLifecycle { client, recorder, grace, signs: Mutex::default(), readiness: Mutex::default() }
    }

    /// How long the node has been silent.
    fn silence(&self, node: &Value) -> Duration {
        let lease = self.client.cache().get(&Key::of(*LEASES, LEASE_NAMESPACE, name(node)));
        let renewed = lease.as_ref().map_or("", |lease| text(lease, &["spec", "renewTime"]));
        let beat = text(ready(node), &["lastHeartbeatTime"]);
        let sign = format!("{} {renewed} {beat}", object::uid(node));
        let now = Instant::now();
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = signs.entry(name(node).to_string()).or_insert_with(|| (sign.clone(), now));
        if known.0 != sign {
            *known = (sign, now);
        }
        now.duration_since(known.1)
    }

    fn readiness(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.readiness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether evictions are believed in at all.
    fn trusts(&self) -> bool {
        let readiness = self.readiness();
        trusts(readiness.len(), readiness.values().filter(|ready| !**ready).count())
    }

    /// Pods of a silent node are not ready, whatever they said last.
    async fn mark_pods(&self, node: &str) {
        for pod in self.client.cache().pods_on(node) {
            let Some(condition) = condition(&pod, "Ready").filter(|ready| text(ready, &["status"]) == "True")
            else {
                continue;
            };
            let mut condition = condition.clone();
            let set = fields(&mut condition);
            set.insert("status".into(), "False".into());
            set.insert("lastTransitionTime".into(), crate::registry::timestamp().into());
            let key = Key::of(*PODS, object::namespace(&pod), name(&pod));
            let patch =
                json!({"metadata": {"uid": object::uid(&pod)}, "status": {"conditions": [condition]}});
            match self.client.merge_lists(&key, Some("status"), patch).await {
                Ok(_) => self.recorder.say(&pod, Kind::Warning, "NodeNotReady", "Node is not ready"),
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => tracing::warn!(%key, %error, "a pod of a silent node still counts as ready"),
            }
        }
    }
}

/// Whether so many silent nodes are believed.
fn trusts(nodes: usize, silent: usize) -> bool {
    const SMALL: usize = 50;
    let share = f64::from(u32::try_from(silent).unwrap_or(u32::MAX))
        / f64::from(u32::try_from(nodes.max(1)).unwrap_or(u32::MAX));
    let all = silent > 0 && silent == nodes;
    let most = silent > 2 && share >= PARTIAL && nodes <= SMALL;
    !all && !most
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, &["status", "conditions"]).iter().find(|condition| text(condition, &["type"]) == kind)
}

fn ready(node: &Value) -> &Value {
    condition(node, "Ready").unwrap_or(&Value::Null)
}

/// The conditions of a node that is silent.
fn unknown(node: &Value, now: &str) -> Vec<Value> {
    let changed = TOLD_BY_NODE.iter().filter_map(|kind| match condition(node, kind) {
        Some(told) if text(told, &["status"]) == "Unknown" => None,
        Some(told) => {
            let mut condition = told.clone();
            let set = fields(&mut condition);
            set.insert("status".into(), "Unknown".into());
            set.insert("reason".into(), "NodeStatusUnknown".into());
            set.insert("message".into(), "Kubelet stopped posting node status.".into());
            set.insert("lastTransitionTime".into(), now.into());
            Some(condition)
        }
        None => Some(json!({
            "type": kind,
            "status": "Unknown",
            "reason": "NodeStatusNeverUpdated",
            "message": "Kubelet never posted node status.",
            "lastHeartbeatTime": at(node, &["metadata", "creationTimestamp"]),
            "lastTransitionTime": now,
        })),
    });
    changed.collect()
}

/// The taints that a node is to have: those that are others', and those that its conditions ask for.
fn taints(node: &Value, evicts: bool, now: &str) -> Vec<Value> {
    let has = |kind: &str, status: &str| {
        condition(node, kind).is_some_and(|told| text(told, &["status"]) == status)
    };
    let cordoned = at(node, &["spec", "unschedulable"]).as_bool() == Some(true);
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in CONDITION_TAINTS {
        if has(kind, status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    // A node that has never said anything is not ready.
    if condition(node, "Ready").is_none() {
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if cordoned {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if evicts {
        for (status, key) in [("False", NOT_READY), ("Unknown", UNREACHABLE)] {
            if has("Ready", status) {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    let ours = |taint: &Value| {
        let key = text(taint, &["key"]);
        let executes = text(taint, &["effect"]) == "NoExecute";
        let known = CONDITION_TAINTS.iter().any(|(_, _, ours)| *ours == key) || key == UNSCHEDULABLE;
        known && (!executes || key == NOT_READY || key == UNREACHABLE)
    };
    let old = items(node, &["spec", "taints"]);
    let is = |taint: &Value, (key, effect): &(&str, &str)| {
        text(taint, &["key"]) == *key && text(taint, &["effect"]) == *effect
    };
    let mut taints: Vec<Value> = old
        .iter()
        .filter(|taint| !ours(taint) || wanted.iter().any(|wanted| is(taint, wanted)))
        .cloned()
        .collect();
    for wanted in wanted.iter().filter(|wanted| !old.iter().any(|taint| is(taint, wanted))) {
        taints.push(json!({"key": wanted.0, "effect": wanted.1, "timeAdded": now}));
    }
    taints
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*NODES) {
            let mut keys = vec![change.key.clone()];
            let before = self.trusts();
            let name = change.key.name().to_string();
            match change.new.as_ref().and_then(|entry| cache.object(&change.key, entry)) {
                Some(node) => self.readiness().insert(name, text(ready(&node), &["status"]) == "True"),
                None => self.readiness().remove(&name),
            };
            // How many are silent decides for all.
            if before != self.trusts() {
                keys.extend(cache.keys(*NODES, ""));
            }
            return keys;
        }
        if change.of(*LEASES) && change.key.namespace() == LEASE_NAMESPACE {
            return vec![Key::of(*NODES, "", change.key.name())];
        }
        Vec::new()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(node) = self.client.cache().get(key) else {
            self.signs.lock().unwrap_or_else(PoisonError::into_inner).remove(key.name());
            return Ok(Next::Done);
        };
        let silence = self.silence(&node);
        let mut node = node;
        if silence >= self.grace {
            let conditions = unknown(&node, &crate::registry::timestamp());
            if !conditions.is_empty() {
                let was_ready = text(ready(&node), &["status"]) == "True";
                let version = text(&node, &["metadata", "resourceVersion"]);
                let patch = json!({
                    "metadata": {"resourceVersion": version}, "status": {"conditions": conditions},
                });
                let written = self.client.merge_lists(key, Some("status"), patch).await?;
                tracing::info!(node = key.name(), ?silence, "a node is silent");
                if was_ready {
                    let text = format!("Node {} status is now: NodeNotReady", key.name());
                    self.recorder.say(&written, Kind::Normal, "NodeNotReady", text);
                }
                node = written.into();
            }
        }
        let wanted = taints(&node, self.trusts(), &crate::registry::timestamp());
        if wanted != items(&node, &["spec", "taints"]) {
            let version = text(&node, &["metadata", "resourceVersion"]);
            let wanted = if wanted.is_empty() { Value::Null } else { wanted.into() };
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": wanted}});
            self.client.merge(key, None, patch).await?;
        }
        if text(ready(&node), &["status"]) != "True" {
            self.mark_pods(key.name()).await;
        }
        Ok(Next::at(self.grace.checked_sub(silence).filter(|left| !left.is_zero())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(conditions: &[(&str, &str)], taints: &[&str], cordoned: bool) -> Value {
        let conditions: Vec<Value> =
            conditions.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
        let taints: Vec<Value> = taints
            .iter()
            .map(|taint| {
                let (key, effect) = taint.split_once(':').expect("key:effect");
                json!({"key": key, "effect": effect})
            })
            .collect();
        json!({"spec": {"taints": taints, "unschedulable": cordoned}, "status": {"conditions": conditions}})
    }

    #[track_caller]
    fn check(node: &Value, evicts: bool, expected: &[&str]) {
        let found: Vec<String> = taints(node, evicts, "now")
            .iter()
            .map(|taint| {
                let key = text(taint, &["key"]).trim_start_matches("node.kubernetes.io/");
                format!("{key}:{}", text(taint, &["effect"]))
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn taints_say_what_the_conditions_say() {
        let ready = [("Ready", "True"), ("MemoryPressure", "False")];
        check(&node(&ready, &[], false), true, &[]);
        check(&node(&[], &[], false), true, &["not-ready:NoSchedule"]);
        check(
            &node(&[("Ready", "False")], &[], false),
            true,
            &["not-ready:NoSchedule", "not-ready:NoExecute"],
        );
        let unknown = node(&[("Ready", "Unknown")], &["gpu:NoExecute"], false);
        check(&unknown, true, &["gpu:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"]);
        check(&unknown, false, &["gpu:NoExecute", "unreachable:NoSchedule"]);
        check(&node(&ready, &[], true), true, &["unschedulable:NoSchedule"]);
        check(
            &node(&[("Ready", "True"), ("DiskPressure", "True")], &[], false),
            true,
            &["disk-pressure:NoSchedule"],
        );
        // Back, and uncordoned: only what is somebody else's stays.
        let back = node(
            &ready,
            &[
                "node.kubernetes.io/unreachable:NoSchedule",
                "node.kubernetes.io/unreachable:NoExecute",
                "node.kubernetes.io/unschedulable:NoSchedule",
                "gpu:NoSchedule",
            ],
            false,
        );
        check(&back, true, &["gpu:NoSchedule"]);
    }

    #[test]
    fn a_silent_node_is_unknown() {
        let told = node(&[("Ready", "True"), ("DiskPressure", "False"), ("Mine", "True")], &[], false);
        let conditions: Vec<String> = unknown(&told, "now")
            .iter()
            .map(|told| {
                format!("{} {} {}", text(told, &["type"]), text(told, &["status"]), text(told, &["reason"]))
            })
            .collect();
        assert_eq!(
            conditions,
            [
                "Ready Unknown NodeStatusUnknown",
                "MemoryPressure Unknown NodeStatusNeverUpdated",
                "DiskPressure Unknown NodeStatusUnknown",
                "PIDPressure Unknown NodeStatusNeverUpdated",
            ]
        );
    }

    #[test]
    fn when_nobody_is_heard_nobody_is_condemned() {
        let check = |nodes, silent, expected| assert_eq!(trusts(nodes, silent), expected, "{silent}/{nodes}");
        check(0, 0, true);
        check(1, 0, true);
        check(1, 1, false);
        check(3, 1, true);
        check(3, 2, true);
        check(3, 3, false);
        check(5, 3, false);
        check(10, 3, true);
        check(100, 60, true);
    }
}
