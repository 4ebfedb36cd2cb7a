//! Boards as nodes of a cluster: the real agent against the real control plane, driven by a stock kubectl.

use anyhow::{Context, Result};
use coracle_tests::agent::{Board, in_namespace};
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::{SLEEP, first, pod, running};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

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
    board.until("the node is registered", || {
        Ok(fleet.kubectl(&["get", "nodes", "-o", "name"])?.contains("node/board-1").then_some(()))
    })?;
    fleet.wait(&["node/board-1", "--for=condition=Ready"]).with_context(|| board.log()).map(drop)
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

#[test]
fn an_offline_board_runs_its_pods_and_is_adopted_when_the_api_is_back() {
    let (mut fleet, mut board) = start("").expect("a cluster");
    fleet.apply(&bound("web", SLEEP, "")).expect("applied");
    let before = ready(&fleet, &board, "web").expect("runs");

    // The server is killed: nothing happens to the pod, nor with another agent.
    fleet.kill_control().expect("killed");
    board.kill_agent().expect("killed");
    board.start_agent().expect("starts without its server");
    let alone = board.wait("web", "running", running).expect("runs on");
    assert_eq!(identity(&alone), identity(&before));
    fleet.start_control().expect("serves again");
    registered(&fleet, &board).expect("found again");
    // A status that is told after the server was away shows that the board is connected again.
    fleet.kubectl(&["label", "pod", "web", "seen=again"]).expect("labelled");
    board.wait("web", "labelled", |pod| pod["metadata"]["labels"]["seen"] == "again").expect("connected");
    assert_eq!(identity(&fleet.get(&["pod/web"]).expect("the pod")), identity(&before));

    // The board is switched off and on with no server in reach.
    fleet.kill_control().expect("killed");
    let netns = board.netns().expect("its network").try_clone().expect("a handle");
    board.power_cycle().expect("switched off and on");
    board.use_netns(netns);
    board.start_agent().expect("starts without its server");
    let rebooted = board.wait("web", "running again", running).expect("comes back");
    assert_eq!(rebooted["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(first(&rebooted)["restartCount"], 1);
    fleet.start_control().expect("serves again");
    let told = board
        .until("what happened offline is told", || {
            let pod = fleet.get(&["pod/web"])?;
            Ok((first(&pod)["restartCount"] == 1 && running(&pod)).then_some(pod))
        })
        .expect("told");
    assert_eq!(identity(&told), identity(&rebooted), "the same pod, the same containers");
    assert_eq!(told["status"]["startTime"], before["status"]["startTime"]);
}

#[test]
fn a_pod_that_the_api_no_longer_has_is_torn_down() {
    let (fleet, mut board) = start("").expect("a cluster");
    for name in ["one", "two"] {
        fleet.apply(&bound(name, SLEEP, "")).expect("applied");
        ready(&fleet, &board, name).expect("runs");
    }
    let force = |name: &str| fleet.kubectl(&["delete", "pod", name, "--force", "--grace-period=0"]);
    force("one").expect("deleted");
    board.wait_gone("one").expect("torn down");
    board.kill_agent().expect("killed");
    force("two").expect("deleted");
    board.start_agent().expect("starts");
    board.wait_gone("two").expect("torn down, though nobody saw it deleted");
    let census = board.census().expect("counted");
    assert_eq!(census.processes, 0, "{census:?}");
}

#[test]
fn a_pod_of_the_board_has_a_mirror_pod() {
    let (fleet, board) = start("").expect("a cluster");
    board.manifest("own.yaml", &pod("own", SLEEP, "")).expect("written");
    let mirror =
        board.until("the mirror pod is there", || Ok(fleet.get(&["pod/own-board-1"]).ok())).expect("there");
    let mirror_uid = mirror["metadata"]["uid"].clone();
    let local = board.wait("own", "running", running).expect("runs");
    let shown = ready(&fleet, &board, "own-board-1").expect("told to run");
    assert_eq!(shown["metadata"]["annotations"]["kubernetes.io/config.mirror"], local["metadata"]["uid"]);
    assert_eq!(shown["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(identity(&shown)[1..], identity(&local)[1..]);

    fleet.kubectl(&["delete", "pod", "own-board-1", "--wait=false"]).expect("deleted");
    board
        .until("another mirror pod", || {
            let pod = fleet.get(&["pod/own-board-1"]).ok();
            Ok(pod.filter(|pod| pod["metadata"]["uid"] != mirror_uid && running(pod)))
        })
        .expect("made anew");
    let still = board.wait("own", "running", running).expect("runs on");
    assert_eq!(identity(&still), identity(&local), "the pod itself is the board's");

    // A pod of the API may not take the place of the board's own.
    fleet.apply(&bound("own", SLEEP, "")).expect("applied");
    let refused = board
        .until("refused", || {
            let pod = fleet.get(&["pod/own"])?;
            Ok((pod["status"]["phase"] == "Failed").then_some(pod))
        })
        .expect("refused");
    assert_eq!(refused["status"]["reason"], "NameConflict");
    fleet.kubectl(&["delete", "pod", "own"]).expect("deleted");

    board.remove_manifest("own.yaml").expect("removed");
    fleet.wait(&["pod/own-board-1", "--for=delete"]).expect("the mirror goes with the pod");
}

/// `kubectl` by itself with what it is to read; the control plane knows the board's own pods by their mirror pods alone.
#[test]
fn a_mirror_pod_leads_to_the_pod_of_the_board() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let board = fleet.ready_board("").expect("a board");
    let own = |name: &str| {
        let script = format!(
            "mkdir /www; echo {name} > /www/index.html; httpd -p 8080 -h /www; trap 'exit 0' TERM; while :; do echo tick of {name}; sleep 1; done"
        );
        pod(name, &script, "")
    };
    // The second one's name is that of the first one's mirror pod.
    board.manifest("own.yaml", &own("own")).expect("written");
    board.manifest("other.yaml", &own("own-board-1")).expect("written");
    let mirrors = ["own-board-1", "own-board-1-board-1"];
    for mirror in mirrors {
        board.until("the mirror pod is there", || Ok(fleet.get(&["pod", mirror]).ok())).expect("there");
        fleet.wait(&[&format!("pod/{mirror}"), "--for=condition=Ready"]).expect("runs");
    }
    for (mirror, name) in mirrors.into_iter().zip(["own", "own-board-1"]) {
        let said = |arguments: &[&str]| fleet.kubectl(arguments).expect("answers");
        assert_eq!(said(&["logs", mirror, "--tail", "1"]), format!("tick of {name}"));
        assert_eq!(said(&["exec", mirror, "--", "cat", "/www/index.html"]), name);
        let proxied = format!("/api/v1/namespaces/default/pods/{mirror}:8080/proxy/");
        assert_eq!(said(&["get", "--raw", &proxied]), name);
        let mut forward = fleet.kubectl_command(&["port-forward", mirror, ":8080"]);
        let mut forward = fleet.spawn(forward.stdout(Stdio::piped())).expect("starts");
        let mut line = String::new();
        // It prints a line for each connection, and dies if nobody takes it.
        let mut out = BufReader::new(forward.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("says where");
        let port =
            line.split(" -> ").next().and_then(|text| text.rsplit(':').next()).expect("a port").to_string();
        let answer = in_namespace(fleet.netns(), || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}"))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        });
        assert!(answer.expect("in there").expect("answers").ends_with(&format!("{name}\n")));
        forward.kill().and_then(|()| forward.wait()).expect("ended");
        let mut attach = fleet.kubectl_command(&["attach", mirror]);
        let mut attach = fleet.spawn(attach.stdout(Stdio::piped())).expect("starts");
        let mut line = String::new();
        BufReader::new(attach.stdout.take().expect("piped")).read_line(&mut line).expect("hears it");
        attach.kill().and_then(|()| attach.wait()).expect("ended");
        assert_eq!(line, format!("tick of {name}\n"));
    }
    // By its own name the API knows no such pod, and neither does the kubelet.
    let raw = "/api/v1/nodes/board-1/proxy/containerLogs/default/own/main";
    let refused = fleet.kubectl(&["get", "--raw", raw]).expect_err("is not there").to_string();
    assert!(refused.contains("NotFound"), "{refused}");
}

#[test]
fn what_cannot_run_is_told_and_events_are_told() {
    let (fleet, board) = start("").expect("a cluster");
    fleet.apply(&bound("odd", SLEEP, "  runtimeClassName: kata\n")).expect("applied");
    let odd = board
        .until("refused", || {
            let pod = fleet.get(&["pod/odd"])?;
            Ok((pod["status"]["phase"] == "Failed").then_some(pod))
        })
        .expect("refused");
    assert_eq!(odd["status"]["reason"], "UnexpectedAdmissionError");
    assert!(
        odd["status"]["message"].as_str().is_some_and(|m| m.contains("spec.runtimeClassName")),
        "{odd:#}"
    );

    fleet.apply(&bound("crash", "exit 3", "  restartPolicy: Never\n")).expect("applied");
    let crash = board
        .until("failed", || {
            let pod = fleet.get(&["pod/crash"])?;
            Ok((pod["status"]["phase"] == "Failed").then_some(pod))
        })
        .expect("failed");
    assert_eq!(first(&crash)["state"]["terminated"]["exitCode"], 3);
    let events = board.until("its events", || {
        let events = fleet.kubectl(&["events", "--for", "pod/crash", "-o", "jsonpath={.items[*].reason}"])?;
        Ok(["Pulled", "Created", "Started"].iter().all(|reason| events.contains(reason)).then_some(events))
    });
    events.expect("told");
    let described = fleet.kubectl(&["describe", "pod", "crash"]).expect("described");
    assert!(described.contains("Started container main"), "{described}");
}

#[test]
fn what_a_pod_names_comes_from_the_api_and_is_there_offline() {
    let (mut fleet, mut board) = start("").expect("a cluster");
    let config_map = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{level: {value}}}\n")
    };
    fleet.apply(&config_map("one")).expect("applied");
    // It waits for the secret, which comes later.
    let script = "trap 'exit 0' TERM; echo $LEVEL $PASSWORD; while :; do sleep 1; done";
    let more = "    env:\n    - {name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}\n    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: door, key: word}}}\n    volumeMounts:\n    - {name: files, mountPath: /etc/settings}\n    - {name: token, mountPath: /var/run/token}\n";
    let volumes = "  serviceAccountName: default\n  volumes:\n  - {name: files, configMap: {name: settings}}\n  - {name: token, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 3600}}]}}\n";
    fleet.apply(&(bound("reader", script, volumes) + more)).expect("applied");
    board
        .until("it waits for its secret", || {
            let pod = fleet.get(&["pod/reader"])?;
            Ok((pod["status"]["phase"] == "Pending" && pod["status"]["startTime"].is_string()).then_some(()))
        })
        .expect("waits");
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: door}\nstringData: {word: sesame}\n";
    fleet.apply(secret).expect("applied");
    ready(&fleet, &board, "reader").expect("runs");
    let inside = |board: &Board, command: &str| board.run(&["exec", "reader", "--", "sh", "-c", command]);
    assert_eq!(board.run(&["logs", "reader"]).expect("a log").trim(), "one sesame");
    let token = inside(&board, "cat /var/run/token/token").expect("a token");
    assert_eq!(token.split('.').count(), 3, "a JWT");

    fleet.apply(&config_map("two")).expect("applied");
    board
        .until("the file follows", || Ok((inside(&board, "cat /etc/settings/level")? == "two").then_some(())))
        .expect("follows");

    fleet.kill_control().expect("killed");
    let netns = board.netns().expect("its network").try_clone().expect("a handle");
    board.power_cycle().expect("switched off and on");
    board.use_netns(netns);
    board.start_agent().expect("starts without its server");
    board.wait("reader", "running again", running).expect("has what it needs");
    assert_eq!(board.run(&["logs", "reader"]).expect("a log").trim(), "two sesame");
    assert_eq!(inside(&board, "cat /etc/settings/level").expect("a file"), "two");
    fleet.start_control().expect("serves again");
    fleet.apply(&config_map("three")).expect("applied");
    board
        .until("the file follows", || {
            Ok((inside(&board, "cat /etc/settings/level")? == "three").then_some(()))
        })
        .expect("follows again");
    fleet.kubectl(&["delete", "pod", "reader"]).expect("deleted");
}
