//! Jobs, daemon sets and stateful sets on real boards behind NAT, driven by a stock kubectl.

use coracle_tests::agent::Board;
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::SLEEP;
use serde_json::{Value, json};

/// A control plane with this many boards that have joined and are ready.
fn start(count: u8) -> (Fleet, Vec<Board>) {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let boards = (0..count).map(|_| fleet.ready_board("").expect("a board")).collect();
    (fleet, boards)
}

fn template(name: &str, restart: &str, script: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "restartPolicy": restart, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "example.test/busybox:1", "command": ["sh", "-c", script]}],
        },
    })
}

fn job(name: &str, script: &str, more: &[(&str, Value)]) -> String {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": template(name, "Never", script)},
    });
    for (key, value) in more {
        job["spec"][*key] = value.clone();
    }
    job.to_string()
}

fn set(kind: &str, name: &str) -> String {
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template(name, "Always", SLEEP)},
    })
    .to_string()
}

/// The names of an app's pods.
fn pods(fleet: &Fleet, app: &str) -> Vec<String> {
    let selector = format!("app={app}");
    let names = ["get", "pods", "-l", &selector, "-o", "jsonpath={.items[*].metadata.name}"];
    fleet.kubectl(&names).expect("kubectl").split_whitespace().map(str::to_string).collect()
}

#[test]
fn jobs_run_to_their_end_and_leave_nothing() {
    let (fleet, boards) = start(1);
    let board = &boards[0];
    let many = [("completions", json!(3)), ("parallelism", json!(2)), ("completionMode", json!("Indexed"))];
    let script = "echo index $JOB_COMPLETION_INDEX on $(hostname)";
    fleet.apply(&job("pieces", script, &many)).expect("applied");
    fleet.wait(&["job/pieces", "--for=condition=complete"]).expect("completes");
    let logs = fleet.kubectl(&["logs", "-l", "app=pieces"]).expect("logs");
    let mut lines: Vec<&str> = logs.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["index 0 on pieces-0", "index 1 on pieces-1", "index 2 on pieces-2"]);

    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    fleet.apply(&job("hopeless", "exit 42", &[("podFailurePolicy", policy)])).expect("applied");
    fleet.wait(&["job/hopeless", "--for=condition=failed"]).expect("fails");
    let described = fleet.kubectl(&["describe", "job", "hopeless"]).expect("described");
    let why = "failed with exit code 42 matching FailJob rule at index 0";
    assert!(described.contains("PodFailurePolicy") && described.contains(why), "{described}");

    // A pod that somebody deletes ends with its grace, is counted, and then gone: its finalizer holds nobody.
    fleet.apply(&job("long", SLEEP, &[("backoffLimit", json!(9))])).expect("applied");
    fleet.wait(&["job/long", "--for=jsonpath={.status.ready}=1"]).expect("runs");
    let lost = pods(&fleet, "long").remove(0);
    fleet.kubectl(&["delete", "pod", &lost]).expect("deleted, and gone when kubectl returns");
    board.wait_gone(&lost).expect("gone from the board");
    fleet.wait(&["job/long", "--for=jsonpath={.status.failed}=1"]).expect("counted");
    fleet.wait(&["job/long", "--for=jsonpath={.status.ready}=1"]).expect("runs again");
    let second = pods(&fleet, "long").remove(0);
    assert_ne!(second, lost);
    // Suspended, it leaves the board, and nothing more is counted.
    fleet.kubectl(&["patch", "job", "long", "-p", r#"{"spec": {"suspend": true}}"#]).expect("suspended");
    board.wait_gone(&second).expect("gone from the board");
    fleet.wait(&["job/long", "--for=condition=Suspended"]).expect("says so");
    assert_eq!(fleet.get(&["job/long"]).expect("the job")["status"]["failed"], 1);
    fleet.kubectl(&["patch", "job", "long", "-p", r#"{"spec": {"suspend": false}}"#]).expect("resumed");
    fleet.wait(&["job/long", "--for=jsonpath={.status.ready}=1"]).expect("runs once more");
    let third = pods(&fleet, "long").remove(0);

    fleet.kubectl(&["delete", "jobs", "--all", "--cascade=foreground"]).expect("deleted");
    board.wait_gone(&third).expect("gone from the board");
    assert_eq!(fleet.kubectl(&["get", "jobs,pods", "-o", "name"]).expect("kubectl"), "");
}

#[test]
fn sets_are_on_their_boards_and_leave_nothing() {
    let (fleet, boards) = start(2);
    fleet.apply(&set("DaemonSet", "logs")).expect("applied");
    fleet.kubectl(&["rollout", "status", "daemonset/logs", "--timeout=60s"]).expect("rolls out");
    let nodes = "jsonpath={.items[*].spec.nodeName}";
    let placed = fleet.kubectl(&["get", "pods", "-l", "app=logs", "-o", nodes]).expect("kubectl");
    let mut placed: Vec<&str> = placed.split_whitespace().collect();
    placed.sort_unstable();
    assert_eq!(placed, ["board-1", "board-2"]);

    fleet.apply(&set("StatefulSet", "db")).expect("applied");
    fleet.kubectl(&["scale", "statefulset/db", "--replicas=2"]).expect("scaled");
    fleet.wait(&["statefulset/db", "--for=jsonpath={.status.availableReplicas}=2"]).expect("two");
    let host = |pod: &str| fleet.kubectl(&["exec", pod, "--", "hostname"]).expect("enters");
    assert_eq!((host("db-0").as_str(), host("db-1").as_str()), ("db-0", "db-1"));
    // A restart of both is seen through to its end by a control plane that is killed in the middle of it.
    let before = fleet.get(&["pod/db-0"]).expect("the pod")["metadata"]["uid"].clone();
    fleet.kubectl(&["rollout", "restart", "daemonset/logs", "statefulset/db"]).expect("restarts");
    let mut fleet = fleet;
    fleet.kill_control().expect("killed");
    fleet.start_control().expect("serves again");
    for set in ["daemonset/logs", "statefulset/db"] {
        fleet.kubectl(&["rollout", "status", set, "--timeout=60s"]).expect("rolls out");
    }
    assert_ne!(fleet.get(&["pod/db-0"]).expect("the pod")["metadata"]["uid"], before);
    let last = [pods(&fleet, "logs"), pods(&fleet, "db")].concat();
    assert_eq!(last.len(), 4, "{last:?}");

    fleet.kubectl(&["delete", "daemonset/logs", "statefulset/db"]).expect("deleted");
    for board in &boards {
        for pod in &last {
            board.wait_gone(pod).expect("gone from the board");
        }
    }
}
