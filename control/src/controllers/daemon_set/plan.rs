//! Which nodes of a daemon set lack a pod, and which pods are to go. Pure.
//!
//! ```text
//! nodes ─► for it? ─ yes ─► exactly one pod (two for a while with maxSurge) ─► rolling: old ones go as maxUnavailable lets them
//!             └──── no ─► none
//! ```
//! The scheduler binds: a pod's affinity names its node. Ready pods of the old template stay until the rules let them go.

use crate::controllers::disruption::scaled_up;
use crate::controllers::history::REVISION_HASH;
use crate::controllers::owned::{from_template, ready_since, until_available};
use crate::object::{at, child, fields, is_terminating, items, name, namespace, text};
use crate::scheduler::{self, filter};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What pods of daemon sets tolerate, whatever their template says: a board's trouble is no reason to be without them.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// A pod of the set, for any node.
pub fn pod(set: &Value, hash: &str) -> Value {
    let mut pod = from_template(at(set, &["spec", "template"]), set);
    let labels = fields(child(child(&mut pod, "metadata"), "labels"));
    labels.insert(REVISION_HASH.into(), hash.into());
    let generation = text(set, &["metadata", "annotations", "deprecated.daemonset.template.generation"]);
    if !generation.is_empty() {
        labels.insert("pod-template-generation".into(), generation.into());
    }
    let mut tolerations = items(&pod, &["spec", "tolerations"]).to_vec();
    let network = [("node.kubernetes.io/network-unavailable", "NoSchedule")];
    let on_host = at(&pod, &["spec", "hostNetwork"]).as_bool() == Some(true);
    let more: &[(&str, &str)] = if on_host { &network } else { &[] };
    for (key, effect) in TOLERATED.iter().chain(more) {
        let same = |other: &Value| {
            text(other, &["key"]) == *key
                && text(other, &["effect"]) == *effect
                && text(other, &["operator"]) == "Exists"
                && at(other, &["tolerationSeconds"]).is_null()
        };
        if !tolerations.iter().any(same) {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": effect}));
        }
    }
    fields(child(&mut pod, "spec")).insert("tolerations".into(), tolerations.into());
    pod
}

/// The same for a node: what the template asks of nodes has been asked already.
pub fn on_node(mut pod: Value, node: &str) -> Value {
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let required = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
    let affinity = child(child(child(&mut pod, "spec"), "affinity"), "nodeAffinity");
    fields(affinity).insert("requiredDuringSchedulingIgnoredDuringExecution".into(), required);
    pod
}

/// The node that a pod is on, or is for.
pub fn node_of(pod: &Value) -> Option<&str> {
    let bound = text(pod, &["spec", "nodeName"]);
    if !bound.is_empty() {
        return Some(bound);
    }
    let required = ["spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"];
    let terms = items(at(pod, &required), &["nodeSelectorTerms"]).iter();
    let fields = terms.flat_map(|term| items(term, &["matchFields"]));
    let mut named =
        fields.filter(|field| text(field, &["key"]) == "metadata.name" && text(field, &["operator"]) == "In");
    named.find_map(|field| match items(field, &["values"]) {
        [Value::String(node)] => Some(node.as_str()),
        _ => None,
    })
}

/// What a node is for the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod is to be there.
    Wanted,
    /// One that is there may stay.
    Tolerated,
    /// None is to be there.
    Closed,
}

/// Judges nodes for a pod of the set.
pub fn place(pod: &scheduler::Pod, node: &Value) -> Place {
    let node = scheduler::Node::read(node);
    if !(pod.node.is_empty() || *pod.node == *node.name) || !filter::wants(pod, &node) {
        return Place::Closed;
    }
    let untolerated = |evicts: bool| {
        node.taints.iter().any(|taint| {
            let counts =
                if evicts { &*taint.effect == "NoExecute" } else { &*taint.effect != "PreferNoSchedule" };
            counts && !pod.tolerations.iter().any(|toleration| toleration.tolerates(taint))
        })
    };
    match (untolerated(false), untolerated(true)) {
        (false, _) => Place::Wanted,
        (true, false) => Place::Tolerated,
        (true, true) => Place::Closed,
    }
}

/// The set, its nodes by name, and its pods by node.
pub struct View<'a> {
    pub set: &'a Value,
    /// The hash of the template.
    pub hash: &'a str,
    pub nodes: BTreeMap<&'a str, Place>,
    pub pods: BTreeMap<&'a str, Vec<&'a Arc<Value>>>,
    pub now: Timestamp,
}

/// Of a node: the pod of the template as it is, and one of an older template.
type Pair<'a> = (Option<&'a Arc<Value>>, Option<&'a Arc<Value>>);

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub make: Vec<String>,
    pub delete: Vec<Arc<Value>>,
    /// Pods that ended, each with its node: they go once its back-off has passed.
    pub ended: Vec<(String, Arc<Value>)>,
}

impl<'a> View<'a> {
    /// Sorts the pods by nodes, the one that stays first.
    pub fn of(
        set: &'a Value,
        hash: &'a str,
        nodes: BTreeMap<&'a str, Place>,
        pods: &'a [Arc<Value>],
        now: Timestamp,
    ) -> View<'a> {
        let mut by_node: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
        for pod in pods {
            // One that was told to end and has ended keeps nobody from its node.
            if !(is_terminating(pod) && has_ended(pod))
                && let Some(node) = node_of(pod)
            {
                by_node.entry(node).or_default().push(pod);
            }
        }
        for pods in by_node.values_mut() {
            pods.sort_by_key(|pod| {
                let created = text(pod, &["metadata", "creationTimestamp"]);
                (text(pod, &["spec", "nodeName"]).is_empty(), created, name(pod))
            });
        }
        View { set, hash, nodes, pods: by_node, now }
    }

    fn pods_on(&self, node: &str) -> &[&'a Arc<Value>] {
        self.pods.get(node).map_or(&[], Vec::as_slice)
    }

    fn is_new(&self, pod: &Value) -> bool {
        text(pod, &["metadata", "labels", REVISION_HASH]) == self.hash
    }

    fn available_in(&self, pod: &Value) -> Option<Duration> {
        let least = at(self.set, &["spec", "minReadySeconds"]).as_i64().unwrap_or_default();
        ready_since(pod).map(|since| until_available(since, least, self.now))
    }

    fn is_available(&self, pod: &Value) -> bool {
        self.available_in(pod).is_some_and(|left| left.is_zero())
    }

    fn wanted(&self) -> i64 {
        let wanted = self.nodes.values().filter(|place| **place == Place::Wanted).count();
        i64::try_from(wanted).unwrap_or(i64::MAX)
    }

    /// `maxSurge`, `maxUnavailable`; one of both is possible.
    fn bounds(&self) -> (i64, i64) {
        let of = |key: &str| {
            let amount = at(self.set, &["spec", "updateStrategy", "rollingUpdate", key]);
            scaled_up(amount, self.wanted()).unwrap_or_default()
        };
        match (of("maxSurge"), of("maxUnavailable")) {
            (0, 0) => (0, 1),
            bounds => bounds,
        }
    }

    fn rolls(&self) -> bool {
        text(self.set, &["spec", "updateStrategy", "type"]) != "OnDelete"
    }

    /// One pod where one is wanted; then the new template, step by step.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        for (node, place) in &self.nodes {
            self.keep(node, *place, &mut plan);
        }
        // Pods that are for nodes that are gone: they are never placed.
        for (node, pods) in &self.pods {
            if !self.nodes.contains_key(node) {
                let unplaced = pods
                    .iter()
                    .filter(|pod| text(pod, &["spec", "nodeName"]).is_empty() && !is_terminating(pod));
                plan.delete.extend(unplaced.map(|pod| (*pod).clone()));
            }
        }
        if plan.make.is_empty() && plan.delete.is_empty() && self.rolls() {
            match self.bounds() {
                (0, unavailable) => self.replace(unavailable, &mut plan),
                (surge, _) => self.surge(surge, &mut plan),
            }
        }
        plan
    }

    fn keep(&self, node: &str, place: Place, plan: &mut Plan) {
        let pods = self.pods_on(node);
        let staying = || pods.iter().filter(|pod| !is_terminating(pod)).copied();
        if place == Place::Closed {
            plan.delete.extend(staying().cloned());
            return;
        }
        if place == Place::Wanted && pods.is_empty() {
            plan.make.push(node.into());
            return;
        }
        plan.ended.extend(staying().filter(|pod| has_ended(pod)).map(|pod| (node.to_string(), pod.clone())));
        let running: Vec<&Arc<Value>> = staying().filter(|pod| !has_ended(pod)).collect();
        if !(self.rolls() && self.bounds().0 > 0) {
            plan.delete.extend(running.into_iter().skip(1).cloned());
            return;
        }
        // Two, while the new one becomes available beside an old one that is ready.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|pod| self.is_new(pod));
        plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).map(|pod| (*pod).clone()));
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (ready_since(old).is_none() || self.is_available(new))
        {
            plan.delete.push((*old).clone());
        }
    }

    /// The pods of a node that stay. `None` when there are more than two.
    fn pair(&self, pods: &[&'a Arc<Value>]) -> Option<Pair<'a>> {
        let staying = pods.iter().filter(|pod| !is_terminating(pod)).copied();
        let (new, old): (Vec<_>, Vec<_>) = staying.partition(|pod| self.is_new(pod));
        (new.len() <= 1 && old.len() <= 1).then(|| (new.first().copied(), old.first().copied()))
    }

    /// Old pods go while no more than so many nodes are without an available one.
    fn replace(&self, unavailable_max: i64, plan: &mut Plan) {
        let mut unavailable = 0;
        let mut candidates = Vec::new();
        for pods in self.pods.values() {
            match self.pair(pods) {
                Some((Some(new), None)) => unavailable += i64::from(!self.is_available(new)),
                Some((None, Some(old))) if self.is_available(old) => candidates.push(old.clone()),
                Some((None, Some(old))) => {
                    plan.delete.push(old.clone());
                    unavailable += 1;
                }
                _ => unavailable += 1,
            }
        }
        let room = usize::try_from(unavailable_max - unavailable).unwrap_or_default();
        plan.delete.extend(candidates.into_iter().take(room));
    }

    /// New pods come beside old ones that are available, on no more than so many nodes; then the old ones go.
    fn surge(&self, surge_max: i64, plan: &mut Plan) {
        let (mut surging, mut available) = (0, 0);
        let (mut candidates, mut unwanted) = (Vec::new(), Vec::new());
        for (node, pods) in &self.pods {
            let Some((new, old)) = self.pair(pods) else {
                surging += 1;
                continue;
            };
            let serves = old.or(new).is_some_and(|pod| self.is_available(pod));
            available += i64::from(serves);
            let wanted = self.nodes.get(node) == Some(&Place::Wanted);
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => match (self.is_available(old), wanted) {
                    (false, false) => plan.delete.push(old.clone()),
                    (false, true) => plan.make.push((*node).to_string()),
                    (true, false) => unwanted.push(old.clone()),
                    (true, true) => candidates.push((*node).to_string()),
                },
                (Some(new), Some(old)) if self.is_available(new) => plan.delete.push(old.clone()),
                (Some(_), Some(_)) => surging += 1,
            }
        }
        let spare = usize::try_from(available - self.wanted()).unwrap_or_default();
        plan.delete.extend(unwanted.into_iter().take(spare));
        let room = usize::try_from(surge_max - surging).unwrap_or_default();
        plan.make.extend(candidates.into_iter().take(room));
    }

    /// The status, and when a pod becomes available by the clock.
    pub fn status(&self) -> (Value, Option<Duration>) {
        let (mut desired, mut current, mut astray, mut ready, mut available, mut updated) =
            (0, 0, 0, 0, 0, 0);
        let mut again: Option<Duration> = None;
        for (node, place) in &self.nodes {
            let first = self.pods_on(node).first();
            if *place != Place::Wanted {
                astray += i64::from(first.is_some());
                continue;
            }
            desired += 1;
            let Some(pod) = first else { continue };
            current += 1;
            updated += i64::from(self.is_new(pod));
            if let Some(left) = self.available_in(pod) {
                ready += 1;
                if left.is_zero() {
                    available += 1;
                } else {
                    again = Some(again.map_or(left, |again| again.min(left)));
                }
            }
        }
        let mut status = json!({
            "currentNumberScheduled": current,
            "numberMisscheduled": astray,
            "desiredNumberScheduled": desired,
            "numberReady": ready,
            "observedGeneration": at(self.set, &["metadata", "generation"]),
        });
        let unavailable: i64 = desired - available;
        let counts: [(&str, i64); 3] = [
            ("updatedNumberScheduled", updated),
            ("numberAvailable", available),
            ("numberUnavailable", unavailable),
        ];
        for (key, count) in counts {
            // Go leaves a zero out.
            if count > 0 {
                status[key] = count.into();
            }
        }
        let old = at(self.set, &["status"]);
        for key in ["collisionCount", "conditions"] {
            if !at(old, &[key]).is_null() {
                status[key] = at(old, &[key]).clone();
            }
        }
        (status, again)
    }
}

/// Whether a pod has ended by itself.
pub fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Failed" | "Succeeded")
}

/// What is told of a pod that ended: a daemon does not.
pub fn obituary(pod: &Value, node: &str) -> (bool, &'static str, String) {
    let subject = format!("{}/{} on node {node}", namespace(pod), name(pod));
    if text(pod, &["status", "phase"]) == "Failed" {
        (true, "FailedDaemonPod", format!("Found failed daemon pod {subject}, will try to kill it"))
    } else {
        (false, "SucceededDaemonPod", format!("Found succeeded daemon pod {subject}, will try to delete it"))
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
