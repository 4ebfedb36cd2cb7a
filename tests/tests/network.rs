//! What pods have to share on one board: addresses and ports of the host.

use coracle_tests::agent::{Board, deadline};
use serde_json::Value;
use std::time::Instant;

fn pod(name: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: 'example.test/busybox:1', command: [sleep, '1000'], ports: [{ports}]}}\n---\n"
    )
}

fn running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
}

/// Waits until an event of the pod says so: events have no watch, but every try of the sandbox makes one.
fn told(board: &Board, name: &str, expected: &str) {
    let until = Instant::now() + deadline();
    loop {
        let events = board.get("/events").expect("events");
        let mut of_pod = events["items"].as_array().into_iter().flatten();
        if of_pod.any(|e| e["involvedObject"]["name"] == name && e["message"].to_string().contains(expected))
        {
            return;
        }
        assert!(Instant::now() < until, "{expected} is not told of {name}: {events:#}");
        std::thread::yield_now();
    }
}

#[test]
fn a_pod_without_an_address_or_a_port_waits_for_one_and_says_so() {
    // Six addresses, of which one is the gateway's.
    let board = Board::start("network_cidr = \"10.99.0.0/29\"").expect("a board");
    let all: String = ["a", "b", "c", "d", "e"].iter().map(|name| pod(name, "")).collect();
    board.apply(&all).expect("applied");
    for name in ["a", "b", "c", "d", "e"] {
        board.wait(name, "running", running).expect("runs");
    }
    board.apply(&pod("late", "")).expect("applied");
    told(&board, "late", "no free address in 10.99.0.0/29");
    board.run(&["delete", "a"]).expect("deleted");
    board.wait("late", "running", running).expect("runs once there is one");
    board.run(&["delete", "b", "c"]).expect("deleted");

    let port = "{containerPort: 80, hostPort: 8080}";
    board.apply(&pod("first", port)).expect("applied");
    board.wait("first", "running", running).expect("runs");
    board.apply(&pod("second", port)).expect("applied");
    told(&board, "second", "hostPort 8080/TCP is already used by pod");
    board.run(&["delete", "first"]).expect("deleted");
    board.wait("second", "running", running).expect("runs once it is free");
}
