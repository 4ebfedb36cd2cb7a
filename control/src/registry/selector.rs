//! Label and field selectors: which objects of a list or a watch are wanted.
//!
//! The place of `coracle_api::selector`: label selectors are to be parsed there, and this module then keeps only the
//! fields that a kind lets select.

use super::Resource;
use crate::object;
use coracle_api::status::StatusError;
use serde_json::Value;
use std::borrow::Cow;

/// Requirements of one selector, and its bytes.
const REQUIREMENTS_MAX: usize = 100;
const SELECTOR_BYTES_MAX: usize = 16 << 10;

/// What objects must be like.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug)]
struct FieldRequirement {
    field: String,
    equal: bool,
    value: String,
}

impl Selector {
    /// Reads both query parameters.
    ///
    /// # Errors
    /// 400, worded as upstream.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Selector, StatusError> {
        if labels.len() + fields.len() > SELECTOR_BYTES_MAX {
            return Err(StatusError::bad_request("the selector is too long"));
        }
        let labels = parse_labels(labels)
            .map_err(|why| StatusError::bad_request(format!("unable to parse requirement: {why}")))?;
        Ok(Selector { labels, fields: parse_fields(resource, fields)? })
    }

    /// Whether everything is wanted.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is wanted.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = object::at(object, &["metadata", "labels"]);
        self.labels.iter().all(|requirement| requirement.matches(labels))
            && self.fields.iter().all(|requirement| requirement.matches(object))
    }

    /// Wants this name too.
    pub fn require_name(&mut self, name: &str) {
        let field = "metadata.name".to_string();
        self.fields.push(FieldRequirement { field, equal: true, value: name.into() });
    }

    /// The one name that is asked for by `metadata.name=NAME`.
    pub fn only_name(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|requirement| requirement.equal && requirement.field == "metadata.name")
            .map(|requirement| requirement.value.as_str())
    }
}

impl Requirement {
    fn matches(&self, labels: &Value) -> bool {
        let value = labels.get(&self.key).and_then(Value::as_str);
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Test::NotIn(values) => !value.is_some_and(|value| values.iter().any(|v| v == value)),
            Test::Greater(bound) => number().is_some_and(|number| number > *bound),
            Test::Less(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl FieldRequirement {
    fn matches(&self, object: &Value) -> bool {
        (field_value(object, &self.field) == self.value) == self.equal
    }
}

/// The value of a selectable field; empty when it is not set.
fn field_value<'a>(object: &'a Value, field: &str) -> Cow<'a, str> {
    let path: Vec<&str> = match field {
        // Upstream's names for what lies elsewhere.
        "source" => vec!["source", "component"],
        "spec.host" => vec!["spec", "nodeName"],
        field => field.split('.').collect(),
    };
    match object::at(object, &path) {
        Value::String(text) => Cow::Borrowed(text),
        Value::Bool(value) => Cow::Owned(value.to_string()),
        Value::Number(number) => Cow::Owned(number.to_string()),
        _ if field == "spec.unschedulable" || field == "spec.hostNetwork" => Cow::Borrowed("false"),
        _ if field == "status.replicas" || field == "status.successful" => Cow::Borrowed("0"),
        _ => Cow::Borrowed(""),
    }
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldRequirement>, StatusError> {
    let mut requirements = Vec::new();
    for term in text.split(',').filter(|term| !term.is_empty()) {
        let (field, equal, value) = if let Some((field, value)) = term.split_once("!=") {
            (field, false, value)
        } else if let Some((field, value)) = term.split_once("==") {
            (field, true, value)
        } else if let Some((field, value)) = term.split_once('=') {
            (field, true, value)
        } else {
            return Err(StatusError::bad_request(format!(
                "invalid selector: '{text}'; can't understand '{term}'"
            )));
        };
        let general = field == "metadata.name" || (field == "metadata.namespace" && resource.namespaced);
        if !general && !resource.selectable.contains(&field) {
            return Err(StatusError::bad_request(if resource.selectable.is_empty() {
                format!(
                    "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    coracle_api::field::quoted(field)
                )
            } else {
                format!("field label not supported: {field}")
            }));
        }
        requirements.push(FieldRequirement { field: field.into(), equal, value: value.into() });
        if requirements.len() > REQUIREMENTS_MAX {
            return Err(StatusError::bad_request("the selector has too many requirements"));
        }
    }
    Ok(requirements)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let mut tokens = Tokens { rest: text.trim() };
    let mut requirements = Vec::new();
    while !tokens.rest.is_empty() {
        requirements.push(requirement(&mut tokens)?);
        if requirements.len() > REQUIREMENTS_MAX {
            return Err("too many requirements".into());
        }
        match tokens.next() {
            "" => break,
            "," if tokens.rest.is_empty() => return Err("found '', expected: identifier after ','".into()),
            "," => {}
            found => return Err(format!("found '{found}', expected: ',' or 'end of string'")),
        }
    }
    Ok(requirements)
}

fn requirement(tokens: &mut Tokens<'_>) -> Result<Requirement, String> {
    let first = tokens.next();
    if first == "!" {
        return Ok(Requirement { key: identifier(tokens.next())?, test: Test::Absent });
    }
    let key = identifier(first)?;
    let test = match tokens.peek() {
        "" | "," => Test::Exists,
        operator @ ("=" | "==" | "!=") => {
            tokens.next();
            let value = match tokens.peek() {
                "" | "," => String::new(),
                _ => identifier(tokens.next())?,
            };
            if operator == "!=" { Test::NotIn(vec![value]) } else { Test::In(vec![value]) }
        }
        operator @ ("in" | "notin") => {
            tokens.next();
            let values = set(tokens)?;
            if operator == "in" { Test::In(values) } else { Test::NotIn(values) }
        }
        operator @ (">" | "gt" | "<" | "lt") => {
            tokens.next();
            let bound = tokens
                .next()
                .parse()
                .map_err(|_| "for 'Gt', 'Lt' operators, the value must be an integer")?;
            if matches!(operator, ">" | "gt") { Test::Greater(bound) } else { Test::Less(bound) }
        }
        found => return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")),
    };
    Ok(Requirement { key, test })
}

fn set(tokens: &mut Tokens<'_>) -> Result<Vec<String>, String> {
    match tokens.next() {
        "(" => {}
        found => return Err(format!("found '{found}' expected: '('")),
    }
    let mut values = Vec::new();
    loop {
        match tokens.next() {
            "," => values.push(String::new()),
            ")" => return Ok(values),
            value => {
                values.push(identifier(value)?);
                match tokens.next() {
                    "," => {}
                    ")" => return Ok(values),
                    found => return Err(format!("found '{found}', expected: ',' or ')'")),
                }
            }
        }
    }
}

fn identifier(token: &str) -> Result<String, String> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if token.is_empty() || !token.chars().all(known) {
        return Err(format!("found '{token}', expected: identifier"));
    }
    Ok(token.into())
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.rest = self.rest[token.len()..].trim_start();
        token
    }

    fn peek(&self) -> &'a str {
        let special = |c: char| "=!(),<>".contains(c) || c.is_whitespace();
        let end = match self.rest.find(special) {
            Some(0) if self.rest.starts_with("==") || self.rest.starts_with("!=") => 2,
            Some(0) => 1,
            Some(end) => end,
            None => self.rest.len(),
        };
        &self.rest[..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_select() {
        let check = |selector: &str, labels: Value, expected: bool| {
            let selector = Selector { labels: parse_labels(selector).expect("parses"), fields: Vec::new() };
            assert_eq!(selector.matches(&json!({"metadata": {"labels": labels}})), expected, "{selector:?}");
        };
        check("", Value::Null, true);
        check("a=b", json!({"a": "b"}), true);
        check("a==b,c!=d", json!({"a": "b"}), true);
        check("a=b", Value::Null, false);
        check("a!=b", json!({"a": "b"}), false);
        check("a in (b, c)", json!({"a": "c"}), true);
        check("a notin (b,c)", json!({"a": "c"}), false);
        check("a notin (b,c)", Value::Null, true);
        check("!a", json!({"a": "c"}), false);
        check("a, !b", json!({"a": ""}), true);
        check("n>5", json!({"n": "6"}), true);
        check("n lt 5", json!({"n": "6"}), false);
        check("a=", json!({"a": ""}), true);
        for wrong in ["a b", "a in b", "a,", "=", "a in (b", "a>x"] {
            assert!(parse_labels(wrong).is_err(), "{wrong}");
        }
    }
}
