//! What other pods mean for a pod: affinity, anti-affinity, topology spread.
//!
//! Counts per value of a topology label, made once for a pod that is to be placed and then asked for each node. Pods can be
//! taken out of the counts again, for the question what would be if they were evicted.

use super::filter::{self, Reason};
use super::fleet::{Fleet, Node};
use super::pod::Pod;
use super::terms::{Labels, PodTerm};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How many pods per value of a label.
type Domains = HashMap<Box<str>, i64>;

/// The counts.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// Per required affinity term of the pod: pods that match all of its terms.
    affinity: Vec<Domains>,
    /// Per required anti-affinity term of the pod: pods that match that term.
    anti_affinity: Vec<Domains>,
    /// Per topology label: pods that do not want to be with this one.
    repelling: HashMap<Box<str>, Domains>,
    /// Per spread constraint: pods that it counts, in every domain that there is.
    spreads: Vec<Domains>,
    /// Whether the pod is one of those that it wants to be with.
    matches_itself: bool,
    namespaces: BTreeMap<Box<str>, Labels>,
}

impl Neighbours {
    /// Looks at all pods, if the pod has anything to do with others.
    pub fn of(fleet: &Fleet, pod: &Pod) -> Neighbours {
        let mut found = Neighbours {
            affinity: vec![Domains::new(); pod.affinity.len()],
            anti_affinity: vec![Domains::new(); pod.anti_affinity.len()],
            spreads: vec![Domains::new(); pod.spreads.len()],
            ..Neighbours::default()
        };
        let looks = !(pod.affinity.is_empty() && pod.anti_affinity.is_empty() && pod.spreads.is_empty());
        if !looks && fleet.repelling.is_empty() {
            return found;
        }
        found.namespaces = fleet.namespaces.clone();
        found.matches_itself = found.wanted(pod, pod);
        if looks {
            for node in fleet.nodes.values() {
                found.open_domains(pod, node);
                for other in node.pods.values() {
                    found.count(pod, other, node, 1);
                }
            }
        } else {
            for node in fleet.repelling.iter().filter_map(|name| fleet.nodes.get(name)) {
                for other in node.pods.values() {
                    found.count(pod, other, node, 1);
                }
            }
        }
        found
    }

    /// A domain without pods is one, too.
    fn open_domains(&mut self, pod: &Pod, node: &Node) {
        for (domains, spread) in self.spreads.iter_mut().zip(&pod.spreads) {
            if let Some(value) = node.labels.get(&spread.topology)
                && is_eligible(pod, node, spread.honor_affinity, spread.honor_taints)
            {
                domains.entry(value.clone()).or_default();
            }
        }
    }

    /// Whether a pod matches all that another one wants to be with.
    fn wanted(&self, pod: &Pod, other: &Pod) -> bool {
        !pod.affinity.is_empty() && pod.affinity.iter().all(|term| self.means(term, other))
    }

    fn means(&self, term: &PodTerm, pod: &Pod) -> bool {
        term.matches(&pod.namespace, &pod.labels, &self.namespaces)
    }

    /// Counts a pod of a node in (1) or out (-1).
    pub fn count(&mut self, pod: &Pod, other: &Pod, node: &Node, by: i64) {
        let add = |domains: &mut Domains, value: &str| {
            *domains.entry(value.into()).or_default() += by;
        };
        if self.wanted(pod, other) {
            for (domains, term) in self.affinity.iter_mut().zip(&pod.affinity) {
                if let Some(value) = node.labels.get(&term.topology) {
                    add(domains, value);
                }
            }
        }
        for (index, term) in pod.anti_affinity.iter().enumerate() {
            if let Some(value) = node.labels.get(&term.topology)
                && self.means(term, other)
            {
                add(&mut self.anti_affinity[index], value);
            }
        }
        for term in &other.anti_affinity {
            if let Some(value) = node.labels.get(&term.topology)
                && self.means(term, pod)
            {
                add(self.repelling.entry(term.topology.clone()).or_default(), value);
            }
        }
        if other.namespace != pod.namespace || other.terminating {
            return;
        }
        for (domains, spread) in self.spreads.iter_mut().zip(&pod.spreads) {
            // Nodes that are no domain of this pod are not counted, as upstream does.
            if let Some(value) = node.labels.get(&spread.topology)
                && let Some(count) = domains.get_mut(value)
                && spread.counts(&other.labels)
                && is_eligible(pod, node, spread.honor_affinity, spread.honor_taints)
            {
                *count += by;
            }
        }
    }

    /// Whether the other pods allow a node.
    pub fn fits(&self, pod: &Pod, node: &Node) -> Result<(), Reason> {
        self.spread(pod, node)?;
        self.affinity(pod, node)?;
        let has = |domains: &Domains, topology: &str| {
            let value = node.labels.get(topology);
            value.is_some_and(|value| domains.get(value).is_some_and(|count| *count > 0))
        };
        let mut anti = self.anti_affinity.iter().zip(&pod.anti_affinity);
        if anti.any(|(domains, term)| has(domains, &term.topology)) {
            return Err(Reason::PodAntiAffinity);
        }
        if self.repelling.iter().any(|(topology, domains)| has(domains, topology)) {
            return Err(Reason::ExistingAntiAffinity);
        }
        Ok(())
    }

    fn affinity(&self, pod: &Pod, node: &Node) -> Result<(), Reason> {
        let mut all = true;
        for (domains, term) in self.affinity.iter().zip(&pod.affinity) {
            let value = node.labels.get(&term.topology).ok_or(Reason::PodAffinity)?;
            all &= domains.get(value).is_some_and(|count| *count > 0);
        }
        // The first of a group that wants to be together has nobody to be with.
        let first = || self.affinity.iter().all(|domains| domains.values().all(|count| *count <= 0));
        if all || (self.matches_itself && first()) { Ok(()) } else { Err(Reason::PodAffinity) }
    }

    fn spread(&self, pod: &Pod, node: &Node) -> Result<(), Reason> {
        for (domains, spread) in self.spreads.iter().zip(&pod.spreads).filter(|(_, spread)| spread.required) {
            let value = node.labels.get(&spread.topology).ok_or(Reason::SpreadLabel)?;
            let few = i64::try_from(domains.len()).unwrap_or(i64::MAX) < spread.domains_min;
            let least = if few { 0 } else { domains.values().copied().min().unwrap_or_default() };
            let here = domains.get(value).copied().unwrap_or_default();
            let own = i64::from(spread.counts(&pod.labels));
            if here + own - least > spread.skew_max {
                return Err(Reason::Spread);
            }
        }
        Ok(())
    }

    /// How many pods each wish to spread counts in the node's domain; less is better.
    pub fn crowd(&self, pod: &Pod, node: &Node) -> f64 {
        let wishes = self.spreads.iter().zip(&pod.spreads).filter(|(_, spread)| !spread.required);
        wishes
            .map(|(domains, spread)| {
                let here = node.labels.get(&spread.topology).and_then(|value| domains.get(value));
                let weight = (f64::from(u32::try_from(domains.len()).unwrap_or(u32::MAX)) + 2.0).ln();
                // A node without the label is the last choice.
                here.map_or(f64::from(u16::MAX), |count| {
                    f64::from(i32::try_from(*count).unwrap_or(i32::MAX)) * weight
                        + f64::from(i32::try_from(spread.skew_max - 1).unwrap_or(i32::MAX))
                })
            })
            .sum()
    }
}

fn is_eligible(pod: &Pod, node: &Node, honor_affinity: bool, honor_taints: bool) -> bool {
    (!honor_affinity || filter::wants(pod, node))
        && (!honor_taints || filter::untolerated(pod, node).is_none())
}

/// What other pods wish, for scores: per topology label and value the sum of weights.
#[derive(Debug, Default)]
pub struct Wishes(HashMap<(Box<str>, Box<str>), i64>);

impl Wishes {
    /// Of the pod about others, and of others about the pod; required affinity of others counts one.
    pub fn of(fleet: &Fleet, pod: &Pod) -> Wishes {
        let mut wishes = Wishes::default();
        let all: BTreeSet<_> = if pod.pod_wishes.is_empty() {
            fleet.social.iter().collect()
        } else {
            fleet.nodes.keys().collect()
        };
        let means = |term: &PodTerm, of: &Pod| term.matches(&of.namespace, &of.labels, &fleet.namespaces);
        for node in all.into_iter().filter_map(|name| fleet.nodes.get(name)) {
            for other in node.pods.values() {
                let mine = pod.pod_wishes.iter().filter(|wish| means(&wish.term, other));
                let theirs = other.pod_wishes.iter().filter(|wish| means(&wish.term, pod));
                for wish in mine.chain(theirs) {
                    wishes.add(&wish.term, node, wish.weight);
                }
                for term in other.affinity.iter().filter(|term| means(term, pod)) {
                    wishes.add(term, node, 1);
                }
            }
        }
        wishes
    }

    fn add(&mut self, term: &PodTerm, node: &Node, weight: i64) {
        if let Some(value) = node.labels.get(&term.topology) {
            *self.0.entry((term.topology.clone(), value.clone())).or_default() += weight;
        }
    }

    /// Whether anybody wishes anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum for a node.
    pub fn sum(&self, node: &Node) -> i64 {
        let here = self.0.iter().filter(|((key, value), _)| node.labels.get(key) == Some(value));
        here.map(|(_, weight)| weight).sum()
    }
}
