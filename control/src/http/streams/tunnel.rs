//! `GET /apis/coracle.dev/v1/nodes/NAME/tunnel`: a board comes, and stays.

use super::Response;
use crate::auth::Identity;
use crate::http::connection::Patience;
use crate::http::path::ResourcePath;
use crate::http::{Context, body};
use coracle_api::status::{Attempt, GroupResource, StatusError, refusal};
use coracle_api::tunnel::PROTOCOL;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::Arc;

/// Of `coracle.dev/v1`, `nodes/NAME/tunnel`: whether this request is for it.
pub(in crate::http) fn tunnel(of: &ResourcePath) -> bool {
    (&*of.group, &*of.version, &*of.plural, &*of.subresource) == ("coracle.dev", "v1", "nodes", "tunnel")
}

/// Takes a board's connection.
///
/// # Errors
/// 403 for everybody but the node itself.
pub(in crate::http) async fn open(
    context: &Arc<Context>,
    identity: &Identity,
    of: &ResourcePath,
    mut request: Request<Incoming>,
) -> Result<Response, StatusError> {
    let group = GroupResource { group: &of.group, resource: &of.plural };
    let node = of.name.clone();
    if !is_node(identity, &node) {
        let attempt = Attempt::Resource { verb: "get", of: group, subresource: "tunnel", namespace: "" };
        return Err(StatusError::forbidden(group, &node, refusal(&identity.user, &attempt, "")));
    }
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if request.method() != Method::GET || asked != Some(PROTOCOL) {
        return Err(StatusError::bad_request(format!("Upgrade: {PROTOCOL} is expected")));
    }
    if let Some(patience) = request.extensions().get::<Patience>() {
        patience.begin();
    }
    let context = context.clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let io = match upgrade.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(node, %error, "a tunnel was not opened"),
        };
        match context.dialer.tunnels.run(&node, io).await {
            Ok(()) => tracing::info!(node, "a board's tunnel was closed"),
            Err(error) => tracing::info!(node, %error, "a board's tunnel was lost"),
        }
    });
    let mut response = hyper::Response::new(body::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(response)
}

fn is_node(identity: &Identity, node: &str) -> bool {
    identity.is_in("system:nodes")
        && identity.user.strip_prefix("system:node:") == Some(node)
        && !node.is_empty()
}
