//! What a board takes in, and in what order.

use coracle_tests::agent::Board;
use coracle_tests::manifest::{SLEEP, ended, pod, running};

/// Each alone has room: all of them were started, and the kernel had to sort it out.
#[test]
fn pods_beyond_what_the_board_has_are_rejected_in_the_order_of_their_arrival() {
    let board = Board::start("pods_max = 3").expect("a board");
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("reads");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next());
    let kib: u64 = total.and_then(|text| text.parse().ok()).expect("a number");
    // Two of these have room, a third has not.
    let large = |name: &str| {
        pod(name, SLEEP, "") + &format!("    resources: {{requests: {{memory: {}Ki}}}}\n", kib / 5 * 2)
    };
    let names = ["five", "four", "three", "two", "one"];
    let all: Vec<String> = names.iter().map(|name| large(name)).collect();
    board.apply(&all.join("---\n")).expect("applied");
    for name in &names[..2] {
        board.wait(name, "running", running).expect("has room");
    }
    for name in &names[2..] {
        let seen = board.wait(name, "rejected", ended).expect("has no room");
        let message = seen["status"]["message"].as_str().unwrap_or_default();
        let used = format!("used: {}", kib / 5 * 4 * 1024);
        assert_eq!(seen["status"]["reason"], "OutOfmemory", "{name}: {seen:#}");
        assert!(
            message.starts_with("Pod was rejected: Node didn't have enough resource: memory"),
            "{message}"
        );
        assert!(message.contains(&used), "{used}: {message}");
    }
    // Those that were rejected take no place; a third that runs does.
    board.apply(&pod("small", SLEEP, "")).expect("applied");
    board.wait("small", "running", running).expect("has room");
    board.apply(&pod("fourth", SLEEP, "")).expect("applied");
    let seen = board.wait("fourth", "rejected", ended).expect("has no room");
    assert_eq!(seen["status"]["reason"], "OutOfpods", "{seen:#}");
    assert!(
        board
            .get_text("/events")
            .expect("events")
            .contains("resource: pods, requested: 1, used: 3, capacity: 3")
    );
    // What is gone makes room for what comes next.
    board.run(&["delete", "pod", "five"]).expect("deleted");
    board.apply(&large("six")).expect("applied");
    board.wait("six", "running", running).expect("has room");
}
