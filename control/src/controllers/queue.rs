//! What a controller has to do: keys, each at most once, none twice at the same time, those that failed later.
//!
//! ```text
//! add ──► waiting ──► next() ──► at work ──► done ──► (added meanwhile: waiting again)
//!            ▲  at its time          │ failed: 5 ms · 2ⁿ, at most 1000 s (client-go's limiter)
//!            └────── delayed ◄───────┘
//! ```
//! Bounded by the number of objects: a key is here once. The state reads no clock.

use super::key::Key;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// After the first failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// After many.
const BACKOFF_MAX: Duration = Duration::from_secs(1000);

/// The queue of one controller.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    wake: Notify,
    added: AtomicU64,
    retried: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Key>,
    /// All that wait, and what was added while it is at work.
    wanted: BTreeSet<Key>,
    working: BTreeSet<Key>,
    delayed: BTreeMap<(Instant, Key), ()>,
    due: HashMap<Key, Instant>,
    failures: HashMap<Key, u32>,
}

impl State {
    fn add(&mut self, key: Key) -> bool {
        if !self.wanted.insert(key.clone()) {
            return false;
        }
        if !self.working.contains(&key) {
            self.waiting.push_back(key);
        }
        true
    }

    fn delay(&mut self, key: Key, at: Instant) {
        match self.due.get(&key) {
            Some(due) if *due <= at => return,
            Some(due) => {
                self.delayed.remove(&(*due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key), ());
    }

    /// The next key that is due.
    fn take(&mut self, now: Instant) -> Option<Key> {
        self.ripen(now);
        let key = self.waiting.pop_front()?;
        self.wanted.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }

    fn done(&mut self, key: &Key, failed: bool, now: Instant) {
        self.working.remove(key);
        if self.wanted.contains(key) {
            self.waiting.push_back(key.clone());
        }
        if failed {
            let failures = self.failures.entry(key.clone()).or_default();
            let wait = BACKOFF_FIRST.saturating_mul(1 << (*failures).min(20)).min(BACKOFF_MAX);
            *failures = failures.saturating_add(1);
            self.delay(key.clone(), now + wait);
        } else {
            self.failures.remove(key);
        }
    }

    fn ripen(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let ((_, key), ()) = entry.remove_entry();
            self.due.remove(&key);
            self.add(key);
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be looked at.
    pub fn add(&self, key: Key) {
        if self.state().add(key) {
            self.added.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// To be looked at in a while; the earlier of two times counts.
    pub fn add_after(&self, key: Key, wait: Duration) {
        self.state().delay(key, Instant::now() + wait);
        self.wake.notify_one();
    }

    /// The next key; it is the caller's until [`Queue::done`]. Cancel-safe.
    pub async fn next(&self) -> Key {
        loop {
            let due = {
                let mut state = self.state();
                if let Some(key) = state.take(Instant::now()) {
                    if !state.waiting.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            match due {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// The work on a key ended well, or it failed.
    pub fn done(&self, key: &Key, failed: bool) {
        self.state().done(key, failed, Instant::now());
        if failed {
            self.retried.fetch_add(1, Ordering::Relaxed);
        }
        self.wake.notify_one();
    }

    /// How many wait, were added, were tried again: upstream's `workqueue_*`.
    pub fn counts(&self) -> (usize, u64, u64) {
        let depth = self.state().waiting.len();
        (depth, self.added.load(Ordering::Relaxed), self.retried.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    fn key(name: &str) -> Key {
        Key::of(kinds::find("", "v1", "pods").expect("a kind"), "default", name)
    }

    #[test]
    fn a_key_waits_once_and_is_never_worked_on_twice_at_once() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(state.add(key("a")) && !state.add(key("a")) && state.add(key("b")));
        assert_eq!(state.take(now), Some(key("a")));
        assert!(state.add(key("a")), "to be looked at again");
        assert_eq!(state.take(now), Some(key("b")));
        assert_eq!(state.take(now), None, "it is at work");
        state.done(&key("a"), false, now);
        assert_eq!(state.take(now), Some(key("a")));
        state.done(&key("a"), false, now);
        assert_eq!(state.take(now), None);
    }

    #[test]
    fn failures_wait_twice_as_long_each_time_and_success_forgets_them() {
        let (mut state, mut now) = (State::default(), Instant::now());
        let step = Duration::from_millis(1);
        state.add(key("a"));
        assert_eq!(state.take(now), Some(key("a")));
        for millis in [5, 10, 20, 40] {
            state.done(&key("a"), true, now);
            let due = now + Duration::from_millis(millis);
            assert_eq!(state.take(due - step), None, "{millis}");
            assert_eq!(state.take(due), Some(key("a")), "{millis}");
            now = due;
        }
        state.done(&key("a"), false, now);
        state.add(key("a"));
        assert_eq!(state.take(now), Some(key("a")));
        state.done(&key("a"), true, now);
        assert_eq!(state.take(now + Duration::from_millis(5)), Some(key("a")));
        for _ in 0..100 {
            state.done(&key("a"), true, now);
            now += BACKOFF_MAX;
            assert_eq!(state.take(now), Some(key("a")), "never later than that");
        }
    }

    #[test]
    fn the_earlier_of_two_delays_counts() {
        let (mut state, now) = (State::default(), Instant::now());
        for seconds in [60, 10, 30] {
            state.delay(key("a"), now + Duration::from_secs(seconds));
        }
        assert_eq!(state.take(now + Duration::from_secs(9)), None);
        assert_eq!(state.take(now + Duration::from_secs(10)), Some(key("a")));
        state.done(&key("a"), false, now);
        assert_eq!(state.take(now + Duration::from_secs(100)), None);
    }
}
