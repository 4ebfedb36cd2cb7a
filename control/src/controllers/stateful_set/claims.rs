//! The volume claims of a stateful set's members: their names, and who owns them. Pure.
//!
//! A claim outlives its member, unless `persistentVolumeClaimRetentionPolicy` says otherwise: then the set owns it, or the member
//! that is on its way out does, and the garbage collector deletes it with its owner.

use crate::controllers::owned::{controller_of, controller_reference};
use crate::object::{self, at, fields, items, name, namespace, text, uid};
use serde_json::{Value, json};

/// `TEMPLATE-SET-ORDINAL`.
pub fn claim_name(set: &Value, template: &Value, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", name(template), name(set))
}

/// The claims of a member that is to be made.
pub fn claims(set: &Value, ordinal: i64) -> Vec<Value> {
    let selected = at(set, &["spec", "selector", "matchLabels"]);
    let templates = items(set, &["spec", "volumeClaimTemplates"]).iter();
    let claim = |template: &Value| {
        let mut claim = template.clone();
        object::remove(&mut claim, "status");
        fields(&mut claim).insert("apiVersion".into(), "v1".into());
        fields(&mut claim).insert("kind".into(), "PersistentVolumeClaim".into());
        let mut labels = at(template, &["metadata", "labels"]).clone();
        for (key, value) in selected.as_object().into_iter().flatten() {
            fields(&mut labels).insert(key.clone(), value.clone());
        }
        object::set_meta(&mut claim, "name", claim_name(set, template, ordinal));
        object::set_meta(&mut claim, "namespace", namespace(set));
        object::set_meta(&mut claim, "labels", labels);
        let owners = owners(set, None, false, &[]);
        object::set_meta(
            &mut claim,
            "ownerReferences",
            if owners.is_empty() { Value::Null } else { owners.into() },
        );
        claim
    };
    templates.map(claim).collect()
}

fn deletes(set: &Value, when: &str) -> bool {
    text(set, &["spec", "persistentVolumeClaimRetentionPolicy", when]) == "Delete"
}

/// The owners of a claim that has these; `pod` is its member, `leaves` whether the set is scaled below it.
pub fn owners(set: &Value, pod: Option<&Value>, leaves: bool, there: &[Value]) -> Vec<Value> {
    let ours = |owner: &Value| {
        uid(set) == text(owner, &["uid"]) || pod.is_some_and(|pod| uid(pod) == text(owner, &["uid"]))
    };
    let mut owners: Vec<Value> = there.iter().filter(|owner| !ours(owner)).cloned().collect();
    // Somebody else looks after it.
    if controller_of(&json!({"metadata": {"ownerReferences": owners}})).is_some() {
        return owners;
    }
    match pod {
        Some(pod) if leaves && deletes(set, "whenScaled") => owners.push(controller_reference(pod)),
        _ if deletes(set, "whenDeleted") => owners.push(controller_reference(set)),
        _ => {}
    }
    owners
}

/// Whether a claim belongs to an earlier pod of that name, with which it goes.
pub fn is_stale(claim: &Value, pod: &str) -> bool {
    let mut owners = items(claim, &["metadata", "ownerReferences"]).iter();
    owners.any(|owner| text(owner, &["kind"]) == "Pod" && text(owner, &["name"]) == pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(deleted: &str, scaled: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "n", "uid": "set"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
                "volumeClaimTemplates": [{
                    "metadata": {"name": "www", "labels": {"tier": "x"}},
                    "spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"},
                }],
            },
        })
    }

    #[test]
    fn a_claim_has_the_name_of_its_member() {
        let found = claims(&set("Retain", "Retain"), 3);
        let expected = json!([{
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "www-web-3", "namespace": "n", "labels": {"app": "web", "tier": "x"}},
            "spec": {"volumeMode": "Filesystem"},
        }]);
        assert_eq!(Value::from(found), expected);
        assert_eq!(claims(&set("Delete", "Retain"), 0)[0]["metadata"]["ownerReferences"][0]["uid"], "set");
    }

    #[test]
    fn the_policy_says_with_whom_a_claim_goes() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "uid": "pod"}});
        let check = |deleted: &str, scaled: &str, leaves: bool, there: &[&str], expected: &[&str]| {
            let there: Vec<Value> = there.iter().map(|uid| json!({"uid": uid})).collect();
            let found = owners(&set(deleted, scaled), Some(&pod), leaves, &there);
            let found: Vec<&str> = found.iter().map(|owner| text(owner, &["uid"])).collect();
            assert_eq!(found, expected, "{deleted} {scaled} {leaves}");
        };
        check("Retain", "Retain", false, &["set", "pod", "other"], &["other"]);
        check("Delete", "Retain", false, &[], &["set"]);
        check("Delete", "Retain", true, &["pod"], &["set"]);
        check("Retain", "Delete", false, &["set"], &[]);
        check("Retain", "Delete", true, &["set"], &["pod"]);
        check("Delete", "Delete", false, &["pod"], &["set"]);
        check("Delete", "Delete", true, &["set"], &["pod"]);
        let foreign = json!({"uid": "other", "controller": true});
        let found = owners(&set("Delete", "Delete"), Some(&pod), true, std::slice::from_ref(&foreign));
        assert_eq!(found, [foreign]);
    }

    #[test]
    fn a_claim_of_the_last_pod_of_that_name_is_not_taken_over() {
        let of =
            |kind: &str, name: &str| json!({"metadata": {"ownerReferences": [{"kind": kind, "name": name}]}});
        assert!(is_stale(&of("Pod", "web-0"), "web-0"));
        assert!(!is_stale(&of("Pod", "web-1"), "web-0"));
        assert!(!is_stale(&of("StatefulSet", "web-0"), "web-0"));
        assert!(!is_stale(&json!({}), "web-0"));
    }
}
