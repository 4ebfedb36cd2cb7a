//! What a deployment's status says: counts, `Available`, `Progressing`. Pure.

use super::plan::{desired_least, replicas};
use crate::object::{at, items, name, text};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

fn number(object: &Value, key: &str) -> i64 {
    at(object, &["status", key]).as_i64().unwrap_or_default()
}

/// Whether the rollout has ended well.
pub fn is_complete(deployment: &Value, new: &Value, old: &[Arc<Value>]) -> bool {
    let total = replicas(deployment);
    number(new, "replicas") == total
        && number(new, "availableReplicas") == total
        && old.iter().all(|set| number(set, "replicas") == 0)
        && at(new, &["metadata", "generation"]) == at(new, &["status", "observedGeneration"])
}

/// The status, and when the deadline of its progress is. `sets` are all of its replica sets; `made` is whether the new one has
/// just been made.
pub fn of(
    deployment: &Value,
    new: Option<&Value>,
    sets: &[Arc<Value>],
    made: bool,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let sum = |key: &str| sets.iter().map(|set| number(set, key)).sum::<i64>();
    let (all, ready, available) = (sum("replicas"), sum("readyReplicas"), sum("availableReplicas"));
    let updated = new.map_or(0, |new| number(new, "replicas"));
    let total = replicas(deployment);
    let unavailable = (total.max(sets.iter().map(|set| replicas(set)).sum()) - available).max(0);
    let mut status = json!({"observedGeneration": at(deployment, &["metadata", "generation"])});
    let collisions = at(deployment, &["status", "collisionCount"]);
    if !collisions.is_null() {
        status["collisionCount"] = collisions.clone();
    }
    for (key, count) in [
        ("replicas", all),
        ("updatedReplicas", updated),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("unavailableReplicas", unavailable),
    ] {
        if count != 0 {
            status[key] = count.into();
        }
    }
    let clock = Clock { now: crate::clock::seconds(now), deployment };
    let enough = available >= desired_least(deployment);
    let mut conditions = vec![if enough {
        clock.condition(
            "Available",
            ("True", "MinimumReplicasAvailable"),
            "Deployment has minimum availability.",
            false,
        )
    } else {
        let text = "Deployment does not have minimum availability.";
        clock.condition("Available", ("False", "MinimumReplicasUnavailable"), text, false)
    }];
    let failing = sets.iter().find_map(|set| find(set, "ReplicaFailure"));
    let mut again = None;
    let progressing = progress(deployment, new, sets, made, &status, &clock, &mut again);
    conditions.extend(progressing);
    if let Some(failure) = failing {
        let (reason, message) = (text(failure, &["reason"]), text(failure, &["message"]));
        conditions.push(clock.condition("ReplicaFailure", ("True", reason), message, false));
    }
    status["conditions"] = conditions.into();
    (status, again)
}

struct Clock<'a> {
    now: Timestamp,
    deployment: &'a Value,
}

fn find<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(object, &["status", "conditions"]).iter().find(|told| text(told, &["type"]) == kind)
}

impl Clock<'_> {
    /// A condition; its times move when what it says does, or when there was progress.
    fn condition(&self, kind: &str, (status, reason): (&str, &str), message: &str, progress: bool) -> Value {
        let old = find(self.deployment, kind);
        let now = self.now.to_string();
        let same = |key: &str, value: &str| old.is_some_and(|old| text(old, &[key]) == value);
        let kept = |key: &str| old.map_or(now.clone(), |old| text(old, &[key]).to_string());
        let as_before =
            same("status", status) && same("reason", reason) && same("message", message) && !progress;
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastUpdateTime": if as_before { kept("lastUpdateTime") } else { now.clone() },
            "lastTransitionTime": if same("status", status) { kept("lastTransitionTime") } else { now },
        })
    }
}

fn progress(
    deployment: &Value,
    new: Option<&Value>,
    sets: &[Arc<Value>],
    made: bool,
    status: &Value,
    clock: &Clock<'_>,
    again: &mut Option<Duration>,
) -> Option<Value> {
    let deadline = at(deployment, &["spec", "progressDeadlineSeconds"]).as_i64();
    let deadline = deadline.filter(|seconds| *seconds < i64::from(i32::MAX))?;
    let old = find(deployment, "Progressing");
    let say = |status: &str, reason: &str, message: &str, progress: bool| {
        Some(clock.condition("Progressing", (status, reason), message, progress))
    };
    let reason = old.map_or("", |old| text(old, &["reason"]));
    if at(deployment, &["spec", "paused"]).as_bool() == Some(true) {
        return say("Unknown", "DeploymentPaused", "Deployment is paused", false);
    }
    let Some(new) = new else { return old.cloned() };
    let set = name(new);
    if made {
        return say("True", "NewReplicaSetCreated", &format!("Created new replica set \"{set}\""), true);
    }
    if reason == "DeploymentPaused" {
        return say("Unknown", "DeploymentResumed", "Deployment is resumed", true);
    }
    let others: Vec<Arc<Value>> = sets.iter().filter(|other| name(other) != set).cloned().collect();
    if is_complete(deployment, new, &others) {
        let text = format!("ReplicaSet \"{set}\" has successfully progressed.");
        return say("True", "NewReplicaSetAvailable", &text, false);
    }
    let now_is = |key: &str| at(status, &[key]).as_i64().unwrap_or_default();
    let was = |key: &str| number(deployment, key);
    let old_ones = |all: i64, updated: i64| all - updated;
    let moved = now_is("updatedReplicas") > was("updatedReplicas")
        || old_ones(now_is("replicas"), now_is("updatedReplicas"))
            < old_ones(was("replicas"), was("updatedReplicas"))
        || now_is("readyReplicas") > was("readyReplicas")
        || now_is("availableReplicas") > was("availableReplicas");
    let text_on = format!("ReplicaSet \"{set}\" is progressing.");
    // A rollout that had ended goes on: a new size, or a pod that is lost, is no new rollout.
    if old.is_none() || moved {
        if reason == "NewReplicaSetAvailable" && !moved {
            return old.cloned();
        }
        *again = u64::try_from(deadline).ok().map(Duration::from_secs);
        return say("True", "ReplicaSetUpdated", &text_on, true);
    }
    if reason == "NewReplicaSetAvailable" || reason == "ProgressDeadlineExceeded" {
        return old.cloned();
    }
    let since: Option<Timestamp> = old.and_then(|old| text(old, &["lastUpdateTime"]).parse().ok());
    let left = since.map_or(deadline, |since| deadline - clock.now.duration_since(since).as_secs());
    if left <= 0 {
        let text = format!("ReplicaSet \"{set}\" has timed out progressing.");
        return say("False", "ProgressDeadlineExceeded", &text, false);
    }
    *again = u64::try_from(left).ok().map(Duration::from_secs);
    old.cloned()
}
