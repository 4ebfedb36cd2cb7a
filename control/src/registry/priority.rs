//! The admission plugin Priority: a pod's class becomes its number; and the classes that a cluster has from its start.

use super::{Registry, Target, load, refused};
use crate::kinds;
use crate::object::{self, at, text};
use crate::storage::ListQuery;
use coracle_api::status::StatusError;
use serde_json::{Value, json};

/// Upstream's system classes: their names, values and descriptions.
const SYSTEM: &[(&str, i64, &str)] = &[
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];

impl Registry {
    /// Sets the priority of a new pod.
    pub(super) async fn admit_priority(&self, target: &Target, pod: &mut Value) -> Result<(), StatusError> {
        let classes = kinds::find("scheduling.k8s.io", "v1", "priorityclasses")
            .expect("priority classes are in the table");
        let name = text(pod, &["spec", "priorityClassName"]).to_string();
        let forbidden = |pod: &Value, why: String| {
            StatusError::forbidden(target.resource.group_resource(), object::name(pod), why)
        };
        let class = if name.is_empty() {
            let query = ListQuery { prefix: classes.prefix(""), ..ListQuery::default() };
            let page = self.storage.list(&query).await.map_err(refused)?;
            let all = page.entries.iter().map(|entry| load(classes, entry));
            default_class(all.collect::<Result<Vec<Value>, _>>()?)
        } else {
            let entry = self.storage.get(&classes.key("", &name)).await.map_err(refused)?;
            let missing = || forbidden(pod, format!("no PriorityClass with name {name} was found"));
            Some(load(classes, &entry.ok_or_else(missing)?)?)
        };
        let (mut priority, mut policy) = (0, "PreemptLowerPriority".to_string());
        if let Some(class) = class {
            priority = at(&class, &["value"]).as_i64().unwrap_or_default();
            if let policy_of_class @ ("Never" | "PreemptLowerPriority") = text(&class, &["preemptionPolicy"])
            {
                policy = policy_of_class.into();
            }
            if name.is_empty() {
                let spec = object::fields(object::child(pod, "spec"));
                spec.insert("priorityClassName".into(), object::name(&class).into());
            }
        }
        match at(pod, &["spec", "priority"]).as_i64() {
            Some(said) if said != priority => {
                let why = format!(
                    "the integer value of priority ({said}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
                );
                return Err(forbidden(pod, why));
            }
            _ => {}
        }
        match text(pod, &["spec", "preemptionPolicy"]) {
            "" => {}
            said if said != policy => {
                let why = format!(
                    "the string value of PreemptionPolicy ({said}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
                );
                return Err(forbidden(pod, why));
            }
            _ => {}
        }
        let spec = object::fields(object::child(pod, "spec"));
        spec.insert("priority".into(), priority.into());
        spec.insert("preemptionPolicy".into(), policy.into());
        Ok(())
    }

    /// The classes that every cluster has. Idempotent.
    pub(super) async fn furnish_priorities(&self) -> Result<(), StatusError> {
        let classes = kinds::find("scheduling.k8s.io", "v1", "priorityclasses")
            .expect("priority classes are in the table");
        for (name, value, description) in SYSTEM {
            let class = json!({"metadata": {"name": name}, "value": value, "description": description});
            self.put_absent_of(classes, class).await?;
        }
        Ok(())
    }
}

/// The class of pods that name none: of several that say so the least.
fn default_class(classes: Vec<Value>) -> Option<Value> {
    let defaults = classes.into_iter().filter(|class| at(class, &["globalDefault"]).as_bool() == Some(true));
    defaults.min_by_key(|class| at(class, &["value"]).as_i64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_default_is_the_default() {
        let class = |name: &str, value: i64, default: bool| json!({"metadata": {"name": name}, "value": value, "globalDefault": default});
        let check = |classes: Vec<Value>, expected: Option<&str>| {
            assert_eq!(default_class(classes).as_ref().map(object::name), expected);
        };
        check(vec![class("a", 5, false)], None);
        check(vec![class("a", 5, true), class("b", 3, true), class("c", 1, false)], Some("b"));
    }
}
