//! The etcd back end: several control planes on one cluster.
//!
//! Keys, revisions, compaction and watches are etcd's own; a write is one transaction that compares the key's
//! modification revision. A watch keeps one gRPC stream; when the stream breaks, the watch ends in
//! [`StorageError::Unavailable`] and its client starts again from where it was.
//!
//! Left out on purpose: etcd's progress notifications. Before 3.4.31 and 3.5.13 they could run ahead of events that were
//! still on their way, so a watch's position moves with its events only.

use super::{Change, Entry, Event, ListQuery, Page, Revision, StorageError};
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, KeyValue, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchStream,
};
use std::sync::Arc;
use std::time::Duration;

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// A silent cluster is noticed within the sum of both.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);

/// Where the cluster is.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// `http://HOST:PORT`, one or more.
    pub endpoints: Vec<String>,
}

/// The etcd storage.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    /// Watches live longer than [`REQUEST`].
    watches: Client,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`].
    pub async fn connect(options: &EtcdOptions) -> Result<Etcd, StorageError> {
        let base = ConnectOptions::new()
            .with_connect_timeout(REQUEST)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_ANSWER)
            .with_keep_alive_while_idle(true);
        let requests = base.clone().with_timeout(REQUEST);
        let client = Client::connect(&options.endpoints, Some(requests)).await.map_err(unavailable)?;
        let watches = Client::connect(&options.endpoints, Some(base)).await.map_err(unavailable)?;
        Ok(Etcd { client, watches })
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Entry>, StorageError> {
        let answer = self.client.kv_client().get(key, None).await.map_err(unavailable)?;
        answer.kvs().first().map(entry).transpose()
    }

    pub(super) async fn revision(&self) -> Result<Revision, StorageError> {
        let options = GetOptions::new().with_count_only();
        let answer = self.client.kv_client().get("\0", Some(options)).await.map_err(unavailable)?;
        header_revision(answer.header())
    }

    pub(super) async fn list(&self, query: &ListQuery) -> Result<Page, StorageError> {
        let start = match &query.after {
            // The key right behind it.
            Some(after) => format!("{after}\0"),
            None => query.prefix.clone(),
        };
        let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
        let at = query.at.map_or(0, signed);
        let options =
            GetOptions::new().with_range(range_end(&query.prefix)).with_limit(limit).with_revision(at);
        let answer = self.client.kv_client().get(start, Some(options)).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(self.translate(error, query.at.unwrap_or_default()).await),
        };
        let entries: Vec<Entry> = answer.kvs().iter().map(entry).collect::<Result<_, _>>()?;
        let total = usize::try_from(answer.count()).unwrap_or(entries.len());
        Ok(Page {
            revision: match query.at {
                Some(revision) => revision,
                None => header_revision(answer.header())?,
            },
            remaining: total.saturating_sub(entries.len()),
            entries,
        })
    }

    pub(super) async fn write(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: Option<Revision>,
    ) -> Result<Entry, StorageError> {
        let compare = match expected {
            Some(revision) => Compare::mod_revision(key, CompareOp::Equal, signed(revision)),
            None => Compare::create_revision(key, CompareOp::Equal, 0),
        };
        let write = match &value {
            Some(value) => TxnOp::put(key, value.to_vec(), None),
            None => TxnOp::delete(key, None),
        };
        // What is there is read on both sides: its creation revision is the entry's, or it is the conflict.
        let read = TxnOp::get(key, None);
        let txn = Txn::new().when([compare]).and_then([read.clone(), write]).or_else([read]);
        let answer = self.client.kv_client().txn(txn).await.map_err(unavailable)?;
        let current = match answer.op_responses().first() {
            Some(TxnOpResponse::Get(read)) => read.kvs().first().map(entry).transpose()?,
            _ => None,
        };
        if !answer.succeeded() {
            return Err(StorageError::Conflict(current.map(Box::new)));
        }
        let modified = header_revision(answer.header())?;
        Ok(Entry {
            key: key.into(),
            created: current.as_ref().map_or(modified, |entry| entry.created),
            value: value.or(current.map(|entry| entry.value)).unwrap_or_default(),
            modified,
        })
    }

    pub(super) async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        match self.client.kv_client().compact(signed(revision), None).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.translate(error, revision).await),
        }
    }

    pub(super) async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError> {
        let current = self.revision().await?;
        if after > current {
            return Err(StorageError::Future { asked: after, current });
        }
        let options = WatchOptions::new()
            .with_range(range_end(prefix))
            .with_start_revision(signed(after).saturating_add(1))
            .with_prev_key();
        let stream = self.watches.watch_client().watch(prefix, Some(options)).await.map_err(unavailable)?;
        Ok(Watch { stream, position: after })
    }

    /// etcd tells both ends of its history by one code, `OUT_OF_RANGE`.
    async fn translate(&self, error: Error, asked: Revision) -> StorageError {
        match &error {
            Error::GRpcStatus(status) if status.message().contains("compacted") => {
                StorageError::Compacted { asked, oldest: Revision(asked.0.saturating_add(1)) }
            }
            Error::GRpcStatus(status) if status.message().contains("future revision") => {
                match self.revision().await {
                    Ok(current) => StorageError::Future { asked, current },
                    Err(error) => error,
                }
            }
            _ => unavailable(error),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is the last step of map_err")]
fn unavailable(error: Error) -> StorageError {
    StorageError::Unavailable(format!("etcd: {error}"))
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or_default())
}

fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Result<Revision, StorageError> {
    let header = header.ok_or_else(|| StorageError::Unavailable("etcd: an answer without header".into()))?;
    Ok(unsigned(header.revision()))
}

/// The first key behind all those that start with `prefix`.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Every key.
    vec![0]
}

fn entry(kv: &KeyValue) -> Result<Entry, StorageError> {
    let key = kv.key_str().map_err(unavailable)?;
    Ok(Entry {
        key: Arc::from(key),
        value: Bytes::copy_from_slice(kv.value()),
        created: unsigned(kv.create_revision()),
        modified: unsigned(kv.mod_revision()),
    })
}

/// A watch: one stream of its own.
pub struct Watch {
    stream: WatchStream,
    position: Revision,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Watch {
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, StorageError> {
        loop {
            let Some(message) = self.stream.message().await.map_err(unavailable)? else {
                return Err(StorageError::Unavailable("etcd: the watch was closed".into()));
            };
            if message.compact_revision() > 0 {
                let oldest = unsigned(message.compact_revision());
                return Err(StorageError::Compacted { asked: self.position, oldest });
            }
            if message.canceled() {
                return Err(StorageError::Unavailable(format!("etcd: {}", message.cancel_reason())));
            }
            let events: Vec<Event> =
                message.events().iter().map(event).collect::<Result<_, StorageError>>()?;
            if let Some(last) = events.last() {
                self.position = last.revision;
                return Ok(events);
            }
        }
    }

    pub(super) fn position(&self) -> Revision {
        self.position
    }
}

fn event(event: &etcd_client::Event) -> Result<Event, StorageError> {
    let strange = || StorageError::Unavailable("etcd: an event without its key".into());
    let kv = event.kv().ok_or_else(strange)?;
    let revision = unsigned(kv.mod_revision());
    let previous = event.prev_kv().map(entry).transpose()?;
    let change = match (event.event_type(), previous) {
        (EventType::Put, None) if kv.create_revision() == kv.mod_revision() => Change::Created(entry(kv)?),
        (EventType::Put, Some(previous)) => Change::Updated { entry: entry(kv)?, previous },
        (EventType::Delete, Some(previous)) => Change::Deleted { previous },
        // The previous value is compacted away: the watch cannot say what is gone.
        (EventType::Put | EventType::Delete, None) => {
            return Err(StorageError::Compacted { asked: revision, oldest: revision });
        }
    };
    Ok(Event { revision, change })
}
