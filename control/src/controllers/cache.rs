//! What all controllers know: every object, as the storage's one watch tells of it.
//!
//! ```text
//! storage ── list, then one watch of all keys ──► Follower ──► rows (values as stored, indexes)
//!                                                    └──► each controller's queue: the keys that the change concerns
//! ```
//! Invariants: a change is in the rows before any controller hears of it; positions never go back; a watch that is lost is
//! begun anew by a list, and what differs is told as if it had been watched, so no change is missed and none is queued
//! here. Values stay bytes, shared with the embedded storage; an object is read when somebody looks at it.
//!
//! Left out on purpose: a resync by the clock. A controller that waits for time says so.

use super::key::Key;
use crate::registry::{Registry, Resource};
use crate::storage::{Change as Written, Entry, ListQuery, Revision, StorageError, Watch};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Entries that one step of the first list reads.
const PAGE: usize = 500;
/// Between attempts to reach the storage again: it is not there, or it is.
const RETRY: Duration = Duration::from_secs(1);

/// What became of an object.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which.
    pub key: Key,
    /// Before; `None` when it is new.
    pub old: Option<Entry>,
    /// Now; `None` when it is gone.
    pub new: Option<Entry>,
}

impl Change {
    /// The object as it is, or as it was last.
    pub fn latest(&self) -> &Entry {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has one of both")
    }

    /// The object as it was last, if it is gone.
    pub fn gone(&self, cache: &Cache) -> Option<Arc<Value>> {
        self.new.is_none().then(|| cache.object(&self.key, self.latest())).flatten()
    }

    /// The object before and now, as far as it was there.
    pub fn states<'a>(&'a self, cache: &'a Cache) -> impl Iterator<Item = Arc<Value>> + 'a {
        [&self.old, &self.new].into_iter().flatten().filter_map(|entry| cache.object(&self.key, entry))
    }

    /// Whether it is of that kind.
    pub fn of(&self, resource: &'static Resource) -> bool {
        self.key.is(resource)
    }
}

/// What of an object the indexes need; the rest is skipped unread.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: HeadMeta,
    spec: HeadSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadMeta {
    uid: String,
    owner_references: Vec<Owner>,
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadSpec {
    node_name: String,
}

#[derive(Clone, Debug)]
struct Row {
    entry: Entry,
    uid: Box<str>,
    owners: Box<[Box<str>]>,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Of a pod.
    node: Box<str>,
}

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<Key, Row>,
    by_uid: HashMap<Box<str>, Key>,
    by_owner: HashMap<Box<str>, BTreeSet<Key>>,
    by_node: HashMap<Box<str>, BTreeSet<Key>>,
}

/// The objects. Shared: one follower writes, controllers read.
#[derive(Debug)]
pub struct Cache {
    registry: Registry,
    rows: RwLock<Rows>,
    position: watch::Sender<Revision>,
}

impl Cache {
    /// An empty one.
    pub fn new(registry: Registry) -> Cache {
        Cache { registry, rows: RwLock::default(), position: watch::Sender::new(Revision(0)) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        // A change is made whole while the lock is held.
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Value>> {
        let entry = self.read().rows.get(key).map(|row| row.entry.clone())?;
        self.object(key, &entry)
    }

    /// The object of an entry; `None` for what cannot be read, which is told of.
    pub fn object(&self, key: &Key, entry: &Entry) -> Option<Arc<Value>> {
        match self.registry.read(key.resource(), entry) {
            Ok(object) => Some(object),
            Err(error) => {
                tracing::error!(%key, %error, "a stored object cannot be read");
                None
            }
        }
    }

    /// The keys of a kind, in a namespace or in all.
    pub fn keys(&self, resource: &'static Resource, namespace: &str) -> Vec<Key> {
        self.entries(resource, namespace).into_iter().map(|(key, _)| key).collect()
    }

    fn entries(&self, resource: &'static Resource, namespace: &str) -> Vec<(Key, Entry)> {
        self.entries_where(resource, namespace, |_| true)
    }

    fn entries_where(
        &self,
        resource: &'static Resource,
        namespace: &str,
        wanted: impl Fn(&Row) -> bool,
    ) -> Vec<(Key, Entry)> {
        let prefix = resource.prefix(namespace);
        let first = Key::of(resource, namespace, "");
        let rows = self.read();
        rows.rows
            .range((Bound::Included(&first), Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(&prefix))
            .filter(|(_, row)| wanted(row))
            .map(|(key, row)| (key.clone(), row.entry.clone()))
            .collect()
    }

    /// The objects of a kind, in a namespace or in all.
    pub fn list(&self, resource: &'static Resource, namespace: &str) -> Vec<Arc<Value>> {
        self.objects(&self.entries(resource, namespace))
    }

    /// The objects of a kind in a namespace that have all these labels; the others are not read.
    pub fn labelled(
        &self,
        resource: &'static Resource,
        namespace: &str,
        labels: &Map<String, Value>,
    ) -> Vec<Arc<Value>> {
        let has = |row: &Row, key: &str, value: &Value| {
            row.labels.iter().any(|(mine, is)| **mine == *key && value.as_str() == Some(is))
        };
        let wanted = |row: &Row| labels.iter().all(|(key, value)| has(row, key, value));
        self.objects(&self.entries_where(resource, namespace, wanted))
    }

    /// What names an object of this uid as an owner.
    pub fn owned(&self, uid: &str) -> Vec<(Key, Arc<Value>)> {
        let entries = self.collect(|rows| rows.by_owner.get(uid));
        entries
            .into_iter()
            .filter_map(|(key, entry)| Some((key.clone(), self.object(&key, &entry)?)))
            .collect()
    }

    /// The keys of what names an object of this uid as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<Key> {
        self.read().by_owner.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Whether anything names an object of this uid as an owner.
    pub fn owns_any(&self, uid: &str) -> bool {
        self.read().by_owner.get(uid).is_some_and(|keys| !keys.is_empty())
    }

    /// The pods that have this node.
    pub fn pods_on(&self, node: &str) -> Vec<Arc<Value>> {
        self.objects(&self.collect(|rows| rows.by_node.get(node)))
    }

    /// The keys of the pods that have this node.
    pub fn pod_keys_on(&self, node: &str) -> Vec<Key> {
        self.read().by_node.get(node).into_iter().flatten().cloned().collect()
    }

    /// The nodes that pods name, whether or not they exist.
    pub fn nodes_with_pods(&self) -> Vec<String> {
        self.read().by_node.keys().map(ToString::to_string).collect()
    }

    /// The object of this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Key> {
        self.read().by_uid.get(uid).cloned()
    }

    fn collect(&self, keys: impl FnOnce(&Rows) -> Option<&BTreeSet<Key>>) -> Vec<(Key, Entry)> {
        let rows = self.read();
        let keys = keys(&rows).into_iter().flatten();
        keys.filter_map(|key| Some((key.clone(), rows.rows.get(key)?.entry.clone()))).collect()
    }

    fn objects(&self, entries: &[(Key, Entry)]) -> Vec<Arc<Value>> {
        entries.iter().filter_map(|(key, entry)| self.object(key, entry)).collect()
    }

    /// Waits until every write up to a revision is in the rows.
    pub async fn reached(&self, revision: Revision) {
        let mut position = self.position.subscribe();
        // The sender is here: it cannot be gone.
        if position.wait_for(|position| *position >= revision).await.is_err() {
            tracing::debug!("the cache is gone");
        }
    }

    /// Puts an entry, or its absence, into the rows; what it replaced.
    fn put(&self, key: &Key, entry: Option<&Entry>) -> Option<Entry> {
        let row = entry.map(|entry| Row::of(key, entry));
        let mut rows = self.write();
        let old = match row {
            Some(row) => {
                rows.index(key, &row);
                rows.rows.insert(key.clone(), row)
            }
            None => rows.rows.remove(key),
        };
        if let Some(old) = &old {
            rows.unindex(key, old);
        }
        old.map(|row| row.entry)
    }
}

impl Row {
    fn of(key: &Key, entry: &Entry) -> Row {
        let head: Head = serde_json::from_slice(&entry.value).unwrap_or_else(|error| {
            tracing::error!(%key, %error, "a stored object has no metadata");
            Head::default()
        });
        let owners = head.metadata.owner_references.into_iter().map(|owner| owner.uid.into());
        Row {
            entry: entry.clone(),
            uid: head.metadata.uid.into(),
            owners: owners.collect(),
            labels: head.metadata.labels.unwrap_or_default().into_iter().collect(),
            node: head.spec.node_name.into(),
        }
    }
}

impl Rows {
    fn index(&mut self, key: &Key, row: &Row) {
        self.by_uid.insert(row.uid.clone(), key.clone());
        for owner in &row.owners {
            self.by_owner.entry(owner.clone()).or_default().insert(key.clone());
        }
        if !row.node.is_empty() {
            self.by_node.entry(row.node.clone()).or_default().insert(key.clone());
        }
    }

    /// Takes out of the indexes what the row that is there now does not say any more.
    fn unindex(&mut self, key: &Key, old: &Row) {
        let new = self.rows.get(key);
        if new.is_none_or(|new| new.uid != old.uid) && self.by_uid.get(&old.uid) == Some(key) {
            self.by_uid.remove(&old.uid);
        }
        for owner in &old.owners {
            if !new.is_some_and(|new| new.owners.contains(owner)) {
                forget(&mut self.by_owner, owner, key);
            }
        }
        if !old.node.is_empty() && new.is_none_or(|new| new.node != old.node) {
            forget(&mut self.by_node, &old.node, key);
        }
    }
}

fn forget(index: &mut HashMap<Box<str>, BTreeSet<Key>>, value: &str, key: &Key) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
}

/// Told of each change, in order; never waits.
pub type Listener = Box<dyn Fn(&Change) + Send + Sync>;

/// Keeps the cache as the storage is, for ever; `listed` is told once all is there.
pub async fn follow(cache: Arc<Cache>, listeners: Vec<Listener>, listed: oneshot::Sender<()>) {
    let mut listed = Some(listed);
    loop {
        let error = match list(&cache, &listeners).await {
            Ok(watch) => {
                if let Some(listed) = listed.take()
                    && listed.send(()).is_err()
                {
                    return;
                }
                step(&cache, &listeners, watch).await
            }
            Err(error) => error,
        };
        match error {
            // Fallen behind: what was missed is found by the list.
            StorageError::Compacted { .. } => tracing::info!(%error, "the controllers list anew"),
            error => {
                tracing::warn!(%error, "the controllers do not see the storage");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn tell(cache: &Cache, listeners: &[Listener], key: &Arc<str>, new: Option<Entry>) {
    let Some(key) = Key::read(key) else { return };
    let old = cache.put(&key, new.as_ref());
    let same = old.as_ref().map(|entry| entry.modified) == new.as_ref().map(|entry| entry.modified);
    if same {
        return;
    }
    let change = Change { key, old, new };
    for listener in listeners {
        listener(&change);
    }
}

pub(super) async fn list(cache: &Cache, listeners: &[Listener]) -> Result<Watch, StorageError> {
    let storage = cache.registry.storage();
    let mut query = ListQuery { prefix: "/registry/".into(), limit: PAGE, ..ListQuery::default() };
    let mut gone: BTreeSet<Key> = cache.read().rows.keys().cloned().collect();
    let revision = loop {
        let page = storage.list(&query).await?;
        for entry in &page.entries {
            if let Some(key) = Key::read(&entry.key) {
                gone.remove(&key);
            }
            tell(cache, listeners, &entry.key, Some(entry.clone()));
        }
        query.at = Some(page.revision);
        query.after = page.entries.last().map(|entry| entry.key.to_string());
        if page.remaining == 0 || query.after.is_none() {
            break page.revision;
        }
    };
    for key in gone {
        tell(cache, listeners, &Arc::from(key.as_str()), None);
    }
    let watch = storage.watch("/", revision).await?;
    cache.position.send_modify(|position| *position = (*position).max(revision));
    Ok(watch)
}

/// Follows a watch to its end, which is an error.
async fn step(cache: &Cache, listeners: &[Listener], mut watch: Watch) -> StorageError {
    loop {
        if let Err(error) = take(cache, listeners, &mut watch).await {
            return error;
        }
    }
}

/// Takes in what comes next. Cancel-safe.
pub(super) async fn take(
    cache: &Cache,
    listeners: &[Listener],
    watch: &mut Watch,
) -> Result<(), StorageError> {
    let events = watch.next().await?;
    let mut last = Revision(0);
    for event in events {
        last = event.revision;
        let key = event.change.key().clone();
        let new = match event.change {
            Written::Created(entry) | Written::Updated { entry, .. } => Some(entry),
            Written::Deleted { .. } => None,
        };
        tell(cache, listeners, &key, new);
    }
    cache.position.send_modify(|position| *position = (*position).max(last));
    Ok(())
}
