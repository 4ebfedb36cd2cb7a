//! Label and field selectors: what `labelSelector=`, `fieldSelector=` and `metav1.LabelSelector` ask for.
//!
//! Follows `k8s.io/apimachinery/pkg/labels` and `…/fields`, parse errors word for word. A selector is parsed once and
//! matched often, so matching allocates nothing. Left out: which fields a kind can be selected by; the kinds say.

mod fields;
mod parse;

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use crate::field::{Errors, Path, Problem, quoted};
use crate::names;

pub use fields::{FieldSelector, FieldTerm};

/// Bytes of a selector in a request. Upstream has no bound but that of the URL.
pub const SELECTOR_BYTES_MAX: usize = 64 << 10;

/// A selector that says nothing that can be matched; the text is the message of a 400.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SelectorError {
    /// Longer than [`SELECTOR_BYTES_MAX`].
    #[error("selector is longer than {SELECTOR_BYTES_MAX} bytes")]
    TooLong,
    /// Where a requirement should start, or end.
    #[error("found '{found}', expected: {expected}")]
    Syntax { found: String, expected: &'static str },
    /// In a requirement.
    #[error("unable to parse requirement: {0}")]
    Requirement(#[from] RequirementError),
    /// In a `metav1.LabelSelector`.
    #[error("{} is not a valid label selector operator", quoted(.0))]
    Operator(String),
    /// A `metav1.LabelSelector` that is none.
    #[error("the label selector must be an object of matchLabels and matchExpressions")]
    Shape,
    /// Of a field selector.
    #[error("invalid selector: '{selector}'; can't understand '{part}'")]
    FieldSyntax { selector: String, part: String },
    /// Of a field selector: `\` before something that needs none.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    FieldEscape(String),
    /// Of a field selector: a bare `=` or `,` in a value. Upstream prints its number.
    #[error("invalid field selector: unescaped character in value: {0}")]
    FieldUnescaped(u32),
    /// The kind cannot be selected by that field.
    #[error("field label not supported: {0}")]
    FieldUnsupported(String),
}

/// What is wrong with one requirement.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequirementError {
    #[error("found '{found}', expected: {expected}")]
    Syntax { found: String, expected: &'static str },
    /// Upstream's message has no comma here.
    #[error("found '{0}' expected: '('")]
    NoList(String),
    /// Key, operator and values do not go together.
    #[error("{0}")]
    Invalid(Errors),
}

/// How a requirement's key and values go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: BTreeSet<String>,
}

/// A label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelSelector {
    /// What a `metav1.LabelSelector` of null selects.
    Nothing,
    /// All of them must hold; none selects everything. Sorted by key.
    All(Vec<Requirement>),
}

impl Requirement {
    /// Checks that key, operator and values go together. `path` is where errors say that it stands.
    pub fn new(
        key: &str,
        operator: Operator,
        values: impl IntoIterator<Item = String>,
        path: &Path,
    ) -> Result<Requirement, RequirementError> {
        let values: BTreeSet<String> = values.into_iter().collect();
        let mut errors = Errors::default();
        invalid_key(&mut errors, &path.child("key"), key);
        let at = path.child("values");
        let all = || Value::from(values.iter().cloned().collect::<Vec<_>>());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errors.invalid(&at, all(), "for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errors.invalid(&at, all(), "exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errors.invalid(&at, all(), "values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.invalid(&at, all(), "for 'Gt', 'Lt' operators, exactly one value is required");
                }
                for (index, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errors.invalid(&at.index(index), value.as_str(), detail);
                }
            }
            _ => {}
        }
        for (index, value) in values.iter().enumerate() {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                errors.invalid(&at.index(index).key(key), value.as_str(), wrong.join("; "));
            }
        }
        errors.into_result().map_err(RequirementError::Invalid)?;
        Ok(Requirement { key: key.to_owned(), operator, values })
    }

    fn matches<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        let value = label(&self.key);
        let compared = |holds: fn(i64, i64) -> bool| {
            let number = |text: &str| text.parse::<i64>().ok();
            let bound = self.values.first().and_then(|v| number(v));
            value.and_then(number).zip(bound).is_some_and(|(value, bound)| holds(value, bound))
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => {
                value.is_some_and(|v| self.values.contains(v))
            }
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compared(|value, bound| value > bound),
            Operator::LessThan => compared(|value, bound| value < bound),
        }
    }
}

impl LabelSelector {
    /// Reads `app=a,tier in (x,y),!old`. The empty text selects everything.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        parse::requirements(text).map(LabelSelector::sorted)
    }

    /// The selector of labels that must all be there, as `Service.spec.selector` has it. Values are not checked.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> LabelSelector {
        let requirement = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: BTreeSet::from([value.to_owned()]),
        };
        LabelSelector::sorted(labels.into_iter().map(requirement).collect())
    }

    /// Reads a `metav1.LabelSelector`: null selects nothing, the empty one everything.
    pub fn from_value(selector: &Value) -> Result<LabelSelector, SelectorError> {
        if selector.is_null() {
            return Ok(LabelSelector::Nothing);
        }
        let object = selector.as_object().ok_or(SelectorError::Shape)?;
        let mut all = Vec::new();
        match object.get("matchLabels") {
            None | Some(Value::Null) => {}
            Some(labels) => {
                for (key, value) in labels.as_object().ok_or(SelectorError::Shape)? {
                    let value = value.as_str().ok_or(SelectorError::Shape)?.to_owned();
                    all.push(Requirement::new(key, Operator::Equals, [value], &Path::default())?);
                }
            }
        }
        for expression in list(object.get("matchExpressions"))? {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            let values: Option<Vec<String>> =
                list(expression.get("values"))?.iter().map(|v| v.as_str().map(str::to_owned)).collect();
            let values = values.ok_or(SelectorError::Shape)?;
            all.push(Requirement::new(text("key"), operator, values, &Path::default())?);
        }
        Ok(LabelSelector::sorted(all))
    }

    fn sorted(mut all: Vec<Requirement>) -> LabelSelector {
        all.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector::All(all)
    }

    /// Whether the labels that `label` finds satisfy it.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            LabelSelector::Nothing => false,
            LabelSelector::All(all) => all.iter().all(|requirement| requirement.matches(&label)),
        }
    }

    /// Whether a label set, as `metadata.labels` or a template's, satisfies it. Null is the empty set.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether an object's `metadata.labels` satisfy it.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_labels(&object["metadata"]["labels"])
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        matches!(self, LabelSelector::All(all) if all.is_empty())
    }
}

/// As `status.selector` of a Scale and the SELECTOR column show it.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LabelSelector::All(all) = self else { return Ok(()) };
        for (index, Requirement { key, operator, values }) in all.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "," })?;
            let values = values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
            match operator {
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::Equals => write!(f, "{key}={values}")?,
                Operator::DoubleEquals => write!(f, "{key}=={values}")?,
                Operator::NotEquals => write!(f, "{key}!={values}")?,
                Operator::GreaterThan => write!(f, "{key}>{values}")?,
                Operator::LessThan => write!(f, "{key}<{values}")?,
                Operator::In => write!(f, "{key} in ({values})")?,
                Operator::NotIn => write!(f, "{key} notin ({values})")?,
            }
        }
        Ok(())
    }
}

fn list(value: Option<&Value>) -> Result<&[Value], SelectorError> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(value) => value.as_array().map(Vec::as_slice).ok_or(SelectorError::Shape),
    }
}

fn invalid_key(errors: &mut Errors, path: &Path, key: &str) {
    let wrong = names::qualified_name(key);
    if !wrong.is_empty() {
        errors.invalid(path, key, wrong.join("; "));
    }
}

/// Validates a `metav1.LabelSelector` in an object, as upstream's `ValidateLabelSelector`. What is not of its type is
/// for the schema to refuse.
pub fn validate(selector: &Value, path: &Path, errors: &mut Errors) {
    let at = path.child("matchLabels");
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        for message in names::qualified_name(key) {
            errors.invalid(&at, key.as_str(), message);
        }
        for message in names::label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(&at, value.clone(), message);
        }
    }
    let at = path.child("matchExpressions");
    for (index, expression) in selector["matchExpressions"].as_array().into_iter().flatten().enumerate() {
        let at = at.index(index);
        let values = expression["values"].as_array().map(Vec::as_slice).unwrap_or_default();
        match expression["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&at.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&at.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        let key = expression["key"].as_str().unwrap_or_default();
        for message in names::qualified_name(key) {
            errors.push(&at.child("key"), Problem::Invalid(key.into(), message));
        }
        for (index, value) in values.iter().enumerate() {
            for message in names::label_value(value.as_str().unwrap_or_default()) {
                errors.invalid(&at.child("values").index(index), value.clone(), message);
            }
        }
    }
}

#[cfg(test)]
#[path = "selector_test.rs"]
mod tests;
