//! Requests to the kubelet's API of a board, each on a connection of its own.

use super::{Response, locate};
use crate::auth::Identity;
use crate::http::Context;
use crate::http::body::{self, Body};
use crate::tunnel::{Io, TunnelError};
use bytes::Bytes;
use coracle_api::status::StatusError;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::fmt::Display;
use std::io;
use std::time::Duration;

/// Of an error's text.
const ERROR_BYTES_MAX: usize = 10_000;
/// Until the head of an answer: a board that starts a process, on a slow card.
pub(super) const HEAD: Duration = Duration::from_secs(60);
/// Until somebody's stream may have ended.
const RETRY_SECONDS: i32 = 5;
/// What is between this and the next hop only, and never goes on (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Connects to a node's kubelet for somebody.
///
/// # Errors
/// 500 with the reason, as upstream words a failed dial; 429 when too many streams are open.
pub(super) async fn dial(
    context: &Context,
    who: &Identity,
    node: &Value,
) -> Result<Box<dyn Io>, StatusError> {
    context.dialer.dial(node, &who.user).await.map_err(|error| undialled(&error))
}

/// Why there is no connection.
pub(super) fn undialled(error: &TunnelError) -> StatusError {
    match error {
        TunnelError::Full | TunnelError::FullForUser => {
            StatusError::too_many_requests(format!("error dialing backend: {error}"), RETRY_SECONDS)
        }
        error => StatusError::internal(format!("error dialing backend: {error}")),
    }
}

/// Connects to the kubelet that a pod is on.
pub(super) async fn dial_pod(
    context: &Context,
    who: &Identity,
    pod: &Value,
) -> Result<Box<dyn Io>, StatusError> {
    dial(context, who, &locate::host(context, pod).await?).await
}

/// Sends a request on a new connection; the answer's head. The connection ends with the answer's body, or lives on in
/// its upgrade.
pub(in crate::http) async fn send(
    io: Box<dyn Io>,
    request: hyper::Request<Body>,
) -> Result<hyper::Response<Incoming>, StatusError> {
    let broken = |error: hyper::Error| failed(&error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a node ended");
        }
    });
    match tokio::time::timeout(HEAD, sender.send_request(request)).await {
        Ok(answer) => answer.map_err(broken),
        Err(_) => Err(failed(&format!("no answer within {} s", HEAD.as_secs()))),
    }
}

fn failed(why: &dyn Display) -> StatusError {
    StatusError::internal(format!("error dialing backend: {why}"))
}

/// A body of the board's as ours.
pub(super) fn passed(body: Incoming) -> Body {
    body.map_err(io::Error::other).boxed_unsync()
}

/// What upstream makes of a kubelet's refusal of a pod's log or stream.
pub(super) async fn refusal(answer: hyper::Response<Incoming>) -> StatusError {
    let code = answer.status().as_u16();
    let text = said(answer).await;
    match code {
        400 => StatusError::bad_request(text),
        500 => StatusError::internal(text),
        404 => StatusError { message: text, ..StatusError::generic(404, "") },
        _ => StatusError::generic(code, &text),
    }
}

/// An error's text.
pub(super) async fn said(answer: hyper::Response<Incoming>) -> String {
    let body = Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect().await;
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim_end().to_string());
    text.unwrap_or_else(|_| "the node's answer broke off".into())
}

/// The headers that go on to another hop. The credential that was for us does not.
pub(super) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let listed: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let lowered = name.as_str();
        let ends_here = HOP_BY_HOP.contains(name)
            || matches!(lowered, "keep-alive" | "proxy-connection")
            || *name == header::AUTHORIZATION
            || *name == header::HOST
            || lowered.starts_with("impersonate-")
            || lowered.starts_with("x-remote-")
            || listed.iter().any(|listed| listed == lowered);
        if !ends_here {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// A request without a body, to a path made here.
pub(super) fn get(path: &str) -> Result<hyper::Request<Body>, StatusError> {
    let mut request = hyper::Request::new(body::whole(Bytes::new()));
    *request.uri_mut() =
        path.parse().map_err(|_| StatusError::bad_request(format!("{path:?} is no path")))?;
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("node"));
    Ok(request)
}

/// An answer of the board's with its head and body.
pub(super) fn relayed(answer: hyper::Response<Incoming>) -> Response {
    let (mut head, body) = answer.into_parts();
    head.headers = forwarded(&head.headers);
    hyper::Response::from_parts(head, passed(body))
}
