//! Durations as people read them: `5m10s`, `3d4h`.
//!
//! Follows `k8s.io/apimachinery/pkg/util/duration`.

use jiff::Timestamp;
use serde_json::Value;

/// At most two units, the second only where the first is small. Up to two seconds ahead of now is now.
pub fn human_duration(seconds: i64) -> String {
    let two = |a: i64, a_unit: char, b: i64, b_unit: char| match b {
        0 => format!("{a}{a_unit}"),
        b => format!("{a}{a_unit}{b}{b_unit}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => two(days, 'd', hours % 24, 'h'),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// A time of the API, if it is one.
pub(super) fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// How long ago; `<unknown>` for no time.
pub(super) fn since(value: &Value, now: Timestamp) -> String {
    time(value).map_or_else(|| "<unknown>".to_owned(), |then| between(then, now))
}

pub(super) fn between(then: Timestamp, now: Timestamp) -> String {
    human_duration(now.duration_since(then).as_secs())
}
