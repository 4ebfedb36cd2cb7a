//! Aggregated cluster roles: their rules are those of the roles that their selectors match (upstream's
//! clusterrole-aggregation-controller).

use super::Identity;
use crate::kinds;
use crate::object;
use crate::registry::options::{ListOptions, Query, WriteOptions};
use crate::registry::{Registry, Target};
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::selector::LabelSelector;
use coracle_api::status::StatusError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const CONTROLLER: &str = "clusterrole-aggregation-controller";
/// Roles that gather from roles that gather, at the start; the rest follows by watch.
const DEPTH_MAX: usize = 8;
/// Between two attempts, when the storage refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Sets the rules of aggregated roles whenever `changed` tells that some cluster role is another one now.
pub(super) async fn run(registry: Registry, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        if let Err(error) = aggregate(&registry).await {
            tracing::warn!(%error, "roles are not aggregated");
            tokio::time::sleep(RETRY).await;
            changed.notify_one();
        }
    }
}

/// Sets the rules of aggregated roles until they are what they should be, those that gather from others included.
pub(super) async fn settle(registry: &Registry) -> Result<(), StatusError> {
    for _ in 0..DEPTH_MAX {
        if aggregate(registry).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// One round; how many roles were not what they should be.
async fn aggregate(registry: &Registry) -> Result<usize, StatusError> {
    let resource = kinds::find("rbac.authorization.k8s.io", "v1", "clusterroles")
        .expect("cluster roles are in the table");
    let target = |name: &str| Target { resource, namespace: String::new(), name: name.into() };
    let options = ListOptions::parse(resource, &Query::default())?;
    let roles = registry.list(&target(""), &options).await?.items;
    // It gathers what others have: that is no escalation, as they had to be allowed to write it.
    let who =
        Identity { user: format!("system:serviceaccount:kube-system:{CONTROLLER}"), ..Identity::apiserver() };
    let options = WriteOptions { manager: CONTROLLER.into(), ..WriteOptions::default() };
    let wanted = wanted(&roles);
    let count = wanted.len();
    for (name, rules) in wanted {
        let patch = Document { value: json!({"rules": rules}), duplicates: Vec::new() };
        match registry.patch(&who, &target(&name), None, (PatchType::Merge, patch), &options).await {
            Ok(_) => {}
            // It was deleted meanwhile.
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// The aggregated roles whose rules are not what they should be, and what they should be. Roles that gather from
/// aggregated ones follow once those are written.
fn wanted(roles: &[Value]) -> Vec<(String, Vec<Value>)> {
    let mut wanted = Vec::new();
    for role in roles {
        let selectors = object::at(role, &["aggregationRule"]);
        if !selectors.is_object() {
            continue;
        }
        let mut rules: Vec<Value> = Vec::new();
        for selector in object::items(selectors, &["clusterRoleSelectors"]) {
            // A selector that cannot be read gathers nothing, as upstream.
            let Ok(selector) = LabelSelector::from_value(selector) else { continue };
            for other in roles {
                if object::name(other) == object::name(role) || !selector.matches_object(other) {
                    continue;
                }
                for rule in object::items(other, &["rules"]) {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        if rules.as_slice() != object::items(role, &["rules"]) {
            wanted.push((object::name(role).to_string(), rules));
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_roles_have_the_rules_of_those_that_match() {
        let rule = |verb: &str| json!({"apiGroups": [""], "resources": ["pods"], "verbs": [verb]});
        let role = |name: &str, label: &str, rules: Vec<Value>| json!({"metadata": {"name": name, "labels": {label: "true"}}, "rules": rules});
        let mut all = role("all", "x", vec![]);
        all["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"in": "true"}}]});
        let roles = [
            all,
            role("a", "in", vec![rule("get")]),
            role("b", "in", vec![rule("get"), rule("list")]),
            role("c", "out", vec![rule("delete")]),
        ];
        assert_eq!(wanted(&roles), [("all".to_string(), vec![rule("get"), rule("list")])]);
        let mut roles = roles;
        roles[0]["rules"] = json!([rule("get"), rule("list")]);
        assert_eq!(wanted(&roles), []);
    }
}
