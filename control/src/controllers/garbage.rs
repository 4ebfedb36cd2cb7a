//! The garbage collector: what becomes of objects when their owners go (`metadata.ownerReferences`).
//!
//! ```text
//! owner gone                       ──► dependents without another owner are deleted (background)
//! owner waits (foregroundDeletion) ──► its dependents are deleted; when none blocks it any more, its finalizer goes
//! owner orphans (orphan)           ──► its dependents lose their reference, then its finalizer goes
//! ```
//! Whether an owner is there is asked of the storage itself before anything is deleted for it: the cache alone does not
//! condemn. An owner of a kind that is not served condemns nobody; neither does one that cannot own (an owner in a namespace
//! of an object that has none).

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::of_reference;
use crate::object::{at, is_terminating, items, namespace, text, uid};
use crate::registry::options::Propagation;
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The controller.
pub struct Garbage {
    client: Client,
    recorder: Recorder,
}

impl Garbage {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> Garbage {
        Garbage { client, recorder }
    }
}

fn has_finalizer(object: &Value, name: &str) -> bool {
    items(object, &["metadata", "finalizers"]).iter().any(|finalizer| finalizer == name)
}

fn waits(owner: &Value) -> bool {
    is_terminating(owner) && has_finalizer(owner, FOREGROUND)
}

/// What an owner reference points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Something that is there.
    Solid,
    /// Something that waits until its dependents are gone.
    Waiting,
    /// Nothing.
    Gone,
    /// It cannot be known.
    Unknown,
}

/// What becomes of an object with these owners.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// It loses the references that are not solid.
    Loses,
    /// It is deleted; whether it waits for its own dependents.
    Deleted {
        foreground: bool,
    },
}

/// The decision. `owns` is whether it has dependents itself.
fn fate(owners: &[Owner], owns: bool) -> Fate {
    let any = |which: Owner| owners.contains(&which);
    if owners.is_empty() || any(Owner::Unknown) {
        return Fate::Stays;
    }
    match (any(Owner::Solid), any(Owner::Gone) || any(Owner::Waiting)) {
        (true, false) => Fate::Stays,
        (true, true) => Fate::Loses,
        (false, _) => Fate::Deleted { foreground: any(Owner::Waiting) && owns },
    }
}

impl Controller for Garbage {
    const NAME: &'static str = "garbage-collector";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        let Some(object) = cache.object(&change.key, change.latest()) else { return Vec::new() };
        let owners = items(&object, &["metadata", "ownerReferences"]);
        let mut keys = Vec::new();
        // Those who may be waiting for it.
        if change.new.is_none() || change.old.is_some() {
            keys.extend(owners.iter().filter_map(|owner| cache.by_uid(text(owner, &["uid"]))));
        }
        match change.new {
            None => keys.extend(cache.dependents(uid(&object))),
            Some(_) if !owners.is_empty() => keys.push(change.key.clone()),
            Some(_) => {}
        }
        if change.new.is_some() && is_terminating(&object) {
            keys.push(change.key.clone());
            if waits(&object) {
                keys.extend(cache.dependents(uid(&object)));
            }
        }
        keys
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(object) = self.client.cache().get(key) else { return Ok(Next::Done) };
        if is_terminating(&object) {
            if has_finalizer(&object, ORPHAN) {
                self.orphan(&object).await?;
            } else if has_finalizer(&object, FOREGROUND) {
                self.foreground(&object).await?;
            }
            return Ok(Next::Done);
        }
        let references = items(&object, &["metadata", "ownerReferences"]);
        let mut owners = Vec::with_capacity(references.len());
        for reference in references {
            owners.push(self.owner(&object, reference).await?);
        }
        match fate(&owners, self.client.cache().owns_any(uid(&object))) {
            Fate::Stays => {}
            Fate::Loses => {
                let solid = references.iter().zip(&owners).filter(|(_, owner)| **owner == Owner::Solid);
                let solid: Vec<Value> = solid.map(|(reference, _)| reference.clone()).collect();
                self.refer(key, &object, solid).await?;
            }
            Fate::Deleted { foreground } => {
                // What it was asked to do itself when it goes still holds.
                let propagation = if has_finalizer(&object, ORPHAN) {
                    Propagation::Orphan
                } else if foreground || has_finalizer(&object, FOREGROUND) {
                    Propagation::Foreground
                } else {
                    Propagation::Background
                };
                let how = Delete { grace: None, propagation: Some(propagation) };
                self.client.delete(key, uid(&object), how).await?;
            }
        }
        Ok(Next::Done)
    }
}

impl Garbage {
    /// What a reference points at.
    async fn owner(&self, dependent: &Value, reference: &Value) -> Result<Owner, StatusError> {
        let (version, kind) = (text(reference, &["apiVersion"]), text(reference, &["kind"]));
        let Some(resource) = of_reference(version, kind) else { return Ok(Owner::Unknown) };
        let place = if resource.namespaced { namespace(dependent) } else { "" };
        if resource.namespaced && place.is_empty() {
            let text = format!(
                "ownerRef [{version}/{kind}, namespace: , name: {}, uid: {}] does not exist in namespace \"\"",
                text(reference, &["name"]),
                text(reference, &["uid"])
            );
            self.recorder.say(dependent, Kind::Warning, "OwnerRefInvalidNamespace", text);
            return Ok(Owner::Unknown);
        }
        let key = Key::of(resource, place, text(reference, &["name"]));
        let wanted = text(reference, &["uid"]);
        let state = |owner: &Value| match uid(owner) == wanted {
            true if waits(owner) => Owner::Waiting,
            true => Owner::Solid,
            false => Owner::Gone,
        };
        if let Some(owner) = self.client.cache().get(&key)
            && uid(&owner) == wanted
        {
            return Ok(state(&owner));
        }
        match self.client.registry().get(&key.target()).await {
            Ok(owner) => Ok(state(&owner)),
            Err(error) if error.reason == Reason::NotFound => Ok(Owner::Gone),
            Err(error) => Err(error),
        }
    }

    async fn refer(&self, key: &Key, object: &Value, references: Vec<Value>) -> Result<(), StatusError> {
        let version = text(object, &["metadata", "resourceVersion"]);
        let references = if references.is_empty() { Value::Null } else { references.into() };
        let patch = json!({"metadata": {"ownerReferences": references, "resourceVersion": version}});
        self.client.merge(key, None, patch).await.map(drop)
    }

    async fn release(&self, object: &Value, finalizer: &str) -> Result<(), StatusError> {
        let finalizers = items(object, &["metadata", "finalizers"]).iter();
        let left = finalizers.filter(|name| *name != finalizer).cloned().collect();
        self.client.set_finalizers(object, left).await
    }

    async fn orphan(&self, owner: &Value) -> Result<(), StatusError> {
        for (key, dependent) in self.client.cache().owned(uid(owner)) {
            let references = items(&dependent, &["metadata", "ownerReferences"]).iter();
            let left =
                references.filter(|reference| text(reference, &["uid"]) != uid(owner)).cloned().collect();
            self.refer(&key, &dependent, left).await?;
        }
        self.release(owner, ORPHAN).await
    }

    async fn foreground(&self, owner: &Value) -> Result<(), StatusError> {
        let blocked = self.client.cache().owned(uid(owner)).iter().any(|(_, dependent)| {
            items(dependent, &["metadata", "ownerReferences"]).iter().any(|reference| {
                text(reference, &["uid"]) == uid(owner)
                    && at(reference, &["blockOwnerDeletion"]).as_bool() == Some(true)
            })
        });
        // Its dependents are looked at by themselves: their owner waits.
        if blocked { Ok(()) } else { self.release(owner, FOREGROUND).await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fate_of_an_object_is_that_of_its_owners() {
        let check = |owners: &[Owner], owns: bool, expected: Fate| {
            assert_eq!(fate(owners, owns), expected, "{owners:?} {owns}");
        };
        use Owner::{Gone, Solid, Unknown, Waiting};
        check(&[], false, Fate::Stays);
        check(&[Solid], false, Fate::Stays);
        check(&[Gone], false, Fate::Deleted { foreground: false });
        check(&[Gone], true, Fate::Deleted { foreground: false });
        check(&[Gone, Gone], false, Fate::Deleted { foreground: false });
        check(&[Solid, Gone], false, Fate::Loses);
        check(&[Solid, Waiting], true, Fate::Loses);
        check(&[Waiting], false, Fate::Deleted { foreground: false });
        check(&[Waiting], true, Fate::Deleted { foreground: true });
        check(&[Waiting, Gone], true, Fate::Deleted { foreground: true });
        // Who cannot be known may be there.
        check(&[Unknown], false, Fate::Stays);
        check(&[Unknown, Gone], false, Fate::Stays);
    }
}
