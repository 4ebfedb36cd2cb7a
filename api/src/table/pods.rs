//! The rows of pods: readiness, the status that sums up a pod's containers, restarts.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::cell::{NONE, deleted, int, is_true, list, made, name, or, text};

/// Restarts, and when the last was.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count = self.count.saturating_add(int(&status["restartCount"]));
        self.last = self.last.max(age::time(&status["lastState"]["terminated"]["finishedAt"]));
    }

    fn shown(&self, now: Timestamp) -> String {
        match self.last {
            Some(last) if self.count != 0 => format!("{} ({} ago)", self.count, age::between(last, now)),
            _ => self.count.to_string(),
        }
    }
}

/// What the containers' statuses come to.
struct Sum {
    ready: i64,
    reason: String,
    restarts: Restarts,
}

pub(super) fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars = sidecars(spec);
    let sum = sum(pod, &sidecars);
    let total = list(&spec["containers"]).len() + sidecars.len();
    let gates = list(&spec["readinessGates"]);
    let passed = gates.iter().filter(|g| is_true(&status["conditions"], text(&g["conditionType"]))).count();
    let gates = if gates.is_empty() { NONE.to_owned() } else { format!("{passed}/{}", gates.len()) };
    vec![
        name(pod),
        format!("{}/{total}", sum.ready).into(),
        sum.reason.into(),
        sum.restarts.shown(now).into(),
        made(pod, now),
        or(&status["podIPs"][0]["ip"], or(&status["podIP"], NONE)).into(),
        or(&spec["nodeName"], NONE).into(),
        or(&status["nominatedNodeName"], NONE).into(),
        gates.into(),
    ]
}

/// Reason and message of the row's condition, once the pod is over.
pub(super) fn completion(pod: &Value) -> Option<(&'static str, &'static str)> {
    match text(&pod["status"]["phase"]) {
        "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
        "Failed" => Some(("Failed", "The pod failed.")),
        _ => None,
    }
}

/// Names of the init containers that run on beside the others.
fn sidecars(spec: &Value) -> BTreeSet<&str> {
    let restarts = |c: &&Value| text(&c["restartPolicy"]) == "Always";
    list(&spec["initContainers"]).iter().filter(restarts).map(|c| text(&c["name"])).collect()
}

fn sum(pod: &Value, sidecars: &BTreeSet<&str>) -> Sum {
    let status = &pod["status"];
    let phase = text(&status["phase"]);
    let mut sum =
        Sum { ready: 0, reason: or(&status["reason"], phase).to_owned(), restarts: Restarts::default() };
    let gated = |c: &Value| text(&c["type"]) == "PodScheduled" && text(&c["reason"]) == "SchedulingGated";
    if list(&status["conditions"]).iter().any(gated) {
        sum.reason = "SchedulingGated".to_owned();
    }
    let mut of_sidecars = Restarts::default();
    let initializing = initialize(pod, sidecars, &mut sum, &mut of_sidecars);
    if !initializing || is_true(&status["conditions"], "Initialized") {
        sum.restarts = of_sidecars;
        run(status, &mut sum);
    }
    if deleted(pod) {
        if text(&status["reason"]) == "NodeLost" {
            sum.reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            sum.reason = "Terminating".to_owned();
        }
    }
    sum
}

/// Goes through the init containers; whether one of them is still to end.
fn initialize(pod: &Value, sidecars: &BTreeSet<&str>, sum: &mut Sum, of_sidecars: &mut Restarts) -> bool {
    let total = list(&pod["spec"]["initContainers"]).len();
    for (index, status) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        let sidecar = sidecars.contains(text(&status["name"]));
        sum.restarts.add(status);
        if sidecar {
            of_sidecars.add(status);
        }
        let (ended, waiting) = (&status["state"]["terminated"], text(&status["state"]["waiting"]["reason"]));
        if !ended.is_null() && int(&ended["exitCode"]) == 0 {
            continue;
        }
        if sidecar && status["started"] == true {
            sum.ready += i64::from(status["ready"] == true);
            continue;
        }
        sum.reason = if !ended.is_null() {
            format!("Init:{}", ending(ended))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{index}/{total}")
        };
        return true;
    }
    false
}

/// Goes through the containers; the first one's trouble is what shows.
fn run(status: &Value, sum: &mut Sum) {
    let mut running = false;
    for container in list(&status["containerStatuses"]).iter().rev() {
        sum.restarts.add(container);
        let state = &container["state"];
        let waiting = text(&state["waiting"]["reason"]);
        if !waiting.is_empty() {
            sum.reason = waiting.to_owned();
        } else if !state["terminated"].is_null() {
            sum.reason = ending(&state["terminated"]);
        } else if container["ready"] == true && !state["running"].is_null() {
            running = true;
            sum.ready += 1;
        }
    }
    if sum.reason == "Completed" && running {
        let ready = is_true(&status["conditions"], "Ready");
        sum.reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
}

/// Why a container ended.
fn ending(terminated: &Value) -> String {
    match (text(&terminated["reason"]), int(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", int(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
