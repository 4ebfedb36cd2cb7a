//! Events on their way to the API server.
//!
//! The engine hands each over without waiting; more than wait here are dropped, for an event is no state. The correlator
//! says which are told, and in what form.

use super::backoff::Backoff;
use super::client::{Client, ClientError};
use super::correlator::{Correlator, Outcome, Request};
use coracle_api::patch::PatchType;
use coracle_api::status::Reason;
use k8s_openapi::api::core::v1::Event;
use serde::de::IgnoredAny;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

/// Events that wait to be looked at (client-go: `maxQueuedEvents`).
const QUEUED_MAX: usize = 1000;

/// The two ends of the way.
pub(crate) fn queue() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
    mpsc::channel(QUEUED_MAX)
}

/// Tells of what comes, one by one, until nobody can send any more.
pub(crate) async fn run(client: Client, mut events: mpsc::Receiver<Event>) {
    let mut correlator = Correlator::default();
    let mut backoff = Backoff::default();
    let mut not_before = Instant::now();
    loop {
        while let Ok(event) = events.try_recv() {
            correlator.observe(event, Instant::now());
        }
        let next = if not_before <= Instant::now() { correlator.next() } else { None };
        if let Some((key, request)) = next {
            let outcome = outcome(tell(&client, request).await);
            correlator.done(key, outcome);
            if outcome == Outcome::Unreached {
                not_before = Instant::now() + backoff.next();
            } else {
                backoff.succeeded();
            }
            continue;
        }
        let held = not_before > Instant::now();
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => correlator.observe(event, Instant::now()),
                None => return,
            },
            () = tokio::time::sleep_until(not_before), if held => {}
        }
    }
}

async fn tell(client: &Client, request: Request) -> Result<IgnoredAny, ClientError> {
    match request {
        Request::Create { path, event } => client.create(&path, &event).await,
        Request::Patch { path, patch } => client.patch(&path, PatchType::StrategicMerge, &patch).await,
    }
}

fn outcome(answer: Result<IgnoredAny, ClientError>) -> Outcome {
    let Err(error) = answer else { return Outcome::Told };
    debug!(%error, "an event was not told");
    match error.reason() {
        Some(Reason::NotFound) => Outcome::Unknown,
        // Told before, by an agent whose answer got lost.
        Some(Reason::AlreadyExists) => Outcome::Told,
        Some(
            Reason::TooManyRequests | Reason::ServiceUnavailable | Reason::Timeout | Reason::ServerTimeout,
        ) => Outcome::Unreached,
        Some(_) => Outcome::Refused,
        None => Outcome::Unreached,
    }
}
