//! The revisions of a template (`apps/v1` ControllerRevision), as daemon sets and stateful sets keep them.
//!
//! ```text
//! template ─► its revision: found by its data (a rollback: it becomes the newest again), or made, NAME-HASH
//! revisions that no pod has, beyond revisionHistoryLimit ─► deleted, the oldest first
//! ```
//! The data is the patch that `kubectl rollout undo` applies.

use super::client::{Client, Delete, key_of};
use super::deployment::hash;
use super::key::Key;
use super::kinds::CONTROLLER_REVISIONS;
use super::owned::{claim, controller_reference, controls};
use crate::object::{at, fields, name, namespace, text, uid};
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The label of a pod that names its revision.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// `revision`.
pub fn number(revision: &Value) -> i64 {
    at(revision, &["revision"]).as_i64().unwrap_or_default()
}

/// What a revision keeps of its owner.
fn data(owner: &Value) -> Value {
    let mut template = at(owner, &["spec", "template"]).clone();
    fields(&mut template).insert("$patch".into(), "replace".into());
    json!({"spec": {"template": template}})
}

/// The owner's template as a revision has it.
pub fn template(revision: &Value) -> Value {
    let mut template = at(revision, &["data", "spec", "template"]).clone();
    crate::object::remove(&mut template, "$patch");
    template
}

/// The revisions of an owner, the oldest first.
///
/// # Errors
/// When one could not be adopted.
pub async fn revisions(client: &Client, owner: &Value) -> Result<Vec<Arc<Value>>, StatusError> {
    let mut revisions = claim(client, owner, *CONTROLLER_REVISIONS).await?;
    revisions.sort_by(|a, b| (number(a), name(a)).cmp(&(number(b), name(b))));
    Ok(revisions)
}

/// What is to be done about the owner's template. Pure.
#[derive(Debug, PartialEq)]
enum Fit {
    /// It is the newest.
    Newest(Arc<Value>),
    /// It is an older one, which becomes the newest by this number.
    Again(Arc<Value>, i64),
    /// It is new, with this number.
    New(i64),
}

fn fit(revisions: &[Arc<Value>], data: &Value) -> Fit {
    let newest = revisions.last();
    let next = newest.map_or(0, |newest| number(newest)).saturating_add(1);
    let same = revisions.iter().rev().find(|revision| at(revision, &["data"]) == data);
    match (same, newest) {
        (Some(same), Some(newest)) if uid(same) == uid(newest) => Fit::Newest(same.clone()),
        (Some(same), _) => Fit::Again(same.clone(), next),
        (None, _) => Fit::New(next),
    }
}

/// The revision of the owner's template now; `label` is the one that has the hash.
///
/// # Errors
/// Those of writes; one of the same name with another template is counted as a collision, and the next try has another name.
pub async fn current(
    client: &Client,
    owner: &Value,
    revisions: &[Arc<Value>],
    label: &str,
) -> Result<Arc<Value>, StatusError> {
    let data = data(owner);
    let next = match fit(revisions, &data) {
        Fit::Newest(revision) => return Ok(revision),
        Fit::Again(revision, number) => {
            let mut revision = (*revision).clone();
            fields(&mut revision).insert("revision".into(), number.into());
            return client.update(revision, None).await.map(Arc::new);
        }
        Fit::New(number) => number,
    };
    let collisions = at(owner, &["status", "collisionCount"]).as_i64().unwrap_or_default();
    let hash = hash(at(owner, &["spec", "template"]), collisions);
    let mut own = at(owner, &["spec", "template", "metadata", "labels"]).clone();
    fields(&mut own).insert(label.into(), hash.clone().into());
    let mut revision = json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": format!("{}-{hash}", name(owner)),
            "namespace": namespace(owner),
            "labels": own,
            "ownerReferences": [controller_reference(owner)],
        },
        "data": data,
        "revision": next,
    });
    let annotations = at(owner, &["metadata", "annotations"]);
    if !annotations.is_null() {
        revision["metadata"]["annotations"] = annotations.clone();
    }
    match client.create(*CONTROLLER_REVISIONS, revision.clone()).await {
        Ok(made) => Ok(made.into()),
        Err(error) if error.reason == Reason::AlreadyExists => {
            let key = Key::of(*CONTROLLER_REVISIONS, namespace(owner), name(&revision));
            let there = client.registry().get(&key.target()).await?;
            if controls(owner, &there) && at(&there, &["data"]) == &data {
                return Ok(there.into());
            }
            let patch = json!({"status": {"collisionCount": collisions + 1}});
            client.merge(&key_of(owner)?, Some("status"), patch).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Deletes revisions beyond the owner's limit that none of these names is in use for.
///
/// # Errors
/// The first deletion that failed.
pub async fn forget(
    client: &Client,
    owner: &Value,
    revisions: &[Arc<Value>],
    is_live: impl Fn(&Value) -> bool,
) -> Result<(), StatusError> {
    let kept = at(owner, &["spec", "revisionHistoryLimit"]).as_u64().unwrap_or(10);
    let old: Vec<&Arc<Value>> = revisions.iter().filter(|revision| !is_live(revision)).collect();
    let surplus = old.len().saturating_sub(usize::try_from(kept).unwrap_or(usize::MAX));
    let key = |revision: &Value| Key::of(*CONTROLLER_REVISIONS, namespace(revision), name(revision));
    let gone = old.into_iter().take(surplus).map(|revision| (key(revision), uid(revision).to_string()));
    let failed = client.delete_all(gone.collect(), Delete::default()).await;
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// The values of a label among pods.
pub fn in_use<'a>(pods: &'a [Arc<Value>], label: &str) -> BTreeSet<&'a str> {
    pods.iter().map(|pod| text(pod, &["metadata", "labels", label])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_found_again_or_new() {
        let owner = |image: &str| json!({"spec": {"template": {"spec": {"image": image}}}});
        let revision = |number: i64, image: &str| {
            let uid = format!("{number}");
            Arc::new(json!({"metadata": {"uid": uid}, "revision": number, "data": data(&owner(image))}))
        };
        let check = |revisions: &[Arc<Value>], image: &str, expected: Fit| {
            assert_eq!(fit(revisions, &data(&owner(image))), expected);
        };
        let (a, b) = (revision(1, "a"), revision(4, "b"));
        check(&[], "a", Fit::New(1));
        check(std::slice::from_ref(&a), "a", Fit::Newest(a.clone()));
        check(&[a.clone(), b.clone()], "c", Fit::New(5));
        check(&[a.clone(), b.clone()], "b", Fit::Newest(b.clone()));
        check(&[a.clone(), b.clone()], "a", Fit::Again(a.clone(), 5));
        assert_eq!(template(&a), json!({"spec": {"image": "a"}}));
    }
}
