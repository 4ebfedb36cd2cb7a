//! What keeps the cluster as it is asked to be, and the scheduler's place among it.
//!
//! ```text
//! storage ─► Cache (one watch, every kind) ─► keys ─► Queue ─► Controller::reconcile ─► Client ─► registry
//!                └─► the scheduler                                                        └─ waits for the cache
//! ```
//! All are clients of the registry in this process. One control plane of those that share an etcd runs them: who holds the
//! Lease; with the embedded storage there is only one. When the lead is lost everything here is dropped, cache and all, and
//! begins anew with the next term: nothing is remembered but what is stored.
//!
//! Invariants: no polling; what fails is tried again with back-off; a controller that is idle writes nothing.

mod autoscaler;
pub mod cache;
pub mod client;
mod compaction;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
pub mod events;
pub mod frame;
mod garbage;
mod history;
mod job;
pub mod key;
pub mod kinds;
mod leader;
mod namespace;
mod node_lifecycle;
mod owned;
mod pod_cidr;
mod pod_gc;
mod protection;
pub mod queue;
mod quota;
mod replica_set;
mod retries;
#[cfg(test)]
mod simulator;
mod stateful_set;
mod taint_eviction;
mod token_secrets;
mod ttl;

pub use pod_cidr::ClusterCidr;

use crate::auth::tokens::Tokens;
use crate::registry::Registry;
use crate::scheduler;
use crate::usage::Boards;
use cache::{Cache, Listener};
use client::Client;
use frame::{Controller, Prepared, prepare};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// How the controllers are to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where pods get their addresses: a /24 of it for each node. `None` leaves that to others.
    pub cluster_cidr: Option<ClusterCidr>,
    /// Silence after which a node is not believed to live.
    pub node_monitor_grace: Duration,
    /// The life of events.
    pub event_ttl: Duration,
    /// Between two looks at what autoscaled pods use.
    pub autoscaler_sync: Duration,
}

impl Default for Settings {
    /// Upstream's.
    fn default() -> Settings {
        Settings {
            cluster_cidr: Some(ClusterCidr::default()),
            node_monitor_grace: Duration::from_secs(40),
            event_ttl: Duration::from_secs(3600),
            autoscaler_sync: Duration::from_secs(15),
        }
    }
}

/// The running controllers; they end when this is dropped.
#[derive(Debug)]
pub struct Controllers {
    status: Arc<Status>,
    /// Aborted on drop.
    _tasks: JoinSet<()>,
}

/// What metrics tell.
#[derive(Debug, Default)]
struct Status {
    queues: Mutex<Vec<(&'static str, Arc<queue::Queue>)>>,
}

impl Controllers {
    /// For `/metrics`, in the Prometheus text format.
    pub fn metrics(&self) -> String {
        use std::fmt::Write;
        let queues = self.status.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = String::new();
        let mut family = |name: &str, about: &str, kind: &str, value: &dyn Fn(&queue::Queue) -> u64| {
            writeln!(text, "# HELP {name} {about}\n# TYPE {name} {kind}").expect("a String takes all");
            for (controller, queue) in &queues {
                writeln!(text, "{name}{{name=\"{controller}\"}} {}", value(queue))
                    .expect("a String takes all");
            }
        };
        family("workqueue_depth", "Keys that wait.", "gauge", &|queue| queue.counts().0 as u64);
        family("workqueue_adds_total", "Keys that were added.", "counter", &|queue| queue.counts().1);
        family("workqueue_retries_total", "Keys that failed.", "counter", &|queue| queue.counts().2);
        let leads = u8::from(!queues.is_empty());
        write!(
            text,
            "# HELP leader_election_master_status Whether this control plane runs the controllers.\n# TYPE leader_election_master_status gauge\nleader_election_master_status{{name=\"coracle-control\"}} {leads}\n"
        )
        .expect("a String takes all");
        text
    }
}

/// Starts the controllers; with a shared storage they wait for the lead. `tokens` signs those of service accounts.
pub fn start(registry: Registry, settings: Settings, boards: Arc<Boards>, tokens: Tokens) -> Controllers {
    let status = Arc::new(Status::default());
    let mut tasks = JoinSet::new();
    let told = status.clone();
    tasks.spawn(async move {
        let begin = || term(registry.clone(), settings.clone(), boards.clone(), tokens.clone(), told.clone());
        leader::lead(registry.clone(), begin).await;
    });
    Controllers { status, _tasks: tasks }
}

/// One term as the leader: everything, until it is dropped.
async fn term(
    registry: Registry,
    settings: Settings,
    boards: Arc<Boards>,
    tokens: Tokens,
    status: Arc<Status>,
) {
    let cache = Arc::new(Cache::new(registry.clone()));
    let client = Client::new(registry.clone(), cache.clone());
    let (recorder, writes) = events::recorder(registry.clone());
    let mut parts = Parts { cache: cache.clone(), prepared: Vec::new() };
    controllers(&client, &recorder, &settings, &boards, &mut parts);
    // Upstream's controller of these has no account of its own either: it comes before all accounts.
    parts.add(token_secrets::TokenSecrets::new(client.named("system:kube-controller-manager"), tokens));
    let (scheduler_listener, scheduler) =
        scheduler::run::prepare(&client, recorder.named("default-scheduler"));
    let mut listeners: Vec<Listener> = vec![scheduler_listener];
    let mut tasks = JoinSet::new();
    let (mut queues, mut works) = (Vec::new(), Vec::new());
    for Prepared { name, listener, work, queue } in parts.prepared {
        listeners.push(listener);
        queues.push((name, queue));
        works.push(work);
    }
    let _term = Term::begin(&status, queues);
    tasks.spawn(writes);
    tasks.spawn(compaction::run(registry.storage().clone()));
    // Whoever acts on part of what there is acts wrongly: first all is read.
    let (first, listed) = tokio::sync::oneshot::channel();
    tasks.spawn(cache::follow(cache, listeners, first));
    if listed.await.is_ok() {
        tasks.spawn(scheduler);
        for work in works {
            tasks.spawn(work);
        }
    }
    // None of them ends by itself: one that does has panicked, and the term with it.
    if let Some(Err(error)) = tasks.join_next().await {
        tracing::error!(%error, "a controller ended");
    }
}

/// All controllers, in the names that they are known by.
fn controllers(
    client: &Client,
    recorder: &events::Recorder,
    settings: &Settings,
    boards: &Arc<Boards>,
    parts: &mut impl Takes,
) {
    // Each in the name of upstream's service account, as RBAC and audit know it.
    let account = |name: &str| client.named(&format!("system:serviceaccount:kube-system:{name}"));
    let said_by = |name: &'static str| recorder.named(name);
    parts.add(namespace::Namespaces::new(account("namespace-controller")));
    parts.add(garbage::Garbage::new(
        account("generic-garbage-collector"),
        said_by("garbage-collector-controller"),
    ));
    let grace = settings.node_monitor_grace;
    parts.add(node_lifecycle::NodeLifecycle::new(
        account("node-controller"),
        said_by("node-controller"),
        grace,
    ));
    let evictions = said_by("taint-eviction-controller");
    parts.add(taint_eviction::TaintEviction::new(account("node-controller"), evictions));
    parts.add(deployment::Deployments::new(
        account("deployment-controller"),
        said_by("deployment-controller"),
    ));
    let sets = said_by("replicaset-controller");
    parts.add(replica_set::ReplicaSets::new(account("replicaset-controller"), sets));
    parts.add(endpoints::Endpoints::new(
        account("endpointslice-controller"),
        account("endpoint-controller"),
        said_by("endpoint-slice-controller"),
    ));
    parts.add(endpoints::Mirroring::new(account("endpointslicemirroring-controller")));
    let sets = said_by("daemonset-controller");
    parts.add(daemon_set::DaemonSets::new(account("daemon-set-controller"), sets));
    let sets = said_by("statefulset-controller");
    parts.add(stateful_set::StatefulSets::new(account("statefulset-controller"), sets));
    parts.add(job::Jobs::new(account("job-controller"), said_by("job-controller")));
    parts.add(cron_job::CronJobs::new(account("cronjob-controller"), said_by("cronjob-controller")));
    parts.add(disruption::Disruption::new(account("disruption-controller"), said_by("controllermanager")));
    parts.add(protection::Protection::new(account("pvc-protection-controller")));
    parts.add(autoscaler::Autoscalers::new(
        account("horizontal-pod-autoscaler"),
        said_by("horizontal-pod-autoscaler"),
        boards.clone(),
        settings.autoscaler_sync,
    ));
    parts.add(quota::Quotas::new(account("resourcequota-controller")));
    parts.add(pod_gc::PodGarbage::new(account("pod-garbage-collector")));
    parts.add(ttl::TimeToLive::new(account("ttl-after-finished-controller"), settings.event_ttl));
    if let Some(cluster) = settings.cluster_cidr {
        let ranges = said_by("cidrAllocator");
        parts.add(pod_cidr::PodCidrs::new(account("node-controller"), ranges, cluster));
    }
}

/// Whoever takes in the controllers of a term.
trait Takes {
    /// One more.
    fn add<C: Controller>(&mut self, controller: C);
}

struct Parts {
    cache: Arc<Cache>,
    prepared: Vec<Prepared>,
}

impl Takes for Parts {
    fn add<C: Controller>(&mut self, controller: C) {
        self.prepared.push(prepare(controller, self.cache.clone()));
    }
}

/// Tells metrics whose queues there are, for as long as it lives.
struct Term<'a>(&'a Status);

impl Term<'_> {
    fn begin<'a>(status: &'a Status, queues: Vec<(&'static str, Arc<queue::Queue>)>) -> Term<'a> {
        *status.queues.lock().unwrap_or_else(PoisonError::into_inner) = queues;
        Term(status)
    }
}

impl Drop for Term<'_> {
    fn drop(&mut self) {
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
