//! Several control planes on one etcd: a board is connected to one of them, and reached by way of it from each.
//!
//! ```text
//! kubectl ─► A: no tunnel here ─┬─ TLS, both ends of our authority ─► B: 404
//!                               └────────────────────────────────► C: 101 ═ a stream of the board's tunnel
//! ```
//! The others are found by their Leases ([`Apiservers`]). Which board is connected where is written down nowhere: whoever needs
//! to know asks all the others at once and remembers who answered, to ask that one alone the next time. So a board that comes and
//! goes costs no write, and nothing is believed that is no longer so. Whoever is asked answers for itself only: nothing goes
//! round in circles.
//!
//! An address in a Lease is a hint: what answers there must have a certificate of our authority for serving, which boards and
//! users are not given; and it lets nobody but a control plane in, by certificate (`http/streams/relay`). Bounds: the boards
//! that are remembered, the time for all of it; and a board's streams count where its tunnel is.

use super::dial::{CONNECT, Io, TunnelError};
use crate::apiservers::Apiservers;
use bytes::Bytes;
use coracle_api::status::StatusError;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// Of the `Upgrade` header; what follows the 101 is a connection to the kubelet's API of the board.
pub const PROTOCOL: &str = "coracle-relay.v1";
/// Of the query: whom the stream is for, who is counted where the tunnel is.
pub const USER: &str = "user";
/// Boards of which it is remembered where they were.
const REMEMBERED_MAX: usize = 4096;
/// Of a refusal.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The other control planes. A handle; clones are the same.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    apiservers: Apiservers,
    tls: Arc<ClientConfig>,
    /// Where boards were.
    boards: Mutex<BTreeMap<String, SocketAddr>>,
}

impl Relay {
    /// To the control planes that are known to `apiservers`; dials as `tls` says.
    pub fn new(apiservers: Apiservers, tls: Arc<ClientConfig>) -> Relay {
        Relay(Arc::new(Shared { apiservers, tls, boards: Mutex::default() }))
    }

    /// A connection to the kubelet API of a node that is connected to another control plane; `None` if it is to none.
    ///
    /// # Errors
    /// It may be, but who has it was not reached.
    pub(super) async fn dial(&self, node: &str, user: &str) -> Result<Option<Box<dyn Io>>, TunnelError> {
        let remembered = self.0.boards().get(node).copied();
        if let Some(peer) = remembered {
            match self.ask(peer, node, user).await {
                Err(TunnelError::Peer { .. }) | Ok(None) => {
                    self.0.boards().remove(node);
                }
                answer => return answer,
            }
        }
        let mut asked = JoinSet::new();
        for peer in self.0.apiservers.peers().await.map_err(TunnelError::Peers)? {
            let (relay, node, user) = (self.clone(), node.to_string(), user.to_string());
            asked.spawn(async move { (peer, relay.ask(peer, &node, &user).await) });
        }
        let mut failed = None;
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((peer, Ok(Some(io)))) => {
                    let mut boards = self.0.boards();
                    if boards.len() < REMEMBERED_MAX {
                        boards.insert(node.to_string(), peer);
                    }
                    return Ok(Some(io));
                }
                Ok((_, Ok(None))) => {}
                Ok((_, Err(error @ (TunnelError::Full | TunnelError::FullForUser)))) => return Err(error),
                Ok((_, Err(error))) => failed = Some(error),
                Err(error) => tracing::error!(%error, "asking another control plane failed"),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Asks one.
    async fn ask(
        &self,
        peer: SocketAddr,
        node: &str,
        user: &str,
    ) -> Result<Option<Box<dyn Io>>, TunnelError> {
        let failed = |why: String| TunnelError::Peer { peer: peer.to_string(), why };
        let asked = tokio::time::timeout(CONNECT, stream(peer, self.0.tls.clone(), (node, user))).await;
        match asked.map_err(|_| failed(format!("no answer within {} s", CONNECT.as_secs())))? {
            Ok(answer) => Ok(Some(answer)),
            Err(Refusal::NotThere) => Ok(None),
            Err(Refusal::Full) => Err(TunnelError::Full),
            Err(Refusal::FullForUser) => Err(TunnelError::FullForUser),
            Err(Refusal::Other(why)) => Err(failed(why)),
        }
    }
}

/// Why another control plane gave no stream.
enum Refusal {
    /// The board is not connected there.
    NotThere,
    /// It is, and takes no more.
    Full,
    /// It takes no more of this user.
    FullForUser,
    Other(String),
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal::Other(error.to_string())
    }
}

async fn stream(
    peer: SocketAddr,
    tls: Arc<ClientConfig>,
    (node, user): (&str, &str),
) -> Result<Box<dyn Io>, Refusal> {
    let stream = TcpStream::connect(peer).await?;
    stream.set_nodelay(true)?;
    let tls = TlsConnector::from(tls).connect(ServerName::IpAddress(peer.ip().into()), stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to another control plane ended");
        }
    });
    let query = form_urlencoded::Serializer::new(String::new()).append_pair(USER, user).finish();
    let request = Request::get(format!("/apis/coracle.dev/v1/nodes/{node}/relay?{query}"))
        .header(HOST, peer.to_string())
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(Empty::<Bytes>::new())?;
    let mut answer = sender.send_request(request).await?;
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            let io = hyper::upgrade::on(&mut answer).await?;
            Ok(Box::new(TokioIo::new(io)))
        }
        StatusCode::NOT_FOUND => Err(Refusal::NotThere),
        StatusCode::TOO_MANY_REQUESTS => Err(Refusal::FullForUser),
        StatusCode::SERVICE_UNAVAILABLE => Err(Refusal::Full),
        code => {
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Err(Refusal::Other(StatusError::answered(code.as_u16(), &body).to_string()))
        }
    }
}

impl Shared {
    fn boards(&self) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
        self.boards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
