//! What a cluster is made of: namespaces, nodes, volumes, budgets, roles, certificates, events.

use super::pod::{immutable, one_of};
use crate::auth::Identity;
use crate::object::{self, at, child, default, default_zero, fields, items, items_mut, text};
use coracle_api::field::{Errors, Path};
use serde_json::{Value, json};

pub(super) fn default_namespace(namespace: &mut Value) {
    let name = object::name(namespace).to_string();
    if !name.is_empty() {
        let labels = child(child(namespace, "metadata"), "labels");
        default(labels, "kubernetes.io/metadata.name", name);
    }
}

pub(super) fn prepare_namespace(namespace: &mut Value) {
    let spec = child(namespace, "spec");
    let mut finalizers = items(spec, &["finalizers"]).to_vec();
    if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
        finalizers.push("kubernetes".into());
    }
    fields(spec).insert("finalizers".into(), finalizers.into());
    fields(namespace).insert("status".into(), json!({"phase": "Active"}));
}

/// `spec.finalizers` is written through `/finalize` only.
pub(super) fn update_namespace(new: &mut Value, old: &Value) {
    fields(new).insert("spec".into(), at(old, &["spec"]).clone());
}

pub(super) fn default_node(node: &mut Value) {
    child(node, "spec");
    child(node, "status");
}

pub(super) fn prepare_node(node: &mut Value) {
    // A node that registers itself says at once how it is.
    child(node, "status");
}

pub(super) fn default_volume_claim(claim: &mut Value) {
    default(child(claim, "spec"), "volumeMode", "Filesystem");
}

pub(super) fn prepare_volume_claim(claim: &mut Value) {
    protect(claim, "kubernetes.io/pvc-protection");
    fields(claim).insert("status".into(), json!({"phase": "Pending"}));
}

pub(super) fn prepare_volume(volume: &mut Value) {
    protect(volume, "kubernetes.io/pv-protection");
    fields(volume).insert("status".into(), json!({"phase": "Pending"}));
}

/// StorageObjectInUseProtection.
fn protect(object: &mut Value, finalizer: &str) {
    let mut finalizers = items(object, &["metadata", "finalizers"]).to_vec();
    if !finalizers.iter().any(|name| name == finalizer) {
        finalizers.push(finalizer.into());
    }
    object::set_meta(object, "finalizers", finalizers);
}

pub(super) fn default_volume(volume: &mut Value) {
    let spec = child(volume, "spec");
    default_zero(spec, "persistentVolumeReclaimPolicy", "Retain");
    default(spec, "volumeMode", "Filesystem");
    if let Some(path) = spec.get_mut("hostPath") {
        default(path, "type", "");
    }
}

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn validate_volume_claim(claim: &Value, errors: &mut Errors) {
    let (spec, path) = (at(claim, &["spec"]), Path::new("spec"));
    validate_access_modes(spec, &path, "at least 1 access mode is required", errors);
    let requests = path.child("resources");
    if !at(spec, &["resources", "requests", "storage"]).is_string() {
        errors.required(&requests.key("storage"), "");
    }
    one_of(spec, "volumeMode", &["Block", "Filesystem"], &path, errors);
}

fn validate_access_modes(spec: &Value, path: &Path, missing: &str, errors: &mut Errors) {
    let path = path.child("accessModes");
    if items(spec, &["accessModes"]).is_empty() {
        errors.required(&path, missing);
    }
    for mode in items(spec, &["accessModes"]) {
        if !mode.as_str().is_some_and(|mode| ACCESS_MODES.contains(&mode)) {
            errors.not_supported(&path, mode.clone(), ACCESS_MODES);
        }
    }
}

pub(super) fn update_volume_claim(new: &Value, old: &Value, errors: &mut Errors) {
    let rest = |object: &Value| {
        let mut spec = at(object, &["spec"]).clone();
        for key in ["resources", "volumeName", "volumeAttributesClassName"] {
            object::remove(&mut spec, key);
        }
        spec
    };
    if rest(new) != rest(old) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.forbidden(&Path::new("spec"), why);
    }
}

pub(super) fn validate_volume(volume: &Value, errors: &mut Errors) {
    let (spec, path) = (at(volume, &["spec"]), Path::new("spec"));
    validate_access_modes(spec, &path, "", errors);
    if !at(spec, &["capacity", "storage"]).is_string() {
        errors.required(&path.child("capacity"), "");
    }
    one_of(spec, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], &path, errors);
}

pub(super) fn prepare_budget(budget: &mut Value) {
    let status =
        json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    fields(budget).insert("status".into(), status);
}

pub(super) fn validate_budget(budget: &Value, errors: &mut Errors) {
    let spec = at(budget, &["spec"]);
    if !at(spec, &["minAvailable"]).is_null() && !at(spec, &["maxUnavailable"]).is_null() {
        errors.invalid(
            &Path::new("spec"),
            spec.clone(),
            "minAvailable and maxUnavailable cannot be both set",
        );
    }
}

pub(super) fn default_priority_class(class: &mut Value) {
    default(class, "preemptionPolicy", "PreemptLowerPriority");
}

pub(super) fn update_priority_class(new: &Value, old: &Value, errors: &mut Errors) {
    if at(new, &["value"]) != at(old, &["value"]) {
        errors.forbidden(&Path::new("value"), "may not be changed in an update.");
    }
    immutable(new, old, &["preemptionPolicy"], errors);
}

pub(super) fn default_limit_range(range: &mut Value) {
    for item in items_mut(child(range, "spec"), "limits") {
        if text(item, &["type"]) != "Container" {
            continue;
        }
        let max = at(item, &["max"]).clone();
        for (name, value) in max.as_object().into_iter().flatten() {
            default(child(item, "default"), name, value.clone());
        }
        let limits = at(item, &["default"]).clone();
        let min = at(item, &["min"]).clone();
        for source in [limits, min] {
            for (name, value) in source.as_object().into_iter().flatten() {
                default(child(item, "defaultRequest"), name, value.clone());
            }
        }
    }
}

pub(super) fn empty_status(object: &mut Value) {
    fields(object).insert("status".into(), json!({}));
}

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn default_binding(binding: &mut Value) {
    default_zero(child(binding, "roleRef"), "apiGroup", RBAC);
    for subject in items_mut(binding, "subjects") {
        let group = if text(subject, &["kind"]) == "ServiceAccount" { "" } else { RBAC };
        if !group.is_empty() {
            default_zero(subject, "apiGroup", group);
        }
    }
}

pub(super) fn default_role(role: &mut Value) {
    // Go prints a list without items so when it has no `omitempty`.
    fields(role).entry("rules").or_insert(Value::Null);
}

pub(super) fn validate_role(role: &Value, errors: &mut Errors) {
    for (index, rule) in items(role, &["rules"]).iter().enumerate() {
        let path = Path::new("rules").index(index);
        if items(rule, &["verbs"]).is_empty() {
            errors.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        if !items(rule, &["nonResourceURLs"]).is_empty() {
            continue;
        }
        if items(rule, &["apiGroups"]).is_empty() {
            errors.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if items(rule, &["resources"]).is_empty() {
            errors.required(&path.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

pub(super) fn validate_binding(binding: &Value, errors: &mut Errors) {
    let path = Path::new("roleRef");
    let reference = at(binding, &["roleRef"]);
    if text(reference, &["apiGroup"]) != RBAC {
        errors.not_supported(&path.child("apiGroup"), text(reference, &["apiGroup"]), &[RBAC]);
    }
    // A binding of the whole cluster has no namespace in which a Role could be.
    let kinds: &[&str] =
        if text(binding, &["kind"]) == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(reference, &["kind"])) {
        errors.not_supported(&path.child("kind"), text(reference, &["kind"]), kinds);
    }
    if text(reference, &["name"]).is_empty() {
        errors.required(&path.child("name"), "");
    }
}

pub(super) fn update_binding(new: &Value, old: &Value, errors: &mut Errors) {
    if at(new, &["roleRef"]) != at(old, &["roleRef"]) {
        let value = at(new, &["roleRef"]).clone();
        errors.invalid(&Path::new("roleRef"), value, "cannot change roleRef");
    }
}

/// `spec.username`, `uid`, `groups` and `extra` are those of whoever asks.
pub(super) fn sign_request(request: &mut Value, who: &Identity) {
    let spec = fields(child(request, "spec"));
    for (key, value) in [
        ("username", json!(who.user)),
        ("uid", json!(who.uid)),
        ("groups", json!(who.groups)),
        ("extra", json!(who.extra)),
    ] {
        let empty = value.as_str() == Some("") || value.as_object().is_some_and(|map| map.is_empty());
        if empty {
            spec.remove(key);
        } else {
            spec.insert(key.into(), value);
        }
    }
}

/// A request never changes; what becomes of it is written through `/approval` and `/status`.
pub(super) fn update_signing_request(new: &mut Value, old: &Value) {
    for key in ["spec", "status"] {
        fields(new).insert(key.into(), at(old, &[key]).clone());
    }
}

pub(super) fn validate_signing_request(request: &Value, errors: &mut Errors) {
    let (spec, path) = (at(request, &["spec"]), Path::new("spec"));
    if let Err(why) = crate::enroll::read(request) {
        errors.invalid(&path.child("request"), at(spec, &["request"]).clone(), why.to_string());
    }
    if at(spec, &["expirationSeconds"]).as_i64().is_some_and(|seconds| seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&path.child("expirationSeconds"), at(spec, &["expirationSeconds"]).clone(), why);
    }
    if items(spec, &["usages"]).is_empty() {
        errors.required(&path.child("usages"), "usages must be specified");
    }
    if text(spec, &["signerName"]).is_empty() {
        errors.required(&path.child("signerName"), "");
    }
}

/// events.k8s.io names the same fields differently.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

pub(super) fn event_to_core(event: &mut Value) {
    for (new, core) in EVENT_FIELDS {
        if let Some(value) = object::remove(event, new) {
            fields(event).insert((*core).into(), value);
        }
    }
    default_event(event);
}

pub(super) fn event_from_core(event: &mut Value) {
    for (new, core) in EVENT_FIELDS {
        if let Some(value) = object::remove(event, core) {
            fields(event).insert((*new).into(), value);
        }
    }
}

/// Fields that Go prints even when they say nothing.
pub(super) fn default_event(event: &mut Value) {
    child(event, "source");
    child(event, "involvedObject");
    for key in ["firstTimestamp", "lastTimestamp", "eventTime"] {
        fields(event).entry(key).or_insert(Value::Null);
    }
    for key in ["reportingComponent", "reportingInstance"] {
        default(event, key, "");
    }
}

pub(super) fn validate_event(event: &Value, errors: &mut Errors) {
    let involved = text(event, &["involvedObject", "namespace"]);
    // Of what has no namespace, events are in `default`.
    let wanted = if involved.is_empty() { "default" } else { involved };
    let namespace = object::namespace(event);
    if namespace != wanted && !(involved.is_empty() && namespace == "kube-system") {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, involved, "does not match event.namespace");
    }
    super::event::validate_timed(event, errors);
}
