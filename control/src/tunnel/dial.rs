//! Which way to a board, and the way by its address.

use super::{Relay, Tunnels};
use crate::object;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

/// TCP and TLS together.
pub(super) const CONNECT: Duration = Duration::from_secs(10);
/// The kubelet's port, where a node does not say.
const KUBELET_PORT: u16 = 10250;
/// Addresses of a node that are dialled, in this order.
const ADDRESS_TYPES: [&str; 2] = ["InternalIP", "ExternalIP"];

/// A pipe of bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A board that is not reached.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// Nothing more is opened.
    #[error("{} streams to the node are open", coracle_api::tunnel::STREAMS_MAX)]
    Full,
    /// Nothing more is opened for this user.
    #[error("{} of your streams to the node are open", super::link::STREAMS_OF_USER_MAX)]
    FullForUser,
    /// It closed its tunnel.
    #[error("the node's tunnel has ended")]
    Ended,
    /// The tunnel, or what went over it.
    #[error("the node's tunnel broke: {0}")]
    Broken(#[source] io::Error),
    /// A NAT has forgotten it, or it hangs.
    #[error("the node did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// Neither a tunnel nor an address.
    #[error("no tunnel is open and the node has no address")]
    NoAddress,
    /// Those that might have it were not all asked.
    #[error("no tunnel is open here, and the control plane at {peer} was not asked: {why}")]
    Peer {
        /// Where it is.
        peer: String,
        /// What it said, or what kept it from that.
        why: String,
    },
    /// Who the others are cannot be found out.
    #[error("no tunnel is open here, and the other control planes are not known: {0}")]
    Peers(#[source] coracle_api::status::StatusError),
    /// By its address.
    #[error("dial {address}: {source}")]
    Connect {
        /// Address and port.
        address: String,
        /// The kernel's answer, or TLS'.
        #[source]
        source: io::Error,
    },
    /// Whoever answers there has a certificate of our authority, and is not the node.
    #[error("dial {0}: what answers is not that node")]
    NotTheNode(String),
}

/// Reaches boards.
#[derive(Debug)]
pub struct Dialer {
    /// Those that came to us.
    pub tunnels: Tunnels,
    /// As whom we dial the others.
    tls: Arc<ClientConfig>,
    /// Where there may be other control planes.
    relay: Option<Relay>,
}

impl Dialer {
    /// With the API server's own certificate for kubelets.
    pub fn new(tls: Arc<ClientConfig>) -> Dialer {
        Dialer { tunnels: Tunnels::default(), tls, relay: None }
    }

    /// With the other control planes of the same etcd.
    #[must_use]
    pub fn with_relay(self, relay: Relay) -> Dialer {
        Dialer { relay: Some(relay), ..self }
    }

    /// A connection to the kubelet API of a `v1.Node`, for a user; for the control plane itself if `user` is empty.
    ///
    /// # Errors
    /// It is not reached.
    pub async fn dial(&self, node: &Value, user: &str) -> Result<Box<dyn Io>, TunnelError> {
        if let Some(opened) = self.tunnels.stream(object::name(node), user).await {
            return opened;
        }
        let mut elsewhere = TunnelError::NoAddress;
        if let Some(relay) = &self.relay {
            match relay.dial(object::name(node), user).await {
                Ok(Some(io)) => return Ok(io),
                Ok(None) => {}
                Err(error @ (TunnelError::Full | TunnelError::FullForUser)) => return Err(error),
                // Its address may lead there still.
                Err(error) => elsewhere = error,
            }
        }
        let Some((ip, port)) = address(node) else { return Err(elsewhere) };
        let address = std::net::SocketAddr::new(ip, port).to_string();
        let connected = tokio::time::timeout(CONNECT, async {
            let stream = TcpStream::connect((ip, port)).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(self.tls.clone()).connect(ServerName::IpAddress(ip.into()), stream).await
        });
        let tls = connected
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| TunnelError::Connect { address: address.clone(), source })?;
        // A node names its address itself: it must not send us, with our certificate, to somebody else.
        let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        if !leaf.is_some_and(|leaf| is_of(leaf, object::name(node))) {
            return Err(TunnelError::NotTheNode(address));
        }
        Ok(Box::new(tls))
    }
}

/// Whether a certificate's common name is a node's.
fn is_of(der: &[u8], node: &str) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let mut names = certificate.subject().iter_common_name();
    let name = names.next().and_then(|name| name.as_str().ok());
    name.and_then(|name| name.strip_prefix("system:node:")) == Some(node) && names.next().is_none()
}

fn address(node: &Value) -> Option<(IpAddr, u16)> {
    let of_type = |wanted: &&str| {
        let mut addresses = object::items(node, &["status", "addresses"]).iter();
        addresses.find_map(|address| {
            (object::text(address, &["type"]) == *wanted)
                .then(|| object::text(address, &["address"]))?
                .parse()
                .ok()
        })
    };
    let ip = ADDRESS_TYPES.iter().find_map(of_type)?;
    let port = object::at(node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]);
    let port = u16::try_from(port.as_u64().unwrap_or(KUBELET_PORT.into())).ok().filter(|port| *port != 0);
    Some((ip, port.unwrap_or(KUBELET_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_is_dialled_at_its_own_addresses() {
        let check = |status: Value, expected: Option<&str>| {
            let node = json!({"metadata": {"name": "a"}, "status": status});
            let found = address(&node).map(|(ip, port)| format!("{ip} {port}"));
            assert_eq!(found.as_deref(), expected, "{node}");
        };
        let addresses = |list: &[(&str, &str)]| -> Value {
            list.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect()
        };
        check(json!({}), None);
        check(json!({"addresses": addresses(&[("Hostname", "a")])}), None);
        check(json!({"addresses": addresses(&[("InternalIP", "no address")])}), None);
        check(json!({"addresses": addresses(&[("InternalIP", "10.0.0.1")])}), Some("10.0.0.1 10250"));
        let both = addresses(&[("ExternalIP", "1.2.3.4"), ("InternalIP", "fd00::1")]);
        let port = json!({"kubeletEndpoint": {"Port": 10351}});
        check(json!({"addresses": both, "daemonEndpoints": port}), Some("fd00::1 10351"));
        let wrong = json!({"kubeletEndpoint": {"Port": 0}});
        let one = addresses(&[("ExternalIP", "1.2.3.4")]);
        check(json!({"addresses": one, "daemonEndpoints": wrong}), Some("1.2.3.4 10250"));
    }
}
