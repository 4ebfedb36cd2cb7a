//! A cron job that users ask for, change and take back. When the faults stop it is suspended: then what it started ends.

use super::board::{create, list, patch, target};
use super::who;
use crate::controllers::kinds::CRON_JOBS;
use crate::object::{self, at, items, text};
use crate::registry::Registry;
use crate::registry::options::DeleteOptions;
use crate::simulated::Random;
use serde_json::{Value, json};

const NAMESPACE: &str = "default";
const NAME: &str = "tide";
/// Jobs that ended and are kept, of each kind.
const KEPT: usize = 1;

/// Whether there is one.
#[derive(Debug, Default)]
pub(super) struct Timed(bool);

/// Whether a job is the cron job's.
pub(super) fn is_of_it(job: &Value) -> bool {
    items(job, &["metadata", "ownerReferences"]).iter().any(|owner| text(owner, &["kind"]) == "CronJob")
}

impl Timed {
    /// One, another policy, or none any more; what that was.
    pub async fn change(&mut self, registry: &Registry, random: &mut Random) -> String {
        let of = target(*CRON_JOBS, NAMESPACE, NAME);
        let policy = ["Allow", "Forbid", "Replace"][random.below(3)];
        if !self.0 {
            let pod = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": "example.test/tide:1"}]});
            let cron = json!({
                "metadata": {"name": NAME},
                "spec": {
                    "schedule": "* * * * *", "concurrencyPolicy": policy,
                    "successfulJobsHistoryLimit": KEPT, "failedJobsHistoryLimit": KEPT,
                    "jobTemplate": {"spec": {"backoffLimit": 1000, "template": {"spec": pod}}},
                },
            });
            create(registry, *CRON_JOBS, NAMESPACE, cron).await;
            self.0 = true;
            return format!("{NAME} each minute, {policy}");
        }
        if random.percent(20) {
            registry.delete(&who(), &of, &DeleteOptions::default()).await.expect("it is there");
            self.0 = false;
            return format!("delete {NAME}");
        }
        let suspend = random.percent(30);
        let spec = json!({"concurrencyPolicy": policy, "suspend": suspend});
        patch(registry, &of, None, json!({"spec": spec})).await;
        format!("{NAME} {policy}, suspended: {suspend}")
    }

    /// No more of them from now on.
    pub async fn suspend(&self, registry: &Registry) {
        if self.0 {
            let of = target(*CRON_JOBS, NAMESPACE, NAME);
            patch(registry, &of, None, json!({"spec": {"suspend": true}})).await;
        }
    }

    /// Why not all that it started is over and cleared away, of all jobs.
    pub async fn unmet(&self, registry: &Registry, jobs: &[Value]) -> Option<String> {
        let mine: Vec<&Value> = jobs.iter().filter(|job| is_of_it(job)).collect();
        if !self.0 {
            return mine.first().map(|job| format!("{} was deleted with its cron job", object::name(job)));
        }
        let is_over = |job: &Value| {
            let mut conditions = items(job, &["status", "conditions"]).iter();
            conditions.any(|of| {
                matches!(text(of, &["type"]), "Complete" | "Failed") && text(of, &["status"]) == "True"
            })
        };
        if let Some(job) = mine.iter().find(|job| !is_over(job)) {
            return Some(format!("{} is not over: {}", object::name(job), at(job, &["status"])));
        }
        if mine.len() > 2 * KEPT {
            return Some(format!("{} jobs of {NAME} are kept", mine.len()));
        }
        let crons = list(registry, *CRON_JOBS).await;
        let active = crons.iter().map(|cron| items(cron, &["status", "active"]).len()).sum::<usize>();
        (active > 0).then(|| format!("{NAME} believes that {active} jobs run"))
    }
}
