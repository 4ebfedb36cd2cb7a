//! Jobs (`batch/v1`): pods until enough of them have ended well.
//!
//! ```text
//! its pods ─► plan: over? ─ no ─► too many go, missing ones are made (after a failure: later)
//!                     └─ yes ─► the rest goes
//!          ─► status: those that ended are counted once, by their finalizer ─► Complete | Failed
//! ```
//! What is to be done is decided by [`plan`], what is counted by [`status`]; both are pure. Pods whose job is gone, or over, lose
//! the finalizer here too: their keys are in the same queue.

mod failure;
mod indexes;
mod plan;
mod status;

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{JOBS, PODS};
use super::owned::{
    candidates, claim_held, concerned, controlled, controller_key, controller_of, delete_pods, from_template,
    make_pods,
};
use crate::object::{self, at, child, fields, is_terminating, name, namespace, text, uid};
use coracle_api::status::{Reason, StatusError};
use failure::Backoff;
use plan::{Fresh, INDEX, INDEX_FAILURES, INDEX_IGNORED, TRACKED, Verdict, View, is_finished, is_tracked};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that a generated name keeps of its base.
const GENERATED_BASE_BYTES_MAX: usize = 58;
/// Who looks after a job that names nobody.
const MANAGER: &str = "kubernetes.io/job-controller";

/// The controller.
pub struct Jobs {
    client: Client,
    recorder: Recorder,
    /// Of jobs that are not over, by uid.
    backoffs: Mutex<HashMap<String, Backoff>>,
}

impl Jobs {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> Jobs {
        Jobs { client, recorder, backoffs: Mutex::default() }
    }

    fn backoff(&self, job: &Value) -> Option<Backoff> {
        self.backoffs.lock().unwrap_or_else(PoisonError::into_inner).get(uid(job)).copied()
    }

    fn remember(&self, job: &str, backoff: Option<Backoff>) {
        let mut backoffs = self.backoffs.lock().unwrap_or_else(PoisonError::into_inner);
        match backoff {
            Some(backoff) => backoffs.insert(job.to_string(), backoff),
            None => backoffs.remove(job),
        };
    }
}

/// Whether another controller looks after a job, or a pod of it.
fn is_foreign(job: &Value) -> bool {
    !matches!(text(job, &["spec", "managedBy"]), "" | MANAGER)
}

impl Controller for Jobs {
    const NAME: &'static str = "job";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*JOBS) {
            let mut keys = vec![change.key.clone()];
            if let Some(job) = change.gone(cache) {
                self.remember(uid(&job), None);
                keys.extend(cache.dependents(uid(&job)).into_iter().filter(|key| key.is(*PODS)));
                // Those that it has let go, or would have adopted.
                let pods = cache.list(*PODS, namespace(&job)).into_iter();
                let loose = pods.filter(|pod| is_tracked(pod) && controller_of(pod).is_none());
                keys.extend(loose.map(|pod| Key::of(*PODS, namespace(&pod), name(&pod))));
            }
            return keys;
        }
        if !change.of(*PODS) {
            return Vec::new();
        }
        let mut keys = Vec::new();
        for pod in change.states(cache) {
            let jobs = concerned(&pod, change.new.is_some(), *JOBS, cache);
            if is_tracked(&pod) && (jobs.is_empty() || controller_of(&pod).is_none()) {
                keys.push(change.key.clone());
            }
            keys.extend(jobs);
        }
        keys
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        if key.is(*PODS) {
            return self.forsaken(key).await;
        }
        let Some(job) = self.client.cache().get(key) else { return Ok(Next::Done) };
        if is_foreign(&job) {
            return Ok(Next::Done);
        }
        if is_finished(&job) {
            self.remember(uid(&job), None);
            let late = self.pods(&job).into_iter().filter(|pod| is_tracked(pod)).collect();
            self.release(late).await?;
            return Ok(Next::Done);
        }
        let pods = claim_held(&self.client, &job, TRACKED).await?;
        let now = crate::clock::now();
        let view = View::of(&job, &pods);
        let known = self.backoff(&job);
        let mut verdict = plan::verdict(&view, now);
        let (done, again) = if verdict.is_some() {
            let active: Vec<Arc<Value>> = view.active.iter().map(|pod| (*pod).clone()).collect();
            (delete_pods(&self.client, &self.recorder, &job, &active).await, None)
        } else if is_terminating(&job) {
            (Ok(()), None)
        } else {
            self.step(&job, plan::step(&view, view.backoff(known, now), now)).await
        };
        // As they are now.
        let pods = self.pods(&job);
        let view = View::of(&job, &pods);
        // Whatever could not be deleted may still end well.
        verdict = if done.is_ok() { verdict.or_else(|| plan::completion(&view)) } else { None };
        self.count(&job, &view, verdict.as_ref(), known).await?;
        done?;
        let job = self.client.cache().get(key);
        let deadline = job.as_deref().filter(|job| !is_finished(job)).and_then(plan::deadline);
        let left =
            deadline.map(|deadline| Duration::try_from(deadline.duration_since(now)).unwrap_or_default());
        Ok(Next::at(again).earlier(Next::at(left)))
    }
}

impl Jobs {
    fn pods(&self, job: &Value) -> Vec<Arc<Value>> {
        controlled(self.client.cache(), job, *PODS)
    }

    /// A pod that has the finalizer, and no job that would count it.
    async fn forsaken(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(pod) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let foreign = match controller_of(&pod) {
            Some(owner) => {
                let ours =
                    text(owner, &["kind"]) == JOBS.kind && text(owner, &["apiVersion"]).starts_with("batch/");
                let job = controller_key(&pod, *JOBS, self.client.cache());
                let job = job.and_then(|job| self.client.cache().get(&job));
                !ours || job.is_some_and(|job| is_foreign(&job) || !is_finished(&job))
            }
            // Who selects it will adopt it, unless it is itself on its way out.
            None => candidates(&pod, *JOBS, self.client.cache()).iter().any(|job| {
                let job = self.client.cache().get(job);
                job.is_some_and(|job| !is_terminating(&job) && !is_finished(&job))
            }),
        };
        if !foreign && is_tracked(&pod) {
            self.release(vec![pod]).await?;
        }
        Ok(Next::Done)
    }

    async fn release(&self, pods: Vec<Arc<Value>>) -> Result<(), StatusError> {
        let patch = |pod: &Arc<Value>| (Key::of(*PODS, namespace(pod), name(pod)), status::released(pod));
        let failed = self.client.merge_all(pods.iter().map(patch).collect()).await;
        failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    async fn step(&self, job: &Value, step: plan::Step) -> (Result<(), StatusError>, Option<Duration>) {
        let done = if step.delete.is_empty() {
            let pods = step.make.iter().map(|fresh| pod(job, fresh)).collect();
            make_pods(&self.client, &self.recorder, job, pods).await
        } else {
            // These are no failures: they are not to be counted.
            let tracked = step.delete.iter().filter(|pod| is_tracked(pod)).cloned().collect();
            match self.release(tracked).await {
                Ok(()) => delete_pods(&self.client, &self.recorder, job, &step.delete).await,
                Err(error) => Err(error),
            }
        };
        (done, step.again)
    }

    /// Counts what has ended, and ends the job.
    async fn count(
        &self,
        job: &Value,
        view: &View<'_>,
        verdict: Option<&Verdict>,
        known: Option<Backoff>,
    ) -> Result<(), StatusError> {
        let tracked = status::track(view, verdict, crate::clock::now());
        let Some(mut job) = self.write(job.clone(), tracked.status).await? else { return Ok(()) };
        self.remember(uid(&job), Some(view.backoff(known, crate::clock::now())));
        match tracked.suspended {
            Some(true) => self.recorder.say(&job, Kind::Normal, "Suspended", "Job suspended"),
            Some(false) => self.recorder.say(&job, Kind::Normal, "Resumed", "Job resumed"),
            None => {}
        }
        let released = self.release(tracked.release).await;
        let pods = self.pods(&job);
        let held: BTreeSet<&str> = pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid(pod)).collect();
        let mut status = at(&job, &["status"]).clone();
        status::settle(&mut status, &held);
        let terminating = View::of(&job, &pods).terminating();
        status::set_terminating(&mut status, terminating);
        let ended = match verdict {
            Some(verdict) if released.is_ok() && !tracked.more => {
                status::finish(&mut status, verdict, terminating, crate::clock::now())
            }
            _ => false,
        };
        if let Some(written) = self.write(job.clone(), status).await? {
            job = written;
            if ended {
                self.say_ended(&job);
            }
        }
        released
    }

    /// Writes the status if it is another one; the job as it is then, or nothing when it is gone.
    async fn write(&self, mut job: Value, status: Value) -> Result<Option<Value>, StatusError> {
        if status == *at(&job, &["status"]) {
            return Ok(Some(job));
        }
        fields(&mut job).insert("status".into(), status);
        match self.client.update(job, Some("status")).await {
            Ok(written) => Ok(Some(written)),
            Err(error) if error.reason == Reason::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn say_ended(&self, job: &Value) {
        match status::ended(job) {
            Some((true, ..)) => {
                let succeeded = at(job, &["status", "succeeded"]).as_i64().unwrap_or_default();
                if plan::number(job, "completions").is_some_and(|wanted| succeeded > wanted) {
                    let text = "Too many succeeded pods running after completion count reached";
                    self.recorder.say(job, Kind::Warning, "TooManySucceededPods", text);
                }
                self.recorder.say(job, Kind::Normal, "Completed", "Job completed");
            }
            Some((false, reason, message)) => self.recorder.say(job, Kind::Warning, reason, message),
            None => {}
        }
    }
}

/// A pod of a job.
fn pod(job: &Value, fresh: &Fresh) -> Value {
    let mut pod = from_template(at(job, &["spec", "template"]), job);
    let mut finalizers = super::owned::without_finalizer(&pod, TRACKED);
    finalizers.push(TRACKED.into());
    object::set_meta(&mut pod, "finalizers", finalizers);
    let Some(index) = fresh.index else { return pod };
    // The index stays whole, whatever becomes of the name.
    let suffix = format!("-{index}-");
    let kept = GENERATED_BASE_BYTES_MAX.saturating_sub(suffix.len());
    let base = name(job).get(..kept).unwrap_or(name(job));
    object::set_meta(&mut pod, "generateName", format!("{base}{suffix}"));
    let metadata = child(&mut pod, "metadata");
    let annotations = fields(child(metadata, "annotations"));
    annotations.insert(INDEX.into(), index.to_string().into());
    if let Some((failures, ignored)) = fresh.failures {
        annotations.insert(INDEX_FAILURES.into(), failures.to_string().into());
        if ignored > 0 {
            annotations.insert(INDEX_IGNORED.into(), ignored.to_string().into());
        }
    }
    fields(child(metadata, "labels")).insert(INDEX.into(), index.to_string().into());
    let spec = child(&mut pod, "spec");
    fields(spec).insert("hostname".into(), format!("{}-{index}", name(job)).into());
    for list in ["initContainers", "containers"] {
        for container in object::items_mut(spec, list) {
            let mut env = object::items(container, &["env"]).to_vec();
            if env.iter().all(|var| text(var, &["name"]) != "JOB_COMPLETION_INDEX") {
                let from = json!({"fieldRef": {"fieldPath": format!("metadata.labels['{INDEX}']")}});
                env.push(json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": from}));
                fields(container).insert("env".into(), env.into());
            }
        }
    }
    pod
}
