//! What a pod, its class and its containers may use: pure figures, and the files that they go into.

use super::hierarchy::Hierarchy;
use coracle_pod::spec::{PodSpec, QosClass, Resources};

/// CFS period, the kernel's default; the kubelet's too.
pub const CPU_PERIOD_MICROSECONDS: u64 = 100_000;
/// Which share of what lies between its request and its limit a burstable container may use before the kernel slows
/// it down and reclaims from it: the kubelet's `memoryThrottlingFactor` (KEP-2570).
const THROTTLING_PERCENT: u64 = 90;

/// The kubelet's `MilliCPUToShares`: a request, else the limit, else the minimum.
pub fn cpu_shares(resources: &Resources) -> u64 {
    let millis = resources.cpu_request_millis.or(resources.cpu_limit_millis).unwrap_or(0);
    (millis.saturating_mul(1024) / 1000).clamp(2, 262_144)
}

/// The kernel's `max_cfs_runtime`, 2^44 - 1: a larger quota is refused, and this one limits no board.
const CPU_QUOTA_MICROSECONDS_MAX: u64 = (1 << 44) - 1;

/// The kubelet's `MilliCPUToQuota`, in microseconds of each period.
pub fn cpu_quota_microseconds(millis: u64) -> u64 {
    (millis.saturating_mul(CPU_PERIOD_MICROSECONDS) / 1000).clamp(1000, CPU_QUOTA_MICROSECONDS_MAX)
}

/// Shares 2–262144 to weight 1–10000, as the OCI runtimes do.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

/// `io.weight`, 1 to 10000, default 100: disk time follows the order in which the classes are promised anything.
/// Kubernetes has no field for it.
pub(super) fn io_weight(qos: QosClass) -> u64 {
    match qos {
        QosClass::Guaranteed => 200,
        QosClass::Burstable => 100,
        QosClass::BestEffort => 10,
    }
}

/// The v2 file that protects a request of this class: Guaranteed is never reclaimed from, Burstable last.
pub(super) fn protection(qos: QosClass) -> Option<&'static str> {
    match qos {
        QosClass::Guaranteed => Some("memory.min"),
        QosClass::Burstable => Some("memory.low"),
        QosClass::BestEffort => None,
    }
}

/// A file and what goes into it.
pub(super) type Limit = (&'static str, String);

/// What a resize changes of the pod's own cgroup: [`of_pod`], with what is no longer limited said.
pub(super) fn changing(hierarchy: &Hierarchy, pod: &PodSpec) -> Vec<Limit> {
    let mut files = unlimited(hierarchy);
    if let (Hierarchy::V2 { .. }, Some(file)) = (hierarchy, protection(pod.qos)) {
        files.push((file, "0".into()));
    }
    replace(files, of_pod(hierarchy, pod, 0).into_iter().filter(|(file, _)| *file != "pids.max"))
}

/// What a resize changes of a container's.
pub(super) fn of_container(hierarchy: &Hierarchy, qos: QosClass, resources: &Resources) -> Vec<Limit> {
    let quota = resources.cpu_limit_millis.map(cpu_quota_microseconds);
    let memory = resources.memory_limit_bytes.map(|bytes| bytes.to_string());
    let mut files = unlimited(hierarchy);
    let mut set: Vec<Limit> = Vec::new();
    match hierarchy {
        Hierarchy::V2 { .. } => {
            files.extend(protection(qos).map(|file| (file, "0".to_string())));
            files.push(("memory.high", "max".into()));
            set.extend(unified(qos, resources));
            set.extend(quota.map(|q| ("cpu.max", format!("{q} {CPU_PERIOD_MICROSECONDS}"))));
            set.extend(memory.map(|bytes| ("memory.max", bytes)));
        }
        Hierarchy::V1 { .. } => {
            set.push(("cpu.shares", cpu_shares(resources).to_string()));
            set.extend(quota.map(|q| ("cpu.cfs_quota_us", q.to_string())));
            set.extend(memory.map(|bytes| ("memory.limit_in_bytes", bytes)));
        }
    }
    replace(files, set)
}

fn unlimited(hierarchy: &Hierarchy) -> Vec<Limit> {
    match hierarchy {
        Hierarchy::V2 { .. } => {
            vec![("cpu.max", format!("max {CPU_PERIOD_MICROSECONDS}")), ("memory.max", "max".into())]
        }
        Hierarchy::V1 { .. } => {
            vec![("cpu.cfs_quota_us", "-1".into()), ("memory.limit_in_bytes", "-1".into())]
        }
    }
}

fn replace(mut files: Vec<Limit>, with: impl IntoIterator<Item = Limit>) -> Vec<Limit> {
    for (file, value) in with {
        match files.iter_mut().find(|(known, _)| *known == file) {
            Some((_, known)) => *known = value,
            None => files.push((file, value)),
        }
    }
    files
}

/// File and value of each limit of the pod's own cgroup. A file that the kernel lacks is the caller's to skip.
pub(super) fn of_pod(hierarchy: &Hierarchy, pod: &PodSpec, pids_max: u64) -> Vec<Limit> {
    let resources = &pod.resources;
    let shares = cpu_shares(resources);
    let quota = resources.cpu_limit_millis.map(cpu_quota_microseconds);
    let mut limits = vec![("pids.max", pids_max.to_string())];
    match hierarchy {
        Hierarchy::V2 { .. } => {
            limits.push(("cpu.weight", cpu_weight(shares).to_string()));
            limits.push(("io.weight", io_weight(pod.qos).to_string()));
            limits.extend(quota.map(|q| ("cpu.max", format!("{q} {CPU_PERIOD_MICROSECONDS}"))));
            limits.extend(resources.memory_limit_bytes.map(|b| ("memory.max", b.to_string())));
            let request = resources.memory_request_bytes;
            limits.extend(protection(pod.qos).zip(request).map(|(file, bytes)| (file, bytes.to_string())));
        }
        Hierarchy::V1 { .. } => {
            limits.push(("cpu.shares", shares.to_string()));
            limits.extend(quota.map(|q| ("cpu.cfs_quota_us", q.to_string())));
            limits.extend(resources.memory_limit_bytes.map(|b| ("memory.limit_in_bytes", b.to_string())));
        }
    }
    limits
}

/// What a container gets on v2 beyond what the OCI document has fields for: `resources.unified` (OCI runtime-spec).
pub fn unified(qos: QosClass, resources: &Resources) -> Vec<(&'static str, String)> {
    // The kubelet's default since 1.28: a container that is out of memory ends whole, not by one process.
    let mut files = vec![("memory.oom.group", "1".to_string())];
    // Runtimes differ in how they make a weight of shares: linearly, as the kubelet does for the levels above, or by the
    // curve of later ones. All levels of a pod have one scale here.
    files.push(("cpu.weight", cpu_weight(cpu_shares(resources)).to_string()));
    let (request, limit) = (resources.memory_request_bytes, resources.memory_limit_bytes);
    files.extend(protection(qos).zip(request).map(|(file, bytes)| (file, bytes.to_string())));
    if let (QosClass::Burstable, Some(limit)) = (qos, limit) {
        let request = request.unwrap_or(0);
        if request < limit {
            let high = request + (limit - request) / 100 * THROTTLING_PERCENT;
            files.push(("memory.high", high.to_string()));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_figures_follow_the_kubelet() {
        let check = |request, limit, shares| {
            let r = Resources { cpu_request_millis: request, cpu_limit_millis: limit, ..Default::default() };
            assert_eq!(cpu_shares(&r), shares, "{request:?} {limit:?}");
        };
        check(None, None, 2);
        check(Some(1), None, 2);
        check(Some(250), None, 256);
        check(None, Some(500), 512);
        check(Some(1_000_000), None, 262_144);
        assert_eq!(cpu_quota_microseconds(250), 25_000);
        assert_eq!(cpu_quota_microseconds(1), 1000);
        assert_eq!(cpu_quota_microseconds(u64::MAX), CPU_QUOTA_MICROSECONDS_MAX, "no overflow");
        check(Some(u64::MAX), None, 262_144);
        assert_eq!((cpu_weight(2), cpu_weight(262_144)), (1, 10_000));
    }

    #[test]
    fn a_resize_says_also_what_is_no_longer_limited() {
        let v1 = Hierarchy::V1 { controllers: std::collections::BTreeMap::new(), unified: None };
        let v2 = Hierarchy::V2 { root: "/".into() };
        let check = |hierarchy: &Hierarchy, qos, resources: &Resources, expected: &[(&str, &str)]| {
            let files = of_container(hierarchy, qos, resources);
            let files: Vec<_> = files.iter().map(|(file, value)| (*file, value.as_str())).collect();
            assert_eq!(files, expected, "{resources:?}");
        };
        let none = Resources::default();
        let some = Resources {
            cpu_request_millis: Some(250),
            cpu_limit_millis: Some(500),
            memory_request_bytes: Some(1000),
            memory_limit_bytes: Some(2000),
            ..none
        };
        let unlimited = [("cpu.cfs_quota_us", "-1"), ("memory.limit_in_bytes", "-1"), ("cpu.shares", "2")];
        check(&v1, QosClass::BestEffort, &none, &unlimited);
        let limited =
            [("cpu.cfs_quota_us", "50000"), ("memory.limit_in_bytes", "2000"), ("cpu.shares", "256")];
        check(&v1, QosClass::Burstable, &some, &limited);
        let limited = [
            ("cpu.max", "50000 100000"),
            ("memory.max", "2000"),
            ("memory.low", "1000"),
            ("memory.high", "1900"),
            ("memory.oom.group", "1"),
            ("cpu.weight", "10"),
        ];
        check(&v2, QosClass::Burstable, &some, &limited);
        let unlimited = [
            ("cpu.max", "max 100000"),
            ("memory.max", "max"),
            ("memory.low", "0"),
            ("memory.high", "max"),
            ("memory.oom.group", "1"),
            ("cpu.weight", "1"),
        ];
        check(&v2, QosClass::Burstable, &none, &unlimited);
    }

    #[test]
    fn memory_is_protected_by_class_and_throttled_below_the_limit() {
        let check = |qos, request, limit, expected: &[(&str, &str)]| {
            let r =
                Resources { memory_request_bytes: request, memory_limit_bytes: limit, ..Default::default() };
            let files = unified(qos, &r);
            let files: Vec<_> = files.iter().skip(2).map(|(file, value)| (*file, value.as_str())).collect();
            assert_eq!(files, expected, "{qos:?} {request:?} {limit:?}");
        };
        check(QosClass::Guaranteed, Some(1000), Some(1000), &[("memory.min", "1000")]);
        check(
            QosClass::Burstable,
            Some(1000),
            Some(2000),
            &[("memory.low", "1000"), ("memory.high", "1900")],
        );
        check(QosClass::Burstable, Some(1000), None, &[("memory.low", "1000")]);
        check(QosClass::Burstable, None, Some(1000), &[("memory.high", "900")]);
        check(QosClass::BestEffort, None, None, &[]);
    }
}
