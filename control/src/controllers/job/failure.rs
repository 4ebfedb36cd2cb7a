//! What a failed pod of a job means: by `podFailurePolicy`, and how long the next one waits. Pure.

use crate::object::{at, items, name, namespace, text};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::time::Duration;

/// After the first failure, as upstream.
const WAIT_FIRST: Duration = Duration::from_secs(10);
/// After many.
const WAIT_MAX: Duration = Duration::from_secs(360);

/// Failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    last: Option<Timestamp>,
}

impl Backoff {
    /// With the pods that have ended since: when they did.
    pub fn with(self, succeeded: &[Timestamp], failed: &[Timestamp]) -> Backoff {
        let before = succeeded.iter().max();
        let after: Vec<&Timestamp> =
            failed.iter().filter(|time| before.is_none_or(|before| *time > before)).collect();
        let old = if before.is_some() { Backoff::default() } else { self };
        let count = u32::try_from(after.len()).unwrap_or(u32::MAX);
        Backoff {
            failures: old.failures.saturating_add(count),
            last: after.into_iter().copied().max().max(old.last),
        }
    }

    /// How long the next pod has to wait. A clock that was set back does not make it longer.
    pub fn left(self, now: Timestamp) -> Duration {
        wait_left(self.failures, self.last, now)
    }
}

/// What is left of the wait after so many failures.
pub fn wait_left(failures: u32, last: Option<Timestamp>, now: Timestamp) -> Duration {
    let (Some(doublings), Some(last)) = (failures.checked_sub(1), last) else { return Duration::ZERO };
    let wait = WAIT_FIRST.saturating_mul(1 << doublings.min(10)).min(WAIT_MAX);
    let passed = Duration::try_from(now.duration_since(last)).unwrap_or_default();
    wait.saturating_sub(passed)
}

/// When a pod ended. What its board says counts if it can be true: not before the pod was made, nor after now. Otherwise the
/// board's clock is wrong, and the time is that of its last word, by the clock of the server that took it.
pub fn finished_at(pod: &Value, now: Timestamp) -> Timestamp {
    let read = |text: &str| text.parse::<Timestamp>().ok();
    let created = read(text(pod, &["metadata", "creationTimestamp"])).unwrap_or(Timestamp::UNIX_EPOCH);
    let told = told_by_board(pod).unwrap_or(created);
    if (created..=now).contains(&told) {
        return told;
    }
    let writes = items(pod, &["metadata", "managedFields"]).iter();
    let of_status = writes.filter(|entry| text(entry, &["subresource"]) == "status");
    let last = of_status.filter_map(|entry| read(text(entry, &["time"]))).max();
    last.unwrap_or(created).min(now)
}

/// Its last container's end, else when it was ready last, else its deletion.
fn told_by_board(pod: &Value) -> Option<Timestamp> {
    let read = |text: &str| text.parse::<Timestamp>().ok();
    let statuses = items(pod, &["status", "containerStatuses"]);
    let ends = statuses.iter().map(|status| read(text(status, &["state", "terminated", "finishedAt"])));
    let by_containers = ends.collect::<Option<Vec<_>>>().and_then(|ends| ends.into_iter().max());
    let ready = || {
        let mut conditions = items(pod, &["status", "conditions"]).iter();
        let ready =
            conditions.find(|told| text(told, &["type"]) == "Ready" && text(told, &["status"]) == "False")?;
        read(text(ready, &["lastTransitionTime"]))
    };
    let deleted = || {
        let grace = at(pod, &["metadata", "deletionGracePeriodSeconds"]).as_i64().unwrap_or_default();
        let time = read(text(pod, &["metadata", "deletionTimestamp"]))?;
        time.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    by_containers.or_else(ready).or_else(deleted)
}

/// What becomes of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It counts towards the limit.
    Count,
    /// It does not.
    Ignore,
    /// The job has failed, for this reason.
    FailJob(String),
    /// The index has.
    FailIndex,
}

/// What the first rule that matches says of a failed pod.
pub fn judge(job: &Value, pod: &Value) -> Action {
    let rules = items(job, &["spec", "podFailurePolicy", "rules"]);
    for (place, rule) in rules.iter().enumerate() {
        let action = text(rule, &["action"]);
        let (namespace, name) = (namespace(pod), name(pod));
        let why = if at(rule, &["onExitCodes"]).is_object() {
            exit_code(at(rule, &["onExitCodes"]), pod).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code} matching {action} rule at index {place}")
            })
        } else {
            condition(rule, pod).map(|kind| {
                format!("Pod {namespace}/{name} has condition {kind} matching {action} rule at index {place}")
            })
        };
        match (why, action) {
            (Some(why), "FailJob") => return Action::FailJob(why),
            (Some(_), "FailIndex") => return Action::FailIndex,
            (Some(_), "Ignore") => return Action::Ignore,
            (Some(_), "Count") => return Action::Count,
            _ => {}
        }
    }
    Action::Count
}

fn exit_code<'a>(asked: &Value, pod: &'a Value) -> Option<(&'a str, i64)> {
    let values = items(asked, &["values"]);
    let container = text(asked, &["containerName"]);
    let lists = ["containerStatuses", "initContainerStatuses"].map(|list| items(pod, &["status", list]));
    lists.into_iter().flatten().find_map(|status| {
        let code = at(status, &["state", "terminated", "exitCode"]).as_i64().filter(|code| *code != 0)?;
        let listed = values.iter().any(|value| value.as_i64() == Some(code));
        let matches = match text(asked, &["operator"]) {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        let named = container.is_empty() || container == text(status, &["name"]);
        (named && matches).then(|| (text(status, &["name"]), code))
    })
}

fn condition<'a>(rule: &Value, pod: &'a Value) -> Option<&'a str> {
    let asked = items(rule, &["onPodConditions"]);
    items(pod, &["status", "conditions"]).iter().find_map(|told| {
        let same = |pattern: &Value| {
            let status = match text(pattern, &["status"]) {
                "" => "True",
                status => status,
            };
            text(told, &["type"]) == text(pattern, &["type"]) && text(told, &["status"]) == status
        };
        asked.iter().any(same).then(|| text(told, &["type"]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("a time")
    }

    #[test]
    fn each_failure_in_a_row_doubles_the_wait() {
        let check = |succeeded: &[i64], failed: &[i64], now: i64, expected: u64| {
            let times = |list: &[i64]| list.iter().map(|at| time(*at)).collect::<Vec<_>>();
            let found = Backoff::default().with(&times(succeeded), &times(failed)).left(time(now));
            assert_eq!(found, Duration::from_secs(expected), "{succeeded:?} {failed:?} {now}");
        };
        check(&[], &[], 0, 0);
        check(&[], &[0], 0, 10);
        check(&[], &[0], 4, 6);
        check(&[], &[0], 11, 0);
        check(&[], &[0, 1], 1, 20);
        check(&[], &[0, 1, 2], 2, 40);
        check(&[], &[0; 7], 0, 360);
        check(&[], &[0; 99], 0, 360);
        // Only what failed after the last success.
        check(&[5], &[0, 1], 5, 0);
        check(&[5], &[0, 6], 6, 10);
        // A clock that was set back.
        check(&[], &[1000], 0, 10);
        let old = Backoff::default().with(&[], &[time(0)]);
        assert_eq!(old.with(&[], &[time(1)]).left(time(1)), Duration::from_secs(20));
        assert_eq!(old.with(&[time(1)], &[]).left(time(1)), Duration::ZERO);
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let job = json!({"spec": {"podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42, 43]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1]}},
            {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1]}},
        ]}}});
        let check = |container: &str, code: i64, disrupted: bool, expected: Action| {
            let status = if disrupted { "True" } else { "False" };
            let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "status": {
                "containerStatuses": [{"name": container, "state": {"terminated": {"exitCode": code}}}],
                "conditions": [{"type": "DisruptionTarget", "status": status}],
            }});
            assert_eq!(judge(&job, &pod), expected);
        };
        check("main", 42, true, Action::Ignore);
        let why = "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        check("main", 42, false, Action::FailJob(why.into()));
        check("other", 42, false, Action::Count);
        check("other", 7, false, Action::FailIndex);
        check("main", 1, false, Action::Ignore);
        check("main", 0, false, Action::Count);
        assert_eq!(judge(&json!({}), &json!({})), Action::Count);
    }

    #[test]
    fn a_pod_ended_with_its_last_container() {
        let now: Timestamp = "2026-01-01T00:00:09Z".parse().expect("a time");
        let check = |pod: Value, expected: &str| assert_eq!(finished_at(&pod, now).to_string(), expected);
        let ended = |at: &str| json!({"state": {"terminated": {"finishedAt": at}}});
        let (a, b) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z");
        check(json!({"status": {"containerStatuses": [ended(b), ended(a)]}}), b);
        let unready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": a}]);
        let status = json!({"containerStatuses": [ended(b), {"state": {}}], "conditions": unready});
        check(json!({"status": status}), a);
        check(json!({"metadata": {"deletionTimestamp": b, "deletionGracePeriodSeconds": 1}}), a);
        check(json!({"metadata": {"creationTimestamp": b}}), b);
        // A board without a clock, and one whose clock is ahead.
        for wrong in ["1970-01-01T00:00:05Z", "2030-01-01T00:00:00Z"] {
            let written = json!([{"subresource": "status", "time": b}, {"time": "2026-01-01T00:00:08Z"}]);
            let metadata = json!({"creationTimestamp": a, "managedFields": written});
            check(json!({"metadata": metadata, "status": {"containerStatuses": [ended(wrong)]}}), b);
            let metadata = json!({"creationTimestamp": a});
            check(json!({"metadata": metadata, "status": {"containerStatuses": [ended(wrong)]}}), a);
        }
    }
}
