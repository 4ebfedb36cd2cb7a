//! Scheduling gates: a pod that has one is not placed. They are there from the start, and can only be taken away.
//!
//! While it waits, where it may go can be narrowed: labels of nodes are added, and so are expressions of node affinity.

use crate::object::{at, child, fields, items, remove, text};
use coracle_api::field::{Errors, Path};
use coracle_api::names::qualified_name;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Upstream's reason.
const REASON: &str = "SchedulingGated";
const BLOCKED: &str = "Scheduling is blocked due to non-empty scheduling gates";

fn gates(pod: &Value) -> &[Value] {
    items(pod, &["spec", "schedulingGates"])
}

/// Whether it waits for somebody to let it go.
pub(crate) fn is_gated(pod: &Value) -> bool {
    !gates(pod).is_empty()
}

/// Says in the status of a new pod that it is not placed.
pub(super) fn prepare(pod: &mut Value) {
    if !is_gated(pod) {
        return;
    }
    let condition = json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": REASON,
        "message": BLOCKED,
        "lastProbeTime": null,
        "lastTransitionTime": crate::registry::timestamp(),
    });
    fields(child(pod, "status")).insert("conditions".into(), json!([condition]));
}

/// Of a pod or a template.
pub(super) fn validate(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, gate) in items(spec, &["schedulingGates"]).iter().enumerate() {
        let path = path.child("schedulingGates").index(index);
        let name = text(gate, &["name"]);
        for why in qualified_name(name) {
            errors.invalid(&path, name, why);
        }
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
    }
}

/// Of a new pod.
pub(super) fn validate_new(pod: &Value, errors: &mut Errors) {
    if is_gated(pod) && !text(pod, &["spec", "nodeName"]).is_empty() {
        let path = Path::new("spec").child("nodeName");
        errors.forbidden(&path, "cannot be set until all schedulingGates have been cleared");
    }
}

/// What may change of them, and of where a pod that had some may go.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let before: BTreeSet<&str> = gates(old).iter().map(|gate| text(gate, &["name"])).collect();
    for (index, gate) in gates(new).iter().enumerate() {
        let name = text(gate, &["name"]);
        if !before.contains(name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&path.child("schedulingGates").index(index).child("name"), why);
        }
    }
    if !is_gated(old) {
        return;
    }
    let selector = |pod| at(pod, &["spec", "nodeSelector"]);
    let mut had = selector(old).as_object().into_iter().flatten();
    if had.any(|(key, value)| selector(new).get(key) != Some(value)) {
        let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid(&path.child("nodeSelector"), selector(new).clone(), why);
    }
    validate_affinity(new, old, &path, errors);
}

fn validate_affinity(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = |pod| items(pod, &["spec", "affinity", "nodeAffinity", REQUIRED, "nodeSelectorTerms"]);
    let (had, has): (&[Value], &[Value]) = (terms(old), terms(new));
    if had.is_empty() {
        return;
    }
    let path = path.child("affinity").child("nodeAffinity").child(REQUIRED).child("nodeSelectorTerms");
    if had.len() != has.len() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid(&path, has.to_vec(), why);
        return;
    }
    for (index, (had, has)) in had.iter().zip(has).enumerate() {
        let begins = |list: &str| items(has, &[list]).starts_with(items(had, &[list]));
        if !begins("matchExpressions") || !begins("matchFields") {
            let why = "only additions are allowed (no mutations or deletions)";
            errors.invalid(&path.index(index), has.clone(), why);
        }
    }
}

/// Takes out of a spec what [`validate_update`] has judged.
pub(super) fn set_aside(spec: &mut Value, was_gated: bool) {
    remove(spec, "schedulingGates");
    if !was_gated {
        return;
    }
    remove(spec, "nodeSelector");
    if let Some(affinity) = spec.get_mut("affinity") {
        remove(affinity, "nodeAffinity");
        if affinity.as_object().is_none_or(serde_json::Map::is_empty) {
            remove(spec, "affinity");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(errors: Errors) -> String {
        errors.into_result().map_or_else(|errors| errors.to_string(), |()| String::new())
    }

    #[test]
    fn gates_have_names_and_keep_a_pod_from_nodes() {
        let check = |spec: Value, expected: &[&str]| {
            let mut errors = Errors::default();
            validate(&spec, &Path::new("spec"), &mut errors);
            validate_new(&json!({"spec": spec}), &mut errors);
            let found = problems(errors);
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
            assert!(expected.iter().all(|part| found.contains(part)), "{found}");
        };
        let gates = |names: &[&str]| -> Value { names.iter().map(|name| json!({"name": name})).collect() };
        check(json!({"schedulingGates": gates(&["example.test/a", "b"])}), &[]);
        check(
            json!({"schedulingGates": gates(&["a", "a"])}),
            &["spec.schedulingGates[1]: Duplicate value: \"a\""],
        );
        check(json!({"schedulingGates": gates(&["a/b/c"])}), &["spec.schedulingGates[0]: Invalid value"]);
        check(
            json!({"schedulingGates": gates(&["a"]), "nodeName": "board-1"}),
            &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"],
        );
        check(json!({"nodeName": "board-1"}), &[]);
    }

    #[test]
    fn gates_go_and_do_not_come() {
        let check = |old: Value, new: Value, expected: &str| {
            let (old, new) = (json!({"spec": old}), json!({"spec": new}));
            let mut errors = Errors::default();
            super::super::pod::validate_update(&new, &old, &mut errors);
            let found = problems(errors);
            assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{found}");
        };
        let gated = json!([{"name": "a"}, {"name": "b"}]);
        check(json!({"schedulingGates": gated}), json!({"schedulingGates": [{"name": "b"}]}), "");
        check(json!({"schedulingGates": gated}), json!({}), "");
        let new = "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'c'";
        check(
            json!({"schedulingGates": gated}),
            json!({"schedulingGates": [{"name": "a"}, {"name": "c"}]}),
            new,
        );
        check(json!({}), json!({"schedulingGates": [{"name": "a"}]}), "found new scheduling gate 'a'");
        // Where it may go.
        let with = |selector: Value| json!({"schedulingGates": gated, "nodeSelector": selector});
        check(with(json!({"a": "1"})), with(json!({"a": "1", "b": "2"})), "");
        check(with(json!({"a": "1"})), with(json!({"a": "2"})), "spec.nodeSelector: Invalid value");
        check(
            json!({"nodeSelector": {"a": "1"}}),
            json!({"nodeSelector": {"a": "1", "b": "2"}}),
            "pod updates may not change fields",
        );
        let affinity = |expressions: Value| {
            json!({"schedulingGates": gated, "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": expressions}],
                },
            }}})
        };
        let (a, b) = (json!({"key": "a", "operator": "Exists"}), json!({"key": "b", "operator": "Exists"}));
        check(json!({"schedulingGates": gated}), affinity(json!([a])), "");
        check(affinity(json!([a])), affinity(json!([a, b])), "");
        check(affinity(json!([a])), affinity(json!([b])), "only additions are allowed");
        check(affinity(json!([a])), json!({"schedulingGates": gated}), "no additions/deletions to non-empty");
    }
}
