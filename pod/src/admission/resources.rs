//! Requests and limits, the QoS class, and what the pod as a whole is bounded by.
//!
//! Follows the kubelet: `ComputePodQOS`, `PodRequests`/`PodLimits` (the largest init container against the sum
//! of the containers) and `ResourceConfigForPod` (a pod has a limit only if each of its containers has one).

use super::field::{Errors, Path, Problem, Shown, any};
use crate::spec::{ContainerSpec, QosClass, Resources};
use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Cpu,
    Memory,
    EphemeralStorage,
}

const NAMES: [(&str, Name); 3] =
    [("cpu", Name::Cpu), ("ephemeral-storage", Name::EphemeralStorage), ("memory", Name::Memory)];

impl Name {
    /// CPU in thousandths, the others in bytes.
    fn amount(self, quantity: &Quantity) -> u64 {
        let amount = if self == Name::Cpu { quantity.millis() } else { quantity.bytes() };
        u64::try_from(amount).unwrap_or(0)
    }
}

pub(crate) fn container_resources(
    errors: &mut Errors,
    path: &Path,
    resources: Option<&v1::ResourceRequirements>,
) -> Resources {
    let Some(resources) = resources else { return Resources::default() };
    errors.unsupported(any(resources.claims.as_ref()), &path.child("claims"));
    let limits = quantities(errors, &path.child("limits"), resources.limits.as_ref());
    let requests_path = path.child("requests");
    let mut requests = quantities(errors, &requests_path, resources.requests.as_ref());
    for (name, limit) in &limits {
        match requests.get(name) {
            Some((wire, request)) if *request > limit.1 => {
                let detail = format!("must be less than or equal to {name} limit of {}", limit.0);
                errors.push(&requests_path, Problem::Invalid(wire.shown(), detail));
            }
            Some(_) => {}
            // SetDefaults_Pod: a limit alone is a request too.
            None => {
                requests.insert(name, limit.clone());
            }
        }
    }
    let amount = |from: &BTreeMap<&'static str, (String, Quantity)>, key: &str, name: Name| {
        from.get(key).map(|(_, quantity)| name.amount(quantity))
    };
    Resources {
        cpu_request_millis: amount(&requests, "cpu", Name::Cpu),
        cpu_limit_millis: amount(&limits, "cpu", Name::Cpu),
        memory_request_bytes: amount(&requests, "memory", Name::Memory),
        memory_limit_bytes: amount(&limits, "memory", Name::Memory),
        ephemeral_storage_request_bytes: amount(&requests, "ephemeral-storage", Name::EphemeralStorage),
        ephemeral_storage_limit_bytes: amount(&limits, "ephemeral-storage", Name::EphemeralStorage),
    }
}

/// The known resources of a list, each with its canonical text.
fn quantities(
    errors: &mut Errors,
    path: &Path,
    list: Option<&BTreeMap<String, WireQuantity>>,
) -> BTreeMap<&'static str, (String, Quantity)> {
    let mut found = BTreeMap::new();
    for (key, wire) in list.into_iter().flatten() {
        let at = path.key(key);
        match NAMES.iter().find(|(name, _)| name == key) {
            Some((name, _)) => {
                if let Some(quantity) = quantity(errors, &at, wire) {
                    found.insert(*name, (quantity.to_string(), quantity));
                }
            }
            None => errors.unsupported(true, &at),
        }
    }
    found
}

/// A quantity that is not negative.
pub(crate) fn quantity(errors: &mut Errors, path: &Path, wire: &WireQuantity) -> Option<Quantity> {
    match wire.0.parse::<Quantity>() {
        Ok(quantity) if quantity.is_negative() => {
            errors.invalid(path, &wire.0, "must be greater than or equal to 0");
            None
        }
        Ok(quantity) => Some(quantity),
        Err(error) => {
            errors.invalid(path, &wire.0, error.to_string());
            None
        }
    }
}

/// `ComputePodQOS`, over init containers too.
pub(crate) fn qos_class(init: &[ContainerSpec], containers: &[ContainerSpec]) -> QosClass {
    let all = || init.iter().chain(containers).map(|container| &container.resources);
    let is_set = |amount: Option<u64>| amount.is_some_and(|amount| amount > 0);
    let asks = |r: &Resources| {
        is_set(r.cpu_request_millis)
            || is_set(r.cpu_limit_millis)
            || is_set(r.memory_request_bytes)
            || is_set(r.memory_limit_bytes)
    };
    let guaranteed = |r: &Resources| {
        is_set(r.cpu_limit_millis)
            && is_set(r.memory_limit_bytes)
            && r.cpu_request_millis == r.cpu_limit_millis
            && r.memory_request_bytes == r.memory_limit_bytes
    };
    if !all().any(asks) {
        QosClass::BestEffort
    } else if all().all(guaranteed) {
        QosClass::Guaranteed
    } else {
        QosClass::Burstable
    }
}

/// What the pod's own cgroup is given.
pub(crate) fn pod_resources(init: &[ContainerSpec], containers: &[ContainerSpec]) -> Resources {
    type Field = fn(&Resources) -> Option<u64>;
    // Init containers run one at a time, before the others, which run all at once.
    let request = |field: Field| {
        let sum = containers
            .iter()
            .filter_map(|container| field(&container.resources))
            .fold(0_u64, u64::saturating_add);
        let largest = init.iter().filter_map(|container| field(&container.resources)).max().unwrap_or(0);
        Some(sum.max(largest)).filter(|amount| *amount > 0)
    };
    let limit = |field: Field| {
        let bounded =
            init.iter().chain(containers).all(|container| field(&container.resources).is_some_and(|l| l > 0));
        if bounded { request(field) } else { None }
    };
    Resources {
        cpu_request_millis: request(|r| r.cpu_request_millis),
        cpu_limit_millis: limit(|r| r.cpu_limit_millis),
        memory_request_bytes: request(|r| r.memory_request_bytes),
        memory_limit_bytes: limit(|r| r.memory_limit_bytes),
        ephemeral_storage_request_bytes: request(|r| r.ephemeral_storage_request_bytes),
        ephemeral_storage_limit_bytes: limit(|r| r.ephemeral_storage_limit_bytes),
    }
}
