//! What a cron job needs next: what its status says of its jobs, which of them go, whether one starts now. Pure.
//!
//! A time has one job, by its name, and is over once `lastScheduleTime` has reached it: neither a clock that is set back nor a
//! crash starts it again.

use crate::clock::stamp;
use crate::controllers::events::Kind;
use crate::kinds::schedule::{Schedule, zone};
use crate::object::{at, fields, is_terminating, items, name, text, uid};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// So many missed times are one too many to be likely.
const MISSED_MAX: usize = 100;
/// A wait is never longer: the clock may be set meanwhile, which no timer is told of.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What a user is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// Whether it is a warning.
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Said {
    /// As events have it.
    pub fn kind(&self) -> Kind {
        if self.warning { Kind::Warning } else { Kind::Normal }
    }
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The status, but for what is started now.
    pub status: Value,
    /// Said once, as it happens.
    pub events: Vec<Said>,
    /// What is so: it is said when it begins to be.
    pub standing: Vec<Said>,
    /// Jobs that nobody looks at any more.
    pub old: Vec<Arc<Value>>,
    /// Jobs that run and make way for the next one.
    pub replaced: Vec<Arc<Value>>,
    /// The time whose job starts.
    pub start: Option<Timestamp>,
    pub again: Option<Duration>,
}

fn finished(job: &Value) -> Option<&str> {
    let mut conditions = items(job, &["status", "conditions"]).iter();
    let told = conditions.find(|told| {
        matches!(text(told, &["type"]), "Complete" | "Failed") && text(told, &["status"]) == "True"
    })?;
    Some(text(told, &["type"]))
}

/// Whether a job is over.
pub fn is_finished(job: &Value) -> bool {
    finished(job).is_some()
}

fn time(object: &Value, path: &[&str]) -> Option<Timestamp> {
    text(object, path).parse().ok()
}

/// What a cron job needs; `jobs` are those that it controls.
pub fn plan(cron: &Value, jobs: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan { status: at(cron, &["status"]).clone(), ..Plan::default() };
    plan.old = old(cron, jobs);
    report(cron, jobs, &mut plan);
    if is_terminating(cron) {
        return plan;
    }
    let stand = |reason, message| Said { warning: true, reason, message };
    let place = text(cron, &["spec", "timeZone"]);
    let place = match zone(place) {
        Ok(zone) => zone,
        Err(error) => {
            plan.standing.push(stand("UnknownTimeZone", format!("invalid timeZone: {place:?}: {error}")));
            return plan;
        }
    };
    if at(cron, &["spec", "suspend"]).as_bool() == Some(true) {
        return plan;
    }
    let written = text(cron, &["spec", "schedule"]);
    let schedule = match Schedule::read(written, &place) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {written:?} : {error}");
            plan.standing.push(stand("UnparseableSchedule", message));
            return plan;
        }
    };
    start(cron, jobs, &schedule, now, &mut plan);
    plan
}

/// What has become of its jobs.
fn report(cron: &Value, jobs: &[Arc<Value>], plan: &mut Plan) {
    let listed = items(cron, &["status", "active"]);
    let mut active = Vec::new();
    for reference in listed {
        let job = jobs.iter().find(|job| uid(job) == text(reference, &["uid"]));
        match job.map(|job| (job, finished(job))) {
            Some((_, None)) => active.push(reference.clone()),
            Some((job, Some(condition))) => plan.events.push(Said {
                warning: false,
                reason: "SawCompletedJob",
                message: format!("Saw completed job: {}, condition: {condition}", name(job)),
            }),
            None => plan.events.push(Said {
                warning: false,
                reason: "MissingJob",
                message: format!("Active job went missing: {}", text(reference, &["name"])),
            }),
        }
    }
    for job in jobs.iter().filter(|job| finished(job).is_none()) {
        if listed.iter().all(|reference| text(reference, &["uid"]) != uid(job)) {
            let message = format!("Saw a job that the controller did not create or forgot: {}", name(job));
            plan.standing.push(Said { warning: true, reason: "UnexpectedJob", message });
        }
    }
    let succeeded = jobs.iter().filter(|job| finished(job) == Some("Complete"));
    let ends = succeeded.filter_map(|job| time(job, &["status", "completionTime"]));
    let last = ends.chain(time(cron, &["status", "lastSuccessfulTime"])).max();
    let status = fields(&mut plan.status);
    if active.is_empty() {
        status.remove("active");
    } else {
        status.insert("active".into(), active.into());
    }
    if let Some(last) = last {
        status.insert("lastSuccessfulTime".into(), stamp(last).into());
    }
}

/// Finished jobs beyond the limits, those that started first.
fn old(cron: &Value, jobs: &[Arc<Value>]) -> Vec<Arc<Value>> {
    let mut old = Vec::new();
    for (kind, limit) in [("Complete", "successfulJobsHistoryLimit"), ("Failed", "failedJobsHistoryLimit")] {
        let Some(limit) = at(cron, &["spec", limit]).as_u64() else { continue };
        let is_kind = |job: &&Arc<Value>| finished(job) == Some(kind) && !is_terminating(job);
        let mut those: Vec<Arc<Value>> = jobs.iter().filter(is_kind).cloned().collect();
        // One that has never started is the newest.
        those.sort_by_key(|job| {
            let start = time(job, &["status", "startTime"]);
            (start.is_none(), start, name(job).to_string())
        });
        let surplus = those.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        old.extend(those.into_iter().take(surplus));
    }
    old
}

/// Whether a job starts now, and when the next look is.
fn start(cron: &Value, jobs: &[Arc<Value>], schedule: &Schedule, now: Timestamp, plan: &mut Plan) {
    let begun = time(cron, &["metadata", "creationTimestamp"]).unwrap_or(now);
    let last = time(cron, &["status", "lastScheduleTime"]);
    let since = last.unwrap_or(begun);
    let deadline = at(cron, &["spec", "startingDeadlineSeconds"]).as_i64();
    let too_early = deadline.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    let due = schedule.latest(too_early.map_or(since, |early| early.max(since)), now);
    // What an interval counts from.
    let anchor = schedule.latest(since, now).unwrap_or(since);
    plan.again = schedule.next(anchor).map(|next| {
        Duration::try_from(next.duration_since(now))
            .unwrap_or_default()
            .clamp(Duration::from_millis(1), LOOK_AGAIN)
    });
    let Some(due) = due else {
        // It is told of as long as no later one has been started.
        if let Some(missed) = schedule.latest(since, now) {
            let when = missed.strftime("%a, %d %b %Y %H:%M:%S +0000");
            let message = format!("Missed scheduled time to start a job: {when}");
            plan.standing.push(Said { warning: true, reason: "MissSchedule", message });
        }
        return;
    };
    if has_missed_many(schedule, too_early.map_or(since, |early| early.max(since)), now) {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.standing.push(Said { warning: true, reason: "TooManyMissedTimes", message: message.into() });
    }
    let name_of_job = job_name(cron, due);
    let active = items(&plan.status, &["active"]);
    if last == Some(due) || active.iter().any(|reference| text(reference, &["name"]) == name_of_job) {
        return;
    }
    match text(cron, &["spec", "concurrencyPolicy"]) {
        "Forbid" if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.standing.push(Said { warning: false, reason: "JobAlreadyActive", message: message.into() });
            return;
        }
        "Replace" => {
            let runs =
                |job: &&Arc<Value>| active.iter().any(|reference| text(reference, &["uid"]) == uid(job));
            plan.replaced = jobs.iter().filter(runs).cloned().collect();
        }
        _ => {}
    }
    // The job of a crash between its start and the status is no surprise.
    let suffix = format!(": {name_of_job}");
    plan.standing.retain(|said| said.reason != "UnexpectedJob" || !said.message.ends_with(&suffix));
    plan.start = Some(due);
}

fn has_missed_many(schedule: &Schedule, since: Timestamp, now: Timestamp) -> bool {
    let mut last = since;
    for _ in 0..=MISSED_MAX {
        match schedule.next(last) {
            Some(next) if next <= now => last = next,
            _ => return false,
        }
    }
    true
}

/// `NAME-MINUTES`, since 1970.
pub fn job_name(cron: &Value, time: Timestamp) -> String {
    format!("{}-{}", name(cron), time.as_second().div_euclid(60))
}

/// The job of a time.
pub fn job(cron: &Value, time: Timestamp) -> Value {
    let template = at(cron, &["spec", "jobTemplate"]);
    let mut annotations = at(template, &["metadata", "annotations"]).clone();
    let zone = zone(text(cron, &["spec", "timeZone"])).unwrap_or(TimeZone::UTC);
    let local = time.to_zoned(zone.clone());
    // Go writes UTC as Z.
    let written = match zone == TimeZone::UTC {
        true => stamp(time),
        false => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    fields(&mut annotations).insert("batch.kubernetes.io/cronjob-scheduled-timestamp".into(), written.into());
    let mut metadata = json!({
        "name": job_name(cron, time),
        "namespace": crate::object::namespace(cron),
        "annotations": annotations,
        "ownerReferences": [crate::controllers::owned::controller_reference(cron)],
    });
    let labels = at(template, &["metadata", "labels"]);
    if !labels.is_null() {
        metadata["labels"] = labels.clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": at(template, &["spec"])})
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
