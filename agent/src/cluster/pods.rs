//! The pods of this node: from the API to the engine, and how they are from the engine to the API.
//!
//! One task: it watches `spec.nodeName=NODE`, passes on what it hears, and makes the steps of the [`Outbox`], a few at a
//! time. There is no period and no delay in it; what waits, waits for an event or for a back-off.

use super::client::{Client, ClientError, Collection};
use super::outbox::{Outbox, Step};
use super::reports::Reports;
use super::watch::{Delta, follow};
use crate::engine::Message;
use coracle_api::patch::PatchType;
use coracle_api::status::Reason;
use k8s_openapi::api::core::v1::Pod;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Changes that wait to be passed on.
const DELTAS_MAX: usize = 16;
/// Requests under way.
const STEPS_MAX: usize = 4;
/// With nothing that is due.
const IDLE: Duration = Duration::from_secs(24 * 3600);

/// What the task needs.
pub(crate) struct Pods {
    pub client: Client,
    pub node_name: String,
    /// The Node's uid, once it is registered.
    pub node_uid: watch::Receiver<Option<String>>,
    pub engine: mpsc::Sender<Message>,
    pub reports: Reports,
}

impl Pods {
    /// Until the engine is gone.
    pub(crate) async fn run(mut self) {
        let (send, mut deltas) = mpsc::channel(DELTAS_MAX);
        let query = vec![("fieldSelector", format!("spec.nodeName={}", self.node_name))];
        let path = Collection::PODS.of("");
        tokio::spawn(follow::<Pod, _>(self.client.clone(), path, query, send, |delta| delta));
        let mut outbox = Outbox::new(self.node_name.clone());
        let mut steps = JoinSet::new();
        loop {
            for (uid, step) in outbox.steps(STEPS_MAX.saturating_sub(steps.len()), Instant::now()) {
                let client = self.client.clone();
                steps.spawn(async move { (uid, make(&client, step).await) });
            }
            let due = outbox.next_due().unwrap_or_else(|| Instant::now() + IDLE);
            tokio::select! {
                delta = deltas.recv() => {
                    let Some(delta) = delta else { return };
                    match &delta {
                        Delta::All(pods) => outbox.all(pods),
                        Delta::Changed(pod) => outbox.changed(pod),
                        Delta::Deleted(pod) => outbox.deleted(pod),
                    }
                    if self.engine.send(Message::Api(Box::new(delta))).await.is_err() {
                        return;
                    }
                }
                reports = self.reports.take() => {
                    let now = Instant::now();
                    for report in reports.into_values() {
                        outbox.report(report, now);
                    }
                }
                Some(made) = steps.join_next() => {
                    let (uid, made) = made.expect("a request does not panic");
                    match &made {
                        Ok(Made::Pod(pod)) => outbox.changed(pod),
                        Ok(Made::Vanished) => outbox.vanished(&uid),
                        Err(error) => warn!(uid, %error, "the API server was not told of a pod; tried again"),
                    }
                    outbox.done(&uid, made.is_ok(), Instant::now());
                }
                Ok(()) = self.node_uid.changed() => {
                    if let Some(uid) = self.node_uid.borrow_and_update().clone() {
                        outbox.node(uid);
                    }
                }
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }
}

/// What a step came to.
enum Made {
    /// The pod as the API has it now.
    Pod(Box<Pod>),
    /// It is not there, or is another one of that name.
    Vanished,
}

async fn make(client: &Client, step: Step) -> Result<Made, ClientError> {
    debug!(step = step.path(), "told");
    let made = match step {
        // Without its namespace there is nothing to be told: tried again.
        Step::CreateMirror { path, pod } => return client.create(&path, &pod).await.map(Made::Pod),
        Step::PatchStatus { path, patch } => {
            client.patch(&path, PatchType::StrategicMerge, &patch).await.map(Made::Pod)
        }
        Step::Delete { path, options } => client.delete(&path, &options).await.map(|()| Made::Vanished),
    };
    match made {
        Err(error) if matches!(error.reason(), Some(Reason::NotFound | Reason::Conflict)) => {
            Ok(Made::Vanished)
        }
        made => made,
    }
}
