//! What a node may write, once the content is known (upstream's NodeRestriction). Pure: what must be looked up is given.

use super::{LEASES, Needed, is_mirror, references};
use crate::enroll::{KEY, PREVIOUS};
use crate::object;
use coracle_api::field::quoted;
use serde_json::Value;
use std::collections::BTreeSet;

/// Labels that a node may give itself, of those that are Kubernetes' own.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const OWN_LABEL_NAMESPACES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTED: &str = "node-restriction.kubernetes.io";

/// Why not, as the rest of `… is forbidden: `.
type Refusal = String;

fn no(why: String) -> Result<(), Refusal> {
    Err(why)
}

/// A pod that a node makes: it shows one of the node's own, and gives it nothing. `node_uid` is that of its Node, if there is
/// one.
///
/// # Errors
/// Why not.
pub fn create_pod(node: &str, pod: &Value, node_uid: Option<&str>) -> Result<(), Refusal> {
    let n = quoted(node);
    if !is_mirror(pod) {
        let why = "pod does not have \"kubernetes.io/config.mirror\" annotation";
        return no(format!("{why}, node {n} can only create mirror pods"));
    }
    if object::text(pod, &["spec", "nodeName"]) != node {
        return no(format!("node {n} can only create pods with spec.nodeName set to itself"));
    }
    let owner = match object::items(pod, &["metadata", "ownerReferences"]) {
        [] => return no(format!("node {n} can only create pods with an owner reference set to itself")),
        [owner] => owner,
        _ => return no(format!("node {n} can only create pods with a single owner reference set to itself")),
    };
    let says = |key: &str, value: &str| object::text(owner, &[key]) == value;
    if !says("apiVersion", "v1") || !says("kind", "Node") || !says("name", node) {
        return no(format!("node {n} can only create pods with an owner reference set to itself"));
    }
    if object::at(owner, &["controller"]) != true {
        return no(format!("node {n} can only create pods with a controller owner reference set to itself"));
    }
    if object::at(owner, &["blockOwnerDeletion"]) == true {
        return no(format!("node {n} must not set blockOwnerDeletion on an owner reference"));
    }
    let Some(uid) = node_uid else { return no(format!("node {n} not found")) };
    if !says("uid", uid) {
        let given = object::text(owner, &["uid"]);
        return no(format!("node {node} UID mismatch: expected {given} got {uid}"));
    }
    mirror_needs_nothing(pod).map_err(|what| format!("node {n} can not create pods that reference {what}"))
}

/// Whether a pod of a node's own files asks the cluster for something.
///
/// # Errors
/// What it asks for.
pub fn mirror_needs_nothing(pod: &Value) -> Result<(), &'static str> {
    let found: BTreeSet<Needed> = references(pod).into_iter().map(|(what, _)| what).collect();
    for (what, name) in [
        (Needed::ServiceAccount, "a service account"),
        (Needed::Secret, "secrets"),
        (Needed::ConfigMap, "configmaps"),
        (Needed::Claim, "persistentvolumeclaims"),
    ] {
        if found.contains(&what) {
            return Err(name);
        }
    }
    let projects = |key: &str| {
        object::items(pod, &["spec", "volumes"])
            .iter()
            .flat_map(|volume| object::items(volume, &["projected", "sources"]))
            .any(|source| source.get(key).is_some())
    };
    if projects("clusterTrustBundle") {
        return Err("clustertrustbundles");
    }
    if projects("serviceAccountToken") {
        return Err("a service account");
    }
    Ok(())
}

/// A change of a pod or of a part of it, empty for the whole.
///
/// # Errors
/// Why not.
pub fn update_pod(node: &str, part: &str, new: &Value, old: &Value) -> Result<(), Refusal> {
    let n = quoted(node);
    match part {
        "" => {
            let what = "unexpected operation \"UPDATE\"";
            no(format!("{what}, node {n} can only create and delete mirror pods"))
        }
        "status" => {
            if object::text(old, &["spec", "nodeName"]) != node {
                return no(format!(
                    "node {n} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if differ(new, old, &["metadata", "labels"]) {
                return no(format!("node {n} cannot update labels through pod status"));
            }
            if differ(new, old, &["status", "resourceClaimStatuses"]) {
                return no(format!("node {n} cannot update resource claim statues"));
            }
            Ok(())
        }
        other => no(unexpected_part(other)),
    }
}

/// A subresource of a pod that nodes have nothing to do with.
pub fn unexpected_part(part: &str) -> Refusal {
    format!("unexpected pod subresource {}, only 'status' and 'eviction' are allowed", quoted(part))
}

/// A pod's deletion.
///
/// # Errors
/// Why not.
pub fn delete_pod(node: &str, pod: &Value) -> Result<(), Refusal> {
    if object::text(pod, &["spec", "nodeName"]) == node {
        return Ok(());
    }
    no(format!("node {} can only delete pods with spec.nodeName set to itself", quoted(node)))
}

/// A pod's eviction.
///
/// # Errors
/// Why not.
pub fn evict_pod(node: &str, pod: &Value) -> Result<(), Refusal> {
    if object::text(pod, &["spec", "nodeName"]) == node {
        return Ok(());
    }
    no(format!("node {node} can only evict pods with spec.nodeName set to itself"))
}

/// Whether a Node is the node's own.
///
/// # Errors
/// Why not.
pub fn own_node(node: &str, name: &str) -> Result<(), Refusal> {
    if node == name {
        return Ok(());
    }
    no(format!("node {} is not allowed to modify node {}", quoted(node), quoted(name)))
}

/// Whose the name is, enrollment writes down, and nobody who has a certificate of that name.
fn own_keys(new: &Value, old: &Value) -> Result<(), Refusal> {
    for key in [KEY, PREVIOUS] {
        if differ(new, old, &["metadata", "annotations", key]) {
            return no(format!("is not allowed to modify the annotation {key}"));
        }
    }
    Ok(())
}

/// A node that registers itself.
///
/// # Errors
/// Why not.
pub fn create_node(node: &str, new: &Value) -> Result<(), Refusal> {
    own_node(node, object::name(new))?;
    let n = quoted(node);
    if object::at(new, &["spec", "configSource"]).is_object() {
        return no(format!("node {n} is not allowed to create pods with a non-nil configSource"));
    }
    own_keys(new, &Value::Null)?;
    let forbidden = forbidden_labels(new, &Value::Null);
    if forbidden.is_empty() {
        return Ok(());
    }
    no(format!("node {n} is not allowed to set the following labels: {}", forbidden.join(", ")))
}

/// A change of a Node or of its status.
///
/// # Errors
/// Why not.
pub fn update_node(node: &str, new: &Value, old: &Value) -> Result<(), Refusal> {
    own_node(node, object::name(old))?;
    let n = quoted(node);
    if object::at(new, &["spec", "configSource"]).is_object() && differ(new, old, &["spec", "configSource"]) {
        return no(format!("node {n} is not allowed to update configSource to a new non-nil configSource"));
    }
    own_keys(new, old)?;
    if differ(new, old, &["spec", "taints"]) {
        return no(format!("node {n} is not allowed to modify taints"));
    }
    let forbidden = forbidden_labels(new, old);
    if !forbidden.is_empty() {
        return no(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
    }
    if differ(new, old, &["metadata", "ownerReferences"]) {
        return no(format!("node {n} is not allowed to modify ownerReferences"));
    }
    Ok(())
}

/// A write of a lease.
///
/// # Errors
/// Why not.
pub fn lease(node: &str, namespace: &str, name: &str) -> Result<(), Refusal> {
    if namespace != LEASES {
        return no(format!("can only access leases in the {} system namespace", quoted(LEASES)));
    }
    if name != node {
        return no("can only access node lease with the same name as the requesting node".into());
    }
    Ok(())
}

/// A change of a claim or of a part of it.
///
/// # Errors
/// Why not.
pub fn update_claim(node: &str, part: &str, new: &Value, old: &Value) -> Result<(), Refusal> {
    if part != "status" {
        return no("may only update PVC status".into());
    }
    let bare = |claim: &Value| {
        let mut claim = claim.clone();
        for key in ["resourceVersion", "managedFields"] {
            object::set_meta(&mut claim, key, Value::Null);
        }
        let status = object::child(&mut claim, "status");
        for key in ["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"] {
            object::remove(status, key);
        }
        claim
    };
    if bare(new) == bare(old) {
        return Ok(());
    }
    let what = "fields other than status.capacity and status.conditions";
    no(format!("node {} is not allowed to update {what}", quoted(node)))
}

/// A request for a token; `pod` is the one that it is to be bound to, if there is one.
///
/// # Errors
/// Why not.
pub fn create_token(who: &str, node: &str, request: &Value, pod: Option<&Value>) -> Result<(), Refusal> {
    let reference = object::at(request, &["spec", "boundObjectRef"]);
    let says = |key: &str| object::text(reference, &[key]);
    if says("apiVersion") != "v1" || says("kind") != "Pod" || says("name").is_empty() {
        return no("node requested token not bound to a pod".into());
    }
    if says("uid").is_empty() {
        return no("node requested token with a pod binding without a uid".into());
    }
    let Some(pod) = pod else { return no(format!("pod {} not found", quoted(says("name")))) };
    if says("uid") != object::uid(pod) {
        let why = "does not match the UID in record. The object might have been deleted and then recreated";
        return no(format!("the UID in the bound object reference ({}) {why}", says("uid")));
    }
    if object::text(pod, &["spec", "nodeName"]) != node {
        return no("node requested token bound to a pod scheduled on a different node".into());
    }
    let audience = match object::items(request, &["spec", "audiences"]) {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return no("node may only request 0 or 1 audiences".into()),
    };
    let asked = object::items(pod, &["spec", "volumes"])
        .iter()
        .flat_map(|volume| object::items(volume, &["projected", "sources"]))
        .filter_map(|source| source.get("serviceAccountToken"))
        .any(|token| object::text(token, &["audience"]) == audience);
    if asked {
        return Ok(());
    }
    let audience = quoted(audience);
    no(format!(
        "audience {audience} not found in pod spec volume, {who} is not authorized to request tokens for this audience"
    ))
}

fn differ(new: &Value, old: &Value, path: &[&str]) -> bool {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let (new, old) = (object::at(new, path), object::at(old, path));
    new != old && !(empty(new) && empty(old))
}

/// Changed labels that would steer pods to the node which are not for it, sorted.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let labels = |object: &'_ Value| object::at(object, &["metadata", "labels"]).as_object().cloned();
    let (new, old) = (labels(new).unwrap_or_default(), labels(old).unwrap_or_default());
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && !is_own_label(key)).cloned().collect()
}

fn is_own_label(key: &str) -> bool {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let is_of = |domain: &str| {
        namespace == domain || namespace.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    if is_of(RESTRICTED) {
        return false;
    }
    let of_kubernetes = is_of("kubernetes.io") || is_of("k8s.io");
    !of_kubernetes || OWN_LABELS.contains(&key) || OWN_LABEL_NAMESPACES.iter().any(|domain| is_of(domain))
}
