//! How facts arrive: adoption at start, answers of actions, and what the shims tell.

use super::{Engine, Entry, Message, has_ended, perform::Done};
use crate::record::{HistoryRecord, PodRecord, Source};
use crate::request::{Change, ChangeKind, Kind, Refusal};
use coracle_pod::action::Plan;
use coracle_pod::evict::{self, Candidate};
use coracle_pod::fit::Load;
use coracle_pod::observed::{Cause, Failure, ImageState, Instance, InstanceState, ProbeResult, Sandbox};
use coracle_pod::resize;
use coracle_pod::spec::PodUid;
use coracle_pod::{ActionKey, History, Observed, PodSpec};
use coracle_runtime::layout::parse_instance;
use coracle_runtime::shim_client::ShimEvent;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// A validated pod, or every complaint on one line.
pub(super) fn admit(pod: &Pod) -> Result<PodSpec, String> {
    PodSpec::from_api(pod).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        }
    })
}

impl Engine {
    /// Takes a stored or new pod in, and finds out what of it exists on the board.
    pub(super) async fn insert(&mut self, record: PodRecord) -> Result<PodUid, Refusal> {
        let name = record.pod.metadata.name.clone().unwrap_or_default();
        let spec = admit(&record.pod).map_err(|message| Refusal::invalid(Kind::Pod, &name, &message))?;
        let uid = spec.uid.clone();
        let history = match self.store.get::<HistoryRecord>(&uid.0) {
            Ok(history) => history.map_or_else(History::default, |h| h.0),
            Err(error) => {
                error!(uid = uid.0, %error, "the history of a pod cannot be read: it starts anew");
                History::default()
            }
        };
        let adopted = self.board.adopt(&spec).await;
        let shim = adopted.shim.map(|(client, events)| {
            self.listen(&uid, events);
            client
        });
        let observed = Observed {
            sandbox: adopted.sandbox,
            instances: adopted.instances,
            residue: adopted.residue,
            host_ips: self.board.host_ips(),
            capacity: Some(self.board.capacity()),
            ..Default::default()
        };
        self.resource_version += 1;
        let spec = Arc::new(spec);
        let entry = Entry {
            record,
            granted: resize::granted(&spec, &history),
            spec,
            observed,
            history,
            status: PodStatus { phase: Some("Pending".into()), ..Default::default() },
            shim,
            wake: None,
            blocked_by: None,
            probe_sequence: 0,
            resource_version: self.resource_version,
            objects: Arc::default(),
            files_wanted: 0,
            files_written: None,
        };
        info!(namespace = entry.spec.namespace, name = entry.spec.name, uid = uid.0, "pod is known");
        self.tell(&Change { kind: ChangeKind::Added, pod: entry.shown() });
        self.pods.insert(uid.clone(), entry);
        self.look_at_images_of(&uid);
        self.look_at_objects_of(&uid);
        Ok(uid)
    }

    /// Removes what the board holds of pods that nobody knows: the leavings of a crash between two stores.
    pub(super) async fn clear_strangers(&mut self) {
        let known: BTreeSet<PodUid> = self.pods.keys().cloned().collect();
        for uid in self.board.residues().into_iter().filter(|uid| !known.contains(uid)) {
            warn!(uid = uid.0, "removing what is left of an unknown pod");
            if let Err(error) = self.board.erase(&uid).await {
                error!(uid = uid.0, %error, "an unknown pod cannot be removed");
            }
        }
        if let Err(error) = self.board.reconcile_network(&known).await {
            error!(%error, "the network cannot be brought in line");
        }
    }

    /// Pods to be planned: those that were admitted, then the newcomers in the order in which they came.
    pub(super) fn dirty_in_order(&mut self) -> Vec<PodUid> {
        let mut dirty: Vec<PodUid> = std::mem::take(&mut self.dirty).into_iter().collect();
        dirty.sort_by_cached_key(|uid| {
            let entry = self.pods.get(uid)?;
            let new = entry.history.first_seen.is_none();
            Some((new, entry.record.pod.metadata.creation_timestamp.clone(), entry.resource_version))
        });
        dirty
    }

    /// What the pods that were admitted before this one ask for: also those whose plans of this very round are not
    /// durable yet. A pod that ended counts until its sandbox is gone.
    pub(super) fn look_at_load(&mut self, newcomer: &PodUid) {
        let planned: BTreeMap<&PodUid, &Plan> = self.pending.plans.iter().map(|(uid, p)| (uid, p)).collect();
        let admitted = |(uid, entry): &(&PodUid, &Entry)| {
            let plan = planned.get(uid);
            let history = plan.map_or(&entry.history, |plan| &plan.history);
            let ended = entry.observed.sandbox == Sandbox::Absent
                && (history.failed.is_some() || has_ended(plan.map_or(&entry.status, |plan| &plan.status)));
            history.first_seen.is_some() && !ended && *uid != newcomer
        };
        let granted = |(uid, entry): (&PodUid, &Entry)| {
            let history = planned.get(uid).map_or(&entry.history, |plan| &plan.history);
            resize::granted(&entry.spec, history)
        };
        let others: Vec<Arc<PodSpec>> = self.pods.iter().filter(admitted).map(granted).collect();
        let load = Load::of(others.iter().map(|spec| &**spec));
        if let Some(entry) = self.pods.get_mut(newcomer) {
            entry.observed.load = load;
        }
    }

    /// Something became free: perhaps a pod that asks for more can have it now.
    pub(super) fn retry_resizes(&mut self) {
        let wanted = self.pods.iter().filter(|(_, e)| resize::is_wanted(&e.spec, &e.history));
        self.dirty.extend(wanted.map(|(uid, _)| uid.clone()));
    }

    /// Chooses the pod that goes for want of memory. Pods of manifest files stay, as the kubelet's static pods do; while
    /// one is going already, the others wait for what that frees.
    pub(super) fn evict(&mut self, available_bytes: u64, threshold_bytes: u64) {
        let going = |e: &Entry| {
            (e.observed.eviction.is_some() || e.spec.deletion.is_some())
                && e.observed.sandbox != Sandbox::Absent
        };
        if self.pods.values().any(going) {
            return;
        }
        let board = self.board.clone();
        let used = |spec: &PodSpec| board.tree().usage(&board.tree().pod_path(&spec.uid, spec.qos));
        let evictable =
            self.pods.values().filter(|e| !matches!(e.record.source, Source::Manifest(_)) && !e.ended());
        let candidates: Vec<Candidate<'_>> = evictable
            .filter_map(|e| {
                Some(Candidate { spec: &e.granted, memory_bytes: used(&e.spec)?.working_set_bytes })
            })
            .collect();
        let Some(chosen) = evict::choose(&candidates).map(|index| candidates[index]) else {
            warn!(available_bytes, "memory is short, and no pod may be evicted");
            return;
        };
        let message = evict::message(chosen, available_bytes, threshold_bytes);
        let uid = chosen.spec.uid.clone();
        warn!(uid = uid.0, message, "evicting a pod");
        if let Some(entry) = self.pods.get_mut(&uid) {
            entry.observed.eviction = Some(message);
            self.dirty.insert(uid);
        }
    }

    /// Passes a shim's events on until it closes.
    pub(super) fn listen(&self, uid: &PodUid, mut events: mpsc::Receiver<ShimEvent>) {
        let (uid, inbox) = (uid.clone(), self.outbox.clone());
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if inbox.send(Message::Shim { uid: uid.clone(), event }).await.is_err() {
                    return;
                }
            }
        });
    }

    pub(super) fn look_at_images(&mut self) {
        self.worked = true;
        let all: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in all {
            self.look_at_images_of(&uid);
            self.dirty.insert(uid);
        }
    }

    pub(super) fn look_at_images_of(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let spec = entry.spec.clone();
        for container in spec.all_containers() {
            entry.observed.images.insert(container.image.clone(), self.board.image_state(&container.image));
        }
    }

    pub(super) fn images_in_use(&self) -> BTreeSet<String> {
        let mut used = BTreeSet::new();
        for entry in self.pods.values() {
            used.extend(entry.observed.instances.values().map(|i| i.image_id.clone()));
            used.extend(entry.observed.images.values().filter_map(|state| match state {
                ImageState::Present { id, .. } => Some(id.clone()),
                ImageState::Absent => None,
            }));
        }
        used
    }

    /// An action ended: its result becomes facts.
    pub(super) fn done(&mut self, uid: &PodUid, key: &ActionKey, result: Done) {
        let now = self.board.stamp();
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.observed.in_flight.remove(key);
        self.dirty.insert(uid.clone());
        let mut listen = None;
        let (mut succeeded, mut freed) = (true, false);
        match result {
            Done::Sandbox { ips, shim, events, files } => {
                entry.files_written = Some(files);
                entry.look_at_files();
                entry.observed.sandbox = Sandbox::Ready { ips, since: now };
                entry.observed.residue = true;
                // The board may have got another address since the pod was first seen.
                entry.observed.host_ips = self.board.host_ips();
                entry.shim = Some(shim);
                listen = Some(events);
            }
            Done::Volumes { files } => {
                entry.files_written = Some(files);
                entry.look_at_files();
            }
            Done::Resized(resized) => entry.observed.resized = Some(resized),
            Done::Stopped => {
                freed = true;
                entry.observed.sandbox = Sandbox::Absent;
                entry.shim = None;
                entry.exit_all_running(&self.board.stamp());
            }
            Done::Removed => {
                entry.observed.instances.clear();
                entry.observed.residue = false;
            }
            Done::Image { image, state } => {
                for other in self.pods.values_mut() {
                    other.set_image(&image, state.clone());
                }
                self.dirty.extend(
                    self.pods.iter().filter(|(_, e)| e.needs_image(&image)).map(|(uid, _)| uid.clone()),
                );
            }
            Done::Started { instance, started, about } => {
                // A container that ended at once may have told so before its start was answered.
                entry.observed.instances.entry(instance).or_insert(Instance {
                    state: InstanceState::Running { started },
                    container_id: about.container_id,
                    image_id: about.image_id,
                });
            }
            Done::Forgotten { instance } => {
                entry.observed.instances.remove(&instance);
            }
            Done::Signalled => {}
            Done::Probed { key, verdict } => {
                entry.probe_sequence += 1;
                let sequence = entry.probe_sequence;
                entry.observed.probes.retain(|known, _| {
                    known.instance.container != key.instance.container || known.instance == key.instance
                });
                entry.observed.probes.insert(key, ProbeResult { verdict, at: now, sequence });
            }
            Done::Failed { reason, message, residue } => {
                succeeded = false;
                warn!(
                    namespace = entry.spec.namespace,
                    name = entry.spec.name,
                    ?reason,
                    message,
                    "an action failed"
                );
                entry.observed.residue |= residue;
                entry.observed.failures.insert(key.clone(), Failure { reason, message, at: now });
            }
        }
        if let Some(entry) = self.pods.get_mut(uid).filter(|_| succeeded) {
            entry.observed.failures.remove(key);
        }
        if freed {
            self.retry_resizes();
        }
        if let Some(events) = listen {
            self.listen(uid, events);
        }
    }

    pub(super) fn shim_event(&mut self, uid: &PodUid, event: ShimEvent) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        match event {
            ShimEvent::Exited { instance, report } => {
                let Some(id) = parse_instance(&instance) else { return };
                let exit = self.board.exit(&entry.spec, &id, &report);
                let about = self.board.about(uid, &id);
                let known = entry.observed.instances.entry(id).or_insert(Instance {
                    state: InstanceState::Created,
                    container_id: about.container_id,
                    image_id: about.image_id,
                });
                known.state = InstanceState::Exited(exit);
            }
            ShimEvent::Closed => {
                // Our own StopSandbox ends the shim too; only an unexpected end is news.
                let stopping = entry.observed.in_flight.contains(&ActionKey::Sandbox);
                if matches!(entry.observed.sandbox, Sandbox::Ready { .. }) && !stopping {
                    entry.observed.sandbox = Sandbox::Broken { why: "the pod's shim ended".into() };
                    entry.shim = None;
                }
            }
        }
        self.dirty.insert(uid.clone());
    }
}

impl Entry {
    /// After the sandbox was stopped nothing runs: what the shim could not tell any more ended by SIGKILL.
    fn exit_all_running(&mut self, now: &coracle_pod::observed::Stamp) {
        for instance in self.observed.instances.values_mut() {
            let started = match &instance.state {
                InstanceState::Exited(_) => continue,
                InstanceState::Running { started } => Some(started.clone()),
                InstanceState::Created => None,
            };
            instance.state = InstanceState::Exited(coracle_pod::observed::Exit {
                code: 137,
                signal: Some(9),
                cause: Cause::Process,
                started,
                finished: now.clone(),
                message: String::new(),
            });
        }
    }
}
