//! Whether a pod may go to a node, and if not, why: upstream's filters, in its order and its words.

use super::fleet::{Claim, Fleet, Node};
use super::neighbours::Neighbours;
use super::pod::Pod;
use super::terms::Taint;
use std::fmt;

/// Why a node is not for a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is cordoned.
    Unschedulable,
    /// A taint.
    Taint(Taint),
    /// The pod's own choice of nodes.
    NodeAffinity,
    /// A port is taken.
    Ports,
    /// As many pods as it takes.
    TooManyPods,
    /// Too little is free; whether the empty node would have enough.
    Insufficient {
        /// `cpu`, `memory`, …
        resource: Box<str>,
        /// Whether it would do if others made room.
        ever: bool,
    },
    /// A volume is elsewhere.
    VolumeAffinity,
    /// The domains would be too far apart.
    Spread,
    /// The node has no label for the domain.
    SpreadLabel,
    /// Pods that it wants to be with are not there.
    PodAffinity,
    /// Pods that it does not want to be with are there.
    PodAntiAffinity,
    /// Pods are there that do not want to be with it.
    ExistingAntiAffinity,
}

impl Reason {
    /// Whether it might fit if other pods made room.
    pub fn is_resolvable(&self) -> bool {
        match self {
            Reason::Ports
            | Reason::TooManyPods
            | Reason::Spread
            | Reason::PodAntiAffinity
            | Reason::ExistingAntiAffinity => true,
            Reason::Insufficient { ever, .. } => *ever,
            Reason::Unschedulable
            | Reason::Taint(_)
            | Reason::NodeAffinity
            | Reason::VolumeAffinity
            | Reason::SpreadLabel
            | Reason::PodAffinity => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Unschedulable => "node(s) were unschedulable",
            Reason::Taint(taint) => {
                return write!(f, "node(s) had untolerated taint {{{}: {}}}", taint.key, taint.value);
            }
            Reason::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Reason::Ports => "node(s) didn't have free ports for the requested pod ports",
            Reason::TooManyPods => "Too many pods",
            Reason::Insufficient { resource, .. } => return write!(f, "Insufficient {resource}"),
            Reason::VolumeAffinity => "node(s) didn't match PersistentVolume's node affinity",
            Reason::Spread => "node(s) didn't match pod topology spread constraints",
            Reason::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Reason::PodAffinity => "node(s) didn't match pod affinity rules",
            Reason::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Reason::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        })
    }
}

/// Why no node at all is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimProblem {
    /// It does not exist.
    Missing(Box<str>),
    /// It is being deleted.
    Terminating(Box<str>),
    /// It has no volume and nothing makes one.
    Unbound,
}

impl fmt::Display for ClaimProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClaimProblem::Missing(name) => write!(f, "persistentvolumeclaim \"{name}\" not found"),
            ClaimProblem::Terminating(name) => {
                write!(f, "persistentvolumeclaim \"{name}\" is being deleted")
            }
            ClaimProblem::Unbound => f.write_str("pod has unbound immediate PersistentVolumeClaims"),
        }
    }
}

/// What is wrong with a pod's claims, wherever it goes.
pub fn claims(fleet: &Fleet, pod: &Pod) -> Result<(), ClaimProblem> {
    for name in &pod.claims {
        match fleet.claims.get(&(pod.namespace.clone(), name.clone())) {
            None => return Err(ClaimProblem::Missing(name.clone())),
            Some(Claim::Terminating) => return Err(ClaimProblem::Terminating(name.clone())),
            Some(Claim::Unbound) => return Err(ClaimProblem::Unbound),
            Some(Claim::Bound(_) | Claim::WaitsForPod) => {}
        }
    }
    Ok(())
}

/// Whether a pod goes to cordoned nodes, too: those of daemons do.
fn bears_cordon(pod: &Pod) -> bool {
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        value: "".into(),
        effect: "NoSchedule".into(),
    };
    pod.tolerations.iter().any(|toleration| toleration.tolerates(&cordon))
}

/// The first taint that keeps a pod from being placed.
pub fn untolerated<'a>(pod: &Pod, node: &'a Node) -> Option<&'a Taint> {
    node.taints.iter().find(|taint| {
        matches!(&*taint.effect, "NoSchedule" | "NoExecute")
            && !pod.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    })
}

/// Node selector and required node affinity.
pub fn wants(pod: &Pod, node: &Node) -> bool {
    pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && pod
            .node_terms
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)))
}

/// Whether a node is for a pod; the reasons of the first filter that says no.
pub fn fits(fleet: &Fleet, pod: &Pod, node: &Node, neighbours: &Neighbours) -> Result<(), Vec<Reason>> {
    if node.unschedulable && !bears_cordon(pod) {
        return Err(vec![Reason::Unschedulable]);
    }
    if let Some(taint) = untolerated(pod, node) {
        return Err(vec![Reason::Taint(taint.clone())]);
    }
    if !wants(pod, node) {
        return Err(vec![Reason::NodeAffinity]);
    }
    if pod.ports.iter().any(|port| node.has_port(port)) {
        return Err(vec![Reason::Ports]);
    }
    let short = insufficient(pod, node);
    if !short.is_empty() {
        return Err(short);
    }
    for name in &pod.claims {
        match fleet.claims.get(&(pod.namespace.clone(), name.clone())) {
            Some(Claim::Bound(Some(terms)))
                if !terms.iter().any(|term| term.matches(&node.name, &node.labels)) =>
            {
                return Err(vec![Reason::VolumeAffinity]);
            }
            _ => {}
        }
    }
    neighbours.fits(pod, node).map_err(|reason| vec![reason])
}

fn insufficient(pod: &Pod, node: &Node) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= node.pods_max {
        reasons.push(Reason::TooManyPods);
    }
    let mut check = |resource: &str, asked: i64, allocatable: i64, requested: i64| {
        if asked > 0 && asked > allocatable.saturating_sub(requested) {
            reasons.push(Reason::Insufficient { resource: resource.into(), ever: asked <= allocatable });
        }
    };
    let (asked, all, taken) = (&pod.requests, &node.allocatable, &node.requested);
    check("cpu", asked.cpu_millis, all.cpu_millis, taken.cpu_millis);
    check("memory", asked.memory, all.memory, taken.memory);
    check("ephemeral-storage", asked.ephemeral_storage, all.ephemeral_storage, taken.ephemeral_storage);
    for (name, amount) in &asked.other {
        let of = |resources: &super::pod::Resources| resources.other.get(name).copied().unwrap_or_default();
        check(name, *amount, of(all), of(taken));
    }
    reasons
}
