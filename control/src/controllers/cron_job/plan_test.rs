//! Cron jobs at many times: what starts, what is missed, what goes; and clocks that are set.

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "cells of a table")]
fn cron(spec: &Value, status: Value) -> Value {
    let mut cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "c", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"schedule": "0 * * * *", "concurrencyPolicy": "Allow",
            "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1},
        "status": status,
    });
    coracle_api::patch::merge(&mut cron["spec"], spec.clone());
    cron
}

fn at_time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// What starts, and what is told, in short.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "cells of a table")]
fn check(spec: Value, last: &str, now: &str, starts: Option<&str>, told: &[&str]) {
    let status = if last.is_empty() { json!({}) } else { json!({"lastScheduleTime": last}) };
    let plan = plan(&cron(&spec, status), &[], at_time(now));
    let reasons: Vec<&str> = plan.standing.iter().map(|said| said.reason).collect();
    assert_eq!(plan.start.map(|time| time.to_string()).as_deref(), starts, "{spec} {last} {now}");
    assert_eq!(reasons, told, "{spec} {last} {now}");
}

#[test]
fn each_time_starts_one_job() {
    let (two, three) = ("2026-01-01T02:00:00Z", "2026-01-01T03:00:00Z");
    check(json!({}), "", "2026-01-01T00:59:59Z", None, &[]);
    check(json!({}), "", "2026-01-01T01:00:00Z", Some("2026-01-01T01:00:00Z"), &[]);
    check(json!({}), two, "2026-01-01T02:00:00Z", None, &[]);
    check(json!({}), two, "2026-01-01T02:59:59Z", None, &[]);
    check(json!({}), two, "2026-01-01T03:00:00.5Z", Some(three), &[]);
    // What was missed meanwhile is made up for once.
    check(json!({}), two, "2026-01-03T03:30:00Z", Some("2026-01-03T03:00:00Z"), &[]);
    check(json!({}), two, "2026-01-09T03:30:00Z", Some("2026-01-09T03:00:00Z"), &["TooManyMissedTimes"]);
    check(json!({"suspend": true}), two, three, None, &[]);
    check(json!({"schedule": "@every 90m"}), two, "2026-01-01T03:30:00Z", Some("2026-01-01T03:30:00Z"), &[]);
    check(
        json!({"timeZone": "Asia/Kolkata"}),
        two,
        "2026-01-01T02:30:00Z",
        Some("2026-01-01T02:30:00Z"),
        &[],
    );
    check(json!({"timeZone": "Moon/Base"}), two, three, None, &["UnknownTimeZone"]);
    check(json!({"schedule": "soon"}), two, three, None, &["UnparseableSchedule"]);
    // A time that never comes.
    check(json!({"schedule": "0 0 31 2 *"}), "", "2036-01-01T00:00:00Z", None, &[]);
}

#[test]
fn too_late_is_missed() {
    let (two, three) = ("2026-01-01T02:00:00Z", "2026-01-01T03:00:00Z");
    let within = |seconds: i64| json!({"startingDeadlineSeconds": seconds});
    check(within(60), two, "2026-01-01T03:00:59Z", Some(three), &[]);
    check(within(60), two, "2026-01-01T03:02:00Z", None, &["MissSchedule"]);
    check(within(60), two, "2026-01-09T03:00:30Z", Some("2026-01-09T03:00:00Z"), &[]);
    let message =
        plan(&cron(&within(60), json!({"lastScheduleTime": two})), &[], at_time("2026-01-01T03:02:00Z"));
    let expected = "Missed scheduled time to start a job: Thu, 01 Jan 2026 03:00:00 +0000";
    assert_eq!(message.standing[0].message, expected);
}

#[test]
fn a_clock_that_is_set_starts_nothing_twice() {
    let mut last = String::new();
    let mut started = Vec::new();
    // On, back by hours, on again, far on, back, on.
    for now in [
        "2026-01-01T01:00:10Z",
        "2026-01-01T02:00:10Z",
        "2026-01-01T00:30:00Z",
        "2026-01-01T01:00:10Z",
        "2026-01-01T02:00:10Z",
        "2026-01-01T03:00:10Z",
        "2026-01-02T12:00:10Z",
        "2026-01-01T04:00:10Z",
        "2026-01-02T12:00:30Z",
        "2026-01-02T13:00:00Z",
    ] {
        let status = if last.is_empty() { json!({}) } else { json!({"lastScheduleTime": last}) };
        let plan = plan(&cron(&json!({}), status), &[], at_time(now));
        let again = plan.again.expect("always looks again");
        assert!(again <= LOOK_AGAIN && !again.is_zero(), "{now}: {again:?}");
        if let Some(time) = plan.start {
            last = time.to_string();
            started.push(last.clone());
        }
    }
    let expected = ["01T01", "01T02", "01T03", "02T12", "02T13"].map(|time| format!("2026-01-{time}:00:00Z"));
    assert_eq!(started, expected);
    let mut once = started.clone();
    once.dedup();
    assert_eq!(once, started);
}

fn job(name: &str, condition: &str, start: &str) -> Arc<Value> {
    Arc::new(json!({
        "metadata": {"name": name, "uid": name},
        "status": {"startTime": start, "completionTime": start, "conditions": [
            {"type": condition, "status": "True"},
        ]},
    }))
}

#[test]
fn jobs_that_still_run_are_waited_for_replaced_or_joined() {
    let runs = [job("c-1", "Suspended", "2026-01-01T01:00:00Z")];
    let listed =
        json!({"active": [{"name": "c-1", "uid": "c-1"}], "lastScheduleTime": "2026-01-01T01:00:00Z"});
    let check = |policy: &str, starts: bool, replaced: &[&str], told: &[&str]| {
        let cron = cron(&json!({"concurrencyPolicy": policy}), listed.clone());
        let plan = plan(&cron, &runs, at_time("2026-01-01T02:00:00Z"));
        let names: Vec<&str> = plan.replaced.iter().map(|job| name(job)).collect();
        let reasons: Vec<&str> = plan.standing.iter().map(|said| said.reason).collect();
        assert_eq!((plan.start.is_some(), &names[..], &reasons[..]), (starts, replaced, told), "{policy}");
        assert_eq!(plan.status["active"], listed["active"]);
    };
    check("Allow", true, &[], &[]);
    check("Forbid", false, &[], &["JobAlreadyActive"]);
    check("Replace", true, &["c-1"], &[]);
}

#[test]
fn a_crash_after_the_start_is_made_good() {
    // The job is there, the status does not know of it.
    let due = at_time("2026-01-01T01:00:00Z");
    let cron = cron(&json!({"concurrencyPolicy": "Forbid"}), json!({}));
    let made = job(&job_name(&cron, due), "Suspended", "");
    let by_hand = job("by-hand", "Suspended", "");
    let plan = plan(&cron, &[made, by_hand], at_time("2026-01-01T01:00:01Z"));
    assert_eq!(plan.start, Some(due), "by the same name");
    let told: Vec<&str> = plan.standing.iter().map(|said| said.message.as_str()).collect();
    assert_eq!(told, ["Saw a job that the controller did not create or forgot: by-hand"]);
}

#[test]
fn jobs_that_ended_are_reported_and_the_oldest_go() {
    let jobs: Vec<Arc<Value>> = (1..=5)
        .map(|hour| job(&format!("good-{hour}"), "Complete", &format!("2026-01-01T0{hour}:00:00Z")))
        .chain(
            (1..=2).map(|hour| job(&format!("bad-{hour}"), "Failed", &format!("2026-01-01T0{hour}:30:00Z"))),
        )
        .collect();
    let listed = ["good-5", "bad-2", "lost"].map(|name| json!({"name": name, "uid": name}));
    let status = json!({"active": listed, "lastScheduleTime": "2026-01-01T06:00:00Z"});
    let plan = plan(&cron(&json!({}), status), &jobs, at_time("2026-01-01T06:00:30Z"));
    let old: Vec<&str> = plan.old.iter().map(|job| name(job)).collect();
    assert_eq!(old, ["good-1", "good-2", "bad-1"]);
    let told: Vec<String> =
        plan.events.iter().map(|said| format!("{} {}", said.reason, said.message)).collect();
    assert_eq!(
        told,
        [
            "SawCompletedJob Saw completed job: good-5, condition: Complete",
            "SawCompletedJob Saw completed job: bad-2, condition: Failed",
            "MissingJob Active job went missing: lost",
        ]
    );
    let expected =
        json!({"lastScheduleTime": "2026-01-01T06:00:00Z", "lastSuccessfulTime": "2026-01-01T05:00:00Z"});
    assert_eq!(plan.status, expected);
}

#[test]
fn a_job_is_named_by_its_minute() {
    let spec = json!({"timeZone": "Europe/Berlin", "jobTemplate": {
        "metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}}, "spec": {"parallelism": 2},
    }});
    let job = super::job(&cron(&spec, json!({})), at_time("2026-01-01T01:00:00Z"));
    assert_eq!(job["metadata"]["name"], "c-29453820");
    assert_eq!(job["metadata"]["labels"], json!({"a": "b"}));
    let expected =
        json!({"x": "y", "batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-01-01T02:00:00+01:00"});
    assert_eq!(job["metadata"]["annotations"], expected);
    assert_eq!(job["metadata"]["ownerReferences"][0]["uid"], "u");
    assert_eq!(job["spec"], json!({"parallelism": 2}));
}
