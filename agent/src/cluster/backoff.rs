//! Waiting before the next try: longer each time, and never all boards at once.

use ring::rand::{SecureRandom, SystemRandom};
use std::time::Duration;

/// As client-go's reflector.
const FIRST: Duration = Duration::from_millis(800);
const MAX: Duration = Duration::from_secs(30);

/// How long to wait after failures in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: 0.8 to 1.6 s at first, 30 to 60 s at most.
    pub(crate) fn next(&mut self) -> Duration {
        let delay = FIRST.saturating_mul(1 << self.failures.min(10)).min(MAX);
        self.failures += 1;
        spread(delay)
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Something between `least` and twice that.
pub(crate) fn spread(least: Duration) -> Duration {
    let mut bytes = [0; 2];
    // Without random numbers the boards of a fleet come in step, which is a burden and no fault.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        tracing::debug!("no random numbers");
    }
    least + least.mul_f64(f64::from(u16::from_ne_bytes(bytes)) / 65536.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_anew() {
        let mut backoff = Backoff::default();
        let check = |waited: Duration, least: Duration| {
            assert!(waited >= least && waited < least * 2, "{waited:?} {least:?}");
        };
        for millis in [800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            check(backoff.next(), Duration::from_millis(millis));
        }
        backoff.succeeded();
        check(backoff.next(), FIRST);
    }
}
