//! Errors about one field, worded as `k8s.io/apimachinery/pkg/util/validation/field` words them.
//!
//! Clients match on these words, and users look them up, so they are kept to the letter. The values shown are JSON
//! values, printed as Go prints them. Checks themselves live with the kinds they belong to.

use std::fmt;

use serde_json::Value;

/// Most errors kept for one object: a hostile one does not fill memory or the answer.
pub const ERRORS_MAX: usize = 100;

/// Where a field stands: `spec.containers[0].image`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The path of a field of the object itself.
    pub fn new(root: &str) -> Path {
        Path(root.to_owned())
    }

    /// `self.name`, or `name` when `self` is the object.
    pub fn child(&self, name: &str) -> Path {
        if self.0.is_empty() { Path::new(name) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// `self[3]`.
    pub fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    /// `self[key]`.
    pub fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Upstream prints a missing path so.
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field: `metav1.CauseType`, with what its message needs.
#[derive(Clone, Debug, PartialEq)]
pub enum Problem {
    /// With a detail, or an empty one.
    Required(String),
    /// The value, and what is wrong with it.
    Invalid(Value, String),
    /// The value, and those that are supported.
    NotSupported(Value, Vec<String>),
    Duplicate(Value),
    NotFound(Value),
    /// Why.
    Forbidden(String),
    /// Bytes that it may have at most.
    TooLong(usize),
    /// Items that it has, and may have at most.
    TooMany(usize, usize),
    /// The value, and the type it should have had.
    TypeInvalid(Value, String),
    Internal(String),
}

impl Problem {
    /// `metav1.CauseType`, the `reason` of a cause.
    pub fn reason(&self) -> &'static str {
        match self {
            Problem::Required(_) => "FieldValueRequired",
            Problem::Invalid(..) => "FieldValueInvalid",
            Problem::NotSupported(..) => "FieldValueNotSupported",
            Problem::Duplicate(_) => "FieldValueDuplicate",
            Problem::NotFound(_) => "FieldValueNotFound",
            Problem::Forbidden(_) => "FieldValueForbidden",
            Problem::TooLong(_) => "FieldValueTooLong",
            Problem::TooMany(..) => "FieldValueTooMany",
            Problem::TypeInvalid(..) => "FieldValueTypeInvalid",
            Problem::Internal(_) => "InternalError",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = |f: &mut fmt::Formatter<'_>, text: &str| match text {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        };
        match self {
            Problem::Required(text) => f.write_str("Required value").and_then(|()| detail(f, text)),
            Problem::Forbidden(text) => f.write_str("Forbidden").and_then(|()| detail(f, text)),
            Problem::Internal(text) => f.write_str("Internal error").and_then(|()| detail(f, text)),
            Problem::Invalid(value, text) | Problem::TypeInvalid(value, text) => {
                write!(f, "Invalid value: {}", shown(value)).and_then(|()| detail(f, text))
            }
            Problem::NotSupported(value, supported) => {
                let supported: Vec<_> = supported.iter().map(|s| quoted(s)).collect();
                write!(f, "Unsupported value: {}", shown(value))?;
                if supported.is_empty() {
                    return Ok(());
                }
                write!(f, ": supported values: {}", supported.join(", "))
            }
            Problem::Duplicate(value) => write!(f, "Duplicate value: {}", shown(value)),
            Problem::NotFound(value) => write!(f, "Not found: {}", shown(value)),
            Problem::TooLong(bytes) => write!(f, "Too long: may not be more than {bytes} bytes"),
            Problem::TooMany(count, most) => write!(f, "Too many: {count}: must have at most {most} items"),
        }
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FieldError {
    pub path: Path,
    pub problem: Problem,
}

/// Collects errors, so that a user sees all of them at once. Keeps [`ERRORS_MAX`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    pub fn push(&mut self, path: &Path, problem: Problem) {
        if self.0.len() < ERRORS_MAX {
            self.0.push(FieldError { path: path.clone(), problem });
        }
    }

    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(path, Problem::Required(detail.to_owned()));
    }

    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(path, Problem::Invalid(value.into(), detail.into()));
    }

    pub fn not_supported(&mut self, path: &Path, value: impl Into<Value>, supported: &[&str]) {
        let supported = supported.iter().map(|s| (*s).to_owned()).collect();
        self.push(path, Problem::NotSupported(value.into(), supported));
    }

    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(path, Problem::Duplicate(value.into()));
    }

    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(path, Problem::NotFound(value.into()));
    }

    pub fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(path, Problem::Forbidden(detail.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order in which they were found.
    pub fn list(&self) -> &[FieldError] {
        &self.0
    }

    /// `Err` with what was found, if anything was.
    pub fn into_result(self) -> Result<(), Errors> {
        if self.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Errors {
    /// As Go's aggregate of errors: one bare, several in brackets, each said once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut seen: Vec<String> = Vec::new();
        for text in self.0.iter().map(ToString::to_string) {
            if !seen.contains(&text) {
                seen.push(text);
            }
        }
        match seen.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "[{}]", many.join(", ")),
        }
    }
}

/// A value as an error shows it: strings quoted, numbers bare, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => quoted("null"),
        Value::String(text) => quoted(text),
        value => go_json(value),
    }
}

/// Compact JSON as Go's `json.Marshal` writes it: `<`, `>`, `&` and the line separators escaped.
pub fn go_json(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text += &format!("\\u{:04x}", u32::from(c)),
            c => text.push(c),
        }
    }
    text
}

/// A string as Go's `%q` writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\u{7}' => out += "\\a",
            '\u{8}' => out += "\\b",
            '\u{c}' => out += "\\f",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\u{b}' => out += "\\v",
            ' ' => out.push(' '),
            c if c.is_control() && c.is_ascii() => out += &format!("\\x{:02x}", u32::from(c)),
            // Go prints no space but the ASCII one, and nothing from the private planes.
            c if c.is_control() || c.is_whitespace() || matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{feff}') => {
                out += &format!("\\u{:04x}", u32::from(c));
            }
            c if c >= '\u{e0000}' => out += &format!("\\U{:08x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn problems_read_as_upstreams() {
        let check = |problem: Problem, reason: &str, text: &str| {
            assert_eq!((problem.reason(), problem.to_string().as_str()), (reason, text));
        };
        check(Problem::Required(String::new()), "FieldValueRequired", "Required value");
        check(Problem::Required("why".into()), "FieldValueRequired", "Required value: why");
        check(Problem::Invalid(70000.into(), "x".into()), "FieldValueInvalid", "Invalid value: 70000: x");
        check(Problem::Invalid(Value::Null, String::new()), "FieldValueInvalid", "Invalid value: \"null\"");
        check(
            Problem::Invalid(json!({"app": "<a>"}), "x".into()),
            "FieldValueInvalid",
            "Invalid value: {\"app\":\"\\u003ca\\u003e\"}: x",
        );
        check(
            Problem::NotSupported("x".into(), vec!["a".into(), "b".into()]),
            "FieldValueNotSupported",
            "Unsupported value: \"x\": supported values: \"a\", \"b\"",
        );
        check(
            Problem::NotSupported("x".into(), vec![]),
            "FieldValueNotSupported",
            "Unsupported value: \"x\"",
        );
        check(Problem::Duplicate("a".into()), "FieldValueDuplicate", "Duplicate value: \"a\"");
        check(Problem::NotFound("a".into()), "FieldValueNotFound", "Not found: \"a\"");
        check(Problem::Forbidden("no".into()), "FieldValueForbidden", "Forbidden: no");
        check(Problem::TooLong(63), "FieldValueTooLong", "Too long: may not be more than 63 bytes");
        check(Problem::TooMany(5, 3), "FieldValueTooMany", "Too many: 5: must have at most 3 items");
        check(
            Problem::TypeInvalid(1.into(), "string".into()),
            "FieldValueTypeInvalid",
            "Invalid value: 1: string",
        );
        check(Problem::Internal("x".into()), "InternalError", "Internal error: x");
    }

    #[test]
    fn aggregates_say_each_error_once_and_are_bounded() {
        let mut errors = Errors::default();
        errors.required(&Path::new("spec").child("a").index(1).key("k"), "");
        assert_eq!(errors.to_string(), "spec.a[1][k]: Required value");
        errors.required(&Path::new("spec").child("a").index(1).key("k"), "");
        errors.duplicate(&Path::new("b"), "x");
        assert_eq!(errors.to_string(), "[spec.a[1][k]: Required value, b: Duplicate value: \"x\"]");
        for _ in 0..1000 {
            errors.not_found(&Path::new("b"), 1);
        }
        assert_eq!(errors.list().len(), ERRORS_MAX);
        assert_eq!(errors.clone().into_result(), Err(errors));
    }

    #[test]
    fn strings_are_quoted_as_go_does() {
        let check = |text: &str, expected: &str| assert_eq!(quoted(text), expected);
        check("a", "\"a\"");
        check("a\"\\\n\u{7}\0\u{7f}", r#""a\"\\\n\a\x00\x7f""#);
        check("é\u{a0}\u{10ffff}", "\"é\\u00a0\\U0010ffff\"");
    }
}
