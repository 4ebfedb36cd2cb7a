//! What names may look like: RFC 1123 labels and subdomains, ports, labels, variables, paths.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation`; the wording is upstream's.

use super::field::{Errors, Path};
use std::collections::BTreeMap;

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;
/// `ValidateAnnotations`: keys and values together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(inner)
        && bytes.last().is_some_and(inner)
        && bytes.iter().all(|byte| inner(byte) || *byte == b'-')
}

pub(crate) fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// `metadata.uid` and the like: becomes a file name, a cgroup name and part of a log directory's.
pub(crate) fn file_name(errors: &mut Errors, path: &Path, value: &str) {
    if value.is_empty() {
        errors.required(path, "");
    } else if value.len() > LABEL_MAX {
        errors.invalid(path, value, too_long(LABEL_MAX));
    } else if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        || value.starts_with('-')
    {
        errors.invalid(
            path,
            value,
            "must consist of alphanumeric characters or '-', and must not start with '-'",
        );
    }
}

pub(crate) fn label(errors: &mut Errors, path: &Path, value: &str) {
    if value.is_empty() {
        errors.required(path, "");
        return;
    }
    if value.len() > LABEL_MAX {
        errors.invalid(path, value, too_long(LABEL_MAX));
    }
    if !is_label(value) {
        errors.invalid(path, value, LABEL);
    }
}

pub(crate) fn subdomain(errors: &mut Errors, path: &Path, value: &str) {
    if value.len() > SUBDOMAIN_MAX {
        errors.invalid(path, value, too_long(SUBDOMAIN_MAX));
    }
    if !is_subdomain(value) {
        errors.invalid(path, value, SUBDOMAIN);
    }
}

/// `IsValidPortName`: an IANA service name.
pub(crate) fn port_name(errors: &mut Errors, path: &Path, value: &str) {
    let mut complain = |wrong: bool, detail: &str| {
        if wrong {
            errors.invalid(path, value, detail);
        }
    };
    complain(value.len() > 15, "must be no more than 15 bytes");
    complain(
        !value.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    complain(!value.bytes().any(|byte| byte.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    complain(value.contains("--"), "must not contain consecutive hyphens");
    complain(value.starts_with('-') || value.ends_with('-'), "must not begin or end with a hyphen");
}

pub(crate) fn env_name(errors: &mut Errors, path: &Path, value: &str) {
    if value.is_empty() {
        errors.required(path, "");
    } else if !value.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=') {
        errors.invalid(path, value, ENV_NAME);
    }
}

/// `IsConfigMapKey`: becomes a file name.
pub(crate) fn object_key(errors: &mut Errors, path: &Path, value: &str) {
    const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
    if value.len() > SUBDOMAIN_MAX {
        errors.invalid(path, value, too_long(SUBDOMAIN_MAX));
    }
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        errors.invalid(path, value, KEY);
    }
    match value {
        "." => errors.invalid(path, value, "must not be '.'"),
        ".." => errors.invalid(path, value, "must not be '..'"),
        _ if value.starts_with("..") => errors.invalid(path, value, "must not start with '..'"),
        _ => {}
    }
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// The key of a label or annotation: `[subdomain/]name`.
pub(crate) fn qualified_name(errors: &mut Errors, path: &Path, value: &str) {
    let (prefix, name) = match value.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, value),
    };
    if let Some(prefix) = prefix
        && (!is_subdomain(prefix) || prefix.len() > SUBDOMAIN_MAX)
    {
        errors.invalid(path, value, format!("prefix part {SUBDOMAIN}"));
    }
    if !is_name_part(name) {
        errors.invalid(path, value, QUALIFIED_NAME);
    }
}

pub(crate) fn labels(errors: &mut Errors, path: &Path, labels: &BTreeMap<String, String>) {
    for (key, value) in labels {
        qualified_name(errors, path, key);
        if !value.is_empty() && !is_name_part(value) {
            errors.invalid(path, value, LABEL_VALUE);
        }
    }
}

pub(crate) fn annotations(errors: &mut Errors, path: &Path, annotations: &BTreeMap<String, String>) {
    let mut bytes = 0;
    for (key, value) in annotations {
        // Upstream lets annotation keys be upper case.
        qualified_name(errors, path, &key.to_ascii_lowercase());
        bytes += key.len() + value.len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.invalid(path, "", format!("may not be more than {ANNOTATIONS_BYTES_MAX} bytes"));
    }
}

/// A path without a step upwards (`validatePathNoBacksteps`). A NUL would cut it short in the kernel.
pub(crate) fn no_backsteps(errors: &mut Errors, path: &Path, value: &str) {
    if value.split('/').any(|step| step == "..") {
        errors.invalid(path, value, "must not contain '..'");
    }
    no_nul(errors, path, value);
}

/// Strings that the kernel takes as C strings.
pub(crate) fn no_nul(errors: &mut Errors, path: &Path, value: &str) {
    if value.contains('\0') {
        errors.invalid(path, value, "must not contain a NUL character");
    }
}

/// `validateLocalDescendingPath`: relative, and never upwards.
pub(crate) fn descending(errors: &mut Errors, path: &Path, value: &str) {
    if value.starts_with('/') {
        errors.invalid(path, value, "must be a relative path");
    }
    no_backsteps(errors, path, value);
}

/// `validateLocalNonReservedPath`: names that begin with two dots are the volume's own.
pub(crate) fn in_volume(errors: &mut Errors, path: &Path, value: &str) {
    descending(errors, path, value);
    if value.starts_with("..") && !value.starts_with("../") && value != ".." {
        errors.invalid(path, value, "must not start with '..'");
    }
}
