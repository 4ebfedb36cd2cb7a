//! Quotas: what may be limited, and for which pods.

use crate::object::{at, items, text};
use crate::quota;
use coracle_api::field::{Errors, Path};
use coracle_api::quantity::Quantity;
use serde_json::Value;

/// What a quota may limit without a domain in its name.
const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// Of those, what is no number of objects.
const DIVISIBLE: [&str; 4] = ["cpu", "memory", "storage", "hugepages-"];
const SCOPES: [&str; 6] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];
const OPPOSITES: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

/// Reservations are the control plane's: whoever replaces a quota does not know of them.
pub(super) fn update(new: &mut Value, old: &Value) {
    quota::set_reservations(new, &quota::reservations(old));
}

pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let (spec, path) = (at(object, &["spec"]), Path::new("spec"));
    for (name, amount) in at(spec, &["hard"]).as_object().into_iter().flatten() {
        let path = path.child("hard").key(name);
        let huge = name.starts_with("hugepages-") || name.starts_with("requests.hugepages-");
        if !STANDARD.contains(&name.as_str()) && !name.contains('/') && !huge {
            errors.invalid(&path, name.as_str(), "must be a standard resource for quota");
            continue;
        }
        let Some(amount) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) else { continue };
        if amount.is_negative() {
            errors.invalid(&path, amount.to_string(), "must be greater than or equal to 0");
        } else if !DIVISIBLE.iter().any(|part| name.contains(part)) && amount.millis() % 1000 != 0 {
            errors.invalid(&path, amount.to_string(), "must be an integer");
        }
    }
    let scopes: Vec<&str> = items(spec, &["scopes"]).iter().filter_map(Value::as_str).collect();
    let terms = items(spec, &["scopeSelector", "matchExpressions"]).iter();
    let selected: Vec<&str> = terms.map(|term| text(term, &["scopeName"])).collect();
    let told = [
        (scopes, path.child("scopes"), at(spec, &["scopes"])),
        (
            selected,
            path.child("scopeSelector").child("matchExpressions"),
            at(spec, &["scopeSelector", "matchExpressions"]),
        ),
    ];
    for (scopes, path, value) in told {
        for scope in &scopes {
            if !SCOPES.contains(scope) {
                errors.invalid(&path, value.clone(), "unsupported scope");
            }
            let names = at(spec, &["hard"]).as_object().into_iter().flatten().map(|(name, _)| name);
            if names.into_iter().any(|name| !is_scoped(scope, name)) {
                errors.invalid(&path, value.clone(), "unsupported scope applied to resource");
            }
        }
        if OPPOSITES.iter().any(|pair| pair.iter().all(|scope| scopes.contains(scope))) {
            errors.invalid(&path, value.clone(), "conflicting scopes");
        }
    }
    for (index, term) in items(spec, &["scopeSelector", "matchExpressions"]).iter().enumerate() {
        let path = path.child("scopeSelector").child("matchExpressions").index(index);
        let (operator, values) = (text(term, &["operator"]), items(term, &["values"]));
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.required(&path.child("values"), why);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
                errors.invalid(&path.child("values"), values.to_vec(), why);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
    }
}

/// Whether a resource can be limited for the pods of a scope alone.
fn is_scoped(scope: &str, name: &str) -> bool {
    let pods = crate::kinds::find("", "v1", "pods").expect("pods are in the table");
    match scope {
        "BestEffort" => name == "pods",
        _ => quota::measures(pods, name) && !name.starts_with("count/"),
    }
}

pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let scopes = |object: &Value| {
        let mut scopes: Vec<String> =
            items(object, &["spec", "scopes"]).iter().map(Value::to_string).collect();
        scopes.sort_unstable();
        scopes
    };
    if scopes(new) != scopes(old) {
        errors.invalid(
            &Path::new("spec").child("scopes"),
            at(new, &["spec", "scopes"]).clone(),
            "field is immutable",
        );
    }
}
