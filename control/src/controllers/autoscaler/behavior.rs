//! How fast an autoscaler may follow its metrics: stabilization windows, policies, bounds. Pure.

use crate::object::{at, items, text};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;

/// Without a behavior of its own: the highest wish of this time counts.
const DOWN_WINDOW: Duration = Duration::from_secs(300);
/// What is remembered of one autoscaler; windows are at most an hour, wishes come every few seconds.
const REMEMBERED_MAX: usize = 4096;
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);

/// What an autoscaler wished, and what it did. It is lost with the lead, as upstream's.
#[derive(Clone, Debug, Default)]
pub struct History {
    wishes: VecDeque<(Timestamp, i64)>,
    ups: VecDeque<(Timestamp, i64)>,
    downs: VecDeque<(Timestamp, i64)>,
}

/// The replicas there are, those that metrics ask for, and between what they must be.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// There are.
    pub current: i64,
    /// Are asked for.
    pub desired: i64,
    /// At least.
    pub min: i64,
    /// At most.
    pub max: i64,
}

/// What comes of a wish, and the conditions that say so: reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The replicas.
    pub replicas: i64,
    /// `AbleToScale`.
    pub able: (&'static str, &'static str),
    /// `ScalingLimited`, and whether it is.
    pub limited: (bool, &'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const DOWN_STABILIZED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);

fn remember(list: &mut VecDeque<(Timestamp, i64)>, now: Timestamp, value: i64) {
    let recent = |at: Timestamp| within(at, now, LONGEST_WINDOW);
    while list.front().is_some_and(|(at, _)| !recent(*at)) || list.len() >= REMEMBERED_MAX {
        list.pop_front();
    }
    list.push_back((now, value));
}

fn within(at: Timestamp, now: Timestamp, window: Duration) -> bool {
    now.duration_since(at) < jiff::SignedDuration::try_from(window).unwrap_or(jiff::SignedDuration::MAX)
}

impl History {
    /// The first look at an autoscaler: that many there are.
    pub fn begin(&mut self, current: i64, now: Timestamp) {
        if self.wishes.is_empty() {
            remember(&mut self.wishes, now, current);
        }
    }

    /// It was done.
    pub fn scaled(&mut self, from: i64, to: i64, now: Timestamp) {
        if to > from {
            remember(&mut self.ups, now, to - from);
        } else if to < from {
            remember(&mut self.downs, now, from - to);
        }
    }

    /// What of a wish is allowed now; the wish is remembered.
    pub fn allow(&mut self, behavior: &Value, wish: Wish, now: Timestamp) -> Allowed {
        if behavior.is_object() { self.by_rules(behavior, wish, now) } else { self.by_default(wish, now) }
    }

    fn by_default(&mut self, wish: Wish, now: Timestamp) -> Allowed {
        let recent = self.wishes.iter().filter(|(at, _)| within(*at, now, DOWN_WINDOW));
        let stable = recent.map(|(_, wished)| *wished).fold(wish.desired, i64::max);
        remember(&mut self.wishes, now, wish.desired);
        let able = if stable == wish.desired { READY } else { DOWN_STABILIZED };
        let limit = wish.current.saturating_mul(2).max(4);
        let (most, why) = if wish.max > limit { (limit, UP_LIMIT) } else { (wish.max, TOO_MANY) };
        let (replicas, why) = if stable < wish.min {
            (wish.min, TOO_FEW)
        } else if stable > most {
            (most, why)
        } else {
            (stable, WITHIN)
        };
        Allowed { replicas, able, limited: (replicas != stable, why.0, why.1) }
    }

    fn by_rules(&mut self, behavior: &Value, wish: Wish, now: Timestamp) -> Allowed {
        let stable = self.stabilize(behavior, wish, now);
        let able = match () {
            () if stable == wish.desired => READY,
            () if wish.desired >= wish.current => UP_STABILIZED,
            () => DOWN_STABILIZED,
        };
        let (replicas, why) = if stable > wish.current {
            let limit = self.up_limit(at(behavior, &["scaleUp"]), wish.current, now).max(wish.current);
            let (most, why) = if wish.max > limit { (limit, UP_LIMIT) } else { (wish.max, TOO_MANY) };
            if stable > most { (most, why) } else { (stable, WITHIN) }
        } else if stable < wish.current {
            let limit = self.down_limit(at(behavior, &["scaleDown"]), wish.current, now).min(wish.current);
            let (least, why) = if wish.min < limit { (limit, DOWN_LIMIT) } else { (wish.min, TOO_FEW) };
            if stable < least { (least, why) } else { (stable, WITHIN) }
        } else {
            (stable, WITHIN)
        };
        Allowed { replicas, able, limited: (replicas != stable, why.0, why.1) }
    }

    fn stabilize(&mut self, behavior: &Value, wish: Wish, now: Timestamp) -> i64 {
        let window = |rule: &str, default: Duration| {
            let seconds = at(behavior, &[rule, "stabilizationWindowSeconds"]).as_u64();
            seconds.map_or(default, Duration::from_secs)
        };
        let recent = |window: Duration| {
            let wishes = self.wishes.iter().filter(move |(at, _)| within(*at, now, window));
            wishes.map(|(_, wished)| *wished)
        };
        let lowest = recent(window("scaleUp", Duration::ZERO)).fold(wish.desired, i64::min);
        let highest = recent(window("scaleDown", DOWN_WINDOW)).fold(wish.desired, i64::max);
        remember(&mut self.wishes, now, wish.desired);
        wish.current.max(lowest).min(highest)
    }

    /// How many there were when a policy's period began.
    fn at_start(&self, policy: &Value, current: i64, now: Timestamp) -> i64 {
        let period = Duration::from_secs(at(policy, &["periodSeconds"]).as_u64().unwrap_or_default());
        let changed = |list: &VecDeque<(Timestamp, i64)>| {
            list.iter().filter(|(at, _)| within(*at, now, period)).map(|(_, by)| *by).sum::<i64>()
        };
        current - changed(&self.ups) + changed(&self.downs)
    }

    fn up_limit(&self, rule: &Value, current: i64, now: Timestamp) -> i64 {
        let proposed = items(rule, &["policies"]).iter().map(|policy| {
            let (from, by) = (self.at_start(policy, current, now), value(policy));
            match text(policy, &["type"]) {
                "Pods" => from.saturating_add(by),
                // Rounded up, so that few replicas grow at all.
                _ => from.saturating_add(from.saturating_mul(by).saturating_add(99).div_euclid(100)),
            }
        });
        match text(rule, &["selectPolicy"]) {
            "Disabled" => Some(current),
            "Min" => proposed.min(),
            _ => proposed.max(),
        }
        .unwrap_or(current)
    }

    fn down_limit(&self, rule: &Value, current: i64, now: Timestamp) -> i64 {
        let proposed = items(rule, &["policies"]).iter().map(|policy| {
            let (from, by) = (self.at_start(policy, current, now), value(policy));
            match text(policy, &["type"]) {
                "Pods" => from.saturating_sub(by),
                _ => from.saturating_mul(100_i64.saturating_sub(by)) / 100,
            }
        });
        match text(rule, &["selectPolicy"]) {
            "Disabled" => Some(current),
            "Min" => proposed.max(),
            _ => proposed.min(),
        }
        .unwrap_or(current)
    }
}

fn value(policy: &Value) -> i64 {
    at(policy, &["value"]).as_i64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use serde_json::json;

    fn at_second(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    fn wish(current: i64, desired: i64) -> Wish {
        Wish { current, desired, min: 1, max: 20 }
    }

    /// Follows wishes: (second, current, desired, expected replicas, reason of AbleToScale, reason of ScalingLimited).
    #[track_caller]
    fn check(behavior: &Value, steps: &[(i64, i64, i64, i64, &str, &str)]) {
        let mut history = History::default();
        for (second, current, desired, replicas, able, limited) in steps {
            let now = at_second(*second);
            history.begin(*current, now);
            let allowed = history.allow(behavior, wish(*current, *desired), now);
            let found = (allowed.replicas, allowed.able.0, allowed.limited.1);
            assert_eq!(found, (*replicas, *able, *limited), "at {second}");
            assert_eq!(allowed.limited.0, *limited != "DesiredWithinRange");
            history.scaled(*current, allowed.replicas, now);
        }
    }

    #[test]
    fn without_a_behavior() {
        let (ready, down, within) = ("ReadyForNewScale", "ScaleDownStabilized", "DesiredWithinRange");
        check(
            &Value::Null,
            &[
                (0, 1, 3, 3, ready, within),
                (15, 3, 30, 6, ready, "ScaleUpLimit"),
                (30, 6, 30, 12, ready, "ScaleUpLimit"),
                (45, 12, 30, 20, ready, "TooManyReplicas"),
                // The wish of 30 is remembered for five minutes.
                (60, 20, 2, 20, down, "TooManyReplicas"),
                (345, 20, 2, 2, ready, within),
                (700, 2, 0, 1, ready, "TooFewReplicas"),
            ],
        );
    }

    fn rules() -> Value {
        json!({
            "scaleUp": {
                "stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15},
                ],
            },
            "scaleDown": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
        })
    }

    #[test]
    fn by_policies() {
        let (ready, within) = ("ReadyForNewScale", "DesiredWithinRange");
        check(
            &rules(),
            &[
                (0, 1, 15, 5, ready, "ScaleUpLimit"),
                // In the same period nothing more.
                (10, 5, 15, 5, ready, "ScaleUpLimit"),
                (15, 5, 15, 10, ready, "ScaleUpLimit"),
                (30, 10, 15, 15, ready, within),
                (45, 15, 3, 15, "ScaleDownStabilized", within),
                (340, 15, 3, 3, ready, within),
            ],
        );
        let mut slow = rules();
        slow["scaleDown"] = json!({
            "stabilizationWindowSeconds": 0, "selectPolicy": "Min",
            "policies": [
                {"type": "Pods", "value": 1, "periodSeconds": 60},
                {"type": "Percent", "value": 50, "periodSeconds": 60},
            ],
        });
        check(
            &slow,
            &[
                (0, 10, 2, 9, ready, "ScaleDownLimit"),
                (30, 9, 2, 9, ready, "ScaleDownLimit"),
                (61, 9, 2, 8, ready, "ScaleDownLimit"),
            ],
        );
        slow["scaleDown"]["selectPolicy"] = "Disabled".into();
        check(&slow, &[(0, 10, 2, 10, ready, "ScaleDownLimit")]);
        slow["scaleUp"]["stabilizationWindowSeconds"] = 60.into();
        check(
            &slow,
            &[
                (0, 2, 2, 2, ready, within),
                (15, 2, 4, 2, "ScaleUpStabilized", within),
                (61, 2, 4, 4, ready, within),
            ],
        );
    }
}
