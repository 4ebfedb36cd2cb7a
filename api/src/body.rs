//! The body of a write becomes the object that the resource wants, or the answer that refuses it.
//!
//! Puts `decode` and `protobuf` together, with the sentences that upstream's request handlers add. What comes after,
//! defaults and validation, belongs to the kinds.

use serde_json::Value;

use crate::decode::{self, FieldValidation, SyntaxError};
use crate::protobuf::{self, ProtobufError};
use crate::schema::{self, Form};
use crate::status::StatusError;

/// What bodies are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

/// What [`MediaType::of`] knows, in the order in which a refusal names them.
pub const ACCEPTED: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

impl MediaType {
    /// By `Content-Type`; none is JSON. `None` is answered with [`StatusError::unsupported_media_type`].
    pub fn of(content_type: &str) -> Option<MediaType> {
        Some(match content_type.split(';').next().unwrap_or_default().trim() {
            "" | "application/json" => MediaType::Json,
            "application/yaml" => MediaType::Yaml,
            "application/vnd.kubernetes.protobuf" => MediaType::Protobuf,
            _ => return None,
        })
    }
}

/// What a resource wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `v1`, `apps/v1`.
    pub api_version: &'a str,
    pub kind: &'a str,
}

/// An object, and what there is to warn about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// Canonical, with `apiVersion` and `kind`.
    pub object: Value,
    /// For the `Warning` header: `unknown field "spec.x"`.
    pub warnings: Vec<String>,
}

/// Reads a body. `apiVersion` and `kind` may be missing from it; they are those of the resource then.
pub fn read(
    media: MediaType,
    body: &[u8],
    wanted: Wanted<'_>,
    validation: FieldValidation,
) -> Result<Body, StatusError> {
    let unrecognized = |why: String| StatusError::unrecognized(wanted.kind, why, body);
    let document = match media {
        MediaType::Json => decode::json(body).map_err(|error| match error {
            SyntaxError::TooLarge => StatusError::too_large(error),
            error => unrecognized(format!("couldn't get version/kind; json parse error: {error}")),
        })?,
        MediaType::Yaml => decode::yaml(body).map_err(|error| match error {
            SyntaxError::TooLarge => StatusError::too_large(error),
            error => unrecognized(format!("error converting YAML to JSON: {error}")),
        })?,
        MediaType::Protobuf => match protobuf::decode(body) {
            Ok(value) => decode::Document { value, duplicates: Vec::new() },
            Err(error @ ProtobufError::TooLarge) => return Err(StatusError::too_large(error)),
            Err(ProtobufError::UnknownKind { version, kind }) => {
                return Err(unregistered(&version, &kind, wanted));
            }
            Err(error) => return Err(unrecognized(error.to_string())),
        },
    };
    object(document, wanted, validation, &unrecognized)
}

fn object(
    document: decode::Document,
    wanted: Wanted<'_>,
    validation: FieldValidation,
    unrecognized: &dyn Fn(String) -> StatusError,
) -> Result<Body, StatusError> {
    let mut strict = decode::duplicates(&document);
    let mut value = document.value;
    let found = match &value {
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        _ => "number",
    };
    let Some(object) = value.as_object_mut() else {
        return Err(unrecognized(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
        )));
    };
    let mut told = |name: &str, otherwise: &str| {
        let text = object.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let text = text.unwrap_or(otherwise).to_owned();
        object.insert(name.to_owned(), text.as_str().into());
        text
    };
    let (version, kind) = (told("apiVersion", wanted.api_version), told("kind", wanted.kind));
    let form = form(&version, &kind, wanted)?;
    let short = version.rsplit('/').next().unwrap_or_default();
    let refuse = |why: decode::TypeError| StatusError::unhandled(&kind, short, wanted.kind, why);
    let decoded = decode::object(form, value).map_err(refuse)?;
    strict.extend(decoded.strict);
    let warnings = validation.judge(strict).map_err(refuse)?;
    Ok(Body { object: decoded.value, warnings })
}

/// The form of the body's kind, where it is the one that is wanted.
fn form(version: &str, kind: &str, wanted: Wanted<'_>) -> Result<&'static Form, StatusError> {
    let Some(form) = schema::kind(version, kind) else { return Err(unregistered(version, kind, wanted)) };
    if kind != wanted.kind || group(version) != group(wanted.api_version) {
        let short = version.rsplit('/').next().unwrap_or_default();
        let why = format!(
            "converting ({short}.{kind}) to ({}.{}): unknown conversion",
            package(wanted.api_version),
            wanted.kind
        );
        return Err(StatusError::unhandled(kind, short, wanted.kind, why));
    }
    if version != wanted.api_version && kind != "DeleteOptions" {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            wanted.api_version
        )));
    }
    Ok(form)
}

fn unregistered(version: &str, kind: &str, wanted: Wanted<'_>) -> StatusError {
    let short = version.rsplit('/').next().unwrap_or_default();
    let why = format!(
        "no kind \"{kind}\" is registered for version \"{version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    );
    StatusError::unhandled(kind, short, wanted.kind, why)
}

fn group(version: &str) -> &str {
    version.rsplit_once('/').map_or("", |(group, _)| group)
}

/// The Go package of a group's types.
fn package(version: &str) -> &str {
    match group(version) {
        "" | "events.k8s.io" => "core",
        group => group.split('.').next().unwrap_or(group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const POD: Wanted<'_> = Wanted { api_version: "v1", kind: "Pod" };

    #[test]
    fn bodies_are_refused_as_upstream_does() {
        let check = |body: &str, validation, code: u16, message: &str| {
            let error = read(MediaType::Json, body.as_bytes(), POD, validation).expect_err(body);
            assert_eq!((error.code, error.message.as_str()), (code, message), "{body}");
        };
        let warn = FieldValidation::Warn;
        check(
            "{\"kind\":",
            warn,
            400,
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input ({\"kind\":)",
        );
        check(
            r#"{"apiVersion":"v1","kind":"Pod","spce":{},"spec":{"containers":[]}}"#,
            FieldValidation::Strict,
            400,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spce\"",
        );
        check(
            r#"{"spec":{"containers":[],"x":1},"metadata":{"name":"a","name":"b"}}"#,
            FieldValidation::Strict,
            400,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \"metadata.name\", unknown field \"spec.x\"",
        );
        check(
            r#"{"apiVersion":"apps/v1","kind":"Deployment"}"#,
            warn,
            400,
            "Deployment in version \"v1\" cannot be handled as a Pod: converting (v1.Deployment) to (core.Pod): unknown conversion",
        );
        check(
            r#"{"apiVersion":"v1","kind":"Widget"}"#,
            warn,
            400,
            "Widget in version \"v1\" cannot be handled as a Pod: no kind \"Widget\" is registered for version \"v1\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        );
        check(
            r#"{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"resources":{"limits":{"memory":"lots"}}}]}}"#,
            warn,
            400,
            "Pod in version \"v1\" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        );
        check(
            &" ".repeat(decode::BODY_BYTES_MAX + 1),
            warn,
            413,
            "Request entity too large: limit is 3145728",
        );
        let scaler = Wanted { api_version: "autoscaling/v2", kind: "HorizontalPodAutoscaler" };
        let body = br#"{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler"}"#;
        assert_eq!(
            read(MediaType::Json, body, scaler, warn).expect_err("another version").message,
            "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)"
        );
        for (media, body) in
            [(MediaType::Json, &b"[]"[..]), (MediaType::Yaml, b"a: ["), (MediaType::Protobuf, b"x")]
        {
            let error = read(media, body, POD, warn).expect_err("refused");
            assert!(error.message.starts_with("the object provided is unrecognized"), "{error}");
        }
    }

    #[test]
    fn bodies_of_every_type_are_read() {
        let check = |media, body: &[u8], warnings: &[&str]| {
            let found =
                read(media, body, Wanted { api_version: "v1", kind: "ConfigMap" }, FieldValidation::Warn);
            let found = found.expect("a ConfigMap");
            let expected = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
            assert_eq!(
                (found.object, found.warnings),
                (expected, warnings.iter().map(|w| (*w).to_owned()).collect())
            );
        };
        check(MediaType::Json, br#"{"metadata":{"name":"c"}}"#, &[]);
        check(MediaType::Json, br#"{"metadata":{"name":"c"},"dta":{}}"#, &["unknown field \"dta\""]);
        check(MediaType::Yaml, b"kind: ConfigMap\nmetadata:\n  name: c\n", &[]);
        check(MediaType::Protobuf, b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x05\x0a\x03\x0a\x01c", &[]);
        assert_eq!(MediaType::of("application/json; charset=utf-8"), Some(MediaType::Json));
        assert_eq!(MediaType::of("text/plain"), None);
    }
}
