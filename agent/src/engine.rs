//! The one event loop: facts come in, plans go out.
//!
//! ```text
//!  requests ─┐                        ┌─ history changed? ─► store.commit ─► Committed ─┐
//!  outcomes ─┤► facts of a pod ► plan ┤                                               ├► actions ► tasks ─► outcomes
//!  shims ────┤                        └─ unchanged ───────────────────────────────────┘
//!  manifests ┘
//! ```
//! Invariants: this task alone owns every pod's facts and history; it never blocks (commits and actions run in
//! tasks that answer by message); history is durable before the actions of its plan start; one commit is under
//! way at a time and carries every pod that became ready meanwhile. A pod whose store write fails keeps running,
//! and nothing new is done to it until a write succeeds.

mod api;
mod facts;
mod heard;
mod objects;
mod perform;
mod requests;
mod storage;

use crate::cluster::Ways;
use crate::cluster::objects::{News, Wanted};
use crate::cluster::reports::{Report, Reports};
use crate::cluster::watch::Delta;
use crate::events::Events;
use crate::notify::Watchdog;
use crate::record::{HistoryRecord, PodRecord, Source};
use crate::request::{Applied, Change, ChangeKind, Refusal, Request};
use crate::sources::FileManifest;
use crate::storage::Limited;
use coracle_pod::action::{Action, Plan};
use coracle_pod::objects::Objects;
use coracle_pod::observed::{ImageState, InstanceState, Sandbox};
use coracle_pod::resize;
use coracle_pod::spec::PodUid;
use coracle_pod::storage::Excess;
use coracle_pod::{ActionKey, History, Observed, PodSpec};
use coracle_runtime::board::Board;
use coracle_runtime::shim_client::{ShimClient, ShimEvent};
use coracle_store::{Batch, Store, StoreError};
use heard::Heard;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use objects::Table;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

/// Messages waiting for the engine; senders wait when it is full.
pub(crate) const INBOX_MAX: usize = 256;
/// Changes waiting for one watcher; a slower one is dropped and asks again.
const WATCH_MAX: usize = 256;
/// How long after a failed commit the next is tried.
const COMMIT_RETRY: Duration = Duration::from_secs(5);

/// What the engine hears.
#[derive(Debug)]
pub(crate) enum Message {
    /// From the node API.
    Request(Request),
    /// The manifest directory as it is now.
    Manifests(Vec<FileManifest>),
    /// The pods that the API server has for this board.
    Api(Box<Delta<Pod>>),
    /// What one of those names.
    Object(Box<News>),
    /// An action ended.
    Done { uid: PodUid, key: ActionKey, result: perform::Done },
    /// From a pod's shim.
    Shim { uid: PodUid, event: ShimEvent },
    /// Tasks wait for memory, and less than the threshold is available.
    MemoryShort { available_bytes: u64, threshold_bytes: u64 },
    /// A pod has written more than it may.
    StorageExceeded { uid: PodUid, excess: Excess },
    /// The batch under way is durable, or is not.
    Committed(Result<(), StoreError>),
}

/// One pod.
struct Entry {
    record: PodRecord,
    /// What is asked for.
    spec: Arc<PodSpec>,
    /// The same with the resources that were granted: by this it is run.
    granted: Arc<PodSpec>,
    observed: Observed,
    history: History,
    status: PodStatus,
    shim: Option<ShimClient>,
    /// `CLOCK_BOOTTIME` at which to plan again.
    wake: Option<Duration>,
    /// A pod of the same name that must go away first.
    blocked_by: Option<PodUid>,
    probe_sequence: u64,
    resource_version: u64,
    /// What there is of the objects that it names.
    objects: Arc<Objects>,
    /// Counts how often the files of its volumes should have changed; and as of which count they were last written.
    files_wanted: u64,
    files_written: Option<u64>,
}

/// Something that is to be stored as it then is, or removed from the store if it is no more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Pod(PodUid),
    Object(objects::Key),
    Tokens(PodUid),
}

/// What waits for the commit under way.
#[derive(Default)]
struct Pending {
    plans: Vec<(PodUid, Plan)>,
    answers: Vec<Answer>,
    rows: BTreeSet<Row>,
}

/// An asker who is told once the batch is durable.
enum Answer {
    Applied(oneshot::Sender<Result<Vec<Applied>, Refusal>>, Vec<Applied>),
    Deleted(oneshot::Sender<Result<Pod, Refusal>>, Box<Pod>),
    ObjectDeleted(oneshot::Sender<Result<(), Refusal>>),
}

/// The state of the agent.
pub(crate) struct Engine {
    board: Arc<Board>,
    store: Arc<Store>,
    inbox: mpsc::Receiver<Message>,
    outbox: mpsc::Sender<Message>,
    pods: BTreeMap<PodUid, Entry>,
    objects: Table,
    heard: Heard,
    dirty: BTreeSet<PodUid>,
    /// Being written now.
    committing: Option<Pending>,
    /// For the next batch.
    batch: Batch,
    pending: Pending,
    retry_at: Option<Duration>,
    watchers: Vec<mpsc::Sender<Change>>,
    events: Events,
    /// To the API server; `None` on a board that stands alone.
    reports: Option<Reports>,
    /// What its pods name, asked of the API server.
    wanted: Option<watch::Sender<Wanted>>,
    /// Those whose files are to be measured.
    limited: watch::Sender<Limited>,
    resource_version: u64,
    /// Something was done since memory was last given back.
    worked: bool,
}

impl Engine {
    /// Adopts what the store and the board hold. Nothing is started yet.
    pub(crate) async fn open(
        board: Arc<Board>,
        store: Arc<Store>,
        events: Events,
        ways: Option<Ways>,
        limited: watch::Sender<Limited>,
    ) -> anyhow::Result<(Engine, mpsc::Sender<Message>)> {
        let (outbox, inbox) = mpsc::channel(INBOX_MAX);
        let mut engine = Engine {
            board,
            store,
            inbox,
            outbox: outbox.clone(),
            pods: BTreeMap::new(),
            objects: Table::default(),
            heard: Heard::default(),
            dirty: BTreeSet::new(),
            committing: None,
            batch: Batch::new(),
            pending: Pending::default(),
            retry_at: None,
            watchers: Vec::new(),
            events,
            reports: ways.as_ref().map(|ways| ways.reports.clone()),
            wanted: ways.map(|ways| ways.wanted),
            limited,
            resource_version: 1,
            worked: true,
        };
        // Before anything is done: histories of a newer version refuse the store as pods of one do.
        engine.store.all::<HistoryRecord>()?;
        engine.open_objects()?;
        engine.open_tokens()?;
        let scan = engine.store.all::<PodRecord>()?;
        for damaged in &scan.damaged {
            error!(key = %damaged, "a stored pod cannot be read and is left out; apply it again");
        }
        for (_, record) in scan.records {
            if let Err(refusal) = engine.insert(record).await {
                error!(message = %refusal.message, "a stored pod is no longer valid and is left out");
            }
        }
        engine.order_successors();
        engine.forget_unwanted();
        engine.clear_strangers().await;
        Ok((engine, outbox))
    }

    /// Of two pods of one name the one that is being deleted goes first.
    fn order_successors(&mut self) {
        let name = |e: &Entry| (e.spec.namespace.clone(), e.spec.name.clone());
        let leaving: BTreeMap<_, PodUid> = self
            .pods
            .iter()
            .filter(|(_, e)| e.spec.deletion.is_some())
            .map(|(uid, e)| (name(e), uid.clone()))
            .collect();
        for entry in self.pods.values_mut().filter(|e| e.spec.deletion.is_none()) {
            entry.blocked_by = leaving.get(&name(entry)).cloned();
        }
    }

    /// Runs until `stop` resolves. Pods go on without us. `watchdog` is fed from each round of this very loop: when the
    /// loop hangs, systemd hears nothing more.
    pub(crate) async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        mut watchdog: Option<Watchdog>,
    ) -> anyhow::Result<()> {
        tokio::pin!(stop);
        loop {
            self.plan_dirty();
            self.tell_limited();
            self.rest();
            let fed = watchdog.as_mut().map(Watchdog::feed);
            let wait = self.next_wake().min(fed.unwrap_or(Duration::MAX));
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.handle(message).await,
                    None => return Ok(()),
                },
                () = tokio::time::sleep(wait) => self.wake_due(),
                () = &mut stop => return self.finish().await,
            }
            // Whatever else has arrived goes into the same round, and so into the same commit.
            while let Ok(message) = self.inbox.try_recv() {
                self.handle(message).await;
            }
        }
    }

    /// Waits for the commit under way, so that nothing acknowledged is left in the air.
    async fn finish(mut self) -> anyhow::Result<()> {
        while self.committing.is_some() {
            match self.inbox.recv().await {
                Some(Message::Committed(result)) => self.committed(result),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Request(request) => self.answer(request).await,
            Message::Manifests(files) => self.manifests(files).await,
            Message::Api(delta) => self.api(*delta).await,
            Message::Object(news) => self.hear(*news),
            Message::Done { uid, key, result } => {
                self.worked |= !matches!(key, ActionKey::Probe(_));
                self.done(&uid, &key, result);
            }
            Message::Shim { uid, event } => self.shim_event(&uid, event),
            Message::MemoryShort { available_bytes, threshold_bytes } => {
                self.evict(available_bytes, threshold_bytes);
            }
            Message::StorageExceeded { uid, excess } => self.storage_exceeded(&uid, &excess),
            Message::Committed(result) => self.committed(result),
        }
    }

    // ---- planning ----

    fn plan_dirty(&mut self) {
        let now = self.board.now();
        if self.retry_at.is_some_and(|at| at > now.monotonic) {
            return;
        }
        if self.committing.is_none() {
            for uid in self.dirty_in_order() {
                let Some(entry) = self.pods.get(&uid) else { continue };
                let of_api = entry.record.source == Source::Api;
                if entry.blocked_by.is_some() || (of_api && self.awaits_pull_secrets(&entry.spec)) {
                    continue;
                }
                if entry.history.first_seen.is_none() || resize::is_wanted(&entry.spec, &entry.history) {
                    self.look_at_load(&uid);
                }
                let Some(entry) = self.pods.get(&uid) else { continue };
                let plan = coracle_pod::plan(&entry.spec, &entry.observed, &entry.history, &now);
                if plan.gone {
                    self.batch.delete::<PodRecord>(&uid.0);
                    self.batch.delete::<HistoryRecord>(&uid.0);
                    self.pending.rows.remove(&Row::Pod(uid.clone()));
                    self.pending.plans.push((uid, plan));
                } else if !plan.history.durable_eq(&entry.history) {
                    self.batch.put(&uid.0, &HistoryRecord(plan.history.clone()));
                    self.pending.plans.push((uid, plan));
                } else {
                    self.carry_out(&uid, plan);
                }
            }
            self.commit();
        }
    }

    /// Has a record written with the next batch, and again with the one after when that fails: what was not stored is
    /// never answered as if it were.
    fn save(&mut self, row: Row) {
        self.pending.rows.insert(row);
    }

    fn write_rows(&mut self) {
        let mut batch = std::mem::replace(&mut self.batch, Batch::new());
        for row in &self.pending.rows {
            match row {
                Row::Pod(uid) => match self.pods.get(uid) {
                    Some(entry) => batch.put(&uid.0, &entry.record),
                    None => batch.delete::<PodRecord>(&uid.0),
                },
                Row::Object(key) => self.write_object(&mut batch, key),
                Row::Tokens(uid) => self.write_tokens(&mut batch, uid),
            }
        }
        self.batch = batch;
    }

    fn commit(&mut self) {
        self.write_rows();
        if self.batch.is_empty() {
            // Nothing to write, but perhaps somebody waits for an answer that needs no write.
            let pending = std::mem::take(&mut self.pending);
            self.release(pending);
            return;
        }
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        self.committing = Some(std::mem::take(&mut self.pending));
        let (store, outbox) = (self.store.clone(), self.outbox.clone());
        tokio::spawn(async move {
            let result = tokio::task::spawn_blocking(move || store.commit(batch)).await;
            let result = result.expect("a commit does not panic");
            // The engine outlives its commits; when it does not, the process is ending.
            if outbox.send(Message::Committed(result)).await.is_err() {
                warn!("the engine ended before its last commit was told");
            }
        });
    }

    fn committed(&mut self, result: Result<(), StoreError>) {
        let Some(pending) = self.committing.take() else { return };
        match result {
            Ok(()) => {
                self.retry_at = None;
                self.release(pending);
            }
            Err(error) => {
                error!(%error, "the store cannot be written: pods run on, changes wait until it can");
                let message = format!("pods run on, changes wait until the store can be written: {error}");
                self.events.node_warning("StoreWriteFailed", &message, self.board.now().wall);
                self.retry_at = Some(self.board.now().monotonic + COMMIT_RETRY);
                self.dirty.extend(pending.plans.into_iter().map(|(uid, _)| uid));
                self.pending.rows.extend(pending.rows);
                for answer in pending.answers {
                    let refusal = Refusal::unavailable(format!("not stored: {error}"));
                    let sent = match answer {
                        Answer::Applied(to, _) => to.send(Err(refusal)).is_ok(),
                        Answer::Deleted(to, _) => to.send(Err(refusal)).is_ok(),
                        Answer::ObjectDeleted(to) => to.send(Err(refusal)).is_ok(),
                    };
                    tracing::debug!(sent, "told an asker that the store failed");
                }
            }
        }
    }

    fn release(&mut self, pending: Pending) {
        for (uid, plan) in pending.plans {
            self.carry_out(&uid, plan);
        }
        for answer in pending.answers {
            let sent = match answer {
                Answer::Applied(to, applied) => to.send(Ok(applied)).is_ok(),
                Answer::Deleted(to, pod) => to.send(Ok(*pod)).is_ok(),
                Answer::ObjectDeleted(to) => to.send(Ok(())).is_ok(),
            };
            tracing::debug!(sent, "answered after the commit");
        }
    }

    /// Takes over a plan whose history is durable, and starts its actions.
    fn carry_out(&mut self, uid: &PodUid, plan: Plan) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        for event in plan.events {
            self.events.record(&entry.record.pod, &entry.record.source, &event, self.board.now().wall);
        }
        if plan.gone {
            return self.forget(uid);
        }
        let allocated = entry.history.allocated != plan.history.allocated;
        entry.history = plan.history;
        entry.grant();
        entry.wake = plan.wake;
        if entry.status != plan.status {
            entry.status = plan.status;
            self.resource_version += 1;
            entry.resource_version = self.resource_version;
            let change = Change { kind: ChangeKind::Modified, pod: entry.shown() };
            self.report(uid);
            self.tell(&change);
        }
        if allocated {
            self.retry_resizes();
        }
        let Some(entry) = self.pods.get_mut(uid) else { return };
        for action in plan.actions {
            let key = action.key();
            if entry.observed.in_flight.contains(&key) {
                continue;
            }
            entry.observed.in_flight.insert(key.clone());
            let (credentials, warning) = match &action {
                Action::PullImage { .. } => self.objects.for_pull(&entry.spec, &entry.record.source),
                _ => Default::default(),
            };
            if let Some(warning) = warning {
                self.events.record(&entry.record.pod, &entry.record.source, &warning, self.board.now().wall);
            }
            let task = perform::Task {
                board: self.board.clone(),
                spec: entry.granted.clone(),
                shim: entry.shim.clone(),
                ips: entry.ips(),
                credentials,
                objects: entry.objects.clone(),
                files: entry.files_wanted,
                inbox: self.outbox.clone(),
                running: entry
                    .observed
                    .instances
                    .iter()
                    .filter(|(_, i)| matches!(i.state, InstanceState::Running { .. }))
                    .map(|(id, _)| id.clone())
                    .collect(),
            };
            tokio::spawn(task.run(action, key));
        }
    }

    /// Tells the API server how a pod is.
    fn report(&self, uid: &PodUid) {
        if let (Some(reports), Some(entry)) = (&self.reports, self.pods.get(uid)) {
            reports.put(Report { pod: entry.shown(), source: entry.record.source.clone(), gone: false });
        }
    }

    fn forget(&mut self, uid: &PodUid) {
        let Some(entry) = self.pods.remove(uid) else { return };
        info!(namespace = entry.spec.namespace, name = entry.spec.name, uid = uid.0, "pod is gone");
        self.tell(&Change { kind: ChangeKind::Deleted, pod: entry.shown() });
        if let Some(reports) = &self.reports {
            reports.put(Report { pod: entry.shown(), source: entry.record.source.clone(), gone: true });
        }
        self.retry_resizes();
        for (other, waiting) in &mut self.pods {
            if waiting.blocked_by.as_ref() == Some(uid) {
                waiting.blocked_by = None;
                self.dirty.insert(other.clone());
            }
        }
        if entry.record.source == Source::Api {
            self.forget_unwanted();
            self.ask_for_objects();
        }
    }

    /// Gives memory back once a burst of work is over. Probes are no work: they would make every second a burst.
    fn rest(&mut self) {
        let busy =
            |entry: &Entry| !entry.observed.in_flight.iter().all(|key| matches!(key, ActionKey::Probe(_)));
        if self.worked && self.committing.is_none() && !self.pods.values().any(busy) {
            self.worked = false;
            coracle_runtime::give_memory_back();
        }
    }

    fn next_wake(&self) -> Duration {
        /// With nothing to do at all.
        const IDLE: Duration = Duration::from_secs(24 * 3600);
        let now = self.board.now().monotonic;
        let wakes = self.pods.values().filter(|e| e.blocked_by.is_none()).filter_map(|e| e.wake);
        let first = wakes.chain(self.retry_at).min();
        first.map_or(IDLE, |at| at.saturating_sub(now))
    }

    fn wake_due(&mut self) {
        let now = self.board.now().monotonic;
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        for (uid, entry) in &mut self.pods {
            if entry.wake.is_some_and(|at| at <= now) {
                entry.wake = None;
                self.dirty.insert(uid.clone());
            }
        }
    }
}

impl Entry {
    /// After another spec or another allocation. Files of the downward API may show resources.
    fn grant(&mut self) {
        let granted = resize::granted(&self.spec, &self.history);
        if resize::desired(&granted) != resize::desired(&self.granted) {
            self.files_wanted += 1;
            self.look_at_files();
        }
        self.granted = granted;
    }

    fn ips(&self) -> Vec<std::net::IpAddr> {
        match &self.observed.sandbox {
            Sandbox::Ready { ips, .. } => ips.clone(),
            Sandbox::Absent | Sandbox::Broken { .. } => Vec::new(),
        }
    }

    /// Nothing of it will run again.
    fn ended(&self) -> bool {
        has_ended(&self.status)
    }

    /// The pod as the API shows it.
    fn shown(&self) -> Pod {
        let mut pod = self.record.pod.clone();
        pod.metadata.resource_version = Some(self.resource_version.to_string());
        let annotation = match self.record.source {
            Source::Manifest(_) => "file",
            Source::Apply | Source::Api => "api",
        };
        let annotations = pod.metadata.annotations.get_or_insert_with(BTreeMap::new);
        annotations.insert("kubernetes.io/config.source".into(), annotation.into());
        pod.status = Some(self.status.clone());
        pod
    }

    fn needs_image(&self, image: &str) -> bool {
        self.spec.all_containers().any(|c| c.image == image)
    }

    fn set_image(&mut self, image: &str, state: ImageState) {
        if self.needs_image(image) {
            self.observed.images.insert(image.into(), state);
        }
    }
}

/// Whether its phase is a last one.
fn has_ended(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}
