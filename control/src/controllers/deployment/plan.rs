//! How many pods each replica set of a deployment is to have now. Pure.
//!
//! Rolling, as upstream: the new one up as far as `maxSurge` lets it; the old ones down as far as the available pods stay at
//! `replicas - maxUnavailable`, those that are not available first. Paused, or resized in the middle: in proportion.

use crate::controllers::disruption::scaled_up;
use crate::controllers::key::Key;
use crate::controllers::kinds::REPLICA_SETS;
use crate::object::{at, text};
use serde_json::Value;
use std::sync::Arc;

/// The replica sets of a deployment.
pub struct Sets<'a> {
    /// Of its template, if it is there.
    pub new: Option<&'a Value>,
    /// The others.
    pub old: Vec<&'a Value>,
}

/// `spec.replicas`.
pub fn replicas(object: &Value) -> i64 {
    at(object, &["spec", "replicas"]).as_i64().unwrap_or(1).max(0)
}

fn available(set: &Value) -> i64 {
    at(set, &["status", "availableReplicas"]).as_i64().unwrap_or_default()
}

fn is_rolling(deployment: &Value) -> bool {
    text(deployment, &["spec", "strategy", "type"]) != "Recreate"
}

/// How many more, and how many fewer than asked for there may be (`ResolveFenceposts`).
fn bounds(deployment: &Value) -> (i64, i64) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let total = replicas(deployment);
    let of = |key: &str| at(deployment, &["spec", "strategy", "rollingUpdate", key]);
    let surge = scaled_up(of("maxSurge"), total).unwrap_or_default().max(0);
    let fewer = match of("maxUnavailable") {
        // Rounded down.
        Value::String(percent) => {
            let percent: i64 =
                percent.strip_suffix('%').and_then(|text| text.parse().ok()).unwrap_or_default();
            total.saturating_mul(percent) / 100
        }
        number => number.as_i64().unwrap_or_default(),
    };
    // One of both has to be possible.
    let fewer = if surge == 0 && fewer == 0 { 1 } else { fewer };
    (surge, fewer.clamp(0, total))
}

/// `maxSurge` as a number.
pub fn surge(deployment: &Value) -> i64 {
    bounds(deployment).0
}

/// How many are to be available at any time.
pub fn desired_least(deployment: &Value) -> i64 {
    replicas(deployment) - bounds(deployment).1
}

/// How many a replica set has from its start, with what there is.
pub fn first(deployment: &Value, owned: &[(Key, Arc<Value>)]) -> i64 {
    if !is_rolling(deployment) {
        // It waits for the others to be gone; with none it starts at once.
        let others = owned.iter().filter(|(key, _)| key.is(*REPLICA_SETS));
        let any = others.into_iter().any(|(_, set)| {
            replicas(set) > 0 || at(set, &["status", "replicas"]).as_i64().unwrap_or_default() > 0
        });
        return if any { 0 } else { replicas(deployment) };
    }
    let others = owned.iter().filter(|(key, _)| key.is(*REPLICA_SETS));
    let there: i64 = others.map(|(_, set)| replicas(set)).sum();
    let most = replicas(deployment) + surge(deployment);
    (most - there).clamp(0, replicas(deployment))
}

/// What changes: replica sets with their new numbers. `old_pods` is whether any pod of an old one still runs.
pub fn desired<'a>(
    deployment: &Value,
    sets: &Sets<'a>,
    old_pods: bool,
    paused: bool,
) -> Vec<(&'a Value, i64)> {
    let total = replicas(deployment);
    if paused {
        return proportional(deployment, sets);
    }
    if !is_rolling(deployment) {
        let down: Vec<_> = sets.old.iter().filter(|set| replicas(set) > 0).map(|set| (*set, 0)).collect();
        if !down.is_empty() || old_pods {
            return down;
        }
        return sets.new.map(|new| (new, total)).into_iter().collect();
    }
    let (surge, fewer) = bounds(deployment);
    let mut changes = Vec::new();
    let all: i64 = sets.old.iter().chain(sets.new.iter()).map(|set| replicas(set)).sum();
    let Some(new) = sets.new else { return changes };
    let now = replicas(new);
    let wanted = if now > total { total } else { now + (total + surge - all).clamp(0, total - now) };
    changes.push((new, wanted));
    if wanted > now {
        return changes;
    }
    changes.extend(down(deployment, sets, all - now + wanted, wanted, fewer));
    changes
}

/// The old ones, downwards.
fn down<'a>(deployment: &Value, sets: &Sets<'a>, all: i64, new: i64, fewer: i64) -> Vec<(&'a Value, i64)> {
    let least = replicas(deployment) - fewer;
    let of_new = sets.new.map_or(0, available);
    let mut left: Vec<(&Value, i64)> = sets.old.iter().map(|set| (*set, replicas(set))).collect();
    left.sort_by_key(|(set, _)| text(set, &["metadata", "creationTimestamp"]).to_string());
    // What is not available holds nobody up.
    let mut room = all - least - (new - of_new);
    for (set, count) in &mut left {
        let gone = (*count - available(set)).clamp(0, room.max(0));
        *count -= gone;
        room -= gone;
    }
    let there: i64 = of_new + sets.old.iter().map(|set| available(set)).sum::<i64>();
    let mut room = room.min(there - least);
    for (_, count) in &mut left {
        let gone = (*count).clamp(0, room.max(0));
        *count -= gone;
        room -= gone;
    }
    left.into_iter().filter(|(set, count)| replicas(set) != *count).collect()
}

/// While it is paused, a new size goes to the replica sets in proportion; what is left over to the largest.
fn proportional<'a>(deployment: &Value, sets: &Sets<'a>) -> Vec<(&'a Value, i64)> {
    let total = replicas(deployment);
    let mut active: Vec<&Value> =
        sets.old.iter().copied().chain(sets.new).filter(|set| replicas(set) > 0).collect();
    if active.is_empty() {
        return sets.new.or(sets.old.last().copied()).map(|set| (set, total)).into_iter().collect();
    }
    if let [only] = active[..] {
        return vec![(only, total)];
    }
    let now: i64 = active.iter().map(|set| replicas(set)).sum();
    let most = if total > 0 { total + surge(deployment) } else { 0 };
    // Those that were scaled for this size already stay.
    let said =
        |set: &Value| text(set, &["metadata", "annotations", super::DESIRED]).parse::<i64>().unwrap_or(total);
    if active.iter().all(|set| said(set) == total) {
        return Vec::new();
    }
    active.sort_by_key(|set| std::cmp::Reverse(replicas(set)));
    let mut rest = most - now;
    let mut changes: Vec<(&Value, i64)> = Vec::new();
    for set in &active {
        let share = (replicas(set) * (most - now)) / now.max(1);
        let share = if rest >= 0 { share.clamp(0, rest) } else { share.clamp(rest, 0) };
        rest -= share;
        changes.push((set, replicas(set) + share));
    }
    if let Some((_, count)) = changes.first_mut() {
        *count = (*count + rest).max(0);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[expect(clippy::needless_pass_by_value, reason = "cells of a table")]
    fn deployment(replicas: i64, surge: Value, fewer: Value) -> Value {
        json!({"spec": {"replicas": replicas, "strategy": {
            "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": fewer},
        }}})
    }

    fn set(name: &str, replicas: i64, available: i64) -> Value {
        json!({
            "metadata": {"name": name, "creationTimestamp": name},
            "spec": {"replicas": replicas}, "status": {"availableReplicas": available},
        })
    }

    #[track_caller]
    fn check(deployment: &Value, new: (i64, i64), old: &[(i64, i64)], expected: &[(&str, i64)]) {
        let new = set("new", new.0, new.1);
        let old: Vec<Value> = old
            .iter()
            .enumerate()
            .map(|(index, (count, ready))| set(&format!("old{index}"), *count, *ready))
            .collect();
        let sets = Sets { new: Some(&new), old: old.iter().collect() };
        let changes = desired(deployment, &sets, true, false);
        let changes: Vec<_> = changes
            .iter()
            .filter(|(set, count)| replicas(set) != *count)
            .map(|(set, count)| (text(set, &["metadata", "name"]), *count))
            .collect();
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_rolling_update_step_by_step() {
        let quarter = deployment(4, json!("25%"), json!("25%"));
        check(&quarter, (0, 0), &[(4, 4)], &[("new", 1)]);
        check(&quarter, (1, 0), &[(4, 4)], &[("old0", 3)]);
        check(&quarter, (1, 1), &[(3, 3)], &[("new", 2)]);
        check(&quarter, (2, 1), &[(3, 3)], &[("old0", 2)]);
        check(&quarter, (4, 4), &[(1, 1)], &[("old0", 0)]);
        check(&quarter, (4, 4), &[(0, 0)], &[]);
        // An image that does not exist: the old ones that are needed stay.
        check(&quarter, (2, 0), &[(3, 3)], &[]);
        // Those that are broken go first, wherever they are.
        check(&quarter, (2, 1), &[(2, 2), (1, 0)], &[("old1", 0)]);
        let only_surge = deployment(2, json!(1), json!(0));
        check(&only_surge, (1, 0), &[(2, 2)], &[]);
        check(&only_surge, (1, 1), &[(2, 2)], &[("old0", 1)]);
        let only_fewer = deployment(2, json!(0), json!(1));
        check(&only_fewer, (0, 0), &[(2, 2)], &[("old0", 1)]);
        check(&only_fewer, (0, 0), &[(1, 1)], &[("new", 1)]);
        // Neither would never end.
        check(&deployment(2, json!(0), json!("10%")), (0, 0), &[(2, 2)], &[("old0", 1)]);
        // A new size.
        check(&deployment(6, json!(1), json!(1)), (4, 4), &[], &[("new", 6)]);
        check(&deployment(0, json!(1), json!(1)), (4, 4), &[], &[("new", 0)]);
    }

    #[test]
    fn a_recreation_waits_for_the_old_ones() {
        let deployment = json!({"spec": {"replicas": 3, "strategy": {"type": "Recreate"}}});
        let (new, old) = (set("new", 0, 0), set("old", 3, 3));
        let gone = set("gone", 0, 0);
        let count = |old: &Value, pods: bool| {
            let sets = Sets { new: Some(&new), old: vec![old] };
            let changes = desired(&deployment, &sets, pods, false);
            changes
                .iter()
                .map(|(set, count)| format!("{} {count}", text(set, &["metadata", "name"])))
                .collect::<Vec<_>>()
        };
        assert_eq!(count(&old, true), ["old 0"]);
        assert_eq!(count(&gone, true), [""; 0]);
        assert_eq!(count(&gone, false), ["new 3"]);
    }

    #[test]
    fn a_paused_one_is_resized_in_proportion() {
        let deployment = deployment(20, json!(0), json!(1));
        let (new, old) = (set("new", 2, 2), set("old", 8, 8));
        let with = |mut set: Value| {
            set["metadata"]["annotations"] = json!({super::super::DESIRED: "10"});
            set
        };
        let (new, old) = (with(new), with(old));
        let sets = Sets { new: Some(&new), old: vec![&old] };
        let counts: Vec<i64> =
            desired(&deployment, &sets, true, true).iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [16, 4]);
    }
}
