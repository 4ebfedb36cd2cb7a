//! Delete: at once, by grace, or by finalizers.
//!
//! ```text
//!            grace > 0 (pods on a node), or finalizers        the node, or whoever holds a finalizer
//! stored ──► deletionTimestamp set, generation + 1  ──────────► deletes with grace 0, removes the last one ──► gone
//!    └─────── neither ──────────────────────────────────────────────────────────────────────────────────────────► gone
//! ```

use super::list::Listed;
use super::options::{DeleteOptions, ListOptions, Propagation};
use super::{RETRIES_MAX, Registry, Resource, Target, Written, load, now, refused, seal, stamp};
use crate::auth::Identity;
use crate::kinds;
use crate::object;
use crate::storage::{Revision, StorageError};
use coracle_api::status::{GroupResource, StatusError};
use jiff::SignedDuration;
use serde_json::{Value, json};

/// Held until the garbage collector has dealt with what the object owns.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What a deletion comes to for one object.
enum Step {
    /// Nothing holds it.
    Remove,
    /// It stays for a while, marked.
    Mark(Box<Value>),
    /// It is marked already, and nothing changes.
    Wait,
}

impl Registry {
    /// Deletes an object, or marks it for deletion.
    ///
    /// # Errors
    /// 403 for what must not be deleted, 404, 409 for a precondition.
    pub async fn delete(
        &self,
        who: &Identity,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<Written, StatusError> {
        let resource = target.resource;
        for _ in 0..RETRIES_MAX {
            let entry = self.storage.get(&target.key()).await.map_err(refused)?;
            let entry = entry.ok_or_else(|| target.not_found())?;
            let old = load(resource, &entry)?;
            preconditions(target, &old, options)?;
            self.judge_delete(who, target, &old)?;
            let (mut object, stored) = match step(resource, &old, options) {
                Step::Wait => return Ok(Written { object: old, warnings: Vec::new() }),
                Step::Mark(marked) if options.dry_run => (*marked, Ok(entry.modified)),
                Step::Remove if options.dry_run => (gone(resource, &old), Ok(entry.modified)),
                Step::Mark(marked) => {
                    let sealed = seal(resource, &marked);
                    let stored = self.storage.update(&entry.key, sealed, entry.modified).await;
                    (*marked, stored.map(|entry| entry.modified))
                }
                Step::Remove => {
                    let stored = self.storage.delete(&entry.key, entry.modified).await;
                    if stored.is_ok() {
                        self.release_all(resource, &old).await;
                    }
                    (gone(resource, &old), stored)
                }
            };
            match stored {
                Ok(revision) => {
                    if object::text(&object, &["kind"]) == resource.kind {
                        stamp(&mut object, revision);
                    }
                    return Ok(Written { object, warnings: Vec::new() });
                }
                Err(StorageError::Conflict(_)) => {}
                Err(error) => return Err(refused(error)),
            }
        }
        Err(StatusError::stale(resource.group_resource(), &target.name))
    }

    /// Deletes what a list shows, one by one; answers with the list.
    ///
    /// # Errors
    /// The first that is not "not found".
    pub async fn delete_collection(
        &self,
        who: &Identity,
        target: &Target,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Value, StatusError> {
        let listed = self.list(target, list).await?;
        let mut items = Vec::with_capacity(listed.items.len());
        let mut revision = listed.revision;
        for item in listed.items {
            let one = Target {
                resource: target.resource,
                namespace: object::namespace(&item).into(),
                name: object::name(&item).into(),
            };
            match self.delete(who, &one, options).await {
                Ok(deleted) => {
                    let version = object::text(&deleted.object, &["metadata", "resourceVersion"]);
                    revision = version.parse().map_or(revision, |number| revision.max(Revision(number)));
                    items.push(item);
                }
                // Somebody else was faster.
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Listed { items, revision, next: None, remaining: None }.into_object(target))
    }
}

/// Upstream names the kind here, not the resource.
fn preconditions(target: &Target, old: &Value, options: &DeleteOptions) -> Result<(), StatusError> {
    let failed = |what: &str, asked: &str, is: &str, since: &str| {
        let why = format!(
            "the {what} in the precondition ({asked}) does not match the {what} in record ({is}). The object might have been {since}"
        );
        let of = GroupResource { group: target.resource.group, resource: target.resource.kind };
        StatusError::conflict(of, &target.name, why)
    };
    match &options.uid {
        Some(uid) if uid != object::uid(old) => {
            return Err(failed("UID", uid, object::uid(old), "deleted and then recreated"));
        }
        _ => {}
    }
    let version = object::text(old, &["metadata", "resourceVersion"]);
    match &options.resource_version {
        Some(asked) if asked != version => Err(failed("ResourceVersion", asked, version, "modified")),
        _ => Ok(()),
    }
}

fn step(resource: &Resource, old: &Value, options: &DeleteOptions) -> Step {
    let mut new = old.clone();
    let holds = |object: &Value, name: &str| {
        object::items(object, &["metadata", "finalizers"]).iter().any(|finalizer| finalizer == name)
    };
    let finalizer = match options.propagation {
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Background) | None => None,
    };
    if options.propagation.is_some() || finalizer.is_some() {
        let mut finalizers: Vec<Value> = object::items(old, &["metadata", "finalizers"])
            .iter()
            .filter(|name| *name != FOREGROUND && *name != ORPHAN)
            .cloned()
            .collect();
        finalizers.extend(finalizer.map(Value::from));
        let finalizers = if finalizers.is_empty() { Value::Null } else { finalizers.into() };
        object::set_meta(&mut new, "finalizers", finalizers);
    }
    let grace = kinds::grace(resource, old, options.grace);
    let held = object::has_finalizers(&new) || kinds::has_own_finalizers(resource, &new);
    if grace == 0 && !held {
        return Step::Remove;
    }
    if object::is_terminating(old) {
        let set = object::at(old, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or_default();
        let changed = holds(old, FOREGROUND) != holds(&new, FOREGROUND);
        if grace >= set && !changed {
            return Step::Wait;
        }
    }
    let mark = !object::is_terminating(old)
        || Some(grace) < object::at(old, &["metadata", "deletionGracePeriodSeconds"]).as_i64();
    if mark {
        let deadline = now().checked_add(SignedDuration::from_secs(grace)).unwrap_or_else(|_| now());
        object::set_meta(&mut new, "deletionTimestamp", deadline.to_string());
        object::set_meta(&mut new, "deletionGracePeriodSeconds", grace);
        if let Some(generation) = object::at(old, &["metadata", "generation"]).as_i64() {
            object::set_meta(&mut new, "generation", generation + 1);
        }
    }
    kinds::prepare_delete(resource, &mut new);
    Step::Mark(Box::new(new))
}

/// The answer to a deletion that took effect.
fn gone(resource: &Resource, old: &Value) -> Value {
    if resource.returns_deleted {
        let mut old = old.clone();
        object::set_meta(&mut old, "deletionTimestamp", now().to_string());
        object::set_meta(&mut old, "deletionGracePeriodSeconds", 0);
        return old;
    }
    let mut details = json!({
        "name": object::name(old),
        "kind": resource.plural,
        "uid": object::uid(old),
    });
    if !resource.group.is_empty() {
        object::fields(&mut details).insert("group".into(), resource.group.into());
    }
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "details": details})
}
