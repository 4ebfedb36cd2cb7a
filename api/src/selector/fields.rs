//! Field selectors: `spec.nodeName=a,status.phase!=Running`.
//!
//! Only equality exists. `\`, `,` and `=` in a value are escaped by `\`. A field that an object does not have is the
//! empty string, as upstream has it.

use std::fmt;

use serde_json::Value;

use super::{SELECTOR_BYTES_MAX, SelectorError};

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldTerm {
    /// `spec.nodeName`.
    pub field: String,
    /// Unescaped.
    pub value: String,
    /// Whether the field must have the value, or must not.
    pub equal: bool,
}

/// All terms must hold; none selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Reads a selector. `supported` says whether the kind can be selected by a field.
    pub fn parse(text: &str, supported: impl Fn(&str) -> bool) -> Result<FieldSelector, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut terms = Vec::new();
        for part in split(text).into_iter().filter(|part| !part.is_empty()) {
            let Some((field, equal, value)) = operator(part) else {
                return Err(SelectorError::FieldSyntax { selector: text.to_owned(), part: part.to_owned() });
            };
            terms.push(FieldTerm { field: field.to_owned(), value: unescaped(value)?, equal });
        }
        terms.sort_unstable();
        match terms.iter().find(|term| !supported(&term.field)) {
            Some(term) => Err(SelectorError::FieldUnsupported(term.field.clone())),
            None => Ok(FieldSelector { terms }),
        }
    }

    /// Whether the fields that `field` finds satisfy it.
    pub fn matches<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|term| (field(&term.field).unwrap_or_default() == term.value) == term.equal)
    }

    /// Whether the fields at those paths of an object satisfy it. Booleans and numbers compare by their text.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            let value = term.field.split('.').try_fold(object, |value, name| value.get(name));
            let same = match value {
                None | Some(Value::Null) => term.value.is_empty(),
                Some(Value::String(text)) => *text == term.value,
                Some(other) => {
                    let text = other.to_string();
                    text == term.value
                }
            };
            same == term.equal
        })
    }

    /// The value that the field must have, if the selector names one: what an index can be asked for.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}{}", term.field, if term.equal { "=" } else { "!=" })?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Splits at commas that no `\` stands before.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn operator(part: &str) -> Option<(&str, bool, &str)> {
    let at = part.find('=')?;
    let (left, right) = (&part[..at], &part[at + 1..]);
    Some(match (left.strip_suffix('!'), right.strip_prefix('=')) {
        (Some(field), _) => (field, false, right),
        (None, Some(value)) => (left, true, value),
        (None, None) => (left, true, right),
    })
}

fn unescaped(value: &str) -> Result<String, SelectorError> {
    let (mut out, mut chars) = (String::with_capacity(value.len()), value.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(SelectorError::FieldEscape(format!("\\{c}"))),
                None => return Err(SelectorError::FieldEscape("\\".to_owned())),
            },
            ',' | '=' => return Err(SelectorError::FieldUnescaped(c.into())),
            c => out.push(c),
        }
    }
    Ok(out)
}
