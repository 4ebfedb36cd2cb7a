//! Cron jobs (`batch/v1`): a job at each time of a schedule.
//!
//! ```text
//! its jobs, the clock ─► plan ─► old ones go, replaced ones go, the next one is made by the name of its time ─► status
//! ```
//! What is to be done is decided by [`plan`], which is pure.

mod plan;

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::events::{Kind, Recorder, reference};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{CRON_JOBS, JOBS};
use super::owned::{controlled, controller_key, controls, ends_with_namespace};
use crate::clock::stamp;
use crate::object::{at, fields, items, name, namespace, text, uid};
use crate::registry::options::Propagation;
use coracle_api::status::{Reason, StatusError};
use jiff::Timestamp;
use plan::{Plan, Said};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// The controller.
pub struct CronJobs {
    client: Client,
    recorder: Recorder,
    /// What was so at the last look, by uid: it is not said again.
    standing: Mutex<HashMap<String, BTreeSet<Said>>>,
}

impl CronJobs {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> CronJobs {
        CronJobs { client, recorder, standing: Mutex::default() }
    }
}

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*CRON_JOBS) {
            if let Some(cron) = change.gone(cache) {
                self.standing.lock().unwrap_or_else(PoisonError::into_inner).remove(uid(&cron));
            }
            return vec![change.key.clone()];
        }
        if !change.of(*JOBS) {
            return Vec::new();
        }
        change.states(cache).filter_map(|job| controller_key(&job, *CRON_JOBS, cache)).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(cron) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let jobs = controlled(self.client.cache(), &cron, *JOBS);
        let plan = plan::plan(&cron, &jobs, crate::clock::now());
        let mut status = plan.status.clone();
        self.say(&cron, &plan);
        for job in &plan.old {
            self.delete(&cron, job).await?;
        }
        for job in &plan.replaced {
            self.delete(&cron, job).await?;
            let left = items(&status, &["active"]).iter();
            let left: Vec<Value> =
                left.filter(|reference| text(reference, &["uid"]) != uid(job)).cloned().collect();
            fields(&mut status).insert("active".into(), left.into());
        }
        let started = match plan.start {
            Some(time) => self.start(&cron, time, &mut status).await,
            None => Ok(()),
        };
        if status != *at(&cron, &["status"]) {
            let mut cron = (*cron).clone();
            fields(&mut cron).insert("status".into(), status);
            self.client.update(cron, Some("status")).await?;
        }
        started.map(|()| Next::at(plan.again))
    }
}

impl CronJobs {
    fn say(&self, cron: &Value, plan: &Plan) {
        let now: BTreeSet<Said> = plan.standing.iter().cloned().collect();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = standing.insert(uid(cron).to_string(), now.clone()).unwrap_or_default();
        for said in plan.events.iter().chain(now.difference(&before)) {
            self.recorder.say(cron, said.kind(), said.reason, said.message.clone());
        }
    }

    async fn delete(&self, cron: &Value, job: &Value) -> Result<(), StatusError> {
        let key = Key::of(*JOBS, namespace(job), name(job));
        let how = Delete { grace: None, propagation: Some(Propagation::Background) };
        match self.client.delete(&key, uid(job), how).await {
            Ok(()) => {
                let text = format!("Deleted job {}", name(job));
                self.recorder.say(cron, Kind::Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Err(error) => {
                self.recorder.say(cron, Kind::Warning, "FailedDelete", format!("Deleted job: {error}"));
                Err(error)
            }
        }
    }

    /// Makes the job of a time, or finds that it is there already, and names it in the status.
    async fn start(&self, cron: &Value, time: Timestamp, status: &mut Value) -> Result<(), StatusError> {
        let wanted = plan::job(cron, time);
        let job = match self.client.create(*JOBS, wanted.clone()).await {
            Ok(job) => {
                let text = format!("Created job {}", name(&job));
                self.recorder.say(cron, Kind::Normal, "SuccessfulCreate", text);
                job
            }
            Err(error) if error.reason == Reason::AlreadyExists => {
                let key = Key::of(*JOBS, namespace(cron), name(&wanted));
                let job = self.client.registry().get(&key.target()).await?;
                // Somebody else's job has this name; the next time has another.
                if !controls(cron, &job) {
                    return Ok(());
                }
                job
            }
            Err(error) if ends_with_namespace(&error) => return Err(error),
            Err(error) => {
                let text = format!("Error creating job: {error}");
                self.recorder.say(cron, Kind::Warning, "FailedCreate", text);
                return Err(error);
            }
        };
        let mut active = items(status, &["active"]).to_vec();
        if !plan::is_finished(&job) {
            active.push(reference(&job));
        }
        let status = fields(status);
        status.insert("active".into(), active.into());
        status.insert("lastScheduleTime".into(), stamp(time).into());
        Ok(())
    }
}
