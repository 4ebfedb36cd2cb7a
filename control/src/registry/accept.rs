//! What a body has to be before it is an object: of the kind, of the path's name, in form, valid; and which part of it counts.

use super::{Part, Resource, Subresource, Target, meta};
use crate::kinds;
use crate::object;
use coracle_api::decode::{self, Document, FieldValidation};
use coracle_api::field::{Errors, quoted};
use coracle_api::status::StatusError;
use serde_json::Value;

/// Checks that the body is of a kind that is not stored, and brings it into form.
///
/// # Errors
/// 400.
pub(crate) fn accept_review(resource: &Resource, document: Document) -> Result<Value, StatusError> {
    accept(resource, document, FieldValidation::default()).map(|(object, _)| object)
}

/// Checks that the body is of the kind, and brings it into form; with warnings for whoever sent it.
pub(super) fn accept(
    resource: &Resource,
    document: Document,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), StatusError> {
    identify(resource, &document.value)?;
    let mut strict = decode::duplicates(&document);
    let mut object = document.value;
    let fields = object::fields(&mut object);
    fields.insert("apiVersion".into(), resource.api_version().into());
    fields.insert("kind".into(), resource.kind.into());
    let judged = decode::object(resource.form(), object).and_then(|decoded| {
        strict.extend(decoded.strict);
        Ok((decoded.value, validation.judge(strict)?))
    });
    judged.map_err(|error| StatusError::unhandled(resource.kind, resource.version, resource.kind, error))
}

/// Whether an object says that it is of the kind, or says nothing.
pub(super) fn identify(resource: &Resource, object: &Value) -> Result<(), StatusError> {
    if !object.is_object() {
        let why = "couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
        return Err(StatusError::unrecognized(resource.kind, why, object.to_string().as_bytes()));
    }
    let wanted = resource.api_version();
    let given = |key: &str, default: &str| match object::text(object, &[key]) {
        "" => default.to_string(),
        text => text.to_string(),
    };
    let (kind, api_version) = (given("kind", resource.kind), given("apiVersion", &wanted));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    if kind != resource.kind || group != resource.group {
        let why = match kinds::find_kind(group, version, &kind) {
            Some(found) => format!(
                "converting ({}.{kind}) to ({}.{}): unknown conversion",
                found.version,
                internal_name(resource.group),
                resource.kind
            ),
            None => format!(
                "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
                quoted(&kind),
                quoted(&api_version)
            ),
        };
        return Err(StatusError::unhandled(&kind, version, resource.kind, why));
    }
    if version != resource.version {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    Ok(())
}

/// Upstream's name of a group's internal package, which its conversion errors show.
fn internal_name(group: &str) -> &str {
    match group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    }
}

/// The object is the one of the path.
pub(super) fn match_name(target: &Target, object: &mut Value) -> Result<(), StatusError> {
    match object::name(object) {
        "" => object::set_meta(object, "name", target.name.as_str()),
        name if name != target.name => {
            return Err(StatusError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
        _ => {}
    }
    Ok(())
}

pub(super) fn match_namespace(target: &Target, object: &mut Value) -> Result<(), StatusError> {
    let given = object::namespace(object);
    if !target.resource.namespaced {
        object::set_meta(object, "namespace", Value::Null);
    } else if given.is_empty() {
        object::set_meta(object, "namespace", target.namespace.as_str());
    } else if given != target.namespace {
        return Err(StatusError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// An update of the object says nothing about its status.
pub(super) fn keep_status(resource: &Resource, new: &mut Value, old: &Value) {
    if !resource.has_status() {
        return;
    }
    match old.get("status") {
        Some(status) => {
            object::fields(new).insert("status".into(), status.clone());
        }
        None => {
            object::remove(new, "status");
        }
    }
}

/// The old object with the part that the request may write.
pub(super) fn with_part(new: &Value, old: &Value, part: &Subresource) -> Value {
    let mut result = old.clone();
    let mut copy = |path: &[&str]| {
        let (last, parents) = path.split_last().expect("a path has a name");
        let parent = parents.iter().fold(&mut result, |value, key| object::child(value, key));
        match object::at(new, path) {
            Value::Null => object::remove(parent, last),
            value => object::fields(parent).insert((*last).into(), value.clone()),
        };
    };
    match part.what {
        Part::Status => {
            copy(&["status"]);
            copy(&["metadata", "labels"]);
            copy(&["metadata", "annotations"]);
            copy(&["metadata", "finalizers"]);
        }
        Part::Finalize => copy(&["spec", "finalizers"]),
        Part::Approval => copy(&["status", "conditions"]),
        Part::EphemeralContainers => copy(&["spec", "ephemeralContainers"]),
        Part::Scale => copy(&["spec", "replicas"]),
        Part::Connect | Part::Eviction | Part::Token => {}
        Part::Resize => copy(&["spec"]),
        Part::Binding => {
            copy(&["spec", "nodeName"]);
            copy(&["status", "conditions"]);
        }
    }
    result
}

pub(super) fn validate(resource: &Resource, new: &Value, old: Option<&Value>) -> Result<(), StatusError> {
    let mut errors = Errors::default();
    meta::validate(resource, new, &mut errors);
    (resource.validate)(new, &mut errors);
    match old {
        Some(old) => (resource.validate_update)(new, old, &mut errors),
        None => kinds::validate_new(resource, new, &mut errors),
    }
    errors
        .into_result()
        .map_err(|errors| StatusError::invalid(resource.group_kind(), object::name(new), &errors))
}
