//! What an object takes of a quota (upstream's evaluators). Pure.

use super::amounts::Amounts;
use crate::object::{at, items, text};
use crate::registry::Resource;
use coracle_api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Kinds that a quota names without `count/`.
const PLAIN: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
const CLASS: &str = ".storageclass.storage.k8s.io/";

fn is(resource: &Resource, plural: &str) -> bool {
    resource.group.is_empty() && resource.plural == plural
}

/// `count/deployments.apps`.
fn count_name(resource: &Resource) -> String {
    format!("count/{}", resource.group_resource())
}

/// Whether objects of a kind may take of a resource that a quota names.
pub fn measures(resource: &Resource, name: &str) -> bool {
    if name.starts_with("count/") {
        return name == count_name(resource);
    }
    let of_claims = name == "requests.storage" || name.contains(CLASS);
    match resource.plural {
        _ if !resource.group.is_empty() => false,
        "pods" => {
            let bare = matches!(name, "pods" | "cpu" | "memory" | "ephemeral-storage");
            let asked = ["requests.", "limits.", "hugepages-"].iter().any(|start| name.starts_with(start));
            (bare || asked) && !of_claims
        }
        "persistentvolumeclaims" => name == "persistentvolumeclaims" || of_claims,
        "services" => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        plural => PLAIN.contains(&plural) && name == plural,
    }
}

/// What an object takes.
pub fn usage(resource: &Resource, object: &Value, now: Timestamp) -> Amounts {
    let mut usage = Amounts::default();
    usage.set(count_name(resource), Quantity::of(1));
    match resource.plural {
        "pods" if is(resource, "pods") && !is_over(object, now) => {
            usage.set("pods", Quantity::of(1));
            add_compute(&mut usage, &sum(object, "requests"), &sum(object, "limits"));
        }
        "persistentvolumeclaims" if is(resource, "persistentvolumeclaims") => {
            usage.set("persistentvolumeclaims", Quantity::of(1));
            let class = text(object, &["spec", "storageClassName"]);
            let asked = Amounts::read(at(object, &["spec", "resources", "requests"]));
            if asked.has("storage") {
                usage.set("requests.storage", asked.of("storage"));
            }
            if !class.is_empty() {
                usage.set(format!("{class}{CLASS}persistentvolumeclaims"), Quantity::of(1));
                usage.set(format!("{class}{CLASS}requests.storage"), asked.of("storage"));
            }
        }
        "services" if is(resource, "services") => {
            usage.set("services", Quantity::of(1));
            let ports = items(object, &["spec", "ports"]);
            let given = ports.iter().filter(|port| at(port, &["nodePort"]).as_i64().unwrap_or(0) != 0);
            let allocates = at(object, &["spec", "allocateLoadBalancerNodePorts"]).as_bool() != Some(false);
            let (nodes, balancers) = match text(object, &["spec", "type"]) {
                "NodePort" => (ports.len(), 0),
                "LoadBalancer" if allocates => (ports.len(), 1),
                "LoadBalancer" => (given.count(), 1),
                _ => (0, 0),
            };
            usage.set("services.nodeports", Quantity::of(i64::try_from(nodes).unwrap_or(i64::MAX)));
            usage.set("services.loadbalancers", Quantity::of(balancers));
        }
        "pods" => {}
        plural if resource.group.is_empty() && PLAIN.contains(&plural) => usage.set(plural, Quantity::of(1)),
        _ => {}
    }
    usage
}

/// Whether a pod has ended, or should have.
fn is_over(pod: &Value, now: Timestamp) -> bool {
    let ended = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    ended || until(pod, now) == Some(SignedDuration::ZERO)
}

/// How long a pod that is to end is still counted: a lost node must not keep its owner from a new one. `None` when it stays.
pub fn until(pod: &Value, now: Timestamp) -> Option<SignedDuration> {
    let grace = at(pod, &["metadata", "deletionGracePeriodSeconds"]).as_i64()?;
    let deleted: Timestamp = text(pod, &["metadata", "deletionTimestamp"]).parse().ok()?;
    let end = deleted.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    Some(end.duration_since(now).max(SignedDuration::ZERO))
}

/// The names under which a quota knows what containers ask for.
fn add_compute(usage: &mut Amounts, requests: &Amounts, limits: &Amounts) {
    for (name, amount) in requests.iter() {
        match name {
            "cpu" | "memory" | "ephemeral-storage" => {
                usage.set(name, amount);
                usage.set(format!("requests.{name}"), amount);
            }
            name if name.starts_with("hugepages-") => {
                usage.set(name, amount);
                usage.set(format!("requests.{name}"), amount);
            }
            name if name.contains('/') => usage.set(format!("requests.{name}"), amount),
            _ => {}
        }
    }
    for (name, amount) in limits.iter() {
        if matches!(name, "cpu" | "memory" | "ephemeral-storage") {
            usage.set(format!("limits.{name}"), amount);
        }
    }
}

/// The sum of a pod's containers, of which init containers run one by one before; sidecars stay beside both.
fn sum(pod: &Value, kind: &str) -> Amounts {
    let asked = |of: &Value| Amounts::read(at(of, &["resources", kind]));
    let mut all = Amounts::default();
    for container in items(pod, &["spec", "containers"]) {
        all.add(&asked(container));
    }
    let (mut sidecars, mut before) = (Amounts::default(), Amounts::default());
    for container in items(pod, &["spec", "initContainers"]) {
        let mut beside = sidecars.clone();
        beside.add(&asked(container));
        before.raise(&beside);
        if text(container, &["restartPolicy"]) == "Always" {
            sidecars = beside;
        }
    }
    all.add(&sidecars);
    all.raise(&before);
    // What is said of the pod as a whole counts instead.
    for (name, amount) in asked(at(pod, &["spec"])).iter() {
        all.set(name, amount);
    }
    let overhead = Amounts::read(at(pod, &["spec", "overhead"]));
    let of_limits = |name: &str| kind == "requests" || !all.of(name).is_zero();
    let overhead = overhead.only(|name, _| of_limits(name));
    all.add(&overhead);
    all
}

/// What each container must say, because a quota limits it, and does not: `must specify cpu for: a,b; memory for: a`.
pub fn unsaid<'a>(pod: &Value, hard: impl Iterator<Item = &'a str>) -> Result<(), String> {
    const REQUIRED: [&str; 6] =
        ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let mut missing: Vec<String> = Vec::new();
    let mut required: Vec<&str> = hard.filter(|name| REQUIRED.contains(name)).collect();
    required.sort_unstable();
    let whole = said(at(pod, &["spec"]));
    for name in required.into_iter().filter(|name| !whole.has(name)) {
        let lists = ["containers", "initContainers"].into_iter();
        let containers = lists.flat_map(|list| items(pod, &["spec", list]));
        let silent: Vec<&str> = containers
            .filter(|container| !said(container).has(name))
            .map(|container| text(container, &["name"]))
            .collect();
        if !silent.is_empty() {
            missing.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("must specify {}", missing.join("; "))) }
}

fn said(of: &Value) -> Amounts {
    let mut said = Amounts::default();
    let amounts = |kind: &str| Amounts::read(at(of, &["resources", kind]));
    add_compute(&mut said, &amounts("requests"), &amounts("limits"));
    said
}
