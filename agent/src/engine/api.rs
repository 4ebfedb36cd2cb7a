//! Pods of the API server: taken in, brought up to date, sent away.
//!
//! The API's uid is the pod's identity: what is known by it is never made anew, whatever the agent, the board or the
//! server went through. What the store keeps of such a pod is what was asked for and nothing of how it is, so that the
//! echo of our own status writes nothing.
//!
//! ```text
//!  unknown ── being deleted ─► told gone             known ── changed ─► new spec ─► planned
//!          ── ended, elsewhere ─► left alone               ── being deleted ─► SIGTERM, grace … ─► told gone
//!          ── not to be run here ─► told Failed            ── not in the list, or deleted ─► the same
//!          ── else ─► stored, planned
//! ```

use super::requests::ENDED_MAX;
use super::{Engine, Row, facts, has_ended};
use crate::cluster::outbox::MIRROR;
use crate::cluster::reports::Report;
use crate::cluster::watch::Delta;
use crate::record::{PodRecord, Source};
use crate::request::{Change, ChangeKind};
use coracle_pod::PodSpec;
use coracle_pod::spec::PodUid;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tracing::{error, info, warn};

/// A pod that is not run: `status.reason`, and why.
struct Rejection {
    reason: &'static str,
    why: String,
}

impl Engine {
    pub(super) async fn api(&mut self, delta: Delta<Pod>) {
        match delta {
            Delta::All(pods) => {
                let listed: BTreeSet<PodUid> = pods.iter().map(uid_of).collect();
                for pod in pods {
                    self.api_pod(pod).await;
                }
                let missing = |(uid, entry): &(&PodUid, &super::Entry)| {
                    entry.record.source == Source::Api && !listed.contains(*uid)
                };
                let missing: Vec<PodUid> =
                    self.pods.iter().filter(missing).map(|(uid, _)| uid.clone()).collect();
                for uid in missing {
                    info!(uid = uid.0, "the API server no longer has this pod");
                    self.mark_deleted(&uid, None);
                }
            }
            Delta::Changed(pod) => self.api_pod(pod).await,
            Delta::Deleted(pod) => {
                let uid = uid_of(&pod);
                if self.pods.get(&uid).is_some_and(|entry| entry.record.source == Source::Api) {
                    // As the kubelet: never no time at all.
                    self.mark_deleted(&uid, pod.metadata.deletion_grace_period_seconds.map(|g| g.max(1)));
                }
            }
        }
    }

    async fn api_pod(&mut self, mut pod: Pod) {
        let status = pod.status.take().unwrap_or_default();
        pod.metadata.managed_fields = None;
        pod.metadata.resource_version = None;
        let uid = uid_of(&pod);
        if let Some(of) = mirrored(&pod) {
            // Nothing to run; what it is the image of may be gone since.
            if !self.pods.contains_key(&of) {
                self.api_gone(pod, status);
            }
            return;
        }
        let conditions = status.conditions.clone().unwrap_or_default();
        self.take_in(pod, status, &uid).await;
        if let Some(entry) = self.pods.get_mut(&uid).filter(|entry| entry.record.source == Source::Api) {
            // What readiness gates name is set by others, and heard of here alone.
            let gates = &entry.spec.readiness_gates;
            let foreign: BTreeMap<String, String> = conditions
                .into_iter()
                .filter(|condition| gates.contains(&condition.type_))
                .map(|condition| (condition.type_, condition.status))
                .collect();
            if entry.observed.foreign_conditions != foreign {
                entry.observed.foreign_conditions = foreign;
                self.dirty.insert(uid);
            }
        }
    }

    async fn take_in(&mut self, pod: Pod, status: PodStatus, uid: &PodUid) {
        match self.pods.get(uid).map(|entry| &entry.record) {
            Some(record) if record.source != Source::Api => {
                error!(uid = uid.0, "a pod of the API server has the uid of a pod of this board: not run");
            }
            Some(record) if record.pod == pod => self.api_status(uid, status),
            Some(_) => {
                self.api_changed(uid, pod);
                self.api_status(uid, status);
            }
            None if pod.metadata.deletion_timestamp.is_some() => self.api_gone(pod, status),
            None if has_ended(&status) => {}
            None => self.api_new(pod, status).await,
        }
    }

    /// What others say of a pod that is known.
    fn api_status(&mut self, uid: &PodUid, status: PodStatus) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        if has_ended(&status) && !entry.ended() && entry.observed.ended_elsewhere.is_none() {
            warn!(uid = uid.0, phase = status.phase, "the API server says that a running pod has ended");
            let text = Option::unwrap_or_default;
            entry.observed.ended_elsewhere = Some((text(status.reason), text(status.message)));
            self.dirty.insert(uid.clone());
        }
    }

    /// It is to be deleted, and this board has nothing of it.
    fn api_gone(&self, mut pod: Pod, status: PodStatus) {
        pod.status = Some(status);
        if let Some(reports) = &self.reports {
            reports.put(Report { pod, source: Source::Api, gone: true });
        }
    }

    async fn api_new(&mut self, pod: Pod, status: PodStatus) {
        let meta = &pod.metadata;
        let (namespace, name) =
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let predecessor = self.find(&namespace, &name).cloned();
        if let Err(rejection) = self.may_run(&pod, predecessor.as_ref()) {
            return self.reject(pod, status, &rejection);
        }
        let uid = uid_of(&pod);
        let record = PodRecord { pod, source: Source::Api, deletion_grace_seconds: None };
        if let Err(refusal) = self.insert(record).await {
            return error!(uid = uid.0, message = refusal.message, "a pod that was admitted is refused");
        }
        let Some(entry) = self.pods.get_mut(&uid) else { return };
        // Its predecessor's end frees the name.
        entry.blocked_by = predecessor;
        self.save(Row::Pod(uid));
    }

    fn may_run(&self, pod: &Pod, predecessor: Option<&PodUid>) -> Result<(), Rejection> {
        let reject = |reason, why| Err(Rejection { reason, why });
        if let Some(Source::Manifest(_) | Source::Apply) =
            predecessor.and_then(|uid| self.pods.get(uid)).map(|entry| &entry.record.source)
        {
            let why = "a pod of this name was given to the node itself, by a manifest or coracle apply";
            return reject("NameConflict", why.into());
        }
        let known_max = self.board.settings().pods_max.saturating_add(ENDED_MAX);
        if self.pods.len() >= known_max {
            return reject(
                "OutOfpods",
                format!("this node keeps {known_max} pods at most, ended ones included"),
            );
        }
        match facts::admit(pod) {
            Ok(_) => Ok(()),
            Err(why) => reject("UnexpectedAdmissionError", why),
        }
    }

    /// As the kubelet's `rejectPod`: for good, and told at once.
    fn reject(&mut self, mut pod: Pod, mut status: PodStatus, Rejection { reason, why }: &Rejection) {
        let now = self.board.now().wall;
        warn!(uid = pod.metadata.uid, reason, why, "a pod of the API server is not run");
        let event = coracle_pod::Event {
            kind: coracle_pod::EventType::Warning,
            reason,
            message: why.clone(),
            field_path: None,
        };
        self.events.record(&pod, &Source::Api, &event, now);
        status.phase = Some("Failed".into());
        status.reason = Some((*reason).into());
        status.message = Some(format!("Pod was rejected: {why}"));
        status.start_time.get_or_insert(Time(now));
        pod.status = Some(status);
        if let Some(reports) = &self.reports {
            reports.put(Report { pod, source: Source::Api, gone: false });
        }
    }

    fn api_changed(&mut self, uid: &PodUid, pod: Pod) {
        let spec = match facts::admit(&pod) {
            Ok(spec) => spec,
            Err(message) => {
                return warn!(
                    uid = uid.0,
                    message, "a pod was changed to what this board cannot run: left as it was"
                );
            }
        };
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let grace = |pod: &Pod| {
            pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds)
        };
        // What was asked for once is not taken back: it may have been carried out.
        if entry.spec.deletion.is_some() && spec.deletion.is_none() {
            return;
        }
        entry.record.deletion_grace_seconds = grace(&pod).or(entry.record.deletion_grace_seconds);
        entry.record.pod = pod;
        let told = |spec: &PodSpec| (spec.labels.clone(), spec.annotations.clone());
        if told(&entry.spec) != told(&spec) {
            // Files of the downward API show them.
            entry.files_wanted += 1;
        }
        entry.spec = Arc::new(spec);
        entry.grant();
        self.resource_version += 1;
        entry.resource_version = self.resource_version;
        let change = Change { kind: ChangeKind::Modified, pod: entry.shown() };
        self.tell(&change);
        self.report(uid);
        self.save(Row::Pod(uid.clone()));
        self.look_at_images_of(uid);
        self.look_at_objects_of(uid);
    }
}

/// The pod of this board that this is the mirror pod of.
fn mirrored(pod: &Pod) -> Option<PodUid> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).cloned().map(PodUid)
}

fn uid_of(pod: &Pod) -> PodUid {
    PodUid(pod.metadata.uid.clone().unwrap_or_default())
}
