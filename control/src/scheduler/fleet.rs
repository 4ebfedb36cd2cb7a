//! The nodes with what is on them: the state that pods are placed by. Changed piece by piece as nodes and pods come and go.

use super::pod::{HostPort, Pod, Resources};
use super::terms::{Labels, NodeTerm, Taint, labels};
use crate::object::{at, items, name, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Pods of a node that says nothing else.
const PODS_MAX_DEFAULT: i64 = 110;

/// A node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// How many pods.
    pub pods_max: i64,
    /// Images it has, with their sizes.
    pub images: BTreeMap<Box<str>, i64>,
    /// What is on it, by uid.
    pub pods: BTreeMap<Box<str>, Arc<Pod>>,
    /// What those ask for.
    pub requested: Resources,
    /// As scores count it.
    pub scored: (i64, i64),
}

impl Node {
    /// A `v1.Node`, with nothing on it.
    pub fn read(node: &Value) -> Node {
        let allocatable = at(node, &["status", "allocatable"]);
        let pods = text(allocatable, &["pods"]).parse::<coracle_api::quantity::Quantity>();
        let images = items(node, &["status", "images"]).iter().flat_map(|image| {
            let size = at(image, &["sizeBytes"]).as_i64().unwrap_or_default();
            let names = items(image, &["names"]).iter().filter_map(Value::as_str);
            names.map(move |name| (name.into(), size))
        });
        Node {
            name: name(node).into(),
            labels: labels(node),
            taints: items(node, &["spec", "taints"]).iter().map(Taint::read).collect(),
            unschedulable: at(node, &["spec", "unschedulable"]).as_bool().unwrap_or_default(),
            allocatable: Resources::read(allocatable),
            pods_max: pods.map_or(PODS_MAX_DEFAULT, |pods| pods.bytes()),
            images: images.collect(),
            ..Node::default()
        }
    }

    /// Puts a pod on it.
    pub fn add(&mut self, pod: &Arc<Pod>) {
        if self.pods.insert(pod.uid.clone(), pod.clone()).is_none() {
            self.requested.add(&pod.requests);
            self.scored.0 = self.scored.0.saturating_add(pod.scored.0);
            self.scored.1 = self.scored.1.saturating_add(pod.scored.1);
        }
    }

    /// Takes a pod off it.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.scored.0 = self.scored.0.saturating_sub(pod.scored.0);
        self.scored.1 = self.scored.1.saturating_sub(pod.scored.1);
        Some(pod)
    }

    /// Whether a port is taken.
    pub fn has_port(&self, port: &HostPort) -> bool {
        self.pods.values().any(|pod| pod.ports.iter().any(|taken| taken.clashes(port)))
    }

    fn is_like(&self, other: &Node) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.allocatable == other.allocatable
            && self.pods_max == other.pods_max
    }
}

/// What is known of a volume claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has a volume, which is only on some nodes; `None` is on all.
    Bound(Option<Vec<NodeTerm>>),
    /// It has none, and waits for one.
    Unbound,
    /// It gets one where its first pod is.
    WaitsForPod,
    /// It is on its way out.
    Terminating,
}

/// The nodes.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// By name.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// Where each pod is, by uid.
    places: HashMap<Box<str>, Arc<str>>,
    /// Pods of nodes that are not known (yet).
    homeless: HashMap<Box<str>, Arc<Pod>>,
    /// Nodes with pods that have anti-affinity, and with pods that have any wish or rule about other pods.
    pub(super) repelling: BTreeSet<Arc<str>>,
    pub(super) social: BTreeSet<Arc<str>>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<Box<str>, Labels>,
    /// Volume claims, by namespace and name.
    pub claims: BTreeMap<(Box<str>, Box<str>), Claim>,
    /// Where the next search begins, so that all nodes get their turn.
    pub(super) turn: usize,
}

impl Fleet {
    /// Sets a node as it is; whether that may let a pod fit that did not.
    pub fn set_node(&mut self, node: Node) -> bool {
        let name = node.name.clone();
        let mut node = node;
        let old = self.nodes.remove(&name);
        let differs = old.as_ref().is_none_or(|old| !old.is_like(&node));
        match old {
            Some(old) => {
                for pod in old.pods.values() {
                    node.add(pod);
                }
            }
            None => {
                for pod in self.homeless.values().filter(|pod| *pod.node == *name) {
                    node.add(pod);
                    self.places.insert(pod.uid.clone(), name.clone());
                }
                self.homeless.retain(|_, pod| *pod.node != *name);
            }
        }
        self.nodes.insert(name.clone(), node);
        self.note(&name);
        differs
    }

    /// Removes a node; its pods stay known, without a place.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.remove(name) {
            for (uid, pod) in node.pods {
                self.places.remove(&uid);
                self.homeless.insert(uid, pod);
            }
        }
        self.repelling.remove(name);
        self.social.remove(name);
    }

    /// Puts a pod on its node (`pod.node`), or replaces it there. False when it is there as it is.
    pub fn set_pod(&mut self, pod: &Arc<Pod>) {
        self.remove_pod(&pod.uid);
        let name: Arc<str> = (&*pod.node).into();
        match self.nodes.get_mut(&name) {
            Some(node) => {
                node.add(pod);
                self.places.insert(pod.uid.clone(), name.clone());
                self.note(&name);
            }
            None => {
                self.homeless.insert(pod.uid.clone(), pod.clone());
            }
        }
    }

    /// Takes a pod away.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<Pod>> {
        if let Some(pod) = self.homeless.remove(uid) {
            return Some(pod);
        }
        let name = self.places.remove(uid)?;
        let pod = self.nodes.get_mut(&name)?.remove(uid);
        self.note(&name);
        pod
    }

    /// The pod, when it has a place.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        match self.places.get(uid) {
            Some(name) => self.nodes.get(name)?.pods.get(uid),
            None => self.homeless.get(uid),
        }
    }

    /// Keeps the lists of nodes whose pods look at other pods.
    fn note(&mut self, name: &Arc<str>) {
        let Some(node) = self.nodes.get(name) else { return };
        let repels = node.pods.values().any(|pod| !pod.anti_affinity.is_empty());
        let looks = node.pods.values().any(|pod| !pod.affinity.is_empty() || !pod.pod_wishes.is_empty());
        let mut set = |which: fn(&mut Fleet) -> &mut BTreeSet<Arc<str>>, is: bool| {
            if is {
                which(self).insert(name.clone());
            } else {
                which(self).remove(name);
            }
        };
        set(|fleet| &mut fleet.repelling, repels);
        set(|fleet| &mut fleet.social, looks);
    }
}
