//! Boards as nodes of a cluster: the real agent against the real control plane, driven by a stock kubectl.

use anyhow::{Context, Result, ensure};
use coracle_tests::agent::{Board, deadline};
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::{SLEEP, first, pod, running};
use serde_json::Value;
use std::time::Instant;

/// A control plane, and one board that belongs to it, with its node registered.
fn start(config: &str) -> Result<(Fleet, Board)> {
    let mut fleet = Fleet::start(&[])?;
    let config = format!("{config}\n[cluster]\nkubeconfig = {:?}\n", fleet.kubeconfig());
    let mut board = fleet.board(&config)?;
    board.start_agent()?;
    registered(&fleet, &board)?;
    Ok((fleet, board))
}

fn registered(fleet: &Fleet, board: &Board) -> Result<()> {
    until(board, "the node is registered", || {
        Ok(fleet.kubectl(&["get", "nodes", "-o", "name"])?.contains("node/board-1").then_some(()))
    })?;
    fleet.wait(&["node/board-1", "--for=condition=Ready"]).with_context(|| board.log()).map(drop)
}

/// Asks again and again, for what has no event that a test could wait for.
fn until<T>(board: &Board, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + deadline();
    loop {
        if let Some(found) = ask()? {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "not before the deadline: {what}\n{}", board.log());
    }
}

/// A pod as the API takes it, bound to the board.
fn bound(name: &str, script: &str, more: &str) -> String {
    pod(name, script, &format!("  nodeName: board-1\n  automountServiceAccountToken: false\n{more}"))
}

fn ready(fleet: &Fleet, board: &Board, name: &str) -> Result<Value> {
    let pod = format!("pod/{name}");
    fleet.wait(&[&pod, "--for=condition=Ready"]).with_context(|| board.log())?;
    fleet.get(&[&pod])
}

/// What a pod that is the same as before still has.
fn identity(pod: &Value) -> [Value; 5] {
    let container = first(pod);
    [
        pod["metadata"]["uid"].clone(),
        pod["status"]["startTime"].clone(),
        container["containerID"].clone(),
        container["state"]["running"]["startedAt"].clone(),
        container["restartCount"].clone(),
    ]
}

#[test]
fn a_pod_of_the_api_runs_and_is_deleted_with_its_grace() {
    let (fleet, board) = start("").expect("a cluster");
    let node = fleet.get(&["node/board-1"]).expect("the node");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "board-1");
    assert_eq!(node["status"]["addresses"][0]["address"], "10.250.1.2");
    assert_eq!(node["status"]["declaredFeatures"][0], "ExtendWebSocketsToKubelet");
    let lease = fleet.get(&["lease/board-1", "-n", "kube-node-lease"]).expect("the lease");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);

    fleet.apply(&bound("web", SLEEP, "")).expect("applied");
    let web = ready(&fleet, &board, "web").expect("runs");
    assert!(running(&web), "{web:#}");
    let status = &web["status"];
    assert_eq!(status["hostIP"], "10.250.1.2");
    assert!(status["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.88.")), "{status:#}");
    assert_eq!(status["observedGeneration"], web["metadata"]["generation"]);
    let local = board.wait("web", "running", running).expect("the board has it");
    assert_eq!(identity(&local), identity(&web));

    fleet.kubectl(&["delete", "pod", "web"]).expect("deleted, and gone when kubectl returns");
    board.wait_gone("web").expect("gone from the board");
}
