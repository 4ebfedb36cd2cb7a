//! In-place resize: whether a running pod may have other resources than it was admitted with (KEP-1287), and which it has
//! been given. The kubelet's allocation: what is asked for is granted whole or not at all, and survives the agent.
//!
//! Left out on purpose: the order among several resizes that wait, which are judged in the order of the pods' arrival.

use crate::admission::resources::pod_resources;
use crate::fit::{self, Load};
use crate::history::History;
use crate::observed::Capacity;
use crate::spec::{ContainerSpec, PodSpec, Resources};
use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as WireQuantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is granted, by container.
pub type Allocation = BTreeMap<String, Resources>;

/// Whether other resources may be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    /// Not beside the others; perhaps later.
    Deferred(String),
    /// Never on this board.
    Infeasible(String),
}

/// What the pod asks for. Init containers have run, or run soon: theirs stay.
pub fn desired(spec: &PodSpec) -> Allocation {
    spec.containers.iter().map(|c| (c.name.clone(), c.resources)).collect()
}

/// Whether a pod asks for something else than it has.
pub fn is_wanted(spec: &PodSpec, history: &History) -> bool {
    let granted = |c: &ContainerSpec| history.allocated.get(&c.name).is_none_or(|r| *r == c.resources);
    !spec.containers.iter().all(granted)
}

/// The pod with what it was granted: by this it is run, whatever it asks for.
pub fn granted(spec: &Arc<PodSpec>, history: &History) -> Arc<PodSpec> {
    if !is_wanted(spec, history) {
        return spec.clone();
    }
    let mut granted = PodSpec::clone(spec);
    for container in &mut granted.containers {
        if let Some(resources) = history.allocated.get(&container.name) {
            container.resources = *resources;
        }
    }
    granted.resources = pod_resources(&granted.init_containers, &granted.containers);
    Arc::new(granted)
}

/// Judges what `pod` asks for beside what the others were granted, in the kubelet's words. Pure.
pub fn judge(pod: &PodSpec, others: &Load, capacity: &Capacity) -> Verdict {
    let cpu = pod.resources.cpu_request_millis.unwrap_or(0);
    let memory = pod.resources.memory_request_bytes.unwrap_or(0);
    let never = |resource: &str, requested: u64, capacity: u64| {
        Verdict::Infeasible(format!(
            "Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}"
        ))
    };
    if memory > capacity.memory_bytes {
        return never("memory", memory, capacity.memory_bytes);
    }
    if cpu > capacity.cpu_millis {
        return never("cpu", cpu, capacity.cpu_millis);
    }
    match fit::check(pod, others, capacity) {
        Ok(()) => Verdict::Fits,
        Err(shortage) => Verdict::Deferred(shortage.to_string()),
    }
}

/// Whether a container that runs with `before` has to be started anew to have `after`.
pub fn restarts(container: &ContainerSpec, before: &Resources, after: &Resources) -> bool {
    let cpu = |r: &Resources| (r.cpu_request_millis, r.cpu_limit_millis);
    let memory = |r: &Resources| (r.memory_request_bytes, r.memory_limit_bytes);
    (container.restart_on_resize.cpu && cpu(before) != cpu(after))
        || (container.restart_on_resize.memory && memory(before) != memory(after))
}

/// As the API writes them; nothing for what is not set.
pub fn requirements(resources: &Resources) -> v1::ResourceRequirements {
    let list = |cpu: Option<u64>, memory: Option<u64>, storage: Option<u64>| {
        let cpu = cpu.map(|millis| format!("{millis}m"));
        let amounts =
            [("cpu", cpu), ("memory", memory.map(bytes)), ("ephemeral-storage", storage.map(bytes))];
        let written = amounts.into_iter().filter_map(|(name, text)| {
            let canonical = text?.parse::<Quantity>().ok()?.to_string();
            Some((name.to_string(), WireQuantity(canonical)))
        });
        Some(written.collect::<BTreeMap<_, _>>()).filter(|list| !list.is_empty())
    };
    let r = resources;
    v1::ResourceRequirements {
        limits: list(r.cpu_limit_millis, r.memory_limit_bytes, r.ephemeral_storage_limit_bytes),
        requests: list(r.cpu_request_millis, r.memory_request_bytes, r.ephemeral_storage_request_bytes),
        ..Default::default()
    }
}

/// In the notation that makes the shorter text: nobody remembers which of the two it was written in.
fn bytes(bytes: u64) -> String {
    if bytes.is_multiple_of(1024) { format!("{}Ki", bytes / 1024) } else { bytes.to_string() }
}

/// `{"containers":[…],"generation":2}`, as the kubelet's events have it.
pub(crate) fn summary(spec: &PodSpec, error: &str) -> String {
    let containers: Vec<_> = spec
        .containers
        .iter()
        .map(|c| serde_json::json!({"name": c.name, "resources": requirements(&c.resources)}))
        .collect();
    let mut summary = serde_json::json!({"containers": containers, "generation": spec.generation});
    if !error.is_empty() {
        summary["error"] = error.into();
    }
    summary.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &str) -> PodSpec {
        let text = format!(
            r#"{{"metadata": {{"name": "p", "uid": "u"}}, "spec": {{"containers": [{{"name": "c", "image": "i:1", "resources": {resources}}}]}}}}"#
        );
        PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid")
    }

    #[test]
    fn what_never_fits_is_told_from_what_does_not_fit_now() {
        let check = |requests: &str, used: (u64, u64), expected: Verdict| {
            let capacity = Capacity { pods: 9, cpu_millis: 4000, memory_bytes: 1 << 30 };
            let others = Load { pods: 1, cpu_millis: used.0, memory_bytes: used.1 };
            let pod = pod(&format!(r#"{{"requests": {{{requests}}}}}"#));
            assert_eq!(judge(&pod, &others, &capacity), expected, "{requests} beside {used:?}");
        };
        let deferred = |what: &str| Verdict::Deferred(format!("Node didn't have enough resource: {what}"));
        let never = |what: &str| Verdict::Infeasible(format!("Node didn't have enough capacity: {what}"));
        check(r#""cpu": "4""#, (0, 0), Verdict::Fits);
        check("", (9000, 9 << 30), Verdict::Fits);
        check(r#""cpu": "1500m""#, (3000, 0), deferred("cpu, requested: 1500, used: 3000, capacity: 4000"));
        let memory = deferred("memory, requested: 1073741824, used: 1, capacity: 1073741824");
        check(r#""memory": "1Gi""#, (0, 1), memory);
        check(r#""cpu": "1000""#, (0, 0), never("cpu, requested: 1000000, capacity: 4000"));
        let memory = never("memory, requested: 2147483648, capacity: 1073741824");
        check(r#""cpu": "5", "memory": "2Gi""#, (0, 0), memory);
    }

    #[test]
    fn a_pod_runs_by_what_it_was_granted() {
        let before = Arc::new(pod(r#"{"limits": {"cpu": "1", "memory": "64Mi"}}"#));
        let after = Arc::new(pod(r#"{"limits": {"cpu": "2", "memory": "64Mi"}}"#));
        let history = History { allocated: desired(&before), ..History::default() };
        assert!(!is_wanted(&before, &history) && is_wanted(&after, &history));
        assert!(Arc::ptr_eq(&granted(&before, &history), &before));
        let found = granted(&after, &history);
        assert_eq!((&found.containers, found.resources), (&before.containers, before.resources));
        // Of an agent that knew no allocation: what it asks for is what it has.
        assert!(!is_wanted(&after, &History::default()));
    }

    #[test]
    fn resources_are_written_as_the_api_has_them() {
        let check = |text: &str| {
            let found = requirements(&pod(text).containers[0].resources);
            let found = serde_json::to_value(found).expect("JSON");
            assert_eq!(found, serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
        };
        check("{}");
        check(r#"{"requests": {"cpu": "250m"}}"#);
        check(
            r#"{"limits": {"cpu": "2", "memory": "64Mi", "ephemeral-storage": "1G"}, "requests": {"cpu": "1500m", "memory": "1M", "ephemeral-storage": "1500"}}"#,
        );
        check(r#"{"requests": {"cpu": "0", "memory": "0"}}"#);
    }

    #[test]
    fn only_the_resource_that_says_so_restarts() {
        let check = |policy: &str, after: &str, expected: bool| {
            let text = format!(
                r#"{{"metadata": {{"name": "p", "uid": "u"}}, "spec": {{"containers": [{{"name": "c", "image": "i:1", "resizePolicy": [{policy}]}}]}}}}"#
            );
            let with = PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid");
            let before = pod(r#"{"limits": {"cpu": "1", "memory": "64Mi"}}"#).containers[0].resources;
            let after = pod(after).containers[0].resources;
            assert_eq!(restarts(&with.containers[0], &before, &after), expected, "{policy} {after:?}");
        };
        let of = |resource: &str, policy: &str| {
            format!(r#"{{"resourceName": "{resource}", "restartPolicy": "{policy}"}}"#)
        };
        let (cpu, memory) =
            (r#"{"limits": {"cpu": "2", "memory": "64Mi"}}"#, r#"{"limits": {"cpu": "1", "memory": "1Mi"}}"#);
        check("", cpu, false);
        check(&of("cpu", "RestartContainer"), cpu, true);
        check(&of("cpu", "RestartContainer"), memory, false);
        check(&of("memory", "RestartContainer"), memory, true);
        check(&of("memory", "NotRequired"), memory, false);
    }
}
