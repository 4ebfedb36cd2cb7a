//! Which pods a quota is about: its scopes. Pure.

use crate::object::{at, items, text};
use serde_json::Value;

/// Whether a quota has any scope: then it is about pods alone.
fn is_scoped(quota: &Value) -> bool {
    !items(quota, &["spec", "scopes"]).is_empty()
        || !items(quota, &["spec", "scopeSelector", "matchExpressions"]).is_empty()
}

/// Whether a quota is about an object.
pub fn covers(quota: &Value, is_pod: bool, object: &Value) -> bool {
    if !is_scoped(quota) {
        return true;
    }
    let mut scopes = items(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str);
    let mut terms = items(quota, &["spec", "scopeSelector", "matchExpressions"]).iter();
    is_pod
        && scopes.all(|scope| has(object, scope, "Exists", &[]))
        && terms.all(|term| {
            has(object, text(term, &["scopeName"]), text(term, &["operator"]), items(term, &["values"]))
        })
}

fn has(pod: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    let deadline = at(pod, &["spec", "activeDeadlineSeconds"]).as_i64().is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => deadline,
        "NotTerminating" => !deadline,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => is_cross_namespace(pod),
        "PriorityClass" => {
            let class = text(pod, &["spec", "priorityClassName"]);
            let named = values.iter().any(|value| value.as_str() == Some(class)) && !class.is_empty();
            match operator {
                "In" => named,
                "NotIn" => !named,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

/// Nothing of cpu or memory is asked for.
fn is_best_effort(pod: &Value) -> bool {
    let asks = |of: &Value| {
        ["requests", "limits"].iter().any(|kind| {
            let amounts = super::Amounts::read(at(of, &["resources", kind]));
            ["cpu", "memory"].iter().any(|name| !amounts.of(name).is_zero())
        })
    };
    let lists = ["containers", "initContainers"].into_iter();
    !asks(at(pod, &["spec"])) && !lists.flat_map(|list| items(pod, &["spec", list])).any(asks)
}

fn is_cross_namespace(pod: &Value) -> bool {
    let terms = |kind: &str| {
        let affinity = at(pod, &["spec", "affinity", kind]);
        let required = items(affinity, &["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = items(affinity, &["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        let crosses = |term: &Value| {
            !items(term, &["namespaces"]).is_empty() || !at(term, &["namespaceSelector"]).is_null()
        };
        required.clone().any(crosses) || preferred.map(|wish| at(wish, &["podAffinityTerm"])).any(crosses)
    };
    terms("podAffinity") || terms("podAntiAffinity")
}
