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

/// A time as Kubernetes has times: whole seconds.
pub(crate) fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A `MicroTime`, as leases have it.
pub(crate) fn micro_stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// [`seconds`] as text.
pub(crate) fn stamp(time: Timestamp) -> String {
    seconds(time).to_string()
}
