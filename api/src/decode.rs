//! Bodies become objects: JSON and YAML are read, checked against the schema, and made canonical.
//!
//! Canonical is what a Go API server makes of it: unknown fields are dropped (and reported, for `fieldValidation`),
//! nulls and empty `omitempty` values are left out, and what Go always writes is there (`status: {}`). Errors are worded as Go's decoders word them, since users know
//! them so. A kind that the schema does not know passes as it is.
//!
//! Bounds: [`BODY_BYTES_MAX`], [`VALUES_MAX`], [`DEPTH_MAX`], [`STRICT_ERRORS_MAX`].

mod json;
mod walk;

use serde_json::Value;

use crate::schema::Form;

pub use walk::TypeError;

/// Bytes of a body, as upstream's `MaxRequestBodyBytes`.
pub const BODY_BYTES_MAX: usize = 3 << 20;
/// Values of one body: an empty object is two bytes here and hundreds in memory, once it is canonical.
pub const VALUES_MAX: usize = 100_000;
/// Objects and lists in each other.
pub const DEPTH_MAX: usize = 100;
/// Unknown and duplicate fields that are reported, as upstream.
pub const STRICT_ERRORS_MAX: usize = 100;

/// Bytes that are no JSON or YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// More than [`BODY_BYTES_MAX`].
    #[error("limit is {BODY_BYTES_MAX}")]
    TooLarge,
    /// More than [`VALUES_MAX`].
    #[error("the body holds more than {VALUES_MAX} values")]
    TooMany,
    /// Deeper than [`DEPTH_MAX`].
    #[error("exceeded max depth")]
    TooDeep,
    /// Ends in the middle.
    #[error("unexpected end of JSON input")]
    End,
    /// The character, and where it stands.
    #[error("invalid character {0} {1}")]
    Character(String, &'static str),
    /// Of YAML, or what serde says.
    #[error("{0}")]
    Other(String),
}

/// A text as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// Paths of the fields that stood there twice; the last was taken.
    pub duplicates: Vec<String>,
}

/// What `fieldValidation` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

impl FieldValidation {
    /// The query parameter; the empty is the default. `None` for what is none.
    pub fn parse(text: &str) -> Option<FieldValidation> {
        Some(match text {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            _ => return None,
        })
    }

    /// Refuses, or returns the warnings to send. `strict` are `unknown field "x"` and the like.
    pub fn judge(self, strict: Vec<String>) -> Result<Vec<String>, TypeError> {
        match self {
            _ if strict.is_empty() => Ok(strict),
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Warn => Ok(strict),
            FieldValidation::Strict => Err(TypeError::Strict(strict.join(", "))),
        }
    }
}

/// An object that fits its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Canonical.
    pub value: Value,
    /// `unknown field "spec.x"`, in the order of the object; at most [`STRICT_ERRORS_MAX`].
    pub strict: Vec<String>,
}

/// Reads JSON.
pub fn json(body: &[u8]) -> Result<Document, SyntaxError> {
    json::read(body)
}

/// Reads one document of YAML, or JSON.
pub fn yaml(body: &[u8]) -> Result<Document, SyntaxError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(SyntaxError::TooLarge);
    }
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
        && let Ok(document) = json::read(body)
    {
        return Ok(document);
    }
    let text = std::str::from_utf8(body).map_err(|e| SyntaxError::Other(format!("not UTF-8: {e}")))?;
    let value: Value = serde_saphyr::from_str_with_options(text, yaml_options())
        .map_err(|e| SyntaxError::Other(e.to_string()))?;
    if depth(&value) > DEPTH_MAX {
        return Err(SyntaxError::TooDeep);
    }
    if count(&value) > VALUES_MAX {
        return Err(SyntaxError::TooMany);
    }
    Ok(Document { value, duplicates: Vec::new() })
}

/// YAML as kubectl reads it: `defaultMode: 0400` is octal, as in YAML 1.1.
pub(crate) fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { legacy_octal_numbers: true }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        Value::Array(list) => 1 + list.iter().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// Checks a value against a form, and makes it canonical. Idempotent.
pub fn object(form: &Form, value: Value) -> Result<Decoded, TypeError> {
    walk::object(form, value)
}

/// As [`object`]; the error has its place before it, with the indices that Go leaves out.
pub(crate) fn placed(form: &Form, value: Value) -> Result<Decoded, String> {
    walk::placed(form, value).map_err(|(place, error)| match place.as_str() {
        "" => error.to_string(),
        place => format!("{place}: {error}"),
    })
}

/// The duplicates of a document as strict errors, to go before those of [`object`].
pub fn duplicates(document: &Document) -> Vec<String> {
    let shown = |path: &String| format!("duplicate field {}", crate::field::quoted(path));
    document.duplicates.iter().map(shown).collect()
}

/// Levels of objects and lists. The value's own depth is bounded by the parser that made it.
pub(crate) fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
#[path = "decode_test.rs"]
mod tests;
