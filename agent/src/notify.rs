//! What systemd is told: sd_notify(3). Without systemd (`NOTIFY_SOCKET` unset) nothing is sent, and that is no error.

use sd_notify::NotifyState;
use std::time::{Duration, Instant};
use tracing::debug;

/// The agent answers and plans.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("pods are looked after")]);
}

/// The agent ends; pods run on.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping; pods run on")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // systemd acts on what it does not hear: it restarts us. Nobody else is to be told.
        debug!(%error, "systemd was not told");
    }
}

/// systemd's watchdog (`WatchdogSec=`), fed at half its interval.
pub(crate) struct Watchdog {
    interval: Duration,
    fed: Instant,
}

impl Watchdog {
    /// The one that systemd asks for, if it does.
    pub(crate) fn asked_for() -> Option<Watchdog> {
        let interval = sd_notify::watchdog_enabled()? / 2;
        Some(Watchdog { interval, fed: Instant::now().checked_sub(interval)? })
    }

    /// Feeds it if that is due; when to come again.
    pub(crate) fn feed(&mut self) -> Duration {
        let left = self.interval.saturating_sub(self.fed.elapsed());
        if !left.is_zero() {
            return left;
        }
        tell(&[NotifyState::Watchdog]);
        self.fed = Instant::now();
        self.interval
    }
}
