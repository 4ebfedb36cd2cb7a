//! Watching a collection: list, then its changes from there, for ever.
//!
//! ```text
//!  list ─► All ─► watch from its version ─► Changed, Deleted … ─► ended: watch from the last version seen
//!   ▲                                                          └► 410, or an answer that makes no sense: list again
//!   └──────────────── wait (back-off with jitter) ◄── cannot be reached
//! ```
//! A consumer may rely on: `All` is the whole truth at a version; what follows is in order and without gaps.

use super::backoff::{Backoff, spread};
use super::client::{Client, ClientError};
use bytes::BytesMut;
use coracle_api::status::StatusError;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Of one line: an object of the API has at most 1.5 MiB, its managedFields included.
const LINE_BYTES_MAX: usize = 4 << 20;
/// A watch ends after this to twice this, as client-go's: then it is asked for again.
const WATCH: Duration = Duration::from_secs(300);
/// What the server may be late in ending one.
const LATE: Duration = Duration::from_secs(60);
/// A watch that says nothing and is over sooner is no watch.
const AT_ONCE: Duration = Duration::from_secs(1);

/// One line of a watch.
pub(crate) enum Event {
    /// `ADDED` or `MODIFIED`.
    Changed(Box<RawValue>),
    Deleted(Box<RawValue>),
    /// Nothing but a version.
    Bookmark(Box<RawValue>),
}

/// A watch under way.
pub(crate) struct Watch {
    body: Incoming,
    buffer: BytesMut,
    /// Of `buffer`, known to hold no end of a line.
    searched: usize,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: Box<RawValue>,
}

impl Watch {
    pub(super) fn of(body: Incoming) -> Watch {
        Watch { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next event; `None` when the server ended the watch. May be dropped and called again: nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return event(&line).map(Some);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ClientError::TooLarge(LINE_BYTES_MAX));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ClientError::Broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn event(line: &[u8]) -> Result<Event, ClientError> {
    let Line { kind, object } = serde_json::from_slice(line).map_err(ClientError::Malformed)?;
    Ok(match kind.as_str() {
        "ADDED" | "MODIFIED" => Event::Changed(object),
        "DELETED" => Event::Deleted(object),
        "BOOKMARK" => Event::Bookmark(object),
        _ => {
            let status: Status = serde_json::from_str(object.get()).map_err(ClientError::Malformed)?;
            return Err(StatusError::from(status).into());
        }
    })
}

/// What a consumer of [`follow`] hears.
#[derive(Debug)]
pub(crate) enum Delta<T> {
    /// Everything that is.
    All(Vec<T>),
    /// New, or changed.
    Changed(T),
    Deleted(T),
}

/// An object as far as [`follow`] looks into it.
#[derive(Deserialize)]
struct Head {
    metadata: ObjectMeta,
}

/// Tells `to` of a collection for ever: until nobody listens.
pub(crate) async fn follow<T, M>(
    client: Client,
    path: String,
    query: Vec<(&'static str, String)>,
    to: mpsc::Sender<M>,
    wrap: impl Fn(Delta<T>) -> M,
) where
    T: DeserializeOwned,
{
    let query: Vec<(&str, &str)> = query.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut follow = Follow { client: &client, path: &path, query: &query, version: None, heard: false };
    let mut backoff = Backoff::default();
    loop {
        let ended = follow.run(&to, &wrap).await;
        if std::mem::take(&mut follow.heard) {
            backoff.succeeded();
        }
        match ended {
            Ok(Ended::Unheard) => return,
            Ok(Ended::InTime) => continue,
            Ok(Ended::AtOnce) => tracing::info!(path, "the server ends a watch as soon as it has begun"),
            // From where we are: nothing is missed.
            Err(error @ (ClientError::Broken(_) | ClientError::Access(_) | ClientError::Timeout(_))) => {
                tracing::info!(path, %error, "a watch broke off; it is taken up again");
            }
            Err(error) => {
                tracing::warn!(path, %error, "a watch has failed; it starts anew");
                follow.version = None;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = to.closed() => return,
        }
    }
}

/// How a watch ended that did not fail.
enum Ended {
    /// As servers end watches, to be taken up again.
    InTime,
    /// Before anything was said: asked again at once it would be so for ever.
    AtOnce,
    /// Nobody listens any more.
    Unheard,
}

struct Follow<'a> {
    client: &'a Client,
    path: &'a str,
    query: &'a [(&'a str, &'a str)],
    /// Up to which all was told; `None` = to be listed.
    version: Option<String>,
    /// Something was, in this run.
    heard: bool,
}

impl Follow<'_> {
    /// Lists if need be, and watches once.
    async fn run<T: DeserializeOwned, M>(
        &mut self,
        to: &mpsc::Sender<M>,
        wrap: &impl Fn(Delta<T>) -> M,
    ) -> Result<Ended, ClientError> {
        if self.version.is_none() {
            let (items, version) = self.client.list::<T>(self.path, self.query).await?;
            self.version = Some(version);
            if to.send(wrap(Delta::All(items))).await.is_err() {
                return Ok(Ended::Unheard);
            }
        }
        let lasts = spread(WATCH);
        let version = self.version.as_deref().unwrap_or_default();
        let mut watch = self.client.watch(self.path, self.query, version, lasts.as_secs()).await?;
        let began = Instant::now();
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                () = tokio::time::sleep_until(began + lasts + LATE) => None,
                () = to.closed() => return Ok(Ended::Unheard),
            };
            let Some(event) = event else {
                let at_once = !self.heard && began.elapsed() < AT_ONCE;
                return Ok(if at_once { Ended::AtOnce } else { Ended::InTime });
            };
            let (Event::Changed(object) | Event::Deleted(object) | Event::Bookmark(object)) = &event;
            let head: Head = serde_json::from_str(object.get()).map_err(ClientError::Malformed)?;
            let parse =
                // Not from a str: one reader of Kubernetes' types is a tenth of the binary.
                |object: &RawValue| serde_json::from_slice(object.get().as_bytes()).map_err(ClientError::Malformed);
            let delta = match &event {
                Event::Changed(object) => Some(Delta::Changed(parse(object)?)),
                Event::Deleted(object) => Some(Delta::Deleted(parse(object)?)),
                Event::Bookmark(_) => None,
            };
            if let Some(delta) = delta
                && to.send(wrap(delta)).await.is_err()
            {
                return Ok(Ended::Unheard);
            }
            self.version = head.metadata.resource_version.or(self.version.take());
            self.heard = true;
        }
    }
}

#[cfg(test)]
#[path = "watch_test.rs"]
mod tests;
