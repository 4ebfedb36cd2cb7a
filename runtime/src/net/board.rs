//! The steps of every call, on one board's sockets and leases.

use super::cidr::Ipv4Cidr;
use super::lease::{Lease, Leases};
use super::link::{self, Link, PodEnd};
use super::netlink::{Refusal, Socket};
use super::nft::Element;
use super::spoof::SpoofGuard;
use super::{HostPort, NetError, NetworkConfig, conntrack, rules, sys};
use coracle_pod::spec::{PodUid, Protocol};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

/// The pod's link, as in every other Kubernetes runtime.
const POD_LINK: &str = "eth0";
/// The host's end is called this and twelve digits of a hash: the kernel's 15 bytes.
const LINK_PREFIX: &str = "cor";
/// Names that a pod's link may have; the second and later ones only if the ones before are another pod's.
const LINK_NAMES_MAX: u32 = 4;
/// How our bridge is marked.
const BRIDGE_MARK: &str = "coracle";
/// The mark once forwarding was switched on by us.
const BRIDGE_MARK_FORWARDING: &str = "coracle; net.ipv4.ip_forward was 0";
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// A pod's network namespace, opened.
pub(super) struct PodNamespace<'a> {
    file: &'a File,
    route: Socket,
}

impl PodNamespace<'_> {
    /// Enters the namespace with a thread of its own, to open a netlink socket that stays there.
    pub(super) fn enter(file: &File) -> io::Result<PodNamespace<'_>> {
        let route = sys::inside(file, || Socket::open(SockProtocol::NetlinkRoute))??;
        Ok(PodNamespace { file, route })
    }
}

/// The kernel's side of a network, and its leases.
#[derive(Debug)]
pub(super) struct Board {
    /// The namespace that the network was opened in: `/proc/sys/net` shows the reading thread's.
    netns: File,
    route: Socket,
    netfilter: Socket,
    leases: Leases,
    spoof_guard: SpoofGuard,
}

impl Board {
    pub(super) fn open(config: &NetworkConfig) -> Result<Board, NetError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=15).contains(&config.name.len()) || !config.name.bytes().all(fits) {
            return Err(NetError::Name { name: config.name.clone() });
        }
        let netns =
            File::open(OWN_NETNS).map_err(|source| NetError::Netns { path: OWN_NETNS.into(), source })?;
        let route = Socket::open(SockProtocol::NetlinkRoute).map_err(NetError::doing("route netlink"))?;
        let netfilter = Socket::open(SockProtocol::NetlinkNetFilter)
            .map_err(|refusal| NetError::table(("netlink socket".into(), refusal)))?;
        let leases = Leases::open(&config.leases, config.cidr)?;
        let mut board = Board { netns, route, netfilter, leases, spoof_guard: SpoofGuard::default() };
        board.bridge(config)?;
        board.check_overlap(config)?;
        match board.set_up(config) {
            Err(failed) if board.leases.pods().next().is_none() => match board.teardown(config) {
                Ok(()) => Err(failed),
                Err(undo) => Err(NetError::Undo { failed: Box::new(failed), undo: Box::new(undo) }),
            },
            answer => answer.map(|_| board),
        }
    }

    pub(super) fn address(&self, uid: &PodUid) -> Option<Ipv4Addr> {
        self.leases.get(uid).map(|lease| lease.address)
    }

    pub(super) fn attach(
        &mut self,
        config: &NetworkConfig,
        uid: &PodUid,
        mut pod: PodNamespace<'_>,
        ports: &[HostPort],
    ) -> Result<Ipv4Addr, NetError> {
        let bridge = match self.bridge(config)? {
            Some(bridge) => bridge.index,
            None => self.set_up(config)?,
        };
        if self.leases.get(uid).is_none() {
            self.check_listeners(ports)?;
        }
        let lease = self.leases.take(uid, ports)?;
        self.connect(config, uid, bridge, &lease, &mut pod)?;
        configure(&config.cidr, lease.address, &mut pod.route)
            .map_err(NetError::doing(format!("pod {}: {POD_LINK}", uid.0)))?;
        if !lease.ports.is_empty() {
            self.open_ports(config, &lease)?;
        }
        Ok(lease.address)
    }

    pub(super) fn detach(&mut self, config: &NetworkConfig, uid: &PodUid) -> Result<(), NetError> {
        if let Some(lease) = self.leases.get(uid).cloned()
            && !lease.ports.is_empty()
        {
            self.close_ports(config, uid, &lease)?;
        }
        let bridge = self.bridge(config)?.map_or(0, |bridge| bridge.index);
        if let Some(link) = self.link_of(config, uid, bridge)?.existing() {
            self.spoof_guard.open(&config.name, &link.name, &mut self.netfilter)?;
            self.delete_link(&link)?;
        }
        self.leases.release(uid)?;
        // Whose a half-written lease is to be nobody can say; nobody writes one now.
        self.leases.release_broken()
    }

    pub(super) fn reconcile(
        &mut self,
        config: &NetworkConfig,
        alive: &BTreeSet<PodUid>,
    ) -> Result<(), NetError> {
        let bridge = self.set_up(config)?;
        let gone: Vec<PodUid> =
            self.leases.pods().map(|(uid, _)| uid).filter(|uid| !alive.contains(uid)).cloned().collect();
        for uid in gone {
            self.detach(config, &uid)?;
        }
        self.leases.release_broken()?;
        for link in self.our_links(config, bridge)? {
            let Some(lease) = self.leases.get(&PodUid(link.alias.clone())) else {
                self.spoof_guard.open(&config.name, &link.name, &mut self.netfilter)?;
                self.delete_link(&link)?;
                continue;
            };
            self.spoof_guard.close(&config.name, &link.name, lease.address, &mut self.netfilter)?;
            if link.master != bridge {
                link::set_master(&mut self.route, link.index, bridge)
                    .map_err(NetError::doing(format!("link {}", link.name)))?;
            }
        }
        Ok(())
    }

    pub(super) fn teardown(&mut self, config: &NetworkConfig) -> Result<(), NetError> {
        rules::no_table(&config.name).commit(&mut self.netfilter).map_err(NetError::table)?;
        self.spoof_guard.remove(&config.name, &mut self.netfilter)?;
        let bridge = self.bridge(config)?;
        for link in self.our_links(config, bridge.as_ref().map_or(0, |bridge| bridge.index))? {
            self.delete_link(&link)?;
        }
        if let Some(bridge) = bridge {
            if bridge.alias == BRIDGE_MARK_FORWARDING && !self.has_other_bridge(&bridge)? {
                self.sysctl(|| fs::write(IP_FORWARD, "0"))?;
            }
            self.delete_link(&bridge)?;
        }
        self.leases.remove_all()
    }

    /// Our bridge, if it is there.
    fn bridge(&mut self, config: &NetworkConfig) -> Result<Option<Link>, NetError> {
        let doing = || format!("bridge {}", config.name);
        let Some(found) = link::find(&mut self.route, &config.name).map_err(NetError::doing(doing()))? else {
            return Ok(None);
        };
        // A crash may fall between a bridge and its mark; its link-layer address is set with it.
        let half_made = found.alias.is_empty() && found.mac == link::mac_of(config.cidr.gateway());
        let marked = [BRIDGE_MARK, BRIDGE_MARK_FORWARDING].contains(&found.alias.as_str());
        if found.kind == "bridge" && (marked || half_made) {
            Ok(Some(found))
        } else {
            Err(NetError::ForeignLink { name: config.name.clone() })
        }
    }

    /// Makes everything that the pods share, or puts it right. Returns the bridge's index.
    fn set_up(&mut self, config: &NetworkConfig) -> Result<u32, NetError> {
        let doing = || format!("bridge {}", config.name);
        self.write_table(config, None)?;
        self.spoof_guard.make(&config.name, &mut self.netfilter)?;
        if self.bridge(config)?.is_none() {
            let mac = link::mac_of(config.cidr.gateway());
            link::make_bridge(&mut self.route, &config.name, mac, config.mtu).map_err(NetError::making(
                doing(),
                "bridge",
                "BRIDGE",
            ))?;
        }
        let Some(bridge) = self.bridge(config)? else {
            return Err(NetError::doing(doing())(Errno::ENODEV.into()));
        };
        let forwards = self.sysctl(|| fs::read_to_string(IP_FORWARD))?.trim() != "0";
        let mark = if forwards { BRIDGE_MARK } else { BRIDGE_MARK_FORWARDING };
        if bridge.alias.is_empty() || !forwards {
            link::set_alias(&mut self.route, bridge.index, mark).map_err(NetError::doing(doing()))?;
        }
        if !forwards {
            self.sysctl(|| fs::write(IP_FORWARD, "1"))?;
        }
        self.set_up_bridge(&config.cidr, bridge.index).map_err(NetError::doing(doing()))?;
        Ok(bridge.index)
    }

    fn set_up_bridge(&mut self, cidr: &Ipv4Cidr, bridge: u32) -> Result<(), Refusal> {
        link::set_up(&mut self.route, bridge)?;
        // 127.0.0.1:hostPort is answered by a pod: the bridge then carries what was a loopback address. The rules'
        // chain `guard` keeps pods themselves from using it.
        link::set_route_localnet(&mut self.route, bridge)?;
        for (index, address, prefix) in link::addresses(&mut self.route)? {
            if index == bridge && (address, prefix) != (cidr.gateway(), cidr.prefix()) {
                link::remove_address(&mut self.route, bridge, address, prefix)?;
            }
        }
        link::add_address(&mut self.route, bridge, cidr.gateway(), cidr.prefix())
    }

    /// Refuses a range that another link of the host is in: its neighbours would be looked for among the pods.
    fn check_overlap(&mut self, config: &NetworkConfig) -> Result<(), NetError> {
        let doing = || NetError::doing("addresses of the host");
        let links = link::all(&mut self.route).map_err(doing())?;
        for (index, address, prefix) in link::addresses(&mut self.route).map_err(doing())? {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let network = Ipv4Addr::from(u32::from(address) & mask);
            let overlaps = config.cidr.contains(network)
                || u32::from(config.cidr.network()) & mask == u32::from(network) && prefix > 0;
            let link = links.iter().find(|link| link.index == index);
            if let Some(link) = link.filter(|link| overlaps && link.name != config.name) {
                let address = format!("{address}/{prefix}");
                return Err(NetError::Overlap { cidr: config.cidr, address, link: link.name.clone() });
            }
        }
        Ok(())
    }

    fn sysctl<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, NetError> {
        let failed = |source| NetError::Sysctl { path: IP_FORWARD.into(), source };
        sys::inside(&self.netns, work).map_err(failed)?.map_err(failed)
    }

    fn has_other_bridge(&mut self, ours: &Link) -> Result<bool, NetError> {
        let links = link::all(&mut self.route).map_err(NetError::doing("links of the host"))?;
        Ok(links.iter().any(|link| link.kind == "bridge" && link.index != ours.index))
    }

    /// Makes sure that a veth pair leads from the bridge to the pod's `eth0`.
    fn connect(
        &mut self,
        config: &NetworkConfig,
        uid: &PodUid,
        bridge: u32,
        lease: &Lease,
        pod: &mut PodNamespace<'_>,
    ) -> Result<(), NetError> {
        let doing = || format!("veth of pod {}", uid.0);
        let inside = link::find(&mut pod.route, POD_LINK).map_err(NetError::doing(doing()))?;
        let host = match self.link_of(config, uid, bridge)? {
            HostLink::Existing(host) => {
                let paired = |inside: &Link| inside.peer == host.index && host.peer == inside.index;
                if inside.as_ref().is_some_and(paired) {
                    host
                } else {
                    // The other end is in a namespace of the same pod that is going, or gone.
                    self.delete_link(&host)?;
                    self.make_link(config, &host.name, uid, bridge, lease, pod)?
                }
            }
            HostLink::Free(name) => self.make_link(config, &name, uid, bridge, lease, pod)?,
        };
        if host.alias != uid.0 {
            link::set_alias(&mut self.route, host.index, &uid.0).map_err(NetError::doing(doing()))?;
        }
        if host.master != bridge {
            link::set_master(&mut self.route, host.index, bridge).map_err(NetError::doing(doing()))?;
        }
        if !lease.ports.is_empty() {
            link::set_hairpin(&mut self.route, host.index).map_err(NetError::doing(doing()))?;
        }
        self.spoof_guard.close(&config.name, &host.name, lease.address, &mut self.netfilter)
    }

    fn make_link(
        &mut self,
        config: &NetworkConfig,
        name: &str,
        uid: &PodUid,
        bridge: u32,
        lease: &Lease,
        pod: &PodNamespace<'_>,
    ) -> Result<Link, NetError> {
        let doing = || format!("veth of pod {}", uid.0);
        let end = PodEnd { netns: pod.file, name: POD_LINK, mac: link::mac_of(lease.address) };
        link::make_veth(&mut self.route, name, bridge, config.mtu, &end).map_err(NetError::making(
            doing(),
            "veth",
            "VETH",
        ))?;
        let made = link::find(&mut self.route, name).map_err(NetError::doing(doing()))?;
        made.ok_or_else(|| NetError::doing(doing())(Errno::ENODEV.into()))
    }

    /// The pod's link on the host, or the name that it is to have.
    fn link_of(&mut self, config: &NetworkConfig, uid: &PodUid, bridge: u32) -> Result<HostLink, NetError> {
        let mut free = None;
        for name in link_names(&config.name, uid) {
            let found =
                link::find(&mut self.route, &name).map_err(NetError::doing(format!("link {name}")))?;
            match found {
                Some(link) if is_of(&link, uid, bridge) => return Ok(HostLink::Existing(link)),
                Some(_) => {}
                None => {
                    free = free.or(Some(name));
                    // Names are given in this order, and a later one only when the earlier were taken: but those
                    // may have been freed since, so all are looked at.
                }
            }
        }
        free.map(HostLink::Free)
            .ok_or_else(|| NetError::doing(format!("veth of pod {}", uid.0))(Errno::EEXIST.into()))
    }

    /// Every pod's link on the host: with the mark of a pod, or a port of our bridge that a crash left without.
    fn our_links(&mut self, config: &NetworkConfig, bridge: u32) -> Result<Vec<Link>, NetError> {
        let mut links = link::all(&mut self.route).map_err(NetError::doing("links of the host"))?;
        links.retain(|link| match link.alias.as_str() {
            "" => {
                link.kind == "veth"
                    && bridge != 0
                    && link.master == bridge
                    && link.name.starts_with(LINK_PREFIX)
            }
            uid => {
                let uid = PodUid(uid.into());
                link.kind == "veth" && link_names(&config.name, &uid).any(|name| name == link.name)
            }
        });
        Ok(links)
    }

    fn delete_link(&mut self, link: &Link) -> Result<(), NetError> {
        link::delete(&mut self.route, link.index)
            .map_err(NetError::doing(format!("remove link {}", link.name)))
    }

    /// A program of the host that listens on a hostPort would go on listening and hear nothing (`ssh` and port 22):
    /// the pod is refused instead. What begins to listen later is not seen.
    fn check_listeners(&self, ports: &[HostPort]) -> Result<(), NetError> {
        let failed = |source| NetError::Netns { path: OWN_NETNS.into(), source };
        let taken = sys::inside(&self.netns, || ports.iter().find(|port| listened(port))).map_err(failed)?;
        taken.map_or(Ok(()), |port| Err(NetError::PortListened { port: port.to_string() }))
    }

    fn open_ports(&mut self, config: &NetworkConfig, lease: &Lease) -> Result<(), NetError> {
        let added = rules::add(&config.name, &elements(lease)).commit(&mut self.netfilter);
        self.or_whole_table(config, None, added)?;
        let taken_over = |flow: &conntrack::Flow| {
            lease.ports.iter().filter(|port| port.protocol == Protocol::Udp).any(|port| {
                let to_host = port.bound_to().is_none_or(|ip| ip == IpAddr::V4(flow.original.destination));
                flow.original.protocol == rules::number(Protocol::Udp)
                    && flow.original.destination_port == port.host_port
                    && flow.is_plain()
                    && to_host
            })
        };
        if lease.ports.iter().any(|port| port.protocol == Protocol::Udp) {
            self.forget(taken_over)?;
        }
        Ok(())
    }

    fn close_ports(&mut self, config: &NetworkConfig, uid: &PodUid, lease: &Lease) -> Result<(), NetError> {
        let removed = rules::remove(&config.name, &elements(lease)).commit(&mut self.netfilter);
        self.or_whole_table(config, Some(uid), removed)?;
        self.forget(|flow| flow.reply.source == lease.address && flow.original.destination != lease.address)
    }

    /// Somebody else may have changed the table (`nft flush ruleset`), or a crash have left it half changed: it is
    /// then written anew from the leases.
    fn or_whole_table(
        &mut self,
        config: &NetworkConfig,
        without: Option<&PodUid>,
        answer: Result<(), (String, Refusal)>,
    ) -> Result<(), NetError> {
        match answer {
            Err((_, refusal)) if matches!(refusal.errno, Errno::ENOENT | Errno::EEXIST) => {
                self.write_table(config, without)
            }
            answer => answer.map_err(NetError::table),
        }
    }

    fn write_table(&mut self, config: &NetworkConfig, without: Option<&PodUid>) -> Result<(), NetError> {
        let leased = self.leases.pods().filter(|(uid, _)| Some(*uid) != without);
        let mut all: Vec<Element> = leased.flat_map(|(_, lease)| elements(lease)).collect();
        all.sort();
        rules::whole_table(&config.name, &config.cidr, &all)
            .commit(&mut self.netfilter)
            .map_err(NetError::table)
    }

    fn forget(&mut self, stale: impl Fn(&conntrack::Flow) -> bool) -> Result<(), NetError> {
        match conntrack::forget(&mut self.netfilter, stale) {
            Err(refusal) if matches!(refusal.errno, Errno::EINVAL | Errno::EOPNOTSUPP) => {
                tracing::warn!(
                    %refusal,
                    "the kernel has no nf_conntrack_netlink (CONFIG_NF_CT_NETLINK): UDP clients of a hostPort may \
                     go on to a pod that is gone until they pause for 3 minutes"
                );
                Ok(())
            }
            answer => answer.map_err(NetError::doing("connection tracking")),
        }
    }
}

enum HostLink {
    Existing(Link),
    Free(String),
}

impl HostLink {
    fn existing(self) -> Option<Link> {
        match self {
            HostLink::Existing(link) => Some(link),
            HostLink::Free(_) => None,
        }
    }
}

/// Inside the pod: `lo` and the address and route of `eth0`.
fn configure(cidr: &Ipv4Cidr, address: Ipv4Addr, pod: &mut Socket) -> Result<(), Refusal> {
    let Some(inside) = link::find(pod, POD_LINK)? else { return Err(Errno::ENODEV.into()) };
    link::set_up(pod, link::LOOPBACK)?;
    link::set_up(pod, inside.index)?;
    link::add_address(pod, inside.index, address, cidr.prefix())?;
    link::set_default_route(pod, cidr.gateway())
}

/// Whether a socket of the calling thread's namespace has the port: by binding it for a moment, with `SO_REUSEADDR`
/// set by std, which a listener withstands and connections that are over do not.
fn listened(port: &HostPort) -> bool {
    let address = (port.bound_to().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port.host_port);
    let bound = match port.protocol {
        Protocol::Tcp => std::net::TcpListener::bind(address).map(drop),
        Protocol::Udp => std::net::UdpSocket::bind(address).map(drop),
        Protocol::Sctp => Ok(()),
    };
    // An address that is not here (yet) has no listener either.
    bound.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
}

fn elements(lease: &Lease) -> Vec<Element> {
    let mut elements: Vec<_> = lease.ports.iter().map(|port| rules::element(port, lease.address)).collect();
    elements.sort();
    elements.dedup();
    elements
}

/// A link under one of the pod's names is the pod's by its alias, or without one as a port of our bridge: a crash
/// between making and marking it.
fn is_of(link: &Link, uid: &PodUid, bridge: u32) -> bool {
    let half_made = link.alias.is_empty() && bridge != 0 && link.master == bridge;
    link.kind == "veth" && (link.alias == uid.0 || half_made)
}

/// The names that the pod's link may have. They hold the network's name too, for two agents in one namespace.
fn link_names(network: &str, uid: &PodUid) -> impl Iterator<Item = String> {
    // FNV-1a: the names must be the same in every version of this code, which std's hasher does not promise.
    let hash = |hash: u64, bytes: &[u8]| {
        bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let pod = hash(hash(0xcbf2_9ce4_8422_2325, network.as_bytes()), &[0]);
    let pod = hash(pod, uid.0.as_bytes());
    (0..LINK_NAMES_MAX)
        .map(move |salt| format!("{LINK_PREFIX}{:012x}", hash(pod, &salt.to_be_bytes()) & 0xffff_ffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_differ_and_stay_as_they_are() {
        let names = |network: &str, uid: &str| link_names(network, &PodUid(uid.into())).collect::<Vec<_>>();
        let all = [names("coracle", "a"), names("coracle", "b"), names("coracle2", "a")].concat();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 12);
        assert!(all.iter().all(|name| name.len() == 15));
        // An agent of another version looks for its pods' links under the same names.
        assert_eq!(names("coracle", "5f0d6c1e")[0], "cord266e306a72a");
    }
}
