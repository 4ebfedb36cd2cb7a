//! What `coracle agent --root DIR` promises: everything below DIR, several agents on one machine.

use coracle_tests::agent::{Board, binary};
use std::process::{Command, Output};

const SLEEPER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleeper}\nspec:\n  containers:\n  - {name: main, image: 'example.test/busybox:1', command: [sleep, '1000']}\n";

fn running(pod: &serde_json::Value) -> bool {
    pod["status"]["phase"] == "Running"
}

/// An agent of `name` on a directory of its own, in a network namespace of its own, until it ends.
fn stranger(name: &str, verb: &str) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("name = \"{name}\"\n")).expect("written");
    // It is to end by itself, at once; `timeout` ends it where it does not.
    let mut command = Command::new("unshare");
    command.args(["--net", "timeout", "--signal=KILL", "20"]).arg(binary("coracle").expect("built"));
    command.arg("--root").arg(dir.path().join("root")).arg(verb).arg("--config").arg(config);
    command.output().expect("runs")
}

/// It took the first one's pods for what a crash had left, and killed them.
#[test]
fn a_second_agent_of_the_same_name_is_refused_and_touches_nothing() {
    let mut board = Board::start("").expect("a board");
    board.apply(SLEEPER).expect("applied");
    let before = board.wait("sleeper", "running", running).expect("runs");
    let check = |board: &Board, verb: &str, expected: &str| {
        let refused = stranger(board.name(), verb);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(5), "{verb}: {said}");
        assert!(said.contains(expected) && said.contains("name = ") && said.lines().count() == 1, "{said}");
    };
    check(&board, "agent", "another agent that runs");
    check(&board, "teardown", "another agent that runs");
    // Its pods run on without it, and are still its own.
    board.stop_agent().expect("stopped");
    check(&board, "agent", &format!("the pod in {}", board.root().display()));
    check(&board, "teardown", &format!("the pod in {}", board.root().display()));
    board.start_agent().expect("starts again");
    let after = board.wait("sleeper", "running", running).expect("runs on");
    let started = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(started(&before), started(&after));
}

/// `ip netns exec NAME coracle agent`: no cgroup was found, and a container could not be restarted by the next agent,
/// whose mounts the pod's shim did not see.
#[test]
fn an_agent_in_a_mount_namespace_of_its_own_runs_and_restarts_pods() {
    let mut board = Board::prepare("").expect("a board");
    board.own_mounts();
    board.start_agent().expect("starts");
    let script = "trap 'exit 1' TERM; sleep 1000 & wait";
    board.apply(&SLEEPER.replace("[sleep, '1000']", &format!("[sh, -c, \"{script}\"]"))).expect("applied");
    board.wait("sleeper", "running", running).expect("runs");
    board.kill_agent().expect("killed");
    board.start_agent().expect("starts in another mount namespace");
    let pod = board.wait("sleeper", "running", running).expect("runs on");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    board.run(&["exec", "sleeper", "--", "kill", "1"]).expect("told to end");
    let again = |pod: &serde_json::Value| {
        let container = &pod["status"]["containerStatuses"][0];
        container["restartCount"] == 1 && container["state"]["running"].is_object()
    };
    board.wait("sleeper", "running again", again).expect("is restarted");
}
