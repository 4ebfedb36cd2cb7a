//! OpenAPI of what a server serves: `/openapi/v3/…`, and `/openapi/v2` as JSON and as kubectl's protobuf.
//!
//! Made from the schema, so that `kubectl explain`, `apply` and `--validate` see what the server does: the extensions
//! (`x-kubernetes-list-type`, patch strategies, kinds) are there, and a PATCH says that it takes `fieldValidation`,
//! which kubectl looks for. The paths carry what clients read, not all that upstream writes. Building a document takes
//! milliseconds and some megabytes: callers keep the bytes, and their hash.

mod gnostic;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::schema::{self, Form, Merge, Scalar, Topology, Type};

pub use gnostic::encode as v2_protobuf;

const DESCRIPTIONS: &str = include_str!("../schema/descriptions.txt");

/// What can be done at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

/// A path and what is served there.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// `/apis/apps/v1/namespaces/{namespace}/deployments/{name}`.
    pub path: &'a str,
    /// `apps/v1`.
    pub group_version: &'a str,
    /// `Deployment`. A list is answered where the verb is [`Verb::List`].
    pub kind: &'a str,
    pub verbs: &'a [Verb],
}

/// The two forms of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// The document of one group and version. `version` is the server's.
pub fn v3(version: &str, served: &[Served<'_>]) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths(Dialect::V3, served),
        "components": {"schemas": definitions(Dialect::V3, served)},
    })
}

/// The document of everything, as JSON.
pub fn v2(version: &str, served: &[Served<'_>]) -> Value {
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths(Dialect::V2, served),
        "definitions": definitions(Dialect::V2, served),
    })
}

/// `io.k8s.api.core.v1.PodSpec`.
fn full_name(of: &Type) -> String {
    let prefix = if of.name.starts_with("meta.") { "io.k8s.apimachinery.pkg.apis." } else { "io.k8s.api." };
    format!("{prefix}{}", of.name)
}

fn reference(dialect: Dialect, name: &str) -> Value {
    let place = match dialect {
        Dialect::V2 => "definitions",
        Dialect::V3 => "components/schemas",
    };
    json!({"$ref": format!("#/{place}/{name}")})
}

/// The types of what is served and all that they are made of, by full name.
fn definitions(dialect: Dialect, served: &[Served<'_>]) -> Map<String, Value> {
    let mut open: Vec<&'static Type> = Vec::new();
    for served in served {
        let list = format!("{}List", served.kind);
        for (version, kind) in [
            (served.group_version, served.kind),
            (served.group_version, &list),
            ("v1", "DeleteOptions"),
            ("v1", "Status"),
        ] {
            open.extend(schema::kind(version, kind).and_then(Form::object));
        }
    }
    let (kinds, texts) = (kinds(), descriptions());
    let mut definitions = Map::new();
    let mut scalars = BTreeSet::new();
    while let Some(of) = open.pop() {
        let name = full_name(of);
        if definitions.contains_key(&name) {
            continue;
        }
        for field in &of.fields {
            reached(&field.form, &mut open, &mut scalars);
        }
        definitions.insert(name, definition(dialect, of, kinds.get(of.name), texts.get(of.name)));
    }
    for name in scalars {
        definitions.insert(name.to_owned(), scalar_definition(dialect, name));
    }
    definitions
}

fn reached(form: &Form, open: &mut Vec<&'static Type>, scalars: &mut BTreeSet<&'static str>) {
    match form {
        Form::Object { .. } => open.extend(form.object()),
        Form::Map { of, .. } | Form::List { of, .. } => reached(of, open, scalars),
        Form::Scalar(scalar) => scalars.extend(named_scalar(*scalar)),
    }
}

/// Kinds by type name.
fn kinds() -> BTreeMap<&'static str, Vec<Value>> {
    let mut kinds: BTreeMap<_, Vec<Value>> = BTreeMap::new();
    for name in schema::kinds() {
        if let Some((version, kind)) = name.rsplit_once('/')
            && let Some(of) = schema::kind(version, kind).and_then(Form::object)
        {
            kinds.entry(of.name).or_default().push(gvk(version, kind));
        }
    }
    kinds
}

fn gvk(group_version: &str, kind: &str) -> Value {
    let (group, version) = group_version.rsplit_once('/').unwrap_or(("", group_version));
    json!({"group": group, "version": version, "kind": kind})
}

fn definition(
    dialect: Dialect,
    of: &'static Type,
    kinds: Option<&Vec<Value>>,
    texts: Option<&Texts>,
) -> Value {
    let mut properties = Map::new();
    for field in &of.fields {
        let mut property = shape(dialect, &field.form);
        let text = texts.and_then(|texts| texts.get(field.name)).map(String::as_str).unwrap_or_default();
        if let Some(object) = property.as_object_mut() {
            if dialect == Dialect::V3
                && let Some(reference) = object.remove("$ref")
            {
                object.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
            object.insert("description".to_owned(), text.into());
            if let Some(default) = field.default {
                object.insert("default".to_owned(), default.into());
            }
        }
        properties.insert(field.name.to_owned(), property);
    }
    let required: Vec<_> = of.fields.iter().filter(|f| f.required).map(|f| f.name).collect();
    let mut definition = json!({
        "type": "object",
        "description": texts.and_then(|texts| texts.get("")).map(String::as_str).unwrap_or_default(),
        "properties": properties,
    });
    if !required.is_empty() {
        definition["required"] = required.into();
    }
    if of.atomic {
        definition["x-kubernetes-map-type"] = "atomic".into();
    }
    if let Some(kinds) = kinds {
        definition["x-kubernetes-group-version-kind"] = kinds.clone().into();
    }
    definition
}

fn shape(dialect: Dialect, form: &Form) -> Value {
    let mut shape = match form {
        Form::Object { .. } => reference(dialect, &form.object().map(full_name).unwrap_or_default()),
        Form::Map { of, .. } => json!({"type": "object", "additionalProperties": shape(dialect, of)}),
        Form::List { of, .. } => json!({"type": "array", "items": shape(dialect, of)}),
        Form::Scalar(scalar) => match (named_scalar(*scalar), scalar) {
            (Some(name), _) => reference(dialect, name),
            (None, Scalar::Bool) => json!({"type": "boolean"}),
            (None, Scalar::Int32) => json!({"type": "integer", "format": "int32"}),
            (None, Scalar::Int64) => json!({"type": "integer", "format": "int64"}),
            (None, Scalar::Double) => json!({"type": "number", "format": "double"}),
            (None, Scalar::Bytes) => json!({"type": "string", "format": "byte"}),
            (None, _) => json!({"type": "string"}),
        },
    };
    match form {
        Form::List { merge, retain_keys, topology, .. } => {
            match topology {
                Topology::Atomic => shape["x-kubernetes-list-type"] = "atomic".into(),
                Topology::Set => shape["x-kubernetes-list-type"] = "set".into(),
                Topology::Map(keys) => {
                    shape["x-kubernetes-list-type"] = "map".into();
                    shape["x-kubernetes-list-map-keys"] = keys.clone().into();
                }
            }
            if *merge != Merge::Replace {
                let strategy = if *retain_keys { "merge,retainKeys" } else { "merge" };
                shape["x-kubernetes-patch-strategy"] = strategy.into();
            }
            if let Merge::Key(key) = merge {
                shape["x-kubernetes-patch-merge-key"] = (*key).into();
            }
        }
        Form::Map { atomic: true, .. } => shape["x-kubernetes-map-type"] = "atomic".into(),
        Form::Object { retain_keys: true, .. } => shape["x-kubernetes-patch-strategy"] = "retainKeys".into(),
        _ => {}
    }
    shape
}

/// Scalars that OpenAPI has as definitions.
fn named_scalar(scalar: Scalar) -> Option<&'static str> {
    Some(match scalar {
        Scalar::Time => "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
        Scalar::MicroTime => "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime",
        Scalar::Quantity => "io.k8s.apimachinery.pkg.api.resource.Quantity",
        Scalar::IntOrString => "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        Scalar::Raw => "io.k8s.apimachinery.pkg.runtime.RawExtension",
        Scalar::Fields => "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
        _ => return None,
    })
}

fn scalar_definition(dialect: Dialect, name: &str) -> Value {
    match (name.rsplit('.').next().unwrap_or_default(), dialect) {
        ("Time" | "MicroTime", _) => json!({"type": "string", "format": "date-time"}),
        ("Quantity", Dialect::V2) => json!({"type": "string"}),
        ("Quantity", Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        ("IntOrString", Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        ("IntOrString", Dialect::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        _ => json!({"type": "object"}),
    }
}

fn paths(dialect: Dialect, served: &[Served<'_>]) -> Map<String, Value> {
    let mut paths = Map::new();
    for served in served {
        let path =
            paths.entry(served.path).or_insert_with(|| json!({"parameters": in_path(dialect, served.path)}));
        for verb in served.verbs {
            let method = match verb {
                Verb::Get | Verb::List => "get",
                Verb::Create => "post",
                Verb::Update => "put",
                Verb::Patch => "patch",
                Verb::Delete | Verb::DeleteCollection => "delete",
            };
            path[method] = operation(dialect, served, *verb);
        }
    }
    paths
}

fn parameter(dialect: Dialect, place: &str, name: &str, kind: &str) -> Value {
    let mut parameter = json!({"name": name, "in": place});
    match dialect {
        Dialect::V2 => {
            parameter["type"] = kind.into();
            parameter["uniqueItems"] = true.into();
        }
        Dialect::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    if place == "path" {
        parameter["required"] = true.into();
    }
    parameter
}

fn in_path(dialect: Dialect, path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|step| step.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| parameter(dialect, "path", name, "string")).collect()
}

fn operation(dialect: Dialect, served: &Served<'_>, verb: Verb) -> Value {
    const WRITE: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("fieldManager", "string"),
        ("fieldValidation", "string"),
        ("pretty", "string"),
    ];
    const LIST: &[(&str, &str)] = &[
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ];
    const DELETE: &[(&str, &str)] = &[
        ("dryRun", "string"),
        ("gracePeriodSeconds", "integer"),
        ("orphanDependents", "boolean"),
        ("propagationPolicy", "string"),
    ];
    let list = format!("{}List", served.kind);
    let (action, query, answer) = match verb {
        Verb::Get => ("get", &[("pretty", "string")][..], served.kind),
        Verb::List => ("list", LIST, list.as_str()),
        Verb::Create => ("post", WRITE, served.kind),
        Verb::Update => ("put", WRITE, served.kind),
        Verb::Patch => ("patch", WRITE, served.kind),
        Verb::Delete => ("delete", DELETE, "Status"),
        Verb::DeleteCollection => ("deletecollection", LIST, "Status"),
    };
    let mut parameters: Vec<_> =
        query.iter().map(|(name, kind)| parameter(dialect, "query", name, kind)).collect();
    if verb == Verb::Patch {
        parameters.push(parameter(dialect, "query", "force", "boolean"));
    }
    let refer = |kind: &str| {
        let version = if matches!(kind, "Status" | "DeleteOptions") { "v1" } else { served.group_version };
        let of = schema::kind(version, kind).and_then(Form::object);
        of.map_or_else(|| json!({"type": "object"}), |of| reference(dialect, &full_name(of)))
    };
    let body = match verb {
        Verb::Get | Verb::List => None,
        Verb::Create | Verb::Update => Some(refer(served.kind)),
        Verb::Patch => Some(json!({"type": "object"})),
        Verb::Delete | Verb::DeleteCollection => Some(refer("DeleteOptions")),
    };
    let mut operation = json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(served.group_version, served.kind),
    });
    match dialect {
        Dialect::V2 => {
            parameters.extend(body.map(|schema| json!({"name": "body", "in": "body", "schema": schema})));
            operation["responses"] = json!({"200": {"description": "OK", "schema": refer(answer)}});
        }
        Dialect::V3 => {
            if let Some(schema) = body {
                operation["requestBody"] = json!({"content": {"*/*": {"schema": schema}}});
            }
            let content = json!({"application/json": {"schema": refer(answer)}});
            operation["responses"] = json!({"200": {"description": "OK", "content": content}});
        }
    }
    operation["parameters"] = parameters.into();
    operation
}

type Texts = BTreeMap<&'static str, String>;

/// By type, then by field; the type's own text stands under the empty name. Not kept: documents are made once.
fn descriptions() -> BTreeMap<&'static str, Texts> {
    let mut all: BTreeMap<&'static str, Texts> = BTreeMap::new();
    let mut of = "";
    for line in DESCRIPTIONS.lines().filter(|line| !line.starts_with('#')) {
        let (name, text) = match line.strip_prefix(' ') {
            Some(field) => field.split_once(' ').unwrap_or((field, "")),
            None => {
                let (name, text) = line.split_once(' ').unwrap_or((line, ""));
                of = name;
                ("", text)
            }
        };
        all.entry(of).or_default().insert(name, unescaped(text));
    }
    all
}

fn unescaped(text: &str) -> String {
    text.split("\\\\").map(|part| part.replace("\\n", "\n")).collect::<Vec<_>>().join("\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVED: &[Served<'_>] = &[
        Served {
            path: "/apis/apps/v1/namespaces/{namespace}/deployments",
            group_version: "apps/v1",
            kind: "Deployment",
            verbs: &[Verb::List, Verb::Create, Verb::DeleteCollection],
        },
        Served {
            path: "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
            group_version: "apps/v1",
            kind: "Deployment",
            verbs: &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete],
        },
    ];

    /// Every `$ref` of a document leads somewhere.
    fn resolve(document: &Value, value: &Value, count: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(to)) = map.get("$ref") {
                    assert!(document.pointer(&to[1..]).is_some(), "{to}");
                    *count += 1;
                }
                map.values().for_each(|value| resolve(document, value, count));
            }
            Value::Array(list) => list.iter().for_each(|value| resolve(document, value, count)),
            _ => {}
        }
    }

    #[test]
    fn documents_are_whole() {
        for document in [v3("v1.36.3", SERVED), v2("v1.36.3", SERVED)] {
            let mut count = 0;
            resolve(&document, &document, &mut count);
            assert!(count > 200, "{count}");
        }
    }

    #[test]
    fn clients_find_what_they_look_for() {
        let document = v3("v1.36.3", SERVED);
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"],
            json!({"group": "apps", "version": "v1", "kind": "Deployment"})
        );
        let named =
            |name: &str| patch["parameters"].as_array().expect("a list").iter().any(|p| p["name"] == name);
        assert!(named("fieldValidation") && named("force"));
        let schemas = &document["components"]["schemas"];
        let of = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            of["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
        );
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(
            (&containers["x-kubernetes-list-map-keys"], &containers["x-kubernetes-patch-merge-key"]),
            (&json!(["name"]), &json!("name"))
        );
        assert_eq!(containers["items"], json!({"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}));
        assert!(containers["description"].as_str().expect("text").starts_with("List of containers"));
        assert_eq!(schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"]["default"], "TCP");
        assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
        assert!(schemas.get("io.k8s.api.batch.v1.Job").is_none(), "only what is served");
        assert_eq!(unescaped("a\\nb\\\\nc"), "a\nb\\nc");
    }
}
