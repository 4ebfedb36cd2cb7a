//! What `coracle agent --root DIR` promises: everything below DIR, several agents on one machine.

use coracle_tests::agent::{Board, binary};
use coracle_tests::census::everything_below;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Output};

const SLEEPER: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: sleeper}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {name: main, image: 'example.test/busybox:1', command: [sleep, '1000']}\n";

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
    let output = command.output().expect("runs");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
    assert!(!mounts.contains(dir.path().to_str().expect("UTF-8")), "{verb} left a mount");
    output
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
    // Who ends pid 1 may be gone with it.
    if let Err(error) = board.run(&["exec", "sleeper", "--", "kill", "1"]) {
        assert!(error.to_string().contains("exit code 137"), "{error}");
    }
    let again = |pod: &serde_json::Value| {
        let container = &pod["status"]["containerStatuses"][0];
        container["restartCount"] == 1 && container["state"]["running"].is_object()
    };
    board.wait("sleeper", "running again", again).expect("is restarted");
}

fn named(name: &str) -> String {
    SLEEPER.replace("sleeper", name)
}

/// What somebody was just writing was read when another file changed: a manifest cut off to be written anew ended its
/// pods. A link that was made was not seen at all, and nothing any more once the directory had been replaced.
#[test]
fn manifests_count_once_they_are_whole_however_they_come() {
    let board = Board::start("").expect("a board");
    let manifests = board.root().join("manifests");
    std::fs::write(manifests.join("first.yaml"), named("first")).expect("written");
    let uid = |pod: serde_json::Value| pod["metadata"]["uid"].clone();
    let first = uid(board.wait("first", "running", running).expect("runs"));
    let mut anew = File::create(manifests.join("first.yaml")).expect("opened");
    anew.write_all(b"# to be go").expect("written");
    let mut half = File::create(manifests.join("half.yaml")).expect("opened");
    half.write_all(named("half").as_bytes()).expect("written");
    std::fs::write(manifests.join("second.yaml"), named("second")).expect("written");
    board.wait("second", "running", running).expect("runs");
    let list = board.get("/pods").expect("lists")["items"].as_array().cloned().unwrap_or_default();
    let names: Vec<_> = list.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["first", "second"], "half-written files do not count");
    assert_eq!(list[0]["metadata"]["deletionTimestamp"], serde_json::Value::Null);
    anew.write_all(format!("ne on\n{}", named("first")).as_bytes()).expect("written");
    drop((anew, half));
    board.wait("half", "running", running).expect("runs once it is closed");
    assert_eq!(uid(board.wait("first", "running", running).expect("runs")), first, "the same pod as before");

    let aside = board.root().join("linked");
    std::fs::write(&aside, named("hard")).expect("written");
    std::fs::hard_link(&aside, manifests.join("hard.yaml")).expect("linked");
    board.wait("hard", "running", running).expect("a hard link is seen");
    std::fs::write(aside.with_extension("soft"), named("soft")).expect("written");
    std::os::unix::fs::symlink(aside.with_extension("soft"), manifests.join("soft.yaml")).expect("linked");
    board.wait("soft", "running", running).expect("a symbolic link is seen");

    let next = board.root().join("next");
    std::fs::create_dir(&next).expect("made");
    std::fs::write(next.join("first.yaml"), named("first")).expect("written");
    std::fs::rename(&manifests, board.root().join("before")).expect("moved away");
    std::fs::rename(&next, &manifests).expect("moved into its place");
    board.wait_gone("half").expect("what is not in it ends");
    std::fs::write(manifests.join("last.yaml"), named("last")).expect("written");
    board.wait("last", "running", running).expect("the new one is watched");
    assert_eq!(uid(board.wait("first", "running", running).expect("runs")), first, "the same pod as before");
}

/// Whoever changes a manifest, or applies another, gets another pod: a Pod's spec does not change.
#[test]
fn a_changed_manifest_replaces_its_pod_in_yaml_and_in_json() {
    let board = Board::start("").expect("a board");
    let echo = |name: &str, word: &str| {
        named(name).replace("[sleep, '1000']", &format!("[sh, -c, 'echo {word}; exec sleep 1000']"))
    };
    let json = |word: &str| {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "json"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "main", "image": "example.test/busybox:1",
                "command": ["sh", "-c", format!("echo {word}; exec sleep 1000")],
            }]},
        });
        pod.to_string()
    };
    let says = |name: &str, word: &str| {
        let text = |_: &serde_json::Value| board.run(&["logs", name]).is_ok_and(|log| log.trim() == word);
        board.wait(name, word, |pod| running(pod) && text(pod)).expect("runs")
    };
    let uid = |pod: &serde_json::Value| pod["metadata"]["uid"].as_str().map(str::to_string);
    board.manifest("yaml.yaml", &echo("yaml", "one")).expect("written");
    board.manifest("json.json", &json("one")).expect("written");
    board.apply(&echo("applied", "one")).expect("applied");
    let before = ["yaml", "json", "applied"].map(|name| uid(&says(name, "one")));
    board.manifest("yaml.yaml", &echo("yaml", "two")).expect("written");
    board.manifest("json.json", &json("two")).expect("written");
    board.apply(&echo("applied", "two")).expect("applied");
    let after = ["yaml", "json", "applied"].map(|name| uid(&says(name, "two")));
    for (one, other) in before.iter().zip(&after) {
        assert!(one.is_some() && one != other, "{before:?} {after:?}");
    }
    for name in ["yaml.yaml", "json.json"] {
        board.remove_manifest(name).expect("removed");
    }
    board.wait_gone("yaml").expect("gone");
    board.wait_gone("json").expect("gone");
}

/// What a card does to a file: the agent sets the store aside, says so, and runs what the export still knows.
#[test]
fn a_board_whose_store_is_damaged_runs_its_pods_from_the_export() {
    let mut board = Board::start("").expect("a board");
    board.apply(SLEEPER).expect("applied");
    board.wait("sleeper", "running", running).expect("runs");
    board.power_cycle().expect("off");
    let files: Vec<_> =
        everything_below(&board.root().join("store")).into_iter().filter(|path| path.is_file()).collect();
    for file in &files {
        let length = std::fs::metadata(file).expect("there").len();
        std::fs::write(file, vec![0xa5; usize::try_from(length).expect("small")]).expect("damaged");
    }
    assert!(!files.is_empty(), "a store has files");
    board.start_agent().expect("starts all the same");
    board.wait("sleeper", "running", running).expect("runs");
    assert!(board.log().contains("the store was damaged"), "{}", board.log());
    let aside = std::fs::read_dir(board.root()).expect("lists").filter_map(Result::ok);
    assert!(aside.into_iter().any(|e| e.file_name().to_string_lossy().contains("damaged")), "it is kept");
}

/// At whatever moment: on the way up of a pod, on its way down, in between.
#[test]
fn an_agent_that_is_killed_at_any_moment_leaves_nothing_of_a_pod_behind() {
    let mut board = Board::start("").expect("a board");
    let before = board.census().expect("counted");
    let init = "\n  initContainers: [{name: init, image: 'example.test/busybox:1', command: ['true']}]\n  volumes: [{name: m, emptyDir: {medium: Memory}}]\n  containers:";
    let text = named("boat")
        .replace("\n  containers:", init)
        .replace("1000']", "1000'], volumeMounts: [{name: m, mountPath: /m}]");
    for way in ["up", "down"] {
        for step in 0..12 {
            // A pod is up within some 40 ms here, and down within as many.
            let moment = std::time::Duration::from_millis(step * 5);
            board.manifest("boat.yaml", &text).expect("written");
            if way == "down" {
                board.wait("boat", "running", running).expect("runs");
                board.remove_manifest("boat.yaml").expect("removed");
            }
            std::thread::sleep(moment);
            board.kill_agent().expect("killed");
            if way == "up" {
                board.remove_manifest("boat.yaml").expect("removed");
            }
            board.start_agent().expect("starts again");
            board.wait_gone("boat").expect("gone");
            assert_eq!(board.census().expect("counted"), before, "killed {moment:?} into its way {way}");
        }
    }
}
