//! Daemon sets (`apps/v1`): one pod on each node that is for it.
//!
//! ```text
//! nodes, pods ─► plan: too many go, missing ones are made for their node, old ones are replaced ─► revisions ─► status
//! ```
//! What is to be done is decided by [`plan`], which is pure; the scheduler places the pods.

mod plan;

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::history::{self, REVISION_HASH};
use super::key::Key;
use super::kinds::{CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS};
use super::owned::{claim, concerned, controlled, delete_pods, make_pods};
use super::retries::Retries;
use crate::object::{at, fields, is_terminating, name, text, uid};
use crate::scheduler;
use coracle_api::status::{Reason, StatusError};
use plan::{Place, View};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Pods that one look makes or deletes, as upstream.
const BURST: usize = 250;

/// The controller.
pub struct DaemonSets {
    client: Client,
    recorder: Recorder,
    /// Of pods that end, by node.
    retries: Retries,
}

impl DaemonSets {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> DaemonSets {
        DaemonSets { client, recorder, retries: Retries::default() }
    }
}

/// What a set asks nodes for.
fn asked(node: &Value) -> [&Value; 2] {
    [at(node, &["metadata", "labels"]), at(node, &["spec", "taints"])]
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*DAEMON_SETS) {
            if let Some(set) = change.gone(cache) {
                self.retries.forget(uid(&set));
            }
            return vec![change.key.clone()];
        }
        if change.of(*NODES) {
            let state = |entry: &Option<_>| entry.as_ref().and_then(|entry| cache.object(&change.key, entry));
            let same = match (state(&change.old), state(&change.new)) {
                (Some(old), Some(new)) => asked(&old) == asked(&new),
                _ => false,
            };
            return if same { Vec::new() } else { cache.keys(*DAEMON_SETS, "") };
        }
        if !change.of(*PODS) && !change.of(*CONTROLLER_REVISIONS) {
            return Vec::new();
        }
        let free = change.new.is_some();
        change.states(cache).flat_map(|object| concerned(&object, free, *DAEMON_SETS, cache)).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(set) = self.client.cache().get(key) else { return Ok(Next::Done) };
        // Its revisions may be gone: nothing can be said of it.
        if is_terminating(&set) {
            return Ok(Next::Done);
        }
        let revisions = history::revisions(&self.client, &set).await?;
        let current = history::current(&self.client, &set, &revisions, REVISION_HASH).await?;
        let hash = text(&current, &["metadata", "labels", REVISION_HASH]);
        let fresh = plan::pod(&set, hash);
        let judged = scheduler::Pod::read(&fresh);
        let nodes = self.client.cache().list(*NODES, "");
        let places: BTreeMap<&str, Place> =
            nodes.iter().map(|node| (name(node), plan::place(&judged, node))).collect();
        let pods = claim(&self.client, &set, *PODS).await?;
        let view = View::of(&set, hash, places.clone(), &pods, crate::clock::now());
        let (done, retry) = self.act(&set, view.plan(), &fresh).await;
        // As they are now.
        let pods = controlled(self.client.cache(), &set, *PODS);
        let (status, again) = View::of(&set, hash, places, &pods, crate::clock::now()).status();
        self.report(&set, status).await?;
        let live = history::in_use(&pods, REVISION_HASH);
        let is_live = |revision: &Value| {
            uid(revision) == uid(&current)
                || live.contains(text(revision, &["metadata", "labels", REVISION_HASH]))
        };
        history::forget(&self.client, &set, &revisions, is_live).await?;
        done.map(|()| Next::at(retry).earlier(Next::at(again)))
    }
}

impl DaemonSets {
    async fn act(
        &self,
        set: &Value,
        mut plan: plan::Plan,
        fresh: &Value,
    ) -> (Result<(), StatusError>, Option<Duration>) {
        let mut again: Option<Duration> = None;
        for (node, pod) in plan.ended {
            match self.retries.take(uid(set), &node, Instant::now()) {
                Ok(()) => {
                    let (warning, reason, message) = plan::obituary(&pod, &node);
                    let kind = if warning { Kind::Warning } else { Kind::Normal };
                    self.recorder.say(set, kind, reason, message);
                    plan.delete.push(pod);
                }
                Err(left) => again = Some(again.map_or(left, |again| again.min(left))),
            }
        }
        plan.delete.truncate(BURST);
        let deleted = delete_pods(&self.client, &self.recorder, set, &plan.delete).await;
        let pods = plan.make.iter().take(BURST).map(|node| plan::on_node(fresh.clone(), node)).collect();
        let made = make_pods(&self.client, &self.recorder, set, pods).await;
        (made.and(deleted), again)
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
