//! Server-side apply: who owns which field of an object (`metadata.managedFields`), and what follows from it.
//!
//! Follows `sigs.k8s.io/structured-merge-diff` and the API server's use of it. [`update`] is for everything that
//! writes an object whole (create, update, other patches): what it changed becomes its own. [`apply`] merges a
//! configuration: what another manager owns and the configuration changes is a conflict, unless forced; what the
//! manager applied before and no longer does is removed, unless somebody else holds it.
//!
//! Left out: conversion between a kind's versions. Sets of other versions are compared by path, which is right for
//! every kind here but the autoscaler's two, where stale paths of the other version simply match nothing.
//!
//! Bounds: [`UPDATE_MANAGERS_MAX`]; depth by what parsed the objects, and `decode::DEPTH_MAX` for stored sets.

mod managers;
mod set;
mod walk;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::StatusCause;
use serde_json::{Value, json};

use crate::decode::{self, TypeError};
use crate::schema::Form;
use crate::status::{Reason, StatusError};
use managers::{Manager, Managers, Operation};

pub use set::{FieldSet, SetError, Step};

/// Managers by update that are told apart; the oldest beyond become one, as upstream.
pub const UPDATE_MANAGERS_MAX: usize = 10;

/// Who changes an object, how and when.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Of the kind.
    pub form: &'a Form,
    /// The version that the object is written in.
    pub api_version: &'a str,
    /// `fieldManager`, or the first word of the user agent.
    pub manager: &'a str,
    /// `status`, `scale`, or empty.
    pub subresource: &'a str,
    /// Fields that the request cannot change and so does not own: `status` of a write to the object itself, `spec`
    /// of one to its status.
    pub ignored: &'a [&'a str],
    pub now: Timestamp,
}

/// A field that somebody else owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// As a message shows it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// `.spec.containers[name="a"].image`.
    pub field: String,
}

/// A configuration that is not applied.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// At least one.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// `kind`, and what the schema does not know.
    #[error("failed to create typed patch object ({about}): {fields}")]
    Undeclared { about: String, fields: String },
    #[error("failed to create typed patch object ({about}): {path}: duplicate entries for key {step}")]
    Duplicate { about: String, path: String, step: String },
    #[error(transparent)]
    Type(#[from] TypeError),
}

impl From<ApplyError> for StatusError {
    fn from(error: ApplyError) -> StatusError {
        let message = error.to_string();
        match error {
            ApplyError::Conflicts(conflicts) => {
                let cause = |conflict: &Conflict| StatusCause {
                    reason: Some("FieldManagerConflict".to_owned()),
                    message: Some(format!("conflict with {}", conflict.manager)),
                    field: Some(conflict.field.clone()),
                };
                StatusError::apply_conflict(conflicts.iter().map(cause).collect(), message)
            }
            ApplyError::ManagedFields | ApplyError::Type(_) => StatusError::bad_request(message),
            // Upstream has no reason for these.
            ApplyError::Undeclared { .. } | ApplyError::Duplicate { .. } => {
                StatusError { reason: Reason::Unknown, code: 500, message, details: None }
            }
        }
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.field);
    }
    let mut lines = Vec::new();
    for (index, conflict) in conflicts.iter().enumerate() {
        if index == 0 || conflicts[index - 1].manager != conflict.manager {
            lines.push(format!("conflicts with {}:", conflict.manager));
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Records what a write changed: `new` gets its `managedFields`. `live` is what is stored, or null for a creation.
///
/// A write may set `managedFields` itself; an empty list, or one of an empty entry, takes them all away.
pub fn update(change: &Change<'_>, live: &Value, new: &mut Value) {
    let given = take_managed_fields(new);
    if matches!(given.as_array().map(Vec::as_slice), Some([]))
        || matches!(given.as_array().map(Vec::as_slice), Some([Value::Object(entry)]) if entry.is_empty())
    {
        return;
    }
    let mut live = live.clone();
    let stored = take_managed_fields(&mut live);
    let given = if change.subresource.is_empty() { Managers::decode(&given) } else { Managers::default() };
    let mut managers = if given.is_empty() { Managers::decode(&stored) } else { given };
    let before = managers.clone();
    let empty = json!({});
    let difference = walk::compare(change.form, if live.is_null() { &empty } else { &live }, new);
    let changed = difference.added.union(&difference.modified);
    let own = change.identity(Operation::Update);
    let mut set = managers.take(&own).map(|manager| manager.set).unwrap_or_default();
    managers.lose(&changed.union(&difference.removed));
    set = set.union(&changed).difference(&difference.removed);
    managers.put(own.with(change.owned(&set)));
    managers.settle(&before, change.now);
    put_managed_fields(new, &managers);
}

/// Merges a configuration into the stored object (`None`: there is none, and it is made) and records who owns what.
///
/// The configuration is as the client wrote it: a value that Go would leave out is owned all the same.
pub fn apply(
    change: &Change<'_>,
    live: Option<&Value>,
    config: &Value,
    force: bool,
) -> Result<Value, ApplyError> {
    let mut config = without_nulls(config.clone());
    if !take_managed_fields(&mut config).is_null() {
        return Err(ApplyError::ManagedFields);
    }
    check(change, &config)?;
    let mut live = live.cloned().unwrap_or_else(|| json!({}));
    let existed = live.get("metadata").is_some();
    let stored = take_managed_fields(&mut live);
    let mut managers = Managers::decode(&stored);
    let before = managers.clone();
    if managers.is_empty() && existed {
        let first = Manager::update("before-first-apply", change.api_version);
        managers.put(first.with(change.owned(&walk::set_of(change.form, &live))));
    }
    let own = change.identity(Operation::Apply);
    let last = managers.take(&own).map(|manager| manager.set).unwrap_or_default();
    let applied = walk::set_of(change.form, &config);
    let merged = walk::merge(Some(change.form), &live, &config);
    // The object's name is in the configuration and keeps its metadata, though nobody owns it.
    let held = managers.held().union(&applied);
    let pruned = if last.is_empty() { merged } else { prune(change.form, &merged, &last, &held) };
    let mut new = decode::object(change.form, pruned)?.value;

    let live = decode::object(change.form, live)?.value;
    let difference = walk::compare(change.form, &live, &new);
    let changed = difference.added.union(&difference.modified);
    let conflicts = managers.conflicts(&changed);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    managers.lose(&changed.union(&difference.removed));
    managers.put(own.with(change.owned(&applied)));
    managers.settle(&before, change.now);
    put_managed_fields(&mut new, &managers);
    Ok(new)
}

/// Removes what was applied last time and is held by nobody now.
fn prune(form: &Form, merged: &Value, last: &FieldSet, held: &FieldSet) -> Value {
    let named = |set: &FieldSet| walk::with_named_fields(Some(form), set);
    let all = named(&walk::set_of(form, merged));
    let remaining = |value: &Value| named(&walk::set_of(form, value));
    let pruned = walk::remove(Some(form), merged, &named(last));
    let kept = remaining(&pruned).union(&named(held));
    let pruned = walk::remove(Some(form), merged, &all.difference(&kept));
    let gone = all.difference(&remaining(&pruned)).intersection(&named(last));
    walk::remove(Some(form), merged, &gone)
}

/// Refuses fields that the schema does not know, and keys that come twice.
fn check(change: &Change<'_>, config: &Value) -> Result<(), ApplyError> {
    let metadata = &config["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
    let name = if namespace.is_empty() { format!("/{name}") } else { format!("{namespace}/{name}") };
    let about = format!("{name}; {}, Kind={}", change.api_version, text(&config["kind"]));
    let strict = decode::object(change.form, config.clone())?.strict;
    if !strict.is_empty() {
        let field = |text: &String| {
            let path = text.trim_start_matches("unknown field ").trim_matches('"');
            format!(".{path}: field not declared in schema")
        };
        let fields = strict.iter().map(field).collect::<Vec<_>>().join("\n");
        return Err(ApplyError::Undeclared { about, fields });
    }
    match walk::duplicate(Some(change.form), config, &mut Vec::new()) {
        Some((path, step)) => Err(ApplyError::Duplicate { about, path, step }),
        None => Ok(()),
    }
}

impl Change<'_> {
    fn identity(&self, operation: Operation) -> Manager {
        Manager {
            name: self.manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: None,
            set: FieldSet::default(),
        }
    }

    /// What of a set can be owned: not the object's identity, nor what the server says about it.
    fn owned(&self, set: &FieldSet) -> FieldSet {
        const SERVER: [&str; 7] =
            ["name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "resourceVersion"];
        let field = |name: &str| Step::Field(name.to_owned());
        let mut strip = FieldSet::default();
        for name in ["apiVersion", "kind", "metadata"] {
            strip.insert(&[field(name)]);
        }
        for name in SERVER {
            strip.insert(&[field("metadata"), field(name)]);
        }
        let mut owned = set.difference(&strip);
        for name in self.ignored {
            owned.forget(&field(name));
        }
        owned
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        scalar => scalar,
    }
}

fn take_managed_fields(object: &mut Value) -> Value {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.and_then(|metadata| metadata.remove("managedFields")).unwrap_or(Value::Null)
}

fn put_managed_fields(object: &mut Value, managers: &Managers) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && !managers.is_empty()
    {
        metadata.insert("managedFields".to_owned(), managers.encode());
    }
}

#[cfg(test)]
#[path = "apply_test.rs"]
mod tests;
