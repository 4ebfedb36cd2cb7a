//! Streams to a board, which is played here: the test is the other end of its tunnel.

use crate::control::{Ask, Client, Control};
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::poll_fn;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// Half of a board's streams.
const OF_USER: usize = coracle_api::tunnel::STREAMS_MAX / 2;
const LOG: &str = "/api/v1/namespaces/default/pods/boat/log?follow=true";

/// A board that says `ahoy` and then nothing, for ever, to whoever follows a log.
async fn kubelet(
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let body = if request.uri().path().starts_with("/containerLogs/") {
        let first = futures_util::stream::once(async { Ok(Frame::data(Bytes::from("ahoy\n"))) });
        BodyExt::boxed(StreamBody::new(first.chain(futures_util::stream::pending())))
    } else {
        BodyExt::boxed(Full::new(Bytes::from("ok")))
    };
    Ok(hyper::Response::new(body))
}

/// Opens the tunnel of `board-1`; it lasts as long as what is returned.
async fn open_tunnel(control: &Control) -> JoinSet<()> {
    let mut node = control.connect().await.act_as("system:node:board-1", &["system:nodes"]);
    node.headers.push(("connection", "Upgrade".into()));
    node.headers.push(("upgrade", coracle_api::tunnel::PROTOCOL.into()));
    let path = coracle_api::tunnel::path("board-1");
    let answer = node.send(Ask { method: "GET", path: &path, ..Ask::default() }).await;
    assert_eq!(answer.status().as_u16(), 101);
    let io = TokioIo::new(hyper::upgrade::on(answer).await.expect("upgraded"));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let config = yamux::Config::default();
        let mut tunnel = yamux::Connection::new(io.compat(), config, yamux::Mode::Server);
        let mut streams = JoinSet::new();
        while let Some(Ok(stream)) = poll_fn(|cx| tunnel.poll_next_inbound(cx)).await {
            streams.spawn(async move {
                let service = hyper::service::service_fn(kubelet);
                let io = TokioIo::new(stream.compat());
                // It ends with whoever asked.
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            });
        }
    });
    tasks
}

/// Follows the log on a connection of its own: the code, and the connection with the rest of the answer.
async fn follow(control: &Control, user: &str) -> (u16, Client, hyper::Response<Incoming>) {
    let mut client = control.connect().await.act_as(user, &[]);
    let answer = client.send(Ask { method: "GET", path: LOG, ..Ask::default() }).await;
    (answer.status().as_u16(), client, answer)
}

#[tokio::test]
async fn one_user_leaves_streams_of_a_board_to_others() {
    let control = Control::start_patient();
    let mut admin = control.connect().await;
    assert_eq!(admin.json("POST", "/api/v1/nodes", Some(&board("board-1", "4"))).await.0, 201);
    let pod = json!({
        "metadata": {"name": "boat"},
        "spec": {"nodeName": "board-1", "containers": [{"name": "c", "image": "app:1"}]},
    });
    assert_eq!(admin.json("POST", "/api/v1/namespaces/default/pods", Some(&pod)).await.0, 201);
    let users =
        ["create", "clusterrolebinding", "crew", "--clusterrole=cluster-admin", "--user=alice", "--user=bob"];
    Kubectl(&control).ok(&users);
    let _board = open_tunnel(&control).await;
    let mut alice = control.connect().await.act_as("alice", &[]);
    alice.until(200, "GET", "/api/v1/namespaces/default/pods/boat", None).await;

    let mut held = Vec::new();
    while held.len() < OF_USER {
        let (code, client, answer) = follow(&control, "alice").await;
        assert_eq!(code, 200, "stream {}", held.len());
        held.push((client, answer));
    }
    let (code, _client, answer) = follow(&control, "alice").await;
    assert_eq!(code, 429);
    assert_eq!(answer.headers()["retry-after"], "5");
    let refused = answer.into_body().collect().await.expect("a body").to_bytes();
    let refused: Value = serde_json::from_slice(&refused).expect("JSON");
    assert_eq!(
        (&refused["kind"], &refused["reason"], &refused["message"]),
        (
            &json!("Status"),
            &json!("TooManyRequests"),
            &json!(format!("error dialing backend: {OF_USER} of your streams to the node are open"))
        )
    );
    // Nor is there a way in by what else goes over the tunnel.
    alice.headers.push(("connection", "Upgrade".into()));
    alice.headers.push(("upgrade", "websocket".into()));
    for path in [
        "/api/v1/namespaces/default/pods/boat/exec?command=id&stdout=true",
        "/api/v1/namespaces/default/pods/boat/portforward?ports=80",
        "/api/v1/nodes/board-1/proxy/healthz",
    ] {
        let (code, answer) = alice.json("GET", path, None).await;
        assert_eq!(code, 429, "{path}: {answer}");
    }
    let (code, _bobs, answer) = follow(&control, "bob").await;
    assert_eq!(code, 200, "others have their own");
    let mut log = answer.into_body();
    let frame = log.frame().await.expect("a frame").expect("no error");
    assert_eq!(frame.data_ref().expect("data"), "ahoy\n");

    // Whoever leaves makes room.
    held.pop();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while follow(&control, "alice").await.0 != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the place of a stream that ended is free");
    }
}
