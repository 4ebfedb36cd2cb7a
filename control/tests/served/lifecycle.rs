//! Nodes that come, fall silent, are cordoned and go; boards are played by kubectl.

use crate::control::Control;
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use serde_json::json;

const TAINTS: &str = "jsonpath={range .spec.taints[*]}{.key}:{.effect} {end}";

#[test]
fn a_silent_board_is_not_ready_and_loses_its_pods_when_it_is_not_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("control.toml");
    // Long enough for the other board to speak meanwhile, whatever else this machine does.
    std::fs::write(&config, "node_monitor_grace_seconds = 6\ncluster_cidr = \"10.7.0.0/23\"\n")
        .expect("written");
    let control = Control::start(&["--config", config.to_str().expect("text")]);
    let kubectl = Kubectl(&control);
    let create = |object: &str| kubectl.run(&["create", "-f", "-"], object).expect("made");
    create(&board("silent", "4").to_string());
    kubectl.ok(&["wait", "--for=condition=Ready", "node/silent", "--timeout=30s"]);
    // Ready, so its first taint goes; and it gets its range.
    kubectl.ok(&["wait", "--for=jsonpath={.spec.podCIDR}=10.7.0.0/24", "node/silent", "--timeout=30s"]);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app"},
        "spec": {
            "containers": [{"name": "c", "image": "app:1"}],
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{
                "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 1,
            }],
        },
    });
    create(&pod.to_string());
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/app", "--timeout=30s"]);
    assert_eq!(kubectl.ok(&["get", "node", "silent", "-o", TAINTS]), "");

    // Alone and silent: told of, and not believed.
    kubectl.ok(&["wait", "--for=condition=Ready=Unknown", "node/silent", "--timeout=60s"]);
    let unreachable = "node.kubernetes.io/unreachable:NoSchedule";
    let tainted = "--for=jsonpath={.spec.taints[0].key}=node.kubernetes.io/unreachable";
    kubectl.ok(&["wait", tainted, "node/silent", "--timeout=30s"]);
    assert_eq!(kubectl.ok(&["get", "node", "silent", "-o", TAINTS]).trim(), unreachable);
    let message = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}";
    assert_eq!(kubectl.ok(&["get", "node", "silent", "-o", message]), "Kubelet stopped posting node status.");
    kubectl.ok(&["get", "pod", "app"]);

    // Somebody else is there: so it is the board, and its pods have their tolerations' time.
    create(&board("lively", "4").to_string());
    kubectl.ok(&["wait", "--for=delete", "pod/app", "--timeout=60s"]);
    kubectl.ok(&["wait", "--for=jsonpath={.spec.podCIDR}=10.7.1.0/24", "node/lively", "--timeout=30s"]);

    // It is back: what was said of it is taken back.
    let ready = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2026-01-01T00:10:00Z",
    }]}});
    let patch = ["patch", "node", "silent", "--subresource=status", "--type=strategic", "-p"];
    kubectl.ok(&[&patch[..], &[&ready.to_string()]].concat());
    kubectl.ok(&["wait", "--for=jsonpath={.spec.podCIDR}=10.7.0.0/24", "node/silent", "--timeout=30s"]);
}

#[test]
fn what_was_on_a_board_goes_with_it_and_cordons_are_taints() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let create = |object: &str| kubectl.run(&["create", "-f", "-"], object).expect("made");
    create(&board("a", "4").to_string());
    kubectl.ok(&["wait", "--for=jsonpath={.spec.podCIDR}=10.240.0.0/24", "node/a", "--timeout=30s"]);
    kubectl.ok(&["cordon", "a"]);
    let tainted = "--for=jsonpath={.spec.taints[0].key}=node.kubernetes.io/unschedulable";
    kubectl.ok(&["wait", tainted, "node/a", "--timeout=30s"]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"},
        "spec": {"containers": [{"name": "c", "image": "app:1"}]},
    });
    create(&pod.to_string());
    kubectl.ok(&["wait", "--for=condition=PodScheduled=False", "pod/app", "--timeout=30s"]);
    let message = "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}";
    assert_eq!(
        kubectl.ok(&["get", "pod", "app", "-o", message]),
        "0/1 nodes are available: 1 node(s) were unschedulable. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    kubectl.ok(&["uncordon", "a"]);
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/app", "--timeout=30s"]);
    // A range that is free again is given again.
    kubectl.ok(&["delete", "node", "a"]);
    create(&board("b", "4").to_string());
    kubectl.ok(&["wait", "--for=jsonpath={.spec.podCIDR}=10.240.0.0/24", "node/b", "--timeout=30s"]);
}
