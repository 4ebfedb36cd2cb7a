//! `kubectl drain` and disruption budgets, `pods/resize`.

use crate::control::Control;
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use serde_json::json;

#[test]
fn a_drain_stops_at_the_budget_and_resizes_are_counted() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let create = |object: &str| kubectl.run(&["create", "-f", "-"], object).expect("made");
    create(&board("a", "4").to_string());
    for name in ["web-0", "web-1"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "c", "image": "app:1", "resources": {"requests": {"cpu": "100m"}},
                }],
            },
        });
        create(&pod.to_string());
        kubectl.ok(&["wait", "--for=condition=PodScheduled", &format!("pod/{name}"), "--timeout=30s"]);
        // As its board would say.
        let status =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let patch = ["patch", "pod", name, "--subresource=status", "--type=strategic", "-p"];
        kubectl.ok(&[&patch[..], &[&status.to_string()]].concat());
    }
    kubectl.ok(&["create", "pdb", "web", "--selector=app=web", "--min-available=1"]);
    kubectl.ok(&["wait", "--for=jsonpath={.status.disruptionsAllowed}=1", "pdb/web", "--timeout=30s"]);

    // The first may go, the second may not.
    let drain = ["drain", "a", "--force", "--timeout=8s"];
    let refused = kubectl.run(&drain, "").expect_err("one stays");
    assert!(
        refused.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{refused}"
    );
    let left = kubectl.ok(&["get", "pods", "-l", "app=web", "-o", "name"]);
    assert_eq!(left.lines().count(), 1, "{left}");
    kubectl.ok(&["wait", "--for=jsonpath={.status.disruptionsAllowed}=0", "pdb/web", "--timeout=30s"]);
    let told = "jsonpath={.status.currentHealthy} {.status.conditions[0].reason}";
    assert_eq!(kubectl.ok(&["get", "pdb", "web", "-o", told]), "1 InsufficientPods");

    let resize = |cpu: &str| {
        let patch = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        let patch = patch.to_string();
        kubectl.run(&["patch", &left, "--subresource=resize", "-p", &patch], "")
    };
    resize("300m").expect("resized");
    let cpu = "jsonpath={.spec.containers[0].resources.requests.cpu} {.metadata.generation}";
    assert_eq!(kubectl.ok(&["get", &left, "-o", cpu]), "300m 2");
    let image = json!({"spec": {"containers": [{"name": "c", "image": "app:2"}]}}).to_string();
    let refused =
        kubectl.run(&["patch", &left, "--subresource=resize", "-p", &image], "").expect_err("refused");
    assert!(refused.contains("only cpu and memory resources are mutable"), "{refused}");

    kubectl.ok(&["delete", "pdb", "web"]);
    kubectl.ok(&["drain", "a", "--force", "--timeout=30s"]);
    assert_eq!(kubectl.ok(&["get", "pods", "-o", "name"]), "");
}
