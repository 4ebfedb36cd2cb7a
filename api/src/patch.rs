//! Patches of objects: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! Each takes the stored object and a patch that has been parsed, and gives the new object or refuses whole. Errors
//! become the `Status` that upstream answers with. Server-side apply is a module of its own.
//!
//! The JSON patch is our own code: a `copy` can double an object with each operation, and what is copied must be
//! counted while it is ([`COPY_BYTES_MAX`]); upstream's reading of negative indices comes with it.
//!
//! Bounds: [`OPERATIONS_MAX`], [`COPY_BYTES_MAX`], [`SHIFTS_MAX`], `decode::DEPTH_MAX`; no list is searched in a loop.

mod operations;
mod strategic;

use serde_json::Value;

use crate::schema::Form;
use crate::status::StatusError;

/// Operations of a JSON patch, as upstream.
pub const OPERATIONS_MAX: usize = 10_000;
/// Bytes that all `copy` operations of a JSON patch add together, as upstream.
pub const COPY_BYTES_MAX: usize = 3 << 20;

/// Items that a JSON patch may shift in lists, all operations together: some tens of milliseconds.
pub const SHIFTS_MAX: usize = 20_000_000;

/// The kinds of patch, by `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    StrategicMerge,
    /// Server-side apply; the body is YAML.
    Apply,
}

impl PatchType {
    /// `None` is answered with [`StatusError::unsupported_patch_type`].
    pub fn of(media_type: &str) -> Option<PatchType> {
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        Some(match essence {
            "application/json-patch+json" => PatchType::Json,
            "application/merge-patch+json" => PatchType::Merge,
            "application/strategic-merge-patch+json" => PatchType::StrategicMerge,
            "application/apply-patch+yaml" => PatchType::Apply,
            _ => return None,
        })
    }

    /// As in `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::StrategicMerge => "application/strategic-merge-patch+json",
            PatchType::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A patch that cannot be applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// Not a patch at all.
    #[error("{0}")]
    Malformed(String),
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {0}")]
    TooManyOperations(usize),
    /// An operation of a JSON patch that cannot be done: a failed test, a path that is not there, a bound.
    #[error("{operation} operation does not apply: {path}: {why}")]
    Operation { operation: &'static str, path: String, why: &'static str },
    /// `$patch` with a value that it does not have.
    #[error("unknown patch type: {0} in map: {1}")]
    Directive(Value, Value),
    /// A list directive that is malformed.
    #[error("invalid patch format of {0}")]
    Format(&'static str),
    /// An item without its list's merge key.
    #[error("map: {0} does not contain declared merge key: {1}")]
    NoMergeKey(Value, &'static str),
    /// The patch's items and its `$setElementOrder` disagree.
    #[error("The order in patch list:\n{0}\n doesn't match {1} list:\n{2}\n")]
    Order(Value, String, Value),
}

impl From<PatchError> for StatusError {
    fn from(error: PatchError) -> StatusError {
        match error {
            PatchError::TooManyOperations(_) => StatusError::too_large(error),
            PatchError::Operation { .. } => StatusError::generic(422, &error.to_string()),
            PatchError::Malformed(_)
            | PatchError::Directive(..)
            | PatchError::Format(_)
            | PatchError::NoMergeKey(..)
            | PatchError::Order(..) => StatusError::bad_request(error.to_string()),
        }
    }
}

/// Applies a JSON patch, all of it or none.
pub fn json(target: Value, patch: &Value) -> Result<Value, PatchError> {
    operations::apply(target, patch)
}

/// Applies a merge patch: null deletes, objects merge, the rest replaces.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Applies a strategic merge patch to an object of the kind whose form it is.
pub fn strategic(form: &Form, target: Value, patch: Value) -> Result<Value, PatchError> {
    strategic::apply(form, target, patch)
}

#[cfg(test)]
#[path = "patch_test.rs"]
mod tests;
