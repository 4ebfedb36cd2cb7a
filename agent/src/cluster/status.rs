//! A pod's status for the API: ours, where the agent is who says; the API's, where it is not.
//!
//! Pure. Follows the kubelet's status manager: terminal phases stick, start and transition times that were told stay, and
//! conditions of other owners (readiness gates, the scheduler, disruptions) are never touched.

use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use serde_json::{Map, Value, json};

/// Fields of `status` that the agent says, and so may remove.
const OURS: &[&str] = &[
    "phase",
    "reason",
    "message",
    "startTime",
    "podIP",
    "podIPs",
    "hostIP",
    "hostIPs",
    "qosClass",
    "observedGeneration",
    "conditions",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];
/// Conditions that are there only while they hold.
const PASSING: &[&str] = &["PodResizePending", "PodResizeInProgress"];
/// Lists that a strategic merge patch would merge by key: they are replaced.
const REPLACED: &[&str] = &["podIPs", "hostIPs"];

/// What the API is to hold, as far as it is ours to say.
pub(crate) fn desired(api: &PodStatus, ours: &PodStatus) -> PodStatus {
    let mut desired = ours.clone();
    let ended = |status: &PodStatus| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended(api) {
        desired.phase.clone_from(&api.phase);
        desired.reason.clone_from(&api.reason);
        desired.message.clone_from(&api.message);
    }
    if api.start_time.is_some() {
        desired.start_time.clone_from(&api.start_time);
    }
    // Immutable, and the API server has computed it.
    if api.qos_class.is_some() {
        desired.qos_class.clone_from(&api.qos_class);
    }
    // A pod that ended keeps the address that it had.
    if desired.pod_ip.is_none() {
        desired.pod_ip.clone_from(&api.pod_ip);
        desired.pod_ips.clone_from(&api.pod_ips);
    }
    let containers = [&mut desired.init_container_statuses, &mut desired.container_statuses];
    for container in containers.into_iter().flatten().flatten() {
        // Go writes these whether they are empty or not.
        container.state.get_or_insert_default();
        container.last_state.get_or_insert_default();
    }
    let of_api = api.conditions.as_deref().unwrap_or_default();
    for condition in desired.conditions.iter_mut().flatten() {
        if let Some(known) =
            of_api.iter().find(|c| c.type_ == condition.type_ && c.status == condition.status)
        {
            condition.last_transition_time.clone_from(&known.last_transition_time);
            condition.last_probe_time.clone_from(&known.last_probe_time);
        }
    }
    desired
}

/// The patch (strategic merge) that makes the one the other; `None` when there is nothing to say. The uid makes sure that
/// it is this very pod that is patched.
pub(crate) fn patch(uid: &str, api: &PodStatus, desired: &PodStatus) -> Option<Value> {
    let (api_fields, fields) = (object(api), object(desired));
    let mut changed = Map::new();
    for field in OURS.iter().copied().filter(|field| *field != "conditions") {
        match (api_fields.get(field), fields.get(field)) {
            (before, Some(now)) if before != Some(now) => {
                let mut now = now.clone();
                if let (true, Value::Array(items)) = (REPLACED.contains(&field), &mut now) {
                    items.push(json!({"$patch": "replace"}));
                }
                changed.insert(field.into(), now);
            }
            (Some(_), None) => {
                changed.insert(field.into(), Value::Null);
            }
            _ => {}
        }
    }
    let of_api = api.conditions.as_deref().unwrap_or_default();
    let mut news: Vec<Value> = desired
        .conditions
        .iter()
        .flatten()
        .filter_map(|condition| {
            condition_patch(of_api.iter().find(|c| c.type_ == condition.type_), condition)
        })
        .collect();
    let held = |kind: &str| desired.conditions.iter().flatten().any(|c| c.type_ == kind);
    let over = of_api.iter().filter(|c| PASSING.contains(&c.type_.as_str()) && !held(&c.type_));
    news.extend(over.map(|c| json!({"type": c.type_, "$patch": "delete"})));
    if !news.is_empty() {
        changed.insert("conditions".into(), news.into());
    }
    (!changed.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changed}))
}

/// One condition with what it no longer has set to null, since items of the list are merged.
fn condition_patch(before: Option<&PodCondition>, now: &PodCondition) -> Option<Value> {
    let value =
        |condition: &PodCondition| serde_json::to_value(condition).expect("a condition is plain data");
    let mut patch = value(now);
    let Some(before) = before.map(value) else { return Some(patch) };
    if before == patch {
        return None;
    }
    for (key, _) in before.as_object().into_iter().flatten() {
        if patch.get(key).is_none() {
            patch[key.as_str()] = Value::Null;
        }
    }
    Some(patch)
}

fn object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status).expect("a status is plain data") {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "written down where it is called")]
    fn check(api: Value, ours: Value, expected: Value) {
        let status = |value: &Value| serde_json::from_value::<PodStatus>(value.clone()).expect("a status");
        let (api, ours) = (status(&api), status(&ours));
        let desired = desired(&api, &ours);
        let found = patch("u", &api, &desired).map_or(Value::Null, |patch| patch["status"].clone());
        assert_eq!(found, expected);
    }

    fn ready(status: &str, at: &str) -> Value {
        json!({"type": "Ready", "status": status, "lastTransitionTime": at})
    }

    const T1: &str = "2026-01-01T00:00:00Z";
    const T2: &str = "2026-01-01T00:00:09Z";

    #[test]
    fn nothing_is_said_twice() {
        let status = json!({"phase": "Running", "startTime": T1, "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}], "conditions": [ready("True", T1)]});
        check(status.clone(), status.clone(), Value::Null);
        let mut restarted = status.clone();
        restarted["startTime"] = T2.into();
        restarted["conditions"] = json!([ready("True", T2)]);
        check(status, restarted, Value::Null);
        let container = |last: Value| {
            let mut container = json!({"name": "a", "image": "b", "imageID": "c", "ready": true, "restartCount": 0, "state": {}});
            if !last.is_null() {
                container["lastState"] = last;
            }
            json!({"containerStatuses": [container]})
        };
        check(container(json!({})), container(Value::Null), Value::Null);
    }

    #[test]
    fn what_others_say_stays() {
        let gate = json!({"type": "example.com/gate", "status": "True"});
        let api = json!({"phase": "Pending", "qosClass": "Guaranteed", "nominatedNodeName": "n", "conditions": [gate, ready("False", T1)]});
        let ours = json!({"phase": "Running", "qosClass": "BestEffort", "conditions": [ready("True", T2)]});
        check(api, ours, json!({"phase": "Running", "conditions": [ready("True", T2)]}));
    }

    #[test]
    fn what_ended_has_ended_and_keeps_its_address() {
        check(
            json!({"phase": "Failed", "reason": "Evicted", "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}),
            json!({"phase": "Running"}),
            Value::Null,
        );
    }

    #[test]
    fn conditions_of_a_resize_go_with_it() {
        let pending = json!({"type": "PodResizePending", "status": "True"});
        let in_progress = json!({"type": "PodResizeInProgress", "status": "True"});
        let deleted = json!({"type": "PodResizePending", "$patch": "delete"});
        check(
            json!({"conditions": [pending, ready("True", T1)]}),
            json!({"conditions": [in_progress, ready("True", T1)]}),
            json!({"conditions": [in_progress, deleted]}),
        );
        check(json!({"conditions": [pending]}), json!({}), json!({"conditions": [deleted]}));
    }

    #[test]
    fn what_no_longer_holds_is_taken_back() {
        let api = json!({"phase": "Pending", "reason": "Waits", "podIPs": [{"ip": "10.0.0.2"}], "podIP": "10.0.0.2", "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]});
        let ours = json!({"phase": "Running", "podIP": "10.0.0.3", "podIPs": [{"ip": "10.0.0.3"}], "conditions": [ready("True", T1)]});
        let mut condition = ready("True", T1);
        condition["reason"] = Value::Null;
        check(
            api,
            ours,
            json!({
                "phase": "Running", "reason": null, "podIP": "10.0.0.3",
                "podIPs": [{"ip": "10.0.0.3"}, {"$patch": "replace"}], "conditions": [condition],
            }),
        );
    }
}
