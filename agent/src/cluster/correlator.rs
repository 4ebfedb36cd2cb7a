//! Which events the API server is told: counted, combined and bounded, as client-go's `EventCorrelator` does.
//!
//! ```text
//!  event ─► too many of this object? dropped ─► many alike? one combined ─► known? count + 1 (PATCH) : new (POST)
//! ```
//! Pure. While the server cannot be reached, what happens again is counted, and the oldest goes once there are too many.

use super::client::Collection;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Events that are remembered to be counted up, and objects whose events are counted.
const KNOWN_MAX: usize = 512;
/// An object's events in a burst, and the time after which one more is let through (`defaultSpamBurst`, `defaultSpamQPS`).
const SPAM_BURST: f64 = 25.0;
const SPAM_INTERVAL: Duration = Duration::from_secs(300);
/// So many different messages within the interval are combined (`defaultAggregateMaxEvents`).
const ALIKE_MAX: usize = 10;
const ALIKE_INTERVAL: Duration = Duration::from_secs(600);
const COMBINED: &str = "(combined from similar events): ";

/// A request to be made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Create { path: String, event: Box<Event> },
    Patch { path: String, patch: Value },
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Told,
    /// A patch of an event that has expired meanwhile: made anew.
    Unknown,
    /// The server will not have it.
    Refused,
    /// Not reached: again later.
    Unreached,
}

#[derive(Debug)]
struct Known {
    event: Event,
    /// The API has it.
    created: bool,
    /// In the API it is not as it is here.
    waits: bool,
    used: u64,
}

#[derive(Debug)]
struct Object {
    tokens: f64,
    counted: Instant,
    used: u64,
}

#[derive(Debug)]
struct Alike {
    messages: BTreeSet<String>,
    since: Instant,
    used: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Correlator {
    known: BTreeMap<String, Known>,
    objects: BTreeMap<String, Object>,
    alike: BTreeMap<String, Alike>,
    waiting: VecDeque<String>,
    clock: u64,
}

impl Correlator {
    /// One happened. Its name is taken if it becomes an event of its own.
    pub(crate) fn observe(&mut self, mut event: Event, now: Instant) {
        self.clock += 1;
        let object = object_key(&event.involved_object);
        if self.is_spam(&object, now) {
            return;
        }
        let message = event.message.clone().unwrap_or_default();
        let group = format!(
            "{object}\0{}\0{}",
            event.type_.as_deref().unwrap_or_default(),
            event.reason.as_deref().unwrap_or_default()
        );
        let combined = self.is_combined(&group, &message, now);
        let key = if combined {
            event.message = Some(format!("{COMBINED}{message}"));
            group
        } else {
            format!("{group}\0{message}")
        };
        let used = self.clock;
        match self.known.get_mut(&key) {
            Some(known) => {
                known.event.count = known.event.count.map(|n| n.saturating_add(1));
                known.event.last_timestamp = event.last_timestamp;
                known.event.message = event.message;
                known.used = used;
                if !std::mem::replace(&mut known.waits, true) {
                    self.waiting.push_back(key);
                }
            }
            None => {
                make_room(&mut self.known, |known| known.used);
                self.waiting.retain(|key| self.known.contains_key(key));
                self.known.insert(key.clone(), Known { event, created: false, waits: true, used });
                self.waiting.push_back(key);
            }
        }
    }

    /// What to tell next; until its [`Correlator::done`] it is what is told.
    pub(crate) fn next(&mut self) -> Option<(String, Request)> {
        let key = self.waiting.pop_front()?;
        let known = self.known.get_mut(&key)?;
        known.waits = false;
        let namespace = known.event.metadata.namespace.as_deref().unwrap_or("default");
        let request = if known.created {
            let name = known.event.metadata.name.as_deref().unwrap_or_default();
            let Event { count, last_timestamp, message, .. } = &known.event;
            Request::Patch {
                path: Collection::EVENTS.object(namespace, name),
                patch: json!({"count": count, "lastTimestamp": last_timestamp, "message": message}),
            }
        } else {
            Request::Create { path: Collection::EVENTS.of(namespace), event: Box::new(known.event.clone()) }
        };
        Some((key, request))
    }

    pub(crate) fn done(&mut self, key: String, outcome: Outcome) {
        let Some(known) = self.known.get_mut(&key) else { return };
        match outcome {
            Outcome::Told => known.created = true,
            Outcome::Refused => {}
            Outcome::Unknown | Outcome::Unreached => {
                if outcome == Outcome::Unknown {
                    known.created = false;
                }
                if !std::mem::replace(&mut known.waits, true) {
                    self.waiting.push_front(key);
                }
            }
        }
    }

    fn is_spam(&mut self, key: &str, now: Instant) -> bool {
        let used = self.clock;
        if !self.objects.contains_key(key) {
            make_room(&mut self.objects, |object| object.used);
        }
        let new = || Object { tokens: SPAM_BURST, counted: now, used };
        let object = self.objects.entry(key.into()).or_insert_with(new);
        let passed = now.saturating_duration_since(object.counted).as_secs_f64();
        object.tokens = (object.tokens + passed / SPAM_INTERVAL.as_secs_f64()).min(SPAM_BURST);
        object.counted = now;
        object.used = used;
        if object.tokens < 1.0 {
            return true;
        }
        object.tokens -= 1.0;
        false
    }

    fn is_combined(&mut self, key: &str, message: &str, now: Instant) -> bool {
        let used = self.clock;
        if !self.alike.contains_key(key) {
            make_room(&mut self.alike, |alike| alike.used);
        }
        let new = || Alike { messages: BTreeSet::new(), since: now, used };
        let alike = self.alike.entry(key.into()).or_insert_with(new);
        if now.saturating_duration_since(alike.since) > ALIKE_INTERVAL {
            alike.messages.clear();
        }
        alike.since = now;
        alike.used = used;
        alike.messages.insert(message.into());
        if alike.messages.len() < ALIKE_MAX {
            return false;
        }
        // Enough to know that there are many.
        if alike.messages.len() > ALIKE_MAX {
            alike.messages.pop_first();
        }
        true
    }
}

fn object_key(about: &ObjectReference) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    [&about.kind, &about.namespace, &about.name, &about.uid, &about.field_path].map(part).join("\0")
}

/// Forgets what was not used for the longest time, where there are too many.
fn make_room<T>(map: &mut BTreeMap<String, T>, used: impl Fn(&T) -> u64) {
    if map.len() >= KNOWN_MAX
        && let Some(oldest) = map.iter().min_by_key(|(_, item)| used(item)).map(|(key, _)| key.clone())
    {
        map.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab {
        correlator: Correlator,
        now: Instant,
    }

    impl Lab {
        fn new() -> Lab {
            Lab { correlator: Correlator::default(), now: Instant::now() }
        }

        fn observe(&mut self, pod: &str, message: &str) {
            let event = json!({
                "metadata": {"name": format!("{pod}.1"), "namespace": "n"}, "count": 1, "type": "Normal",
                "involvedObject": {"name": pod}, "reason": "R", "message": message,
            });
            self.correlator.observe(serde_json::from_value(event).expect("an event"), self.now);
        }

        /// What is told, in short.
        fn told(&mut self, outcome: Outcome) -> Option<String> {
            let (key, request) = self.correlator.next()?;
            self.correlator.done(key, outcome);
            Some(match request {
                Request::Create { path, event } => {
                    format!("POST {path} {} {}", event.count.unwrap_or(0), event.message.unwrap_or_default())
                }
                Request::Patch { path, patch } => {
                    format!("PATCH {path} {} {}", patch["count"], patch["message"])
                }
            })
        }
    }

    const POST: &str = "POST /api/v1/namespaces/n/events";
    const PATCH: &str = "PATCH /api/v1/namespaces/n/events/a.1";

    #[test]
    fn what_happens_again_is_counted() {
        let mut lab = Lab::new();
        lab.observe("a", "x");
        assert_eq!(lab.told(Outcome::Unreached), Some(format!("{POST} 1 x")));
        lab.observe("a", "x");
        assert_eq!(lab.told(Outcome::Told), Some(format!("{POST} 2 x")), "nothing was lost");
        assert_eq!(lab.told(Outcome::Told), None);
        lab.observe("a", "x");
        assert_eq!(lab.told(Outcome::Unknown), Some(format!("{PATCH} 3 \"x\"")));
        assert_eq!(lab.told(Outcome::Told), Some(format!("{POST} 3 x")), "it had expired");
        lab.observe("a", "y");
        assert_eq!(lab.told(Outcome::Refused), Some(format!("{POST} 1 y")));
        assert_eq!(lab.told(Outcome::Told), None);
    }

    #[test]
    fn many_alike_become_one() {
        let mut lab = Lab::new();
        for number in 1..=12 {
            lab.observe("a", &format!("m{number}"));
        }
        for number in 1..10 {
            assert_eq!(lab.told(Outcome::Told), Some(format!("{POST} 1 m{number}")));
        }
        assert_eq!(lab.told(Outcome::Told), Some(format!("{POST} 3 (combined from similar events): m12")));
        assert_eq!(lab.told(Outcome::Told), None);
    }

    #[test]
    fn one_object_cannot_flood_the_others() {
        let mut lab = Lab::new();
        for _ in 0..100 {
            lab.observe("a", "x");
        }
        lab.observe("b", "x");
        assert_eq!(lab.told(Outcome::Told), Some(format!("{POST} 25 x")));
        assert_eq!(lab.told(Outcome::Told), Some(format!("{POST} 1 x")));
        lab.now += SPAM_INTERVAL;
        lab.observe("a", "x");
        assert_eq!(lab.told(Outcome::Told), Some(format!("{PATCH} 26 \"x\"")));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut lab = Lab::new();
        for number in 0..10 * KNOWN_MAX {
            lab.observe(&format!("p{number}"), "x");
        }
        let Correlator { known, objects, alike, waiting, .. } = &lab.correlator;
        let sizes = [known.len(), objects.len(), alike.len(), waiting.len()];
        assert!(sizes.iter().all(|size| *size <= KNOWN_MAX), "{sizes:?}");
    }
}
