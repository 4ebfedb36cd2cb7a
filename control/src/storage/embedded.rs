//! The embedded back end: sled through `coracle-store`, for one control plane on one machine.
//!
//! ```text
//! writers ─► bounded queue ─► storage thread: check against memory + this group ─► one batch, one fsync
//!                                             └─► publish to memory and history ─► answer, wake the watches
//! readers ─► memory (what is durable, and nothing else)
//! ```
//! One thread owns the store and is the only writer of the memory. The map is held in memory whole: objects are small,
//! and reading them must not wait for the disk. The history is in memory only: after a restart its watches start anew,
//! which clients know as 410.
//!
//! A commit that fails leaves open whether the disk has its rows. Its keys stay in doubt until the next batch has
//! written them again as the memory has them, and its revisions are never used again.

use super::{
    Change, Entry, Event, HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX, ListQuery, Page, Revision, StorageError,
    WRITES_PER_COMMIT_MAX, WRITES_QUEUED_MAX,
};
use bytes::Bytes;
use coracle_store::{Batch, RawKind, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::{mpsc, oneshot, watch};

/// created (u64 LE) · modified (u64 LE) · value.
const OBJECT: RawKind = RawKind { name: "object", version: 1 };
const OBJECT_HEADER_BYTES: usize = 16;
/// Under [`REVISION_KEY`]: the last revision (u64 LE).
const COUNTER: RawKind = RawKind { name: "counter", version: 1 };
const REVISION_KEY: &str = "revision";
/// etcd's first revision, before any write.
const FIRST: Revision = Revision(1);

/// The embedded storage.
#[derive(Clone, Debug)]
pub struct Embedded {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    revisions: watch::Receiver<Revision>,
}

/// What the storage thread publishes and readers read. The lock is held for the length of a copy, never over an await.
#[derive(Debug)]
struct Shared(RwLock<Memory>);

#[derive(Debug)]
struct Memory {
    entries: BTreeMap<Arc<str>, Entry>,
    /// Every event after `compacted`, in order.
    history: VecDeque<Event>,
    history_bytes: usize,
    revision: Revision,
    /// The oldest revision that is still known.
    compacted: Revision,
}

#[derive(Debug)]
enum Command {
    Write {
        key: Arc<str>,
        /// `None` removes the key.
        value: Option<Bytes>,
        /// `None` when the key must not be there.
        expected: Option<Revision>,
        answer: oneshot::Sender<Result<Entry, StorageError>>,
    },
    Compact {
        revision: Revision,
        answer: oneshot::Sender<Result<(), StorageError>>,
    },
}

impl Embedded {
    /// Opens the store in `dir` and starts the thread that owns it; the thread ends with the last clone. Blocking.
    ///
    /// # Errors
    /// The store's.
    pub fn open(dir: &Path) -> Result<Embedded, StoreError> {
        let opened = Store::open(dir, None)?;
        if let Some(aside) = &opened.quarantined {
            tracing::error!(aside = %aside.display(), "the store was damaged: this control plane starts empty");
        }
        let store = opened.store;
        let memory = load(&store)?;
        let (revision_tx, revisions) = watch::channel(memory.revision);
        let shared = Arc::new(Shared(RwLock::new(memory)));
        let (commands, received) = mpsc::channel(WRITES_QUEUED_MAX);
        let writer =
            Writer { store, shared: shared.clone(), revisions: revision_tx, in_doubt: BTreeSet::new() };
        std::thread::Builder::new()
            .name("storage".into())
            .spawn(move || writer.run(received))
            .map_err(|source| StoreError::Io { path: dir.into(), source })?;
        Ok(Embedded { commands, shared, revisions })
    }

    pub(super) fn get(&self, key: &str) -> Option<Entry> {
        self.shared.read().entries.get(key).cloned()
    }

    pub(super) fn revision(&self) -> Revision {
        *self.revisions.borrow()
    }

    pub(super) fn list(&self, query: &ListQuery) -> Result<Page, StorageError> {
        self.shared.read().list(query)
    }

    pub(super) async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<Revision>,
    ) -> Result<Entry, StorageError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Write { key: key.into(), value, expected, answer }).await?;
        answered.await.map_err(|_| gone())?
    }

    pub(super) async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Compact { revision, answer }).await?;
        answered.await.map_err(|_| gone())?
    }

    async fn send(&self, command: Command) -> Result<(), StorageError> {
        self.commands.send(command).await.map_err(|_| gone())
    }

    pub(super) fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError> {
        self.shared.read().known(after)?;
        Ok(Watch {
            shared: self.shared.clone(),
            revisions: self.revisions.clone(),
            prefix: prefix.into(),
            position: after,
        })
    }
}

fn gone() -> StorageError {
    StorageError::Unavailable("the storage thread has ended".into())
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        // A publication that panicked half-way is a bug of ours; readers still get whole entries.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Memory> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(store: &Store) -> Result<Memory, StoreError> {
    let mut revision = FIRST;
    let mut damaged = store.each_raw(COUNTER, |_, bytes| {
        if let Ok(bytes) = bytes.try_into() {
            revision = revision.max(Revision(u64::from_le_bytes(bytes)));
        }
    })?;
    let mut entries = BTreeMap::new();
    let mut short = Vec::new();
    damaged.extend(store.each_raw(OBJECT, |key, bytes| {
        let Some((created, rest)) = split_u64(bytes) else { return short.push(key.to_string()) };
        let Some((modified, value)) = split_u64(rest) else { return short.push(key.to_string()) };
        let key: Arc<str> = key.into();
        let value = Bytes::copy_from_slice(value);
        entries.insert(key.clone(), Entry { key, value, created, modified });
    })?);
    for key in damaged.iter().chain(&short) {
        tracing::error!(key, "a stored object is damaged and is left out");
    }
    revision = entries.values().map(|e| e.modified).fold(revision, Revision::max);
    Ok(Memory { entries, history: VecDeque::new(), history_bytes: 0, revision, compacted: revision })
}

fn split_u64(bytes: &[u8]) -> Option<(Revision, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((Revision(u64::from_le_bytes(*number)), rest))
}

fn row(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OBJECT_HEADER_BYTES + entry.value.len());
    bytes.extend_from_slice(&entry.created.0.to_le_bytes());
    bytes.extend_from_slice(&entry.modified.0.to_le_bytes());
    bytes.extend_from_slice(&entry.value);
    bytes
}

impl Memory {
    fn known(&self, asked: Revision) -> Result<(), StorageError> {
        if asked > self.revision {
            return Err(StorageError::Future { asked, current: self.revision });
        }
        if asked < self.compacted {
            return Err(StorageError::Compacted { asked, oldest: self.compacted });
        }
        Ok(())
    }

    fn list(&self, query: &ListQuery) -> Result<Page, StorageError> {
        let revision = query.at.unwrap_or(self.revision);
        self.known(revision)?;
        let start = match &query.after {
            Some(after) => Bound::Excluded(after.as_str()),
            None => Bound::Included(query.prefix.as_str()),
        };
        let now = self
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&query.prefix));
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        if revision == self.revision {
            let mut rest = now.map(|(_, entry)| entry);
            let entries: Vec<Entry> = rest.by_ref().take(limit).cloned().collect();
            return Ok(Page { entries, revision, remaining: rest.count() });
        }
        // What was written since is undone, the last write first.
        let mut then: BTreeMap<&str, &Entry> = now.map(|(key, entry)| (&**key, entry)).collect();
        let wanted = |key: &str| {
            key.starts_with(&query.prefix) && query.after.as_ref().is_none_or(|after| key > after.as_str())
        };
        for event in self.history.iter().rev().take_while(|event| event.revision > revision) {
            match &event.change {
                change if !wanted(change.key()) => {}
                Change::Created(entry) => {
                    then.remove(&*entry.key);
                }
                Change::Updated { previous, .. } | Change::Deleted { previous } => {
                    then.insert(&previous.key, previous);
                }
            }
        }
        let remaining = then.len().saturating_sub(limit);
        Ok(Page { entries: then.into_values().take(limit).cloned().collect(), revision, remaining })
    }

    fn publish(&mut self, event: Event) {
        self.revision = event.revision;
        match &event.change {
            Change::Created(entry) | Change::Updated { entry, .. } => {
                self.entries.insert(entry.key.clone(), entry.clone());
            }
            Change::Deleted { previous } => {
                self.entries.remove(&previous.key);
            }
        }
        self.history_bytes += cost(&event);
        self.history.push_back(event);
        while self.history.len() > HISTORY_EVENTS_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(event) = self.history.pop_front() {
            self.history_bytes -= cost(&event);
            self.compacted = event.revision;
        }
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StorageError> {
        if revision <= self.compacted {
            return Err(StorageError::Compacted { asked: revision, oldest: self.compacted });
        }
        self.known(revision)?;
        while self.history.front().is_some_and(|event| event.revision <= revision) {
            self.forget_oldest();
        }
        self.compacted = revision;
        Ok(())
    }
}

/// What an event keeps alive besides the map's own entries.
fn cost(event: &Event) -> usize {
    size_of::<Event>()
        + match &event.change {
            Change::Created(entry) => entry.value.len(),
            Change::Updated { entry, previous } => entry.value.len() + previous.value.len(),
            Change::Deleted { previous } => previous.value.len(),
        }
}

/// The thread that owns the store.
struct Writer {
    store: Store,
    shared: Arc<Shared>,
    revisions: watch::Sender<Revision>,
    /// Keys that a failed commit may or may not have written.
    in_doubt: BTreeSet<Arc<str>>,
}

/// A write that is checked, waiting for the commit of its group.
struct Accepted {
    event: Event,
    answer: oneshot::Sender<Result<Entry, StorageError>>,
}

impl Writer {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        // Revisions that a failed commit may have used are left out, so the counter is the thread's own.
        let mut revision = self.shared.read().revision;
        while let Some(first) = commands.blocking_recv() {
            let mut group = vec![first];
            while group.len() < WRITES_PER_COMMIT_MAX
                && let Ok(next) = commands.try_recv()
            {
                group.push(next);
            }
            revision = self.commit(group, revision);
        }
    }

    /// Checks, stores, publishes and answers a group; the last revision that was used.
    fn commit(&mut self, group: Vec<Command>, mut revision: Revision) -> Revision {
        let mut pending: BTreeMap<Arc<str>, Option<Entry>> = BTreeMap::new();
        let mut accepted = Vec::new();
        for command in group {
            let (key, value, expected, answer) = match command {
                Command::Write { key, value, expected, answer } => (key, value, expected, answer),
                Command::Compact { revision, answer } => {
                    let done = self.shared.write().compact(revision);
                    self.reply(answer, done);
                    continue;
                }
            };
            let current = match pending.get(&key) {
                Some(entry) => entry.clone(),
                None => self.shared.read().entries.get(&key).cloned(),
            };
            if current.as_ref().map(|entry| entry.modified) != expected {
                self.reply(answer, Err(StorageError::Conflict(current.map(Box::new))));
                continue;
            }
            revision = Revision(revision.0 + 1);
            let created = current.as_ref().map_or(revision, |entry| entry.created);
            let entry = value.map(|value| Entry { key: key.clone(), value, created, modified: revision });
            let change = match (entry.clone(), current) {
                (Some(entry), None) => Change::Created(entry),
                (Some(entry), Some(previous)) => Change::Updated { entry, previous },
                (None, Some(previous)) => Change::Deleted { previous },
                // Nothing is there, and nothing is to be: a removal without an expected revision is not asked for.
                (None, None) => {
                    self.reply(answer, Err(StorageError::Conflict(None)));
                    continue;
                }
            };
            pending.insert(key, entry);
            accepted.push(Accepted { event: Event { revision, change }, answer });
        }
        if accepted.is_empty() {
            return revision;
        }
        match self.store.commit(self.batch(&pending, revision)) {
            Ok(()) => {
                self.in_doubt.clear();
                self.publish(accepted);
            }
            Err(error) => {
                self.in_doubt.extend(pending.into_keys());
                for Accepted { answer, .. } in accepted {
                    self.reply(answer, Err(StorageError::Unavailable(error.to_string())));
                }
            }
        }
        revision
    }

    fn batch(&self, pending: &BTreeMap<Arc<str>, Option<Entry>>, revision: Revision) -> Batch {
        let mut batch = Batch::new();
        let mut put = |key: &Arc<str>, entry: Option<&Entry>| match entry {
            Some(entry) => batch.put_raw(OBJECT, key, &row(entry)),
            None => batch.delete_raw(OBJECT, key),
        };
        let memory = self.shared.read();
        for key in self.in_doubt.iter().filter(|key| !pending.contains_key(*key)) {
            put(key, memory.entries.get(key));
        }
        for (key, entry) in pending {
            put(key, entry.as_ref());
        }
        batch.put_raw(COUNTER, REVISION_KEY, &revision.0.to_le_bytes());
        batch
    }

    fn publish(&self, accepted: Vec<Accepted>) {
        let mut answers = Vec::with_capacity(accepted.len());
        let mut memory = self.shared.write();
        for Accepted { event, answer } in accepted {
            let entry = match &event.change {
                Change::Created(entry) | Change::Updated { entry, .. } => entry.clone(),
                Change::Deleted { previous } => Entry { modified: event.revision, ..previous.clone() },
            };
            memory.publish(event);
            answers.push((answer, entry));
        }
        let revision = memory.revision;
        drop(memory);
        self.revisions.send_replace(revision);
        for (answer, entry) in answers {
            self.reply(answer, Ok(entry));
        }
    }

    fn reply<T>(&self, answer: oneshot::Sender<Result<T, StorageError>>, result: Result<T, StorageError>) {
        if answer.send(result).is_err() {
            tracing::debug!("a writer went away before its answer");
        }
    }
}

/// A watch: a cursor in the history.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    revisions: watch::Receiver<Revision>,
    prefix: String,
    position: Revision,
}

impl Watch {
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, StorageError> {
        loop {
            // Seen before looking, so that what is published meanwhile wakes us.
            self.revisions.borrow_and_update();
            let events = self.look()?;
            if !events.is_empty() {
                return Ok(events);
            }
            self.revisions.changed().await.map_err(|_| gone())?;
        }
    }

    fn look(&mut self) -> Result<Vec<Event>, StorageError> {
        let memory = self.shared.read();
        memory.known(self.position)?;
        let start = memory.history.partition_point(|event| event.revision <= self.position);
        let mut events = Vec::new();
        for event in memory.history.range(start..) {
            self.position = event.revision;
            if event.change.key().starts_with(&self.prefix) {
                events.push(event.clone());
                if events.len() == super::EVENTS_PER_STEP_MAX {
                    return Ok(events);
                }
            }
        }
        self.position = memory.revision;
        Ok(events)
    }

    pub(super) fn position(&self) -> Revision {
        self.position
    }
}
