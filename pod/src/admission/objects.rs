//! `v1.ConfigMap` and `v1.Secret`: validated as the API server does, for boards that have none.

use super::field::{Errors, FieldError, Path, Problem};
use super::names;
use crate::objects::{Keyed, OBJECT_BYTES_MAX};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;

/// The values of a ConfigMap.
///
/// # Errors
/// Every error found, at most a hundred, in the order of the fields.
pub fn config_map(object: &v1::ConfigMap) -> Result<Keyed, Vec<FieldError>> {
    let mut errors = Errors::default();
    metadata(&mut errors, &object.metadata);
    let text = |(key, value): (&String, &String)| (key.clone(), value.clone().into_bytes());
    let keyed = Keyed {
        data: object.data.iter().flatten().map(text).collect(),
        binary_data: object.binary_data.iter().flatten().map(bytes).collect(),
    };
    let (data, binary) = (Path::new("data"), Path::new("binaryData"));
    for key in keyed.data.keys() {
        names::object_key(&mut errors, &data.key(key), key);
        if keyed.binary_data.contains_key(key) {
            errors.invalid(&data.key(key), key, "duplicate of key present in binaryData");
        }
    }
    for key in keyed.binary_data.keys() {
        names::object_key(&mut errors, &binary.key(key), key);
    }
    if keyed.bytes() > OBJECT_BYTES_MAX {
        errors.push(&Path::new(""), Problem::TooLong(OBJECT_BYTES_MAX));
    }
    errors.into_result(keyed)
}

/// The values of a Secret; `stringData` wins over `data`. No error quotes a value.
///
/// # Errors
/// As [`config_map`].
pub fn secret(object: &v1::Secret) -> Result<Keyed, Vec<FieldError>> {
    let mut errors = Errors::default();
    metadata(&mut errors, &object.metadata);
    let mut data: BTreeMap<String, Vec<u8>> = object.data.iter().flatten().map(bytes).collect();
    let plain = object.string_data.iter().flatten();
    data.extend(plain.map(|(key, value)| (key.clone(), value.clone().into_bytes())));
    let keyed = Keyed { data, ..Keyed::default() };
    let path = Path::new("data");
    for key in keyed.data.keys() {
        names::object_key(&mut errors, &path.key(key), key);
    }
    if keyed.bytes() > OBJECT_BYTES_MAX {
        errors.push(&path, Problem::TooLong(OBJECT_BYTES_MAX));
    }
    let required: &[&str] = match object.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in required {
        // Upstream lets the parts of a pair be empty, and nothing else.
        let value = keyed.data.get(*key);
        if value.is_none_or(|value| value.is_empty() && required.len() == 1) {
            errors.required(&path.key(key), "");
        }
    }
    errors.into_result(keyed)
}

fn bytes((key, value): (&String, &ByteString)) -> (String, Vec<u8>) {
    (key.clone(), value.0.clone())
}

fn metadata(errors: &mut Errors, meta: &ObjectMeta) {
    super::name_and_namespace(errors, meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(result: Result<Keyed, Vec<FieldError>>) -> Result<usize, String> {
        let lines = |errors: Vec<FieldError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        result.map(|keyed| keyed.bytes()).map_err(|errors| lines(errors).join("; "))
    }

    #[test]
    fn keys_that_are_no_file_names_are_refused() {
        let check = |key: &str, expected: Option<&str>| {
            let text = format!(r#"{{"metadata": {{"name": "m"}}, "data": {{"{key}": "v"}}}}"#);
            let map = told(config_map(&serde_json::from_str(&text).expect("JSON")));
            let text = format!(r#"{{"metadata": {{"name": "m"}}, "stringData": {{"{key}": "v"}}}}"#);
            let secret = told(secret(&serde_json::from_str(&text).expect("JSON")));
            assert_eq!(map, secret, "{key}");
            let found = map.err();
            assert_eq!(found.is_some(), expected.is_some(), "{key}: {found:?}");
            if let (Some(found), Some(expected)) = (found, expected) {
                assert!(found.contains(expected), "{key}: {found}");
            }
        };
        check("a.b-C_9", None);
        check(".hidden", None);
        check("", Some("a valid config key must consist of"));
        check(".", Some("must not be '.'"));
        check("..", Some("must not be '..'"));
        check("..data", Some("must not start with '..'"));
        check("../../etc/passwd", Some("a valid config key must consist of"));
        check("a/b", Some("a valid config key must consist of"));
        check("a\\u0000", Some("a valid config key must consist of"));
        check(&"x".repeat(254), Some("must be no more than 253 bytes"));
    }

    #[test]
    fn objects_are_bounded_and_typed() {
        let map = |bytes: usize| {
            let text =
                format!(r#"{{"metadata": {{"name": "m"}}, "data": {{"k": "{}"}}}}"#, "x".repeat(bytes));
            told(config_map(&serde_json::from_str(&text).expect("JSON")))
        };
        assert_eq!(map(OBJECT_BYTES_MAX), Ok(OBJECT_BYTES_MAX));
        let too_long = map(OBJECT_BYTES_MAX + 1);
        assert_eq!(too_long, Err(": Too long: may not be more than 1048576 bytes".into()));
        let both = r#"{"metadata": {"name": "m"}, "data": {"k": "v"}, "binaryData": {"k": "dg=="}}"#;
        let both = told(config_map(&serde_json::from_str(both).expect("JSON")));
        assert_eq!(both, Err("data[k]: Invalid value: \"k\": duplicate of key present in binaryData".into()));
        let check = |kind: &str, data: &str, expected: Result<usize, &str>| {
            let text = format!(
                r#"{{"metadata": {{"name": "s"}}, "type": "kubernetes.io/{kind}", "stringData": {{{data}}}}}"#
            );
            let found = told(secret(&serde_json::from_str(&text).expect("JSON")));
            assert_eq!(found, expected.map_err(String::from), "{text}");
        };
        check("tls", "", Err("data[tls.crt]: Required value; data[tls.key]: Required value"));
        check("tls", r#""tls.crt": "", "tls.key": "k""#, Ok(1));
        check("ssh-auth", "", Err("data[ssh-privatekey]: Required value"));
        check("dockercfg", r#"".dockercfg": """#, Err("data[.dockercfg]: Required value"));
        check("basic-auth", "", Ok(0));
    }
}
