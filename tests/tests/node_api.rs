//! The node API as the kubelet's: raw HTTP and WebSocket on the Unix socket, and what a hostile client may send.

use coracle_tests::agent::{Board, deadline};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: boat}\nspec:\n  containers:\n  - {name: main, image: 'example.test/busybox:1', command: [sh, -c, 'for i in 1 2 3; do echo line $i; done; sleep 1000']}\n";

fn board() -> Board {
    let board = Board::start("").expect("a board");
    board.apply(POD).expect("applied");
    board.wait("boat", "running", |pod| pod["status"]["phase"] == "Running").expect("runs");
    board
}

fn connect(board: &Board) -> UnixStream {
    let stream = UnixStream::connect(board.root().join("run/coracle.sock")).expect("connects");
    stream.set_read_timeout(Some(deadline())).expect("set");
    stream
}

/// Head and body of an answer.
fn ask(board: &Board, request: &str) -> (String, String) {
    let mut stream = connect(board);
    stream.write_all(format!("{request}\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.into())
}

#[test]
fn paths_methods_and_types_are_the_kubelets() {
    let board = board();
    let check = |request: &str, code: u16, content_type: &str, expected: &str| {
        let (head, body) = ask(&board, &format!("{request} HTTP/1.1"));
        assert!(head.starts_with(&format!("http/1.1 {code} ")), "{request}: {head}");
        assert!(head.contains(&format!("content-type: {content_type}")), "{request}: {head}");
        assert!(body.contains(expected), "{request}: {body}");
        body
    };
    check("GET /healthz", 200, "text/plain", "ok");
    check("GET /pods", 200, "application/json", "\"kind\":\"PodList\"");
    // Prometheus 3 takes nothing whose type it does not know.
    let metrics = check("GET /metrics", 200, "text/plain; version=0.0.4", "kubelet_running_pods 1\n");
    assert!(metrics.contains("# TYPE pod_cpu_usage_seconds_total counter\n"), "{metrics}");
    check("GET /nothing", 404, "application/json", "\"reason\":\"NotFound\"");
    check("POST /pods", 405, "application/json", "\"reason\":\"MethodNotAllowed\"");
    check("DELETE /healthz", 405, "application/json", "\"reason\":\"MethodNotAllowed\"");
    check("GET /coracle/v1/apply", 405, "application/json", "MethodNotAllowed");
    check("GET /exec/default/boat/main?command=true", 400, "application/json", "WebSocket");
    let logs = "GET /containerLogs/default/boat/main";
    check(&format!("{logs}?tailLines=2"), 200, "text/plain", "line 2");
    let limited = check(&format!("{logs}?limitBytes=6"), 200, "text/plain", "line 1");
    assert!(!limited.contains("line 2"), "{limited}");
    check(&format!("{logs}?tailLines=many"), 400, "application/json", "not a number");
    check(&format!("{logs}?sinceTime=yesterday"), 400, "application/json", "RFC 3339");
    check("GET /containerLogs/default/none/main", 404, "application/json", "pods \\\"none\\\" not found");
    check("GET /containerLogs/default/boat/none", 400, "application/json", "container none is not valid");
    // Names are percent-decoded, and are names and never paths.
    check("GET /containerLogs/default/%2e%2e%2f/main", 404, "application/json", "pods \\\"../\\\" not found");
}

#[test]
fn only_root_may_connect_and_no_request_is_too_much() {
    use std::os::unix::fs::MetadataExt;
    let board = board();
    let socket = board.root().join("run/coracle.sock");
    let metadata = std::fs::metadata(&socket).expect("there");
    assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o600, 0));
    let (head, _) = ask(&board, "POST /coracle/v1/apply HTTP/1.1\r\nContent-Length: 99999999999");
    assert!(head.starts_with("http/1.1 413 "), "{head}");
    let huge = format!("GET /pods HTTP/1.1\r\nX: {}", "x".repeat(1 << 20));
    let mut stream = connect(&board);
    // It may hang up before it has heard all of it.
    drop(stream.write_all(huge.as_bytes()).and_then(|()| stream.write_all(b"\r\n\r\n")));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    board.get("/pods").expect("still answers");
}

/// A WebSocket, and what was chosen of the protocols.
fn exec(board: &Board, query: &str, protocols: &str) -> (WebSocket<UnixStream>, String) {
    open(board, &format!("exec/default/boat/main?{query}"), protocols)
}

fn open(board: &Board, path: &str, protocols: &str) -> (WebSocket<UnixStream>, String) {
    let encode = |c: char| if "[]\"$(){}<>;".contains(c) { format!("%{:02x}", c as u32) } else { c.into() };
    let url = format!("ws://localhost/{}", path.chars().map(encode).collect::<String>());
    let mut request = url.into_client_request().expect("a request");
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().expect("a header"));
    let (socket, answer) = tungstenite::client(request, connect(board)).expect("upgraded");
    let chosen = answer.headers()["sec-websocket-protocol"].to_str().expect("text").to_string();
    (socket, chosen)
}

/// Everything up to the status on channel 3: standard output, standard error, status.
fn rest(socket: &mut WebSocket<UnixStream>) -> (String, String, Value) {
    let (mut out, mut err) = (String::new(), String::new());
    loop {
        let Message::Binary(bytes) = socket.read().expect("a message") else { continue };
        let (channel, data) = bytes.split_first().expect("a channel");
        let text = String::from_utf8_lossy(data);
        match channel {
            1 => out += &text,
            2 => err += &text,
            3 => return (out, err, serde_json::from_slice(data).expect("a Status")),
            other => panic!("channel {other}"),
        }
    }
}

fn send(socket: &mut WebSocket<UnixStream>, bytes: &[u8]) {
    socket.send(Message::Binary(bytes.to_vec().into())).expect("sent");
}

#[test]
fn exec_speaks_v5_and_v4_and_ends_with_a_status() {
    let board = board();
    let both = "stdout=true&stderr=true";
    let (mut socket, chosen) = exec(
        &board,
        &format!("command=sh&command=-c&command=echo+out;echo+err+>%262;exit+3&{both}"),
        "v4.channel.k8s.io, v5.channel.k8s.io",
    );
    assert_eq!(chosen, "v5.channel.k8s.io");
    let (out, err, status) = rest(&mut socket);
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(status["status"], "Failure");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "3"}]));

    // v5: channel 255 closes standard input, and `cat` ends.
    let input = format!("command=cat&stdin=true&{both}");
    let (mut socket, _) = exec(&board, &input, "v5.channel.k8s.io");
    send(&mut socket, b"\0ahoy");
    send(&mut socket, &[255, 0]);
    let (out, _, status) = rest(&mut socket);
    assert_eq!((out.as_str(), &status["status"]), ("ahoy", &json!("Success")));

    // v4 has no such message: `cat` reads on.
    let (mut socket, chosen) = exec(&board, &input, "v4.channel.k8s.io");
    assert_eq!(chosen, "v4.channel.k8s.io");
    send(&mut socket, &[255, 0]);
    send(&mut socket, b"\0ahoy");
    let Message::Binary(bytes) = socket.read().expect("a message") else { panic!("binary is expected") };
    assert_eq!(&bytes[..], b"\x01ahoy");

    // What is not there is told on standard error, with a shell's exit codes.
    for (command, code, why) in [("/none", "127", "no such file"), ("/etc", "126", "is a directory")] {
        let (mut socket, _) = exec(&board, &format!("command={command}&{both}"), "v5.channel.k8s.io");
        let (_, err, status) = rest(&mut socket);
        assert!(err.contains(why), "{err}");
        assert_eq!(status["details"]["causes"][0]["message"], code, "{status}");
    }
}

#[test]
fn a_terminal_is_resized_and_garbage_is_left_alone() {
    let board = board();
    let script = "until+[+\"$(stty+size)\"+=+\"33+99\"+];+do+:;+done;+read+x;+echo+got+$x";
    let query = format!("command=sh&command=-c&command={script}&tty=true&stdin=true&stdout=true");
    let (mut socket, _) = exec(&board, &query, "v5.channel.k8s.io");
    for garbage in
        [&b""[..], b"\x04{", b"\x04{\"Width\":-1}", b"\x09x", b"\xff", b"\xff\x09", b"\x03x", b"\x01x"]
    {
        send(&mut socket, garbage);
    }
    socket.send(Message::Text("text".into())).expect("sent");
    send(&mut socket, b"\x04{\"Width\":99,\"Height\":33}");
    send(&mut socket, b"\0ahoy\r");
    let (out, _, status) = rest(&mut socket);
    assert!(out.contains("got ahoy") && status["status"] == "Success", "{out} {status}");
    // What is no WebSocket frame at all, and one that says that it is longer than any may be.
    for frame in [&[0xff; 32][..], &[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]] {
        let (socket, _) = exec(&board, "command=sleep&command=1000&stdout=true", "v5.channel.k8s.io");
        let mut stream = socket.into_inner();
        stream.write_all(frame).expect("sent");
        // The agent hangs up.
        stream.read_to_end(&mut Vec::new()).expect("ends");
    }
    board.get("/pods").expect("still answers");
}

/// Both pipes of `cat` fill while the client still sends: each side waited for the other, for ever.
#[test]
fn input_and_output_flow_at_once_and_whole() {
    let board = board();
    let mut command = Command::new(coracle_tests::agent::binary("coracle").expect("built"));
    command.arg("--root").arg(board.root()).args(["exec", "-i", "boat", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("started");
    let mut input = child.stdin.take().expect("piped");
    const BYTES: usize = 8 << 20;
    let writer = std::thread::spawn(move || input.write_all(&vec![b'x'; BYTES]));
    let mut output = child.stdout.take().expect("piped");
    let mut heard = Vec::new();
    output.read_to_end(&mut heard).expect("read");
    writer.join().expect("ends").expect("written");
    assert_eq!((heard.len(), child.wait().expect("ends").code()), (BYTES, Some(0)));
}

#[test]
fn attach_is_the_containers_own_input_and_output() {
    let board = board();
    let script = "read line; echo got $line; read line";
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: open}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: 'example.test/busybox:1', stdin: true, command: [sh, -c, '{script}']}}\n"
    );
    board.apply(&text).expect("applied");
    board.wait("open", "running", |pod| pod["status"]["phase"] == "Running").expect("runs");
    let path = "attach/default/open/main?stdin=true&stdout=true&stderr=true";
    let (mut socket, chosen) = open(&board, path, "v5.channel.k8s.io");
    assert_eq!(chosen, "v5.channel.k8s.io");
    send(&mut socket, b"\0ahoy\n");
    let Message::Binary(bytes) = socket.read().expect("a message") else { panic!("binary is expected") };
    assert_eq!(&bytes[..], b"\x01got ahoy\n");
    send(&mut socket, b"\0\n");
    assert_eq!(rest(&mut socket).2["status"], "Success");
    let ended = board.wait("open", "over", |pod| pod["status"]["phase"] == "Succeeded");
    ended.expect("ends");
    let (head, body) = ask(&board, &format!("GET /{path} HTTP/1.1"));
    assert!(head.starts_with("http/1.1 400 ") && body.contains("completed pod"), "{head} {body}");
}
