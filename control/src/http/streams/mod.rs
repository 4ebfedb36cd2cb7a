//! What goes on from here to a board: `log`, `exec`, `attach`, `portforward` and `proxy` of pods, `proxy` of nodes and
//! services, the tunnels that boards open, and what other control planes ask of those.
//!
//! ```text
//! request ─► who, may they ─► pod, container, node (registry) ─► dial ─► kubelet's API on the board
//!   log, proxy: a body that is pulled      exec, attach, portforward: both sockets joined after 101
//! ```
//! Invariants: what the board is asked is made here of checked names, and no header with a credential goes on; an error
//! of the board is a `Status`; whoever leaves first ends the other side; nothing is buffered beyond one chunk each way.

mod connect;
pub(super) mod kubelet;
mod locate;
mod log;
mod proxy;
mod relay;
mod tunnel;

use super::Context;
use super::body::Body;
use super::path::ResourcePath;
use crate::auth::Identity;
use crate::registry::options::Query;
use coracle_api::status::StatusError;
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
pub(super) use relay::{open as open_relay, relay as is_relay};
use std::sync::Arc;
pub(super) use tunnel::{open as open_tunnel, tunnel as is_tunnel};

pub(super) type Response = hyper::Response<Body>;

/// A request on one of these subresources.
pub(super) struct Asked {
    pub context: Arc<Context>,
    pub who: Identity,
    pub of: ResourcePath,
    pub query: Query,
    pub request: Request<Incoming>,
}

/// Whether it is for a node's kubelet, and enters a pod there.
pub(super) fn enters(of: &ResourcePath, path: &str, headers: &HeaderMap) -> bool {
    (of.plural.as_str(), of.subresource.as_str()) == ("nodes", "proxy")
        && coracle_api::kubelet::enters(proxy::split(path).1, headers.contains_key(hyper::header::UPGRADE))
}

/// Answers it; the registry's table says which subresources and verbs there are.
pub(super) async fn serve(asked: Asked) -> Result<Response, StatusError> {
    match (asked.of.plural.as_str(), asked.of.subresource.as_str()) {
        ("pods", "log") => log::serve(asked).await,
        ("pods", "exec" | "attach" | "portforward") => connect::serve(asked).await,
        ("pods" | "services" | "nodes", "proxy") => proxy::serve(asked).await,
        _ => Err(StatusError::generic(404, "")),
    }
}
