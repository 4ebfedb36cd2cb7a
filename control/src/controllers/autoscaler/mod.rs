//! As many replicas as the load asks for (`autoscaling/v2` HorizontalPodAutoscaler).
//!
//! ```text
//! every 15 s: target's scale ─► what its pods use ─► replicas per metric, the largest ─► behavior ─► scale ; status
//!                                   └─ asked of the boards (usage)    (replicas)           (behavior)
//! ```
//! The decisions are pure. Nothing is asked of a board that runs no autoscaled pod. What was wished and done is remembered for
//! the windows of [`behavior`], and lost with the lead.
//!
//! Left out on purpose: Pods, Object and External metrics, for which upstream needs another API server; an autoscaler with
//! one of them says so as upstream's does without that server.

mod behavior;
mod conditions;
mod replicas;

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{AUTOSCALERS, NODES, PODS, of_reference};
use crate::object::{self, at, items, name, namespace, text, uid};
use crate::registry::Rescale;
use crate::registry::options::WriteOptions;
use crate::usage::{Boards, PodUsage};
use behavior::{History, Wish};
use conditions::Conditions;
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::quantity::Quantity;
use coracle_api::selector::LabelSelector;
use coracle_api::status::{Reason, StatusError};
use jiff::Timestamp;
use replicas::{Of, Proposal, Target, Tolerance};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Of a ratio, as upstream's default.
const TOLERANCE: f64 = 0.1;

/// The controller.
pub struct Autoscalers {
    client: Client,
    recorder: Recorder,
    boards: Arc<Boards>,
    sync: Duration,
    /// By uid; of those that are there.
    histories: Mutex<HashMap<String, History>>,
}

/// The scale of what is scaled.
struct Scale {
    key: Key,
    version: String,
    asked: i64,
    selector: Option<LabelSelector>,
}

/// What all metrics together come to.
struct Asked {
    /// `None` when too few metrics are known.
    replicas: Option<(i64, String)>,
    /// What of them failed.
    failed: Option<String>,
    /// `status.currentMetrics`.
    statuses: Vec<Value>,
}

impl Autoscalers {
    /// Over a client and the boards that are asked.
    pub fn new(client: Client, recorder: Recorder, boards: Arc<Boards>, sync: Duration) -> Autoscalers {
        Autoscalers { client, recorder, boards, sync, histories: Mutex::default() }
    }

    /// The history of an autoscaler, to be read and changed.
    fn history<T>(&self, of: &Value, change: impl FnOnce(&mut History) -> T) -> T {
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        change(histories.entry(uid(of).to_string()).or_default())
    }

    fn forget(&self) {
        let cache = self.client.cache();
        let mut histories = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
        histories.retain(|uid, _| cache.by_uid(uid).is_some());
    }

    /// The scale of the target, or why there is none.
    fn scale(&self, autoscaler: &Value) -> Result<Scale, String> {
        let reference = at(autoscaler, &["spec", "scaleTargetRef"]);
        let (version, kind) = (text(reference, &["apiVersion"]), text(reference, &["kind"]));
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let resource = of_reference(version, kind)
            .ok_or_else(|| format!("no matches for kind \"{kind}\" in group \"{group}\""))
            .map_err(|why| format!("unable to determine resource for scale target reference: {why}"))?;
        if resource.subresource("scale").is_none() {
            return Err("the server could not find the requested resource".into());
        }
        let key = Key::of(resource, namespace(autoscaler), text(reference, &["name"]));
        let Some(target) = self.client.cache().get(&key) else {
            return Err(StatusError::not_found(resource.group_resource(), key.name()).to_string());
        };
        let selector = match at(&target, &["spec", "selector"]) {
            Value::Null => None,
            // A replication controller's is a map.
            map if map.get("matchLabels").is_none() && map.get("matchExpressions").is_none() => {
                LabelSelector::from_value(&json!({"matchLabels": map})).ok()
            }
            selector => LabelSelector::from_value(selector).ok(),
        };
        Ok(Scale {
            version: text(&target, &["metadata", "resourceVersion"]).to_string(),
            asked: at(&target, &["spec", "replicas"]).as_i64().unwrap_or_default(),
            selector: selector.filter(|selector| !selector.is_everything()),
            key,
        })
    }

    async fn rescale(&self, scale: &Scale, replicas: i64) -> Result<(), StatusError> {
        let patch = json!({"metadata": {"resourceVersion": scale.version}, "spec": {"replicas": replicas}});
        let patch = Rescale::Patch(PatchType::Merge, Document { value: patch, duplicates: Vec::new() });
        let options = WriteOptions { manager: super::client::MANAGER.into(), ..WriteOptions::default() };
        let target = scale.key.target();
        let scaled = self.client.registry().rescale(self.client.who(), &target, &patch, &options).await;
        self.client.settle().await;
        scaled.map(drop)
    }

    /// What the pods use, by name.
    async fn usage(&self, pods: &[Arc<Value>]) -> BTreeMap<String, PodUsage> {
        let names: BTreeSet<&str> = pods.iter().map(|pod| text(pod, &["spec", "nodeName"])).collect();
        let nodes = names.into_iter().filter_map(|name| self.client.cache().get(&Key::of(*NODES, "", name)));
        // A board that is known to be away is not waited for.
        let nodes = nodes.filter(|node| {
            let mut conditions = items(node, &["status", "conditions"]).iter();
            conditions.any(|told| text(told, &["type"]) == "Ready" && text(told, &["status"]) == "True")
        });
        let figures = self.boards.figures(nodes.map(|node| (*node).clone()).collect()).await;
        let of = |pod: &Arc<Value>| {
            let usage = figures.get(text(pod, &["spec", "nodeName"]))?.of_pod(uid(pod))?;
            Some((name(pod).to_string(), usage))
        };
        pods.iter().filter_map(of).collect()
    }

    /// The autoscalers that would scale by any of these pods, as upstream names them.
    fn rivals(&self, autoscaler: &Value, pods: &[Arc<Value>]) -> Vec<String> {
        let all = self.client.cache().list(*AUTOSCALERS, namespace(autoscaler)).into_iter();
        let claims = |other: &Arc<Value>| {
            let selector = self.scale(other).ok().and_then(|scale| scale.selector);
            selector.is_some_and(|selector| pods.iter().any(|pod| selector.matches_object(pod)))
        };
        all.filter(claims).map(|other| format!("{{{} {}}}", name(&other), namespace(&other))).collect()
    }

    /// What the metrics ask for; `ScalingActive` says whether that is known.
    async fn ask(
        &self,
        autoscaler: &Value,
        scale: &Scale,
        conditions: &mut Conditions,
    ) -> Result<Asked, String> {
        let Some(selector) = &scale.selector else {
            let why = "the HPA target's scale is missing a selector";
            self.recorder.say(autoscaler, Kind::Warning, "SelectorRequired", "selector is required");
            conditions.set("ScalingActive", false, "InvalidSelector", why);
            return Err("selector is required".into());
        };
        let mut pods = self.client.cache().list(*PODS, namespace(autoscaler));
        pods.retain(|pod| selector.matches_object(pod));
        let rivals = self.rivals(autoscaler, &pods);
        if rivals.len() > 1 {
            let rivals = rivals.join(" ");
            let why = format!("pods by selector {selector} are controlled by multiple HPAs: [{rivals}]");
            self.recorder.say(autoscaler, Kind::Warning, "AmbiguousSelector", why.clone());
            conditions.set("ScalingActive", false, "AmbiguousSelector", why.clone());
            return Err(why);
        }
        let used = self.usage(&pods).await;
        let metrics = items(autoscaler, &["spec", "metrics"]);
        let now = crate::clock::now();
        let (mut statuses, mut best, mut failed) = (Vec::new(), None::<(i64, String)>, Vec::new());
        for metric in metrics {
            match propose(autoscaler, metric, scale.asked, &pods, &used, now) {
                Ok((proposal, name, status)) => {
                    statuses.push(status);
                    if best.as_ref().is_none_or(|(most, _)| proposal.replicas > *most) {
                        best = Some((proposal.replicas, name));
                    }
                }
                Err(Unknown { reason, short, long }) => {
                    // As upstream: a place in the list without anything in it.
                    statuses.push(json!({"type": ""}));
                    self.recorder.say(autoscaler, Kind::Warning, reason, short.clone());
                    failed.push((reason, short, long));
                }
            }
        }
        let told = failed.first().map(|(_, _, long)| {
            let (invalid, all) = (failed.len(), metrics.len());
            format!("invalid metrics ({invalid} invalid out of {all}), first error is: {long}")
        });
        match (best, failed.first()) {
            // Whatever the others say, more are needed, or as many.
            (Some((replicas, name)), first) if first.is_none() || replicas >= scale.asked => {
                let why = format!("the HPA was able to successfully calculate a replica count from {name}");
                conditions.set("ScalingActive", true, "ValidMetricFound", why);
                Ok(Asked { replicas: Some((replicas, name)), failed: told, statuses })
            }
            (_, Some((reason, short, _))) => {
                let why = format!("the HPA was unable to compute the replica count: {short}");
                conditions.set("ScalingActive", false, reason, why);
                Ok(Asked { replicas: None, failed: told, statuses })
            }
            // An autoscaler has a metric by default: this one was written empty.
            (_, None) => Ok(Asked { replicas: None, failed: None, statuses }),
        }
    }

    async fn write(&self, autoscaler: &Value, status: Value) -> Result<(), StatusError> {
        if without_nulls(&status) == without_nulls(at(autoscaler, &["status"])) {
            return Ok(());
        }
        let mut new = autoscaler.clone();
        object::fields(&mut new).insert("status".into(), status);
        match self.client.update(new, Some("status")).await {
            Ok(_) => Ok(()),
            Err(error) if error.reason == Reason::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One look.
    async fn look(&self, autoscaler: &Value) -> Result<(), StatusError> {
        let now = crate::clock::now();
        let mut conditions = Conditions::of(autoscaler, now);
        let last = at(autoscaler, &["status", "lastScaleTime"]).clone();
        let desired_before = at(autoscaler, &["status", "desiredReplicas"]).as_i64().unwrap_or_default();
        let scale = match self.scale(autoscaler) {
            Ok(scale) => scale,
            Err(why) => {
                self.recorder.say(autoscaler, Kind::Warning, "FailedGetScale", why.clone());
                let why = format!("the HPA controller was unable to get the target's current scale: {why}");
                conditions.set("AbleToScale", false, "FailedGetScale", why);
                let mut status = at(autoscaler, &["status"]).clone();
                status["conditions"] = conditions.into_value();
                return self.write(autoscaler, status).await;
            }
        };
        let why = "the HPA controller was able to get the target's current scale";
        conditions.set("AbleToScale", true, "SucceededGetScale", why);
        let current = scale.asked;
        self.history(autoscaler, |history| history.begin(current, now));
        let (min, max) = (
            at(autoscaler, &["spec", "minReplicas"]).as_i64().unwrap_or(1),
            at(autoscaler, &["spec", "maxReplicas"]).as_i64().unwrap_or(1),
        );
        let mut statuses = Vec::new();
        let (desired, why) = if current == 0 && min != 0 {
            let why = "scaling is disabled since the replica count of the target is zero";
            conditions.set("ScalingActive", false, "ScalingDisabled", why);
            (current, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".into())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".into())
        } else {
            let asked = self.ask(autoscaler, &scale, &mut conditions).await;
            let (found, failed) = match asked {
                Ok(asked) => {
                    statuses = asked.statuses;
                    (asked.replicas, asked.failed)
                }
                Err(why) => (None, Some(why)),
            };
            let Some((asked, metric)) = found else {
                let why = failed.unwrap_or_default();
                self.recorder.say(autoscaler, Kind::Warning, "FailedComputeMetricsReplicas", why);
                let status = status(current, desired_before, &last, statuses, conditions);
                return self.write(autoscaler, status).await;
            };
            let why = match asked {
                more if more > current => format!("{metric} above target"),
                less if less < current => "All metrics below target".into(),
                _ => String::new(),
            };
            let wish = Wish { current, desired: asked, min, max };
            let behavior = at(autoscaler, &["spec", "behavior"]);
            let allowed = self.history(autoscaler, |history| history.allow(behavior, wish, now));
            conditions.set("AbleToScale", true, allowed.able.0, allowed.able.1);
            let (limited, reason, about) = allowed.limited;
            conditions.set("ScalingLimited", limited, reason, about);
            (allowed.replicas, why)
        };
        if desired == current {
            let status = status(current, current, &last, statuses, conditions);
            return self.write(autoscaler, status).await;
        }
        if let Err(error) = self.rescale(&scale, desired).await {
            let text = format!("New size: {desired}; reason: {why}; error: {error}");
            self.recorder.say(autoscaler, Kind::Warning, "FailedRescale", text);
            let why = format!("the HPA controller was unable to update the target scale: {error}");
            conditions.set("AbleToScale", false, "FailedUpdateScale", why);
            self.write(autoscaler, status(current, desired_before, &last, statuses, conditions)).await?;
            return Err(error);
        }
        let done = format!("the HPA controller was able to update the target scale to {desired}");
        conditions.set("AbleToScale", true, "SucceededRescale", done);
        let text = format!("New size: {desired}; reason: {why}");
        self.recorder.say(autoscaler, Kind::Normal, "SuccessfulRescale", text);
        self.history(autoscaler, |history| history.scaled(current, desired, now));
        let last = crate::clock::stamp(now).into();
        self.write(autoscaler, status(current, desired, &last, statuses, conditions)).await
    }
}

fn status(current: i64, desired: i64, last: &Value, metrics: Vec<Value>, conditions: Conditions) -> Value {
    let mut status = json!({
        "currentReplicas": current,
        "desiredReplicas": desired,
        "conditions": conditions.into_value(),
        // Go prints it when it says nothing.
        "currentMetrics": if metrics.is_empty() { Value::Null } else { metrics.into() },
    });
    if last.is_string() {
        status["lastScaleTime"] = last.clone();
    }
    status
}

/// Fields that are null are as good as absent.
fn without_nulls(value: &Value) -> Value {
    let fields = value.as_object().into_iter().flatten();
    fields.filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A metric that comes to nothing.
#[derive(Debug)]
struct Unknown {
    /// Of the event, and of `ScalingActive`.
    reason: &'static str,
    /// What they say.
    short: String,
    /// What is said of all metrics.
    long: String,
}

/// What one metric asks for, its name, and its `MetricStatus`.
fn propose(
    autoscaler: &Value,
    metric: &Value,
    current: i64,
    pods: &[Arc<Value>],
    used: &BTreeMap<String, PodUsage>,
    now: Timestamp,
) -> Result<(Proposal, String, Value), Unknown> {
    let kind = text(metric, &["type"]);
    let (field, reason) = match kind {
        "Resource" => ("resource", "FailedGetResourceMetric"),
        "ContainerResource" => ("containerResource", "FailedGetContainerResourceMetric"),
        other => return Err(unserved(other)),
    };
    let source = at(metric, &[field]);
    let container = (kind == "ContainerResource").then(|| text(source, &["container"]));
    let resource = text(source, &["name"]);
    let target = at(source, &["target"]);
    let of = Of { resource, container };
    let found = match (at(target, &["averageValue"]).as_str(), at(target, &["averageUtilization"]).as_i64()) {
        (Some(value), _) => {
            let millis = value.parse::<Quantity>().map_or(0, |value| value.millis());
            let found =
                replicas::propose(current, pods, used, of, Target::Average(millis), tolerance(autoscaler), now);
            found.map_err(|why| format!("failed to get {resource} usage: {why}"))
        }
        (None, Some(percent)) => {
            let target = Target::Utilization(percent);
            let found = replicas::propose(current, pods, used, of, target, tolerance(autoscaler), now);
            found.map_err(|why| format!("failed to get {resource} utilization: {why}"))
        }
        (None, None) => Err(
            "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set"
                .into(),
        ),
    };
    let proposal = found.map_err(|short| {
        let long = match container {
            Some(container) => format!("failed to get {container} container metric value: {short}"),
            None => format!("failed to get {resource} resource metric value: {short}"),
        };
        Unknown { reason, short, long }
    })?;
    let word = if container.is_some() { "container resource" } else { "resource" };
    let name = match proposal.utilization {
        Some(_) => format!("{resource} {word} utilization (percentage of request)"),
        None => format!("{resource} {word}"),
    };
    let average = format!("{}m", proposal.average_millis).parse::<Quantity>();
    let mut now =
        json!({"averageValue": average.map_or_else(|_| "0".to_string(), |value| value.to_string())});
    if let Some(percent) = proposal.utilization {
        now["averageUtilization"] = percent.into();
    }
    let mut told = json!({"name": resource, "current": now});
    if let Some(container) = container {
        told["container"] = container.into();
    }
    Ok((proposal, name, json!({"type": kind, field: told})))
}

/// Metrics that come from an API server which is not there.
fn unserved(kind: &str) -> Unknown {
    let (reason, api) = match kind {
        "Pods" => ("FailedGetPodsMetric", "custom metrics API"),
        "Object" => ("FailedGetObjectMetric", "custom metrics API"),
        "External" => ("FailedGetExternalMetric", "external metrics API"),
        other => {
            let why = format!("unknown metric source type \"{other}\"");
            return Unknown { reason: "InvalidMetricSourceType", short: why.clone(), long: why };
        }
    };
    let short = format!(
        "unable to get metric: unable to fetch metrics from {api}: the server could not find the requested resource"
    );
    let long = format!("failed to get {} metric value: {short}", kind.to_lowercase());
    Unknown { reason, short, long }
}

fn tolerance(autoscaler: &Value) -> Tolerance {
    let of = |rule: &str| {
        let said = text(autoscaler, &["spec", "behavior", rule, "tolerance"]).parse::<Quantity>();
        said.map_or(TOLERANCE, |said| said.millis() as f64 / 1000.0)
    };
    Tolerance { down: of("scaleDown"), up: of("scaleUp") }
}

impl Controller for Autoscalers {
    const NAME: &'static str = "horizontalpodautoscaler";

    /// The clock brings the rest: what pods use changes without a word.
    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if !change.of(*AUTOSCALERS) {
            return Vec::new();
        }
        let states = [&change.old, &change.new].into_iter().flatten();
        let states: Vec<_> = states.filter_map(|entry| cache.object(&change.key, entry)).collect();
        match &states[..] {
            [old, new] if at(old, &["spec"]) == at(new, &["spec"]) => Vec::new(),
            _ => vec![change.key.clone()],
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(autoscaler) = self.client.cache().get(key) else {
            self.forget();
            return Ok(Next::Done);
        };
        self.look(&autoscaler).await?;
        Ok(Next::After(self.sync))
    }
}
