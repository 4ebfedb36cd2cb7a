//! The kinds that are served: one table, and what each kind adds to the one code path of the registry.
//!
//! Defaults, validation and wording follow upstream's `pkg/apis/*/v1/defaults.go`, `*/validation` and the strategies of
//! `pkg/registry`. A kind that is not here is not served; there are no half-served ones.

mod autoscaler;
mod classes;
mod cluster;
mod config;
mod endpoints;
mod event;
mod gates;
mod pod;
mod podspec;
mod quota;
pub(crate) mod schedule;
mod service;
mod table;
mod workloads;

pub(crate) use endpoints::may_be_endpoint;
pub(crate) use gates::is_gated;
pub use table::{COMPUTED, RESOURCES};

use crate::auth::Identity;
use crate::object;
use crate::registry::{Part, Resource, Subresource};
use coracle_api::field::{Errors, Path};
use coracle_api::status::StatusError;
use serde_json::{Value, json};

/// The group and version of the core.
const CORE: (&str, &str) = ("", "v1");

/// `pods/binding`.
pub(crate) const BINDING: Subresource =
    Subresource { name: "binding", what: Part::Binding, verbs: &["create"], kind: "Binding", of: None };

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The kind at a path of the API.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The kind of that name.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
}

fn is(resource: &Resource, kind: &str) -> bool {
    resource.kind == kind && resource.group.is_empty()
}

/// Whether nothing holds an object that is marked for deletion any more.
pub(crate) fn is_finished(resource: &Resource, object: &Value) -> bool {
    object::is_terminating(object)
        && !object::has_finalizers(object)
        && !has_own_finalizers(resource, object)
        && object::at(object, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or_default() == 0
}

/// A namespace's second list of finalizers.
pub(crate) fn has_own_finalizers(resource: &Resource, object: &Value) -> bool {
    is(resource, "Namespace") && !object::items(object, &["spec", "finalizers"]).is_empty()
}

/// Seconds between the mark and the deletion: pods that run on a node have them.
pub(crate) fn grace(resource: &Resource, object: &Value, asked: Option<i64>) -> i64 {
    if !is(resource, "Pod") {
        return 0;
    }
    let ended = matches!(object::text(object, &["status", "phase"]), "Failed" | "Succeeded");
    if object::text(object, &["spec", "nodeName"]).is_empty() || ended {
        return 0;
    }
    asked
        .or_else(|| object::at(object, &["spec", "terminationGracePeriodSeconds"]).as_i64())
        .unwrap_or_default()
        .max(0)
}

/// What the mark changes besides the metadata.
pub(crate) fn prepare_delete(resource: &Resource, object: &mut Value) {
    if is(resource, "Namespace") {
        let status = object::child(object, "status");
        object::fields(status).insert("phase".into(), "Terminating".into());
    }
}

/// What must not be deleted.
pub(crate) fn admit_delete(resource: &Resource, name: &str) -> Result<(), StatusError> {
    if is(resource, "Namespace") && IMMORTAL.contains(&name) {
        let why = "this namespace may not be deleted";
        return Err(StatusError::forbidden(resource.group_resource(), name, why));
    }
    Ok(())
}

/// A request for a certificate says who asks; what its sender wrote there is overwritten.
pub(crate) fn sign_request(request: &mut Value, who: &Identity) {
    cluster::sign_request(request, who);
}

/// What only a new object must not have.
pub(crate) fn validate_new(resource: &Resource, object: &Value, errors: &mut Errors) {
    if is(resource, "Pod") && !object::items(object, &["spec", "ephemeralContainers"]).is_empty() {
        let path = Path::new("spec").child("ephemeralContainers");
        errors.forbidden(&path, "cannot be set on create");
    }
    if is(resource, "Pod") {
        gates::validate_new(object, errors);
    }
    if resource.kind == "CronJob" && resource.group == "batch" {
        workloads::validate_new_cron_job(object, errors);
    }
    if resource.kind == "Event" && !resource.group.is_empty() {
        event::validate_new(object, errors);
    }
}

/// What is wrong with ephemeral containers; those that are there stay as they are.
pub(crate) fn validate_ephemeral(new: &Value, old: &Value) -> Result<(), Errors> {
    let mut errors = Errors::default();
    pod::validate_ephemeral(new, old, &mut errors);
    errors.into_result()
}

/// What is wrong with a resize: containers keep all but their cpu and memory.
pub(crate) fn validate_resize(new: &Value, old: &Value) -> Result<(), Errors> {
    let mut errors = Errors::default();
    pod::validate_resize(new, old, &mut errors);
    errors.into_result()
}

/// The condition of a pod that has its node.
pub(crate) fn pod_scheduled(pod: &mut Value, now: &str) {
    let status = object::child(pod, "status");
    let mut conditions = object::items(status, &["conditions"]).to_vec();
    conditions.retain(|condition| object::text(condition, &["type"]) != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    }));
    object::fields(status).insert("conditions".into(), conditions.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_in_the_schema_once() {
        let mut seen = std::collections::BTreeSet::new();
        for resource in RESOURCES {
            // Panics for a kind that the schema lacks.
            assert!(resource.form().object().is_some(), "{}", resource.kind);
            assert!(seen.insert((resource.group, resource.version, resource.plural)), "{}", resource.plural);
        }
        assert!(seen.len() >= 38, "{}", seen.len());
    }
}
