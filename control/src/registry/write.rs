//! Create, update, patch: how an object comes in.

use super::options::{FieldValidation, WriteOptions};
use super::patch::{PatchType, patched};
use super::{
    Part, RETRIES_MAX, Registry, Resource, Subresource, Target, Written, load, meta, refused, seal, stamp,
};
use crate::kinds;
use crate::object;
use crate::storage::StorageError;
use coracle_api::field::{Errors, quoted};
use coracle_api::status::StatusError;
use serde_json::{Value, json};

/// Makes the new object of the stored one, with warnings for whoever asked.
type Produce<'a> = dyn Fn(&Value) -> Result<(Value, Vec<String>), StatusError> + Sync + 'a;

impl Registry {
    /// Adds an object.
    ///
    /// # Errors
    /// 400, 403, 404 for its namespace, 409 when the name is taken, 422.
    pub async fn create(
        &self,
        target: &Target,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Written, StatusError> {
        let resource = target.resource;
        let warnings = accept(resource, &mut object, options.validation)?;
        match_namespace(target, &mut object)?;
        (resource.default)(&mut object);
        self.admit_create(target, &mut object).await?;
        meta::prepare_create(resource, &mut object)?;
        if resource.has_status() && !resource.status_on_create {
            object::remove(&mut object, "status");
        }
        (resource.prepare_create)(&mut object);
        validate(resource, &object, None)?;
        let name = object::name(&object).to_string();
        let claims = self.claim(resource, &mut object, None, options.dry_run).await?;
        let key = resource.key(&target.namespace, &name);
        if options.dry_run {
            return match self.storage.get(&key).await.map_err(refused)? {
                Some(_) => Err(StatusError::already_exists(resource.group_resource(), &name)),
                None => Ok(Written { object, warnings }),
            };
        }
        match self.storage.create(&key, seal(resource, &object)).await {
            Ok(entry) => {
                stamp(&mut object, entry.modified);
                if resource.kind == "Namespace" {
                    self.furnish(&name).await?;
                }
                Ok(Written { object, warnings })
            }
            Err(error) => {
                self.release(claims).await;
                Err(match error {
                    StorageError::Conflict(_)
                        if object::text(&object, &["metadata", "generateName"]).is_empty() =>
                    {
                        StatusError::already_exists(resource.group_resource(), &name)
                    }
                    StorageError::Conflict(_) => {
                        StatusError::generate_name_conflict(resource.group_resource(), &name, 1)
                    }
                    error => refused(error),
                })
            }
        }
    }

    /// Replaces an object, or a part of it.
    ///
    /// # Errors
    /// 404, 409 when it is not the version that the object names, 422.
    pub async fn update(
        &self,
        target: &Target,
        part: Option<&'static Subresource>,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Written, StatusError> {
        let warnings = accept(target.resource, &mut object, options.validation)?;
        match_namespace(target, &mut object)?;
        match object::name(&object) {
            "" => object::set_meta(&mut object, "name", target.name.as_str()),
            name if name != target.name => {
                return Err(StatusError::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    target.name
                )));
            }
            _ => {}
        }
        self.rewrite(target, part, options, &|_| Ok((object.clone(), warnings.clone()))).await
    }

    /// Patches an object, or a part of it.
    ///
    /// # Errors
    /// 404, 409, 415, 422.
    pub async fn patch(
        &self,
        target: &Target,
        part: Option<&'static Subresource>,
        (how, patch): (PatchType, &Value),
        options: WriteOptions,
    ) -> Result<Written, StatusError> {
        let produce = |old: &Value| {
            let mut new = patched(old, patch, how)?;
            let warnings = accept(target.resource, &mut new, options.validation)?;
            match_namespace(target, &mut new)?;
            if object::name(&new) != target.name {
                let mut errors = Errors::default();
                let path = coracle_api::field::Path::new("metadata").child("name");
                errors.invalid(&path, object::name(&new), "field is immutable");
                return Err(StatusError::invalid(target.resource.group_kind(), &target.name, &errors));
            }
            Ok((new, warnings))
        };
        self.rewrite(target, part, options, &produce).await
    }

    /// Makes a new object of the stored one and stores it; again when somebody else was faster.
    pub(super) async fn rewrite(
        &self,
        target: &Target,
        part: Option<&'static Subresource>,
        options: WriteOptions,
        produce: &Produce<'_>,
    ) -> Result<Written, StatusError> {
        let resource = target.resource;
        let stale = || StatusError::stale(resource.group_resource(), &target.name);
        for _ in 0..RETRIES_MAX {
            let entry = self.storage.get(&target.key()).await.map_err(refused)?;
            let entry = entry.ok_or_else(|| target.not_found())?;
            let old = load(resource, &entry)?;
            let (mut new, warnings) = produce(&old)?;
            let version = object::text(&new, &["metadata", "resourceVersion"]).to_string();
            if !version.is_empty() && version != entry.modified.to_string() {
                return Err(stale());
            }
            let uid = object::uid(&new);
            if !uid.is_empty() && uid != object::uid(&old) {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    object::uid(&old)
                );
                return Err(StatusError::conflict(resource.group_resource(), &target.name, why));
            }
            meta::keep(&mut new, &old);
            let mut claims = Vec::new();
            match part {
                None => {
                    (resource.default)(&mut new);
                    keep_status(resource, &mut new, &old);
                    (resource.prepare_update)(&mut new, &old);
                    if resource.generation {
                        meta::bump_generation(&mut new, &old);
                    }
                    validate(resource, &new, Some(&old))?;
                    claims = self.claim(resource, &mut new, Some(&old), options.dry_run).await?;
                }
                Some(part) => new = with_part(&new, &old, part),
            }
            if new == old {
                return Ok(Written { object: old, warnings });
            }
            if options.dry_run {
                return Ok(Written { object: new, warnings });
            }
            let stored = if kinds::is_finished(resource, &new) {
                let deleted = self.storage.delete(&entry.key, entry.modified).await;
                if deleted.is_ok() {
                    self.release_all(resource, &old).await;
                }
                deleted
            } else {
                self.storage
                    .update(&entry.key, seal(resource, &new), entry.modified)
                    .await
                    .map(|e| e.modified)
            };
            match stored {
                Ok(revision) => {
                    self.release_dropped(resource, &old, &new).await;
                    stamp(&mut new, revision);
                    return Ok(Written { object: new, warnings });
                }
                Err(StorageError::Conflict(_)) => {
                    self.release(claims).await;
                    if !version.is_empty() {
                        return Err(stale());
                    }
                }
                Err(error) => {
                    self.release(claims).await;
                    return Err(refused(error));
                }
            }
        }
        Err(stale())
    }

    /// `pods/NAME/binding`: gives a pod its node, once.
    ///
    /// # Errors
    /// 404, 409 when it has one.
    pub async fn bind(
        &self,
        target: &Target,
        binding: &Value,
        options: WriteOptions,
    ) -> Result<Value, StatusError> {
        let node = object::text(binding, &["target", "name"]).to_string();
        if node.is_empty() {
            let mut errors = Errors::default();
            errors.required(&coracle_api::field::Path::new("target").child("name"), "");
            let kind = coracle_api::status::GroupKind { group: "", kind: "Binding" };
            return Err(StatusError::invalid(kind, object::name(binding), &errors));
        }
        let assign = |old: &Value| {
            let conflict =
                |why: String| Err(StatusError::conflict(target.resource.group_resource(), &target.name, why));
            if object::is_terminating(old) {
                return conflict(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    target.name
                ));
            }
            match object::text(old, &["spec", "nodeName"]) {
                "" => {}
                other => {
                    return conflict(format!(
                        "pod {} is already assigned to node {}",
                        target.name,
                        quoted(other)
                    ));
                }
            }
            let mut new = old.clone();
            object::fields(object::child(&mut new, "spec")).insert("nodeName".into(), node.clone().into());
            kinds::pod_scheduled(&mut new, &super::now().to_string());
            Ok((new, Vec::new()))
        };
        self.rewrite(target, Some(&kinds::BINDING), options, &assign).await?;
        Ok(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201}))
    }
}

/// Checks that the body is of the kind, and brings it into form; answers with warnings.
pub(crate) fn accept(
    resource: &Resource,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, StatusError> {
    if !object.is_object() {
        let why = "couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
        return Err(StatusError::unrecognized(resource.kind, why, object.to_string().as_bytes()));
    }
    let wanted = resource.api_version();
    let given = |key: &str, default: &str| match object::text(object, &[key]) {
        "" => default.to_string(),
        text => text.to_string(),
    };
    let (kind, api_version) = (given("kind", resource.kind), given("apiVersion", &wanted));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    if kind != resource.kind || group != resource.group {
        let why = match kinds::find_kind(group, version, &kind) {
            Some(found) => format!(
                "converting ({version}.{kind}) to ({}.{}): unknown conversion",
                internal_name(resource.group),
                resource.kind
            )
            .replace(&format!("({version}.{kind})"), &format!("({}.{kind})", found.version)),
            None => format!(
                "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
                quoted(&kind),
                quoted(&api_version)
            ),
        };
        return Err(StatusError::unhandled(&kind, version, resource.kind, why));
    }
    if version != resource.version {
        return Err(StatusError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    let fields = object::fields(object);
    fields.remove("apiVersion");
    fields.remove("kind");
    let unknown = (resource.normalize)(object)
        .map_err(|error| StatusError::unhandled(&kind, version, resource.kind, error))?;
    let fields = object::fields(object);
    fields.insert("apiVersion".into(), wanted.into());
    fields.insert("kind".into(), resource.kind.into());
    let unknown: Vec<String> =
        unknown.iter().map(|field| format!("unknown field {}", quoted(field))).collect();
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Warn => Ok(unknown),
        FieldValidation::Strict if unknown.is_empty() => Ok(Vec::new()),
        FieldValidation::Strict => {
            let why = format!("strict decoding error: {}", unknown.join(", "));
            Err(StatusError::unhandled(&kind, version, resource.kind, why))
        }
    }
}

/// Upstream's name of a group's internal package, which its conversion errors show.
fn internal_name(group: &str) -> &str {
    match group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    }
}

fn match_namespace(target: &Target, object: &mut Value) -> Result<(), StatusError> {
    let given = object::namespace(object);
    if !target.resource.namespaced {
        object::set_meta(object, "namespace", Value::Null);
    } else if given.is_empty() {
        object::set_meta(object, "namespace", target.namespace.as_str());
    } else if given != target.namespace {
        return Err(StatusError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// An update of the object says nothing about its status.
fn keep_status(resource: &Resource, new: &mut Value, old: &Value) {
    if !resource.has_status() {
        return;
    }
    match old.get("status") {
        Some(status) => {
            object::fields(new).insert("status".into(), status.clone());
        }
        None => {
            object::remove(new, "status");
        }
    }
}

/// The old object with the part that the request may write.
fn with_part(new: &Value, old: &Value, part: &Subresource) -> Value {
    let mut result = old.clone();
    let mut copy = |path: &[&str]| {
        let (last, parents) = path.split_last().expect("a path has a name");
        let parent = parents.iter().fold(&mut result, |value, key| object::child(value, key));
        match object::at(new, path) {
            Value::Null => object::remove(parent, last),
            value => object::fields(parent).insert((*last).into(), value.clone()),
        };
    };
    match part.what {
        Part::Status => {
            copy(&["status"]);
            copy(&["metadata", "labels"]);
            copy(&["metadata", "annotations"]);
            copy(&["metadata", "finalizers"]);
        }
        Part::Finalize => copy(&["spec", "finalizers"]),
        Part::Approval => copy(&["status", "conditions"]),
        Part::Binding => {
            copy(&["spec", "nodeName"]);
            copy(&["status", "conditions"]);
        }
    }
    result
}

fn validate(resource: &Resource, new: &Value, old: Option<&Value>) -> Result<(), StatusError> {
    let mut errors = Errors::default();
    meta::validate(resource, new, &mut errors);
    (resource.validate)(new, &mut errors);
    if let Some(old) = old {
        (resource.validate_update)(new, old, &mut errors);
    }
    errors
        .into_result()
        .map_err(|errors| StatusError::invalid(resource.group_kind(), object::name(new), &errors))
}
