//! What disruption budgets allow now (`policy/v1` PodDisruptionBudget status).
//!
//! Evictions take a place by writing `disruptedPods`; this controller sees them done, or forgets them after two minutes, and
//! counts anew.

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{BUDGETS, PODS, of_reference};
use crate::object::{self, at, is_terminating, items, name, namespace, text, uid};
use coracle_api::selector::LabelSelector;
use coracle_api::status::StatusError;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// An eviction that is not seen done by then did not happen.
const EVICTION_SECONDS: i64 = 120;

/// The controller.
pub struct Disruption {
    client: Client,
    recorder: Recorder,
}

impl Disruption {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> Disruption {
        Disruption { client, recorder }
    }

    /// How many pods those who own these pods want in all (`getExpectedScale`).
    fn expected(&self, pods: &[Arc<Value>]) -> Result<i64, String> {
        let mut scales: BTreeMap<String, i64> = BTreeMap::new();
        for pod in pods {
            let controller =
                controller(pod).ok_or_else(|| format!("found no controllers for pod \"{}\"", name(pod)))?;
            let (owner, scale) = self
                .scale(namespace(pod), controller)
                .ok_or_else(|| format!("found no controller ref for pod \"{}\"", name(pod)))?;
            scales.insert(owner, scale);
        }
        Ok(scales.values().sum())
    }

    /// The uppermost owner that has a scale: a replica set's deployment.
    fn scale(&self, namespace: &str, reference: &Value) -> Option<(String, i64)> {
        let resource = of_reference(text(reference, &["apiVersion"]), text(reference, &["kind"]))?;
        let owner = self.client.cache().get(&Key::of(resource, namespace, text(reference, &["name"])))?;
        if uid(&owner) != text(reference, &["uid"]) {
            return None;
        }
        if let Some(above) = controller(&owner)
            && let Some(found) = self.scale(namespace, above)
        {
            return Some(found);
        }
        Some((uid(&owner).to_string(), at(&owner, &["spec", "replicas"]).as_i64()?))
    }
}

fn controller(object: &Value) -> Option<&Value> {
    let mut owners = items(object, &["metadata", "ownerReferences"]).iter();
    owners.find(|owner| at(owner, &["controller"]).as_bool() == Some(true))
}

fn is_ready(pod: &Value) -> bool {
    let mut conditions = items(pod, &["status", "conditions"]).iter();
    conditions.any(|told| text(told, &["type"]) == "Ready" && text(told, &["status"]) == "True")
}

/// An `IntOrString` of a whole, rounded up.
pub fn scaled_up(amount: &Value, whole: i64) -> Option<i64> {
    match amount {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = whole.checked_mul(percent)?;
            Some(product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0))
        }
        _ => None,
    }
}

/// The status, and when it is to be looked at again. `expected` is what owners want, or why that is not known.
fn status(
    budget: &Value,
    pods: &[Arc<Value>],
    expected: impl FnOnce() -> Result<i64, String>,
    now: Timestamp,
) -> Result<(Value, Option<Duration>), String> {
    let number = |pods: usize| i64::try_from(pods).unwrap_or(i64::MAX);
    let (most, least) = (at(budget, &["spec", "maxUnavailable"]), at(budget, &["spec", "minAvailable"]));
    let wrong = || "a number or a percentage is needed".to_string();
    let (expected, desired) = if !most.is_null() {
        let expected = expected()?;
        (expected, (expected - scaled_up(most, expected).ok_or_else(wrong)?).max(0))
    } else if least.is_string() {
        let expected = expected()?;
        (expected, scaled_up(least, expected).ok_or_else(wrong)?)
    } else {
        // Nothing said is one, as upstream.
        (number(pods.len()), least.as_i64().unwrap_or(1))
    };
    let mut disrupted = Map::new();
    let mut again: Option<i64> = None;
    for (pod, since) in at(budget, &["status", "disruptedPods"]).as_object().into_iter().flatten() {
        let there = pods.iter().any(|other| name(other) == pod && !is_terminating(other));
        let since_time: Option<Timestamp> = since.as_str().and_then(|since| since.parse().ok());
        let left = since_time.map_or(0, |since| EVICTION_SECONDS - now.duration_since(since).as_secs());
        if there && left > 0 {
            disrupted.insert(pod.clone(), since.clone());
            again = Some(again.map_or(left, |again| again.min(left)));
        }
    }
    let healthy = pods
        .iter()
        .filter(|pod| is_ready(pod) && !is_terminating(pod) && !disrupted.contains_key(name(pod)))
        .count();
    let healthy = number(healthy);
    let allowed = if expected <= 0 { 0 } else { (healthy - desired).max(0) };
    let mut status = json!({
        "expectedPods": expected,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "disruptionsAllowed": allowed,
        "observedGeneration": at(budget, &["metadata", "generation"]),
        "conditions": [condition(
            budget,
            if allowed > 0 { ("True", "SufficientPods", "") } else { ("False", "InsufficientPods", "") },
            now,
        )],
    });
    if !disrupted.is_empty() {
        object::fields(&mut status).insert("disruptedPods".into(), disrupted.into());
    }
    let again = again.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    Ok((status, again))
}

fn condition(budget: &Value, (status, reason, message): (&str, &str, &str), now: Timestamp) -> Value {
    let now = crate::clock::stamp(now);
    let mut old = items(budget, &["status", "conditions"]).iter();
    let since = old
        .find(|old| text(old, &["type"]) == "DisruptionAllowed" && text(old, &["status"]) == status)
        .map_or(now, |old| text(old, &["lastTransitionTime"]).to_string());
    json!({
        "type": "DisruptionAllowed",
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": at(budget, &["metadata", "generation"]),
        "lastTransitionTime": since,
    })
}

impl Controller for Disruption {
    const NAME: &'static str = "disruption";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*BUDGETS) {
            return vec![change.key.clone()];
        }
        if change.of(*PODS) {
            let states = [&change.old, &change.new];
            let pods: Vec<_> =
                states.into_iter().flatten().filter_map(|entry| cache.object(&change.key, entry)).collect();
            let budgets = cache.keys(*BUDGETS, change.key.namespace());
            let covers = |key: &Key| {
                let Some(budget) = cache.get(key) else { return false };
                let selector = LabelSelector::from_value(at(&budget, &["spec", "selector"]));
                selector.is_ok_and(|selector| pods.iter().any(|pod| selector.matches_object(pod)))
            };
            return budgets.into_iter().filter(covers).collect();
        }
        // What has a scale.
        let Some(object) = cache.object(&change.key, change.latest()) else { return Vec::new() };
        if at(&object, &["spec", "replicas"]).is_null() || at(&object, &["spec", "selector"]).is_null() {
            return Vec::new();
        }
        cache.keys(*BUDGETS, change.key.namespace())
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(budget) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let selector = at(&budget, &["spec", "selector"]);
        let selector = (!selector.is_null()).then(|| LabelSelector::from_value(selector).ok()).flatten();
        let pods: Vec<Arc<Value>> = match selector {
            Some(selector) => {
                let pods = self.client.cache().list(*PODS, key.namespace());
                pods.into_iter().filter(|pod| selector.matches_object(pod)).collect()
            }
            None => Vec::new(),
        };
        let ended = |pod: &Value| matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
        let pods: Vec<Arc<Value>> = pods.into_iter().filter(|pod| !ended(pod)).collect();
        if pods.is_empty() {
            self.recorder.say(&budget, Kind::Normal, "NoPods", "No matching pods found");
        }
        let now = crate::clock::now();
        let (status, again) = match status(&budget, &pods, || self.expected(&pods), now) {
            Ok(found) => found,
            Err(why) => {
                let text = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.say(&budget, Kind::Warning, "CalculateExpectedPodCountFailed", text);
                // Nothing is allowed while it is not known what there should be.
                let mut status = at(&budget, &["status"]).clone();
                let condition = condition(&budget, ("False", "SyncFailed", &why), now);
                let set = object::fields(&mut status);
                set.insert("disruptionsAllowed".into(), 0.into());
                set.insert("observedGeneration".into(), at(&budget, &["metadata", "generation"]).clone());
                set.insert("conditions".into(), json!([condition]));
                (status, None)
            }
        };
        if status != *at(&budget, &["status"]) {
            let mut budget = (*budget).clone();
            object::fields(&mut budget).insert("status".into(), status);
            self.client.update(budget, Some("status")).await?;
        }
        Ok(Next::at(again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_budget_allows() {
        let pod = |name: &str, ready: bool| {
            let ready = if ready { "True" } else { "False" };
            Arc::new(json!({
                "metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
        };
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().expect("a time");
        // Healthy, desired, allowed, expected; how many seconds until it is looked at again.
        let check = |spec: Value,
                     disrupted: Value,
                     ready: usize,
                     expected: (i64, i64, i64, i64, Option<u64>)| {
            let pods: Vec<_> = (0..4).map(|index| pod(&format!("p{index}"), index < ready)).collect();
            let budget =
                json!({"metadata": {"generation": 1}, "spec": spec, "status": {"disruptedPods": disrupted}});
            let (status, again) = status(&budget, &pods, || Ok(4), now).expect("known");
            let number = |key: &str| status[key].as_i64().expect("a number");
            let found = (
                number("currentHealthy"),
                number("desiredHealthy"),
                number("disruptionsAllowed"),
                number("expectedPods"),
                again.map(|again| again.as_secs()),
            );
            assert_eq!(found, expected, "{budget}");
        };
        check(json!({"minAvailable": 3}), json!({}), 4, (4, 3, 1, 4, None));
        check(json!({"minAvailable": 3}), json!({}), 2, (2, 3, 0, 4, None));
        check(json!({"minAvailable": "50%"}), json!({}), 4, (4, 2, 2, 4, None));
        check(json!({"minAvailable": "51%"}), json!({}), 4, (4, 3, 1, 4, None));
        check(json!({"maxUnavailable": 1}), json!({}), 4, (4, 3, 1, 4, None));
        check(json!({"maxUnavailable": "30%"}), json!({}), 4, (4, 2, 2, 4, None));
        check(json!({"maxUnavailable": 9}), json!({}), 4, (4, 0, 4, 4, None));
        // One that is being evicted is counted out; one that should have been and was not is counted again.
        let going =
            json!({"p0": "2026-01-01T00:09:00Z", "p1": "2026-01-01T00:07:00Z", "p9": "2026-01-01T00:09:00Z"});
        check(json!({"minAvailable": 2}), going, 4, (3, 2, 1, 4, Some(60)));
    }
}
