//! Logs, exec, attach, cp, port-forward and proxy by stock kubectls, to boards that nothing reaches from outside.

use anyhow::{Context, Result, ensure};
use coracle_tests::agent::{Board, deadline, in_namespace};
use coracle_tests::fleet::{Fleet, client};
use coracle_tests::terminal::Terminal;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: boat, labels: {app: boat}}
spec:
  nodeName: board-1
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: example.test/busybox:1
    command: [sh, -c, 'trap exit TERM; for i in 1 2 3; do echo line $i; done; while :; do sleep 1000 & wait; done']
  - name: web
    image: example.test/web:1
    ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: crash, labels: {app: crash}}
spec:
  nodeName: board-1
  automountServiceAccountToken: false
  containers:
  - {name: main, image: 'example.test/busybox:1', command: [sh, -c, 'echo attempt; sleep 0.2; exit 3']}
";

/// A control plane, and a board whose pods run.
fn fleet() -> (Fleet, Board) {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let board = fleet.ready_board("").expect("a board");
    fleet.apply(PODS).expect("applied");
    fleet.wait(&["pod/boat", "--for=condition=Ready"]).expect("runs");
    (fleet, board)
}

/// What a command of kubectl prints, and how it ends.
fn said(fleet: &Fleet, arguments: &[&str]) -> (String, String, i32) {
    let output = fleet.kubectl_with(arguments, "").expect("kubectl starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

/// As [`said`], of a line of words.
fn words(fleet: &Fleet, line: &str) -> (String, String, i32) {
    said(fleet, &line.split(' ').collect::<Vec<_>>())
}

#[test]
fn logs_are_read_as_a_user_reads_them() {
    let (fleet, _board) = fleet();
    let check = |line: &str, expected: &str| {
        let (out, err, code) = words(&fleet, line);
        assert_eq!((out.as_str(), err.as_str(), code), (expected, "", 0), "kubectl {line}");
    };
    let refused = |line: &str, expected: &str| {
        let (out, err, code) = words(&fleet, line);
        assert!(err.contains(expected) && code != 0 && out.is_empty(), "kubectl {line}: {out} {err}");
    };
    check("logs boat -c main --tail=2", "line 2\nline 3\n");
    check("logs boat -c main --limit-bytes=4", "line");
    check("logs -l app=boat -c main --tail=1", "line 3\n");
    check("logs boat -c main --since-time=2999-01-01T00:00:00Z", "");
    let (out, _, _) = words(&fleet, "logs boat --all-containers --prefix --tail=1");
    assert!(out.contains("[pod/boat/main] line 3\n"), "{out}");
    let (out, _, _) = words(&fleet, "logs boat -c main --timestamps --tail=1");
    assert!(out.contains("Z line 3\n") && out.starts_with("20"), "{out}");
    refused("logs boat -c none", "container none is not valid for pod boat");
    refused("logs nothing", "pods \"nothing\" not found");
    refused(
        "logs boat -c main --previous",
        "previous terminated container \"main\" in pod \"boat\" not found",
    );
    refused("get --raw /api/v1/namespaces/default/pods/boat/log", "choose one of: [main web]");
    refused("logs boat -c main --tail=-3", "must be greater than");
    // A container that ended is read by its last attempt, and by the one before.
    let restarted = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1";
    fleet.wait(&["pod/crash", restarted]).expect("restarts");
    check("logs crash --previous", "attempt\n");

    // Followed to the end of the container.
    let mut follow = fleet.kubectl_command(&["logs", "-f", "boat", "-c", "main", "--tail=1"]);
    let mut follow = fleet.spawn(follow.stdout(Stdio::piped())).expect("kubectl starts");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "line 3");
    let (_, err, code) = words(&fleet, "exec boat -c main -- sh -c echo$IFS''later>/proc/1/fd/1");
    assert_eq!((err.as_str(), code), ("", 0));
    assert_eq!(lines.next().expect("a line").expect("text"), "later");
    fleet.kubectl(&["delete", "pod", "boat", "--wait=false"]).expect("deleted");
    assert!(lines.next().is_none(), "the log ends with its container");
    assert!(follow.wait().expect("ends").success());
}

fn exec_and_cp(fleet: &Fleet) {
    let check = |line: &str, expected: (&str, &str, i32)| {
        let (out, err, code) = words(fleet, line);
        assert_eq!((out.as_str(), code), (expected.0, expected.2), "kubectl {line}: {err}");
        assert!(err.contains(expected.1), "kubectl {line}: {err}");
    };
    check("exec boat -c main -- echo ahoy", ("ahoy\n", "", 0));
    check("exec boat -c main -- sh -c exit${IFS}7", ("", "exit code 7", 7));
    check("exec boat -c main -- /none", ("", "no such file", 127));
    check("exec boat -c none -- true", ("", "container none is not valid for pod boat", 1));
    check("exec nothing -- true", ("", "pods \"nothing\" not found", 1));
    // More input and output than all buffers on the way hold, at once.
    let input = "0123456789abcde\n".repeat(64 << 10);
    let output = fleet.kubectl_with(&["exec", "-i", "boat", "-c", "main", "--", "cat"], &input);
    let output = output.expect("kubectl starts");
    assert!(output.status.success() && output.stdout == input.as_bytes(), "{}", output.stdout.len());

    let dir = tempfile::tempdir().expect("a directory");
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    std::fs::write(&there, &input).expect("written");
    let there = there.to_str().expect("text");
    let copied = fleet.kubectl(&["cp", there, "boat:/tmp/file", "-c", "main"]);
    copied.expect("copied into the pod");
    let back_name = back.to_str().expect("text");
    fleet.kubectl(&["cp", "boat:/tmp/file", back_name, "-c", "main"]).expect("copied back");
    assert!(std::fs::read(&back).expect("there") == input.as_bytes());
}

fn a_terminal(fleet: &Fleet) {
    let mut command = fleet.kubectl_command(&["exec", "-ti", "boat", "-c", "main", "--", "sh"]);
    let mut terminal = Terminal::of(&mut command, 33, 99).expect("a terminal");
    let mut kubectl = fleet.spawn(&mut command).expect("kubectl starts");
    drop(command);
    terminal.expect("# ").expect("a prompt");
    // The size comes in a message of its own, which may be later than the prompt.
    terminal.type_in("until [ \"$(stty size)\" = '33 99' ]; do :; done; echo wi''de\n").expect("typed");
    terminal.expect("wide").expect("the terminal's size");
    terminal.resize(44, 111).expect("resized");
    terminal.type_in("until [ \"$(stty size)\" = '44 111' ]; do :; done; echo ag''ain\n").expect("typed");
    terminal.expect("again").expect("the new size");
    // ^C is the shell's, not kubectl's.
    let caught = "sh -c \"trap 'echo cau''ght; exit' INT; echo be''gun; while :; do :; done\"\n";
    terminal.type_in(caught).expect("typed");
    terminal.expect("begun").expect("it runs");
    terminal.type_in("\x03").expect("typed");
    terminal.expect("caught").expect("interrupted");
    terminal.expect("# ").expect("a prompt");
    terminal.type_in("exit 5\n").expect("typed");
    terminal.rest().expect("ends");
    assert_eq!(kubectl.wait().expect("ends").code(), Some(5));
}

fn attach_and_run(fleet: &Fleet) {
    let here = "--overrides={\"spec\":{\"nodeName\":\"board-1\",\"automountServiceAccountToken\":false}}";
    let image = "--image=example.test/busybox:1";
    let script = "read line; echo got $line";
    let arguments = ["run", "asked", "--rm", "-i", image, here, "--restart=Never", "--", "sh", "-c", script];
    let output = fleet.kubectl_with(&arguments, "ahoy\n").expect("kubectl starts");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("got ahoy"), "{out} {}", String::from_utf8_lossy(&output.stderr));
}

/// A port-forward that goes on.
struct Forward {
    kubectl: Child,
    port: u16,
}

impl Forward {
    fn start(fleet: &Fleet, to: &str) -> Result<Forward> {
        let mut command = fleet.kubectl_command(&["port-forward", "boat", to]);
        let mut kubectl = fleet.spawn(command.stdout(Stdio::piped()))?;
        let mut line = String::new();
        let mut out = BufReader::new(kubectl.stdout.take().context("piped")?);
        out.read_line(&mut line)?;
        // It prints a line for each connection, and dies if nobody takes it.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let port = line.split(" -> ").next().and_then(|from| from.rsplit(':').next());
        let port = port.and_then(|port| port.parse().ok()).with_context(|| line.clone())?;
        Ok(Forward { kubectl, port })
    }

    fn get(&self, fleet: &Fleet, path: &str) -> Result<String> {
        in_namespace(fleet.netns(), || get(self.port, path))?
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.kubectl.kill().and_then(|()| self.kubectl.wait()).expect("kubectl ends");
    }
}

fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(deadline()))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn forwards(fleet: &Fleet) {
    let forward = Forward::start(fleet, ":80").expect("forwarded");
    for _ in 0..3 {
        let answer = forward.get(fleet, "/layer.html").expect("an answer");
        assert!(answer.ends_with("from the third layer\n"), "{answer}");
    }
    // Several at once, one of which says nothing for as long as the others talk.
    let idle = in_namespace(fleet.netns(), || TcpStream::connect(("127.0.0.1", forward.port)));
    let idle = idle.expect("in the fleet").expect("connected");
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| forward.get(fleet, "/layer.html"))).collect();
        for one in all {
            let answer = one.join().expect("ends").expect("an answer");
            assert!(answer.ends_with("from the third layer\n"), "{answer}");
        }
    });
    drop(idle);
    // What nobody listens at is told, and the others go on (kubectl 1.32 gives up after such an error; it is the last).
    let nobody = Forward::start(fleet, ":81").expect("forwarded");
    assert_eq!(nobody.get(fleet, "/").unwrap_or_default(), "");
}

#[test]
fn exec_cp_attach_and_port_forward_reach_behind_nat() {
    let (fleet, _board) = fleet();
    exec_and_cp(&fleet);
    a_terminal(&fleet);
    forwards(&fleet);
    attach_and_run(&fleet);
}

#[test]
fn an_old_kubectl_does_so_by_spdy() {
    let (mut fleet, _board) = fleet();
    fleet.use_kubectl(client("kubectl-old").expect("fetched"));
    exec_and_cp(&fleet);
    a_terminal(&fleet);
    forwards(&fleet);
    attach_and_run(&fleet);
}

#[test]
fn the_newest_kubectl_does_so_too() {
    let (mut fleet, _board) = fleet();
    fleet.use_kubectl(client("kubectl-new").expect("fetched"));
    exec_and_cp(&fleet);
    a_terminal(&fleet);
    forwards(&fleet);
    attach_and_run(&fleet);
}

#[test]
fn proxies_reach_pods_services_and_the_kubelet() {
    let (fleet, _board) = fleet();
    let check = |path: &str, expected: &str| {
        let (out, err, code) = said(&fleet, &["get", "--raw", path]);
        assert!(out.contains(expected) && code == 0, "{path}: {out} {err}");
    };
    let refused = |path: &str, expected: &str| {
        let (out, err, code) = said(&fleet, &["get", "--raw", path]);
        assert!(err.contains(expected) && code != 0, "{path}: {out} {err}");
    };
    let pods = "/api/v1/namespaces/default/pods";
    check(&format!("{pods}/boat:80/proxy/layer.html"), "from the third layer");
    check(&format!("{pods}/boat/proxy/layer.html"), "from the third layer");
    refused(&format!("{pods}/boat:81/proxy/"), "Connection refused");
    refused(&format!("{pods}/boat:none/proxy/"), "a port is a number");
    check("/api/v1/nodes/board-1/proxy/healthz", "ok");
    check("/api/v1/nodes/board-1/proxy/pods", "\"boat\"");
    check("/api/v1/nodes/board-1/proxy/metrics", "kubelet_running_pods");
    // What changes the board is for root on it alone.
    refused("/api/v1/nodes/board-1/proxy/coracle/v1/images", "could not find");
    let service = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 8080, targetPort: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 80, protocol: TCP}]
endpoints:
- {addresses: [10.88.0.2], conditions: {ready: true}, targetRef: {kind: Pod, name: boat, namespace: default}}
";
    fleet.apply(service).expect("applied");
    check("/api/v1/namespaces/default/services/web:8080/proxy/layer.html", "from the third layer");
    check("/api/v1/namespaces/default/services/web:http/proxy/layer.html", "from the third layer");
    refused(
        "/api/v1/namespaces/default/services/web:81/proxy/",
        "no service port 81 found for service \"web\"",
    );

    let mut command = fleet.kubectl_command(&["proxy", "--port=0"]);
    let mut kubectl = fleet.spawn(command.stdout(Stdio::piped())).expect("kubectl starts");
    let mut line = String::new();
    let mut out = BufReader::new(kubectl.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("a line");
    let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let ask = |path: &str| {
        in_namespace(fleet.netns(), || get(port, path)).expect("in the fleet").expect("answered")
    };
    assert!(ask("/version").contains("gitVersion"));
    assert!(ask(&format!("{pods}/boat:80/proxy/layer.html")).contains("from the third layer"));
    kubectl.kill().and_then(|()| kubectl.wait()).expect("ends");
}

/// Whether the board answers by its tunnel.
fn reached(fleet: &Fleet) -> Result<()> {
    let until = Instant::now() + deadline();
    loop {
        match fleet.kubectl(&["exec", "boat", "-c", "main", "--", "echo", "here"]) {
            Ok(out) => return ensure_here(&out),
            Err(error) if Instant::now() > until => return Err(error),
            // The board comes back in its own time: its control plane has no event of that for kubectl.
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn ensure_here(out: &str) -> Result<()> {
    ensure!(out == "here", "{out}");
    Ok(())
}

#[test]
fn a_board_that_was_cut_off_is_reached_again() {
    let (mut fleet, mut board) = fleet();
    fleet.kill_control().expect("killed");
    fleet.start_control().expect("started");
    reached(&fleet).expect("after the control plane's crash");
    board.kill_agent().expect("killed");
    let (_, err, code) = words(&fleet, "exec boat -c main -- true");
    assert!(code != 0 && err.contains("error dialing backend"), "{err}");
    board.start_agent().expect("started");
    reached(&fleet).expect("after the agent's crash");
    // Nobody else may be that board.
    let nobody = said(&fleet, &["get", "--raw", "/apis/coracle.dev/v1/nodes/board-1/tunnel"]);
    assert!(nobody.1.contains("cannot get resource \"nodes/tunnel\""), "{}", nobody.1);
}

/// A client that goes away ends what it started, and one that does not read stops nobody else.
#[test]
fn who_leaves_ends_the_process_and_who_does_not_read_hinders_nobody() {
    let (fleet, _board) = fleet();
    let mut command = fleet.kubectl_command(&["exec", "boat", "-c", "main", "--", "sleep", "4321"]);
    let mut kubectl = fleet.spawn(command.stdout(Stdio::null())).expect("kubectl starts");
    let count = |wanted: &str| -> Result<()> {
        let until = Instant::now() + deadline();
        loop {
            let listed = fleet.kubectl(&[
                "exec",
                "boat",
                "-c",
                "main",
                "--",
                "sh",
                "-c",
                "ps | grep -c '[s]leep 4321'; true",
            ])?;
            if listed.trim() == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{listed} instead of {wanted}");
        }
    };
    count("1").expect("started");
    kubectl.kill().and_then(|()| kubectl.wait()).expect("killed");
    count("0").expect("ended with its client");

    let mut slow: Vec<Child> = (0..3)
        .map(|_| {
            let arguments = ["exec", "boat", "-c", "main", "--", "cat", "/dev/zero"];
            let mut command: Command = fleet.kubectl_command(&arguments);
            fleet.spawn(command.stdout(Stdio::piped()).stderr(Stdio::null())).expect("kubectl starts")
        })
        .collect();
    for child in &mut slow {
        let mut some = [0; 1024];
        child.stdout.as_mut().expect("piped").read_exact(&mut some).expect("it has begun");
    }
    reached(&fleet).expect("beside those that do not read");
    for child in &mut slow {
        child.kill().and_then(|()| child.wait()).expect("killed");
    }
}
