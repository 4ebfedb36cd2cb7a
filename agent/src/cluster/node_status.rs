//! `v1.NodeStatus` of this board: what the kernel says, in the kubelet's words.

use coracle_runtime::board::Board;
use coracle_runtime::image::Image;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// Images that are told of, the largest first, and names of each (kubelet: `nodeStatusMaxImages`,
/// `maxNamesPerImageInNodeStatus`).
const IMAGES_MAX: usize = 50;
const NAMES_MAX: usize = 5;
/// Pressure that is over is still told of for so long (kubelet: `evictionPressureTransitionPeriod`).
const PRESSURE_SECONDS: i64 = 300;
/// Percent of the process ids below which there is pressure.
const PIDS_AVAILABLE_PERCENT: u64 = 5;
/// The API that the agent follows, and itself.
const VERSION: &str = concat!("v1.35.0+coracle.", env!("CARGO_PKG_VERSION"));
const RUNTIME: &str = concat!("coracle://", env!("CARGO_PKG_VERSION"));
/// Sorted (KEP-5328). The API server hands WebSockets through.
const FEATURES: &[&str] = &["ExtendWebSocketsToKubelet"];

/// What was seen of the board.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    name: String,
    addresses: Vec<String>,
    cpu_millis: u64,
    memory_bytes: u64,
    memory_reserved_bytes: u64,
    pods: u64,
    disk_bytes: u64,
    disk_reserved_bytes: u64,
    images: Vec<ContainerImage>,
    info: NodeSystemInfo,
    memory_pressure: bool,
    disk_pressure: bool,
    pid_pressure: bool,
}

/// Below which a node is under pressure; 0 = never.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub memory_available_bytes: u64,
    pub disk_available_percent: u8,
}

impl Facts {
    /// Looks again. Blocking, briefly: files of the kernel.
    pub(crate) fn look(&mut self, board: &Board, images: &[Image], thresholds: Thresholds) {
        let Thresholds { memory_available_bytes, disk_available_percent } = thresholds;
        let capacity = board.capacity();
        let settings = board.settings();
        self.name.clone_from(&settings.node_name);
        // Without a network it has the addresses that it had.
        let addresses: Vec<String> = board.host_ips().iter().map(ToString::to_string).collect();
        if !addresses.is_empty() {
            self.addresses = addresses;
        }
        self.cpu_millis = capacity.cpu_millis;
        self.memory_bytes = capacity.memory_bytes;
        self.memory_reserved_bytes = memory_available_bytes;
        self.pods = capacity.pods;
        let memory = meminfo();
        let field = |name: &str| memory.get(name).copied().unwrap_or(0);
        self.memory_pressure = memory_available_bytes > 0 && field("MemAvailable") < memory_available_bytes;
        if let Ok(disk) = statvfs(&settings.layout.data) {
            let block = wide(disk.fragment_size());
            self.disk_bytes = wide(disk.blocks()).saturating_mul(block);
            let available = wide(disk.blocks_available()).saturating_mul(block);
            self.disk_reserved_bytes = self.disk_bytes / 100 * u64::from(disk_available_percent);
            self.disk_pressure = available < self.disk_reserved_bytes;
        }
        self.pid_pressure =
            pids().is_some_and(|(used, max)| max.saturating_sub(used) < max * PIDS_AVAILABLE_PERCENT / 100);
        self.images = told_images(images);
        if self.info.boot_id.is_empty() {
            self.info = info(&board.now().boot.0, field("SwapTotal"));
        }
    }
}

/// The status to be told, after `before`: conditions keep the time of their last change.
pub(crate) fn status(facts: &Facts, port: i32, before: &NodeStatus, now: jiff::Timestamp) -> NodeStatus {
    let quantities = |memory: u64, disk: u64| -> BTreeMap<String, Quantity> {
        [
            ("cpu", cpu(facts.cpu_millis)),
            ("memory", format!("{}Ki", memory / 1024)),
            ("pods", facts.pods.to_string()),
            ("ephemeral-storage", disk.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), Quantity(value)))
        .collect()
    };
    let allocatable_memory = facts.memory_bytes.saturating_sub(facts.memory_reserved_bytes);
    let allocatable_disk = facts.disk_bytes.saturating_sub(facts.disk_reserved_bytes);
    let addresses = facts.addresses.iter().map(|ip| ("InternalIP", ip)).chain([("Hostname", &facts.name)]);
    NodeStatus {
        capacity: Some(quantities(facts.memory_bytes, facts.disk_bytes)),
        allocatable: Some(quantities(allocatable_memory, allocatable_disk)),
        addresses: Some(
            addresses
                .map(|(kind, address)| NodeAddress { type_: kind.into(), address: address.clone() })
                .collect(),
        ),
        daemon_endpoints: Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port }) }),
        node_info: Some(facts.info.clone()),
        images: Some(facts.images.clone()),
        conditions: Some(conditions(facts, before.conditions.as_deref().unwrap_or_default(), now)),
        declared_features: Some(FEATURES.iter().map(ToString::to_string).collect()),
        ..NodeStatus::default()
    }
}

/// Whether both say the same, but for when it was said.
pub(crate) fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    timeless(a) == timeless(b)
}

/// A strategic merge patch to `status`. Lists that are merged by key are replaced, conditions are not: others have some.
pub(crate) fn patch(before: &NodeStatus, status: &NodeStatus) -> Value {
    let mut value = serde_json::to_value(status).expect("a status is plain data");
    for list in ["addresses"] {
        if let Some(items) = value[list].as_array_mut() {
            items.push(json!({"$patch": "replace"}));
        }
    }
    // Of those of before what is no longer there: a resource that went away.
    for map in ["capacity", "allocatable"] {
        let gone = if map == "capacity" { &before.capacity } else { &before.allocatable };
        for key in gone.iter().flatten().map(|(key, _)| key) {
            // Those of device plugins and of other owners stay.
            if !key.contains('/') && value[map].get(key).is_none() {
                value[map][key.as_str()] = Value::Null;
            }
        }
    }
    json!({ "status": value })
}

/// The labels that every node gives itself.
pub(crate) fn labels(name: &str) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_string(), value.to_string()))
    .collect();
    if let Some(model) = model() {
        labels.insert("node.kubernetes.io/instance-type".into(), model);
    }
    labels
}

/// In Go's words.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What the device tree calls this board, as the value of a label: `Raspberry-Pi-4-Model-B-Rev-1.5`.
fn model() -> Option<String> {
    label_value(&fs::read_to_string("/proc/device-tree/model").ok()?)
}

fn label_value(text: &str) -> Option<String> {
    const BYTES_MAX: usize = 63;
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let text: String = text.trim_end_matches('\0').trim().chars().map(plain).take(BYTES_MAX).collect();
    let text = text.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!text.is_empty()).then(|| text.to_string())
}

fn conditions(facts: &Facts, before: &[NodeCondition], now: jiff::Timestamp) -> Vec<NodeCondition> {
    let pressures = [
        (
            "MemoryPressure",
            facts.memory_pressure,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        (
            "DiskPressure",
            facts.disk_pressure,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        (
            "PIDPressure",
            facts.pid_pressure,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
    ];
    let ready = ("Ready", true, ("KubeletReady", "kubelet is posting ready status"), ("", ""));
    let all = pressures.into_iter().chain([ready]);
    all.map(|(kind, seen, yes, no)| {
        let known = before.iter().find(|c| c.type_ == kind);
        let was = known.is_some_and(|c| c.status == "True");
        let since = known.and_then(|c| c.last_transition_time.as_ref()).map(|time| time.0);
        let lately = since.is_some_and(|at| now.duration_since(at).as_secs().abs() < PRESSURE_SECONDS);
        let holds = seen || (was && lately && kind != "Ready");
        let (reason, message) = if holds { yes } else { no };
        let word = if holds { "True" } else { "False" };
        let kept = since.filter(|_| known.is_some_and(|c| c.status == word));
        NodeCondition {
            type_: kind.into(),
            status: word.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(Time(kept.unwrap_or(now))),
        }
    })
    .collect()
}

fn cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

fn told_images(images: &[Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    let told = |image: &&Image| ContainerImage {
        names: Some(image.repo_digest.iter().chain(&image.references).take(NAMES_MAX).cloned().collect()),
        size_bytes: i64::try_from(image.size_bytes).ok(),
    };
    images.iter().take(IMAGES_MAX).map(told).collect()
}

fn info(boot_id: &str, swap_bytes: u64) -> NodeSystemInfo {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let machine_id = read("/etc/machine-id");
    let uuid = read("/sys/class/dmi/id/product_uuid");
    NodeSystemInfo {
        architecture: arch().into(),
        boot_id: boot_id.into(),
        container_runtime_version: RUNTIME.into(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        // Deprecated, and no other program.
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.into(),
        operating_system: "linux".into(),
        os_image: os_image(&read("/etc/os-release")),
        swap: Some(NodeSwapStatus { capacity: i64::try_from(swap_bytes).ok() }),
        // Boards have no DMI: the kubelet takes the machine's id there too.
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
    }
}

/// os-release(5).
fn os_image(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    line.unwrap_or("Linux").trim_matches(['"', '\'']).to_string()
}

/// What is 32 bits wide on some boards.
fn wide(count: impl Into<u64>) -> u64 {
    count.into()
}

/// Bytes by name.
fn meminfo() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        Some((name.to_string(), kib.saturating_mul(1024)))
    };
    text.lines().filter_map(line).collect()
}

/// Tasks that there are, and that there can be.
fn pids() -> Option<(u64, u64)> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let max = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    let load = read("/proc/loadavg")?;
    let used = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((used, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            name: "b".into(),
            addresses: vec!["10.0.0.2".into()],
            cpu_millis: 4000,
            memory_bytes: 1 << 30,
            memory_reserved_bytes: 100 << 20,
            pods: 110,
            disk_bytes: 1000,
            disk_reserved_bytes: 100,
            ..Facts::default()
        }
    }

    fn at(seconds: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(seconds).expect("a time")
    }

    #[test]
    fn resources_are_told_as_the_kubelet_tells_them() {
        let status = status(&facts(), 10250, &NodeStatus::default(), at(0));
        let value = serde_json::to_value(&status).expect("plain data");
        let capacity = json!({"cpu": "4", "memory": "1048576Ki", "pods": "110", "ephemeral-storage": "1000"});
        let allocatable =
            json!({"cpu": "4", "memory": "946176Ki", "pods": "110", "ephemeral-storage": "900"});
        assert_eq!((&value["capacity"], &value["allocatable"]), (&capacity, &allocatable));
        let addresses =
            json!([{"type": "InternalIP", "address": "10.0.0.2"}, {"type": "Hostname", "address": "b"}]);
        assert_eq!(value["addresses"], addresses);
        assert_eq!(value["declaredFeatures"], json!(["ExtendWebSocketsToKubelet"]));
    }

    #[test]
    fn a_condition_keeps_its_time_and_pressure_its_five_minutes() {
        let check = |before: &NodeStatus, pressure: bool, now: i64, expected: (&str, i64)| {
            let facts = Facts { disk_pressure: pressure, ..facts() };
            let status = status(&facts, 1, before, at(now));
            let disk = &status.conditions.as_ref().expect("conditions")[1];
            let found = (disk.status.as_str(), disk.last_transition_time.as_ref().map(|t| t.0));
            assert_eq!(found, (expected.0, Some(at(expected.1))), "at {now}");
            status
        };
        let first = check(&NodeStatus::default(), false, 10, ("False", 10));
        let second = check(&first, false, 20, ("False", 10));
        assert!(same(&first, &second));
        let third = check(&second, true, 30, ("True", 30));
        assert!(!same(&second, &third));
        let fourth = check(&third, false, 300, ("True", 30));
        check(&fourth, false, 331, ("False", 331));
    }

    #[test]
    fn a_model_becomes_a_label() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(label_value(text).as_deref(), expected);
        check("Raspberry Pi 4 Model B Rev 1.5\0", Some("Raspberry-Pi-4-Model-B-Rev-1.5"));
        check(" (weird) \0", Some("weird"));
        check("\0", None);
        check(&"x".repeat(100), Some(&"x".repeat(63)));
    }
}
