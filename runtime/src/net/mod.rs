//! The network of one board: a bridge, a veth pair per pod, leases, masquerade and hostPorts.
//!
//! ```text
//!            pod netns                       agent's netns
//!   ┌──────────────────────────┐     ┌──────────────────────────────────────────────┐
//!   │ lo   eth0 10.88.0.7/16 ──┼─────┼── cor1f0a… ─┐                                │
//!   │      default 10.88.0.1   │     │             ├─ NAME 10.88.0.1/16 ── routing ─┼── outside
//!   └──────────────────────────┘     │  cor77c2… ──┘        table ip NAME (nat)     │
//!                                    └──────────────────────────────────────────────┘
//! ```
//!
//! Everything is done over netlink by this module's own small encoders; no program is run. Invariants:
//!
//! - A pod's lease file is made first and removed last, so whatever a crash leaves behind is found again: by its
//!   lease, by its link's name and alias (the pod's uid), or by its place in our table. [`Network::open`] and
//!   [`Network::reconcile`] put the table right from the leases; every call may be repeated.
//! - What does not carry our name is not touched: the bridge is recognised by its alias, a pod's link by name, alias
//!   and bridge, and the nftables table is ours by its name.
//! - The table changes in whole transactions; a packet sees the table before or after, never between.
//! - A pod sends as itself only: what its link brings with another's link-layer or IP address, or of another protocol
//!   than IPv4 and ARP, is dropped before the bridge sees it.
//! - The sockets belong to the network namespace that `open` was called in, whatever thread calls later.
//!
//! Left out: IPv6 (leases, rules and addresses have their place for it), other boards, services, network policy. A
//! host firewall that drops what it forwards has to let the bridge through; nftables has no way round another
//! table's drop. `net.ipv4.ip_forward` is switched on, and off again by [`Network::teardown`] if it was off before
//! and no other bridge is there that may have come to rely on it.

mod board;
mod census;
mod cidr;
mod conntrack;
mod dial;
mod error;
mod lease;
mod link;
mod netlink;
mod nft;
mod rules;
mod spoof;
mod sys;

pub use dial::PodDialer;

pub use census::{Census, census};
pub use cidr::{CidrError, Ipv4Cidr};
pub use error::NetError;
pub use netlink::Refusal;

use board::Board;
use coracle_pod::spec::{PodUid, Protocol};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Names the bridge and the nftables table: 1 to 15 of `a-z A-Z 0-9 - _`.
    pub name: String,
    /// Where pods get their addresses from.
    pub cidr: Ipv4Cidr,
    /// `RUN/net/leases`, a directory of this network's own.
    pub leases: PathBuf,
    /// Bytes of the longest packet on the bridge and in the pods; `None` leaves the kernel's 1500.
    pub mtu: Option<u32>,
}

/// One `containers[].ports[]` that has a `hostPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub protocol: Protocol,
    /// `hostIP`; `None`, `0.0.0.0` and `::` mean every address of the host.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
}

impl HostPort {
    /// The address that the port is bound to, `None` for all of them.
    fn bound_to(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether one packet could mean both.
    fn collides(&self, other: &HostPort) -> bool {
        let same_address = match (self.bound_to(), other.bound_to()) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        self.protocol == other.protocol && self.host_port == other.host_port && same_address
    }
}

/// As kubectl writes a port: `8080/TCP`, `192.0.2.1:8080/TCP`.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        match self.bound_to() {
            Some(ip) => write!(f, "{}/{protocol}", std::net::SocketAddr::new(ip, self.host_port)),
            None => write!(f, "{}/{protocol}", self.host_port),
        }
    }
}

/// The network of one agent. Calls block for milliseconds and wait for each other.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    board: Mutex<Board>,
}

impl Network {
    /// Makes what all pods share, or takes over what an earlier agent left: bridge, gateway address, forwarding,
    /// nftables table with the hostPorts of every leased pod. Idempotent.
    ///
    /// It costs a few milliseconds and needs the kernel's bridge and nf_tables, so an agent whose pods all use the
    /// host's network need not call it.
    ///
    /// # Errors
    /// See [`NetError`]. If no pod has a lease, nothing that was made is left.
    pub fn open(config: NetworkConfig) -> Result<Network, NetError> {
        let board = Board::open(&config)?;
        Ok(Network { config, board: Mutex::new(board) })
    }

    /// Puts the pod on the network: lease, link `eth0` in `netns` with address and default route, `lo` up,
    /// hostPorts. Returns its addresses (`status.podIPs`). A second call makes good what is missing, also in a new
    /// network namespace of the same pod, and returns the same; hostPorts are those of the first call.
    ///
    /// # Errors
    /// A hostPort of another pod, no free address, or the kernel's refusal. Call again, or [`Network::detach`].
    pub fn attach(&self, uid: &PodUid, netns: &Path, ports: &[HostPort]) -> Result<Vec<IpAddr>, NetError> {
        let failed = |source| NetError::Netns { path: netns.into(), source };
        let file = File::open(netns).map_err(failed)?;
        let pod = board::PodNamespace::enter(&file).map_err(failed)?;
        let mut board = self.board();
        Ok(vec![board.attach(&self.config, uid, pod, ports)?.into()])
    }

    /// Takes the pod off the network: hostPorts, tracked connections through them, link, lease. Idempotent; a pod
    /// that is unknown, or whose namespace is gone, is no error.
    ///
    /// # Errors
    /// The kernel's refusal; what is left is removed by calling again.
    pub fn detach(&self, uid: &PodUid) -> Result<(), NetError> {
        self.board().detach(&self.config, uid)
    }

    /// After a start: frees everything of pods that are not in `alive`, half-made things too, and puts links and
    /// rules of those that are right.
    ///
    /// # Errors
    /// The first refusal; calling again goes on from there.
    pub fn reconcile(&self, alive: &BTreeSet<PodUid>) -> Result<(), NetError> {
        self.board().reconcile(&self.config, alive)
    }

    /// The pod's addresses, `None` if it has no lease.
    pub fn addresses(&self, uid: &PodUid) -> Option<Vec<IpAddr>> {
        self.board().address(uid).map(|address| vec![address.into()])
    }

    /// The host's address on the bridge, as pods see it.
    pub fn gateway(&self) -> IpAddr {
        self.config.cidr.gateway().into()
    }

    /// Removes everything that this network ever made: pods' links and leases, table, bridge, and the directory of
    /// leases. Idempotent. After it only [`Network::open`] makes the network whole again.
    ///
    /// # Errors
    /// The first refusal; calling again goes on from there.
    pub fn teardown(&self) -> Result<(), NetError> {
        self.board().teardown(&self.config)
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Every call starts from what kernel and disk hold, so a panic in another one leaves nothing to distrust.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
