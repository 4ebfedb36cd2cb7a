//! A pod as the scheduler sees it, read once.

use super::terms::{Labels, NodeTerm, PodTerm, Spread, Toleration, labels, strings, tolerations};
use crate::object::{at, items, name, namespace, text, uid};
use coracle_api::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a container without requests counts for in scores, as upstream.
const CPU_MILLIS_ASSUMED: i64 = 100;
const MEMORY_BYTES_ASSUMED: i64 = 200 << 20;

/// Amounts of resources. Sums saturate: no manifest makes them wrap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Whatever else there is; cpu-like precision is not needed.
    pub other: BTreeMap<Box<str>, i64>,
}

impl Resources {
    /// A `v1.ResourceList`.
    pub fn read(list: &Value) -> Resources {
        let mut resources = Resources::default();
        for (name, amount) in list.as_object().into_iter().flatten() {
            let Some(amount) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.cpu_millis = amount.millis(),
                "memory" => resources.memory = amount.bytes(),
                "ephemeral-storage" => resources.ephemeral_storage = amount.bytes(),
                // Counted by itself.
                "pods" => {}
                name => {
                    resources.other.insert(name.into(), amount.bytes());
                }
            }
        }
        resources
    }

    fn combine(&mut self, other: &Resources, with: fn(i64, i64) -> i64) {
        self.cpu_millis = with(self.cpu_millis, other.cpu_millis);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.other {
            let mine = self.other.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }

    /// Adds.
    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    /// Takes away.
    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    /// The larger of each.
    pub fn raise(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }
}

/// A port of the node that a pod takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `0.0.0.0` is every address.
    pub address: Box<str>,
    /// TCP, UDP, SCTP.
    pub protocol: Box<str>,
    /// 1 to 65535.
    pub port: i64,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn clashes(&self, other: &HostPort) -> bool {
        let any = |address: &str| address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || any(&self.address) || any(&other.address))
    }
}

/// A weighed wish.
#[derive(Clone, Debug)]
pub struct Preferred<T> {
    /// 1 to 100.
    pub weight: i64,
    /// What is wished.
    pub term: T,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.priority`.
    pub priority: i64,
    /// Whether it may have others evicted.
    pub preempts: bool,
    /// `metadata.creationTimestamp`: older ones go first.
    pub created: Box<str>,
    /// `status.startTime`.
    pub started: Box<str>,
    /// `spec.nodeName`, or empty.
    pub node: Box<str>,
    /// `status.nominatedNodeName`, or empty.
    pub nominated: Box<str>,
    /// On its way out.
    pub terminating: bool,
    /// What it asks for.
    pub requests: Resources,
    /// What it counts for in scores.
    pub scored: (i64, i64),
    /// `spec.nodeSelector`.
    pub node_selector: Labels,
    /// Required node affinity; `None` is anywhere, an empty list nowhere.
    pub node_terms: Option<Vec<NodeTerm>>,
    /// Preferred node affinity.
    pub node_wishes: Vec<Preferred<NodeTerm>>,
    /// Required affinity to pods.
    pub affinity: Vec<PodTerm>,
    /// Required anti-affinity.
    pub anti_affinity: Vec<PodTerm>,
    /// Preferred affinity; anti-affinity weighs negative.
    pub pod_wishes: Vec<Preferred<PodTerm>>,
    /// Topology spread.
    pub spreads: Vec<Spread>,
    /// What it tolerates.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node.
    pub ports: Vec<HostPort>,
    /// Of its containers.
    pub images: Vec<Box<str>>,
    /// The uid of its controller.
    pub controller: Box<str>,
    /// Names of its volume claims.
    pub claims: Vec<Box<str>>,
}

impl Pod {
    /// A `v1.Pod`.
    pub fn read(pod: &Value) -> Pod {
        let spec = at(pod, &["spec"]);
        let (namespace, labels) = (namespace(pod), labels(pod));
        let affinity = at(spec, &["affinity"]);
        let pod_term = |value: &Value| PodTerm::read(value, namespace, &labels);
        let required = |kind: &str| {
            items(affinity, &[kind, "requiredDuringSchedulingIgnoredDuringExecution"])
                .iter()
                .map(pod_term)
                .collect::<Vec<_>>()
        };
        let preferred = |kind: &str, sign: i64| {
            items(affinity, &[kind, "preferredDuringSchedulingIgnoredDuringExecution"])
                .iter()
                .map(|wish| Preferred {
                    weight: sign * at(wish, &["weight"]).as_i64().unwrap_or_default(),
                    term: pod_term(at(wish, &["podAffinityTerm"])),
                })
                .collect::<Vec<_>>()
        };
        let node_affinity = at(affinity, &["nodeAffinity"]);
        let node_terms = match at(node_affinity, &["requiredDuringSchedulingIgnoredDuringExecution"]) {
            Value::Null => None,
            required => Some(items(required, &["nodeSelectorTerms"]).iter().map(NodeTerm::read).collect()),
        };
        let node_wishes = items(node_affinity, &["preferredDuringSchedulingIgnoredDuringExecution"])
            .iter()
            .map(|wish| Preferred {
                weight: at(wish, &["weight"]).as_i64().unwrap_or_default(),
                term: NodeTerm::read(at(wish, &["preference"])),
            })
            .collect();
        let mut pod_wishes = preferred("podAffinity", 1);
        pod_wishes.extend(preferred("podAntiAffinity", -1));
        let controller = items(pod, &["metadata", "ownerReferences"])
            .iter()
            .find(|owner| at(owner, &["controller"]).as_bool() == Some(true));
        Pod {
            uid: uid(pod).into(),
            namespace: namespace.into(),
            name: name(pod).into(),
            priority: at(spec, &["priority"]).as_i64().unwrap_or_default(),
            preempts: text(spec, &["preemptionPolicy"]) != "Never",
            created: text(pod, &["metadata", "creationTimestamp"]).into(),
            started: text(pod, &["status", "startTime"]).into(),
            node: text(spec, &["nodeName"]).into(),
            nominated: text(pod, &["status", "nominatedNodeName"]).into(),
            terminating: crate::object::is_terminating(pod),
            requests: requests(pod),
            scored: scored(spec),
            node_selector: strings(at(spec, &["nodeSelector"])),
            node_terms,
            node_wishes,
            affinity: required("podAffinity"),
            anti_affinity: required("podAntiAffinity"),
            pod_wishes,
            spreads: items(spec, &["topologySpreadConstraints"])
                .iter()
                .filter_map(|value| Spread::read(value, &labels))
                .collect(),
            tolerations: tolerations(pod),
            ports: host_ports(spec),
            images: items(spec, &["containers"])
                .iter()
                .map(|container| text(container, &["image"]).into())
                .collect(),
            controller: controller.map_or("", |owner| text(owner, &["uid"])).into(),
            claims: items(spec, &["volumes"])
                .iter()
                .map(|volume| text(volume, &["persistentVolumeClaim", "claimName"]))
                .filter(|claim| !claim.is_empty())
                .map(Into::into)
                .collect(),
            labels,
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    text(container, &["restartPolicy"]) == "Always"
}

/// What a pod asks for (`PodRequests`): its containers and sidecars together, or the largest moment of its init, whatever is
/// more; then the overhead. A pod that is being resized counts for the larger of what it has and what it wants.
pub fn requests(pod: &Value) -> Resources {
    let spec = at(pod, &["spec"]);
    let has = |list: &str, container: &Value| {
        let statuses = items(pod, &["status", list]);
        let own = statuses.iter().find(|status| text(status, &["name"]) == text(container, &["name"]));
        own.map_or(&Value::Null, |status| at(status, &["resources", "requests"]))
    };
    let of = |list: &str, container: &Value| {
        let mut wanted = Resources::read(at(container, &["resources", "requests"]));
        wanted.raise(&Resources::read(has(list, container)));
        wanted
    };
    let mut total = Resources::default();
    for container in items(spec, &["containers"]) {
        total.add(&of("containerStatuses", container));
    }
    let (mut sidecars, mut largest) = (Resources::default(), Resources::default());
    for container in items(spec, &["initContainers"]) {
        let mut moment = of("initContainerStatuses", container);
        if is_sidecar(container) {
            total.add(&moment);
            sidecars.add(&moment);
            moment = sidecars.clone();
        } else {
            moment.add(&sidecars);
        }
        largest.raise(&moment);
    }
    total.raise(&largest);
    // Said of the whole pod, it goes before what its containers say.
    let whole = at(spec, &["resources", "requests"]);
    if whole.is_object() {
        let whole_amount = Resources::read(whole);
        if whole.get("cpu").is_some() {
            total.cpu_millis = whole_amount.cpu_millis;
        }
        if whole.get("memory").is_some() {
            total.memory = whole_amount.memory;
        }
    }
    total.add(&Resources::read(at(spec, &["overhead"])));
    total
}

/// Cpu and memory as scores count them: a container that asks for nothing still takes some.
fn scored(spec: &Value) -> (i64, i64) {
    let sum = |name: &str, assumed: i64, amount: fn(&Resources) -> i64| {
        let of = |container: &Value| {
            let asked = at(container, &["resources", "requests"]);
            if asked.get(name).is_some() { amount(&Resources::read(asked)) } else { assumed }
        };
        let containers: i64 = items(spec, &["containers"]).iter().map(of).fold(0, i64::saturating_add);
        let sidecars: i64 = items(spec, &["initContainers"])
            .iter()
            .filter(|container| is_sidecar(container))
            .map(of)
            .fold(0, i64::saturating_add);
        containers.saturating_add(sidecars)
    };
    (
        sum("cpu", CPU_MILLIS_ASSUMED, |resources| resources.cpu_millis),
        sum("memory", MEMORY_BYTES_ASSUMED, |resources| resources.memory),
    )
}

fn host_ports(spec: &Value) -> Vec<HostPort> {
    let sidecars = items(spec, &["initContainers"]).iter().filter(|container| is_sidecar(container));
    let containers = items(spec, &["containers"]).iter().chain(sidecars);
    let ports = containers.flat_map(|container| items(container, &["ports"]));
    ports
        .filter_map(|port| {
            let number = at(port, &["hostPort"]).as_i64().filter(|port| *port > 0)?;
            let or = |key: &str, default: &str| match text(port, &[key]) {
                "" => default.into(),
                text => text.into(),
            };
            Some(HostPort { address: or("hostIP", "0.0.0.0"), protocol: or("protocol", "TCP"), port: number })
        })
        .collect()
}
