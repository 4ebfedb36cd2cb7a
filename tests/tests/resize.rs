//! In-place resize by a stock kubectl: granted, put off, refused; with and without a new start; across the agent's death.

use anyhow::{Context, Result, ensure};
use coracle_tests::agent::{Board, deadline};
use coracle_tests::fleet::Fleet;
use serde_json::{Value, json};
use std::time::Instant;

/// What has no event is asked for by a watch of kubectl's: its first output that satisfies.
fn until(fleet: &Fleet, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let end = Instant::now() + deadline();
    loop {
        let pod = fleet.get(&["pod", name])?;
        if wanted(&pod) {
            return Ok(pod);
        }
        ensure!(Instant::now() < end, "{name} is not {what}: {:#}", pod["status"]);
        // Returns with the next change, or after a second.
        let version = pod["metadata"]["resourceVersion"].as_str().context("a version")?;
        let path = format!(
            "/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=1&fieldSelector=metadata.name={name}&resourceVersion={version}"
        );
        fleet.kubectl(&["get", "--raw", &path])?;
    }
}

fn patch(fleet: &Fleet, name: &str, resources: &Value) -> Result<()> {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}}).to_string();
    fleet.kubectl(&["patch", "pod", name, "--subresource", "resize", "-p", &patch]).map(drop)
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

fn main_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// It has these resources, and nothing more is to come.
fn has<'a>(resources: &'a Value) -> impl Fn(&Value) -> bool + 'a {
    move |pod| {
        main_status(pod)["resources"] == *resources
            && main_status(pod)["allocatedResources"] == resources["requests"]
            && condition(pod, "PodResizeInProgress").is_none()
            && condition(pod, "PodResizePending").is_none()
            && condition(pod, "Ready").is_some_and(|c| c["status"] == "True")
    }
}

/// What the kernel has of the container, read by itself: quota per 100 ms in microseconds, bytes of memory.
fn limits(fleet: &Fleet, name: &str) -> Result<(String, String)> {
    let script = "cd /sys/fs/cgroup; if [ -e cgroup.controllers ]; then cut -d' ' -f1 cpu.max; cat memory.max; else cat cpu/cpu.cfs_quota_us memory/memory.limit_in_bytes; fi";
    let text = fleet.kubectl(&["exec", name, "--", "sh", "-c", script])?;
    let (cpu, memory) = text.split_once('\n').context("two lines")?;
    Ok((cpu.into(), memory.into()))
}

fn sizes(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn pod(name: &str, cpu: &str, policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: board-1\n  automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: example.test/busybox:1\n    command: [sh, -c, \"trap 'exit 0' TERM; while :; do sleep 1; done\"]\n    resizePolicy: [{policy}]\n    resources: {{limits: {{cpu: {cpu}, memory: 32Mi}}}}\n"
    )
}

fn fleet() -> (Fleet, Board) {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let board = fleet.ready_board("").expect("a board");
    (fleet, board)
}

#[test]
fn a_running_pod_gets_other_resources() {
    let (fleet, mut board) = fleet();
    fleet.apply(&pod("boat", "200m", "")).expect("applied");
    let first = until(&fleet, "boat", "ready", has(&sizes("200m", "32Mi"))).expect("runs");
    assert_eq!(limits(&fleet, "boat").expect("limits"), ("20000".into(), (32 << 20).to_string()));

    let larger = sizes("300m", "48Mi");
    patch(&fleet, "boat", &larger).expect("patched");
    let seen = until(&fleet, "boat", "resized", has(&larger)).expect("resized");
    assert_eq!(limits(&fleet, "boat").expect("limits"), ("30000".into(), (48 << 20).to_string()));
    assert_eq!(main_status(&seen)["containerID"], main_status(&first)["containerID"], "nothing starts anew");
    assert_eq!(seen["status"]["observedGeneration"], seen["metadata"]["generation"]);
    let events = fleet.kubectl(&["events", "--for", "pod/boat"]).expect("events");
    assert!(events.contains("ResizeStarted") && events.contains("ResizeCompleted"), "{events}");

    // Never on this board; the pod goes on with what it has.
    patch(&fleet, "boat", &sizes("1000", "48Mi")).expect("patched");
    let refused =
        |pod: &Value| condition(pod, "PodResizePending").is_some_and(|c| c["reason"] == "Infeasible");
    let seen = until(&fleet, "boat", "refused", refused).expect("refused");
    let message =
        condition(&seen, "PodResizePending").expect("there")["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("Node didn't have enough capacity: cpu, requested: 1000000, capacity: "),
        "{message}"
    );
    assert_eq!(main_status(&seen)["resources"], larger);

    // While the agent is dead somebody thinks better of it.
    board.kill_agent().expect("killed");
    let smaller = sizes("100m", "16Mi");
    patch(&fleet, "boat", &smaller).expect("patched");
    board.start_agent().expect("started");
    let seen = until(&fleet, "boat", "resized", has(&smaller)).expect("resized");
    assert_eq!(limits(&fleet, "boat").expect("limits"), ("10000".into(), (16 << 20).to_string()));
    assert_eq!(main_status(&seen)["containerID"], main_status(&first)["containerID"], "nothing starts anew");
}

#[test]
fn what_does_not_fit_beside_others_waits_for_them() {
    let (fleet, mut board) = fleet();
    let cpus = fleet.get(&["node", "board-1"]).expect("a node");
    let cpus: u64 =
        cpus["status"]["capacity"]["cpu"].as_str().and_then(|n| n.parse().ok()).expect("a number");
    let (most, little) = (format!("{}m", cpus * 1000 - 300), "200m");
    fleet.apply(&pod("large", &most, "")).expect("applied");
    until(&fleet, "large", "ready", has(&sizes(&most, "32Mi"))).expect("runs");
    fleet
        .apply(&pod("boat", little, "{resourceName: cpu, restartPolicy: RestartContainer}"))
        .expect("applied");
    let first = until(&fleet, "boat", "ready", has(&sizes(little, "32Mi"))).expect("runs");
    patch(&fleet, "boat", &sizes("400m", "32Mi")).expect("patched");
    let put_off = |pod: &Value| condition(pod, "PodResizePending").is_some_and(|c| c["reason"] == "Deferred");
    let seen = until(&fleet, "boat", "put off", put_off).expect("put off");
    let used = cpus * 1000 - 300;
    let expected = format!(
        "Node didn't have enough resource: cpu, requested: 400, used: {used}, capacity: {}",
        cpus * 1000
    );
    assert_eq!(condition(&seen, "PodResizePending").expect("there")["message"], expected.as_str());
    assert_eq!(main_status(&seen)["resources"], sizes(little, "32Mi"));
    assert_eq!(limits(&fleet, "boat").expect("limits").0, "20000");
    // It is put off by an agent that knows of it from its store alone, too.
    board.kill_agent().expect("killed");
    board.start_agent().expect("started");
    until(&fleet, "boat", "put off", put_off).expect("put off");
    assert_eq!(limits(&fleet, "boat").expect("limits").0, "20000");
    fleet.kubectl(&["delete", "pod", "large"]).expect("deleted");
    let grown = sizes("400m", "32Mi");
    let seen = until(&fleet, "boat", "resized", has(&grown)).expect("resized");
    // Its policy says so.
    assert_eq!(main_status(&seen)["restartCount"], 1, "{seen:#}");
    assert_ne!(main_status(&seen)["containerID"], main_status(&first)["containerID"]);
    assert_eq!(limits(&fleet, "boat").expect("limits").0, "40000");
    // Of another resource it does not.
    let lighter = sizes("400m", "24Mi");
    patch(&fleet, "boat", &lighter).expect("patched");
    let seen = until(&fleet, "boat", "resized", has(&lighter)).expect("resized");
    assert_eq!(main_status(&seen)["restartCount"], 1);
}
