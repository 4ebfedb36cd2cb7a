//! Discovery: what is served, made of the table of kinds, in the old form and the aggregated one.

use crate::kinds::{COMPUTED, RESOURCES};
use crate::registry::{Resource, api_version};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Groups with their versions, the preferred one first; the core group is the empty name.
fn groups() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in RESOURCES.iter().chain(COMPUTED) {
        let versions = groups.entry(resource.group).or_default();
        if !versions.contains(&resource.version) {
            versions.push(resource.version);
        }
    }
    groups
}

fn of(group: &str, version: &str) -> Vec<&'static Resource> {
    let all = RESOURCES.iter().chain(COMPUTED);
    all.filter(|resource| resource.group == group && resource.version == version).collect()
}

/// Whether the group has that version.
pub(super) fn is_served(group: &str, version: &str) -> bool {
    !of(group, version).is_empty()
}

/// `/api`: `APIVersions`.
pub(super) fn core_versions() -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    })
}

fn group_fields(name: &str, versions: &[&str]) -> Value {
    let version = |version: &&str| json!({"groupVersion": api_version(name, version), "version": version});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": version(&versions[0]),
    })
}

/// `/apis`: `APIGroupList`.
pub(super) fn group_list() -> Value {
    let groups: Vec<Value> = groups()
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, versions)| group_fields(name, versions))
        .collect();
    json!({"apiVersion": "v1", "kind": "APIGroupList", "groups": groups})
}

/// `/apis/GROUP`: `APIGroup`.
pub(super) fn group(name: &str) -> Option<Value> {
    let groups = groups();
    let versions = groups.get(name).filter(|_| !name.is_empty())?;
    let mut group = group_fields(name, versions);
    group["apiVersion"] = "v1".into();
    group["kind"] = "APIGroup".into();
    Some(group)
}

/// `/api/v1`, `/apis/GROUP/VERSION`: `APIResourceList`.
pub(super) fn resource_list(group: &str, version: &str) -> Option<Value> {
    let resources = of(group, version);
    if resources.is_empty() {
        return None;
    }
    let mut list = Vec::new();
    for resource in resources {
        let mut item = json!({
            "kind": resource.kind,
            "name": resource.plural,
            "namespaced": resource.namespaced,
            "singularName": resource.singular,
            "verbs": resource.verbs.names(),
        });
        if !resource.short_names.is_empty() {
            item["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            item["categories"] = json!(resource.categories);
        }
        list.push(item);
        for part in resource.subresources {
            let mut item = json!({
                "kind": part.kind,
                "name": format!("{}/{}", resource.plural, part.name),
                "namespaced": resource.namespaced,
                "singularName": "",
                "verbs": part.verbs,
            });
            if let Some((group, version)) = part.of {
                item["group"] = group.into();
                item["version"] = version.into();
            }
            list.push(item);
        }
    }
    let group_version = api_version(group, version);
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// `APIGroupDiscoveryList`: the core group alone, or all others.
pub(super) fn aggregated(core: bool) -> Value {
    let items: Vec<Value> = groups()
        .iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of(name, version).into_iter().map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |kind: &str, of: Option<(&str, &str)>| {
        let (group, version) = of.unwrap_or((resource.group, resource.version));
        json!({"group": group, "version": version, "kind": kind})
    };
    let mut item = json!({
        "resource": resource.plural,
        "responseKind": kind(resource.kind, None),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs.names(),
    });
    if !resource.short_names.is_empty() {
        item["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        item["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        item["subresources"] = resource
            .subresources
            .iter()
            .map(|part| {
                json!({"subresource": part.name, "responseKind": kind(part.kind, part.of), "verbs": part.verbs})
            })
            .collect();
    }
    item
}

/// The list of the kinds that were added: none can be.
pub(super) fn no_definitions() -> Value {
    json!({
        "kind": "CustomResourceDefinitionList",
        "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"resourceVersion": "0"},
        "items": [],
    })
}

/// The version of the API, and of this program.
pub(super) fn git_version() -> String {
    concat!("v1.35.0+coracle.", env!("CARGO_PKG_VERSION")).into()
}

/// `/version`: the API's version, of which kubectl tolerates one minor more or less.
pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "35",
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", platform()),
    })
}

/// Go's name of the architecture.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
