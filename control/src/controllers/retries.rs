//! How soon a pod that ended, and should not have, is replaced: a daemon, a member of a stateful set.
//!
//! Whoever replaced it at once would fight with a board that refuses it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// After the first one; doubled each time, as upstream.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// And at most.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// By owner's uid and place: as many as there are pods that ended lately.
#[derive(Debug, Default)]
pub struct Retries(Mutex<HashMap<String, HashMap<String, Retry>>>);

#[derive(Clone, Copy, Debug)]
struct Retry {
    wait: Duration,
    last: Instant,
}

impl Retries {
    /// Whether the pod of a place may be replaced now.
    ///
    /// # Errors
    /// In how long it may.
    pub fn take(&self, owner: &str, place: &str, now: Instant) -> Result<(), Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = all.entry(owner.to_string()).or_default();
        // Who has been well for so long is forgotten.
        places.retain(|_, retry| now.duration_since(retry.last) < 2 * WAIT_MAX);
        let Some(retry) = places.get_mut(place) else {
            places.insert(place.to_string(), Retry { wait: WAIT_FIRST, last: now });
            return Ok(());
        };
        let passed = now.duration_since(retry.last);
        if passed < retry.wait {
            return Err(retry.wait - passed);
        }
        *retry = Retry { wait: (2 * retry.wait).min(WAIT_MAX), last: now };
        Ok(())
    }

    /// An owner is gone.
    pub fn forget(&self, owner: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_waits_longer_and_a_long_peace_forgets() {
        let (retries, mut now) = (Retries::default(), Instant::now());
        assert_eq!(retries.take("set", "a", now), Ok(()));
        for seconds in [1, 2, 4, 8] {
            let wait = Duration::from_secs(seconds);
            assert_eq!(retries.take("set", "a", now), Err(wait));
            now += wait;
            assert_eq!(retries.take("set", "a", now), Ok(()));
        }
        for _ in 0..20 {
            now += WAIT_MAX;
            assert_eq!(retries.take("set", "a", now), Ok(()));
        }
        assert_eq!(retries.take("set", "a", now), Err(WAIT_MAX));
        now += 2 * WAIT_MAX;
        assert_eq!(retries.take("set", "a", now), Ok(()));
        assert_eq!(retries.take("set", "a", now), Err(WAIT_FIRST));
        retries.forget("set");
        assert_eq!(retries.take("set", "a", now), Ok(()));
    }
}
