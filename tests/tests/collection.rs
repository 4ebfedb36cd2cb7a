//! Images that go when the disk is full, and those that never do.

use coracle_tests::agent::{Board, deadline};
use coracle_tests::image::Image;
use coracle_tests::manifest::{SLEEP, pod, running, waiting};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

const DISK_BYTES: u64 = 50 << 20;
/// Of each image of a test: 6 % of the disk.
const IMAGE_BYTES: usize = 3 << 20;

/// Fills the board's disk up to so many percent.
fn fill(board: &Board, percent: u64) {
    let stat = nix::sys::statvfs::statvfs(&board.root()).expect("a disk");
    let used = (stat.blocks() - stat.blocks_free()) * stat.fragment_size();
    let bytes = (DISK_BYTES * percent / 100).checked_sub(used).expect("emptier than that");
    let name = board.root().join(format!("filler-{percent}"));
    fs::write(name, vec![7; usize::try_from(bytes).expect("fits")]).expect("written");
}

/// Says when each image was last used: by the order of `names`, long ago.
fn age(board: &Board, names: &[&str]) {
    let path = board.root().join("images/index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
    for image in index["images"].as_array_mut().expect("images") {
        let reference = image["references"][0].as_str().unwrap_or_default();
        if let Some(at) = names.iter().position(|name| reference == format!("example.test/{name}:1")) {
            image["used_seconds"] = json!(at + 1);
        }
    }
    fs::write(path, index.to_string()).expect("written");
}

/// Starts the agent, which looks at its disk at once, and waits until images went. The names of those that are left.
fn collected(board: &mut Board) -> BTreeSet<String> {
    let told = |board: &Board| board.log().matches("unused images were removed").count();
    let before = told(board);
    board.start_agent().expect("starts again");
    let until = Instant::now() + deadline();
    while told(board) == before {
        assert!(Instant::now() < until, "no image went: {}", board.log());
        std::thread::yield_now();
    }
    let listed = board.run(&["image", "ls"]).expect("lists");
    let names = listed.lines().filter_map(|line| line.strip_prefix("example.test/")?.split(':').next());
    names.map(String::from).collect()
}

#[test]
fn a_full_disk_takes_the_oldest_images_that_nobody_needs() {
    let config = "[image]\ngc_high_percent = 80\ngc_low_percent = 75\npinned = [\"example.test/kept:1\"]\n";
    let mut board = Board::prepare(config).expect("a board");
    board.limit_disk(DISK_BYTES).expect("a small disk");
    board.start_agent().expect("starts");
    // The oldest are needed; of the others the names tell the order.
    let oldest_first = ["runs", "crashes", "kept", "marked", "a-old", "b-old", "c-old", "busybox", "web"];
    for (number, name) in oldest_first[..7].iter().enumerate() {
        // By a byte more each: layers that two have in common free nothing.
        let mut image = Image::laden(&format!("example.test/{name}:1"), IMAGE_BYTES + number).expect("built");
        if *name == "marked" {
            image.config["Labels"] = json!({"coracle.dev/pinned": "true"});
        }
        board.import(&image).expect("imported");
    }
    let of = |name: &str, script: &str| {
        pod(name, script, "").replace("example.test/busybox:1", &format!("example.test/{name}:1"))
    };
    board.apply(&of("runs", SLEEP)).expect("applied");
    board.apply(&of("crashes", "exit 1")).expect("applied");
    board.wait("runs", "running", running).expect("runs");
    board
        .wait("crashes", "waiting to be started again", |p| waiting(p) == "CrashLoopBackOff")
        .expect("waits");

    board.stop_agent().expect("stops");
    age(&board, &oldest_first);
    fill(&board, 83);
    let left = collected(&mut board);
    let expected = ["runs", "crashes", "kept", "marked", "c-old", "busybox", "web"].map(String::from);
    assert_eq!(left, BTreeSet::from(expected), "two were enough, and these the oldest");

    // Now nothing is enough: all goes that may go.
    board.stop_agent().expect("stops");
    age(&board, &oldest_first);
    fill(&board, 95);
    let left = collected(&mut board);
    assert_eq!(left, BTreeSet::from(["runs", "crashes", "kept", "marked"].map(String::from)));
    board.wait("runs", "still running", running).expect("runs");
}
