//! `/openapi/v3` and `/openapi/v2`: documents of what the table of kinds serves, made by `coracle_api::openapi`.
//!
//! A document is made when it is asked for and not kept: clients keep it by its hash, which is that of the paths and this
//! program's version.

use super::discovery;
use crate::kinds::RESOURCES;
use crate::registry::{Resource, Verbs, api_version};
use coracle_api::openapi::{self, Served, Verb};
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

const COLLECTION: &[Verb] = &[Verb::List, Verb::Create, Verb::DeleteCollection];
const COLLECTION_KEPT: &[Verb] = &[Verb::List, Verb::Create];
const REVIEWED: &[Verb] = &[Verb::Create];
const OBJECT: &[Verb] = &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete];
const PART: &[Verb] = &[Verb::Get, Verb::Update, Verb::Patch];

fn prefix(group: &str, version: &str) -> String {
    let root = if group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", api_version(group, version))
}

/// A path, whose group and version, kind and verbs.
type Row = (String, String, &'static str, &'static [Verb]);

/// Every path of some kinds.
fn rows(wanted: impl Fn(&Resource) -> bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for resource in RESOURCES.iter().filter(|resource| wanted(resource)) {
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let root = prefix(resource.group, resource.version);
        let collection = format!("/{root}/{scope}{}", resource.plural);
        let object = format!("{collection}/{{name}}");
        for part in resource.subresources.iter().filter(|part| part.verbs.contains(&"get")) {
            let (group, version) = part.of.unwrap_or((resource.group, resource.version));
            rows.push((format!("{object}/{}", part.name), api_version(group, version), part.kind, PART));
        }
        let verbs = match resource.verbs {
            Verbs::All | Verbs::ReadOnly => COLLECTION,
            Verbs::NoDeleteCollection => COLLECTION_KEPT,
            Verbs::Create => REVIEWED,
        };
        if resource.verbs != Verbs::Create {
            rows.push((object, resource.api_version(), resource.kind, OBJECT));
        }
        rows.push((collection, resource.api_version(), resource.kind, verbs));
    }
    rows
}

fn served(rows: &[Row]) -> Vec<Served<'_>> {
    rows.iter()
        .map(|(path, group_version, kind, verbs)| Served { path, group_version, kind, verbs })
        .collect()
}

/// The document behind `/openapi/v3`: the index, or one of a group and version.
pub(super) fn v3(path: &str) -> Option<Value> {
    let versions: BTreeSet<String> =
        RESOURCES.iter().map(|resource| prefix(resource.group, resource.version)).collect();
    let path = match path {
        "" => return Some(index(&versions)),
        path => path.strip_prefix('/')?,
    };
    let rows = rows(|resource| prefix(resource.group, resource.version) == path);
    (!rows.is_empty()).then(|| openapi::v3(&discovery::git_version(), &served(&rows)))
}

/// `/openapi/v2`: everything in one document.
pub(super) fn v2() -> Value {
    openapi::v2(&discovery::git_version(), &served(&rows(|_| true)))
}

fn index(versions: &BTreeSet<String>) -> Value {
    let paths: String = rows(|_| true).into_iter().map(|(path, ..)| path + "\n").collect();
    let digest = digest(&SHA256, (paths + env!("CARGO_PKG_VERSION")).as_bytes());
    let hash: String = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect();
    let entry = |path: &String| {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        (path.clone(), json!({"serverRelativeURL": url}))
    };
    json!({"paths": versions.iter().map(entry).collect::<Map<_, _>>()})
}
