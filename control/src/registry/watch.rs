//! Watches: what changes, in order, as one client with its selector sees it.
//!
//! ```text
//!               matched before   did not
//! matches now   MODIFIED         ADDED
//! does not      DELETED          –
//! ```
//! A watch is pulled: nothing is queued for it beyond one step of the storage's events. One that is not pulled falls behind
//! and ends with 410.

use super::options::{Start, WatchOptions};
use super::recent::Recent;
use super::selector::Selector;
use super::{Registry, Resource, Target, refused, stamp};
use crate::object;
use crate::storage::{Change, Entry, Event, ListQuery, Revision, StorageError, Watch};
use coracle_api::status::StatusError;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a quiet watch says where it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// One event of the stream.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// It is new, or new to the selector.
    Added(Arc<Value>),
    /// It changed.
    Modified(Arc<Value>),
    /// It is gone, or gone from the selector; as it was last.
    Deleted(Arc<Value>),
    /// Nothing but a version.
    Bookmark(Arc<Value>),
    /// The watch is over.
    Error(StatusError),
}

/// A watch under way.
#[derive(Debug)]
pub struct WatchStream {
    resource: &'static Resource,
    recent: Arc<Recent>,
    selector: Selector,
    /// What was there at the start.
    initial: VecDeque<Entry>,
    /// Said once `initial` is through.
    initial_end: Option<Revision>,
    events: VecDeque<Event>,
    state: State,
    bookmarks: bool,
    ends: Instant,
    next_bookmark: Instant,
}

#[derive(Debug)]
enum State {
    Watching(Watch),
    /// To be told, then over.
    Failed(StatusError),
    Over,
}

impl Registry {
    /// Watches a collection, or one object of it.
    ///
    /// # Errors
    /// What keeps it from starting; that a version is forgotten is told in the stream, as upstream does.
    pub async fn watch(&self, target: &Target, options: WatchOptions) -> Result<WatchStream, StatusError> {
        let resource = target.resource;
        let name = if target.name.is_empty() { options.selector.only_name() } else { Some(&*target.name) };
        let prefix = match name {
            // One key; others that start with it are no objects of this kind or are dropped by the selector.
            Some(name) if !resource.namespaced || !target.namespace.is_empty() => {
                resource.key(&target.namespace, name)
            }
            _ => resource.prefix(&target.namespace),
        };
        let list = matches!(options.start, Start::Now | Start::InitialEvents);
        let (initial, after) = match options.start {
            Start::Now | Start::InitialEvents => {
                let query = ListQuery { prefix: prefix.clone(), ..ListQuery::default() };
                let page = self.storage.list(&query).await.map_err(refused)?;
                (page.entries.into(), page.revision)
            }
            Start::Next => (VecDeque::new(), self.storage.revision().await.map_err(refused)?),
            Start::After(revision) => (VecDeque::new(), revision),
        };
        let state = match self.storage.watch(&prefix, after).await {
            Ok(watch) => State::Watching(watch),
            Err(error @ StorageError::Compacted { .. }) => State::Failed(over(error)),
            Err(error) => return Err(refused(error)),
        };
        let now = Instant::now();
        let mut selector = options.selector;
        if !target.name.is_empty() {
            selector.require_name(&target.name);
        }
        Ok(WatchStream {
            resource,
            recent: self.recent.clone(),
            selector,
            initial,
            initial_end: (list && options.start == Start::InitialEvents).then_some(after),
            events: VecDeque::new(),
            state,
            bookmarks: options.bookmarks,
            ends: now + options.timeout,
            next_bookmark: now + BOOKMARK_INTERVAL,
        })
    }
}

fn over(error: StorageError) -> StatusError {
    match error {
        StorageError::Compacted { asked, oldest } => {
            StatusError::expired(format!("too old resource version: {asked} ({oldest})"))
        }
        error => StatusError::internal(error),
    }
}

impl WatchStream {
    /// The next event; `None` when the watch is over.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        match &self.state {
            State::Watching(_) => {}
            State::Failed(error) => {
                let error = error.clone();
                return self.fail(error);
            }
            State::Over => return None,
        }
        let deadline = if self.bookmarks { self.ends.min(self.next_bookmark) } else { self.ends };
        match tokio::time::timeout_at(deadline, self.visible()).await {
            Ok(Ok(event)) => Some(event),
            Ok(Err(error)) => self.fail(error),
            Err(_) if Instant::now() < self.ends => {
                self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                let State::Watching(watch) = &self.state else { return None };
                Some(self.bookmark(watch.position(), false))
            }
            Err(_) => {
                self.state = State::Over;
                None
            }
        }
    }

    /// Waits for an event that this client sees. Those that it does not see cost no timer. Cancel-safe.
    async fn visible(&mut self) -> Result<WatchEvent, StatusError> {
        loop {
            if let Some(event) = self.ready()? {
                return Ok(event);
            }
            let State::Watching(watch) = &mut self.state else {
                return Err(StatusError::internal("the watch is over"));
            };
            self.events.extend(watch.next().await.map_err(over)?);
        }
    }

    fn fail(&mut self, error: StatusError) -> Option<WatchEvent> {
        self.state = State::Over;
        Some(WatchEvent::Error(error))
    }

    /// What can be said without waiting.
    fn ready(&mut self) -> Result<Option<WatchEvent>, StatusError> {
        while let Some(entry) = self.initial.pop_front() {
            if let Some(object) = self.wanted(&entry)? {
                return Ok(Some(WatchEvent::Added(object)));
            }
        }
        if let Some(revision) = self.initial_end.take() {
            return Ok(Some(self.bookmark(revision, true)));
        }
        while let Some(event) = self.events.pop_front() {
            if let Some(event) = self.seen(&event)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The object, if it is one that this client wants.
    fn wanted(&self, entry: &Entry) -> Result<Option<Arc<Value>>, StatusError> {
        if !self.selector.may_match(&entry.value) {
            return Ok(None);
        }
        let object = self.recent.object(self.resource, entry)?;
        Ok(self.selector.matches(&object).then_some(object))
    }

    /// The event as this client sees it.
    fn seen(&self, event: &Event) -> Result<Option<WatchEvent>, StatusError> {
        // What leaves the view is shown as it was, with the version of its leaving.
        let gone = |object: Arc<Value>| {
            let mut object = Arc::unwrap_or_clone(object);
            stamp(&mut object, event.revision);
            WatchEvent::Deleted(Arc::new(object))
        };
        Ok(match &event.change {
            Change::Created(entry) => self.wanted(entry)?.map(WatchEvent::Added),
            Change::Deleted { previous } => self.wanted(previous)?.map(gone),
            Change::Updated { entry, previous } => match self.wanted(entry)? {
                Some(now) if self.selector.is_empty() || self.wanted(previous)?.is_some() => {
                    Some(WatchEvent::Modified(now))
                }
                Some(now) => Some(WatchEvent::Added(now)),
                None => self.wanted(previous)?.map(gone),
            },
        })
    }

    fn bookmark(&self, revision: Revision, initial_end: bool) -> WatchEvent {
        let mut object = json!({
            "apiVersion": self.resource.api_version(),
            "kind": self.resource.kind,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object::set_meta(&mut object, "annotations", json!({"k8s.io/initial-events-end": "true"}));
        }
        WatchEvent::Bookmark(Arc::new(object))
    }
}

#[cfg(test)]
mod tests {
    use super::super::ServiceRange;
    use super::super::options::{Query, WriteOptions};
    use super::*;
    use crate::auth::Identity;
    use crate::kinds;
    use crate::storage::{Embedded, Storage};
    use coracle_api::decode::Document;

    /// On a clock that stands still until nothing else is to do.
    #[tokio::test(start_paused = true)]
    async fn a_quiet_watch_says_each_minute_how_far_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = Storage::Embedded(Embedded::open(dir.path()).expect("a store"));
        let services = ServiceRange::parse("10.96.0.0/16").expect("a range");
        let registry = Registry::new(storage, services, "");
        registry.bootstrap(6443).await.expect("a new cluster");
        let resource = kinds::find("", "v1", "configmaps").expect("in the table");
        let all = Target { resource, namespace: "default".into(), name: String::new() };
        let watch = async |query: &str| {
            let options = WatchOptions::parse(resource, &Query::parse(query)).expect("options");
            registry.watch(&all, options).await.expect("a watch")
        };
        let query = "labelSelector=none&timeoutSeconds=150";
        let mut told = watch(&format!("{query}&allowWatchBookmarks=true")).await;
        let mut untold = watch(query).await;
        let start = Instant::now();
        let at = |event: Option<WatchEvent>| match event {
            Some(WatchEvent::Bookmark(object)) => {
                assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
                assert!(object::at(&object, &["metadata", "annotations"]).is_null(), "{object}");
                let version = object::text(&object, &["metadata", "resourceVersion"]);
                version.parse::<u64>().expect("a version")
            }
            event => panic!("{event:?}"),
        };
        let first = at(told.next().await);
        assert_eq!(start.elapsed().as_secs(), 60);
        // What its selector hides moves it nevertheless.
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hidden", "namespace": "default"}});
        let document = Document { value: map, duplicates: Vec::new() };
        let who = Identity::apiserver();
        let made = registry.create(&who, &all, document, &WriteOptions::default()).await.expect("made");
        let version =
            object::text(&made.object, &["metadata", "resourceVersion"]).parse().expect("a version");
        let second = at(told.next().await);
        assert_eq!((start.elapsed().as_secs(), second), (120, version));
        assert!(first < second);
        assert!(told.next().await.is_none(), "its time is over");
        assert_eq!(start.elapsed().as_secs(), 150);
        assert!(untold.next().await.is_none(), "it did not ask for them");
    }
}
