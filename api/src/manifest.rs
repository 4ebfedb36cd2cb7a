//! Manifests as people write them: YAML or JSON, one document or many, read strictly.
//!
//! Every field must be known and of its type: a misspelt `imagee` is an error here, as it is with
//! `kubectl --validate=strict`. Bounds keep a hostile file from costing memory.

use k8s_openapi::api::core::v1::Pod;
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
        "document {document}: no matches for kind {kind:?} in version {version:?}: a standalone board runs Pod and List of v1"
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
    /// A field that `v1.Pod` does not have.
    #[error("document {document}: strict decoding error: unknown field {field:?}")]
    UnknownField {
        /// Counted from 1.
        document: usize,
        /// `spec.containers[0].imagee`.
        field: String,
    },
}

/// Every pod of a manifest, in order; `v1.List` and `v1.PodList` are unfolded. Pure; total.
pub fn pods(text: &[u8]) -> Result<Vec<Pod>, ManifestError> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(ManifestError::TooLarge);
    }
    let text = std::str::from_utf8(text).map_err(|e| ManifestError::Syntax(format!("not UTF-8: {e}")))?;
    let documents = documents(text)?;
    if documents.len() > DOCUMENTS_MAX {
        return Err(ManifestError::TooMany);
    }
    let mut pods = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        unfold(index + 1, document, &mut pods)?;
    }
    Ok(pods)
}

fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    // JSON is YAML, but serde_json's messages for it are the better ones.
    if text.trim_start().starts_with('{') {
        let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        return stream.collect::<Result<_, _>>().map_err(|e| ManifestError::Syntax(e.to_string()));
    }
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|e| ManifestError::Syntax(first_line(&e.to_string())))?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// The parser's message without the piece of the document that it draws below.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).into()
}

fn unfold(number: usize, document: Value, pods: &mut Vec<Pod>) -> Result<(), ManifestError> {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    match (text("apiVersion").as_str(), text("kind").as_str()) {
        ("v1", "Pod") => pods.push(pod(number, document)?),
        ("v1", "List" | "PodList") => {
            let items = document.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            for item in items {
                let mut item = item;
                if text("kind") == "PodList" && item.get("kind").is_none() {
                    item["kind"] = "Pod".into();
                    item["apiVersion"] = "v1".into();
                }
                // A list in a list is refused by its kind below rather than followed.
                match item.get("kind").and_then(Value::as_str) {
                    Some("Pod") => unfold(number, item, pods)?,
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

/// One pod, strictly.
fn pod(document: usize, value: Value) -> Result<Pod, ManifestError> {
    let mut unknown: Option<String> = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        unknown.get_or_insert_with(|| field_path(&path));
    };
    // The message alone ("invalid type: integer `1`") says nothing in a pod of two hundred lines: which field is asked.
    let pod: Result<Pod, _> =
        serde_path_to_error::deserialize(serde_ignored::Deserializer::new(value, &mut note));
    let pod = pod.map_err(|e| {
        let (path, message) = (e.path().to_string(), e.into_inner());
        let message = if path == "." { message.to_string() } else { format!("{path}: {message}") };
        ManifestError::Type { document, message }
    })?;
    match unknown {
        Some(field) => Err(ManifestError::UnknownField { document, field }),
        None => Ok(pod),
    }
}

/// `spec.containers[0].imagee`, as the API server writes it.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        Path::Map { parent, key } => match field_path(parent).as_str() {
            "" => key.clone(),
            before => format!("{before}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            field_path(parent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_strictly() {
        let check = |text: &str, expected: Result<&[&str], &str>| {
            let found = pods(text.as_bytes());
            match (found, expected) {
                (Ok(pods), Ok(names)) => {
                    let found: Vec<_> = pods.iter().filter_map(|p| p.metadata.name.as_deref()).collect();
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
            Err("document 1: spec.containers: invalid type"),
        );
        check(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: 1}",
            Err("document 1: metadata.name: invalid type"),
        );
        check("apiVersion: v1\nkind: Pod\n  bad indent: [", Err("error parsing manifest"));
        check("{\"apiVersion\": ", Err("error parsing manifest"));
        check("just text", Err("no matches for kind"));
        check("a: &a [*a]", Err(""));
    }

    #[test]
    fn a_billion_laughs_costs_an_error_and_not_the_memory() {
        let mut text = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (this, last) in ('b'..='j').zip('a'..='i') {
            text += &format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(","));
        }
        assert!(pods(text.as_bytes()).is_err());
    }
}
