//! Whom to evict so that a pod of higher priority fits (`DefaultPreemption`).
//!
//! On every node where eviction could help: without all pods of lower priority, does it fit? Then as many of them as possible
//! stay, those with a disruption budget first, then the more important ones. Of the nodes the one is taken whose victims
//! break the fewest budgets, are the least important, the fewest, and started last.

use super::filter::{self, Reason};
use super::fleet::{Fleet, Node};
use super::neighbours::Neighbours;
use super::pod::Pod;
use super::terms::selects;
use super::{Unplaced, counted};
use coracle_api::selector::LabelSelector;
use std::cmp::Reverse;
use std::sync::Arc;

/// A disruption budget.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Where it holds.
    pub namespace: Box<str>,
    /// For which pods.
    pub selector: LabelSelector,
    /// How many may go now.
    pub allowed: i64,
}

/// What preemption comes to.
#[derive(Clone, Debug)]
pub enum Preemption {
    /// These go, and the pod is nominated for the node.
    Evict {
        /// The node.
        node: Arc<str>,
        /// Who goes.
        victims: Vec<Arc<Pod>>,
    },
    /// It does not help; as upstream says so behind `preemption: `.
    Not(String),
}

struct Candidate {
    node: Arc<str>,
    victims: Vec<Arc<Pod>>,
    broken: usize,
}

/// Whom to evict for a pod that has no place.
pub fn preempt(fleet: &Fleet, pod: &Pod, why: &Unplaced, budgets: &[Budget]) -> Preemption {
    let Unplaced::Nodes(reasons) = why else {
        let nodes = fleet.nodes.len();
        return Preemption::Not(match nodes {
            0 => "0/0 nodes are available.".into(),
            _ => format!("0/{nodes} nodes are available: {nodes} Preemption is not helpful for scheduling."),
        });
    };
    if !pod.preempts {
        return Preemption::Not("not eligible due to preemptionPolicy=Never.".into());
    }
    // Those that were evicted for it are still on their way out.
    if let Some(node) = fleet.nodes.get(&*pod.nominated)
        && node.pods.values().any(|other| other.terminating && other.priority < pod.priority)
    {
        return Preemption::Not("not eligible due to a terminating pod on the nominated node.".into());
    }
    let neighbours = Neighbours::of(fleet, pod);
    let mut refused = Vec::new();
    let mut best: Option<Candidate> = None;
    for (name, reasons) in reasons {
        let Some(node) = fleet.nodes.get(name) else { continue };
        if !reasons.iter().all(Reason::is_resolvable) {
            refused.push("Preemption is not helpful for scheduling".to_string());
            continue;
        }
        match victims(fleet, pod, node, neighbours.clone(), budgets) {
            None => refused.push("No preemption victims found for incoming pod".to_string()),
            Some(candidate) => {
                if best.as_ref().is_none_or(|best| rank(&candidate) < rank(best)) {
                    best = Some(candidate);
                }
            }
        }
    }
    match best {
        Some(Candidate { node, victims, .. }) => Preemption::Evict { node, victims },
        None => Preemption::Not(format!(
            "0/{} nodes are available: {}.",
            reasons.len(),
            counted(refused.into_iter())
        )),
    }
}

fn rank(candidate: &Candidate) -> impl Ord + use<> {
    let highest = candidate.victims.iter().map(|pod| pod.priority).max().unwrap_or(i64::MIN);
    // As upstream: shifted, so that many unimportant ones are more than few.
    let sum: i128 = candidate.victims.iter().map(|pod| i128::from(pod.priority) + (1 << 31)).sum();
    let earliest = candidate
        .victims
        .iter()
        .filter(|pod| pod.priority == highest)
        .map(|pod| pod.started.clone())
        .min()
        .unwrap_or_default();
    (candidate.broken, highest, sum, candidate.victims.len(), Reverse(earliest), candidate.node.clone())
}

/// The fewest that must go from a node; `None` when it does not help.
fn victims(
    fleet: &Fleet,
    pod: &Pod,
    node: &Node,
    mut neighbours: Neighbours,
    budgets: &[Budget],
) -> Option<Candidate> {
    let mut node = node.clone();
    let mut lower: Vec<Arc<Pod>> =
        node.pods.values().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return None;
    }
    for other in &lower {
        node.remove(&other.uid);
        neighbours.count(pod, other, &node, -1);
    }
    filter::fits(fleet, pod, &node, &neighbours).ok()?;
    lower.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.started.cmp(&b.started)));
    let (breaking, free) = split(&lower, budgets);
    let mut gone = Vec::new();
    let mut broken = 0;
    for (other, breaks) in
        breaking.into_iter().map(|pod| (pod, true)).chain(free.into_iter().map(|pod| (pod, false)))
    {
        node.add(&other);
        neighbours.count(pod, &other, &node, 1);
        if filter::fits(fleet, pod, &node, &neighbours).is_err() {
            node.remove(&other.uid);
            neighbours.count(pod, &other, &node, -1);
            broken += usize::from(breaks);
            gone.push(other);
        }
    }
    Some(Candidate { node: node.name, victims: gone, broken })
}

/// Those whose eviction breaks a budget, and the others.
fn split(pods: &[Arc<Pod>], budgets: &[Budget]) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
    let mut left: Vec<i64> = budgets.iter().map(|budget| budget.allowed).collect();
    let (mut breaking, mut free) = (Vec::new(), Vec::new());
    for pod in pods {
        let mut breaks = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.namespace == pod.namespace && selects(&budget.selector, &pod.labels) {
                *left -= 1;
                breaks |= *left < 0;
            }
        }
        if breaks { breaking.push(pod.clone()) } else { free.push(pod.clone()) }
    }
    (breaking, free)
}
