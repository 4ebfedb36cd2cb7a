//! What boards and pods use, as a stock kubectl shows it.

use coracle_tests::agent::deadline;
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::{SLEEP, pod};
use std::time::Instant;

/// Rows as words; asked again until they are as wanted: a pod that has just started has used nothing yet.
fn until(fleet: &Fleet, arguments: &[&str], so: impl Fn(&[Vec<String>]) -> bool) -> Vec<Vec<String>> {
    let end = Instant::now() + deadline();
    loop {
        let shown = fleet.kubectl(arguments).unwrap_or_else(|error| error.to_string());
        let words = |line: &str| line.split_whitespace().map(String::from).collect();
        let rows: Vec<Vec<String>> = shown.lines().map(words).collect();
        if so(&rows) {
            return rows;
        }
        assert!(Instant::now() < end, "kubectl {arguments:?}: {shown}\n{}", fleet.log());
    }
}

/// `250m`, `12Mi`, `7%`.
fn number(text: &str, unit: &str) -> Option<u64> {
    text.strip_suffix(unit)?.parse().ok()
}

#[test]
fn nodes_pods_and_containers_are_shown_with_what_they_use() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let _board = fleet.joined_board("").expect("a board");
    let busy = pod("busy", "while :; do :; done", "")
        + &format!("  - name: idle\n    image: example.test/busybox:1\n    command: [sh, -c, {SLEEP:?}]\n");
    fleet.apply(&busy).expect("applied");
    fleet.wait(&["pod/busy", "--for=condition=Ready"]).expect("it runs");

    let nodes = until(&fleet, &["top", "nodes", "--no-headers"], |rows| {
        rows.first().is_some_and(|row| row.first().is_some_and(|name| name == "board-1") && row.len() == 5)
    });
    // Some process works, and more than a megabyte is in use.
    assert!(number(&nodes[0][1], "m").is_some_and(|millis| millis > 0), "{nodes:?}");
    assert!(number(&nodes[0][2], "%").is_some() && number(&nodes[0][4], "%").is_some(), "{nodes:?}");
    assert!(number(&nodes[0][3], "Mi").is_some_and(|mebibytes| mebibytes > 1), "{nodes:?}");

    let figures = |rows: &[Vec<String>]| {
        let of = |name: &str| rows.iter().find(|row| row[1] == name).map(|row| number(&row[2], "m"));
        rows.len() == 2 && of("main").flatten().is_some_and(|millis| millis > 10) && of("idle").is_some()
    };
    until(&fleet, &["top", "pods", "--containers", "--no-headers"], figures);
    let pods = until(&fleet, &["top", "pods", "--no-headers"], |rows| {
        rows.first().is_some_and(|row| row.len() == 3 && row[0] == "busy")
    });
    assert!(number(&pods[0][1], "m").is_some_and(|millis| millis > 10), "{pods:?}");
}

const LOADED: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: example.test/busybox:1
        command: [sh, -c, "while :; do :; done"]
        resources: {requests: {cpu: 50m}, limits: {cpu: 100m}}
"#;

#[test]
fn a_load_makes_a_deployment_grow() {
    let config = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(config.path(), "autoscaler_sync_seconds = 5\n").expect("written");
    let mut fleet =
        Fleet::start(&["--config", config.path().to_str().expect("text")]).expect("a control plane");
    let _board = fleet.joined_board("").expect("a board");
    fleet.apply(LOADED).expect("applied");
    fleet
        .kubectl(&["autoscale", "deployment", "web", "--cpu-percent=50", "--min=1", "--max=3"])
        .expect("autoscaled");
    // Twice what it is to use, and more than the maximum by far: as far as one step may go.
    fleet.wait(&["deployment/web", "--for=jsonpath={.spec.replicas}=3"]).expect("it grows");
    fleet.wait(&["hpa/web", "--for=condition=ScalingActive"]).expect("it knows");
    let described = fleet.kubectl(&["describe", "hpa", "web"]).expect("described");
    let reason = "New size: 3; reason: cpu resource utilization (percentage of request) above target";
    until(&fleet, &["get", "events", "-o", "custom-columns=M:.message"], |rows| {
        rows.iter().any(|row| row.join(" ") == reason)
    });
    assert!(described.contains("resource cpu on pods  (as a percentage of request):"), "{described}");
    let shown = until(&fleet, &["get", "hpa", "web", "--no-headers"], |rows| {
        rows.first().is_some_and(|row| row.len() == 8 && row[2] == "cpu:" && !row[3].contains("unknown"))
    });
    assert_eq!(shown[0][1], "Deployment/web");
}
