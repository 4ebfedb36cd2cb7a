//! What is deleted when it is old: events after an hour, jobs `ttlSecondsAfterFinished` after their end.
//!
//! The clock is the control plane's, never a board's.

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{EVENTS, JOBS};
use crate::object::{at, is_terminating, items, text, uid};
use crate::registry::options::Propagation;
use coracle_api::status::StatusError;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::time::Duration;

/// The controller.
pub struct TimeToLive {
    client: Client,
    events: Duration,
}

impl TimeToLive {
    /// With the life of events.
    pub fn new(client: Client, events: Duration) -> TimeToLive {
        TimeToLive { client, events }
    }
}

/// An event's life counts from its last write, by the clock of the server that took it: writers' clocks may be anything.
fn event_ends(event: &Value, life: Duration) -> Option<Timestamp> {
    let written = items(event, &["metadata", "managedFields"]).iter().map(|entry| text(entry, &["time"]));
    let times = written.chain([text(event, &["metadata", "creationTimestamp"])]);
    let last = times.filter_map(|time| time.parse::<Timestamp>().ok()).max()?;
    last.checked_add(SignedDuration::try_from(life).ok()?).ok()
}

/// When a finished job is to go.
fn job_ends(job: &Value) -> Option<Timestamp> {
    let life = at(job, &["spec", "ttlSecondsAfterFinished"]).as_i64()?;
    let finished = items(job, &["status", "conditions"]).iter().find(|condition| {
        matches!(text(condition, &["type"]), "Complete" | "Failed") && text(condition, &["status"]) == "True"
    })?;
    let at: Timestamp = text(finished, &["lastTransitionTime"]).parse().ok()?;
    at.checked_add(SignedDuration::from_secs(life)).ok()
}

impl Controller for TimeToLive {
    const NAME: &'static str = "ttl";

    fn concerns(&self, change: &Change, _: &Cache) -> Vec<Key> {
        let ages = change.of(*EVENTS) || change.of(*JOBS);
        if ages && change.new.is_some() { vec![change.key.clone()] } else { Vec::new() }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(object) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let (ends, propagation) = if key.is(*EVENTS) {
            (event_ends(&object, self.events), None)
        } else {
            (job_ends(&object), Some(Propagation::Foreground))
        };
        let (Some(ends), false) = (ends, is_terminating(&object)) else { return Ok(Next::Done) };
        let now = crate::clock::now();
        if ends > now {
            let left = Duration::try_from(ends.duration_since(now)).unwrap_or_default();
            return Ok(Next::After(left.max(Duration::from_millis(1))));
        }
        self.client.delete(key, uid(&object), Delete { grace: None, propagation }).await?;
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_old_ends() {
        let hour = Duration::from_secs(3600);
        let check = |found: Option<Timestamp>, expected: Option<&str>| {
            assert_eq!(found.map(|time| time.to_string()).as_deref(), expected);
        };
        let event = |created: &str, written: &str| {
            json!({"metadata": {"creationTimestamp": created, "managedFields": [{"time": written}]},
                "lastTimestamp": "2100-01-01T00:00:00Z"})
        };
        check(event_ends(&event("2026-01-01T00:00:00Z", ""), hour), Some("2026-01-01T01:00:00Z"));
        let counted = event("2026-01-01T00:00:00Z", "2026-01-01T00:30:00Z");
        check(event_ends(&counted, hour), Some("2026-01-01T01:30:00Z"));
        check(event_ends(&json!({}), hour), None);
        let job = |ttl: Value, kind: &str| {
            json!({
                "spec": {"ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [
                    {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ]},
            })
        };
        check(job_ends(&job(json!(30), "Complete")), Some("2026-01-01T00:00:30Z"));
        check(job_ends(&job(json!(0), "Failed")), Some("2026-01-01T00:00:00Z"));
        check(job_ends(&job(Value::Null, "Failed")), None);
        check(job_ends(&job(json!(30), "Suspended")), None);
    }
}
