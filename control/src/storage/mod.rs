//! Where objects are kept: one ordered map of keys to bytes, with a revision that every write moves on by one.
//!
//! ```text
//! create / update(at) / delete(at) ──► revision r ──► durable ──► acknowledged, and only then seen by
//!                                                     get, list(at r), watch(after r) ──► events in order of revision
//! ```
//! Two back ends behave alike (`tests/storage.rs` runs one suite on both): [`embedded`], sled in this process, and
//! [`etcd`], shared by several control planes. The words are etcd's: a *revision* counts writes to the whole map, a
//! key's *modification revision* is that of its last write, *compaction* forgets what older revisions looked like.
//!
//! Invariants: what a caller was told is written survives SIGKILL and power loss, and no reader sees what is not yet
//! durable; a write names the revision that it replaces, or it is refused; a watch delivers every event after its
//! start once and in order, or ends in [`StorageError::Compacted`].
//!
//! Left out on purpose: transactions over several keys. An object of the API is one key.

mod embedded;
mod etcd;

pub use embedded::Embedded;
pub use etcd::{Etcd, EtcdOptions};

use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// Bytes of one value: upstream's bound for an object, which etcd enforces too.
pub const VALUE_BYTES_MAX: usize = coracle_store::VALUE_BYTES_MAX;
/// Writes that wait for the embedded store's thread; more wait at the sender.
const WRITES_QUEUED_MAX: usize = 1024;
/// Writes that share one fsync of the embedded store.
const WRITES_PER_COMMIT_MAX: usize = 256;
/// What the embedded store remembers of the past, for watches and for lists at older revisions.
const HISTORY_EVENTS_MAX: usize = 20_000;
const HISTORY_BYTES_MAX: usize = 24 << 20;
/// Events that one step of a watch hands out.
const EVENTS_PER_STEP_MAX: usize = 256;

/// A point in the history of all writes. 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key with its value. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `/registry/GROUP/RESOURCE/NAMESPACE/NAME`.
    pub key: Arc<str>,
    /// The bytes that were written.
    pub value: Bytes,
    /// The write that made the key.
    pub created: Revision,
    /// The write that gave it this value.
    pub modified: Revision,
}

/// Which keys, how many, and as of when.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Every key that starts so.
    pub prefix: String,
    /// Only keys behind this one.
    pub after: Option<String>,
    /// At most so many; 0 is all.
    pub limit: usize,
    /// As the map was at this revision; now when `None`.
    pub at: Option<Revision>,
}

/// Part of the map, in order of key.
#[derive(Clone, Debug)]
pub struct Page {
    /// At most [`ListQuery::limit`].
    pub entries: Vec<Entry>,
    /// When the map looked so.
    pub revision: Revision,
    /// How many keys of the prefix follow.
    pub remaining: usize,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of the write.
    pub revision: Revision,
    /// What it did.
    pub change: Change,
}

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key came into being.
    Created(Entry),
    /// Its value changed.
    Updated {
        /// Now.
        entry: Entry,
        /// Before.
        previous: Entry,
    },
    /// It is gone.
    Deleted {
        /// Before.
        previous: Entry,
    },
}

impl Change {
    /// The key that was written.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Change::Created(entry) | Change::Updated { entry, .. } => &entry.key,
            Change::Deleted { previous } => &previous.key,
        }
    }
}

/// A request that the storage does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The key is not as the writer believed; this is how it is.
    #[error("the key was written meanwhile")]
    Conflict(Option<Box<Entry>>),
    /// That far back is forgotten.
    #[error("revision {asked} is compacted; the oldest known is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// From here on all is known.
        oldest: Revision,
    },
    /// Nobody has written that much yet.
    #[error("revision {asked} is in the future; this is {current}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The last write.
        current: Revision,
    },
    /// Beyond [`VALUE_BYTES_MAX`].
    #[error("a value of {0} bytes is too large, at most {VALUE_BYTES_MAX} are kept")]
    TooLarge(usize),
    /// The disk or the network refused. Whether the write happened is open.
    #[error("storage does not answer: {0}")]
    Unavailable(String),
}

/// The storage. Cheap to clone; every clone is the same map.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In this process.
    Embedded(Embedded),
    /// In an etcd cluster.
    Etcd(Box<Etcd>),
}

impl Storage {
    /// One key as it is now.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        match self {
            Storage::Embedded(embedded) => Ok(embedded.get(key)),
            Storage::Etcd(etcd) => etcd.get(key).await,
        }
    }

    /// Part of the map.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] and [`StorageError::Future`] for a revision that is not known.
    pub async fn list(&self, query: &ListQuery) -> Result<Page, StorageError> {
        match self {
            Storage::Embedded(embedded) => embedded.list(query),
            Storage::Etcd(etcd) => etcd.list(query).await,
        }
    }

    /// Adds a key that is not there. Durable once this returns.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] with what is there.
    pub async fn create(&self, key: &str, value: Bytes) -> Result<Entry, StorageError> {
        self.write(key, Some(value), None).await
    }

    /// Replaces a value that was written at `expected`. Durable once this returns.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] with what is there instead.
    pub async fn update(&self, key: &str, value: Bytes, expected: Revision) -> Result<Entry, StorageError> {
        self.write(key, Some(value), Some(expected)).await
    }

    /// Removes a value that was written at `expected`; the answer has the revision of the removal. Durable once this returns.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] with what is there instead.
    pub async fn delete(&self, key: &str, expected: Revision) -> Result<Revision, StorageError> {
        self.write(key, None, Some(expected)).await.map(|entry| entry.modified)
    }

    async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<Revision>,
    ) -> Result<Entry, StorageError> {
        match &value {
            Some(value) if value.len() > VALUE_BYTES_MAX => return Err(StorageError::TooLarge(value.len())),
            _ => {}
        }
        #[cfg(test)]
        let fate = crate::simulated::fate();
        #[cfg(test)]
        if fate == crate::simulated::Fate::Refused {
            return Err(StorageError::Unavailable("a simulation says so".into()));
        }
        let written = match self {
            Storage::Embedded(embedded) => embedded.write(key, value, expected).await,
            Storage::Etcd(etcd) => etcd.write(key, value, expected).await,
        };
        #[cfg(test)]
        if fate == crate::simulated::Fate::Unheard {
            return Err(StorageError::Unavailable("a simulation says so".into()));
        }
        written
    }

    /// The revision of the last write.
    pub async fn revision(&self) -> Result<Revision, StorageError> {
        match self {
            Storage::Embedded(embedded) => Ok(embedded.revision()),
            Storage::Etcd(etcd) => etcd.revision().await,
        }
    }

    /// Forgets how the map looked before `revision`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] when it is forgotten already.
    pub async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        match self {
            Storage::Embedded(embedded) => embedded.compact(revision).await,
            Storage::Etcd(etcd) => etcd.compact(revision).await,
        }
    }

    /// Every write to keys that start with `prefix`, after the revision `after`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`], here or in the first step.
    pub async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError> {
        match self {
            Storage::Embedded(embedded) => embedded.watch(prefix, after).map(Watch::Embedded),
            Storage::Etcd(etcd) => etcd.watch(prefix, after).await.map(|watch| Watch::Etcd(Box::new(watch))),
        }
    }
}

/// A watch under way. Nothing is queued for it: a watch that is not asked falls behind and meets compaction.
#[derive(Debug)]
pub enum Watch {
    /// Of the embedded store.
    Embedded(embedded::Watch),
    /// Of etcd.
    Etcd(Box<etcd::Watch>),
}

impl Watch {
    /// The next events, at least one. Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] when it has fallen behind; the watch is over with any error.
    pub async fn next(&mut self) -> Result<Vec<Event>, StorageError> {
        match self {
            Watch::Embedded(watch) => watch.next().await,
            Watch::Etcd(watch) => watch.next().await,
        }
    }

    /// Every event up to here has been delivered: where another watch may go on.
    pub fn position(&self) -> Revision {
        match self {
            Watch::Embedded(watch) => watch.position(),
            Watch::Etcd(watch) => watch.position(),
        }
    }
}
