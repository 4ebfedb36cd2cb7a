//! Small manifests, and what tests ask of a pod's status.

use serde_json::Value;

/// A script that runs until it is told to end.
pub const SLEEP: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 1; done";

/// A pod of one busybox container, `main`, that runs `script`. `more` goes into the spec, indented by two and ended by
/// a newline; what is appended to the text, indented by four, goes into the container.
pub fn pod(name: &str, script: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{more}  containers:\n  - name: main\n    image: example.test/busybox:1\n    command: [sh, -c, {script:?}]\n"
    )
}

/// Whether it runs and is ready.
pub fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && condition(pod, "Ready")
}

/// Whether it ended for good.
pub fn ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Whether a condition holds.
pub fn condition(pod: &Value, kind: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// How often its first container was started again.
pub fn restarts(pod: &Value) -> u64 {
    first(pod)["restartCount"].as_u64().unwrap_or(0)
}

/// The status of its first container.
pub fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// Why its first container waits; empty when it does not.
pub fn waiting(pod: &Value) -> &str {
    first(pod)["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}
