//! What the engine is asked for, and what the manifest directory wants of it.
//!
//! A request that changes something is answered once its change is durable ([`Answer`]); one that only reads is
//! answered at once.

use super::objects::{Key, Origin};
use super::{Answer, Engine, Entry, Row, WATCH_MAX, facts, objects};
use crate::cluster::outbox::mirror_name;
use crate::record::{ObjectRecord, PodRecord, Source};
use crate::request::{Applied, Change, ChangeKind, Kind, Outcome, Refusal, Request, Target};
use crate::sources::{self, FileManifest};
use coracle_api::manifest::Object;
use coracle_pod::observed::InstanceState;
use coracle_pod::spec::PodUid;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

/// Pods that ended or were rejected, beside those that run (`pods_max`).
pub(super) const ENDED_MAX: usize = 1000;

impl Engine {
    pub(super) async fn answer(&mut self, request: Request) {
        // Whoever asked may have hung up; that is theirs to decide.
        let heard = match request {
            Request::Pods(to) => to.send(self.pods.values().map(Entry::shown).collect()).is_ok(),
            Request::Watch(to) => self.watch(to),
            Request::Events(to) => to.send(self.events.list()).is_ok(),
            Request::LocalName { namespace, name, answer } => {
                answer.send(self.local_name(&namespace, &name)).is_ok()
            }
            Request::ImagesInUse(to) => to.send(self.images_in_use()).is_ok(),
            Request::ImagesChanged => {
                self.look_at_images();
                true
            }
            Request::Container { namespace, name, container, answer } => {
                answer.send(self.target(&namespace, &name, &container)).is_ok()
            }
            Request::Apply { objects, answer } => {
                match self.apply(objects, &Source::Apply, &BTreeSet::new()).await {
                    Ok(applied) => {
                        self.pending.answers.push(Answer::Applied(answer, applied));
                        true
                    }
                    Err(refusal) => answer.send(Err(refusal)).is_ok(),
                }
            }
            Request::Delete { namespace, name, grace_seconds, answer } => {
                match self.delete(&namespace, &name, grace_seconds) {
                    Ok(pod) => {
                        self.pending.answers.push(Answer::Deleted(answer, Box::new(pod)));
                        true
                    }
                    Err(refusal) => answer.send(Err(refusal)).is_ok(),
                }
            }
            Request::DeleteObject { kind, namespace, name, answer } => {
                match self.delete_object(kind, &namespace, &name) {
                    Ok(()) => {
                        self.pending.answers.push(Answer::ObjectDeleted(answer));
                        true
                    }
                    Err(refusal) => answer.send(Err(refusal)).is_ok(),
                }
            }
        };
        tracing::trace!(heard, "answered");
    }

    fn watch(&mut self, to: oneshot::Sender<mpsc::Receiver<Change>>) -> bool {
        // Room for what is, and for what comes before the watcher first reads.
        let (send, receive) = mpsc::channel(WATCH_MAX + self.pods.len());
        for entry in self.pods.values() {
            let first = send.try_send(Change { kind: ChangeKind::Added, pod: entry.shown() });
            debug_assert!(first.is_ok(), "the channel has room for every pod");
        }
        self.watchers.push(send);
        to.send(receive).is_ok()
    }

    pub(super) fn tell(&mut self, change: &Change) {
        self.watchers.retain(|watcher| watcher.try_send(change.clone()).is_ok());
    }

    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<&PodUid> {
        let named = |e: &Entry| e.spec.namespace == namespace && e.spec.name == name;
        // A pod that waits for its predecessor is the one that is meant.
        let mut found = self.pods.iter().filter(|(_, e)| named(e)).collect::<Vec<_>>();
        found.sort_by_key(|(_, e)| e.blocked_by.is_some());
        found.last().map(|(uid, _)| *uid)
    }

    /// Of a mirror pod the pod that it is the image of. One that was given to the board itself is known to the API by its
    /// mirror pod's name alone.
    fn local_name(&self, namespace: &str, name: &str) -> Result<String, Refusal> {
        let node = &self.board.settings().node_name;
        let is_meant = |entry: &&Entry| {
            let own = entry.record.source != Source::Api;
            entry.spec.namespace == namespace
                && if own { mirror_name(&entry.record.pod, node) == name } else { entry.spec.name == name }
        };
        // A pod of the API that has taken that name is what the API means.
        let meant = self.pods.values().filter(is_meant);
        match meant.max_by_key(|entry| entry.record.source == Source::Api) {
            Some(entry) => Ok(entry.spec.name.clone()),
            None => Err(Refusal::not_found(Kind::Pod, name)),
        }
    }

    fn target(&self, namespace: &str, name: &str, container: &str) -> Result<Target, Refusal> {
        let entry = self.find(namespace, name).and_then(|uid| self.pods.get(uid));
        let entry = entry.ok_or_else(|| Refusal::not_found(Kind::Pod, name))?;
        let phase = entry.shown().status.and_then(|status| status.phase);
        if let Some(phase @ ("Succeeded" | "Failed")) = phase.as_deref() {
            return Err(Refusal::bad_request(format!(
                "cannot exec into a container in a completed pod; current phase is {phase}"
            )));
        }
        let all = || entry.spec.all_containers();
        let spec = if container.is_empty() {
            entry.spec.containers.first()
        } else {
            all().find(|c| c.name == container)
        };
        let spec = spec.ok_or_else(|| {
            Refusal::bad_request(format!("container {container} is not valid for pod {name}"))
        })?;
        let mut running =
            entry.observed.instances.iter().filter(|(id, i)| {
                id.container == spec.name && matches!(i.state, InstanceState::Running { .. })
            });
        match (running.next_back(), &entry.shim) {
            (Some((instance, _)), Some(shim)) => Ok(Target {
                spec: entry.granted.clone(),
                instance: instance.clone(),
                shim: shim.clone(),
                tty: spec.tty,
                stdin: spec.stdin,
            }),
            _ => Err(Refusal::bad_request(format!("container not found or not running (\"{}\")", spec.name))),
        }
    }

    /// Validates all, then stores all: a request with one bad object changes nothing.
    /// Pods that are `abandoned` by the file that had them may be taken over by another.
    async fn apply(
        &mut self,
        objects: Vec<Object>,
        source: &Source,
        abandoned: &BTreeSet<PodUid>,
    ) -> Result<Vec<Applied>, Refusal> {
        let mut accepted = Vec::new();
        for object in objects {
            accepted.push(match object {
                Object::ConfigMap(map) => Accepted::Object(objects::admit_config_map(&map, source)?),
                Object::Secret(secret) => Accepted::Object(objects::admit_secret(&secret.0, source)?),
                Object::Pod(mut pod) => {
                    pod.metadata.namespace.get_or_insert_with(|| "default".into());
                    pod.status = None;
                    pod.metadata.uid = Some(sources::uid(&pod, source));
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    let spec =
                        facts::admit(&pod).map_err(|message| Refusal::invalid(Kind::Pod, &name, &message))?;
                    if !spec.token_requests().is_empty() {
                        let message = "spec.volumes: Forbidden: serviceAccountToken needs an API server, and this pod comes from none";
                        return Err(Refusal::invalid(Kind::Pod, &name, message));
                    }
                    Accepted::Pod(pod)
                }
            });
        }
        let mut applied = Vec::new();
        for object in accepted {
            let (kind, (namespace, name), outcome) = match object {
                Accepted::Object(record) => {
                    let (kind, key) = (record.kind, (record.namespace.clone(), record.name.clone()));
                    (kind, key, self.place_object(record)?)
                }
                Accepted::Pod(pod) => {
                    let (namespace, name) = names(&pod.metadata);
                    let outcome = self.place(&namespace, &name, *pod, source, abandoned).await?;
                    (Kind::Pod, (namespace, name), outcome)
                }
            };
            applied.push(Applied { kind, namespace, name, outcome });
        }
        Ok(applied)
    }

    async fn place(
        &mut self,
        namespace: &str,
        name: &str,
        mut pod: Pod,
        source: &Source,
        abandoned: &BTreeSet<PodUid>,
    ) -> Result<Outcome, Refusal> {
        // Whatever was written: it runs here.
        if let Some(spec) = &mut pod.spec {
            spec.node_name = Some(self.board.settings().node_name.clone());
        }
        let existing = self.find(namespace, name).cloned();
        // Those that have no room are known too, and are shown as rejected.
        let known_max = self.board.settings().pods_max.saturating_add(ENDED_MAX);
        if existing.is_none() && self.pods.len() >= known_max {
            let message = format!("this board keeps {known_max} pods at most: delete some that ended");
            return Err(Refusal { code: 403, reason: "Forbidden", message });
        }
        let uid = PodUid(pod.metadata.uid.clone().unwrap_or_default());
        if let Some(old) = existing.as_ref().and_then(|uid| self.pods.get_mut(uid)) {
            if old.record.source != *source && !abandoned.contains(&old.spec.uid) {
                return Err(Refusal::conflict(Kind::Pod, namespace, name, &old.record.source));
            }
            if old.record.deletion_grace_seconds.is_none() && written(&old.record.pod) == written(&pod) {
                // The same text in another file: the pod goes on, and is that file's from now on.
                if old.record.source != *source {
                    old.record.source = source.clone();
                    let uid = old.spec.uid.clone();
                    self.save(Row::Pod(uid));
                }
                return Ok(Outcome::Unchanged);
            }
        }
        // The same text again after a deletion must not be the same pod.
        if self.pods.contains_key(&uid) {
            pod.metadata.uid = Some(sources::fresh_uid());
        }
        pod.metadata.creation_timestamp = Some(Time(self.board.now().wall));
        let record = PodRecord { pod, source: source.clone(), deletion_grace_seconds: None };
        let uid = self.insert(record).await?;
        if let (Some(old), Some(entry)) = (existing.clone(), self.pods.get_mut(&uid)) {
            entry.blocked_by = Some(old);
        }
        self.save(Row::Pod(uid.clone()));
        match existing {
            Some(old) => {
                self.mark_deleted(&old, None);
                Ok(Outcome::Configured)
            }
            None => Ok(Outcome::Created),
        }
    }

    fn delete(&mut self, namespace: &str, name: &str, grace: Option<i64>) -> Result<Pod, Refusal> {
        let uid = self.find(namespace, name).cloned().ok_or_else(|| Refusal::not_found(Kind::Pod, name))?;
        let entry = &self.pods[&uid];
        match &entry.record.source {
            Source::Manifest(file) => return Err(Refusal::owned(Kind::Pod, namespace, name, file)),
            Source::Api => return Err(Refusal::of_the_api(Kind::Pod, namespace, name)),
            Source::Apply => {}
        }
        self.mark_deleted(&uid, grace);
        Ok(self.pods[&uid].shown())
    }

    /// Idempotent; a second deletion may only shorten the grace period.
    pub(super) fn mark_deleted(&mut self, uid: &PodUid, grace: Option<i64>) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let grace = grace
            .map_or(i64::try_from(entry.spec.termination_grace.as_secs()).unwrap_or(i64::MAX), |g| g.max(0));
        if entry.record.deletion_grace_seconds.is_some_and(|known| known <= grace) {
            return;
        }
        entry.record.deletion_grace_seconds = Some(grace);
        let now = self.board.now().wall;
        entry.record.pod.metadata.deletion_timestamp = Some(Time(now));
        entry.record.pod.metadata.deletion_grace_period_seconds = Some(grace);
        match facts::admit(&entry.record.pod) {
            Ok(spec) => {
                entry.spec = Arc::new(spec);
                entry.grant();
            }
            Err(message) => error!(message, "a running pod no longer passes admission"),
        }
        self.resource_version += 1;
        entry.resource_version = self.resource_version;
        let change = Change { kind: ChangeKind::Modified, pod: entry.shown() };
        self.tell(&change);
        self.save(Row::Pod(uid.clone()));
        self.dirty.insert(uid.clone());
    }

    pub(super) async fn manifests(&mut self, files: Vec<FileManifest>) {
        let (mut pods, mut keyed) = (BTreeSet::new(), BTreeSet::new());
        let mut unreadable = BTreeSet::new();
        let mut readable = Vec::new();
        for file in files {
            match file.objects {
                Err(error) => {
                    warn!(file = file.name, %error, "manifest not used; what it had stays as it is");
                    self.manifest_warning(&file.name, &error);
                    unreadable.insert(file.name);
                }
                Ok(objects) => {
                    for object in &objects {
                        let (file, origin) = (file.name.clone(), Origin::Board);
                        match object {
                            Object::Pod(pod) => pods.insert((file, names(&pod.metadata))),
                            Object::ConfigMap(map) => {
                                let (namespace, name) = names(&map.metadata);
                                keyed.insert((file, Key { origin, kind: Kind::ConfigMap, namespace, name }))
                            }
                            Object::Secret(secret) => {
                                let (namespace, name) = names(&secret.0.metadata);
                                keyed.insert((file, Key { origin, kind: Kind::Secret, namespace, name }))
                            }
                        };
                    }
                    readable.push((file.name, objects));
                }
            }
        }
        // Before the others come: an object may have moved from one file to another.
        self.remove_orphaned_objects(&keyed, &unreadable);
        let abandoned = self.orphans(&pods, &unreadable);
        for (file, objects) in readable {
            let source = Source::Manifest(file.clone());
            for object in objects {
                // One by one: a bad object must not keep its neighbours from running.
                if let Err(refusal) = self.apply(vec![object], &source, &abandoned).await {
                    warn!(file, message = refusal.message, "object of a manifest not used");
                    self.manifest_warning(&file, &refusal.message);
                }
            }
        }
        for uid in self.orphans(&pods, &unreadable) {
            self.mark_deleted(&uid, None);
        }
    }

    /// Pods whose manifest file is readable and no longer has them.
    fn orphans(
        &self,
        wanted: &BTreeSet<(String, (String, String))>,
        unreadable: &BTreeSet<String>,
    ) -> BTreeSet<PodUid> {
        let orphaned = |entry: &Entry| match &entry.record.source {
            Source::Manifest(file) => {
                let key = (file.clone(), (entry.spec.namespace.clone(), entry.spec.name.clone()));
                !unreadable.contains(file) && !wanted.contains(&key)
            }
            Source::Apply | Source::Api => false,
        };
        self.pods.iter().filter(|(_, e)| orphaned(e)).map(|(uid, _)| uid.clone()).collect()
    }

    fn manifest_warning(&mut self, file: &str, message: &str) {
        self.events.node_warning("FailedManifest", &format!("{file}: {message}"), self.board.now().wall);
    }
}

/// An object that may be placed.
enum Accepted {
    Pod(Box<Pod>),
    Object(ObjectRecord),
}

/// A pod as its owner wrote it: without what the board adds. Two of equal texts are one pod, whichever file they are in.
fn written(pod: &Pod) -> Pod {
    let mut plain = pod.clone();
    plain.status = None;
    plain.metadata.uid = None;
    plain.metadata.creation_timestamp = None;
    plain
}

/// Namespace and name.
fn names(meta: &ObjectMeta) -> (String, String) {
    let namespace = meta.namespace.clone().filter(|namespace| !namespace.is_empty());
    (namespace.unwrap_or_else(|| "default".into()), meta.name.clone().unwrap_or_default())
}
