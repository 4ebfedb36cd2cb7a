//! The time that certificates are judged by, on boards whose clock may stand at 1970.
//!
//! ```text
//! the authority's and our own certificates begin ── no earlier than this ──┐
//! the system's clock ──────────────────────────────────────────────────────┼─► the time
//! the authority ends ── a clock that is past this is not believed ─────────┘
//! ```
//! A certificate that we hold was issued by now, whatever the clock says; and what the API is served with is valid from the
//! authority's own beginning on. So a board without a clock reaches its control plane, and nothing is written for it. The
//! price is named: to a board whose clock is behind, a serving certificate that has ended since is still good.
//!
//! Left out: a clock that runs ahead by less than the authority lasts. Setting clocks is for NTP.

use super::credentials::Validity;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    /// In seconds since 1970.
    earliest: u64,
    latest: u64,
    started: Instant,
}

impl Clock {
    /// With what the authorities and our own certificates say.
    pub(crate) fn of(authorities: &[Validity], own: &[Validity]) -> Clock {
        let earliest = authorities.iter().chain(own).map(|validity| validity.from).max().unwrap_or(0);
        let latest = authorities.iter().map(|validity| validity.until).max().unwrap_or(u64::MAX);
        Clock { earliest, latest, started: Instant::now() }
    }

    /// In seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.judge(system.as_secs(), self.started.elapsed())
    }

    fn judge(&self, system: u64, running: Duration) -> u64 {
        let at_least = self.earliest.saturating_add(running.as_secs());
        if system > self.latest { at_least } else { system.max(at_least) }
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_within_what_certificates_say() {
        let clock =
            Clock::of(&[Validity { from: 1000, until: 9000 }], &[Validity { from: 3000, until: 4000 }]);
        let check = |system, running, expected| {
            assert_eq!(clock.judge(system, Duration::from_secs(running)), expected, "{system} {running}");
        };
        check(0, 0, 3000);
        check(60, 60, 3060);
        check(3500, 60, 3500);
        check(8000, 0, 8000);
        check(9001, 5, 3005);
        assert_eq!(Clock::of(&[], &[]).judge(5, Duration::ZERO), 5);
    }
}
