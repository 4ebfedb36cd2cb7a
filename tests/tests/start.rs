//! Starting the agent where it must not: each refusal is one line and has its own exit code, and nothing is changed.

use coracle_store::{Batch, Record, Store};
use coracle_tests::agent::{Board, binary};
use serde::{Deserialize, Serialize};

/// A pod as some later version will keep it.
#[derive(Serialize, Deserialize)]
struct FuturePod(u64);

impl Record for FuturePod {
    const KIND: &'static str = "pod";
    const VERSION: u16 = 9;
    const EXPORTED: bool = true;
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let mut board = Board::start("").expect("a board");
    board
        .apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: 'example.test/busybox:1', command: [sleep, '1000']}]}\n")
        .expect("applied");
    board.wait("p", "running", |pod| pod["status"]["phase"] == "Running").expect("runs");
    board.stop_agent().expect("stops");
    let dir = board.root().join("store");
    let change = |make: &dyn Fn(&mut Batch)| {
        let store = Store::open(&dir, None).expect("opens").store;
        let mut batch = Batch::new();
        make(&mut batch);
        store.commit(batch).expect("commits");
    };
    change(&|batch| batch.put("future", &FuturePod(1)));

    let refused = format!("{:#}", board.start_agent().expect_err("refused"));
    assert!(refused.contains("exit status: 6"), "{refused}");
    assert!(refused.contains("was written by a newer version of coracle"), "{refused}");

    change(&|batch| batch.delete::<FuturePod>("future"));
    board.start_agent().expect("starts");
    let pod = board.wait("p", "there as before", |pod| pod["status"]["phase"] == "Running").expect("adopted");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
}

#[test]
fn wrong_configuration_and_a_second_agent_have_exit_codes_of_their_own() {
    let board = Board::start("").expect("a board");
    let config = board.root().join("broken.toml");
    std::fs::write(&config, "name = \"x\"\nnonsense = 1\n").expect("written");
    let config = config.to_str().expect("UTF-8");
    let check = |arguments: &[&str], code: i32, part: &str| {
        let output = board.coracle(arguments).expect("runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part) && said.trim().lines().count() == 1, "{arguments:?}: {said}");
    };
    check(&["agent", "--config", config], 3, "broken.toml:2:");
    check(&["agent"], 5, "another coracle agent uses");
    check(&["teardown"], 5, "another coracle agent uses");
}

/// Containers that start at once compiled one profile by one temporary name, and all but the first failed.
#[test]
fn helpers_that_compile_one_profile_at_once_do_not_meet() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("default.bpf");
    for round in 0..5 {
        let helpers: Vec<_> = (0..8)
            .map(|_| {
                let mut helper = std::process::Command::new(binary("coracle").expect("built"));
                helper.args(["rt", "seccomp", "default:a80425fb"]).arg(&out).spawn().expect("starts")
            })
            .collect();
        for mut helper in helpers {
            assert!(helper.wait().expect("ends").success(), "round {round}");
        }
        std::fs::remove_file(&out).expect("one is there");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0, "nothing else is");
    }
}
