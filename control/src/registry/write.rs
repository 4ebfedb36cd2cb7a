//! Create, update, patch: how an object comes in.

use super::accept::{accept, identify, keep_status, match_name, match_namespace, validate, with_part};
use super::options::WriteOptions;
use super::quota::Charged;
use super::{
    Part, RETRIES_MAX, Registry, Resource, Subresource, Target, Written, load, meta, refused, seal, stamp,
};
use crate::auth::{Attributes, Identity};
use crate::kinds;
use crate::object;
use crate::storage::StorageError;
use coracle_api::apply;
use coracle_api::decode::Document;
use coracle_api::field::{Errors, quoted};
use coracle_api::patch::{self, PatchType};
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};

/// Makes the new object of the stored one, with warnings for whoever asked.
pub(super) type Produce<'a> = dyn Fn(&Value) -> Result<(Value, Vec<String>), StatusError> + Sync + 'a;

/// Who records which fields a write owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// Whatever changed is the writer's.
    ByChange,
    /// An apply has said so already.
    Applied,
}

impl Registry {
    /// Adds an object.
    ///
    /// # Errors
    /// 400, 403, 404 for its namespace, 409 when the name is taken, 422.
    pub async fn create(
        &self,
        who: &Identity,
        target: &Target,
        document: Document,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        let (object, warnings) = accept(target.resource, document, options.validation)?;
        self.insert(who, target, object, warnings, options, Owners::ByChange).await
    }

    async fn insert(
        &self,
        who: &Identity,
        target: &Target,
        mut object: Value,
        warnings: Vec<String>,
        options: &WriteOptions,
        owners: Owners,
    ) -> Result<Written, StatusError> {
        let resource = target.resource;
        match_namespace(target, &mut object)?;
        (resource.default)(&mut object);
        self.admit_create(who, target, &mut object).await?;
        meta::prepare_create(resource, &mut object)?;
        if resource.has_status() && !resource.status_on_create {
            object::remove(&mut object, "status");
        }
        (resource.prepare_create)(&mut object);
        if owners == Owners::ByChange {
            let api_version = resource.api_version();
            apply::update(&change(resource, &api_version, options, None), &Value::Null, &mut object);
        }
        validate(resource, &object, None)?;
        let name = object::name(&object).to_string();
        let charged = self.charge(target, (&object, None), options.dry_run).await?;
        let claims = match self.claim(resource, &mut object, None, options.dry_run).await {
            Ok(claims) => claims,
            Err(error) => {
                self.refund(charged).await;
                return Err(error);
            }
        };
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
                if !is_open(&error) {
                    self.release(claims).await;
                    self.refund(charged).await;
                }
                let generated = !object::text(&object, &["metadata", "generateName"]).is_empty();
                Err(match error {
                    StorageError::Conflict(_) if generated => {
                        StatusError::generate_name_conflict(resource.group_resource(), &name, 1)
                    }
                    StorageError::Conflict(_) => {
                        StatusError::already_exists(resource.group_resource(), &name)
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
        who: &Identity,
        target: &Target,
        part: Option<&'static Subresource>,
        document: Document,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        let (mut object, warnings) = accept(target.resource, document, options.validation)?;
        match_namespace(target, &mut object)?;
        match_name(target, &mut object)?;
        let produce = |_: &Value| Ok((object.clone(), warnings.clone()));
        self.rewrite(who, target, part, options, Owners::ByChange, &produce).await
    }

    /// Patches an object, or a part of it. An apply may make it: then the answer is true.
    ///
    /// # Errors
    /// 404, 409, 415, 422.
    pub async fn patch(
        &self,
        who: &Identity,
        target: &Target,
        part: Option<&'static Subresource>,
        (how, patch): (PatchType, Document),
        options: &WriteOptions,
    ) -> Result<(bool, Written), StatusError> {
        let resource = target.resource;
        if how == PatchType::Apply {
            return self.apply(who, target, part, patch.value, options).await;
        }
        let produce = |old: &Value| {
            let new = match how {
                PatchType::Json => patch::json(old.clone(), &patch.value)?,
                PatchType::StrategicMerge => {
                    patch::strategic(resource.form(), old.clone(), patch.value.clone())?
                }
                PatchType::Merge | PatchType::Apply => {
                    let mut new = old.clone();
                    patch::merge(&mut new, patch.value.clone());
                    new
                }
            };
            let document = Document { value: new, duplicates: patch.duplicates.clone() };
            let (mut new, warnings) = accept(resource, document, options.validation)?;
            match_namespace(target, &mut new)?;
            if object::name(&new) != target.name {
                let mut errors = Errors::default();
                let path = coracle_api::field::Path::new("metadata").child("name");
                errors.invalid(&path, object::name(&new), "field is immutable");
                return Err(StatusError::invalid(resource.group_kind(), &target.name, &errors));
            }
            Ok((new, warnings))
        };
        let written = self.rewrite(who, target, part, options, Owners::ByChange, &produce).await?;
        Ok((false, written))
    }

    /// Server-side apply.
    async fn apply(
        &self,
        who: &Identity,
        target: &Target,
        part: Option<&'static Subresource>,
        mut config: Value,
        options: &WriteOptions,
    ) -> Result<(bool, Written), StatusError> {
        let resource = target.resource;
        identify(resource, &config)?;
        match_namespace(target, &mut config)?;
        match_name(target, &mut config)?;
        let api_version = resource.api_version();
        let change = change(resource, &api_version, options, part);
        let produce =
            |old: &Value| Ok((apply::apply(&change, Some(old), &config, options.force)?, Vec::new()));
        for _ in 0..RETRIES_MAX {
            let exists = self.storage.get(&target.key()).await.map_err(refused)?.is_some();
            let written = if exists {
                self.rewrite(who, target, part, options, Owners::Applied, &produce).await
            } else if part.is_some() {
                return Err(target.not_found());
            } else {
                // Whoever may change what is there may not for that reason make what is not.
                let of = resource.group_resource();
                let create = Attributes::on("create", of, &target.namespace, &target.name);
                self.authorizer.authorize(who, &create)?;
                let new = apply::apply(&change, None, &config, options.force)?;
                self.insert(who, target, new, Vec::new(), options, Owners::Applied).await
            };
            match written {
                // Somebody else made it, or removed it, in between.
                Err(error) if exists && error.reason == Reason::NotFound => {}
                Err(error) if !exists && error.reason == Reason::AlreadyExists => {}
                written => return written.map(|written| (!exists, written)),
            }
        }
        Err(StatusError::stale(resource.group_resource(), &target.name))
    }

    /// Makes a new object of the stored one and stores it; again when somebody else was faster.
    pub(super) async fn rewrite(
        &self,
        who: &Identity,
        target: &Target,
        part: Option<&'static Subresource>,
        options: &WriteOptions,
        owners: Owners,
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
            let (mut claims, mut charged) = (Vec::new(), Charged::default());
            let own = |new: &mut Value| {
                if owners == Owners::ByChange {
                    let api_version = resource.api_version();
                    apply::update(&change(resource, &api_version, options, part), &old, new);
                }
            };
            match part {
                None => {
                    (resource.default)(&mut new);
                    keep_status(resource, &mut new, &old);
                    (resource.prepare_update)(&mut new, &old);
                    if resource.generation {
                        meta::bump_generation(&mut new, &old);
                    }
                    own(&mut new);
                    self.judge_update(who, target, None, (&new, &old))?;
                    validate(resource, &new, Some(&old))?;
                    charged = self.charge_change(target, &new, &old, options.dry_run).await?;
                    claims = match self.claim(resource, &mut new, Some(&old), options.dry_run).await {
                        Ok(claims) => claims,
                        Err(error) => {
                            self.refund(charged).await;
                            return Err(error);
                        }
                    };
                }
                Some(part) => {
                    let managed = object::at(&new, &["metadata", "managedFields"]).clone();
                    new = with_part(&new, &old, part);
                    if owners == Owners::Applied {
                        object::set_meta(&mut new, "managedFields", managed);
                    }
                    if part.what == Part::Resize {
                        (resource.default)(&mut new);
                        kinds::validate_resize(&new, &old).map_err(|errors| {
                            StatusError::invalid(resource.group_kind(), &target.name, &errors)
                        })?;
                    }
                    if part.what == Part::EphemeralContainers {
                        (resource.default)(&mut new);
                        kinds::validate_ephemeral(&new, &old).map_err(|errors| {
                            StatusError::invalid(resource.group_kind(), &target.name, &errors)
                        })?;
                    }
                    let counts = matches!(part.what, Part::Scale | Part::EphemeralContainers | Part::Resize);
                    if counts && resource.generation {
                        meta::bump_generation(&mut new, &old);
                    }
                    own(&mut new);
                    self.judge_update(who, target, Some(part), (&new, &old))?;
                    // What came along must not keep the next one from changing the object.
                    let mut errors = Errors::default();
                    meta::validate(resource, &new, &mut errors);
                    errors.into_result().map_err(|errors| {
                        StatusError::invalid(resource.group_kind(), &target.name, &errors)
                    })?;
                    if part.what == Part::Resize {
                        charged = self.charge_change(target, &new, &old, options.dry_run).await?;
                    }
                }
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
                // Made again of what is there now: a version that the request names is refused then, and one that a
                // patch has only taken over is the new one.
                Err(StorageError::Conflict(_)) => {
                    self.release(claims).await;
                    self.refund(charged).await;
                }
                Err(error) => {
                    if !is_open(&error) {
                        self.release(claims).await;
                        self.refund(charged).await;
                    }
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
        who: &Identity,
        target: &Target,
        binding: &Value,
        options: &WriteOptions,
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
            let uid = object::uid(binding);
            if !uid.is_empty() && uid != object::uid(old) {
                return conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    object::uid(old)
                ));
            }
            if object::is_terminating(old) {
                return conflict(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    target.name
                ));
            }
            if kinds::is_gated(old) {
                return conflict(format!("pod {} has non-empty .spec.schedulingGates", target.name));
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
        self.rewrite(who, target, Some(&kinds::BINDING), options, Owners::ByChange, &assign).await?;
        Ok(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201}))
    }
}

/// Whether a write may have happened all the same: then what was taken for it is not given to another. Claims are found at the
/// next start, reservations age.
fn is_open(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable(_))
}

/// What managed fields are told of a write.
fn change<'a>(
    resource: &Resource,
    api_version: &'a str,
    options: &'a WriteOptions,
    part: Option<&Subresource>,
) -> apply::Change<'a> {
    apply::Change {
        form: resource.form(),
        api_version,
        manager: &options.manager,
        subresource: part.map_or("", |part| part.name),
        ignored: match part {
            None if resource.has_status() && !resource.status_on_create => &["status"],
            None => &[],
            Some(part) if part.what == Part::Status => &["spec"],
            Some(_) => &[],
        },
        now: super::now(),
    }
}
