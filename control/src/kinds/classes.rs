//! Classes of storage and of runtimes, and leases: kinds that are little more than a few checked fields.

use super::pod::{immutable, not_negative, one_of};
use crate::object::{at, default, items, text};
use coracle_api::field::{Errors, Path};
use coracle_api::names::dns1123_label;
use serde_json::Value;

pub(super) fn default_storage_class(class: &mut Value) {
    default(class, "reclaimPolicy", "Delete");
    default(class, "volumeBindingMode", "Immediate");
}

pub(super) fn validate_storage_class(class: &Value, errors: &mut Errors) {
    if text(class, &["provisioner"]).is_empty() {
        errors.required(&Path::new("provisioner"), "");
    }
    // As `one_of`, of an object that has no path of its own.
    for (key, known) in [
        ("reclaimPolicy", &["Delete", "Retain"]),
        ("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
    ] {
        let value = at(class, &[key]);
        if !value.as_str().is_some_and(|value| known.contains(&value)) {
            errors.not_supported(&Path::new(key), value.clone(), known);
        }
    }
}

/// What was provisioned by it would not know.
pub(super) fn update_storage_class(new: &Value, old: &Value, errors: &mut Errors) {
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if at(new, &[key]) != at(old, &[key]) {
            errors.forbidden(&Path::new(key), format!("updates to {key} are forbidden."));
        }
    }
    immutable(new, old, &["volumeBindingMode"], errors);
}

pub(super) fn validate_runtime_class(class: &Value, errors: &mut Errors) {
    let handler = text(class, &["handler"]);
    for why in dns1123_label(handler) {
        errors.invalid(&Path::new("handler"), handler, why);
    }
    let tolerations = Path::new("scheduling").child("tolerations");
    for (index, toleration) in items(class, &["scheduling", "tolerations"]).iter().enumerate() {
        one_of(toleration, "operator", &["Equal", "Exists"], &tolerations.index(index), errors);
    }
}

pub(super) fn update_runtime_class(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(new, old, &["handler"], errors);
}

pub(super) fn validate_lease(lease: &Value, errors: &mut Errors) {
    let (spec, path) = (at(lease, &["spec"]), Path::new("spec"));
    let seconds = at(spec, &["leaseDurationSeconds"]);
    if seconds.as_i64().is_some_and(|seconds| seconds <= 0) {
        errors.invalid(&path.child("leaseDurationSeconds"), seconds.clone(), "must be greater than 0");
    }
    not_negative(spec, "leaseTransitions", &path, errors);
}
