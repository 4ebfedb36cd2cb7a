//! Discovery: what the server says that it serves, as a list a version and as one list of all.

use crate::control::{Ask, Control};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// What upstream serves and this server does not, on purpose; everything else must be there, word by word.
const ABSENT: &[&str] = &[
    // Deprecated since 1.19: `/readyz` says it.
    "v1/componentstatuses",
    // `pods/binding` does the same, and is what schedulers post to.
    "v1/bindings",
];

fn upstream() -> Map<String, Value> {
    serde_json::from_str(include_str!("../fixtures/discovery.json")).expect("the fixture")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[tokio::test]
async fn every_kind_of_upstreams_is_told_of_as_upstream_does() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let mut missing = BTreeSet::new();
    for (group_version, theirs) in &upstream() {
        let root = if group_version == "v1" { "/api" } else { "/apis" };
        let (_, ours) = client.json("GET", &format!("{root}/{group_version}"), None).await;
        for resource in list(theirs) {
            match list(&ours["resources"]).iter().find(|our| our["name"] == resource["name"]) {
                Some(found) => assert_eq!(found, resource, "{group_version}"),
                None => {
                    missing.insert(format!("{group_version}/{}", resource["name"].as_str().expect("a name")));
                }
            }
        }
    }
    let absent: BTreeSet<String> = ABSENT.iter().map(ToString::to_string).collect();
    assert_eq!(missing, absent);
    let (_, groups) = client.json("GET", "/apis", None).await;
    let preferred =
        |group: &Value| group["name"] == "autoscaling" && group["preferredVersion"]["version"] == "v2";
    assert!(list(&groups["groups"]).iter().any(preferred), "{groups}");
}

/// A resource of the lists a version, as the list of all has it; its parts apart.
fn aggregated(resource: &Value, group: &str, version: &str, name: &str) -> Value {
    let text = |key: &str, otherwise: &str| resource[key].as_str().unwrap_or(otherwise).to_string();
    let kind =
        json!({"group": text("group", group), "version": text("version", version), "kind": resource["kind"]});
    let mut verbs: Vec<_> = list(&resource["verbs"]).to_vec();
    verbs.sort_by_key(ToString::to_string);
    if let Some((_, part)) = name.split_once('/') {
        return json!({"subresource": part, "responseKind": kind, "verbs": verbs});
    }
    let mut item = json!({
        "resource": name,
        "responseKind": kind,
        "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
        "singularResource": resource["singularName"],
        "verbs": verbs,
    });
    for key in ["shortNames", "categories"] {
        if !resource[key].is_null() {
            item[key] = resource[key].clone();
        }
    }
    item
}

/// kubectl since 1.26 and client-go ask for these two alone.
#[tokio::test]
async fn the_list_of_all_groups_says_the_same() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let accept = concat!(
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,",
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
    );
    let mut found = Map::new();
    for path in ["/api", "/apis"] {
        let response = client.send(Ask { method: "GET", path, accept, ..Ask::default() }).await;
        let of = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(response.headers()["content-type"], of, "clients go by it");
        let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
        let all: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            (&all["kind"], &all["apiVersion"]),
            (&json!("APIGroupDiscoveryList"), &json!("apidiscovery.k8s.io/v2"))
        );
        for group in list(&all["items"]) {
            for version in list(&group["versions"]) {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                let version_name = version["version"].as_str().expect("a version");
                assert_eq!(version["freshness"], "Current");
                let key =
                    if name.is_empty() { version_name.into() } else { format!("{name}/{version_name}") };
                assert!(found.insert(key, version["resources"].clone()).is_none(), "twice: {name}");
            }
        }
    }
    for (group_version, theirs) in &upstream() {
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        for resource in list(theirs) {
            let name = resource["name"].as_str().expect("a name");
            if ABSENT.contains(&format!("{group_version}/{name}").as_str()) {
                continue;
            }
            let parent = name.split('/').next().expect("a first word");
            let mut ours = list(&found[group_version])
                .iter()
                .find(|our| our["resource"] == parent)
                .unwrap_or_else(|| panic!("{group_version}/{name}"))
                .clone();
            let parts = ours["subresources"].take();
            if name != parent {
                let part = |part: &&Value| part["subresource"].as_str() == name.split('/').nth(1);
                ours = list(&parts).iter().find(part).unwrap_or_else(|| panic!("{name}")).clone();
            } else {
                ours.as_object_mut().expect("an object").remove("subresources");
            }
            if let Some(verbs) = ours["verbs"].as_array_mut() {
                verbs.sort_by_key(ToString::to_string);
            }
            assert_eq!(ours, aggregated(resource, group, version, name), "{group_version}/{name}");
        }
    }
}
