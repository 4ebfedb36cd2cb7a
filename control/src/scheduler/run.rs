//! The scheduler at work: keeps the fleet as the cluster is, takes pods in order, and binds them.
//!
//! ```text
//! change ──► inbox ──► fleet, waiting pods ──► place ──► assume (in the fleet at once) ──► bind ──► seen bound
//!                                                  └─ no place: told of, parked ──► something relevant changes ──► again
//! ```
//! Invariants: a pod that is assumed counts until its binding has failed or been seen; nothing is polled: a parked pod comes
//! back when a node changes or a pod makes room, no sooner than its back-off (1 s · 2ⁿ, at most 10 s) allows.

use super::fleet::{Claim, Fleet, Node};
use super::pod::Pod;
use super::preempt::{Budget, Preemption, preempt};
use super::terms::{NodeTerm, labels};
use super::{Unplaced, place};
use crate::controllers::cache::{Cache, Change, Listener};
use crate::controllers::client::{Client, Delete, MANAGER};
use crate::controllers::events::{Kind, Recorder};
use crate::controllers::key::Key;
use crate::controllers::kinds::{BUDGETS, CLAIMS, NAMESPACES, NODES, PODS, STORAGE_CLASSES, VOLUMES};
use crate::kinds;
use crate::object::{self, at, items, text};
use crate::registry::options::WriteOptions;
use coracle_api::selector::LabelSelector;
use coracle_api::status::{Reason, StatusError};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The name that pods ask for.
const NAME: &str = "default-scheduler";
/// Bindings and messages under way.
const WRITES_MAX: usize = 64;
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Keys that changed. Bounded by the number of objects.
#[derive(Debug, Default)]
struct Inbox {
    keys: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

impl Inbox {
    fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The ear, and the work, which runs for ever.
pub fn prepare(client: &Client, recorder: Recorder) -> (Listener, impl Future<Output = ()> + Send + use<>) {
    let (listener, scheduler) = Scheduler::new(client, recorder);
    (listener, scheduler.run())
}

/// A pod without a node.
#[derive(Debug)]
struct Waiting {
    pod: Arc<Pod>,
    attempts: u32,
    /// When it was tried last.
    since: Instant,
    /// Something changed since.
    woken: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In `ready`.
    Ready,
    /// In `later`, at this time.
    Later(Instant),
    /// Until something changes.
    Parked,
    /// Being bound, or told of.
    Busy,
}

/// More important ones first, then older ones.
type Order = (Reverse<i64>, Box<str>, Key);

/// How a write ended.
enum Written {
    Bound { key: Key, pod: Arc<Pod>, node: Arc<str>, result: Result<(), StatusError> },
    Told { key: Key },
}

/// What the scheduler knows, and has under way.
pub(crate) struct Scheduler {
    cache: Arc<Cache>,
    client: Client,
    recorder: Recorder,
    inbox: Arc<Inbox>,
    fleet: Fleet,
    waiting: HashMap<Key, Waiting>,
    ready: BTreeSet<Order>,
    later: BTreeSet<(Instant, Key)>,
    /// Bound by this process, not yet seen so.
    assumed: HashMap<Key, Box<str>>,
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    seed: u64,
}

impl Scheduler {
    /// With the ear that tells it of changes.
    pub(crate) fn new(client: &Client, recorder: Recorder) -> (Listener, Scheduler) {
        let inbox = Arc::new(Inbox::default());
        let ear = inbox.clone();
        let listener: Listener = Box::new(move |change: &Change| {
            let kinds = [*PODS, *NODES, *NAMESPACES, *CLAIMS, *VOLUMES];
            if kinds.into_iter().any(|kind| change.of(kind)) {
                ear.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(change.key.clone());
                ear.wake.notify_one();
            }
        });
        let client = client.named("system:kube-scheduler");
        let scheduler = Scheduler {
            cache: client.cache().clone(),
            client,
            recorder,
            inbox,
            fleet: Fleet::default(),
            waiting: HashMap::new(),
            ready: BTreeSet::new(),
            later: BTreeSet::new(),
            assumed: HashMap::new(),
            writes: FuturesUnordered::new(),
            seed: 0,
        };
        (listener, scheduler)
    }

    /// Everything that is to be done now, to its end; whether there was anything.
    #[cfg(test)]
    pub(crate) async fn step(&mut self) -> bool {
        let mut did = false;
        loop {
            self.ripen();
            self.look();
            while let Some((_, _, key)) = self.ready.pop_first() {
                self.schedule(&key);
            }
            let Some(written) = self.writes.next().await else { return did };
            self.written(written);
            did = true;
        }
    }

    async fn run(mut self) {
        loop {
            let due = self.later.first().map(|(at, _)| *at);
            let inbox = self.inbox.clone();
            tokio::select! {
                () = inbox.wake.notified() => {}
                Some(written) = self.writes.next(), if !self.writes.is_empty() => self.written(written),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            self.ripen();
            self.look();
            while self.writes.len() < WRITES_MAX
                && let Some((_, _, key)) = self.ready.pop_first()
            {
                self.schedule(&key);
                // Long queues must not keep the runtime from anything else.
                tokio::task::yield_now().await;
                self.look();
            }
        }
    }

    fn ripen(&mut self) {
        let now = Instant::now();
        while let Some((at, key)) = self.later.first().cloned()
            && at <= now
        {
            self.later.remove(&(at, key.clone()));
            self.set(&key, State::Ready);
        }
    }

    /// Takes in what changed.
    fn look(&mut self) {
        for key in self.inbox.take() {
            if key.is(*PODS) {
                self.see_pod(&key);
            } else if key.is(*NODES) {
                self.see_node(&key);
            } else if key.is(*NAMESPACES) {
                match self.cache.get(&key) {
                    Some(namespace) => self.fleet.namespaces.insert(key.name().into(), labels(&namespace)),
                    None => self.fleet.namespaces.remove(key.name()),
                };
            } else {
                self.see_claims(&key);
            }
        }
    }

    fn see_node(&mut self, key: &Key) {
        match self.cache.get(key) {
            Some(node) => {
                if self.fleet.set_node(Node::read(&node)) {
                    self.wake(|_| true);
                }
            }
            None => self.fleet.remove_node(key.name()),
        }
    }

    /// A claim, or a volume, which may be several claims'.
    fn see_claims(&mut self, key: &Key) {
        let claims = if key.is(*CLAIMS) {
            vec![key.clone()]
        } else {
            let volume = self.cache.get(key);
            let reference = volume.as_ref().map_or(&Value::Null, |volume| at(volume, &["spec", "claimRef"]));
            match text(reference, &["name"]) {
                "" => Vec::new(),
                name => vec![Key::of(*CLAIMS, text(reference, &["namespace"]), name)],
            }
        };
        for key in claims {
            let place = (key.namespace().into(), key.name().into());
            match self.cache.get(&key) {
                Some(claim) => {
                    let state = self.claim(&claim);
                    self.fleet.claims.insert(place, state);
                }
                None => {
                    self.fleet.claims.remove(&place);
                }
            }
            self.wake(|pod| !pod.claims.is_empty());
        }
    }

    fn claim(&self, claim: &Value) -> Claim {
        if object::is_terminating(claim) {
            return Claim::Terminating;
        }
        let volume = text(claim, &["spec", "volumeName"]);
        if !volume.is_empty() {
            let volume = self.cache.get(&Key::of(*VOLUMES, "", volume));
            let required = volume
                .as_ref()
                .map_or(&Value::Null, |volume| at(volume, &["spec", "nodeAffinity", "required"]));
            let terms = items(required, &["nodeSelectorTerms"]).iter().map(NodeTerm::read).collect();
            return Claim::Bound((!required.is_null()).then_some(terms));
        }
        let class = text(claim, &["spec", "storageClassName"]);
        let class = self.cache.get(&Key::of(*STORAGE_CLASSES, "", class));
        match class {
            Some(class) if text(&class, &["volumeBindingMode"]) == "WaitForFirstConsumer" => {
                Claim::WaitsForPod
            }
            _ => Claim::Unbound,
        }
    }

    fn see_pod(&mut self, key: &Key) {
        let Some(value) = self.cache.get(key) else {
            self.drop_waiting(key);
            if let Some(uid) = self.assumed.remove(key) {
                self.leave(&uid);
            }
            return;
        };
        let pod = Arc::new(Pod::read(&value));
        // Another pod of the same name.
        if self.waiting.get(key).is_some_and(|waiting| waiting.pod.uid != pod.uid) {
            self.drop_waiting(key);
        }
        if self.assumed.get(key).is_some_and(|uid| *uid != pod.uid)
            && let Some(uid) = self.assumed.remove(key)
        {
            self.leave(&uid);
        }
        let ended = matches!(text(&value, &["status", "phase"]), "Succeeded" | "Failed");
        if !pod.node.is_empty() {
            self.drop_waiting(key);
            self.assumed.insert(key.clone(), pod.uid.clone());
            if ended {
                self.leave(&pod.uid);
            } else {
                let known = self.fleet.pod(&pod.uid);
                let smaller = known.is_some_and(|old| old.requests != pod.requests);
                self.fleet.set_pod(&pod);
                if smaller {
                    self.wake(|_| true);
                } else {
                    self.wake(|other| !other.affinity.is_empty() || !other.spreads.is_empty());
                }
            }
            return;
        }
        // Bound by us, and the cache does not know yet.
        if self.assumed.contains_key(key) {
            return;
        }
        let mine = text(&value, &["spec", "schedulerName"]) == NAME;
        let gated = kinds::is_gated(&value);
        if ended || pod.terminating || !mine || gated {
            self.drop_waiting(key);
            return;
        }
        match self.waiting.get_mut(key) {
            None => {
                let waiting =
                    Waiting { pod, attempts: 0, since: Instant::now(), woken: false, state: State::Parked };
                self.waiting.insert(key.clone(), waiting);
                self.set(key, State::Ready);
            }
            Some(waiting) => {
                let changed = waiting.pod.labels != pod.labels
                    || waiting.pod.requests != pod.requests
                    || waiting.pod.nominated != pod.nominated
                    || waiting.pod.tolerations != pod.tolerations
                    || waiting.pod.node_selector != pod.node_selector
                    || waiting.pod.node_terms != pod.node_terms;
                waiting.pod = pod;
                if changed {
                    self.wake_one(key);
                }
            }
        }
    }

    /// A pod is gone from its node: there is room.
    fn leave(&mut self, uid: &str) {
        if self.fleet.remove_pod(uid).is_some() {
            self.wake(|_| true);
        }
    }

    fn drop_waiting(&mut self, key: &Key) {
        self.set(key, State::Busy);
        self.waiting.remove(key);
    }

    /// Moves a waiting pod between the lists.
    fn set(&mut self, key: &Key, state: State) {
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        let order = (Reverse(waiting.pod.priority), waiting.pod.created.clone(), key.clone());
        match waiting.state {
            State::Ready => {
                self.ready.remove(&order);
            }
            State::Later(at) => {
                self.later.remove(&(at, key.clone()));
            }
            State::Parked | State::Busy => {}
        }
        waiting.state = state;
        match state {
            State::Ready => {
                self.ready.insert(order);
            }
            State::Later(at) => {
                self.later.insert((at, key.clone()));
            }
            State::Parked | State::Busy => {}
        }
    }

    /// Something that may matter to these changed.
    fn wake(&mut self, whom: impl Fn(&Pod) -> bool) {
        let parked = self.waiting.iter().filter(|(_, waiting)| whom(&waiting.pod));
        let keys: Vec<Key> = parked.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.wake_one(&key);
        }
    }

    fn wake_one(&mut self, key: &Key) {
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        match waiting.state {
            State::Parked => {
                let at = waiting.since + backoff(waiting.attempts);
                let state = if at <= Instant::now() { State::Ready } else { State::Later(at) };
                self.set(key, state);
            }
            // What happened meanwhile is not in what it is being told: it is tried again at its time.
            State::Busy => waiting.woken = true,
            State::Ready | State::Later(_) => {}
        }
    }

    fn schedule(&mut self, key: &Key) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let seed = self.seed >> 33;
        let Some(waiting) = self.waiting.get_mut(key) else { return };
        waiting.attempts = waiting.attempts.saturating_add(1);
        waiting.since = Instant::now();
        (waiting.state, waiting.woken) = (State::Busy, false);
        let pod = waiting.pod.clone();
        match place(&mut self.fleet, &pod, seed) {
            Ok(node) => {
                let assumed = Pod { node: (&*node).into(), ..(*pod).clone() };
                self.fleet.set_pod(&Arc::new(assumed));
                self.assumed.insert(key.clone(), pod.uid.clone());
                let (client, key) = (self.client.clone(), key.clone());
                self.writes.push(Box::pin(async move {
                    let result = bind(&client, &key, &pod, &node).await;
                    Written::Bound { key, pod, node, result }
                }));
            }
            Err(why) => self.refuse(key, &pod, &why),
        }
    }

    fn refuse(&mut self, key: &Key, pod: &Arc<Pod>, why: &Unplaced) {
        let preemption = preempt(&self.fleet, pod, why, &self.budgets());
        let (message, node, victims) = match preemption {
            Preemption::Not(not) if matches!(why, Unplaced::NoNodes) => {
                drop(not);
                (why.to_string(), None, Vec::new())
            }
            Preemption::Not(not) => (format!("{why} preemption: {not}"), None, Vec::new()),
            Preemption::Evict { node, victims } => (why.to_string(), Some(node), victims),
        };
        let (client, recorder, key) = (self.client.clone(), self.recorder.clone(), key.clone());
        let pod = pod.clone();
        self.writes.push(Box::pin(async move {
            tell(&client, &recorder, &key, &pod, &message, node.as_deref()).await;
            for victim in victims {
                evict(&client, &recorder, &pod, &victim).await;
            }
            Written::Told { key }
        }));
    }

    fn budgets(&self) -> Vec<Budget> {
        let budgets = self.cache.list(*BUDGETS, "");
        let read = budgets.iter().filter_map(|budget| {
            Some(Budget {
                namespace: object::namespace(budget).into(),
                selector: LabelSelector::from_value(at(budget, &["spec", "selector"])).ok()?,
                allowed: at(budget, &["status", "disruptionsAllowed"]).as_i64().unwrap_or_default(),
            })
        });
        read.collect()
    }

    fn written(&mut self, written: Written) {
        match written {
            Written::Bound { key, pod, node, result: Ok(()) } => {
                if let Some(value) = self.cache.get(&key) {
                    let text = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                    self.recorder.say(&value, Kind::Normal, "Scheduled", text);
                }
                self.drop_waiting(&key);
            }
            Written::Bound { key, pod, result: Err(error), .. } => {
                // Seen bound meanwhile, by whomever: it stays where it is.
                let bound =
                    self.cache.get(&key).is_some_and(|value| !text(&value, &["spec", "nodeName"]).is_empty());
                if !bound {
                    self.assumed.remove(&key);
                    self.fleet.remove_pod(&pod.uid);
                }
                if error.reason != Reason::NotFound && error.reason != Reason::Conflict {
                    tracing::warn!(%key, %error, "a pod is not bound");
                }
                self.set(&key, State::Parked);
                self.see_pod(&key);
                self.wake_one(&key);
            }
            Written::Told { key } => {
                let Some(waiting) = self.waiting.get(&key) else { return };
                let (since, attempts) = (waiting.since, waiting.attempts);
                self.set(&key, State::Parked);
                // Something changed while it was being told: its attempt did not know.
                if self.waiting.get(&key).is_some_and(|waiting| waiting.woken) {
                    self.set(&key, State::Later(since + backoff(attempts)));
                }
            }
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    match attempts {
        0 => Duration::ZERO,
        attempts => BACKOFF_FIRST.saturating_mul(1 << (attempts - 1).min(10)).min(BACKOFF_MAX),
    }
}

async fn bind(client: &Client, key: &Key, pod: &Pod, node: &str) -> Result<(), StatusError> {
    let binding = json!({
        "metadata": {"name": &*pod.name, "namespace": &*pod.namespace, "uid": &*pod.uid},
        "target": {"kind": "Node", "name": node},
    });
    let options = WriteOptions { manager: MANAGER.into(), ..WriteOptions::default() };
    client.registry().bind(client.who(), &key.target(), &binding, &options).await.map(drop)
}

/// Says why a pod has no node: in an event, and in its status.
async fn tell(
    client: &Client,
    recorder: &Recorder,
    key: &Key,
    pod: &Pod,
    message: &str,
    nominated: Option<&str>,
) {
    let Some(value) = client.cache().get(key) else { return };
    if object::uid(&value) != &*pod.uid {
        return;
    }
    recorder.say(&value, Kind::Warning, "FailedScheduling", message);
    let condition = items(&value, &["status", "conditions"])
        .iter()
        .find(|condition| text(condition, &["type"]) == "PodScheduled");
    let told = condition.is_some_and(|condition| {
        text(condition, &["status"]) == "False" && text(condition, &["message"]) == message
    });
    if told && nominated.is_none() {
        return;
    }
    let now = crate::registry::timestamp();
    let since = condition
        .filter(|condition| text(condition, &["status"]) == "False")
        .map(|condition| text(condition, &["lastTransitionTime"]).to_string())
        .filter(|since| !since.is_empty());
    let patch = json!({"status": {
        "conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": since.unwrap_or(now),
        }],
        "nominatedNodeName": nominated,
    }});
    let mut patch = patch;
    if nominated.is_none() {
        object::remove(object::child(&mut patch, "status"), "nominatedNodeName");
    }
    if let Err(error) = client.merge_lists(key, Some("status"), patch).await {
        tracing::debug!(%key, %error, "a pod's condition is not written");
    }
}

/// Makes room.
async fn evict(client: &Client, recorder: &Recorder, pod: &Pod, victim: &Pod) {
    let key = Key::of(*PODS, &victim.namespace, &victim.name);
    let Some(value) = client.cache().get(&key) else { return };
    let condition = json!({"status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
        "lastTransitionTime": crate::registry::timestamp(),
    }]}});
    let gone = async {
        client.merge_lists(&key, Some("status"), condition).await?;
        client.delete(&key, &victim.uid, Delete::default()).await
    };
    match gone.await {
        Ok(()) => {
            let text = format!("Preempted by pod {} on node {}", pod.uid, victim.node);
            recorder.say(&value, Kind::Normal, "Preempted", text);
        }
        Err(error) => tracing::warn!(%key, %error, "a pod is not preempted"),
    }
}
