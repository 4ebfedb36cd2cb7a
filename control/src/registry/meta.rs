//! Metadata: what the system sets, what nobody may change, and what names, labels and annotations look like.

use super::{Name, Resource, new_uid, now, random_suffix};
use crate::object;
use coracle_api::field::{Errors, Path};
use coracle_api::names::{self, label_value, qualified_name};
use coracle_api::status::StatusError;
use serde_json::Value;

/// All annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
/// What a generated name keeps of its base: 63 less the suffix.
const GENERATED_BASE_BYTES_MAX: usize = 58;

/// What the system sets on a new object. A name is generated where one is asked for.
pub(super) fn prepare_create(resource: &Resource, object: &mut Value) -> Result<(), StatusError> {
    if !object::text(object, &["metadata", "resourceVersion"]).is_empty() {
        return Err(StatusError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for key in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        object::set_meta(object, key, Value::Null);
    }
    let base = object::text(object, &["metadata", "generateName"]);
    if object::name(object).is_empty() && !base.is_empty() {
        // A base that is no ASCII makes no valid name, wherever it is cut.
        let stem = base.get(..GENERATED_BASE_BYTES_MAX).unwrap_or(base);
        let name = format!("{stem}{}", random_suffix()?);
        object::set_meta(object, "name", name);
    }
    object::set_meta(object, "uid", new_uid()?);
    object::set_meta(object, "creationTimestamp", now().to_string());
    if resource.generation {
        object::set_meta(object, "generation", 1);
    }
    Ok(())
}

/// What an update leaves as it was.
pub(super) fn keep(new: &mut Value, old: &Value) {
    let kept = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ];
    for key in kept {
        object::set_meta(new, key, object::at(old, &["metadata", key]).clone());
    }
    object::set_meta(new, "selfLink", Value::Null);
}

/// Counts changes of what is neither metadata nor status.
pub(super) fn bump_generation(new: &mut Value, old: &Value) {
    let differs = |key: &str| object::at(new, &[key]) != object::at(old, &[key]);
    let keys = |object: &Value| -> Vec<String> {
        let skipped = ["metadata", "status", "apiVersion", "kind"];
        let fields = object.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
        fields.unwrap_or_default().into_iter().filter(|key| !skipped.contains(&key.as_str())).collect()
    };
    if keys(new).iter().chain(&keys(old)).any(|key| differs(key)) {
        let generation = object::at(old, &["metadata", "generation"]).as_i64().unwrap_or_default();
        object::set_meta(new, "generation", generation + 1);
    }
}

/// `ValidateObjectMeta`.
pub(super) fn validate(resource: &Resource, object: &Value, errors: &mut Errors) {
    let path = Path::new("metadata");
    let generate = object::text(object, &["metadata", "generateName"]);
    if !generate.is_empty() {
        // A trailing dash is what it is for.
        let stem = generate.strip_suffix('-').unwrap_or(generate);
        for why in resource.name.problems(stem) {
            errors.invalid(&path.child("generateName"), generate, why);
        }
    }
    match object::name(object) {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => {
            for why in resource.name.problems(name) {
                errors.invalid(&path.child("name"), name, why);
            }
        }
    }
    if resource.namespaced {
        match object::namespace(object) {
            "" => errors.required(&path.child("namespace"), ""),
            namespace => {
                for why in Name::Label.problems(namespace) {
                    errors.invalid(&path.child("namespace"), namespace, why);
                }
            }
        }
    } else if !object::namespace(object).is_empty() {
        errors.forbidden(&path.child("namespace"), "not allowed on this type");
    }
    labels(object::at(object, &["metadata", "labels"]), &path.child("labels"), errors);
    annotations(object::at(object, &["metadata", "annotations"]), &path.child("annotations"), errors);
    for (index, finalizer) in object::items(object, &["metadata", "finalizers"]).iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        for why in qualified_name(finalizer) {
            errors.invalid(&path.child("finalizers").index(index), finalizer, why);
        }
    }
    let references = path.child("ownerReferences");
    for (index, owner) in object::items(object, &["metadata", "ownerReferences"]).iter().enumerate() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if object::text(owner, &[key]).is_empty() {
                let detail =
                    if key == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                errors.invalid(&references.index(index).child(key), "", detail);
            }
        }
    }
}

/// `ValidateLabels`.
pub(crate) fn labels(labels: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        for why in qualified_name(key) {
            errors.invalid(path, key.as_str(), why);
        }
        let value = value.as_str().unwrap_or_default();
        for why in label_value(value) {
            errors.invalid(path, value, why);
        }
    }
}

fn annotations(annotations: &Value, path: &Path, errors: &mut Errors) {
    let mut bytes = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for why in qualified_name(&key.to_lowercase()) {
            errors.invalid(path, key.as_str(), why);
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(path, coracle_api::field::Problem::TooLong(ANNOTATIONS_BYTES_MAX));
    }
}

impl Name {
    /// What is wrong with a name, in upstream's words.
    pub fn problems(self, name: &str) -> Vec<String> {
        match self {
            Name::Subdomain => names::dns1123_subdomain(name),
            Name::Label => names::dns1123_label(name),
            Name::ServiceLabel => names::dns1035_label(name),
            Name::PathSegment => path_segment(name),
        }
    }
}

/// `IsValidPathSegmentName`.
fn path_segment(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name == "." || name == ".." {
        problems.push(format!("may not be '{name}'"));
    }
    problems.extend(
        ['/', '%'].into_iter().filter(|c| name.contains(*c)).map(|c| format!("may not contain '{c}'")),
    );
    problems
}
