//! Stateful sets (`apps/v1`): members with names, each with claims of its own.
//!
//! ```text
//! members ─► plan: the next one is made, with its claims, or one goes ─► claims' owners ─► revisions ─► status
//! ```
//! What is to be done is decided by [`plan`] and [`claims`], which are pure.

mod claims;
mod plan;

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::history::{self, REVISION_HASH};
use super::key::Key;
use super::kinds::{CLAIMS, CONTROLLER_REVISIONS, PODS, STATEFUL_SETS};
use super::owned::{candidates, claim_members, concerned, controlled, ends_with_namespace};
use super::retries::Retries;
use crate::object::{at, fields, is_terminating, items, name, namespace, text, uid};
use coracle_api::status::{Reason, StatusError};
use plan::{Plan, Revision, View, ordinal};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The label of revisions of stateful sets that has their hash.
const HASH: &str = "controller.kubernetes.io/hash";

/// The controller.
pub struct StatefulSets {
    client: Client,
    recorder: Recorder,
    /// Of members that end, by name.
    retries: Retries,
}

impl StatefulSets {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> StatefulSets {
        StatefulSets { client, recorder, retries: Retries::default() }
    }
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*STATEFUL_SETS) {
            if let Some(set) = change.gone(cache) {
                self.retries.forget(uid(&set));
            }
            return vec![change.key.clone()];
        }
        if change.of(*CLAIMS) {
            // A member waits until the claim of its predecessor is gone.
            return change
                .gone(cache)
                .map(|claim| candidates(&claim, *STATEFUL_SETS, cache))
                .unwrap_or_default();
        }
        if !change.of(*PODS) && !change.of(*CONTROLLER_REVISIONS) {
            return Vec::new();
        }
        // Of what is gone too: it had a name that is wanted.
        change.states(cache).flat_map(|object| concerned(&object, true, *STATEFUL_SETS, cache)).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(set) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let pods = claim_members(&self.client, &set, |pod| ordinal(&set, pod).is_some()).await?;
        // Its revisions may be gone: nothing can be said of it.
        if is_terminating(&set) {
            return Ok(Next::Done);
        }
        let revisions = history::revisions(&self.client, &set).await?;
        let newest = history::current(&self.client, &set, &revisions, HASH).await?;
        let update = revision(&newest);
        let named = text(&set, &["status", "currentRevision"]);
        let current = revisions.iter().find(|revision| name(revision) == named);
        let current = current.map_or_else(|| update.clone(), |found| revision(found));
        let now = crate::clock::now();
        let look = View { set: &set, current: &current, update: &update, pods: members(&set, &pods), now };
        let plan = look.plan();
        let (owned, again) = (self.own_claims(&look).await, plan.again);
        let (done, retry) = match owned {
            Ok(()) => self.act(&look, plan).await,
            Err(error) => (Err(error), None),
        };
        // As they are now.
        let pods = controlled(self.client.cache(), &set, *PODS);
        let look = View { pods: members(&set, &pods), now: crate::clock::now(), ..look };
        let collisions = at(&set, &["status", "collisionCount"]).as_i64().unwrap_or_default();
        self.report(&set, look.status(collisions)).await?;
        let live = history::in_use(&pods, REVISION_HASH);
        let is_live = |revision: &Value| {
            let own = name(revision);
            own == update.name || own == current.name || live.contains(own)
        };
        history::forget(&self.client, &set, &revisions, is_live).await?;
        done.map(|()| Next::at(retry).earlier(Next::at(again)))
    }
}

fn revision(revision: &Value) -> Revision {
    Revision { name: name(revision).to_string(), template: history::template(revision) }
}

fn members<'a>(set: &Value, pods: &'a [Arc<Value>]) -> BTreeMap<i64, &'a Arc<Value>> {
    pods.iter().filter_map(|pod| Some((ordinal(set, pod)?, pod))).collect()
}

impl StatefulSets {
    async fn act(&self, look: &View<'_>, mut plan: Plan) -> (Result<(), StatusError>, Option<Duration>) {
        let mut again: Option<Duration> = None;
        for pod in plan.ended {
            match self.retries.take(uid(look.set), name(&pod), Instant::now()) {
                Ok(()) => plan.delete.push(pod),
                Err(left) => again = Some(again.map_or(left, |again| again.min(left))),
            }
        }
        (self.carry_out(look, &plan.make, &plan.delete, &plan.unnamed).await, again)
    }

    async fn carry_out(
        &self,
        look: &View<'_>,
        make: &[i64],
        delete: &[Arc<Value>],
        unnamed: &[Arc<Value>],
    ) -> Result<(), StatusError> {
        for pod in unnamed {
            let labels = plan::identity(look.set, pod);
            let patch = json!({"metadata": {"uid": uid(pod), "labels": labels}});
            self.client.merge(&Key::of(*PODS, namespace(pod), name(pod)), None, patch).await?;
        }
        let key = |pod: &Value| (Key::of(*PODS, namespace(pod), name(pod)), uid(pod).to_string());
        let keys = delete.iter().map(|pod| key(pod)).collect();
        let mut outcome = Ok(());
        for (key, deleted) in self.client.delete_each(keys, Delete::default()).await {
            self.say(look.set, "delete", key.name(), deleted.as_ref().err());
            outcome = outcome.and(deleted);
        }
        for ordinal in make {
            self.make(look, *ordinal).await?;
        }
        outcome
    }

    /// Makes a member, with the claims that it lacks.
    async fn make(&self, look: &View<'_>, ordinal: i64) -> Result<(), StatusError> {
        let (set, pod) = (look.set, look.pod(ordinal));
        for claim in claims::claims(set, ordinal) {
            let key = Key::of(*CLAIMS, namespace(set), name(&claim));
            let there = self.client.cache().get(&key);
            match there {
                // It goes with the pod that had it; its end is heard of.
                Some(there) if claims::is_stale(&there, name(&pod)) => return Ok(()),
                Some(there) if is_terminating(&there) => {
                    let error = StatusError::internal(format!("pvc {} is being deleted", name(&claim)));
                    self.say(set, "create", name(&pod), Some(&error));
                    return Ok(());
                }
                Some(_) => continue,
                None => {}
            }
            let made = self.client.create(*CLAIMS, claim.clone()).await;
            let text = format!("Claim {} Pod {} in StatefulSet {}", name(&claim), name(&pod), name(set));
            match made {
                Ok(_) => {
                    let text = format!("create {text} success");
                    self.recorder.say(set, Kind::Normal, "SuccessfulCreate", text);
                }
                Err(error) if error.reason == Reason::AlreadyExists => {}
                Err(error) => {
                    let text = format!(
                        "create Claim {} for Pod {} in StatefulSet {} failed error: {error}",
                        name(&claim),
                        name(&pod),
                        name(set)
                    );
                    self.recorder.say(set, Kind::Warning, "FailedCreate", text);
                    return Err(error);
                }
            }
        }
        match self.client.create(*PODS, pod.clone()).await {
            Ok(_) => {
                self.say(set, "create", name(&pod), None);
                Ok(())
            }
            Err(error) if ends_with_namespace(&error) => Ok(()),
            // A pod of this name is there, and somebody else's: told of once, tried again with back-off.
            Err(error) => {
                if error.reason != Reason::AlreadyExists {
                    self.say(set, "create", name(&pod), Some(&error));
                }
                Err(error)
            }
        }
    }

    /// Has claims owned by whom they are to go with.
    async fn own_claims(&self, look: &View<'_>) -> Result<(), StatusError> {
        let set = look.set;
        for (ordinal, pod) in &look.pods {
            for template in items(set, &["spec", "volumeClaimTemplates"]) {
                let key = Key::of(*CLAIMS, namespace(set), &claims::claim_name(set, template, *ordinal));
                let Some(claim) = self.client.cache().get(&key) else { continue };
                let there = items(&claim, &["metadata", "ownerReferences"]);
                let wanted = claims::owners(set, Some(pod), !look.is_wanted(*ordinal), there);
                if wanted == there || is_terminating(&claim) {
                    continue;
                }
                let wanted = if wanted.is_empty() { Value::Null } else { wanted.into() };
                let version = text(&claim, &["metadata", "resourceVersion"]);
                let patch = json!({"metadata": {
                    "uid": uid(&claim), "resourceVersion": version, "ownerReferences": wanted,
                }});
                self.client.merge(&key, None, patch).await?;
            }
        }
        Ok(())
    }

    fn say(&self, set: &Value, verb: &str, pod: &str, error: Option<&StatusError>) {
        let text = format!("{verb} Pod {pod} in StatefulSet {}", name(set));
        let of = if verb == "create" { "Create" } else { "Delete" };
        match error {
            None => {
                let reason = format!("Successful{of}");
                self.recorder.say(set, Kind::Normal, reason, format!("{text} successful"));
            }
            Some(error) => {
                let text = format!("{text} failed error: {error}");
                self.recorder.say(set, Kind::Warning, format!("Failed{of}"), text);
            }
        }
    }

    async fn report(&self, set: &Value, status: Value) -> Result<(), StatusError> {
        if status == *at(set, &["status"]) {
            return Ok(());
        }
        let mut set = set.clone();
        fields(&mut set).insert("status".into(), status);
        match self.client.update(set, Some("status")).await {
            Err(error) if error.reason != Reason::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
