//! Which member of a stateful set is made next, and which one goes. Pure.
//!
//! ```text
//! members, by ordinal: missing ─► made ; ended ─► replaced ; in order: each waits for the one before it to be available
//! beyond the last one: the highest goes first ; then the template's revision, from the highest down to the partition
//! ```
//! A name has one pod: nothing is made while the last one of that name is still there.

use crate::controllers::history::REVISION_HASH;
use crate::controllers::owned::{from_template, ready_since, until_available};
use crate::object::{at, child, fields, is_terminating, items, name, text};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Pods that one look makes, as upstream.
const BURST: usize = 500;
/// The label with a pod's own name.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with its ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in the name of a member of the set.
pub fn ordinal(set: &Value, pod: &Value) -> Option<i64> {
    let digits = name(pod).strip_prefix(name(set))?.strip_prefix('-')?;
    let canonical =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    // As upstream: 32 bits.
    canonical.then(|| digits.parse::<i32>().ok().map(i64::from)).flatten()
}

/// A revision: its name, and its template.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    pub name: String,
    pub template: Value,
}

/// The set with its members.
pub struct View<'a> {
    pub set: &'a Value,
    /// What members below the partition have.
    pub current: &'a Revision,
    /// What the set asks for.
    pub update: &'a Revision,
    /// By ordinal.
    pub pods: BTreeMap<i64, &'a Arc<Value>>,
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Ordinals of members that are made.
    pub make: Vec<i64>,
    pub delete: Vec<Arc<Value>>,
    /// Members that ended: they go once their back-off has passed.
    pub ended: Vec<Arc<Value>>,
    /// Members whose labels do not say who they are: adopted ones.
    pub unnamed: Vec<Arc<Value>>,
    /// Somebody becomes available by the clock then.
    pub again: Option<Duration>,
}

fn is_ready(pod: &Value) -> bool {
    text(pod, &["status", "phase"]) == "Running" && ready_since(pod).is_some()
}

fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, &["status", "phase"]), "Failed" | "Succeeded")
}

fn revision_of(pod: &Value) -> &str {
    text(pod, &["metadata", "labels", REVISION_HASH])
}

impl<'a> View<'a> {
    fn start(&self) -> i64 {
        at(self.set, &["spec", "ordinals", "start"]).as_i64().unwrap_or_default()
    }

    fn replicas(&self) -> i64 {
        at(self.set, &["spec", "replicas"]).as_i64().unwrap_or(1).max(0)
    }

    /// Whether an ordinal is one of those that are wanted.
    pub fn is_wanted(&self, ordinal: i64) -> bool {
        (self.start()..self.start().saturating_add(self.replicas())).contains(&ordinal)
    }

    fn in_order(&self) -> bool {
        text(self.set, &["spec", "podManagementPolicy"]) != "Parallel"
    }

    fn rolls(&self) -> bool {
        text(self.set, &["spec", "updateStrategy", "type"]) != "OnDelete"
    }

    /// The first ordinal that has the new revision.
    fn first_updated(&self) -> i64 {
        let partition = at(self.set, &["spec", "updateStrategy", "rollingUpdate", "partition"]);
        self.start().saturating_add(partition.as_i64().unwrap_or_default())
    }

    /// How many members may be without service for an update; never none.
    fn unavailable_max(&self) -> i64 {
        let most = match at(self.set, &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"]) {
            Value::String(percent) => {
                let percent: i64 = percent.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or(0);
                self.replicas().saturating_mul(percent) / 100
            }
            number => number.as_i64().unwrap_or(1),
        };
        most.max(1)
    }

    /// How long until a member is available; `None` when only an event can tell.
    fn available_in(&self, pod: &Value) -> Option<Duration> {
        let least = at(self.set, &["spec", "minReadySeconds"]).as_i64().unwrap_or_default();
        let since = ready_since(pod).filter(|_| is_ready(pod))?;
        Some(until_available(since, least, self.now))
    }

    fn is_available(&self, pod: &Value) -> bool {
        !is_terminating(pod) && self.available_in(pod).is_some_and(|left| left.is_zero())
    }

    /// What to do next.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        let waits = self.members(&mut plan);
        plan.again =
            self.pods.values().filter_map(|pod| self.available_in(pod)).filter(|left| !left.is_zero()).min();
        if waits || self.surplus(&mut plan) || !self.rolls() || !plan.make.is_empty() {
            return plan;
        }
        self.update(&mut plan);
        plan
    }

    /// Those that are wanted; whether all else waits for them.
    fn members(&self, plan: &mut Plan) -> bool {
        let in_order = self.in_order();
        let end = self.start().saturating_add(self.replicas());
        for ordinal in self.start()..end {
            let Some(pod) = self.pods.get(&ordinal).copied() else {
                plan.make.push(ordinal);
                if in_order || plan.make.len() >= BURST {
                    return true;
                }
                continue;
            };
            if text(pod, &["metadata", "labels", POD_NAME]) != name(pod) && !is_terminating(pod) {
                plan.unnamed.push(pod.clone());
            }
            if has_ended(pod) {
                if !is_terminating(pod) {
                    plan.ended.push(pod.clone());
                }
            } else if self.is_available(pod) {
                continue;
            }
            if in_order {
                return true;
            }
        }
        false
    }

    /// Those beyond, the highest first; whether the update waits for them.
    fn surplus(&self, plan: &mut Plan) -> bool {
        let in_order = self.in_order();
        let beyond: Vec<_> = self.pods.iter().filter(|(ordinal, _)| !self.is_wanted(**ordinal)).collect();
        // The first that does not serve may go before those above it do.
        let broken = beyond.iter().find(|(_, pod)| !self.is_available(pod)).map(|(ordinal, _)| **ordinal);
        for (ordinal, pod) in beyond.iter().rev() {
            if is_terminating(pod) {
                if in_order {
                    return true;
                }
                continue;
            }
            if in_order && !self.is_available(pod) && broken != Some(**ordinal) {
                return true;
            }
            plan.delete.push((**pod).clone());
            if in_order {
                return true;
            }
        }
        false
    }

    /// The new revision, from the highest ordinal down.
    fn update(&self, plan: &mut Plan) {
        let wanted = || self.pods.iter().filter(|(ordinal, _)| self.is_wanted(**ordinal));
        let serving = wanted().filter(|(_, pod)| self.is_available(pod)).count();
        let unavailable = self.replicas() - i64::try_from(serving).unwrap_or(i64::MAX);
        let mut room = self.unavailable_max() - unavailable;
        for (ordinal, pod) in wanted().rev() {
            let is_old = revision_of(pod) != self.update.name && !is_terminating(pod) && !has_ended(pod);
            if *ordinal < self.first_updated() || !is_old {
                continue;
            }
            // One that does not serve is no loss.
            if !self.is_available(pod) {
                plan.delete.push((*pod).clone());
            } else if room > 0 {
                room -= 1;
                plan.delete.push((*pod).clone());
            }
        }
    }

    /// The revision that a new member has.
    fn revision(&self, ordinal: i64) -> &'a Revision {
        if self.rolls() && ordinal < self.first_updated() { self.current } else { self.update }
    }

    /// A new member.
    pub fn pod(&self, ordinal: i64) -> Value {
        let revision = self.revision(ordinal);
        let mut pod = from_template(&revision.template, self.set);
        let own = format!("{}-{ordinal}", name(self.set));
        let metadata = child(&mut pod, "metadata");
        fields(metadata).insert("name".into(), own.as_str().into());
        let labels = fields(child(metadata, "labels"));
        labels.insert(POD_NAME.into(), own.as_str().into());
        labels.insert(POD_INDEX.into(), ordinal.to_string().into());
        labels.insert(REVISION_HASH.into(), revision.name.as_str().into());
        let spec = child(&mut pod, "spec");
        fields(spec).insert("hostname".into(), own.into());
        let service = text(self.set, &["spec", "serviceName"]);
        if !service.is_empty() {
            fields(spec).insert("subdomain".into(), service.into());
        }
        let templates = items(self.set, &["spec", "volumeClaimTemplates"]);
        let mut volumes: Vec<Value> = templates
            .iter()
            .map(|template| {
                let claim = super::claims::claim_name(self.set, template, ordinal);
                json!({"name": name(template), "persistentVolumeClaim": {"claimName": claim}})
            })
            .collect();
        // A claim wins over a volume of the same name.
        let others = items(spec, &["volumes"]).iter();
        let is_claim = |volume: &&Value| templates.iter().any(|claim| name(claim) == text(volume, &["name"]));
        volumes.extend(others.filter(|volume| !is_claim(volume)).cloned());
        if !volumes.is_empty() {
            fields(spec).insert("volumes".into(), volumes.into());
        }
        pod
    }

    /// The status.
    pub fn status(&self, collisions: i64) -> Value {
        let pods = || self.pods.values().copied();
        let count = |is: &dyn Fn(&Value) -> bool| pods().filter(|pod| is(pod)).count();
        let of =
            |revision: &Revision| count(&|pod| !is_terminating(pod) && revision_of(pod) == revision.name);
        let (all, ready, updated) = (pods().count(), count(&is_ready), of(self.update));
        let available = count(&|pod| self.available_in(pod).is_some_and(|left| left.is_zero()));
        let replicas = usize::try_from(self.replicas()).unwrap_or(usize::MAX);
        let complete = self.rolls() && [all, ready, updated].iter().all(|count| *count == replicas);
        let (current, revision) =
            if complete { (updated, self.update) } else { (of(self.current), self.current) };
        let mut status = json!({
            "observedGeneration": at(self.set, &["metadata", "generation"]),
            "replicas": all,
            "availableReplicas": available,
            "currentRevision": revision.name,
            "updateRevision": self.update.name,
            "collisionCount": collisions,
        });
        for (key, count) in
            [("readyReplicas", ready), ("currentReplicas", current), ("updatedReplicas", updated)]
        {
            // Go leaves a zero out.
            if count > 0 {
                status[key] = count.into();
            }
        }
        let conditions = at(self.set, &["status", "conditions"]);
        if !conditions.is_null() {
            status["conditions"] = conditions.clone();
        }
        status
    }
}

/// The labels that say who a member is.
pub fn identity(set: &Value, pod: &Value) -> Value {
    let ordinal = ordinal(set, pod).map(|ordinal| ordinal.to_string());
    json!({POD_NAME: name(pod), POD_INDEX: ordinal})
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
