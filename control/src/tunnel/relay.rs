//! Several control planes on one etcd: a board is connected to one of them, and reached by way of it from each.
//!
//! ```text
//! kubectl ─► A: no tunnel here ─┬─ TLS, both ends of our authority ─► B: 404
//!                               └────────────────────────────────► C: 101 ═ a stream of the board's tunnel
//! ```
//! Each control plane keeps a Lease in `kube-system`, as upstream's API servers do, with the address that the others reach it
//! at. Which board is connected where is written down nowhere: whoever needs to know asks all the others at once and remembers
//! who answered, to ask that one alone the next time. So a board that comes and goes costs no write, and nothing is believed
//! that is no longer so. Whoever is asked answers for itself only: nothing goes round in circles.
//!
//! An address in a Lease is a hint: what answers there must have a certificate of our authority for serving, which boards and
//! users are not given; and it lets nobody but a control plane in, by certificate (`http/streams/relay`). Bounds: peers, the
//! boards that are remembered, the time for all of it; and a board's streams count where its tunnel is.

use super::dial::{CONNECT, Io, TunnelError};
use crate::auth::Identity;
use crate::kinds;
use crate::object;
use crate::registry::options::{DeleteOptions, ListOptions, Query, WriteOptions};
use crate::registry::{Registry, Resource, Target};
use bytes::Bytes;
use coracle_api::decode::Document;
use coracle_api::status::{Reason, StatusError};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// Of the `Upgrade` header; what follows the 101 is a connection to the kubelet's API of the board.
pub const PROTOCOL: &str = "coracle-relay.v1";
const NAMESPACE: &str = "kube-system";
/// Upstream's label of API servers' Leases.
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
const ADDRESS: &str = "coracle.dev/peer-address";
/// As upstream's.
const RENEW: Duration = Duration::from_secs(10);
/// A Lease that has not changed for so long, as seen here, is nobody's: nobody is asked there …
const SILENT: Duration = Duration::from_secs(40);
/// … and after this it is removed.
const GONE: Duration = Duration::from_secs(3600);
/// Control planes that are asked.
const PEERS_MAX: usize = 15;
/// Boards of which it is remembered where they were.
const REMEMBERED_MAX: usize = 4096;
/// Of a refusal.
const ANSWER_BYTES_MAX: usize = 16 << 10;

static LEASES: LazyLock<&Resource> =
    LazyLock::new(|| kinds::find("coordination.k8s.io", "v1", "leases").expect("a test looks it up"));

/// The other control planes. A handle; clones are the same.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Registry,
    tls: Arc<ClientConfig>,
    address: SocketAddr,
    /// The name of our own Lease.
    name: String,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Leases of others as they were last seen: their version, and since when.
    leases: BTreeMap<String, (String, Instant)>,
    /// Where boards were.
    boards: BTreeMap<String, SocketAddr>,
}

impl Relay {
    /// Dials as `tls` says; the others reach this one at `address`.
    pub fn new(registry: Registry, tls: Arc<ClientConfig>, address: SocketAddr) -> Relay {
        // The same after a restart, so that no Leases pile up.
        let digest = ring::digest::digest(&ring::digest::SHA256, address.to_string().as_bytes());
        let name = format!("apiserver-{}", &crate::pki::hex(digest.as_ref())[..24]);
        Relay(Arc::new(Shared { registry, tls, address, name, known: Mutex::default() }))
    }

    /// Keeps our Lease, and removes those of control planes that are no more. For ever.
    pub async fn announce(self) {
        loop {
            if let Err(error) = self.0.renew().await
                && !matches!(error.reason, Reason::Conflict | Reason::AlreadyExists)
            {
                tracing::warn!(%error, "the other control planes are not told where this one is");
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// A connection to the kubelet API of a node that is connected to another control plane; `None` if it is to none.
    ///
    /// # Errors
    /// It may be, but who has it was not reached.
    pub(super) async fn dial(&self, node: &str) -> Result<Option<Box<dyn Io>>, TunnelError> {
        let remembered = self.0.known().boards.get(node).copied();
        if let Some(peer) = remembered {
            match self.ask(peer, node).await {
                Err(TunnelError::Peer { .. }) | Ok(None) => {
                    self.0.known().boards.remove(node);
                }
                answer => return answer,
            }
        }
        let mut asked = JoinSet::new();
        for peer in self.0.peers().await.map_err(TunnelError::Peers)? {
            let (relay, node) = (self.clone(), node.to_string());
            asked.spawn(async move { (peer, relay.ask(peer, &node).await) });
        }
        let mut failed = None;
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok((peer, Ok(Some(io)))) => {
                    let mut known = self.0.known();
                    if known.boards.len() < REMEMBERED_MAX {
                        known.boards.insert(node.to_string(), peer);
                    }
                    return Ok(Some(io));
                }
                Ok((_, Ok(None))) => {}
                Ok((_, Err(error @ TunnelError::Full))) => return Err(error),
                Ok((_, Err(error))) => failed = Some(error),
                Err(error) => tracing::error!(%error, "asking another control plane failed"),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Asks one.
    async fn ask(&self, peer: SocketAddr, node: &str) -> Result<Option<Box<dyn Io>>, TunnelError> {
        let failed = |why: String| TunnelError::Peer { peer: peer.to_string(), why };
        let asked = tokio::time::timeout(CONNECT, stream(peer, self.0.tls.clone(), node)).await;
        match asked.map_err(|_| failed(format!("no answer within {} s", CONNECT.as_secs())))? {
            Ok(answer) => Ok(Some(answer)),
            Err(Refusal::NotThere) => Ok(None),
            Err(Refusal::Full) => Err(TunnelError::Full),
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
    Other(String),
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal::Other(error.to_string())
    }
}

async fn stream(peer: SocketAddr, tls: Arc<ClientConfig>, node: &str) -> Result<Box<dyn Io>, Refusal> {
    let stream = TcpStream::connect(peer).await?;
    stream.set_nodelay(true)?;
    let tls = TlsConnector::from(tls).connect(ServerName::IpAddress(peer.ip().into()), stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to another control plane ended");
        }
    });
    let request = Request::get(format!("/apis/coracle.dev/v1/nodes/{node}/relay"))
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
        StatusCode::SERVICE_UNAVAILABLE => Err(Refusal::Full),
        code => {
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Err(Refusal::Other(StatusError::answered(code.as_u16(), &body).to_string()))
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(name: &str) -> Target {
        Target { resource: *LEASES, namespace: NAMESPACE.into(), name: name.into() }
    }

    /// The Leases of all control planes.
    async fn leases(&self) -> Result<Vec<Value>, StatusError> {
        let (key, value) = LABEL;
        let query = Query::parse(&format!("labelSelector={}%3D{value}", key.replace('/', "%2F")));
        let options = ListOptions::parse(*LEASES, &query)?;
        Ok(self.registry.list(&Shared::target(""), &options).await?.items)
    }

    /// Where the others are that live, as far as anybody knows.
    async fn peers(&self) -> Result<Vec<SocketAddr>, StatusError> {
        let leases = self.leases().await?;
        Ok(self.known().alive(&self.name, &leases, Instant::now()))
    }

    async fn renew(&self) -> Result<(), StatusError> {
        let who = Identity::apiserver();
        let options = WriteOptions { manager: "kube-apiserver".into(), ..WriteOptions::default() };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let found = match self.registry.get(&Shared::target(&self.name)).await {
            Ok(lease) => Some(lease),
            Err(error) if error.reason == Reason::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut lease = found.clone().unwrap_or_else(|| json!({"metadata": {}}));
        let (key, value) = LABEL;
        object::set_meta(&mut lease, "name", json!(self.name));
        object::set_meta(&mut lease, "namespace", json!(NAMESPACE));
        object::set_meta(&mut lease, "labels", json!({key: value}));
        object::set_meta(&mut lease, "annotations", json!({ADDRESS: self.address.to_string()}));
        let spec = json!({
            "holderIdentity": self.name,
            "leaseDurationSeconds": GONE.as_secs(),
            "renewTime": now,
        });
        object::fields(&mut lease).insert("spec".into(), spec);
        let document = Document { value: lease, duplicates: Vec::new() };
        match found {
            Some(_) => {
                self.registry.update(&who, &Shared::target(&self.name), None, document, &options).await?;
            }
            None => {
                self.registry.create(&who, &Shared::target(""), document, &options).await?;
            }
        }
        let leases = self.leases().await?;
        let gone = self.known().gone(&self.name, &leases, Instant::now());
        for name in gone {
            let options = DeleteOptions::default();
            match self.registry.delete(&who, &Shared::target(&name), &options).await {
                Err(error) if error.reason != Reason::NotFound => return Err(error),
                _ => tracing::info!(name, "a control plane has been away for an hour and is forgotten"),
            }
        }
        Ok(())
    }
}

impl Known {
    /// How long each Lease but our own has not changed, as seen here. Those that are gone are forgotten.
    fn look<'a>(&mut self, own: &str, leases: &'a [Value], now: Instant) -> Vec<(&'a Value, Duration)> {
        let mut seen = BTreeMap::new();
        let mut ages = Vec::new();
        for lease in leases.iter().filter(|lease| object::name(lease) != own) {
            let version = object::text(lease, &["metadata", "resourceVersion"]);
            let name = object::name(lease).to_string();
            let since = match self.leases.get(&name) {
                Some((known, since)) if known == version => *since,
                _ => now,
            };
            seen.insert(name, (version.to_string(), since));
            ages.push((lease, now.duration_since(since)));
        }
        self.leases = seen;
        ages
    }

    fn alive(&mut self, own: &str, leases: &[Value], now: Instant) -> Vec<SocketAddr> {
        let ages = self.look(own, leases, now);
        let alive = ages.into_iter().filter(|(_, age)| *age < SILENT);
        let addresses = alive
            .filter_map(|(lease, _)| object::text(lease, &["metadata", "annotations", ADDRESS]).parse().ok());
        addresses.take(PEERS_MAX).collect()
    }

    fn gone(&mut self, own: &str, leases: &[Value], now: Instant) -> Vec<String> {
        let ages = self.look(own, leases, now);
        let gone = ages.into_iter().filter(|(_, age)| *age >= GONE);
        gone.map(|(lease, _)| object::name(lease).to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_not_asked_and_forgotten_in_the_end() {
        let lease = |name: &str, version: u32, address: &str| {
            let annotations = json!({ADDRESS: address});
            json!({"metadata": {"name": name, "resourceVersion": version.to_string(), "annotations": annotations}})
        };
        let start = Instant::now();
        let mut known = Known::default();
        let mut check = |seconds: u64, leases: &[Value], alive: &[&str], gone: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            let found: Vec<String> =
                known.alive("own", leases, now).iter().map(ToString::to_string).collect();
            assert_eq!(found, alive, "at {seconds}");
            assert_eq!(known.gone("own", leases, now), gone, "at {seconds}");
        };
        let (own, bad) = (lease("own", 1, "10.0.0.1:1"), lease("bad", 1, "not an address"));
        check(0, &[own.clone(), bad.clone(), lease("a", 1, "10.0.0.2:6443")], &["10.0.0.2:6443"], &[]);
        check(39, &[lease("a", 1, "10.0.0.2:6443")], &["10.0.0.2:6443"], &[]);
        check(40, &[lease("a", 1, "10.0.0.2:6443")], &[], &[]);
        check(50, &[lease("a", 2, "10.0.0.3:6443"), own], &["10.0.0.3:6443"], &[]);
        check(3649, &[lease("a", 2, "10.0.0.3:6443")], &[], &[]);
        check(3650, &[lease("a", 2, "10.0.0.3:6443")], &[], &["a"]);
        // One that was never seen before is as good as new: clocks are not compared.
        check(9999, &[lease("b", 7, "[fd00::1]:6443")], &["[fd00::1]:6443"], &[]);
    }
}
