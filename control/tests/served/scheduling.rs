//! The scheduler behind the real server: pods get nodes, or are told why not, and get them when something changes.

use crate::control::Control;
use crate::kubectl::Kubectl;
use serde_json::{Value, json};

/// A board that is there, and says that it is ready.
pub fn board(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "capacity": {"cpu": cpu, "memory": "1Gi", "pods": "110"},
            "allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "110"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    })
}

pub fn pod(name: &str, cpu: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [
            {"name": "c", "image": "app:1", "resources": {"requests": {"cpu": cpu}}},
        ]},
    })
    .to_string()
}

#[test]
fn pods_get_nodes_or_reasons() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let create = ["create", "-f", "-"];

    kubectl.run(&create, &pod("web", "500m")).expect("a pod");
    let scheduled = |status: &str| format!("--for=condition=PodScheduled={status}");
    kubectl.ok(&["wait", &scheduled("False"), "pod/web", "--timeout=30s"]);
    let message = "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}";
    assert_eq!(kubectl.ok(&["get", "pod", "web", "-o", message]), "no nodes available to schedule pods");

    // A node comes: the pod that waited goes there.
    kubectl.run(&create, &board("board-1", "1").to_string()).expect("a node");
    kubectl.ok(&["wait", &scheduled("True"), "pod/web", "--timeout=30s"]);
    assert_eq!(kubectl.ok(&["get", "pod", "web", "-o", "jsonpath={.spec.nodeName}"]), "board-1");

    // What does not fit waits until something makes room.
    kubectl.run(&create, &pod("late", "750m")).expect("a pod");
    kubectl.ok(&["wait", &scheduled("False"), "pod/late", "--timeout=30s"]);
    assert_eq!(
        kubectl.ok(&["get", "pod", "late", "-o", message]),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    kubectl.ok(&["delete", "pod", "web", "--force", "--grace-period=0"]);
    kubectl.ok(&["wait", &scheduled("True"), "pod/late", "--timeout=30s"]);

    kubectl.ok(&["wait", "--for=create", "event", "--field-selector=reason=Scheduled", "--timeout=30s"]);
    let described = kubectl.ok(&["describe", "pod", "late"]);
    assert!(described.contains("FailedScheduling"), "{described}");
    assert!(described.contains("default-scheduler"), "{described}");
    assert!(described.contains("Successfully assigned default/late to board-1"), "{described}");
}

#[test]
fn important_pods_make_room_and_figures_are_asked_for() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let create = |object: &str| kubectl.run(&["create", "-f", "-"], object).expect("made");
    create(&board("board-1", "1").to_string());
    create(&pod("idle", "800m"));
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/idle", "--timeout=30s"]);
    let mut important: Value = serde_json::from_str(&pod("important", "800m")).expect("JSON");
    important["spec"]["priorityClassName"] = json!("system-cluster-critical");
    create(&important.to_string());
    // The board would end it; here it is played.
    kubectl.ok(&["wait", "--for=condition=DisruptionTarget", "pod/idle", "--timeout=30s"]);
    kubectl.ok(&[
        "wait",
        "--for=jsonpath={.status.nominatedNodeName}=board-1",
        "pod/important",
        "--timeout=30s",
    ]);
    kubectl.ok(&["delete", "pod", "idle", "--force", "--grace-period=0"]);
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/important", "--timeout=30s"]);
    let said = ["get", "pod", "important", "-o", "jsonpath={.spec.priority} {.spec.nodeName}"];
    assert_eq!(kubectl.ok(&said), "2000000000 board-1");

    // A board that gives no figures.
    let refused = kubectl.run(&["top", "nodes"], "").expect_err("none");
    assert!(refused.contains("metrics not available yet"), "{refused}");
    let listed = kubectl.ok(&["get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"]);
    assert!(listed.contains("NodeMetricsList"), "{listed}");
    let metrics = kubectl.ok(&["get", "--raw", "/metrics"]);
    for line in [
        "workqueue_depth{name=\"node-lifecycle\"}",
        "leader_election_master_status{name=\"coracle-control\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[test]
fn limit_ranges_give_and_refuse() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "r"},
        "spec": {"limits": [{
            "type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "250m"}, "max": {"cpu": "2"},
        }]},
    });
    kubectl.run(&["create", "-f", "-"], &range.to_string()).expect("made");
    kubectl.ok(&["run", "modest", "--image=app:1"]);
    let path =
        "jsonpath={.spec.containers[0].resources.requests.cpu} {.spec.containers[0].resources.limits.cpu}";
    assert_eq!(kubectl.ok(&["get", "pod", "modest", "-o", path]), "250m 1");
    let mut greedy: Value = serde_json::from_str(&pod("greedy", "1")).expect("JSON");
    greedy["spec"]["containers"][0]["resources"]["limits"] = json!({"cpu": "3"});
    let refused = kubectl.run(&["create", "-f", "-"], &greedy.to_string()).expect_err("refused");
    assert!(
        refused
            .contains("pods \"greedy\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"),
        "{refused}"
    );
}

#[test]
fn gated_pods_wait_for_whoever_opens_the_gates() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    let create = ["create", "-f", "-"];
    kubectl.run(&create, &board("board-1", "4").to_string()).expect("a node");
    let mut gated: Value = serde_json::from_str(&pod("gated", "100m")).expect("JSON");
    gated["spec"]["schedulingGates"] = json!([{"name": "example.test/a"}, {"name": "example.test/b"}]);
    kubectl.run(&create, &gated.to_string()).expect("a pod");
    let columns = |name: &str| -> Vec<String> {
        let shown = kubectl.ok(&["get", "pod", name, "--no-headers"]);
        shown.split_whitespace().map(String::from).collect()
    };
    assert_eq!(columns("gated")[1..3], ["0/1", "SchedulingGated"]);
    let condition = "jsonpath={range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{end}";
    assert_eq!(
        kubectl.ok(&["get", "pod", "gated", "-o", condition]),
        "PodScheduled=False SchedulingGated: Scheduling is blocked due to non-empty scheduling gates"
    );
    let patch = |patch: &str| kubectl.run(&["patch", "pod", "gated", "--type=json", "-p", patch], "");
    let refused = patch(r#"[{"op":"add","path":"/spec/schedulingGates/-","value":{"name":"c"}}]"#);
    let refused = refused.expect_err("gates do not come");
    assert!(
        refused.contains("spec.schedulingGates[2].name: Forbidden: only deletion is allowed, but found new scheduling gate 'c'"),
        "{refused}"
    );
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "gated"},
        "target": {"kind": "Node", "name": "board-1"},
    });
    let bind = ["create", "--raw", "/api/v1/namespaces/default/pods/gated/binding", "-f", "-"];
    let refused = kubectl.run(&bind, &binding.to_string()).expect_err("a gated pod is given no node");
    assert!(refused.contains("non-empty .spec.schedulingGates"), "{refused}");
    // Whoever comes later is placed, so the scheduler has seen the one that waits.
    patch(r#"[{"op":"remove","path":"/spec/schedulingGates/0"}]"#).expect("one gate less");
    kubectl.run(&create, &pod("free", "100m")).expect("a pod");
    let placed = |name: &str| {
        kubectl.ok(&["wait", "--for=condition=PodScheduled", &format!("pod/{name}"), "--timeout=30s"]);
        kubectl.ok(&["get", "pod", name, "-o", "jsonpath={.spec.nodeName}"])
    };
    assert_eq!(placed("free"), "board-1");
    assert_eq!(columns("gated")[2], "SchedulingGated");
    assert_eq!(kubectl.ok(&["get", "pod", "gated", "-o", "jsonpath={.spec.nodeName}"]), "");
    patch(r#"[{"op":"add","path":"/spec/nodeSelector","value":{"kubernetes.io/hostname":"board-1"}}]"#)
        .expect("where it may go is narrowed");
    patch(r#"[{"op":"remove","path":"/spec/schedulingGates"}]"#).expect("the last gate");
    assert_eq!(placed("gated"), "board-1");
    assert_eq!(columns("gated")[2], "Pending");
}
