//! What cells are made of.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use crate::selector::LabelSelector;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
pub(super) const UNKNOWN: &str = "<unknown>";

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The text, or what stands for none.
pub(super) fn or<'a>(value: &'a Value, otherwise: &'a str) -> &'a str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or(otherwise)
}

pub(super) fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn name(object: &Value) -> Value {
    text(&object["metadata"]["name"]).into()
}

pub(super) fn made(object: &Value, now: Timestamp) -> Value {
    age::since(&object["metadata"]["creationTimestamp"], now).into()
}

pub(super) fn deleted(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a condition of that type is true.
pub(super) fn is_true(conditions: &Value, kind: &str) -> bool {
    list(conditions).iter().any(|c| text(&c["type"]) == kind && text(&c["status"]) == "True")
}

/// Names and images of a pod spec's containers.
pub(super) fn containers(spec: &Value) -> [Value; 2] {
    let all = |field: &str| {
        list(&spec["containers"]).iter().map(|c| text(&c[field])).collect::<Vec<_>>().join(",").into()
    };
    [all("name"), all("image")]
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(labels: &Value) -> String {
    let pairs = labels.as_object().into_iter().flatten();
    let shown: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", text(value))).collect();
    if shown.is_empty() { NONE.to_owned() } else { shown.join(",") }
}

/// A `metav1.LabelSelector` as its text.
pub(super) fn selector(selector: &Value) -> String {
    match LabelSelector::from_value(selector).map(|selector| selector.to_string()) {
        Ok(text) if text.is_empty() => NONE.to_owned(),
        Ok(text) => text,
        Err(_) => "<error>".to_owned(),
    }
}

/// The first `most`, and how many more there are.
pub(super) fn first(items: &[String], most: usize, separator: &str) -> String {
    let shown = items[..items.len().min(most)].join(separator);
    match items.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

/// A quantity or an IntOrString as its text.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
