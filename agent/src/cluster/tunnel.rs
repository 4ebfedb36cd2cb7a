//! The one connection that this board keeps open to its control plane, so that logs and exec come in behind NAT.
//!
//! ```text
//! dial ─► GET …/nodes/NAME/tunnel, Upgrade ─► yamux: each stream is a connection to the node API (`Door::Cluster`)
//!   ▲                                                                              │
//!   └────── back-off ◄── broken, closed, or silent for `api::tunnel::SILENCE` ◄────┘
//! ```
//! Invariants: one connection at a time; it is the board that dials; streams and what they keep are bounded; whoever is at
//! the other end has shown the API server's certificate. An upstream API server has no such path, and is asked again
//! seldom: it comes to the kubelet's port instead.

use super::backoff::{Backoff, spread};
use super::client::Client;
use crate::node_api::{self, Context, Door};
use bytes::Bytes;
use coracle_api::tunnel::{PROTOCOL, SILENCE, STREAMS_MAX, WINDOW_BYTES_MAX, path};
use futures_util::future::poll_fn;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// From the request to the upgrade.
const OPEN: Duration = Duration::from_secs(30);
/// Until a server without tunnels is asked again: it may have been upgraded to one that has them.
const UNSUPPORTED: Duration = Duration::from_secs(600);
/// A tunnel that lasted so long was a good one.
const LASTED: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum TunnelError {
    #[error(transparent)]
    Client(#[from] super::client::ClientError),
    #[error(transparent)]
    Access(#[from] super::access::AccessError),
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    #[error("the server answered with {0}")]
    Refused(StatusCode),
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("a request cannot be made for node {0:?}")]
    Name(String),
    #[error(transparent)]
    Streams(#[from] yamux::ConnectionError),
}

/// Keeps a tunnel open for ever.
pub(crate) async fn run(client: Client, context: Context) {
    let node = context.board.settings().node_name.clone();
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let ended = keep(&client, &node, &context).await;
        if started.elapsed() > LASTED {
            backoff.succeeded();
        }
        let wait = match ended {
            // Nothing that this server knows, or a node that it does not know yet.
            Err(TunnelError::Refused(StatusCode::NOT_FOUND)) => spread(UNSUPPORTED),
            _ => backoff.next(),
        };
        match ended {
            Ok(()) => tracing::info!(?wait, "the tunnel was closed by the control plane"),
            Err(error) => tracing::debug!(%error, ?wait, "no tunnel"),
        }
        tokio::time::sleep(wait).await;
    }
}

async fn keep(client: &Client, node: &str, context: &Context) -> Result<(), TunnelError> {
    let io = timeout(OPEN, open(client, node)).await.map_err(|_| TunnelError::Silent(OPEN))??;
    tracing::info!(node, "the tunnel to the control plane is open");
    let mut config = Config::default();
    config
        .set_max_num_streams(2 * STREAMS_MAX)
        .set_max_connection_receive_window(Some(WINDOW_BYTES_MAX))
        .set_read_after_close(false);
    let mut connection = Connection::new(TokioIo::new(io).compat(), config, Mode::Server);
    loop {
        // The control plane asks after us: when it does not, a NAT has forgotten the connection.
        let next = timeout(SILENCE, poll_fn(|cx| connection.poll_next_inbound(cx))).await;
        match next.map_err(|_| TunnelError::Silent(SILENCE))? {
            Some(stream) => {
                let (stream, context) = (stream?.compat(), context.clone());
                tokio::spawn(async move { node_api::talk(stream, &context, Door::Cluster).await });
            }
            None => return Ok(()),
        }
    }
}

async fn open(client: &Client, node: &str) -> Result<Upgraded, TunnelError> {
    let access = client.access()?;
    let request = access
        .request(Method::GET, &path(node))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(Empty::<Bytes>::new())
        .map_err(|_| TunnelError::Name(node.into()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(access.connect().await?)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the tunnel's connection ended badly");
        }
    });
    let answer = sender.send_request(request).await?;
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => Ok(hyper::upgrade::on(answer).await?),
        refused => Err(TunnelError::Refused(refused)),
    }
}
