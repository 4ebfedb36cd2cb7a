//! `pods/exec`, `pods/attach`, `pods/portforward`: the client's upgrade goes on to the board as it is, and so does the
//! board's answer; WebSocket and SPDY are understood there, not here.

use super::kubelet::{self, forwarded};
use super::{Asked, Response, locate};
use crate::http::body;
use crate::http::connection::Patience;
use crate::registry::options::Query;
use crate::tunnel::Io;
use coracle_api::status::StatusError;
use form_urlencoded::Serializer;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode, upgrade};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

/// As the kubelet's `streamingConnectionIdleTimeout`.
const IDLE: Duration = Duration::from_secs(4 * 3600);
/// Once one side has ended, for what is still on its way to the other.
const DRAIN: Duration = Duration::from_secs(10);
/// What is read of one side before it is written to the other.
const CHUNK_BYTES: usize = 16 << 10;

pub(super) async fn serve(asked: Asked) -> Result<Response, StatusError> {
    let Asked { context, who, of, query, request } = asked;
    let pod = locate::object(&context, "pods", &of.namespace, &of.name).await?;
    let (namespace, name) = (&of.namespace, &of.name);
    let path = match of.subresource.as_str() {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        verb => {
            let container = locate::container(&pod, query.get("container"))?;
            format!("/{verb}/{namespace}/{name}/{container}?{}", options(&query))
        }
    };
    if !wants_upgrade(request.headers()) {
        return Err(StatusError::bad_request("Upgrade request required"));
    }
    let io = kubelet::dial_pod(&context, &who, &pod).await?;
    let mut onward = kubelet::get(&path)?;
    if request.method() == Method::POST {
        *onward.method_mut() = Method::POST;
    }
    upgraded(request, io, onward).await
}

/// `PodExecOptions` and `PodAttachOptions` as the kubelet's query.
fn options(query: &Query) -> String {
    let mut options = Serializer::new(String::new());
    for (ours, kubelets) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(ours) {
            options.append_pair(kubelets, "1");
        }
    }
    for word in query.all("command") {
        options.append_pair("command", word);
    }
    options.finish()
}

/// Whether another protocol is asked for.
pub(super) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let mut listed = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    headers.contains_key(header::UPGRADE)
        && listed.any(|value| value.split(',').any(|name| name.trim().eq_ignore_ascii_case("upgrade")))
}

/// Sends `onward` with the upgrade that `request` asks for, and joins the two connections if the board agrees.
///
/// # Errors
/// The board's refusal.
pub(super) async fn upgraded(
    mut request: Request<Incoming>,
    io: Box<dyn Io>,
    mut onward: Request<body::Body>,
) -> Result<Response, StatusError> {
    let mut headers = forwarded(request.headers());
    if let Some(protocol) = request.headers().get(header::UPGRADE) {
        headers.insert(header::UPGRADE, protocol.clone());
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.extend(std::mem::take(onward.headers_mut()));
    *onward.headers_mut() = headers;
    let mut answer = kubelet::send(io, onward).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        if answer.status().is_success() {
            return Err(StatusError::internal("the node did not switch protocols"));
        }
        return Err(kubelet::refusal(answer).await);
    }
    if let Some(patience) = request.extensions().get::<Patience>() {
        patience.begin();
    }
    let mut response = hyper::Response::new(body::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let mut headers = forwarded(answer.headers());
    if let Some(protocol) = answer.headers().get(header::UPGRADE) {
        headers.insert(header::UPGRADE, protocol.clone());
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    *response.headers_mut() = headers;
    let (client, board) = (upgrade::on(&mut request), upgrade::on(&mut answer));
    tokio::spawn(async move {
        match tokio::try_join!(client, board) {
            Ok((client, board)) => join(TokioIo::new(client), TokioIo::new(board)).await,
            Err(error) => tracing::debug!(%error, "a stream was not opened"),
        }
    });
    Ok(response)
}

/// Carries bytes both ways until one side ends, and then what is still on its way.
pub(super) async fn join(client: impl Io, board: impl Io) {
    let start = Instant::now();
    let last = AtomicU64::new(0);
    let moved = || last.store(start.elapsed().as_secs(), Ordering::Relaxed);
    let (client_reader, client_writer) = tokio::io::split(client);
    let (board_reader, board_writer) = tokio::io::split(board);
    let mut up = pin!(carry(client_reader, board_writer, moved));
    let mut down = pin!(carry(board_reader, client_writer, moved));
    let idle = async {
        loop {
            let until = start + Duration::from_secs(last.load(Ordering::Relaxed)) + IDLE;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    };
    let (ended, rest) = tokio::select! {
        ended = &mut up => (ended, tokio::time::timeout(DRAIN, down).await),
        ended = &mut down => (ended, tokio::time::timeout(DRAIN, up).await),
        () = idle => return tracing::debug!("an idle stream was closed"),
    };
    for error in [ended.err(), rest.ok().and_then(Result::err)].into_iter().flatten() {
        tracing::debug!(%error, "a stream broke");
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: impl Fn(),
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        moved();
        to.write_all(&chunk[..length]).await?;
        to.flush().await?;
        moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_run_is_passed_on_word_by_word() {
        let check =
            |query: &str, expected: &str| assert_eq!(options(&Query::parse(query)), expected, "{query}");
        check("stdin=true&stdout=1&tty=false&container=c", "input=1&output=1");
        check(
            "command=sh&command=-c&command=a%26b%3Dc&stderr=true",
            "error=1&command=sh&command=-c&command=a%26b%3Dc",
        );
        check("", "");
    }

    #[tokio::test]
    async fn the_end_of_one_side_is_the_end_of_the_other() {
        let (mut client, ours) = tokio::io::duplex(64);
        let (theirs, mut board) = tokio::io::duplex(64);
        let joined = tokio::spawn(join(ours, theirs));
        client.write_all(b"question").await.expect("written");
        let mut heard = [0; 8];
        board.read_exact(&mut heard).await.expect("read");
        board.write_all(b"answer").await.expect("written");
        drop(board);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("ends");
        assert_eq!((&heard, answer.as_str()), (b"question", "answer"));
        drop(client);
        joined.await.expect("over");
    }
}
