//! `/openapi/v3`: which paths there are, and that they understand `fieldValidation` — what kubectl asks before it leaves
//! validation to the server.
//!
//! Left out until it is made of the schema: the schemas themselves (`kubectl explain`). A patch's body is left out on
//! purpose: kubectl then merges by the types that it was built with, whose merge keys are those of the server.

use crate::kinds::RESOURCES;
use crate::registry::{Resource, api_version};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Query parameters of a write that clients look for.
const PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];

fn prefix(group: &str, version: &str) -> String {
    let root = if group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", api_version(group, version))
}

/// The document behind `/openapi/v3`: the index, or one of a group and version.
pub(super) fn document(path: &str) -> Option<Value> {
    let versions: BTreeSet<String> =
        RESOURCES.iter().map(|resource| prefix(resource.group, resource.version)).collect();
    let path = match path {
        "" => return Some(index(&versions)),
        path => path.strip_prefix('/')?,
    };
    let mut paths = Map::new();
    for resource in RESOURCES.iter().filter(|resource| prefix(resource.group, resource.version) == path) {
        describe(resource, path, &mut paths);
    }
    let info = json!({"title": "Kubernetes", "version": "v1.35.0"});
    versions
        .contains(path)
        .then(|| json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}))
}

fn index(versions: &BTreeSet<String>) -> Value {
    let hash = env!("CARGO_PKG_VERSION");
    let entry = |path: &String| {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        (path.clone(), json!({"serverRelativeURL": url}))
    };
    json!({"paths": versions.iter().map(entry).collect::<Map<_, _>>()})
}

fn describe(resource: &Resource, prefix: &str, paths: &mut Map<String, Value>) {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let parameters: Vec<Value> = PARAMETERS
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    let write = |action: &str| {
        json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": kind,
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
        })
    };
    let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
    let collection = format!("/{prefix}/{scope}{}", resource.plural);
    paths.insert(format!("{collection}/{{name}}"), json!({"put": write("put"), "patch": write("patch")}));
    paths.insert(collection, json!({"post": write("post")}));
}
