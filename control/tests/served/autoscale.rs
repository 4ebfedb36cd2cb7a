//! Autoscalers with the real server and kubectl, where no board tells what pods use; one that does is in `tests/tests/top.rs`.

use crate::control::Control;
use crate::endpoints::{apply, until};
use crate::kubectl::Kubectl;
use serde_json::{Value, json};

/// The condition of an autoscaler: `STATUS REASON MESSAGE`.
fn condition(kubectl: &Kubectl<'_>, name: &str, kind: &str, so: impl Fn(&str) -> bool) -> String {
    let path = format!(
        "jsonpath={{range .status.conditions[?(@.type==\"{kind}\")]}}{{.status}} {{.reason}} {{.message}}{{end}}"
    );
    until(kubectl, &["get", "hpa", name, "-o", &path], so)
}

#[test]
fn an_autoscaler_says_what_it_lacks_and_keeps_to_its_bounds() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    kubectl.ok(&["create", "deployment", "web", "--image=app:1", "--replicas=2"]);
    let version = kubectl.ok(&["get", "deployment", "web", "-o", "jsonpath={.metadata.resourceVersion}"]);
    assert!(!version.is_empty());
    kubectl.ok(&["autoscale", "deployment", "web", "--cpu-percent=50", "--min=1", "--max=5"]);
    assert_eq!(
        condition(&kubectl, "web", "ScalingActive", |told| told.starts_with("False")),
        "False FailedGetResourceMetric the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"
    );
    assert_eq!(
        condition(&kubectl, "web", "AbleToScale", |told| told.starts_with("True")),
        "True SucceededGetScale the HPA controller was able to get the target's current scale"
    );
    let described = kubectl.ok(&["describe", "hpa", "web"]);
    assert!(described.contains("<unknown> / 50%"), "{described}");
    until(&kubectl, &["get", "events", "-o", "custom-columns=R:.reason,M:.message"], |told| {
        told.contains("FailedComputeMetricsReplicas")
            && told.contains("invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: ")
    });
    let shown = kubectl.ok(&["get", "hpa", "web", "--no-headers"]);
    assert!(shown.contains("cpu: <unknown>/50%"), "{shown}");
    let replicas = || kubectl.ok(&["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]);
    assert_eq!(replicas(), "2", "nothing is known, nothing is done");

    // Two for the same pods: neither knows which of them is meant.
    kubectl.ok(&["autoscale", "deployment", "web", "--name=again", "--cpu-percent=50", "--max=5"]);
    let ambiguous = "False AmbiguousSelector pods by selector app=web are controlled by multiple HPAs: [{again default} {web default}]";
    assert_eq!(condition(&kubectl, "again", "ScalingActive", |told| told.contains("Ambiguous")), ambiguous);
    kubectl.ok(&["delete", "hpa", "again"]);

    // The older version shows the same.
    let older = kubectl.ok(&["get", "horizontalpodautoscalers.v1.autoscaling", "web", "-o", "yaml"]);
    for part in [
        "targetCPUUtilizationPercentage: 50",
        "autoscaling.alpha.kubernetes.io/conditions",
        "currentReplicas: 2",
    ] {
        assert!(older.contains(part), "{older}");
    }

    // Bounds hold whatever is known.
    kubectl.ok(&["patch", "hpa", "web", "--type=merge", "-p", r#"{"spec": {"minReplicas": 3}}"#]);
    kubectl.ok(&["wait", "deployment/web", "--for=jsonpath={.spec.replicas}=3", "--timeout=60s"]);
    until(&kubectl, &["get", "events", "-o", "custom-columns=M:.message"], |told| {
        told.contains("New size: 3; reason: Current number of replicas below Spec.MinReplicas")
    });
    assert_eq!(
        condition(&kubectl, "web", "AbleToScale", |told| told.contains("SucceededRescale")),
        "True SucceededRescale the HPA controller was able to update the target scale to 3"
    );
    kubectl.ok(&["scale", "deployment", "web", "--replicas=0"]);
    kubectl.ok(&["patch", "hpa", "web", "--type=merge", "-p", r#"{"spec": {"maxReplicas": 6}}"#]);
    assert_eq!(
        condition(&kubectl, "web", "ScalingActive", |told| told.contains("ScalingDisabled")),
        "False ScalingDisabled scaling is disabled since the replica count of the target is zero"
    );
}

#[test]
fn an_autoscaler_of_nothing_says_so() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let autoscaler = |name: &str, kind: &str, target: &str| {
        json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": {
                "maxReplicas": 3,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": target},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
            },
        })
    };
    apply(&kubectl, &autoscaler("lost", "Deployment", "lost"));
    let unable = "False FailedGetScale the HPA controller was unable to get the target's current scale: ";
    assert_eq!(
        condition(&kubectl, "lost", "AbleToScale", |told| told.starts_with("False")),
        format!("{unable}deployments.apps \"lost\" not found")
    );
    apply(&kubectl, &autoscaler("strange", "Gadget", "g"));
    assert_eq!(
        condition(&kubectl, "strange", "AbleToScale", |told| told.starts_with("False")),
        format!(
            "{unable}unable to determine resource for scale target reference: no matches for kind \"Gadget\" in group \"apps\""
        )
    );
    let stored: Value =
        serde_json::from_str(&kubectl.ok(&["get", "hpa", "lost", "-o", "json"])).expect("JSON");
    assert_eq!(
        stored["spec"]["behavior"],
        json!({
            "scaleDown": {
                "stabilizationWindowSeconds": 60, "selectPolicy": "Max",
                "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
            },
            "scaleUp": {
                "stabilizationWindowSeconds": 0, "selectPolicy": "Max",
                "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15},
                ],
            },
        })
    );
}
