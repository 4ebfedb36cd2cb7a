//! What controllers tell users: `v1.Event`s, written behind their backs.
//!
//! ```text
//! say ──► bounded queue (a full one loses the event) ──► the same again? count it : write a new one
//! ```
//! Bounds as upstream's correlator: an object may be told of [`BURST`] times, then once in [`REFILL`].

use crate::auth::Identity;
use crate::object;
use crate::registry::options::WriteOptions;
use crate::registry::{Registry, Target};
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events that wait to be written; more are lost.
const QUEUED_MAX: usize = 1024;
/// Events that are remembered, so that they are counted when they come again; and objects whose events are limited.
const REMEMBERED_MAX: usize = 4096;
/// Bytes of a message, as upstream.
const MESSAGE_BYTES_MAX: usize = 1024;
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// Whether something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is not.
    Normal,
    /// It may be.
    Warning,
}

#[derive(Debug)]
struct Said {
    /// What it is about: a reference.
    about: Value,
    component: &'static str,
    kind: Kind,
    reason: Cow<'static, str>,
    message: String,
}

/// Says events in the name of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    component: &'static str,
    queue: mpsc::Sender<Said>,
}

impl Recorder {
    /// The same for another component.
    pub fn named(&self, component: &'static str) -> Recorder {
        Recorder { component, queue: self.queue.clone() }
    }

    /// Says something about an object. Never waits.
    pub fn say(
        &self,
        about: &Value,
        kind: Kind,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) {
        let (mut message, reason) = (message.into(), reason.into());
        if message.len() > MESSAGE_BYTES_MAX {
            let end = (0..=MESSAGE_BYTES_MAX).rev().find(|end| message.is_char_boundary(*end));
            message.truncate(end.unwrap_or_default());
        }
        let said = Said { about: reference(about), component: self.component, kind, reason, message };
        if let Err(error) = self.queue.try_send(said) {
            tracing::debug!(%error, "an event is lost");
        }
    }
}

/// A `v1.ObjectReference`.
pub fn reference(object: &Value) -> Value {
    let mut reference = serde_json::Map::new();
    for (key, value) in [
        ("apiVersion", object::text(object, &["apiVersion"])),
        ("kind", object::text(object, &["kind"])),
        ("name", object::name(object)),
        ("namespace", object::namespace(object)),
        ("resourceVersion", object::text(object, &["metadata", "resourceVersion"])),
        ("uid", object::uid(object)),
    ] {
        if !value.is_empty() {
            reference.insert(key.into(), value.into());
        }
    }
    reference.into()
}

/// A recorder, and the work behind it, which runs until all recorders are gone.
pub fn recorder(registry: Registry) -> (Recorder, impl Future<Output = ()> + Send) {
    let who = Identity::component("system:kube-controller-manager");
    let (queue, said) = mpsc::channel(QUEUED_MAX);
    let writer =
        Writer { registry, who, seen: BTreeMap::new(), order: VecDeque::new(), limits: BTreeMap::new() };
    (Recorder { component: super::client::MANAGER, queue }, writer.run(said))
}

/// What makes two events the same.
type Same = (String, Cow<'static, str>, String);

struct Seen {
    target: Target,
    count: i64,
}

struct Writer {
    registry: Registry,
    who: Identity,
    seen: BTreeMap<Same, Seen>,
    /// The oldest first.
    order: VecDeque<Same>,
    /// Per object: events left, and when that was.
    limits: BTreeMap<String, (u32, Instant)>,
}

impl Writer {
    async fn run(mut self, mut said: mpsc::Receiver<Said>) {
        while let Some(said) = said.recv().await {
            if !self.allows(object::text(&said.about, &["uid"])) {
                continue;
            }
            match self.write(said).await {
                Ok(()) => {}
                // Its namespace is on its way out, or gone.
                Err(error) if matches!(error.reason, Reason::Forbidden | Reason::NotFound) => {
                    tracing::debug!(%error, "an event is not written");
                }
                Err(error) => tracing::warn!(%error, "an event is not written"),
            }
        }
    }

    fn allows(&mut self, uid: &str) -> bool {
        let now = Instant::now();
        if self.limits.len() >= REMEMBERED_MAX {
            self.limits.retain(|_, (_, since)| since.elapsed() < REFILL);
            if self.limits.len() >= REMEMBERED_MAX {
                self.limits.clear();
            }
        }
        let (left, since) = self.limits.entry(uid.to_string()).or_insert((BURST, now));
        let refilled = u32::try_from(since.elapsed().as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if refilled > 0 {
            *left = left.saturating_add(refilled).min(BURST);
            *since = now;
        }
        let allowed = *left > 0;
        *left = left.saturating_sub(1);
        allowed
    }

    async fn write(&mut self, said: Said) -> Result<(), StatusError> {
        let now = crate::clock::now();
        let seconds = crate::clock::stamp(now);
        let options = WriteOptions { manager: super::client::MANAGER.into(), ..WriteOptions::default() };
        let subject = format!(
            "{}/{}/{}",
            object::text(&said.about, &["uid"]),
            object::text(&said.about, &["name"]),
            said.component
        );
        let same = (subject, said.reason.clone(), said.message.clone());
        if let Some(seen) = self.seen.get_mut(&same) {
            let patch = json!({"count": seen.count + 1, "lastTimestamp": seconds});
            let patch = (PatchType::Merge, Document { value: patch, duplicates: Vec::new() });
            match self.registry.patch(&self.who, &seen.target, None, patch, &options).await {
                Ok(_) => {
                    seen.count += 1;
                    return Ok(());
                }
                // It has aged away: written anew below.
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let about = object::text(&said.about, &["namespace"]);
        let namespace = if about.is_empty() { "default" } else { about };
        // As upstream: unique, and near its object in a list.
        let name = format!("{}.{:x}", object::text(&said.about, &["name"]), now.as_nanosecond());
        let event = json!({
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": said.about,
            "type": if said.kind == Kind::Normal { "Normal" } else { "Warning" },
            "reason": said.reason,
            "message": said.message,
            "count": 1,
            "firstTimestamp": seconds,
            "lastTimestamp": seconds,
            "source": {"component": said.component},
            "reportingComponent": said.component,
        });
        let resource = *super::kinds::EVENTS;
        let target = Target { resource, namespace: namespace.into(), name: String::new() };
        let document = Document { value: event, duplicates: Vec::new() };
        self.registry.create(&self.who, &target, document, &options).await?;
        if self.seen.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        let seen = Seen { target: Target { name, ..target }, count: 1 };
        if self.seen.insert(same.clone(), seen).is_none() {
            self.order.push_back(same);
        }
        Ok(())
    }
}
