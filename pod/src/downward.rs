//! The downward API: what a pod may learn of itself, as `fieldRef` and `resourceFieldRef` give it.
//!
//! Follows `k8s.io/kubernetes/pkg/fieldpath` and `pkg/api/v1/resource`.

use crate::objects::ValueError;
use crate::spec::{ContainerSpec, PodSpec, Resource, ResourceField};
use coracle_api::field::quoted;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What only the board and the pod's sandbox know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub node_name: String,
    /// The board's addresses, the primary first.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses; empty while it has none.
    pub pod_ips: Vec<IpAddr>,
    /// A limit that is not set is this.
    pub allocatable: Allocatable,
}

/// What the board can give its pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub ephemeral_storage_bytes: u64,
}

/// A field by its path: those of a variable, and those of a file. `None` for one that does not exist.
pub fn field(pod: &PodSpec, facts: &PodFacts, path: &str) -> Option<String> {
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels['") {
        return Some(pod.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Some(pod.annotations.get(key).cloned().unwrap_or_default());
    }
    let joined = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    // The kubelet's: a pod of the host's network has the host's addresses.
    let pod_ips = if pod.host_network { &facts.host_ips } else { &facts.pod_ips };
    Some(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.0.clone(),
        "metadata.labels" => lines(&pod.labels),
        "metadata.annotations" => lines(&pod.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.service_account_name.clone(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => joined(&facts.host_ips),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => joined(pod_ips),
        _ => return None,
    })
}

/// `FormatMap`: one `key="value"` a line, in order.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join("\n")
}

/// A container's request or limit in units of the divisor, rounded up.
///
/// # Errors
/// [`ValueError::Container`] when it names one that the pod lacks.
pub fn resource(
    pod: &PodSpec,
    own: Option<&ContainerSpec>,
    field: &ResourceField,
    allocatable: &Allocatable,
) -> Result<String, ValueError> {
    let named = |name: &String| {
        let found = pod.all_containers().find(|container| container.name == *name);
        found.ok_or_else(|| ValueError::Container(name.clone()))
    };
    let container = match (&field.container, own) {
        (Some(name), _) => named(name)?,
        (None, Some(own)) => own,
        (None, None) => return Err(ValueError::Container(String::new())),
    };
    let has = &container.resources;
    let limit = |set: Option<u64>, all: u64| set.filter(|limit| *limit > 0).unwrap_or(all);
    let amount = match field.resource {
        Resource::CpuLimit => limit(has.cpu_limit_millis, allocatable.cpu_millis),
        Resource::MemoryLimit => limit(has.memory_limit_bytes, allocatable.memory_bytes),
        Resource::EphemeralStorageLimit => {
            limit(has.ephemeral_storage_limit_bytes, allocatable.ephemeral_storage_bytes)
        }
        Resource::CpuRequest => has.cpu_request_millis.unwrap_or(0),
        Resource::MemoryRequest => has.memory_request_bytes.unwrap_or(0),
        Resource::EphemeralStorageRequest => has.ephemeral_storage_request_bytes.unwrap_or(0),
    };
    Ok(amount.div_ceil(field.divisor.get()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    fn pod(more: &str) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"p\", \"uid\": \"u\", \"labels\": {{\"a\": \"one\", \"b\": \"\"}}, \"annotations\": {{\"x/y\": \"q\\\"\\n\"}}}}, \"spec\": {{\"containers\": [{{\"name\": \"c\", \"image\": \"i:1\"{more}}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid")
    }

    #[test]
    fn fields_are_what_the_kubelet_gives() {
        let facts = PodFacts {
            node_name: "board".into(),
            host_ips: vec!["10.0.0.1".parse().expect("an address")],
            pod_ips: vec!["10.9.0.2".parse().expect("an address"), "fd00::2".parse().expect("an address")],
            allocatable: Allocatable::default(),
        };
        let check = |path: &str, expected: Option<&str>| {
            assert_eq!(field(&pod(""), &facts, path).as_deref(), expected, "{path}");
        };
        check("metadata.name", Some("p"));
        check("metadata.namespace", Some("default"));
        check("metadata.uid", Some("u"));
        check("metadata.labels['a']", Some("one"));
        check("metadata.labels['none']", Some(""));
        check("metadata.annotations['x/y']", Some("q\"\n"));
        check("metadata.labels", Some("a=\"one\"\nb=\"\""));
        check("metadata.annotations", Some(r#"x/y="q\"\n""#));
        check("spec.nodeName", Some("board"));
        check("spec.serviceAccountName", Some("default"));
        check("status.hostIP", Some("10.0.0.1"));
        check("status.podIPs", Some("10.9.0.2,fd00::2"));
        check("status.podIP", Some("10.9.0.2"));
        check("status.phase", None);
    }

    #[test]
    fn resources_are_rounded_up_and_default_to_the_board() {
        let allocatable =
            Allocatable { cpu_millis: 4000, memory_bytes: 1 << 30, ephemeral_storage_bytes: 1 << 40 };
        let set = r#", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "100Mi"}}"#;
        let check = |pod: &PodSpec, kind: Resource, divisor: u64, expected: &str| {
            let divisor = NonZeroU64::new(divisor).expect("not zero");
            let field = ResourceField { container: Some("c".into()), resource: kind, divisor };
            assert_eq!(resource(pod, None, &field, &allocatable).as_deref(), Ok(expected));
        };
        let (plain, set) = (pod(""), pod(set));
        check(&plain, Resource::CpuLimit, 1000, "4");
        check(&plain, Resource::MemoryLimit, 1 << 20, "1024");
        check(&plain, Resource::EphemeralStorageLimit, 1 << 30, "1024");
        check(&plain, Resource::CpuRequest, 1, "0");
        check(&set, Resource::CpuLimit, 1000, "2");
        check(&set, Resource::CpuLimit, 1, "1500");
        check(&set, Resource::CpuRequest, 1000, "2");
        check(&set, Resource::MemoryRequest, 1 << 30, "1");
        check(&set, Resource::MemoryLimit, 1, "1073741824");
        let field = ResourceField {
            container: Some("none".into()),
            resource: Resource::CpuLimit,
            divisor: NonZeroU64::MIN,
        };
        let missing = resource(&plain, None, &field, &allocatable);
        assert_eq!(missing, Err(ValueError::Container("none".into())));
    }
}
