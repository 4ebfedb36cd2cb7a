//! Whether a pod has written more to the board's disk than its limits let it: `emptyDir.sizeLimit`, and
//! `limits[ephemeral-storage]` of its containers. The kubelet's local storage eviction, with its messages.
//!
//! Left out on purpose: measuring, which is the runtime's; memory-backed volumes, whose tmpfs is as large as their limit.

use crate::spec::{ContainerSpec, Medium, PodSpec, VolumeSource};
use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use std::collections::BTreeMap;

const RESOURCE: &str = "ephemeral-storage";

/// What a pod's files take, in bytes of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By the name of the `emptyDir` volume.
    pub volumes: BTreeMap<String, u64>,
    /// By container: its writable layer and its logs.
    pub containers: BTreeMap<String, u64>,
}

/// What takes more than it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Excess {
    Volume(String),
    /// All containers and volumes together.
    Pod,
    Container(String),
}

/// What has to be measured, by name: nothing that no limit speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured<'a> {
    pub volumes: Vec<&'a str>,
    pub containers: Vec<&'a str>,
}

/// A volume's limit speaks of that volume, a container's of the whole pod.
pub fn measured(spec: &PodSpec) -> Measured<'_> {
    let mut regular = spec.containers.iter().chain(&spec.init_containers);
    if regular.any(|c| c.resources.ephemeral_storage_limit_bytes.is_some()) {
        let volumes = disk_volumes(spec).map(|(name, _)| name).collect();
        return Measured { volumes, containers: spec.all_containers().map(|c| c.name.as_str()).collect() };
    }
    let limited = disk_volumes(spec).filter(|(_, limit)| limit.is_some());
    Measured { volumes: limited.map(|(name, _)| name).collect(), containers: Vec::new() }
}

/// Whether there is anything to measure.
pub fn is_limited(spec: &PodSpec) -> bool {
    measured(spec) != Measured::default()
}

/// The volumes that lie on the disk, and their limits.
fn disk_volumes(spec: &PodSpec) -> impl Iterator<Item = (&str, Option<u64>)> {
    spec.volumes.iter().filter_map(|volume| match volume.source {
        VolumeSource::EmptyDir { medium: Medium::Disk, size_limit_bytes } => {
            Some((volume.name.as_str(), size_limit_bytes))
        }
        _ => None,
    })
}

/// The first limit that is exceeded, in the kubelet's order.
pub fn excess(spec: &PodSpec, usage: &Usage) -> Option<Excess> {
    let volume = disk_volumes(spec).find(|(name, limit)| {
        usage.volumes.get(*name).zip(*limit).is_some_and(|(used, limit)| *used > limit)
    });
    if let Some((name, _)) = volume {
        return Some(Excess::Volume(name.into()));
    }
    let used = usage.volumes.values().chain(usage.containers.values());
    let used = used.fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    if pod_limit(spec).is_some_and(|limit| used > limit) {
        return Some(Excess::Pod);
    }
    // Of those that run before the others only the pod's limit speaks, as in the kubelet.
    let container = spec.containers.iter().find(|container| {
        let limit = container.resources.ephemeral_storage_limit_bytes;
        usage.containers.get(&container.name).zip(limit).is_some_and(|(used, limit)| *used > limit)
    });
    container.map(|container| Excess::Container(container.name.clone()))
}

/// `PodLimits`: of this resource the sum of those that have a limit, though others have none.
fn pod_limit(spec: &PodSpec) -> Option<u64> {
    let limit = |c: &ContainerSpec| c.resources.ephemeral_storage_limit_bytes;
    let sum = spec.containers.iter().filter_map(limit).reduce(u64::saturating_add);
    sum.max(spec.init_containers.iter().filter_map(limit).max())
}

impl Excess {
    /// The kubelet's message, with the limit in the notation of `pod`, whose limits these are.
    pub fn message(&self, pod: &v1::Pod) -> String {
        let spec = pod.spec.as_ref();
        match self {
            Excess::Volume(name) => {
                let volumes = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
                let mut limits = volumes.filter(|volume| volume.name == *name);
                let limit =
                    limits.find_map(|volume| quantity(volume.empty_dir.as_ref()?.size_limit.as_ref()));
                let limit = limit.unwrap_or(Quantity::ZERO);
                format!("Usage of EmptyDir volume {name:?} exceeds the limit \"{limit}\". ")
            }
            Excess::Pod => {
                let sum = spec.iter().flat_map(|spec| &spec.containers).filter_map(limit_of);
                let sum = sum.reduce(Quantity::plus);
                let initial = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
                let limit = sum.max(initial.filter_map(limit_of).max()).unwrap_or(Quantity::ZERO);
                format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
            }
            Excess::Container(name) => {
                let mut containers = spec.iter().flat_map(|spec| &spec.containers);
                let limit = containers.find(|container| container.name == *name).and_then(limit_of);
                let limit = limit.unwrap_or(Quantity::ZERO);
                format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". ")
            }
        }
    }
}

fn limit_of(container: &v1::Container) -> Option<Quantity> {
    quantity(container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE))
}

fn quantity(wire: Option<&WireQuantity>) -> Option<Quantity> {
    wire?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Volumes and containers as `name: limit`, without a limit for `-`.
    fn pod(volumes: &[(&str, &str)], containers: &[(&str, &str)], init: &[(&str, &str)]) -> v1::Pod {
        let volumes: Vec<String> = volumes
            .iter()
            .map(|(name, limit)| match *limit {
                "-" => format!(r#"{{"name": "{name}", "emptyDir": {{}}}}"#),
                "memory" => {
                    format!(r#"{{"name": "{name}", "emptyDir": {{"medium": "Memory", "sizeLimit": "1"}}}}"#)
                }
                _ => format!(r#"{{"name": "{name}", "emptyDir": {{"sizeLimit": "{limit}"}}}}"#),
            })
            .collect();
        let list = |all: &[(&str, &str)]| -> String {
            let all = all.iter().map(|(name, limit)| {
                let limits = match *limit {
                    "-" => String::new(),
                    _ => format!(r#""ephemeral-storage": "{limit}""#),
                };
                format!(r#"{{"name": "{name}", "image": "i:1", "resources": {{"limits": {{{limits}}}}}}}"#)
            });
            all.collect::<Vec<_>>().join(",")
        };
        let text = format!(
            r#"{{"metadata": {{"name": "p", "namespace": "default", "uid": "u"}}, "spec": {{"volumes": [{}], "containers": [{}], "initContainers": [{}]}}}}"#,
            volumes.join(","),
            list(containers),
            list(init)
        );
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn the_first_limit_that_is_exceeded_is_told_in_the_kubelets_words() {
        type Named<'a, T> = &'a [(&'a str, T)];
        let with = |init: Named<'_, &str>,
                    volumes: Named<'_, &str>,
                    containers: Named<'_, &str>,
                    used: Named<'_, u64>,
                    expected: Option<&str>| {
            let pod = pod(volumes, containers, init);
            let spec = PodSpec::from_api(&pod).expect("valid");
            let of = |names: Named<'_, &str>| {
                let of = |(name, bytes): &(&str, u64)| {
                    names.iter().any(|(known, _)| known == name).then(|| ((*name).to_string(), *bytes))
                };
                used.iter().filter_map(of).collect()
            };
            let usage = Usage { volumes: of(volumes), containers: of(containers) };
            let found = excess(&spec, &usage).map(|excess| excess.message(&pod));
            assert_eq!(found.as_deref(), expected, "{volumes:?} {containers:?} {used:?}");
        };
        let check =
            |volumes: Named<'_, &str>,
             containers: Named<'_, &str>,
             used: Named<'_, u64>,
             expected: Option<&str>| with(&[], volumes, containers, used, expected);
        let volume = Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        check(&[("v", "1024Ki")], &[("c", "-")], &[("v", 1 << 20)], None);
        check(&[("v", "1024Ki")], &[("c", "-")], &[("v", (1 << 20) + 1)], volume);
        // Not measured yet, or gone.
        check(&[("v", "1Mi")], &[("c", "2Mi")], &[], None);
        check(&[("v", "0")], &[("c", "2Mi")], &[("v", 5)], None);
        let container = Some("Container c exceeded its local ephemeral storage limit \"1M\". ");
        check(&[], &[("c", "1M"), ("d", "1M")], &[("c", 1_000_001)], container);
        check(&[], &[("c", "1M"), ("d", "1M")], &[("c", 1_000_000)], None);
        let pod = Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ");
        check(&[("v", "-")], &[("c", "1Mi"), ("d", "2Mi")], &[("v", 3 << 20), ("c", 1)], pod);
        // One container's limit is the pod's, whatever the others may.
        check(&[], &[("c", "3Mi"), ("d", "-")], &[("d", (3 << 20) + 1)], pod);
        // What ran before the others may have had more.
        let init = [("early", "1Ki")];
        let early = Some("Pod ephemeral local storage usage exceeds the total limit of containers 1Ki. ");
        with(&init, &[], &[("c", "1")], &[("c", 1025)], early);
        let one = Some("Container c exceeded its local ephemeral storage limit \"1\". ");
        with(&init, &[], &[("c", "1")], &[("c", 1024)], one);
        let sum = Some("Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ");
        check(&[], &[("c", "3Mi"), ("d", "1Mi")], &[("c", u64::MAX), ("d", u64::MAX)], sum);
    }

    #[test]
    fn only_limits_of_what_lies_on_the_disk_are_measured() {
        let check = |volumes: &[(&str, &str)], containers: &[(&str, &str)], expected: (&[&str], &[&str])| {
            let spec = PodSpec::from_api(&pod(volumes, containers, &[("i", "-")])).expect("valid");
            let found = measured(&spec);
            assert_eq!((&*found.volumes, &*found.containers), expected, "{volumes:?} {containers:?}");
            assert_eq!(is_limited(&spec), expected != (&[], &[]));
        };
        let volumes = [("v", "-"), ("w", "1"), ("m", "memory")];
        check(&volumes[..1], &[("c", "-")], (&[], &[]));
        check(&volumes[2..], &[("c", "-")], (&[], &[]));
        check(&volumes, &[("c", "-")], (&["w"], &[]));
        check(&volumes, &[("c", "1"), ("d", "-")], (&["v", "w"], &["i", "c", "d"]));
    }
}
