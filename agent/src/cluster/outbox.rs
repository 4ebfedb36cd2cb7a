//! What the API server is still to be told of each pod: one step at a time, until it holds what is so.
//!
//! ```text
//!  report ─┐            ┌ status differs ─► PATCH status ┐
//!  watch  ─┴► next step ┤ gone ─► DELETE, grace 0, uid   ├─► answer ─► next step, or back-off
//!                       └ no mirror pod ─► POST          ┘
//! ```
//! Level-triggered: a step follows from the newest report and from what the API holds, so a restart loses nothing and
//! reports that came together are told once. Pure: the requests are made by `pods`.
//!
//! Pods that were given to the board itself appear in the API as mirror pods, as the kubelet's static pods do: named after
//! pod and node, annotated with the uid here, owned by the Node.

use super::backoff::Backoff;
use super::client::Collection;
use super::reports::Report;
use super::status;
use crate::record::Source;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::discriminant;
use std::time::Duration;
use tokio::time::Instant;

/// Marks a mirror pod; its value is the uid on the board.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
const HASH: &str = "kubernetes.io/config.hash";
const SOURCE: &str = "kubernetes.io/config.source";
const SEEN: &str = "kubernetes.io/config.seen";

/// Steps of one pod at once …
const BURST: f64 = 20.0;
/// … and then so many a second.
const PER_SECOND: f64 = 1.0;

/// A request to be made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    PatchStatus { path: String, patch: Value },
    Delete { path: String, options: Value },
    CreateMirror { path: String, pod: Box<Pod> },
}

impl Step {
    /// Of what it is about.
    pub(crate) fn path(&self) -> &str {
        let (Step::PatchStatus { path, .. } | Step::Delete { path, .. } | Step::CreateMirror { path, .. }) =
            self;
        path
    }
}

/// A pod as the API has it.
#[derive(Debug)]
struct Seen {
    namespace: String,
    name: String,
    version: u64,
    status: PodStatus,
    mirror_of: Option<String>,
    deleting: bool,
}

#[derive(Debug)]
struct Outgoing {
    report: Report,
    under_way: bool,
    backoff: Backoff,
    /// Not before.
    due: Option<Instant>,
    steps: f64,
    counted: Instant,
    /// The last step of each kind but a creation, and the version that the API had after it: made again it would do as little as it did.
    said: Vec<(Step, Option<u64>)>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    node_name: String,
    /// Once the Node is there: owner of mirror pods.
    node_uid: Option<String>,
    /// `None` until the API has told what it holds.
    seen: Option<BTreeMap<String, Seen>>,
    /// By uid on the board.
    outgoing: BTreeMap<String, Outgoing>,
    dirty: BTreeSet<String>,
}

impl Outbox {
    pub(crate) fn new(node_name: String) -> Outbox {
        let (outgoing, dirty) = Default::default();
        Outbox { node_name, node_uid: None, seen: None, outgoing, dirty }
    }

    /// The Node has this uid.
    pub(crate) fn node(&mut self, uid: String) {
        self.node_uid = Some(uid);
        self.dirty.extend(self.outgoing.keys().cloned());
    }

    /// How a pod is.
    pub(crate) fn report(&mut self, mut report: Report, now: Instant) {
        let uid = report.uid();
        if report.source == Source::Api {
            // Of those the API has the rest.
            report.pod.spec = None;
        }
        self.dirty.insert(uid.clone());
        match self.outgoing.get_mut(&uid) {
            Some(outgoing) => outgoing.report = report,
            None => {
                let (backoff, due, said) = Default::default();
                let new = Outgoing { report, under_way: false, backoff, due, steps: 0.0, counted: now, said };
                self.outgoing.insert(uid, new);
            }
        }
    }

    /// Everything that the API has.
    pub(crate) fn all(&mut self, pods: &[Pod]) {
        self.seen = Some(pods.iter().map(|pod| (uid(pod), seen(pod))).collect());
        self.dirty.extend(self.outgoing.keys().cloned());
    }

    /// The API's newest, from a watch or from an answer.
    pub(crate) fn changed(&mut self, pod: &Pod) {
        let Some(all) = &mut self.seen else { return };
        let (uid, new) = (uid(pod), seen(pod));
        // An answer may be newer than what the watch still has to tell.
        if all.get(&uid).is_some_and(|known| known.version > new.version) {
            return;
        }
        self.dirty.insert(new.mirror_of.clone().unwrap_or_else(|| uid.clone()));
        all.insert(uid, new);
    }

    pub(crate) fn deleted(&mut self, pod: &Pod) {
        let Some(all) = &mut self.seen else { return };
        let uid = uid(pod);
        let known = all.remove(&uid);
        self.dirty.insert(known.and_then(|seen| seen.mirror_of).unwrap_or(uid));
    }

    /// Steps to be made now, `room` at most. Each is under way until [`Outbox::done`].
    pub(crate) fn steps(&mut self, room: usize, now: Instant) -> Vec<(String, Step)> {
        let mut steps = Vec::new();
        if self.seen.is_none() {
            return steps;
        }
        let due = |o: &Outgoing| o.due.is_some_and(|at| at <= now);
        let woken = self.outgoing.iter().filter(|(_, o)| due(o)).map(|(uid, _)| uid.clone());
        let ready: BTreeSet<String> = std::mem::take(&mut self.dirty).into_iter().chain(woken).collect();
        for uid in ready {
            let Some(outgoing) = self.outgoing.get(&uid) else { continue };
            if outgoing.under_way || outgoing.due.is_some_and(|at| at > now) {
                continue;
            }
            if steps.len() >= room {
                self.dirty.insert(uid);
                continue;
            }
            let step = self.next(&uid, outgoing);
            let Some(outgoing) = self.outgoing.get_mut(&uid) else { continue };
            outgoing.due = None;
            match step {
                Next::Do(step) => {
                    outgoing.under_way = true;
                    outgoing.said.retain(|(known, _)| discriminant(known) != discriminant(&step));
                    if !matches!(step, Step::CreateMirror { .. }) {
                        outgoing.said.push((step.clone(), None));
                    }
                    steps.push((uid, step));
                }
                Next::Settled => {}
                Next::Over => {
                    self.outgoing.remove(&uid);
                }
            }
        }
        steps
    }

    /// A step was answered; an answer with a pod goes to [`Outbox::changed`] too.
    pub(crate) fn done(&mut self, uid: &str, succeeded: bool, now: Instant) {
        let version = self.version(uid);
        let Some(outgoing) = self.outgoing.get_mut(uid) else { return };
        outgoing.under_way = false;
        self.dirty.insert(uid.into());
        if succeeded {
            outgoing.backoff.succeeded();
            if let Some((_, after)) = outgoing.said.last_mut() {
                *after = version;
            }
            let passed = now.saturating_duration_since(outgoing.counted).as_secs_f64();
            outgoing.steps = (outgoing.steps - passed * PER_SECOND).max(0.0) + 1.0;
            outgoing.counted = now;
            let over = (outgoing.steps - BURST) / PER_SECOND;
            outgoing.due = (over > 0.0).then(|| now + Duration::from_secs_f64(over));
        } else {
            outgoing.said.clear();
            outgoing.due = Some(now + outgoing.backoff.next());
        }
    }

    /// When [`Outbox::steps`] has to be asked again, if nothing happens before.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.outgoing.values().filter(|o| !o.under_way).filter_map(|o| o.due).min()
    }

    /// The API has no such pod any more, whatever the watch still says.
    pub(crate) fn vanished(&mut self, uid_here: &str) {
        let Some(all) = &mut self.seen else { return };
        all.retain(|uid, seen| uid != uid_here && seen.mirror_of.as_deref() != Some(uid_here));
    }

    /// Of the pod that the API has for this one.
    fn version(&self, uid_here: &str) -> Option<u64> {
        let all = self.seen.as_ref()?;
        let mirror = || all.values().find(|seen| seen.mirror_of.as_deref() == Some(uid_here));
        all.get(uid_here).or_else(mirror).map(|seen| seen.version)
    }

    fn next(&self, uid: &str, outgoing: &Outgoing) -> Next {
        let all = self.seen.as_ref().expect("asked only once the API has told");
        let Outgoing { report, said, .. } = outgoing;
        let version = self.version(uid);
        let news = |step: &Step| !said.iter().any(|(known, after)| known == step && *after == version);
        let or_settled = |step: Option<Step>| step.filter(news).map_or(Next::Settled, Next::Do);
        if report.source == Source::Api {
            // It may have come to be unknown to the API, and then nobody wants to know.
            let Some(seen) = all.get(uid) else { return Next::Over };
            let last_word = tell(uid, seen, report).filter(news);
            return or_settled(last_word.or_else(|| report.gone.then(|| delete(uid, seen))));
        }
        let mirror = mirror_name(&report.pod, &self.node_name);
        let namespace = report.pod.metadata.namespace.as_deref().unwrap_or("default");
        let found = all.iter().find(|(_, seen)| seen.namespace == namespace && seen.name == mirror);
        match found {
            None if report.gone => Next::Over,
            None => or_settled(self.node_uid.as_ref().map(|node_uid| {
                let pod = Box::new(self.mirror(report, mirror, node_uid));
                Step::CreateMirror { path: Collection::PODS.of(namespace), pod }
            })),
            // A pod that somebody made under that name stays, and then there is no image.
            Some((_, Seen { mirror_of: None, .. })) if report.gone => Next::Over,
            Some((_, Seen { mirror_of: None, .. })) => Next::Settled,
            // One that somebody deletes is deleted at once, and made anew.
            Some((mirror_uid, seen))
                if seen.mirror_of.as_deref() == Some(uid) && !report.gone && !seen.deleting =>
            {
                or_settled(tell(mirror_uid, seen, report))
            }
            Some((mirror_uid, seen)) => or_settled(Some(delete(mirror_uid, seen))),
        }
    }

    fn mirror(&self, report: &Report, name: String, node_uid: &str) -> Pod {
        let meta = &report.pod.metadata;
        let hash = meta.uid.clone().unwrap_or_default();
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        let source = match report.source {
            Source::Manifest(_) => "file",
            // The kubelet's other way to be given pods by somebody who is not the API server.
            Source::Apply | Source::Api => "http",
        };
        let seen = meta.creation_timestamp.as_ref().map(|time| time.0.to_string()).unwrap_or_default();
        for (key, value) in [(MIRROR, hash.clone()), (HASH, hash), (SOURCE, source.into()), (SEEN, seen)] {
            annotations.insert(key.into(), value);
        }
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.node_name.clone(),
            uid: node_uid.into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let mut spec = report.pod.spec.clone().unwrap_or_default();
        spec.node_name = Some(self.node_name.clone());
        // Credentials of the board's own: the API's mirror pods may name none.
        spec.image_pull_secrets = None;
        // It is there already: no taint sends it away.
        let tolerates = Toleration {
            effect: Some("NoExecute".into()),
            operator: Some("Exists".into()),
            ..Toleration::default()
        };
        spec.tolerations.get_or_insert_default().push(tolerates);
        Pod {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: meta.namespace.clone(),
                labels: meta.labels.clone(),
                annotations: Some(annotations),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        }
    }
}

/// What a pod of the board's own is called in the API: as the kubelet names static pods.
pub(crate) fn mirror_name(pod: &Pod, node_name: &str) -> String {
    format!("{}-{node_name}", pod.metadata.name.as_deref().unwrap_or_default())
}

enum Next {
    Do(Step),
    Settled,
    /// Nothing will ever have to be told of it again.
    Over,
}

fn tell(uid: &str, seen: &Seen, report: &Report) -> Option<Step> {
    let ours = report.pod.status.as_ref()?;
    let patch = status::patch(uid, &seen.status, &status::desired(&seen.status, ours))?;
    let path = Collection::PODS.part(&seen.namespace, &seen.name, "status");
    Some(Step::PatchStatus { path, patch })
}

fn delete(uid: &str, seen: &Seen) -> Step {
    Step::Delete {
        path: Collection::PODS.object(&seen.namespace, &seen.name),
        options: json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": uid},
        }),
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn seen(pod: &Pod) -> Seen {
    let meta = &pod.metadata;
    Seen {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        // Comparable since Kubernetes 1.35 (KEP-5504), and in fact always.
        version: meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0),
        status: pod.status.clone().unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        mirror_of: meta.annotations.as_ref().and_then(|all| all.get(MIRROR)).cloned(),
    }
}

#[cfg(test)]
#[path = "outbox_test.rs"]
mod tests;
