//! What nodes and pods use now (`metrics.k8s.io`): figures that boards' kubelets give, computed when somebody asks.
//!
//! ```text
//! asked ──► figures younger than 15 s? ──► those
//!              └─ no: /stats/summary ──► with the sample before it: a rate ──► figures
//!                                          └─ none before: once more, a second later
//! ```
//! Nothing is asked of a board while nobody looks. One request to a board at a time, some boards at once ([`boards`]); a board
//! that does not answer has no figures, and the others' are shown. What a board says is bounded, and of pods only those are
//! believed that are on it.

mod boards;

pub use boards::Boards;

use crate::object::{at, items, name, text};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Pods of a board that are read.
const PODS_MAX: usize = 1024;
/// Containers of a pod that are read.
const CONTAINERS_MAX: usize = 128;
/// Figures that are not asked for anew.
const FRESH: Duration = Duration::from_secs(15);
/// A sample older than this says nothing about now.
const STALE: Duration = Duration::from_secs(120);
/// Between two samples when there was none before: as short as a rate may be.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// What a group of processes has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    cpu_nanoseconds: u64,
    memory_bytes: u64,
}

impl Counters {
    fn read(value: &Value) -> Option<Counters> {
        Some(Counters {
            cpu_nanoseconds: at(value, &["cpu", "usageCoreNanoSeconds"]).as_u64()?,
            memory_bytes: at(value, &["memory", "workingSetBytes"]).as_u64()?,
        })
    }
}

/// What it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Billionths of a core.
    pub nano_cores: u64,
    /// Working set.
    pub memory_bytes: u64,
}

/// What a pod's containers use.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// When that was so.
    pub at: Timestamp,
    /// For how long.
    pub window: Duration,
    /// By name.
    pub containers: Vec<(String, Rate)>,
}

impl Rate {
    /// `None` when the counter began anew in between.
    fn between(old: Counters, new: Counters, window: Duration) -> Option<Rate> {
        let used = u128::from(new.cpu_nanoseconds.checked_sub(old.cpu_nanoseconds)?);
        let nano_cores = used.saturating_mul(1_000_000_000) / window.as_nanos().max(1);
        Some(Rate { nano_cores: u64::try_from(nano_cores).ok()?, memory_bytes: new.memory_bytes })
    }

    fn usage(self) -> Value {
        json!({
            "cpu": format!("{}n", self.nano_cores),
            "memory": format!("{}Ki", self.memory_bytes / 1024),
        })
    }
}

/// One answer of a board.
#[derive(Debug, Default)]
struct Sample {
    node: Option<Counters>,
    /// By uid: per container.
    pods: HashMap<String, Vec<(String, Counters)>>,
}

impl Sample {
    fn read(summary: &Value) -> Sample {
        let pods = items(summary, &["pods"]).iter().take(PODS_MAX).map(|pod| {
            let containers = items(pod, &["containers"]).iter().take(CONTAINERS_MAX);
            let containers = containers
                .filter_map(|container| Some((name_of(container), Counters::read(container)?)))
                .collect();
            (text(pod, &["podRef", "uid"]).to_string(), containers)
        });
        Sample { node: Counters::read(at(summary, &["node"])), pods: pods.collect() }
    }
}

fn name_of(container: &Value) -> String {
    text(container, &["name"]).to_string()
}

/// What a board and its pods use.
#[derive(Debug, Default)]
pub struct Figures {
    at: Option<Timestamp>,
    window: Duration,
    node: Option<Rate>,
    pods: HashMap<String, Vec<(String, Rate)>>,
}

impl Figures {
    fn between(old: &Sample, new: &Sample, window: Duration, at: Timestamp) -> Figures {
        let pods = new.pods.iter().filter_map(|(uid, containers)| {
            let before = old.pods.get(uid)?;
            let rates = containers.iter().filter_map(|(name, new)| {
                let (_, old) = before.iter().find(|(other, _)| other == name)?;
                Some((name.clone(), Rate::between(*old, *new, window)?))
            });
            Some((uid.clone(), rates.collect()))
        });
        Figures {
            at: Some(at),
            window,
            node: old.node.zip(new.node).and_then(|(old, new)| Rate::between(old, new, window)),
            pods: pods.collect(),
        }
    }

    fn shown(&self, of: &Value, kind: &str) -> Value {
        let mut metadata = json!({"name": name(of), "creationTimestamp": self.time()});
        for key in ["namespace", "labels"] {
            let value = at(of, &["metadata", key]);
            if !value.is_null() {
                metadata[key] = value.clone();
            }
        }
        json!({
            "apiVersion": "metrics.k8s.io/v1beta1",
            "kind": kind,
            "metadata": metadata,
            "timestamp": self.time(),
            "window": format!("{:.3}s", self.window.as_secs_f64()),
        })
    }

    fn time(&self) -> String {
        let at = self.at.unwrap_or(Timestamp::UNIX_EPOCH);
        Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
    }

    /// What the pod of a uid uses.
    pub fn of_pod(&self, uid: &str) -> Option<PodUsage> {
        let containers = self.pods.get(uid).filter(|containers| !containers.is_empty())?;
        Some(PodUsage { at: self.at?, window: self.window, containers: containers.clone() })
    }

    /// `NodeMetrics`.
    pub fn node(&self, node: &Value) -> Option<Value> {
        let mut shown = self.shown(node, "NodeMetrics");
        shown["usage"] = self.node?.usage();
        Some(shown)
    }

    /// `PodMetrics`.
    pub fn pod(&self, pod: &Value) -> Option<Value> {
        let containers =
            self.pods.get(crate::object::uid(pod)).filter(|containers| !containers.is_empty())?;
        let mut shown = self.shown(pod, "PodMetrics");
        let containers = containers.iter().map(|(name, rate)| json!({"name": name, "usage": rate.usage()}));
        shown["containers"] = containers.collect();
        Some(shown)
    }
}

/// What is known of one board.
#[derive(Debug, Default)]
struct Board {
    sample: Option<(Instant, Sample)>,
    figures: Option<(Instant, Arc<Figures>)>,
}

/// The figures of all boards. Bounded by their number: those that are gone are forgotten.
#[derive(Debug, Default)]
pub struct Usage(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Board>>>>);

impl Usage {
    /// Forgets boards that are not among these.
    pub fn keep(&self, nodes: &[Value]) {
        let names: std::collections::HashSet<&str> = nodes.iter().map(name).collect();
        self.boards().retain(|name, _| names.contains(name.as_str()));
    }

    fn boards(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<Board>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures of a board; `ask` gets its summary.
    ///
    /// # Errors
    /// Those of `ask`.
    pub async fn of<E, F: Future<Output = Result<Value, E>>>(
        &self,
        node: &str,
        ask: impl Fn() -> F,
    ) -> Result<Arc<Figures>, E> {
        let board = self.boards().entry(node.to_string()).or_default().clone();
        // Whoever asks meanwhile waits for the same answer.
        let mut board = board.lock().await;
        if let Some((at, figures)) = &board.figures
            && at.elapsed() < FRESH
        {
            return Ok(figures.clone());
        }
        let before = board.sample.take().filter(|(at, _)| at.elapsed() < STALE);
        let (before_at, before) = match before {
            Some(before) => before,
            None => {
                let first = Sample::read(&ask().await?);
                let at = Instant::now();
                // A rate needs two samples: this is the least time between them, not a wait for anything.
                tokio::time::sleep(WINDOW_MIN).await;
                (at, first)
            }
        };
        let sample = Sample::read(&ask().await?);
        let at = Instant::now();
        let figures = Figures::between(&before, &sample, at.duration_since(before_at), Timestamp::now());
        let figures = Arc::new(figures);
        board.sample = Some((at, sample));
        board.figures = Some((at, figures.clone()));
        Ok(figures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(cpu: u64, memory: u64) -> Value {
        let used = json!({"cpu": {"usageCoreNanoSeconds": cpu}, "memory": {"workingSetBytes": memory}});
        let mut container = used.clone();
        container["name"] = "c".into();
        json!({"node": used, "pods": [{"podRef": {"uid": "u"}, "containers": [container]}]})
    }

    #[test]
    fn two_samples_are_a_rate() {
        let check = |old: u64, new: u64, seconds: u64, expected: Option<&str>| {
            let (old, new) = (Sample::read(&summary(old, 0)), Sample::read(&summary(new, 3 << 20)));
            let figures = Figures::between(&old, &new, Duration::from_secs(seconds), Timestamp::UNIX_EPOCH);
            let node = figures.node(&json!({"metadata": {"name": "a"}}));
            let pod = figures.pod(&json!({"metadata": {"name": "p", "uid": "u"}}));
            let cpu = |value: &Value| text(value, &["usage", "cpu"]).to_string();
            assert_eq!(node.as_ref().map(cpu).as_deref(), expected);
            assert_eq!(pod.as_ref().map(|pod| cpu(&pod["containers"][0])).as_deref(), expected);
            if let Some(node) = node {
                assert_eq!(node["usage"]["memory"], "3072Ki");
            }
        };
        check(0, 1_500_000_000, 1, Some("1500000000n"));
        check(1_000_000_000, 2_000_000_000, 10, Some("100000000n"));
        check(5, 5, 1, Some("0n"));
        // The board was booted in between.
        check(7, 5, 1, None);
        let strange = Sample::read(&json!({"node": [], "pods": {"a": 1}}));
        assert!(strange.node.is_none() && strange.pods.is_empty());
    }

    #[tokio::test]
    async fn figures_that_are_fresh_are_not_asked_for_again() {
        let (usage, asked) = (Usage::default(), std::sync::atomic::AtomicU64::new(0));
        let ask = || {
            let times = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::future::ready(Ok::<Value, ()>(summary(times * 1_000_000, 1024)))
        };
        let first = usage.of("a", ask).await.expect("figures");
        let second = usage.of("a", ask).await.expect("figures");
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2);
        assert!(first.node.is_some_and(|rate| (1..=1_000_000).contains(&rate.nano_cores)));
        usage.keep(&[]);
        assert!(usage.boards().is_empty());
    }
}
