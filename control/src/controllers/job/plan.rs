//! What a job needs next: whether it has ended, which pods are to be made or to go. Pure.
//!
//! ```text
//! job, its pods ─► View ─► verdict? ── yes ─► its active pods go, all that is left is counted
//!                           └── no ─► step: too many go, missing ones are made once the back-off has passed
//! ```
//! A pod that ended counts once: as long as it has the finalizer [`TRACKED`] it is not in the status' numbers, or is named in
//! `uncountedTerminatedPods`.

use super::failure::{Action, Backoff, finished_at, judge, wait_left};
use super::indexes::Indexes;
use crate::controllers::owned::{is_active, without_finalizer};
use crate::controllers::replica_set::surplus;
use crate::object::{at, is_terminating, items, text, uid};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// The finalizer of pods that are not counted yet.
pub const TRACKED: &str = "batch.kubernetes.io/job-tracking";
/// The annotation, and label, of a pod of an indexed job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often an index has failed before this pod, and how many of these failures did not count.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// See [`INDEX_FAILURES`].
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Pods that one look makes or deletes, as upstream.
const BURST: usize = 500;

/// `spec.NUMBER`.
pub fn number(job: &Value, key: &str) -> Option<i64> {
    at(job, &["spec", key]).as_i64()
}

/// `spec.suspend`.
pub fn is_suspended(job: &Value) -> bool {
    at(job, &["spec", "suspend"]).as_bool() == Some(true)
}

/// The condition of a type that is true.
pub fn condition<'a>(job: &'a Value, kind: &str) -> Option<&'a Value> {
    let mut conditions = items(job, &["status", "conditions"]).iter();
    conditions.find(|told| text(told, &["type"]) == kind && text(told, &["status"]) == "True")
}

/// Whether it is over.
pub fn is_finished(job: &Value) -> bool {
    condition(job, "Complete").or_else(|| condition(job, "Failed")).is_some()
}

/// Whether a pod is not counted yet.
pub fn is_tracked(pod: &Value) -> bool {
    without_finalizer(pod, TRACKED).len() != items(pod, &["metadata", "finalizers"]).len()
}

fn phase(pod: &Value) -> &str {
    text(pod, &["status", "phase"])
}

/// Whether pods are replaced only once they have ended.
fn replaces_ended_only(job: &Value) -> bool {
    text(job, &["spec", "podReplacementPolicy"]) == "Failed"
        || at(job, &["spec", "podFailurePolicy"]).is_object()
}

fn annotation(pod: &Value, key: &str) -> Option<i64> {
    text(pod, &["metadata", "annotations", key]).parse().ok().filter(|number| *number >= 0)
}

/// The index of a pod, if it has a sensible one.
pub fn index_of(pod: &Value) -> Option<i64> {
    annotation(pod, INDEX)
}

/// How a job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its pods have done what was asked.
    Succeeds {
        reason: String,
        message: String,
    },
    Fails {
        reason: String,
        message: String,
    },
}

/// A job with its pods, sorted.
pub struct View<'a> {
    pub job: &'a Value,
    pub pods: &'a [Arc<Value>],
    pub active: Vec<&'a Arc<Value>>,
    /// Pods that ended well and are not in the status yet.
    pub succeeded: Vec<&'a Arc<Value>>,
    /// The same for those that failed; some may not count.
    pub failed: Vec<&'a Arc<Value>>,
    /// Of an indexed job.
    pub indexed: Option<Indexed<'a>>,
}

/// What an indexed job knows of its indexes.
pub struct Indexed<'a> {
    pub completions: i64,
    /// As in the status.
    pub before: Indexes,
    pub succeeded: Indexes,
    /// With `backoffLimitPerIndex`.
    pub failed: Option<Indexes>,
    /// Per index the last failed pod, which tells its successor how often the index has failed. It keeps its finalizer
    /// until the successor is there.
    pub predecessors: BTreeMap<i64, &'a Arc<Value>>,
}

impl<'a> View<'a> {
    pub fn of(job: &'a Value, pods: &'a [Arc<Value>]) -> View<'a> {
        let completions = match text(job, &["spec", "completionMode"]) {
            "Indexed" => Some(number(job, "completions").unwrap_or_default()),
            _ => None,
        };
        let is_valid = |pod: &Value| {
            completions.is_none_or(|completions| index_of(pod).is_some_and(|index| index < completions))
        };
        let new = |list: &str, ended: &dyn Fn(&Value) -> bool| -> Vec<&'a Arc<Value>> {
            let named = uncounted(job, list);
            let is_new = |pod: &&Arc<Value>| {
                is_tracked(pod) && !named.contains(uid(pod)) && is_valid(pod) && ended(pod)
            };
            pods.iter().filter(is_new).collect()
        };
        let mut view = View {
            job,
            pods,
            active: pods.iter().filter(|pod| is_active(pod)).collect(),
            succeeded: new("succeeded", &|pod| phase(pod) == "Succeeded"),
            failed: new("failed", &|pod| has_failed(job, pod)),
            indexed: None,
        };
        view.indexed = completions.map(|completions| view.indexed(completions));
        view
    }

    fn indexed(&self, completions: i64) -> Indexed<'a> {
        let before = Indexes::read(text(self.job, &["status", "completedIndexes"]), completions);
        let succeeded = before.with(self.succeeded.iter().filter_map(|pod| index_of(pod)));
        let mut indexed =
            Indexed { completions, before, succeeded, failed: None, predecessors: BTreeMap::new() };
        let Some(limit) = number(self.job, "backoffLimitPerIndex") else { return indexed };
        let tracked = |pod: &&&Arc<Value>| {
            is_tracked(pod)
                && has_failed(self.job, pod)
                && index_of(pod).is_some_and(|index| index < completions)
        };
        let lost = |pod: &Value| match judge(self.job, pod) {
            Action::FailIndex => true,
            Action::Ignore => false,
            Action::Count | Action::FailJob(_) => {
                annotation(pod, INDEX_FAILURES).unwrap_or_default() >= limit
            }
        };
        let new = self.pods.iter().filter(|pod| tracked(&pod) && lost(pod)).filter_map(|pod| index_of(pod));
        let failed = Indexes::read(text(self.job, &["status", "failedIndexes"]), completions).with(new);
        for pod in self.pods.iter().filter(|pod| tracked(&pod)) {
            let Some(index) = index_of(pod) else { continue };
            if indexed.succeeded.has(index) || failed.has(index) {
                continue;
            }
            let last = indexed.predecessors.entry(index).or_insert(pod);
            if all_failures(pod) > all_failures(last) {
                *last = pod;
            }
        }
        // One that has a successor has told it.
        for pod in self.pods.iter().filter(|pod| !has_failed(self.job, pod)) {
            if let Some(index) = index_of(pod)
                && indexed.predecessors.get(&index).is_some_and(|last| all_failures(pod) > all_failures(last))
            {
                indexed.predecessors.remove(&index);
            }
        }
        indexed.failed = Some(failed);
        indexed
    }

    /// How many have succeeded in all.
    pub fn succeeded(&self) -> i64 {
        match &self.indexed {
            Some(indexed) => indexed.succeeded.total(),
            None => self.counted("succeeded") + count(self.succeeded.len()),
        }
    }

    /// How many failures count.
    fn failed(&self) -> i64 {
        let counting = self.failed.iter().filter(|pod| judge(self.job, pod) != Action::Ignore);
        self.counted("failed") + count(counting.count())
    }

    fn counted(&self, list: &str) -> i64 {
        at(self.job, &["status", list]).as_i64().unwrap_or_default() + count(uncounted(self.job, list).len())
    }

    /// Pods that were told to end and have not.
    pub fn terminating(&self) -> usize {
        let going = |pod: &&Arc<Value>| is_terminating(pod) && !matches!(phase(pod), "Succeeded" | "Failed");
        self.pods.iter().filter(going).count()
    }

    /// The failures in a row, with those that ended since.
    pub fn backoff(&self, known: Option<Backoff>, now: Timestamp) -> Backoff {
        let times = |pods: &[&Arc<Value>]| pods.iter().map(|pod| finished_at(pod, now)).collect::<Vec<_>>();
        match known {
            Some(known) => known.with(&times(&self.succeeded), &times(&self.failed)),
            // Nobody remembers (this control plane has just begun to lead): what there still is tells.
            None => {
                let those = |is: &dyn Fn(&Value) -> bool| {
                    self.pods
                        .iter()
                        .filter(|pod| is(pod))
                        .map(|pod| finished_at(pod, now))
                        .collect::<Vec<_>>()
                };
                let (succeeded, failed) =
                    (those(&|pod| phase(pod) == "Succeeded"), those(&|pod| has_failed(self.job, pod)));
                Backoff::default().with(&succeeded, &failed)
            }
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn all_failures(pod: &Value) -> i64 {
    let of = |key: &str| annotation(pod, key).unwrap_or_default();
    of(INDEX_FAILURES).saturating_add(of(INDEX_IGNORED))
}

/// The pods that the status names, and that may still have their finalizer.
pub fn uncounted(job: &Value, list: &str) -> BTreeSet<String> {
    let uids = items(job, &["status", "uncountedTerminatedPods", list]).iter();
    uids.filter_map(|uid| uid.as_str().map(str::to_string)).collect()
}

/// Whether a pod has failed; one that is deleted has, unless its end is waited for.
pub fn has_failed(job: &Value, pod: &Value) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => is_terminating(pod) && !replaces_ended_only(job),
    }
}

/// Whether the job has ended, or is about to.
pub fn verdict(view: &View<'_>, now: Timestamp) -> Option<Verdict> {
    let job = view.job;
    let fails =
        |reason: &str, message: &str| Some(Verdict::Fails { reason: reason.into(), message: message.into() });
    let said = |told: &Value| (text(told, &["reason"]).to_string(), text(told, &["message"]).to_string());
    // What was said once stays.
    if let Some(told) = condition(job, "SuccessCriteriaMet") {
        let (reason, message) = said(told);
        return Some(Verdict::Succeeds { reason, message });
    }
    if let Some(told) = condition(job, "FailureTarget") {
        let (reason, message) = said(told);
        return Some(Verdict::Fails { reason, message });
    }
    for pod in view.pods.iter().filter(|pod| has_failed(job, pod)) {
        if let Action::FailJob(why) = judge(job, pod) {
            return fails("PodFailurePolicy", &why);
        }
    }
    let limit = number(job, "backoffLimit").unwrap_or(6);
    if view.failed() > limit || restarted_too_often(view, limit) {
        return fails("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline(job).is_some_and(|deadline| deadline <= now) {
        return fails("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let indexed = view.indexed.as_ref()?;
    if let Some(failed) = indexed.failed.as_ref().map(Indexes::total) {
        if number(job, "maxFailedIndexes").is_some_and(|most| failed > most) {
            let why = "Job has exceeded the specified maximal number of failed indexes";
            return fails("MaxFailedIndexesExceeded", why);
        }
        if failed > 0 && failed + indexed.succeeded.total() >= indexed.completions {
            return fails("FailedIndexes", "Job has failed indexes");
        }
    }
    let rules = items(job, &["spec", "successPolicy", "rules"]);
    let met = rules.iter().position(|rule| meets(rule, indexed))?;
    let message = format!("Matched rules at index {met}");
    Some(Verdict::Succeeds { reason: "SuccessPolicy".into(), message })
}

fn meets(rule: &Value, indexed: &Indexed<'_>) -> bool {
    let wanted = at(rule, &["succeededCount"]).as_i64();
    let Some(named) = at(rule, &["succeededIndexes"]).as_str() else {
        return wanted.is_some_and(|wanted| indexed.succeeded.total() >= wanted);
    };
    let named = Indexes::read(named, indexed.completions);
    let common = named.common(&indexed.succeeded);
    named.total() > 0 && (common == named.total() || wanted.is_some_and(|wanted| common >= wanted))
}

/// A success that needs no pod any more.
pub fn completion(view: &View<'_>) -> Option<Verdict> {
    let enough = match number(view.job, "completions") {
        Some(completions) => view.succeeded() >= completions,
        None => view.succeeded() > 0,
    };
    (enough && view.active.is_empty()).then(|| Verdict::Succeeds {
        reason: "CompletionsReached".into(),
        message: "Reached expected number of succeeded pods".into(),
    })
}

/// Containers of `restartPolicy: OnFailure` are restarted in their pod: those restarts count as failures.
fn restarted_too_often(view: &View<'_>, limit: i64) -> bool {
    if text(view.job, &["spec", "template", "spec", "restartPolicy"]) != "OnFailure" {
        return false;
    }
    let alive = view.pods.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    let restarts: i64 = alive
        .flat_map(|pod| {
            let lists = ["containerStatuses", "initContainerStatuses"];
            lists.into_iter().flat_map(|list| items(pod, &["status", list]))
        })
        .filter_map(|status| at(status, &["restartCount"]).as_i64())
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// When it has been active for too long.
pub fn deadline(job: &Value) -> Option<Timestamp> {
    let seconds = number(job, "activeDeadlineSeconds").filter(|_| !is_suspended(job))?;
    let start: Timestamp = text(job, &["status", "startTime"]).parse().ok()?;
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// A pod to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Of an indexed job.
    pub index: Option<i64>,
    /// How often its index has failed, and how many of these do not count; with `backoffLimitPerIndex`.
    pub failures: Option<(i64, i64)>,
}

/// What is to be done for a job that goes on.
#[derive(Debug, Default, PartialEq)]
pub struct Step {
    /// Pods that are too many. They are not counted as failures.
    pub delete: Vec<Arc<Value>>,
    pub make: Vec<Fresh>,
    /// Then it is to be looked at again.
    pub again: Option<Duration>,
}

/// What to do next.
pub fn step(view: &View<'_>, backoff: Backoff, now: Timestamp) -> Step {
    let active = count(view.active.len());
    let parallelism = number(view.job, "parallelism").unwrap_or(1);
    let wanted = match number(view.job, "completions") {
        _ if is_suspended(view.job) => 0,
        Some(completions) => (completions - view.succeeded()).clamp(0, parallelism.max(0)),
        // After the first success the others may end by themselves.
        None if view.succeeded() > 0 => active,
        None => parallelism,
    };
    let delete = too_many(view, usize::try_from(active - wanted).unwrap_or_default());
    if !delete.is_empty() {
        return Step { delete, ..Step::default() };
    }
    let held = if replaces_ended_only(view.job) { count(view.terminating()) } else { 0 };
    let missing = usize::try_from(wanted - active - held).unwrap_or_default().min(BURST);
    if missing == 0 || is_suspended(view.job) {
        return Step::default();
    }
    match &view.indexed {
        Some(indexed) => missing_indexes(view, indexed, missing, backoff, now),
        None => match backoff.left(now) {
            left if left.is_zero() => {
                Step { make: vec![Fresh { index: None, failures: None }; missing], ..Step::default() }
            }
            left => Step { again: Some(left), ..Step::default() },
        },
    }
}

fn missing_indexes(
    view: &View<'_>,
    indexed: &Indexed<'_>,
    missing: usize,
    backoff: Backoff,
    now: Timestamp,
) -> Step {
    let going = |pod: &&Arc<Value>| {
        is_active(pod) || replaces_ended_only(view.job) && is_terminating(pod) && !has_failed(view.job, pod)
    };
    let taken = view.pods.iter().filter(going).filter_map(|pod| index_of(pod));
    let over = indexed.failed.iter().fold(indexed.succeeded.clone(), |all, failed| all.and(failed));
    let open = over.with(taken).missing(missing, indexed.completions);
    let mut step = Step::default();
    for index in open {
        let (left, failures) = match (&indexed.failed, indexed.predecessors.get(&index)) {
            (None, _) => (backoff.left(now), None),
            (Some(_), None) => (Duration::ZERO, Some((0, 0))),
            (Some(_), Some(last)) => {
                let of = |key: &str| annotation(last, key).unwrap_or_default();
                let ignored = i64::from(judge(view.job, last) == Action::Ignore);
                let failures = (of(INDEX_FAILURES) + 1 - ignored, of(INDEX_IGNORED) + ignored);
                let in_a_row = u32::try_from(all_failures(last) + 1).unwrap_or(u32::MAX);
                (wait_left(in_a_row, Some(finished_at(last, now)), now), Some(failures))
            }
        };
        if left.is_zero() {
            step.make.push(Fresh { index: Some(index), failures });
        } else {
            step.again = Some(step.again.map_or(left, |again| again.min(left)));
        }
    }
    step
}

/// The pods that go: of an index that another one has, without a sensible index, and the least useful ones.
fn too_many(view: &View<'_>, least: usize) -> Vec<Arc<Value>> {
    let (mut gone, mut left): (Vec<Arc<Value>>, Vec<&Arc<Value>>) = (Vec::new(), Vec::new());
    match &view.indexed {
        None => left.extend(view.active.iter().copied()),
        Some(indexed) => {
            let mut by_index: BTreeMap<i64, Vec<&Arc<Value>>> = BTreeMap::new();
            for pod in &view.active {
                match index_of(pod).filter(|index| *index < indexed.completions) {
                    Some(index) => by_index.entry(index).or_default().push(pod),
                    None => gone.push((*pod).clone()),
                }
            }
            for same in by_index.values() {
                let others = surplus(same, same.len().saturating_sub(1));
                left.extend(same.iter().filter(|pod| others.iter().all(|other| uid(other) != uid(pod))));
                gone.extend(others);
            }
        }
    }
    gone.extend(surplus(&left, least.saturating_sub(gone.len())));
    gone.truncate(BURST);
    gone
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
