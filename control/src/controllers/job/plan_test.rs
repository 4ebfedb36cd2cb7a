//! Jobs in every state, and what is to be done: looking, making, deleting, ending, counting.

use super::super::status;
use super::*;
use serde_json::json;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

/// `NAME STATE[:INDEX[:FAILURES]]`; the states are those of a pod's life. A `-` behind it: it is counted already.
fn pod(text: &str) -> Arc<Value> {
    let (name, state) = text.split_once(' ').expect("a name and a state");
    let (state, counted) = state.strip_suffix('-').map_or((state, false), |state| (state, true));
    let mut parts = state.split(':');
    let state = parts.next().expect("a state");
    let (phase, ended, going) = match state {
        "pending" => ("Pending", None, false),
        "running" => ("Running", None, false),
        "ending" => ("Running", None, true),
        "succeeded" => ("Succeeded", Some(0), false),
        "failed" => ("Failed", Some(1), false),
        "failed42" => ("Failed", Some(42), false),
        // Long ago: nobody waits for it any more.
        "failed-early" => ("Failed", Some(2), false),
        other => panic!("{other}"),
    };
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "status": {"phase": phase},
    });
    if !counted {
        pod["metadata"]["finalizers"] = json!([TRACKED]);
    }
    if let Some(code) = ended {
        let at = if state == "failed-early" { "2026-01-01T00:00:00Z" } else { "2026-01-01T01:00:00Z" };
        pod["status"]["containerStatuses"] =
            json!([{"name": "c", "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]);
    }
    if going {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
    }
    if let Some(index) = parts.next() {
        pod["metadata"]["annotations"] = json!({INDEX: index, INDEX_FAILURES: parts.next().unwrap_or("0")});
    }
    Arc::new(pod)
}

#[expect(clippy::needless_pass_by_value, reason = "cells of a table")]
fn job(spec: Value, status: Value) -> Value {
    let mut job = json!({
        "metadata": {"name": "j"},
        "spec": {"parallelism": 2, "completions": 3, "backoffLimit": 1, "completionMode": "NonIndexed"},
        "status": status,
    });
    coracle_api::patch::merge(&mut job["spec"], spec);
    job
}

/// What is done, in short: the reason of an end, `-pod` for what goes, `+` and `+INDEX` for what is made, `~SECONDS`.
fn acts(job: &Value, pods: &[&str]) -> String {
    let pods: Vec<Arc<Value>> = pods.iter().map(|text| pod(text)).collect();
    let view = View::of(job, &pods);
    match verdict(&view, now()).or_else(|| completion(&view)) {
        Some(Verdict::Fails { reason, .. } | Verdict::Succeeds { reason, .. }) => return reason,
        None => {}
    }
    let step = step(&view, view.backoff(None, now()), now());
    let mut words: Vec<String> = step.delete.iter().map(|pod| format!("-{}", uid(pod))).collect();
    words.sort();
    words.extend(step.make.iter().map(|fresh| match (fresh.index, fresh.failures) {
        (None, _) => "+".to_string(),
        (Some(index), Some((failures, _))) if failures > 0 => format!("+{index}:{failures}"),
        (Some(index), _) => format!("+{index}"),
    }));
    words.extend(step.again.map(|wait| format!("~{}", wait.as_secs())));
    words.join(" ")
}

#[track_caller]
fn check(spec: Value, status: Value, pods: &[&str], expected: &str) {
    let job = job(spec, status);
    assert_eq!(acts(&job, pods), expected, "{job} {pods:?}");
}

#[test]
fn pods_are_made_until_enough_have_succeeded() {
    check(json!({}), json!({}), &[], "+ +");
    check(json!({}), json!({}), &["a running"], "+");
    check(json!({}), json!({}), &["a running", "b pending"], "");
    check(json!({}), json!({}), &["a running", "b succeeded"], "+");
    check(json!({}), json!({"succeeded": 2}), &["b succeeded-"], "+");
    check(json!({}), json!({"succeeded": 2}), &["c succeeded"], "CompletionsReached");
    check(json!({}), json!({"succeeded": 1}), &["b succeeded", "c succeeded"], "CompletionsReached");
    check(json!({}), json!({"succeeded": 3}), &["d running"], "-d");
    check(json!({"parallelism": 1}), json!({}), &["a running", "b pending"], "-b");
    check(json!({"parallelism": 0}), json!({}), &["a running"], "-a");
    check(json!({"completions": 0}), json!({}), &[], "CompletionsReached");
    check(json!({"suspend": true}), json!({}), &["a running"], "-a");
    check(json!({"suspend": true}), json!({}), &[], "");
    // One that is named in the status, and has its finalizer still, counts once.
    let named = json!({"succeeded": 1, "uncountedTerminatedPods": {"succeeded": ["b"]}});
    check(json!({}), named, &["b succeeded"], "+");
}

#[test]
fn without_a_number_the_first_success_ends_it() {
    let any = json!({"completions": null});
    check(any.clone(), json!({}), &["a running"], "+");
    check(any.clone(), json!({}), &["a running", "b succeeded"], "");
    check(any, json!({}), &["b succeeded"], "CompletionsReached");
}

#[test]
fn failures_wait_and_end() {
    check(json!({}), json!({}), &["a failed"], "~10");
    check(json!({}), json!({}), &["a failed-early"], "+ +");
    check(json!({}), json!({"failed": 1}), &["a failed-early-"], "+ +");
    check(json!({}), json!({"failed": 1}), &["b failed"], "BackoffLimitExceeded");
    check(json!({}), json!({}), &["a failed", "b failed"], "BackoffLimitExceeded");
    check(json!({"backoffLimit": 0}), json!({}), &["a failed"], "BackoffLimitExceeded");
    // What is deleted has failed, unless its end is waited for.
    check(json!({"backoffLimit": 0}), json!({}), &["a ending"], "BackoffLimitExceeded");
    let patient = json!({"podReplacementPolicy": "Failed", "parallelism": 1});
    check(patient.clone(), json!({}), &["a ending"], "");
    check(patient, json!({}), &["a ending", "b succeeded"], "");
    // What was said once stays, whatever the pods do.
    let target = json!({"conditions": [{"type": "FailureTarget", "status": "True", "reason": "Why"}]});
    check(json!({}), target, &["a running"], "Why");
    let met = json!({"conditions": [{"type": "SuccessCriteriaMet", "status": "True", "reason": "So"}]});
    check(json!({}), met, &["a failed", "b failed"], "So");
    let late = json!({"startTime": "2026-01-01T00:59:00Z"});
    check(json!({"activeDeadlineSeconds": 60}), late.clone(), &[], "DeadlineExceeded");
    check(json!({"activeDeadlineSeconds": 61}), late.clone(), &[], "+ +");
    check(json!({"activeDeadlineSeconds": 60, "suspend": true}), late, &[], "");
}

#[test]
fn restarts_within_a_pod_are_failures() {
    let in_place = json!({"template": {"spec": {"restartPolicy": "OnFailure"}}, "parallelism": 1});
    let job = job(in_place, json!({}));
    let check = |restarts: u32, expected: &str| {
        let mut pod = (*pod("a running")).clone();
        pod["status"]["containerStatuses"] = json!([{"restartCount": restarts}]);
        let pods = [Arc::new(pod)];
        let found = match verdict(&View::of(&job, &pods), now()) {
            Some(Verdict::Fails { reason, .. }) => reason,
            _ => String::new(),
        };
        assert_eq!(found, expected);
    };
    check(0, "");
    check(1, "BackoffLimitExceeded");
}

#[test]
fn a_failure_policy_decides() {
    let policy = json!({"podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1]}},
    ]}});
    check(policy.clone(), json!({}), &["a failed42"], "PodFailurePolicy");
    check(policy.clone(), json!({"failed": 1}), &["a failed", "b failed"], "~20");
    check(policy, json!({"failed": 1}), &["a failed-early"], "BackoffLimitExceeded");
}

#[test]
fn each_index_has_one_pod() {
    let with = |more: Value| {
        let mut spec = json!({"completionMode": "Indexed"});
        coracle_api::patch::merge(&mut spec, more);
        spec
    };
    let indexed = with(json!({}));
    check(indexed.clone(), json!({}), &[], "+0 +1");
    check(indexed.clone(), json!({}), &["a running:1"], "+0");
    check(indexed.clone(), json!({"completedIndexes": "0"}), &["a running:1"], "+2");
    check(indexed.clone(), json!({}), &["a succeeded:0", "b running:1"], "+2");
    check(indexed.clone(), json!({"completedIndexes": "0,1"}), &["a succeeded:2"], "CompletionsReached");
    // Twice the same, one that is out of range, one without.
    check(indexed.clone(), json!({}), &["a running:1", "b pending:1"], "-b");
    check(indexed.clone(), json!({}), &["a running:7", "b pending"], "-a -b");
    check(indexed.clone(), json!({"failed": 1}), &["a failed:0"], "BackoffLimitExceeded");
    check(indexed, json!({}), &["a failed:0"], "~10");

    let each = with(json!({"backoffLimitPerIndex": 1, "backoffLimit": 99}));
    check(each.clone(), json!({}), &["a failed-early:0"], "+0:1 +1");
    check(each.clone(), json!({}), &["a failed:0"], "+1 ~10");
    check(each.clone(), json!({}), &["a failed-early:0", "b running:0:1"], "+1");
    // The second failure is one too many for that index, and the others go on.
    check(each.clone(), json!({}), &["b failed-early:0:1"], "+1 +2");
    check(each.clone(), json!({"failedIndexes": "0", "completedIndexes": "1,2"}), &[], "FailedIndexes");
    let few = with(json!({"backoffLimitPerIndex": 0, "backoffLimit": 99, "maxFailedIndexes": 0}));
    check(few, json!({}), &["a failed:0"], "MaxFailedIndexesExceeded");

    let rule = with(json!({"successPolicy": {"rules": [{"succeededIndexes": "1-2", "succeededCount": 1}]}}));
    check(rule.clone(), json!({}), &["a succeeded:0", "b running:1", "c running:2"], "");
    check(rule, json!({}), &["b succeeded:1", "c running:2"], "SuccessPolicy");
}

#[test]
fn pods_are_counted_once() {
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "cells of a table")]
    fn check(spec: Value, before: Value, pods: &[&str], named: Value, released: &[&str]) {
        let job = job(spec, before);
        let pods: Vec<Arc<Value>> = pods.iter().map(|text| pod(text)).collect();
        let view = View::of(&job, &pods);
        let tracked = status::track(&view, verdict(&view, now()).as_ref(), now());
        assert_eq!(tracked.status["uncountedTerminatedPods"], named, "{job}");
        let found: Vec<&str> = tracked.release.iter().map(|pod| uid(pod)).collect();
        assert_eq!(found, released, "{job}");
    }
    check(json!({}), json!({}), &["a running"], json!({}), &[]);
    check(json!({}), json!({}), &["a succeeded"], json!({"succeeded": ["a"]}), &["a"]);
    check(json!({}), json!({}), &["a failed", "b running"], json!({"failed": ["a"]}), &["a"]);
    let named = json!({"uncountedTerminatedPods": {"succeeded": ["a"]}});
    check(json!({}), named.clone(), &["a succeeded"], json!({"succeeded": ["a"]}), &["a"]);
    // It has lost its finalizer: it is a number now.
    check(json!({}), named, &["a succeeded-"], json!({}), &[]);
    // All that is left has failed with the job.
    check(
        json!({"backoffLimit": 0}),
        json!({}),
        &["a failed", "b ending"],
        json!({"failed": ["a", "b"]}),
        &["a", "b"],
    );
    let indexed = json!({"completionMode": "Indexed"});
    check(indexed, json!({}), &["a succeeded:1", "b failed:0"], json!({"failed": ["b"]}), &["a", "b"]);
    // One that tells its successor how often the index has failed waits for it.
    let each = json!({"completionMode": "Indexed", "backoffLimitPerIndex": 1});
    check(each.clone(), json!({}), &["a failed:0"], json!({}), &[]);
    check(each, json!({}), &["a failed:0", "b running:0:1"], json!({"failed": ["a"]}), &["a"]);
}

#[test]
fn the_end_waits_for_the_last_pod() {
    let mut told =
        json!({"failed": 1, "uncountedTerminatedPods": {"failed": ["a", "b"], "succeeded": ["c"]}});
    let verdict = Verdict::Fails { reason: "Why".into(), message: "So".into() };
    assert!(!status::finish(&mut told, &verdict, 0, now()), "some are not counted");
    status::settle(&mut told, &["b"].into());
    assert_eq!(told, json!({"failed": 2, "succeeded": 1, "uncountedTerminatedPods": {"failed": ["b"]}}));
    status::settle(&mut told, &BTreeSet::new());
    assert!(!status::finish(&mut told, &verdict, 1, now()), "one is ending");
    assert!(status::finish(&mut told, &verdict, 0, now()));
    assert_eq!(told["failed"], 3);
    assert_eq!(status::ended(&json!({"status": told})), Some((false, "Why".into(), "So".into())));
}

#[test]
fn a_job_that_is_suspended_says_so_and_starts_anew() {
    let check = |suspend: bool, before: Value, expected: (Option<bool>, Option<&str>)| {
        let job = job(json!({"suspend": suspend}), before);
        let tracked = status::track(&View::of(&job, &[]), None, now());
        assert_eq!((tracked.suspended, tracked.status["startTime"].as_str()), expected, "{job}");
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z");
    let suspended = |status: &str| {
        let reason = if status == "True" { "JobSuspended" } else { "JobResumed" };
        let message = if status == "True" { "Job suspended" } else { "Job resumed" };
        json!({"startTime": early, "conditions": [
            {"type": "Suspended", "status": status, "reason": reason, "message": message},
        ]})
    };
    check(false, json!({}), (None, Some(late)));
    check(true, json!({}), (Some(true), None));
    check(true, suspended("True"), (None, Some(early)));
    check(false, suspended("True"), (Some(false), Some(late)));
    check(false, suspended("False"), (None, Some(early)));
}
