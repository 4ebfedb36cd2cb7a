//! Route netlink: the bridge, the veth pairs, addresses and the default route.
//!
//! Follows `include/uapi/linux/{if_link,if_addr,rtnetlink}.h`. Nothing here knows pods or leases.

use super::netlink::{Attributes, Message, Refusal, Socket, attributes, text};
use nix::errno::Errno;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

const AF_INET: u8 = libc::AF_INET as u8;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;
const AF_UNSPEC: u8 = libc::AF_UNSPEC as u8;
const IFF_UP: u32 = libc::IFF_UP as u32;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const EXCLUSIVE: u16 = libc::NLM_F_EXCL as u16;
const REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// The loopback link's index: the kernel's `LOOPBACK_IFINDEX`, the same in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// The link-layer address that an IPv4 address goes by: a neighbour's cache stays right when an address moves on to
/// another pod. `0a:58` is the prefix that CNI's plugins use for the same.
pub(super) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// What one link says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// `bridge`, `veth`; empty for a physical link.
    pub(super) kind: String,
    pub(super) alias: String,
    /// The bridge that this link is a port of; 0 for none.
    pub(super) master: u32,
    /// A veth's other end, by its index in its own namespace; 0 for none.
    pub(super) peer: u32,
    pub(super) mac: Vec<u8>,
}

/// The link called `name`, if there is one.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let wanted =
        Attributes::new().native(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS).text(libc::IFLA_IFNAME, name);
    let message = Message::new(libc::RTM_GETLINK, 0, &link_header(AF_UNSPEC, 0, 0), &wanted);
    Ok(socket.get(&message)?.map(|body| parse(&body)))
}

/// Every link of the socket's namespace.
pub(super) fn all(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let wanted = Attributes::new().native(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let message = Message::new(libc::RTM_GETLINK, 0, &link_header(AF_UNSPEC, 0, 0), &wanted);
    Ok(socket.dump(&message)?.iter().map(|body| parse(body)).collect())
}

/// Makes a bridge, up, with a link-layer address of its own: one inherited from its ports would change with them,
/// and every pod's neighbour entry for its gateway would go stale.
pub(super) fn make_bridge(
    socket: &mut Socket,
    name: &str,
    mac: [u8; 6],
    mtu: Option<u32>,
) -> Result<(), Refusal> {
    let wanted = with_mtu(Attributes::new().text(libc::IFLA_IFNAME, name), mtu)
        .bytes(libc::IFLA_ADDRESS, &mac)
        .nest(libc::IFLA_LINKINFO, &Attributes::new().text(libc::IFLA_INFO_KIND, "bridge"));
    new_link(socket, &wanted)
}

/// One end of a veth pair in a pod's namespace.
pub(super) struct PodEnd<'a> {
    pub(super) netns: &'a File,
    pub(super) name: &'a str,
    pub(super) mac: [u8; 6],
}

/// Makes a veth pair in one message: `name`, a port of `bridge`, here; the other end in the pod's namespace, with
/// its final name and address from the start. Ours comes up; the pod's cannot before the pair is whole (`ENOTCONN`).
pub(super) fn make_veth(
    socket: &mut Socket,
    name: &str,
    bridge: u32,
    mtu: Option<u32>,
    pod: &PodEnd<'_>,
) -> Result<(), Refusal> {
    let netns = u32::try_from(pod.netns.as_raw_fd()).expect("an open file's number is not negative");
    let peer = with_mtu(Attributes::new().text(libc::IFLA_IFNAME, pod.name), mtu)
        .bytes(libc::IFLA_ADDRESS, &pod.mac)
        .native(libc::IFLA_NET_NS_FD, netns);
    let mut peer_info = link_header(AF_UNSPEC, 0, 0).to_vec();
    peer_info.extend(&peer.0);
    let data = Attributes::new().bytes(VETH_INFO_PEER, &peer_info);
    let info = Attributes::new().text(libc::IFLA_INFO_KIND, "veth").nest(libc::IFLA_INFO_DATA, &data);
    let wanted = with_mtu(Attributes::new().text(libc::IFLA_IFNAME, name), mtu)
        .native(libc::IFLA_MASTER, bridge)
        .nest(libc::IFLA_LINKINFO, &info);
    new_link(socket, &wanted)
}

/// Sets the link's alias, where this code keeps whose the link is.
pub(super) fn set_alias(socket: &mut Socket, index: u32, alias: &str) -> Result<(), Refusal> {
    set(socket, AF_UNSPEC, index, 0, &Attributes::new().bytes(libc::IFLA_IFALIAS, alias.as_bytes()))
}

/// Makes the link a port of `master`.
pub(super) fn set_master(socket: &mut Socket, index: u32, master: u32) -> Result<(), Refusal> {
    set(socket, AF_UNSPEC, index, 0, &Attributes::new().native(libc::IFLA_MASTER, master))
}

/// Lets the bridge send a frame back through the port that it came by. A pod that calls its own hostPort needs it
/// where `br_netfilter` rewrites addresses on the bridge itself.
pub(super) fn set_hairpin(socket: &mut Socket, port: u32) -> Result<(), Refusal> {
    let mode = Attributes::new().bytes(IFLA_BRPORT_MODE, &[1]);
    set(socket, AF_BRIDGE, port, 0, &Attributes::new().nest(libc::IFLA_PROTINFO, &mode))
}

/// Lets packets from and to 127.0.0.0/8 pass the link: `net.ipv4.conf.LINK.route_localnet`.
pub(super) fn set_route_localnet(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    let conf = Attributes::new().native(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
    let inet = Attributes::new().nest(IFLA_INET_CONF, &conf);
    let families = Attributes::new().nest(u16::from(AF_INET), &inet);
    set(socket, AF_UNSPEC, index, 0, &Attributes::new().nest(libc::IFLA_AF_SPEC, &families))
}

pub(super) fn set_up(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    set(socket, AF_UNSPEC, index, IFF_UP, &Attributes::new())
}

/// Removes a link, and a veth's other end with it. A link that is gone already is no error.
pub(super) fn delete(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    let header = link_header(AF_UNSPEC, index, 0);
    match socket.call(&Message::new(libc::RTM_DELLINK, 0, &header, &Attributes::new())) {
        Err(refusal) if refusal.errno == Errno::ENODEV => Ok(()),
        answer => answer,
    }
}

/// Every IPv4 address as (link, address, prefix).
pub(super) fn addresses(socket: &mut Socket) -> Result<Vec<(u32, Ipv4Addr, u8)>, Refusal> {
    let message = Message::new(libc::RTM_GETADDR, 0, &address_header(0, 0), &Attributes::new());
    let parse = |body: &Vec<u8>| {
        let [_, prefix, _, _, index @ ..] = *body.first_chunk::<8>()?;
        let local = attributes(&body[8..]).find(|(kind, _)| *kind == libc::IFA_LOCAL)?.1;
        Some((u32::from_ne_bytes(index), Ipv4Addr::from(*local.first_chunk::<4>()?), prefix))
    };
    Ok(socket.dump(&message)?.iter().filter_map(parse).collect())
}

/// Gives the link an address; one that it has already is no error.
pub(super) fn add_address(
    socket: &mut Socket,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), Refusal> {
    let wanted = address_attributes(address);
    let header = address_header(prefix, index);
    socket.call(&Message::new(libc::RTM_NEWADDR, CREATE | REPLACE, &header, &wanted))
}

pub(super) fn remove_address(
    socket: &mut Socket,
    index: u32,
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), Refusal> {
    let header = address_header(prefix, index);
    match socket.call(&Message::new(libc::RTM_DELADDR, 0, &header, &address_attributes(address))) {
        Err(refusal) if refusal.errno == Errno::EADDRNOTAVAIL => Ok(()),
        answer => answer,
    }
}

/// Routes everything by `gateway`, replacing what the default route was.
pub(super) fn set_default_route(socket: &mut Socket, gateway: Ipv4Addr) -> Result<(), Refusal> {
    // struct rtmsg: family, two prefix lengths, tos, table, protocol, scope, type, flags.
    let header = [
        AF_INET,
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let wanted = Attributes::new().bytes(libc::RTA_GATEWAY, &gateway.octets());
    socket.call(&Message::new(libc::RTM_NEWROUTE, CREATE | REPLACE, &header, &wanted))
}

fn new_link(socket: &mut Socket, wanted: &Attributes) -> Result<(), Refusal> {
    let header = link_header(AF_UNSPEC, 0, IFF_UP);
    socket.call(&Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &header, wanted))
}

fn set(socket: &mut Socket, family: u8, index: u32, flags: u32, wanted: &Attributes) -> Result<(), Refusal> {
    socket.call(&Message::new(libc::RTM_SETLINK, 0, &link_header(family, index, flags), wanted))
}

fn with_mtu(attributes: Attributes, mtu: Option<u32>) -> Attributes {
    match mtu {
        Some(bytes) => attributes.native(libc::IFLA_MTU, bytes),
        None => attributes,
    }
}

/// `struct ifinfomsg`: family, type, index, flags, and which of the flags change.
fn link_header(family: u8, index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_header(prefix: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [AF_INET, prefix, 0, libc::RT_SCOPE_UNIVERSE, a, b, c, d]
}

fn address_attributes(address: Ipv4Addr) -> Attributes {
    Attributes::new().bytes(libc::IFA_LOCAL, &address.octets()).bytes(libc::IFA_ADDRESS, &address.octets())
}

fn parse(body: &[u8]) -> Link {
    let number = |value: &[u8]| value.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    let mut link = Link { index: body.get(4..).map_or(0, number), ..Link::default() };
    for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_IFALIAS => link.alias = text(value),
            libc::IFLA_MASTER => link.master = number(value),
            libc::IFLA_LINK => link.peer = number(value),
            libc::IFLA_ADDRESS => link.mac = value.to_vec(),
            libc::IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}
