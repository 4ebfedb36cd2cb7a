//! Reading and writing the fields of objects, which are JSON values.
//!
//! Objects stay JSON from the body of a request to the disk and back: every kind goes through the same code, and no field
//! is lost that this program does not look at.

use serde_json::{Map, Value};

/// An object without fields.
static NOTHING: Value = Value::Null;

/// The value at `a.b.c`; null when it is not there.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().try_fold(value, |value, key| value.get(key)).unwrap_or(&NOTHING)
}

/// The string at a path; empty when there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The items of the list at a path; none when there is none.
pub fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The items of the list under a key, to be changed.
pub fn items_mut<'a>(value: &'a mut Value, key: &str) -> &'a mut [Value] {
    value.get_mut(key).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// The fields of an object; anything else becomes one first.
pub fn fields(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made one above")
}

/// The object under a key, made if it is missing.
pub fn child<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    let child = fields(value).entry(key).or_insert_with(|| Value::Object(Map::new()));
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child
}

/// Sets what is not set.
pub fn default(value: &mut Value, key: &str, default: impl Into<Value>) {
    let field = fields(value).entry(key).or_insert(Value::Null);
    if field.is_null() {
        *field = default.into();
    }
}

/// Sets what is not set, or is the zero of its type, which Go cannot tell from it.
pub fn default_zero(value: &mut Value, key: &str, default: impl Into<Value>) {
    let field = fields(value).entry(key).or_insert(Value::Null);
    if field.is_null() || field == &Value::from(0) || field.as_str() == Some("") {
        *field = default.into();
    }
}

/// Removes a field.
pub fn remove(value: &mut Value, key: &str) -> Option<Value> {
    value.as_object_mut().and_then(|fields| fields.remove(key))
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

/// `metadata.namespace`; empty for what has none.
pub fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

/// Sets a field of the metadata; null removes it.
pub fn set_meta(object: &mut Value, key: &str, value: impl Into<Value>) {
    let value = value.into();
    let metadata = fields(child(object, "metadata"));
    if value.is_null() {
        metadata.remove(key);
    } else {
        metadata.insert(key.into(), value);
    }
}

/// Whether the object is on its way out.
pub fn is_terminating(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_string()
}

/// Whether any finalizer holds it.
pub fn has_finalizers(object: &Value) -> bool {
    !items(object, &["metadata", "finalizers"]).is_empty()
}
