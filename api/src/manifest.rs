//! Manifests as people write them: YAML or JSON, one document or many, read strictly.
//!
//! Every field must be known and of its type: a misspelt `imagee` is an error here, as it is with
//! `kubectl --validate=strict`. Bounds keep a hostile file from costing memory.

use crate::secret::SecretObject;
use crate::{decode, schema};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Bytes of one manifest file or request body.
pub const MANIFEST_BYTES_MAX: usize = 3 << 20;
/// Documents in one file.
pub const DOCUMENTS_MAX: usize = 1000;

/// A manifest that says nothing that can be run.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MANIFEST_BYTES_MAX`].
    #[error("manifest is larger than {MANIFEST_BYTES_MAX} bytes")]
    TooLarge,
    /// More than [`DOCUMENTS_MAX`].
    #[error("manifest holds more than {DOCUMENTS_MAX} documents")]
    TooMany,
    /// Neither YAML nor JSON; the message has line and column.
    #[error("error parsing manifest: {0}")]
    Syntax(String),
    /// A kind that this board does not run.
    #[error(
        "document {document}: no matches for kind {kind:?} in version {version:?}: a standalone board takes Pod, ConfigMap, Secret and List of v1"
    )]
    Kind {
        /// Counted from 1.
        document: usize,
        /// `kind`.
        kind: String,
        /// `apiVersion`.
        version: String,
    },
    /// A wrong type.
    #[error("document {document}: {message}")]
    Type {
        /// Counted from 1.
        document: usize,
        /// serde's message.
        message: String,
    },
    /// A field that the kind does not have.
    #[error("document {document}: strict decoding error: {message}")]
    Strict {
        /// Counted from 1.
        document: usize,
        /// `unknown field "spec.containers[0].imagee"`.
        message: String,
    },
}

/// What a manifest may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `v1.Pod`.
    Pod(Box<Pod>),
    /// `v1.ConfigMap`.
    ConfigMap(Box<ConfigMap>),
    /// `v1.Secret`.
    Secret(SecretObject),
}

/// Every object of a manifest, in order; lists are unfolded. Pure; total.
pub fn objects(text: &[u8]) -> Result<Vec<Object>, ManifestError> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let text = std::str::from_utf8(text).map_err(|e| ManifestError::Syntax(format!("not UTF-8: {e}")))?;
    let documents = documents(text)?;
    if documents.len() > DOCUMENTS_MAX {
        return Err(ManifestError::TooMany);
    }
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        unfold(index + 1, document, &mut objects)?;
    }
    Ok(objects)
}

fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    // JSON is YAML, but serde_json's messages for it are the better ones.
    if text.trim_start().starts_with('{') {
        let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        return stream.collect::<Result<_, _>>().map_err(|e| ManifestError::Syntax(e.to_string()));
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, decode::yaml_options())
        .map_err(|e| ManifestError::Syntax(first_line(&e.to_string())))?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// The parser's message without the piece of the document that it draws below.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).into()
}

fn unfold(number: usize, document: Value, objects: &mut Vec<Object>) -> Result<(), ManifestError> {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    match (text("apiVersion").as_str(), text("kind").as_str()) {
        ("v1", "Pod" | "ConfigMap" | "Secret") => objects.push(object(number, document)?),
        ("v1", list @ ("List" | "PodList" | "ConfigMapList" | "SecretList")) => {
            let items = document.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            for item in items {
                let mut item = item;
                if list != "List" && item.get("kind").is_none() {
                    item["kind"] = list.trim_end_matches("List").into();
                    item["apiVersion"] = "v1".into();
                }
                // A list in a list is refused by its kind below rather than followed.
                match item.get("kind").and_then(Value::as_str) {
                    Some("Pod" | "ConfigMap" | "Secret") => unfold(number, item, objects)?,
                    kind => return Err(unknown(number, kind.unwrap_or_default(), &text("apiVersion"))),
                }
            }
        }
        (version, kind) => return Err(unknown(number, kind, version)),
    }
    Ok(())
}

fn unknown(document: usize, kind: &str, version: &str) -> ManifestError {
    ManifestError::Kind { document, kind: kind.into(), version: version.into() }
}

fn object(document: usize, value: Value) -> Result<Object, ManifestError> {
    match value.get("kind").and_then(Value::as_str) {
        Some("Pod") => Ok(Object::Pod(Box::new(strict(document, "Pod", value)?))),
        Some("ConfigMap") => Ok(Object::ConfigMap(Box::new(strict(document, "ConfigMap", value)?))),
        _ => Ok(Object::Secret(SecretObject(Box::new(strict(document, "Secret", value)?)))),
    }
}

/// One object, strictly. No error quotes what a Secret's data holds.
fn strict<T: DeserializeOwned>(document: usize, kind: &str, value: Value) -> Result<T, ManifestError> {
    let form = schema::kind("v1", kind).expect("the table knows what is matched above");
    let typed = |message| ManifestError::Type { document, message };
    let decoded = decode::placed(form, value).map_err(typed)?;
    if let Some(message) = decoded.strict.into_iter().next() {
        return Err(ManifestError::Strict { document, message });
    }
    // From bytes, as everything else is read: each further reader of these types is a tenth of the agent's size.
    let bytes = serde_json::to_vec(&decoded.value).expect("JSON is written");
    serde_json::from_slice(&bytes).map_err(|_| typed(format!("it does not fit the type {kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_strictly() {
        let check = |text: &str, expected: Result<&[&str], &str>| {
            let found = objects(text.as_bytes());
            match (found, expected) {
                (Ok(objects), Ok(names)) => {
                    let name = |object: &Object| match object {
                        Object::Pod(pod) => pod.metadata.name.clone().unwrap_or_default(),
                        Object::ConfigMap(map) => {
                            format!("configmap/{}", map.metadata.name.clone().unwrap_or_default())
                        }
                        Object::Secret(secret) => {
                            format!("secret/{}", secret.0.metadata.name.clone().unwrap_or_default())
                        }
                    };
                    let found: Vec<_> = objects.iter().map(name).collect();
                    assert_eq!(found, names, "{text}");
                }
                (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{text}\n{e}"),
                (found, _) => panic!("{text}\n{found:?}"),
            }
        };
        let pod = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: a, image: b}}]}}\n"
            )
        };
        check("", Ok(&[]));
        check("---\n---\n", Ok(&[]));
        check(&pod("a"), Ok(&["a"]));
        check(&format!("{}---\n{}", pod("a"), pod("b")), Ok(&["a", "b"]));
        check(
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[]}}"#,
            Ok(&["j"]),
        );
        check(
            r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"l"}}]}"#,
            Ok(&["l"]),
        );
        check("apiVersion: apps/v1\nkind: Deployment\n", Err("no matches for kind \"Deployment\""));
        check(
            "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, imagee: b}]}",
            Err("unknown field \"spec.containers[0].imagee\""),
        );
        check(
            "apiVersion: v1\nkind: Pod\nspec: {containers: 5}",
            Err(
                "document 1: spec.containers: json: cannot unmarshal number into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
        );
        check(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: 1}",
            Err(
                "document 1: metadata.name: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
            ),
        );
        check("apiVersion: v1\nkind: Pod\n  bad indent: [", Err("error parsing manifest"));
        check("{\"apiVersion\": ", Err("error parsing manifest"));
        check("just text", Err("no matches for kind"));
        check("a: &a [*a]", Err(""));
        // As kubectl reads it, and as half of all manifests have it.
        let mode = "apiVersion: v1\nkind: Pod\nspec: {containers: [], volumes: [{name: v, secret: {defaultMode: 0400}}]}";
        let found = objects(mode.as_bytes()).expect("a pod");
        let [Object::Pod(pod)] = found.as_slice() else { panic!("{found:?}") };
        let volumes = pod.spec.clone().and_then(|spec| spec.volumes).expect("volumes");
        assert_eq!(volumes[0].secret.clone().and_then(|secret| secret.default_mode), Some(0o400));
    }

    #[test]
    fn objects_are_read_and_nothing_of_a_secret_is_told() {
        let check = |text: &str, expected: Result<(&str, &str, &str), &str>| {
            let found = objects(text.as_bytes());
            match (&found, expected) {
                (Ok(found), Ok((name, key, value))) => {
                    let [Object::Secret(SecretObject(secret))] = found.as_slice() else {
                        panic!("{found:?}")
                    };
                    assert_eq!(secret.metadata.name.as_deref(), Some(name));
                    let plain = secret.string_data.as_ref().and_then(|data| data.get(key)).cloned();
                    let encoded = secret.data.as_ref().and_then(|data| data.get(key));
                    let encoded = encoded.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
                    assert_eq!(plain.or(encoded).as_deref(), Some(value));
                }
                (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected),
                _ => panic!("{text}\n{found:?}"),
            }
            assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
        };
        let secret = |rest: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: reg}}\n{rest}");
        check(&secret("data: {k: aHVudGVyMg==}"), Ok(("reg", "k", "hunter2")));
        check(&secret("stringData: {password: hunter2}"), Ok(("reg", "password", "hunter2")));
        let list = r#"{"apiVersion":"v1","kind":"SecretList","items":[{"metadata":{"name":"l"},"data":{"k":"e30="}}]}"#;
        check(list, Ok(("l", "k", "{}")));
        let place = |place: &str, expected: &str| format!("document 1: {place}: {expected}");
        let data = |found: &str, path: &str, to: &str| {
            place(
                path,
                &format!("json: cannot unmarshal {found} into Go struct field Secret.{path} of type {to}"),
            )
        };
        check(
            &secret("data: {.dockerconfigjson: hunter2!}"),
            Err(&place("data..dockerconfigjson", "illegal base64 data at input byte 7")),
        );
        check(&secret("stringData: [hunter2]"), Err(&data("array", "stringData", "map[string]string")));
        check(&secret("data: hunter2"), Err(&data("string", "data", "map[string][]uint8")));
        check(&secret("date: hunter2"), Err("document 1: strict decoding error: unknown field \"date\""));
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: 5}";
        let refused = objects(map.as_bytes()).expect_err("a number is no text").to_string();
        assert!(refused.starts_with("document 1: data.k: json: cannot unmarshal number"), "{refused}");
    }

    #[test]
    fn a_billion_laughs_costs_an_error_and_not_the_memory() {
        let mut text = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (this, last) in ('b'..='j').zip('a'..='i') {
            text += &format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(","));
        }
        assert!(objects(text.as_bytes()).is_err());
    }
}
