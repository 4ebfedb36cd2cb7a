//! Which objects of a list or a watch are wanted: `coracle_api::selector`, and which fields a kind lets select.

use super::Resource;
use crate::object;
use coracle_api::field::quoted;
use coracle_api::selector::{FieldSelector, LabelSelector, SelectorError};
use coracle_api::status::StatusError;
use memchr::memmem::Finder;
use serde_json::Value;
use std::borrow::Cow;

/// What objects must be like.
#[derive(Clone, Debug)]
pub struct Selector {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
    /// What the bytes of every wanted object hold, so that others need not be read: a thousand boards watch the pods of all.
    needle: Option<Finder<'static>>,
}

impl Selector {
    /// Reads both query parameters.
    ///
    /// # Errors
    /// 400, worded as upstream.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Selector, StatusError> {
        let labels =
            LabelSelector::parse(labels).map_err(|error| StatusError::bad_request(error.to_string()))?;
        let supported = |field: &str| {
            field == "metadata.name"
                || (field == "metadata.namespace" && resource.namespaced)
                || resource.selectable.contains(&field)
        };
        let fields = FieldSelector::parse(fields, supported).map_err(|error| match error {
            // Of kinds that have no fields of their own upstream says more.
            SelectorError::FieldUnsupported(field) if resource.selectable.is_empty() => {
                StatusError::bad_request(format!(
                    "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    quoted(&field)
                ))
            }
            error => StatusError::bad_request(error.to_string()),
        })?;
        let needle = fields.terms().iter().filter(|term| term.equal).find_map(|term| needle(&term.value));
        Ok(Selector { labels, fields, name: None, needle })
    }

    /// Whether everything is wanted.
    pub fn is_empty(&self) -> bool {
        self.labels.is_everything() && self.fields.terms().is_empty() && self.name.is_none()
    }

    /// Whether the object that these bytes are may be wanted, without reading them: `false` is certain.
    pub fn may_match(&self, stored: &[u8]) -> bool {
        self.needle.as_ref().is_none_or(|needle| needle.find(stored).is_some())
    }

    /// Whether the object is wanted.
    pub fn matches(&self, object: &Value) -> bool {
        self.name.as_deref().is_none_or(|name| name == object::name(object))
            && self.labels.matches_object(object)
            && self.fields.terms().iter().all(|term| (field(object, &term.field) == term.value) == term.equal)
    }

    /// Wants this name too.
    pub fn require_name(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    /// The one name that is asked for by `metadata.name=NAME`.
    pub fn only_name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }
}

/// A value as it stands in JSON: one that is a string there, and has no character that could be written in two ways.
fn needle(value: &str) -> Option<Finder<'static>> {
    let plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let string = value.bytes().any(|byte| byte.is_ascii_alphabetic()) && !matches!(value, "true" | "false");
    (plain && string).then(|| Finder::new(&format!("\"{value}\"")).into_owned())
}

/// The value of a selectable field; what is not set is Go's zero of its type.
fn field<'a>(object: &'a Value, field: &str) -> Cow<'a, str> {
    let path = match field {
        // Upstream's names for what lies elsewhere.
        "source" => "source.component",
        "spec.host" => "spec.nodeName",
        field => field,
    };
    match path.split('.').try_fold(object, |value, key| value.get(key)) {
        Some(Value::String(text)) => Cow::Borrowed(text),
        Some(Value::Bool(value)) => Cow::Borrowed(if *value { "true" } else { "false" }),
        Some(Value::Number(number)) => Cow::Owned(number.to_string()),
        _ => Cow::Borrowed(match field {
            "spec.unschedulable" | "spec.hostNetwork" => "false",
            "status.replicas" | "status.successful" => "0",
            _ => "",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    #[test]
    fn what_need_not_be_read_is_never_wanted() {
        let pods = kinds::find("", "v1", "pods").expect("in the table");
        let pod = |node: &str, host_network: bool| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node, "hostNetwork": host_network}});
        let check = |fields: &str, pod: &Value, may: bool| {
            let selector = Selector::parse(pods, "", fields).expect("a selector");
            assert_eq!(selector.may_match(pod.to_string().as_bytes()), may, "{fields} {pod}");
            assert!(may || !selector.matches(pod), "{fields} {pod}");
        };
        check("spec.nodeName=board-1", &pod("board-1", false), true);
        check("spec.nodeName=board-1", &pod("board-2", false), false);
        check("spec.nodeName=board-1", &pod("board-10", false), false);
        check("spec.nodeName=board-1,spec.hostNetwork=true", &pod("board-1", true), true);
        // These are no strings in the bytes, or are not there at all.
        check("spec.hostNetwork=true", &pod("board-1", true), true);
        check("spec.hostNetwork=false", &json!({"metadata": {"name": "p"}}), true);
        check("spec.nodeName=", &json!({"metadata": {"name": "p"}}), true);
        check("spec.nodeName!=board-1", &pod("board-2", false), true);
        check("", &pod("board-2", false), true);
    }
}
