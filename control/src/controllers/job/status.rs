//! What a job's status says, and which pods are counted by it. Pure.
//!
//! ```text
//! track: pods that ended are named in uncountedTerminatedPods ─► written ─► they lose their finalizer
//! settle: who has lost it is a number ─► finish: nobody is left to count or to end: Complete or Failed ─► written
//! ```
//! A crash between any two steps counts no pod twice, and forgets none.

use super::failure::{Action, judge};
use super::plan::{
    TRACKED, Verdict, View, condition, has_failed, index_of, is_suspended, is_tracked, uncounted,
};
use crate::clock::stamp;
use crate::controllers::owned::ready_since;
use crate::object::{at, child, fields, is_terminating, items, text, uid};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Pods that one look counts, as upstream: their uids stay below 20 KB.
const UNCOUNTED_MAX: usize = 500;

/// The first half of the count.
pub struct Tracked {
    pub status: Value,
    /// Pods that lose [`TRACKED`] once the status is written.
    pub release: Vec<Arc<Value>>,
    /// Whether there are more of them.
    pub more: bool,
    /// `Suspended` has changed to this.
    pub suspended: Option<bool>,
}

/// The status that names what is to be counted.
pub fn track(view: &View<'_>, verdict: Option<&Verdict>, now: Timestamp) -> Tracked {
    let job = view.job;
    let mut status = at(job, &["status"]).clone();
    set_count(&mut status, "active", view.active.len());
    let ready = view.active.iter().filter(|pod| ready_since(pod).is_some()).count();
    let set = fields(&mut status);
    // Pointers in Go: they are there when they are zero.
    set.insert("ready".into(), ready.into());
    set.insert("terminating".into(), view.terminating().into());
    if at(job, &["status", "startTime"]).is_null() && !is_suspended(job) {
        set.insert("startTime".into(), stamp(now).into());
    }
    let mut suspended = None;
    if verdict.is_none() && !is_terminating(job) {
        let changed = if is_suspended(job) {
            ensure(&mut status, "Suspended", true, ("JobSuspended", "Job suspended"), now)
        } else {
            ensure(&mut status, "Suspended", false, ("JobResumed", "Job resumed"), now)
        };
        suspended = changed.then(|| is_suspended(job));
        if suspended == Some(false) {
            fields(&mut status).insert("startTime".into(), stamp(now).into());
        }
    }
    let held: BTreeSet<&str> = view.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid(pod)).collect();
    settle(&mut status, &held);
    let (release, more) = name_ended(view, verdict, &mut status);
    match verdict {
        Some(Verdict::Fails { reason, message }) => {
            ensure(&mut status, "FailureTarget", true, (reason, message), now);
        }
        Some(Verdict::Succeeds { reason, message }) => {
            ensure(&mut status, "SuccessCriteriaMet", true, (reason, message), now);
        }
        None => {}
    }
    Tracked { status, release, more, suspended }
}

/// Names pods that have ended; those that are to lose their finalizer, and whether there are more than one look takes.
fn name_ended(view: &View<'_>, verdict: Option<&Verdict>, status: &mut Value) -> (Vec<Arc<Value>>, bool) {
    let job = view.job;
    let failing = matches!(verdict, Some(Verdict::Fails { .. }));
    let (succeeded_before, failed_before) = (uncounted(job, "succeeded"), uncounted(job, "failed"));
    let list = |key: &str| items(status, &["uncountedTerminatedPods", key]).to_vec();
    let (mut succeeded, mut failed) = (list("succeeded"), list("failed"));
    let mut indexes = BTreeSet::new();
    let mut release = Vec::new();
    let mut more = false;
    for pod in view.pods.iter().filter(|pod| is_tracked(pod)) {
        let index = index_of(pod);
        let is_succeeded = text(pod, &["status", "phase"]) == "Succeeded";
        let is_failed = has_failed(job, pod);
        let waits_for_successor = view.indexed.as_ref().is_some_and(|indexed| {
            index.and_then(|index| indexed.predecessors.get(&index)).is_some_and(|last| uid(last) == uid(pod))
        });
        let done =
            is_terminating(job) || verdict.is_some() || is_succeeded || is_failed && !waits_for_successor;
        if !done {
            continue;
        }
        if indexes.len() + succeeded.len() + failed.len() >= UNCOUNTED_MAX {
            more = true;
            break;
        }
        release.push(pod.clone());
        let valid = view.indexed.as_ref().is_none_or(|of| index.is_some_and(|index| index < of.completions));
        if is_succeeded && !failed_before.contains(uid(pod)) {
            match (&view.indexed, index) {
                (None, _) if !succeeded_before.contains(uid(pod)) => succeeded.push(uid(pod).into()),
                (Some(of), Some(index)) if valid && !of.before.has(index) => {
                    indexes.insert(index);
                }
                _ => {}
            }
        } else if (is_failed || failing)
            && valid
            && !failed_before.contains(uid(pod))
            && judge(job, pod) != Action::Ignore
        {
            failed.push(uid(pod).into());
        }
    }
    let mut named = json!({});
    for (key, list) in [("succeeded", succeeded), ("failed", failed)] {
        if !list.is_empty() {
            named[key] = list.into();
        }
    }
    fields(status).insert("uncountedTerminatedPods".into(), named);
    if let Some(indexed) = &view.indexed {
        let all = indexed.before.with(indexes);
        set_count(status, "succeeded", usize::try_from(all.total()).unwrap_or_default());
        set_text(status, "completedIndexes", &all.to_string());
        if let Some(failed) = &indexed.failed {
            fields(status).insert("failedIndexes".into(), failed.to_string().into());
        }
    }
    (release, more)
}

/// Counts those that are named and have no finalizer any more.
pub fn settle(status: &mut Value, held: &BTreeSet<&str>) {
    for key in ["succeeded", "failed"] {
        let named = items(status, &["uncountedTerminatedPods", key]).to_vec();
        let (left, gone): (Vec<Value>, Vec<Value>) =
            named.into_iter().partition(|uid| uid.as_str().is_some_and(|uid| held.contains(uid)));
        if gone.is_empty() {
            continue;
        }
        let before = at(status, &[key]).as_u64().and_then(|count| usize::try_from(count).ok());
        set_count(status, key, before.unwrap_or_default() + gone.len());
        let lists = fields(child(status, "uncountedTerminatedPods"));
        if left.is_empty() {
            lists.remove(key);
        } else {
            lists.insert(key.into(), left.into());
        }
    }
}

/// Ends the job, once there is nobody to count and nobody to wait for; whether it did.
pub fn finish(status: &mut Value, verdict: &Verdict, terminating: usize, now: Timestamp) -> bool {
    let named = |key: &str| !items(status, &["uncountedTerminatedPods", key]).is_empty();
    if terminating > 0 || named("succeeded") || named("failed") {
        return false;
    }
    match verdict {
        Verdict::Fails { reason, message } => ensure(status, "Failed", true, (reason, message), now),
        Verdict::Succeeds { reason, message } => {
            fields(status).insert("completionTime".into(), stamp(now).into());
            ensure(status, "Complete", true, (reason, message), now)
        }
    }
}

/// Sets the number of pods that were told to end and have not.
pub fn set_terminating(status: &mut Value, terminating: usize) {
    fields(status).insert("terminating".into(), terminating.into());
}

/// The finalizers of a pod that is counted.
pub fn released(pod: &Value) -> Value {
    let left = crate::controllers::owned::without_finalizer(pod, TRACKED);
    let left = if left.is_empty() { Value::Null } else { left.into() };
    let version = text(pod, &["metadata", "resourceVersion"]);
    json!({"metadata": {"uid": uid(pod), "resourceVersion": version, "finalizers": left}})
}

fn set_count(status: &mut Value, key: &str, count: usize) {
    // Go leaves a zero out.
    match count {
        0 => fields(status).remove(key),
        _ => fields(status).insert(key.into(), count.into()),
    };
}

fn set_text(status: &mut Value, key: &str, text: &str) {
    match text {
        "" => fields(status).remove(key),
        _ => fields(status).insert(key.into(), text.into()),
    };
}

/// Sets a condition; whether it changed. One that was never there does not begin by being false.
fn ensure(status: &mut Value, kind: &str, is: bool, (reason, message): (&str, &str), now: Timestamp) -> bool {
    let state = if is { "True" } else { "False" };
    let mut conditions = items(status, &["conditions"]).to_vec();
    let fresh = json!({
        "type": kind, "status": state, "reason": reason, "message": message,
        "lastProbeTime": stamp(now), "lastTransitionTime": stamp(now),
    });
    match conditions.iter_mut().find(|told| text(told, &["type"]) == kind) {
        Some(told) => {
            let same = |key: &str| at(told, &[key]) == &fresh[key];
            if same("status") && same("reason") && same("message") {
                return false;
            }
            *told = fresh;
        }
        None if !is => return false,
        None => conditions.push(fresh),
    }
    fields(status).insert("conditions".into(), conditions.into());
    true
}

/// For events: how it ended.
pub fn ended(job: &Value) -> Option<(bool, String, String)> {
    let of = |told: &Value| (text(told, &["reason"]).to_string(), text(told, &["message"]).to_string());
    if let Some(told) = condition(job, "Failed") {
        let (reason, message) = of(told);
        return Some((false, reason, message));
    }
    let (reason, message) = of(condition(job, "Complete")?);
    Some((true, reason, message))
}
