//! Boards that are played: what is placed is said to be as the test wants it, what is to end ends.

use crate::kubectl::Kubectl;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Plays the boards until something is so. `run` is asked for the status of each pod that has a node and has not ended.
pub fn play(kubectl: &Kubectl<'_>, what: &str, run: impl Fn(&Value) -> Option<Value>, so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while !so() {
        assert!(
            Instant::now() < deadline,
            "{what}: {}\n{}",
            kubectl.ok(&["get", "all,controllerrevisions,pvc,events", "-o", "wide"]),
            kubectl.ok(&["describe", "pods"])
        );
        let pods: Value = serde_json::from_str(&kubectl.ok(&["get", "pods", "-o", "json"])).expect("JSON");
        for pod in pods["items"].as_array().expect("a list") {
            let name = pod["metadata"]["name"].as_str().expect("a name");
            let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            if pod["metadata"]["deletionTimestamp"].is_string() {
                // It may be gone already.
                let delete = ["delete", "pod", name, "--force", "--grace-period=0", "--wait=false"];
                let _gone = kubectl.run(&delete, "");
            } else if pod["spec"]["nodeName"].is_string()
                && !ended
                && let Some(status) = run(pod)
                && pod["status"]["phase"] != status["phase"]
            {
                let status = json!({"status": status});
                let patch = ["patch", "pod", name, "--subresource=status", "--type=strategic", "-p"];
                let _gone = kubectl.run(&[&patch[..], &[&status.to_string()]].concat(), "");
            }
        }
    }
}

/// The status of a pod that runs and is ready.
pub fn ready() -> Value {
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
}

/// The status of a pod whose container has ended.
pub fn ended(code: i32) -> Value {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let terminated = json!({"exitCode": code, "finishedAt": "2026-01-01T00:00:00Z", "reason": "Ended"});
    json!({"phase": phase, "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
        {"name": "c", "image": "app:1", "imageID": "", "ready": false, "restartCount": 0,
         "state": {"terminated": terminated}},
    ]})
}

/// The image of a pod's first container.
pub fn image(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().expect("an image")
}
