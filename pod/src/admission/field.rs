//! Errors about one field, worded as `k8s.io/apimachinery/pkg/util/validation/field` words them.
//!
//! Clients match on these words, and users look them up, so they are kept to the letter.

use std::fmt;

/// Where a field stands: `spec.containers[0].image`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    pub(crate) fn new(root: &str) -> Path {
        Path(root.to_owned())
    }

    pub(crate) fn child(&self, name: &str) -> Path {
        Path(format!("{}.{name}", self.0))
    }

    pub(crate) fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    pub(crate) fn key(&self, key: &str) -> Path {
        Path(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FieldError {
    pub path: Path,
    pub problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// With a detail, or an empty one.
    Required(String),
    /// The value as Go prints it (strings quoted, numbers bare), and what is wrong with it.
    Invalid(String, String),
    /// The value, and those that are supported.
    NotSupported(String, Vec<&'static str>),
    Duplicate(String),
    NotFound(String),
    Forbidden(String),
    /// Of bytes.
    TooLong(usize),
}

impl Problem {
    /// `metav1.CauseType`, for the causes of a `Status` of code 422.
    pub fn reason(&self) -> &'static str {
        match self {
            Problem::Required(_) => "FieldValueRequired",
            Problem::Invalid(..) => "FieldValueInvalid",
            Problem::NotSupported(..) => "FieldValueNotSupported",
            Problem::Duplicate(_) => "FieldValueDuplicate",
            Problem::NotFound(_) => "FieldValueNotFound",
            Problem::Forbidden(_) => "FieldValueForbidden",
            Problem::TooLong(_) => "FieldValueTooLong",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Required(detail) if detail.is_empty() => f.write_str("Required value"),
            Problem::Required(detail) => write!(f, "Required value: {detail}"),
            Problem::Invalid(value, detail) => write!(f, "Invalid value: {value}: {detail}"),
            Problem::NotSupported(value, supported) => {
                write!(f, "Unsupported value: {value}: supported values: ")?;
                for (index, value) in supported.iter().enumerate() {
                    write!(f, "{}\"{value}\"", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Problem::Duplicate(value) => write!(f, "Duplicate value: {value}"),
            Problem::NotFound(value) => write!(f, "Not found: {value}"),
            Problem::Forbidden(detail) => write!(f, "Forbidden: {detail}"),
            Problem::TooLong(max) => write!(f, "Too long: may not be more than {max} bytes"),
        }
    }
}

/// A value as an error shows it: strings quoted and escaped, numbers bare.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl Shown for str {
    fn shown(&self) -> String {
        format!("{self:?}")
    }
}

impl Shown for String {
    fn shown(&self) -> String {
        self.as_str().shown()
    }
}

impl Shown for i32 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for i64 {
    fn shown(&self) -> String {
        self.to_string()
    }
}

impl Shown for bool {
    fn shown(&self) -> String {
        self.to_string()
    }
}

/// Most errors reported for one pod: a hostile manifest does not fill the log.
const ERRORS_MAX: usize = 100;
/// What a field that a later version will honour is refused with.
const UNSUPPORTED: &str = "not supported by this version of coracle";

/// Collects errors, so that a user sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    pub(crate) fn push(&mut self, path: &Path, problem: Problem) {
        if self.0.len() < ERRORS_MAX {
            self.0.push(FieldError { path: path.clone(), problem });
        }
    }

    pub(crate) fn required(&mut self, path: &Path, detail: &str) {
        self.push(path, Problem::Required(detail.to_owned()));
    }

    pub(crate) fn invalid<V: Shown + ?Sized>(&mut self, path: &Path, value: &V, detail: impl Into<String>) {
        self.push(path, Problem::Invalid(value.shown(), detail.into()));
    }

    pub(crate) fn duplicate(&mut self, path: &Path, value: &str) {
        self.push(path, Problem::Duplicate(value.shown()));
    }

    pub(crate) fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(path, Problem::Forbidden(detail.into()));
    }

    /// Refuses `path` when `present`: a field that would change how the pod runs is never ignored.
    pub(crate) fn unsupported(&mut self, present: bool, path: &Path) {
        if present {
            self.forbidden(path, UNSUPPORTED);
        }
    }

    /// The enum that `value` names, or the default when it is not set or empty.
    pub(crate) fn one_of<T: Copy>(
        &mut self,
        path: &Path,
        value: Option<&str>,
        default: T,
        table: &[(&'static str, T)],
    ) -> T {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return default };
        match table.iter().find(|(name, _)| *name == value) {
            Some((_, meaning)) => *meaning,
            None => {
                let supported = table.iter().map(|(name, _)| *name).collect();
                self.push(path, Problem::NotSupported(value.shown(), supported));
                default
            }
        }
    }

    /// `value` when it lies between `low` and `high`.
    pub(crate) fn in_range<T: TryFrom<i64>>(
        &mut self,
        path: &Path,
        value: i64,
        low: i64,
        high: i64,
    ) -> Option<T> {
        if value < low || value > high {
            let detail = if high == i64::MAX {
                format!("must be greater than or equal to {low}")
            } else {
                format!("must be between {low} and {high}, inclusive")
            };
            self.invalid(path, &value, detail);
            return None;
        }
        T::try_from(value).ok()
    }

    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

/// Whether an optional list holds anything: an empty list asks for nothing.
pub(crate) fn any<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}
