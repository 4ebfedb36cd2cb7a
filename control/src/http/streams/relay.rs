//! `GET /apis/coracle.dev/v1/nodes/NAME/relay`: another control plane asks for a stream of a board that is connected here.

use super::{Response, connect, kubelet};
use crate::auth::{Identity, Peer};
use crate::http::connection::Patience;
use crate::http::path::ResourcePath;
use crate::http::{Context, body};
use crate::registry::options::Query;
use crate::tunnel::{RELAY_PROTOCOL, RELAY_USER, TunnelError};
use coracle_api::status::{Attempt, GroupResource, StatusError, refusal};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

/// Of `coracle.dev/v1`, `nodes/NAME/relay`: whether this request is for it.
pub(in crate::http) fn relay(of: &ResourcePath) -> bool {
    (&*of.group, &*of.version, &*of.plural, &*of.subresource) == ("coracle.dev", "v1", "nodes", "relay")
}

/// Joins the connection with a stream of the board's tunnel. It never goes on to a third control plane.
///
/// # Errors
/// 403 for everybody but a control plane, 404 where the board is not connected here, 503 when it takes no more, 429 when it
/// takes no more of this user.
pub(in crate::http) async fn open(
    context: &Context,
    peer: &Peer,
    identity: &Identity,
    of: &ResourcePath,
    mut request: Request<Incoming>,
) -> Result<Response, StatusError> {
    let group = GroupResource { group: &of.group, resource: &of.plural };
    if !peer.is_control_plane() {
        let attempt = Attempt::Resource { verb: "get", of: group, subresource: "relay", namespace: "" };
        return Err(StatusError::forbidden(group, &of.name, refusal(&identity.user, &attempt, "")));
    }
    let asked = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if request.method() != Method::GET || asked != Some(RELAY_PROTOCOL) {
        return Err(StatusError::bad_request(format!("Upgrade: {RELAY_PROTOCOL} is expected")));
    }
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let stream = match context.dialer.tunnels.stream(&of.name, query.get(RELAY_USER)).await {
        Some(Ok(stream)) => stream,
        Some(Err(error @ TunnelError::FullForUser)) => return Err(kubelet::undialled(&error)),
        Some(Err(error @ TunnelError::Full)) => {
            return Err(StatusError::service_unavailable(error.to_string()));
        }
        Some(Err(error)) => return Err(StatusError::internal(error)),
        None => return Err(StatusError::not_found(group, &of.name)),
    };
    if let Some(patience) = request.extensions().get::<Patience>() {
        patience.begin();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(io) => connect::join(TokioIo::new(io), stream).await,
            Err(error) => tracing::debug!(%error, "a relay was not opened"),
        }
    });
    let mut response = hyper::Response::new(body::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(RELAY_PROTOCOL));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(response)
}
