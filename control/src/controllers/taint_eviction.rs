//! Pods on nodes with `NoExecute` taints: those that do not tolerate them go, the others when their time is over.
//!
//! The time counts from the taint's `timeAdded`, so that a new leader does not begin anew.

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{NODES, PODS};
use crate::object::{self, at, is_terminating, items, text};
use crate::scheduler::terms::{Taint, Toleration, tolerations};
use coracle_api::status::StatusError;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// The controller.
pub struct TaintEviction {
    client: Client,
    recorder: Recorder,
}

impl TaintEviction {
    /// Over a client.
    pub fn new(client: Client, recorder: Recorder) -> TaintEviction {
        TaintEviction { client, recorder }
    }
}

/// What becomes of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    /// Until then.
    Until(Timestamp),
    Goes,
}

fn verdict(taints: &[(Taint, Option<Timestamp>)], tolerations: &[Toleration], now: Timestamp) -> Verdict {
    let mut until: Option<Timestamp> = None;
    for (taint, since) in taints {
        let mut tolerating = tolerations.iter().filter(|toleration| toleration.tolerates(taint)).peekable();
        if tolerating.peek().is_none() {
            return Verdict::Goes;
        }
        // The shortest of those that tolerate it, as upstream.
        let Some(seconds) = tolerating.filter_map(|toleration| toleration.seconds).min() else { continue };
        let end = since.unwrap_or(now).checked_add(jiff::SignedDuration::from_secs(seconds.max(0)));
        let end = end.unwrap_or(Timestamp::MAX);
        until = Some(until.map_or(end, |until| until.min(end)));
    }
    match until {
        None => Verdict::Stays,
        Some(end) if end <= now => Verdict::Goes,
        Some(end) => Verdict::Until(end),
    }
}

fn executing(node: &Value) -> Vec<(Taint, Option<Timestamp>)> {
    let taints = items(node, &["spec", "taints"]).iter();
    let taints = taints.filter(|taint| text(taint, &["effect"]) == "NoExecute");
    taints.map(|taint| (Taint::read(taint), text(taint, &["timeAdded"]).parse().ok())).collect()
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*PODS) {
            let new = change.new.as_ref().and_then(|entry| cache.object(&change.key, entry));
            let placed = new.is_some_and(|pod| !text(&pod, &["spec", "nodeName"]).is_empty());
            return if placed { vec![change.key.clone()] } else { Vec::new() };
        }
        if !change.of(*NODES) {
            return Vec::new();
        }
        let taints =
            |entry| cache.object(&change.key, entry).map(|node| at(&node, &["spec", "taints"]).clone());
        if change.old.as_ref().and_then(taints) == change.new.as_ref().and_then(taints) {
            return Vec::new();
        }
        cache.pod_keys_on(change.key.name())
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let cache = self.client.cache();
        let Some(pod) = cache.get(key) else { return Ok(Next::Done) };
        let node = cache.get(&Key::of(*NODES, "", text(&pod, &["spec", "nodeName"])));
        let Some(node) = node else { return Ok(Next::Done) };
        let taints = executing(&node);
        if taints.is_empty() || is_terminating(&pod) {
            return Ok(Next::Done);
        }
        let now = crate::clock::now();
        match verdict(&taints, &tolerations(&pod), now) {
            Verdict::Stays => Ok(Next::Done),
            Verdict::Until(end) => {
                let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                Ok(Next::After(left.max(Duration::from_millis(1))))
            }
            Verdict::Goes => {
                let text = format!("Marking for deletion Pod {}/{}", key.namespace(), key.name());
                self.recorder.say(&pod, Kind::Normal, "TaintManagerEviction", text);
                let condition = json!({
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByTaintManager",
                    "message": "Taint manager: deleting due to NoExecute taint",
                    "lastTransitionTime": crate::registry::timestamp(),
                });
                let patch = json!({
                    "metadata": {"uid": object::uid(&pod)}, "status": {"conditions": [condition]},
                });
                self.client.merge_lists(key, Some("status"), patch).await?;
                self.client.delete(key, object::uid(&pod), Delete::default()).await?;
                Ok(Next::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_decide_how_long_a_pod_stays() {
        let second = |seconds: i64| Timestamp::from_second(seconds).expect("a time");
        let check = |taints: &[(&str, i64)], tolerations: Value, expected: Verdict| {
            let taints: Vec<_> = taints
                .iter()
                .map(|(key, since)| {
                    (Taint::read(&json!({"key": key, "effect": "NoExecute"})), Some(second(*since)))
                })
                .collect();
            let pod = json!({"spec": {"tolerations": tolerations}});
            let found = verdict(&taints, &crate::scheduler::terms::tolerations(&pod), second(1000));
            assert_eq!(found, expected, "{tolerations}");
        };
        let toleration = |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        check(&[], json!([]), Verdict::Stays);
        check(&[("a", 900)], json!([]), Verdict::Goes);
        check(&[("a", 900)], json!([toleration("a", json!(300))]), Verdict::Until(second(1200)));
        check(&[("a", 700)], json!([toleration("a", json!(300))]), Verdict::Goes);
        check(&[("a", 900)], json!([toleration("a", json!(0))]), Verdict::Goes);
        check(&[("a", 900)], json!([toleration("a", Value::Null)]), Verdict::Stays);
        check(&[("a", 900)], json!([{"operator": "Exists"}]), Verdict::Stays);
        check(&[("a", 900), ("b", 900)], json!([toleration("a", Value::Null)]), Verdict::Goes);
        let both = json!([toleration("a", json!(300)), toleration("b", json!(200))]);
        check(&[("a", 900), ("b", 950)], both, Verdict::Until(second(1150)));
        let twice = json!([toleration("a", json!(300)), toleration("a", json!(200))]);
        check(&[("a", 900)], twice, Verdict::Until(second(1100)));
    }
}
