//! Wall time, in one place, so that a simulation can have its own.

use jiff::Timestamp;

/// Now, by the machine's clock.
pub(crate) fn now() -> Timestamp {
    #[cfg(test)]
    if let Some(now) = crate::simulated::now() {
        return now;
    }
    Timestamp::now()
}
