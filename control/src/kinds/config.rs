//! ConfigMaps and secrets.

use super::pod::immutable;
use crate::auth::tokens::{ACCOUNT_NAME, SECRET_TYPE};
use crate::object::{self, at, fields, text};
use coracle_api::field::{Errors, Path, Problem};
use serde_json::Value;

/// Of all values together.
const DATA_BYTES_MAX: usize = 1 << 20;
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

pub(super) fn default_secret(secret: &mut Value) {
    use base64::Engine;
    object::default_zero(secret, "type", "Opaque");
    // What is written as text is stored as the rest.
    if let Some(Value::Object(plain)) = object::remove(secret, "stringData") {
        let data = fields(object::child(secret, "data"));
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
        }
    }
    crate::enroll::token::hash_at_rest(secret);
}

fn validate_data(object: &Value, lists: &[&str], errors: &mut Errors) {
    let mut bytes = 0;
    for list in lists {
        for (key, value) in at(object, &[list]).as_object().into_iter().flatten() {
            let path = Path::new(list).key(key);
            let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if key.is_empty() || !key.bytes().all(known) {
                errors.invalid(&path, key.as_str(), KEY);
            } else if key == "." || key == ".." {
                errors.invalid(&path, key.as_str(), format!("must not be '{key}'"));
            } else if key.starts_with("..") {
                errors.invalid(&path, key.as_str(), "must not start with '..'");
            }
            bytes += value.as_str().map_or(0, str::len);
        }
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(&Path::default(), Problem::TooLong(DATA_BYTES_MAX));
    }
}

pub(super) fn validate_config_map(config: &Value, errors: &mut Errors) {
    validate_data(config, &["data", "binaryData"], errors);
    for (key, _) in at(config, &["data"]).as_object().into_iter().flatten() {
        if at(config, &["binaryData", key]).is_string() {
            errors.invalid(
                &Path::new("data").key(key),
                key.as_str(),
                "duplicate of key present in binaryData",
            );
        }
    }
}

pub(super) fn validate_secret(secret: &Value, errors: &mut Errors) {
    validate_data(secret, &["data"], errors);
    let required: &[&str] = match text(secret, &["type"]) {
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    if text(secret, &["type"]) == SECRET_TYPE
        && text(secret, &["metadata", "annotations", ACCOUNT_NAME]).is_empty()
    {
        errors.required(&Path::new("metadata").child("annotations").key(ACCOUNT_NAME), "");
    }
    for key in required {
        if !at(secret, &["data", key]).is_string() {
            errors.required(&Path::new("data").key(key), "");
        }
    }
}

/// What says that it never changes does not.
fn keep_immutable(new: &Value, old: &Value, lists: &[&str], errors: &mut Errors) {
    const WHY: &str = "field is immutable when `immutable` is set";
    if at(old, &["immutable"]).as_bool() != Some(true) {
        return;
    }
    if at(new, &["immutable"]).as_bool() != Some(true) {
        errors.forbidden(&Path::new("immutable"), WHY);
    }
    for list in lists {
        if at(new, &[list]) != at(old, &[list]) {
            errors.forbidden(&Path::new(list), WHY);
        }
    }
}

pub(super) fn update_config_map(new: &Value, old: &Value, errors: &mut Errors) {
    keep_immutable(new, old, &["data", "binaryData"], errors);
}

pub(super) fn update_secret(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(new, old, &["type"], errors);
    keep_immutable(new, old, &["data"], errors);
}
