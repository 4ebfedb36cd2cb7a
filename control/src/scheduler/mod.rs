//! Where pods go.
//!
//! ```text
//! pod ─► claims ─► every node: filter ─► those that fit: score ─► the best
//!                        └─ none fits ─► why (an event, a condition) ─► whom to evict, if anybody
//! ```
//! Everything here but [`run`] is pure: no clock, no randomness, no IO. It works on a [`Fleet`], which [`run`] keeps as the
//! cluster is. Reasons, words, order and weights are those of upstream's default profile.
//!
//! Left out on purpose: several profiles, extenders, volumes of cloud providers, dynamic resource allocation.

pub mod filter;
pub mod fleet;
mod neighbours;
pub mod pod;
mod preempt;
pub mod run;
mod score;
pub mod terms;
#[cfg(test)]
mod tests;

pub use filter::Reason;
pub use fleet::{Claim, Fleet, Node};
pub use pod::{Pod, Resources};
pub use preempt::{Budget, Preemption, preempt};

use filter::ClaimProblem;
use neighbours::Neighbours;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// With fewer nodes than this, all that fit are compared.
const COMPARED_MIN: usize = 100;

/// Why a pod has no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplaced {
    /// There is no node.
    NoNodes,
    /// A volume claim is not ready.
    Claim {
        /// What is wrong with it.
        problem: ClaimProblem,
        /// How many nodes there are.
        nodes: usize,
    },
    /// Each node has a reason.
    Nodes(BTreeMap<Arc<str>, Vec<Reason>>),
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unplaced::NoNodes => f.write_str("no nodes available to schedule pods"),
            Unplaced::Claim { problem, nodes } => write!(f, "0/{nodes} nodes are available: {problem}."),
            Unplaced::Nodes(reasons) => {
                let all = reasons.values().flatten().map(ToString::to_string);
                write!(f, "0/{} nodes are available: {}.", reasons.len(), counted(all))
            }
        }
    }
}

/// `1 a, 2 b`, as upstream sorts it: as text.
fn counted(reasons: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut texts: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort();
    texts.join(", ")
}

/// The best node for a pod. `seed` decides between equals.
///
/// # Errors
/// Why there is none.
pub fn place(fleet: &mut Fleet, pod: &Pod, seed: u64) -> Result<Arc<str>, Unplaced> {
    let nodes = fleet.nodes.len();
    if nodes == 0 {
        return Err(Unplaced::NoNodes);
    }
    filter::claims(fleet, pod).map_err(|problem| Unplaced::Claim { problem, nodes })?;
    let neighbours = Neighbours::of(fleet, pod);
    // Where others were evicted for it, it goes, if it still fits.
    if let Some(node) = fleet.nodes.get(&*pod.nominated)
        && filter::fits(fleet, pod, node, &neighbours).is_ok()
    {
        return Ok(node.name.clone());
    }
    let wanted = compared(nodes);
    let (mut fitting, mut reasons) = (Vec::new(), BTreeMap::new());
    let mut looked = 0;
    let start = fleet.turn % nodes;
    for node in fleet.nodes.values().cycle().skip(start).take(nodes) {
        looked += 1;
        match filter::fits(fleet, pod, node, &neighbours) {
            Ok(()) => fitting.push(node),
            Err(why) => {
                reasons.insert(node.name.clone(), why);
            }
        }
        if fitting.len() == wanted {
            break;
        }
    }
    let best = match fitting[..] {
        [] => return Err(Unplaced::Nodes(reasons)),
        [only] => only.name.clone(),
        _ => {
            let scores = score::scores(fleet, pod, &fitting, &neighbours);
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let best: Vec<_> =
                scores.iter().zip(&fitting).filter(|(score, _)| **score >= most - 1e-9).collect();
            let index = usize::try_from(seed % best.len().max(1) as u64).unwrap_or_default();
            best[index].1.name.clone()
        }
    };
    fleet.turn = (start + looked) % nodes;
    Ok(best)
}

/// How many fitting nodes are compared (`numFeasibleNodesToFind`).
fn compared(nodes: usize) -> usize {
    if nodes < COMPARED_MIN {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(COMPARED_MIN)
}
