//! Two control planes on one etcd, and a board that is connected to the first: it is reached through the second as well.

use anyhow::{Context, Result, ensure};
use coracle_tests::agent::{Board, binary, deadline, in_namespace};
use coracle_tests::fleet::{ADDRESS, Fleet, PORT, SECOND_PORT};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: boat}
spec:
  nodeName: board-1
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: example.test/busybox:1
    command: [sh, -c, 'trap exit TERM; echo ahoy; while :; do sleep 1000 & wait; done']
  - name: web
    image: example.test/web:1
";
/// Larger than every buffer on the way.
const BYTES: usize = 4 << 20;

fn start() -> Result<(Fleet, Board)> {
    let mut fleet = Fleet::start_two()?;
    let board = fleet.ready_board("")?;
    fleet.apply(POD)?;
    fleet.wait(&["pod/boat", "--for=condition=Ready"])?;
    Ok((fleet, board))
}

/// Until it works: what a control plane knows of the others, it learns in a moment.
fn until(what: &str, mut ask: impl FnMut() -> Result<String>) -> String {
    let end = std::time::Instant::now() + deadline();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(std::time::Instant::now() < end, "{what}: {error:#}"),
        }
    }
}

#[test]
fn the_other_control_plane_has_the_board_too() {
    let (mut fleet, _board) = start().expect("two control planes and a board");
    let leases =
        ["get", "leases", "-n", "kube-system", "-l", "apiserver.kubernetes.io/identity=kube-apiserver", "-o"];
    let addresses =
        [&leases[..], &["jsonpath={.items[*].metadata.annotations.coracle\\.dev/peer-address}"]].concat();
    until("both are announced", || {
        let found = fleet.kubectl(&addresses)?;
        let both = [PORT, SECOND_PORT].iter().all(|port| found.contains(&format!("{ADDRESS}:{port}")));
        ensure!(both, "{found}");
        Ok(found)
    });
    // One that is not there, and one that is no control plane, keep nobody from the one that is.
    for (name, address) in
        [("apiserver-dead", format!("{ADDRESS}:1")), ("apiserver-false", format!("{ADDRESS}:2379"))]
    {
        fleet
            .apply(&format!("apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata:\n  name: {name}\n  namespace: kube-system\n  labels: {{apiserver.kubernetes.io/identity: kube-apiserver}}\n  annotations: {{coracle.dev/peer-address: '{address}'}}\n"))
            .expect("planted");
    }
    assert_eq!(fleet.kubectl_second(&["logs", "boat", "-c", "main"]).expect("the log"), "ahoy");
    let exec = ["exec", "boat", "-c", "main", "--"];
    let echo = fleet.kubectl_second(&[&exec[..], &["sh", "-c", "echo $((6*7)); exit 0"]].concat());
    assert_eq!(echo.expect("entered"), "42");
    let server = format!("--server=https://{ADDRESS}:{SECOND_PORT}");
    let script = format!("head -c {BYTES} | sha256sum | cut -c 1-64");
    let count = [&[server.as_str()], &exec[..1], &["-i"], &exec[1..], &["sh", "-c", &script]].concat();
    let input = "coracle ".repeat(BYTES / 8);
    let output = fleet.kubectl_with(&count, &input).expect("run");
    let expected = coracle_tests::image::digest(input.as_bytes()).replace("sha256:", "");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "all of it came, in order");
    assert_eq!(
        fleet.kubectl_second(&["get", "--raw", "/api/v1/nodes/board-1/proxy/healthz"]).expect("asked"),
        "ok"
    );

    let mut command = fleet.kubectl_command(&[&server, "port-forward", "boat", ":80"]);
    let mut kubectl = fleet.spawn(command.stdout(Stdio::piped())).expect("started");
    let mut line = String::new();
    let mut out = BufReader::new(kubectl.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("a line");
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    let get = || -> Result<String> {
        let port: u16 =
            line.split(" -> ").next().and_then(|from| from.rsplit(':').next()).context("a port")?.parse()?;
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(deadline()))?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = in_namespace(fleet.netns(), get).expect("inside");
    kubectl.kill().and_then(|()| kubectl.wait()).expect("kubectl ends");
    assert!(answer.expect("forwarded").starts_with("HTTP/1.0 200"));

    // Who had the board is gone, and what is said then is why; when it is back, so is the board.
    fleet.kill_control().expect("killed");
    let error = fleet.kubectl_second(&["logs", "boat", "-c", "main"]).expect_err("nobody has the board");
    assert!(error.to_string().contains("error dialing backend"), "{error:#}");
    fleet.start_control().expect("serves again");
    until("the board is reached again", || fleet.kubectl_second(&["logs", "boat", "-c", "main"]));
}

#[test]
fn nobody_but_a_control_plane_is_relayed() {
    let (fleet, board) = start().expect("two control planes and a board");
    let path = "/apis/coracle.dev/v1/nodes/board-1/relay";
    let refused = |what: &str, flags: &[&str]| {
        let server = format!("--server=https://{ADDRESS}:{PORT}");
        let error =
            fleet.kubectl(&[&[server.as_str(), "get", "--raw", path], flags].concat()).expect_err(what);
        let said = error.to_string().to_lowercase();
        assert!(said.contains("forbidden") || said.contains("unauthorized"), "{what}: {said}");
    };
    refused("the administrator", &[]);
    let like = ["--as=kube-apiserver-kubelet-client", "--as-group=system:masters"];
    refused("who acts as a control plane", &like);
    let credentials = board.root().join("cluster");
    let config = fleet.data().join("as.conf");
    let user = |lines: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'https://{ADDRESS}:{PORT}', certificate-authority: {}/ca.crt}}\nusers:\n- name: u\n  user: {{{lines}}}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\ncurrent-context: c\n",
            credentials.display()
        );
        std::fs::write(&config, text).expect("written");
        format!("--kubeconfig={}", config.display())
    };
    let pem = credentials.join("client.pem").display().to_string();
    let as_board = user(&format!("client-certificate: {pem}, client-key: {pem}"));
    refused("the board itself", &[&as_board]);
    refused("nobody", &[&user("token: one-that-is-nobodys")]);
    // The right name in a certificate of a user's, without the group that is signed for nobody.
    let named = fleet.data().join("named.conf");
    let mut create = Command::new(binary("coracle-control").expect("built"));
    create
        .args(["kubeconfig", "create", "--user", "kube-apiserver-kubelet-client", "--data-dir"])
        .arg(fleet.data());
    create.arg("--server").arg(fleet.url()).arg("--output").arg(&named);
    assert!(create.status().expect("started").success());
    refused("a user of that name", &[&format!("--kubeconfig={}", named.display())]);
}
