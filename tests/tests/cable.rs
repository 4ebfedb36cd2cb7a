//! A cable that is pulled while pods run and are changed, and put back: nothing is started twice, and all that happened
//! is told.

use coracle_tests::agent::{Board, deadline};
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::{SLEEP, pod};
use serde_json::{Value, json};
use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

fn containers(board: &Board) -> Vec<(String, Value, Value)> {
    let list = board.get("/pods").expect("pods");
    let identity = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_string();
        (name, status["containerID"].clone(), status["restartCount"].clone())
    };
    list["items"].as_array().into_iter().flatten().map(identity).collect()
}

#[test]
fn a_cut_cable_stops_nothing_and_all_is_told_when_it_is_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("control.toml");
    std::fs::write(&config, "node_monitor_grace_seconds = 8\n").expect("written");
    let config = config.to_str().expect("a path in UTF-8");
    let mut fleet = Fleet::start(&["--config", config]).expect("a control plane");
    let board = fleet.ready_board("[cluster]\nlease_renew_seconds = 2\n").expect("a board");
    let bound =
        |name: &str, script: &str| pod(name, script, "  nodeName: board-1\n  restartPolicy: OnFailure\n");
    let waits = "trap 'exit 0' TERM; while [ ! -e /go ]; do sleep 0.2; done; echo went; exit 0";
    for text in [bound("stays", SLEEP), bound("ends", waits), bound("leaves", SLEEP)] {
        fleet.apply(&text).expect("applied");
    }
    for name in ["pod/stays", "pod/ends", "pod/leaves"] {
        fleet.wait(&[name, "--for=condition=Ready"]).expect("runs");
    }
    let mut before = containers(&board);
    let mut follow = fleet.kubectl_command(&["logs", "-f", "stays"]);
    let mut follow = fleet.spawn(follow.stdout(Stdio::piped()).stderr(Stdio::piped())).expect("starts");
    let mut first = [0; 3];
    follow.stdout.as_mut().expect("piped").read_exact(&mut first).expect("the first line");
    assert_eq!(&first, b"up\n");

    fleet.cut(1).expect("cut");
    // On the board things go on; in the API, too.
    board.run(&["exec", "ends", "--", "touch", "/go"]).expect("let go");
    board.wait("ends", "succeeded", |pod| pod["status"]["phase"] == "Succeeded").expect("succeeds unseen");
    fleet.kubectl(&["delete", "pod", "leaves", "--wait=false"]).expect("deleted");
    fleet.kubectl(&["annotate", "pod", "stays", "changed=meanwhile"]).expect("annotated");
    fleet.apply(&bound("comes", SLEEP)).expect("applied");
    let patch = json!({"spec": {"activeDeadlineSeconds": 100_000}}).to_string();
    fleet.kubectl(&["patch", "pod", "stays", "-p", &patch]).expect("patched");
    fleet.wait(&["node/board-1", "--for=condition=Ready=Unknown"]).expect("seen to be silent");
    assert_eq!(
        fleet.kubectl(&["get", "pod", "ends", "-o", "jsonpath={.status.phase}"]).expect("a phase"),
        "Running"
    );
    assert_eq!(containers(&board).len(), 3, "nobody told the board of anything");
    // Who followed a log is told that it has ended, and does not wait for ever.
    let end = Instant::now() + deadline();
    let ended = loop {
        if let Some(status) = follow.try_wait().expect("asked") {
            break status;
        }
        assert!(Instant::now() < end, "the log is followed for ever");
        std::thread::yield_now();
    };
    let mut said = String::new();
    follow.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
    assert!(!said.contains("panic"), "{ended} {said}");

    fleet.mend(1).expect("mended");
    fleet.wait(&["node/board-1", "--for=condition=Ready"]).expect("heard of again");
    fleet.wait(&["pod/ends", "--for=jsonpath={.status.phase}=Succeeded"]).expect("told");
    fleet.wait(&["pod/leaves", "--for=delete"]).expect("gone");
    for name in ["pod/stays", "pod/comes"] {
        fleet.wait(&[name, "--for=condition=Ready"]).expect("runs");
    }
    let mut after = containers(&board);
    after.retain(|(name, ..)| name != "comes");
    before.retain(|(name, ..)| name != "leaves");
    assert_eq!(after, before, "no container was started anew");
    let here = board.get("/pods").expect("pods");
    let stays = here["items"].as_array().into_iter().flatten().find(|p| p["metadata"]["name"] == "stays");
    assert_eq!(stays.expect("there")["metadata"]["annotations"]["changed"], "meanwhile");
    let said =
        board.until("the tunnel is back", || Ok(fleet.kubectl(&["logs", "stays"]).ok())).expect("logs");
    assert_eq!(said, "up", "one start, one line");
    assert_eq!(fleet.kubectl(&["exec", "stays", "--", "echo", "hello"]).expect("enters"), "hello");
}
