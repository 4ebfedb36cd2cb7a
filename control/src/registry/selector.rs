//! Which objects of a list or a watch are wanted: `coracle_api::selector`, and which fields a kind lets select.

use super::Resource;
use crate::object;
use coracle_api::field::quoted;
use coracle_api::selector::{FieldSelector, LabelSelector, SelectorError};
use coracle_api::status::StatusError;
use serde_json::Value;
use std::borrow::Cow;

/// What objects must be like.
#[derive(Clone, Debug)]
pub struct Selector {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
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
        Ok(Selector { labels, fields, name: None })
    }

    /// Whether everything is wanted.
    pub fn is_empty(&self) -> bool {
        self.labels.is_everything() && self.fields.terms().is_empty() && self.name.is_none()
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
