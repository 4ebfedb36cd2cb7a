//! Patches: the one place where a patch meets an object.
//!
//! The place of `coracle_api::{patch, apply}`: strategic merge needs the kinds' merge keys, and server-side apply their
//! schema; both are refused here until they are linked. JSON patch (RFC 6902) and merge patch (RFC 7396) are whole.

use coracle_api::status::StatusError;
use serde_json::Value;

/// Operations of one JSON patch: upstream's bound.
const OPERATIONS_MAX: usize = 10_000;

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    StrategicMerge,
}

impl PatchType {
    /// By the media type of the body.
    ///
    /// # Errors
    /// 415.
    pub fn of(media_type: &str) -> Result<PatchType, StatusError> {
        match media_type {
            "application/json-patch+json" => Ok(PatchType::Json),
            "application/merge-patch+json" => Ok(PatchType::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchType::StrategicMerge),
            _ => Err(StatusError::unsupported_patch_type()),
        }
    }
}

/// The object with the patch applied.
///
/// # Errors
/// 422 for an operation that does not fit the object, 400 for a patch that is none.
pub fn patched(object: &Value, patch: &Value, how: PatchType) -> Result<Value, StatusError> {
    let mut patched = object.clone();
    match how {
        PatchType::Merge if patch.is_object() => merge(&mut patched, patch),
        PatchType::StrategicMerge if patch.is_object() => {
            if strategic(patch) {
                return Err(StatusError::unsupported_patch_type());
            }
            merge(&mut patched, patch);
        }
        PatchType::Merge | PatchType::StrategicMerge => {
            return Err(StatusError::bad_request("the patch must be an object"));
        }
        PatchType::Json => {
            let operations = patch
                .as_array()
                .ok_or_else(|| StatusError::bad_request("the patch must be a list of operations"))?;
            if operations.len() > OPERATIONS_MAX {
                return Err(StatusError::too_large(format!(
                    "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
                    operations.len()
                )));
            }
            for operation in operations {
                apply(&mut patched, operation).ok_or_else(|| StatusError::generic(422, ""))?;
            }
        }
    }
    Ok(patched)
}

/// Whether a strategic merge patch says more than a merge patch would: lists, and directives.
fn strategic(patch: &Value) -> bool {
    match patch {
        Value::Object(fields) => fields.iter().any(|(key, value)| key.starts_with('$') || strategic(value)),
        Value::Array(_) => true,
        _ => false,
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = crate::object::fields(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// One operation of RFC 6902; `None` when it does not fit.
fn apply(object: &mut Value, operation: &Value) -> Option<()> {
    let text = |key: &str| operation.get(key).and_then(Value::as_str);
    let (op, path) = (text("op")?, text("path")?);
    match op {
        "test" => (object.pointer(path)? == operation.get("value")?).then_some(()),
        "add" => add(object, path, operation.get("value")?.clone()),
        "remove" => remove(object, path).map(drop),
        "replace" => {
            *object.pointer_mut(path)? = operation.get("value")?.clone();
            Some(())
        }
        "copy" => {
            let value = object.pointer(text("from")?)?.clone();
            add(object, path, value)
        }
        "move" => {
            let value = remove(object, text("from")?)?;
            add(object, path, value)
        }
        _ => None,
    }
}

fn add(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, key) = path.rsplit_once('/')?;
    match object.pointer_mut(parent)? {
        Value::Object(fields) => {
            fields.insert(unescape(key), value);
        }
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let index = key.parse().ok().filter(|index| *index <= items.len())?;
            items.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = path.rsplit_once('/')?;
    match object.pointer_mut(parent)? {
        Value::Object(fields) => fields.remove(&unescape(key)),
        Value::Array(items) => {
            let index = key.parse().ok().filter(|index| *index < items.len())?;
            Some(items.remove(index))
        }
        _ => None,
    }
}

/// RFC 6901.
fn unescape(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn patches_change_what_they_say() {
        let check = |patch: Value, how: PatchType, expected: Option<Value>| {
            let object = json!({"a": {"b": 1, "c~/": 2}, "l": [1, 2]});
            assert_eq!(patched(&object, &patch, how).ok(), expected, "{patch}");
        };
        check(
            json!({"a": {"b": null, "d": 3}, "l": [9]}),
            PatchType::Merge,
            Some(json!({"a": {"c~/": 2, "d": 3}, "l": [9]})),
        );
        check(
            json!({"a": {"b": 2}}),
            PatchType::StrategicMerge,
            Some(json!({"a": {"b": 2, "c~/": 2}, "l": [1, 2]})),
        );
        check(json!({"l": [3]}), PatchType::StrategicMerge, None);
        check(
            json!([{"op": "add", "path": "/l/1", "value": 5}, {"op": "remove", "path": "/a/c~0~1"}]),
            PatchType::Json,
            Some(json!({"a": {"b": 1}, "l": [1, 5, 2]})),
        );
        check(
            json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "move", "from": "/a/b", "path": "/l/-"}]),
            PatchType::Json,
            Some(json!({"a": {"c~/": 2}, "l": [1, 2, 1]})),
        );
        for wrong in [
            json!([{"op": "test", "path": "/a/b", "value": 2}]),
            json!([{"op": "remove", "path": "/none"}]),
            json!([{"op": "add", "path": "/l/7", "value": 1}]),
            json!([{"op": "nope", "path": "/a"}]),
            json!({"op": "test"}),
        ] {
            check(wrong, PatchType::Json, None);
        }
    }
}
