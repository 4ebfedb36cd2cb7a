//! Which of the nodes that fit is best: upstream's scores and weights, each from 0 to 100.

use super::fleet::{Fleet, Node};
use super::neighbours::{Neighbours, Wishes};
use super::pod::Pod;

/// The best score of one kind.
const BEST: f64 = 100.0;
/// Weights of upstream's default profile.
const TAINTS: f64 = 3.0;
const NODE_AFFINITY: f64 = 2.0;
const SPREAD: f64 = 2.0;
const POD_AFFINITY: f64 = 2.0;
const LEAST_ALLOCATED: f64 = 1.0;
const BALANCED: f64 = 1.0;
const IMAGES: f64 = 1.0;
/// An image smaller than this on all nodes says nothing; one larger than that per container says all.
const IMAGE_BYTES_MIN: f64 = 23.0 * 1024.0 * 1024.0;
const IMAGE_BYTES_MAX: f64 = 1000.0 * 1024.0 * 1024.0;

/// A score for each node.
pub fn scores(fleet: &Fleet, pod: &Pod, nodes: &[&Node], neighbours: &Neighbours) -> Vec<f64> {
    let mut totals = vec![0.0; nodes.len()];
    let mut add = |weight: f64, scores: Vec<f64>| {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    let each = |score: &dyn Fn(&Node) -> f64| nodes.iter().map(|node| score(node)).collect::<Vec<_>>();
    add(LEAST_ALLOCATED, each(&|node| least_allocated(pod, node)));
    add(BALANCED, each(&|node| balanced(pod, node)));
    if nodes.iter().any(|node| node.taints.iter().any(|taint| &*taint.effect == "PreferNoSchedule")) {
        add(TAINTS, inverted(each(&|node| f64::from(disliked(pod, node)))));
    }
    if !pod.node_wishes.is_empty() {
        let wished = |node: &Node| -> i64 {
            let kept = pod.node_wishes.iter().filter(|wish| wish.term.matches(&node.name, &node.labels));
            kept.map(|wish| wish.weight).sum()
        };
        add(NODE_AFFINITY, normalized(each(&|node| float(wished(node)))));
    }
    if pod.spreads.iter().any(|spread| !spread.required) {
        add(SPREAD, inverted(each(&|node| neighbours.crowd(pod, node))));
    } else if pod.spreads.is_empty() && !pod.controller.is_empty() {
        // Without a word, siblings are spread over nodes.
        let siblings =
            |node: &Node| node.pods.values().filter(|other| other.controller == pod.controller).count();
        add(SPREAD, inverted(each(&|node| float(i64::try_from(siblings(node)).unwrap_or(i64::MAX)))));
    }
    let wishes = Wishes::of(fleet, pod);
    if !wishes.is_empty() {
        add(POD_AFFINITY, stretched(each(&|node| float(wishes.sum(node)))));
    }
    if nodes.iter().any(|node| !node.images.is_empty()) {
        add(IMAGES, images(pod, nodes));
    }
    totals
}

#[expect(clippy::cast_precision_loss, reason = "scores compare amounts; the last bits do not matter")]
fn float(amount: i64) -> f64 {
    amount as f64
}

/// The share of a node that would be taken, of what the node has at all.
fn shares(pod: &Pod, node: &Node) -> impl Iterator<Item = f64> {
    let cpu = (node.allocatable.cpu_millis, node.scored.0, pod.scored.0);
    let memory = (node.allocatable.memory, node.scored.1, pod.scored.1);
    [cpu, memory]
        .into_iter()
        .filter(|(all, _, _)| *all > 0)
        .map(|(all, taken, asked)| (float(taken.saturating_add(asked)) / float(all)).min(1.0))
}

fn least_allocated(pod: &Pod, node: &Node) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0_f64);
    for share in shares(pod, node) {
        sum += (1.0 - share) * BEST;
        count += 1.0;
    }
    sum / count.max(1.0)
}

fn balanced(pod: &Pod, node: &Node) -> f64 {
    let shares: Vec<f64> = shares(pod, node).collect();
    match shares[..] {
        // The standard deviation of two numbers.
        [cpu, memory] => (1.0 - ((cpu - memory) / 2.0).abs()) * BEST,
        _ => 0.0,
    }
}

/// Taints of the milder kind that the pod does not tolerate.
fn disliked(pod: &Pod, node: &Node) -> u32 {
    let mild = node.taints.iter().filter(|taint| &*taint.effect == "PreferNoSchedule");
    let disliked = mild.filter(|taint| {
        !pod.tolerations
            .iter()
            .any(|toleration| toleration.is_for_preference() && toleration.tolerates(taint))
    });
    u32::try_from(disliked.count()).unwrap_or(u32::MAX)
}

/// A node that has an image already starts sooner; an image that few nodes have counts less, so that not all pods go there.
fn images(pod: &Pod, nodes: &[&Node]) -> Vec<f64> {
    let all = float(i64::try_from(nodes.len()).unwrap_or(i64::MAX));
    let names: Vec<String> = pod.images.iter().map(|image| normal_name(image)).collect();
    let weights: Vec<f64> = names
        .iter()
        .map(|name| {
            let having = nodes.iter().filter(|node| node.images.contains_key(name.as_str())).count();
            float(i64::try_from(having).unwrap_or(i64::MAX)) / all
        })
        .collect();
    let most = IMAGE_BYTES_MAX * float(i64::try_from(names.len().max(1)).unwrap_or(i64::MAX));
    nodes
        .iter()
        .map(|node| {
            let sizes = names.iter().zip(&weights).filter_map(|(name, weight)| {
                node.images.get(name.as_str()).map(|size| float(*size) * weight)
            });
            let sum: f64 = sizes.sum();
            BEST * (sum.clamp(IMAGE_BYTES_MIN, most) - IMAGE_BYTES_MIN) / (most - IMAGE_BYTES_MIN)
        })
        .collect()
}

/// As nodes name images: with a tag.
fn normal_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || image.contains('@') { image.to_string() } else { format!("{image}:latest") }
}

/// The largest becomes 100, 0 stays.
fn normalized(scores: Vec<f64>) -> Vec<f64> {
    let most = scores.iter().copied().fold(0.0, f64::max);
    if most == 0.0 { scores } else { scores.into_iter().map(|score| score * BEST / most).collect() }
}

/// None becomes 100, the largest 0.
fn inverted(scores: Vec<f64>) -> Vec<f64> {
    normalized(scores).into_iter().map(|score| BEST - score).collect()
}

/// The smallest becomes 0, the largest 100.
fn stretched(scores: Vec<f64>) -> Vec<f64> {
    let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let width = most - least;
    scores.into_iter().map(|score| if width > 0.0 { (score - least) * BEST / width } else { 0.0 }).collect()
}
