//! The one nftables table of a network, as a function of its range and the pods' hostPorts.
//!
//! ```text
//! table ip NAME {
//!   map ports     { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }   # hostPorts with a hostIP
//!   map ports_any {             inet_proto . inet_service : ipv4_addr . inet_service }   # hostPorts without
//!   chain guard       { type filter hook prerouting priority -300
//!                       iifname NAME ip daddr 127.0.0.0/8 drop
//!                       iifname NAME ip saddr != CIDR drop }
//!   chain hostports   { dnat to ip daddr . meta l4proto . th dport map @ports
//!                       dnat to meta l4proto . th dport map @ports_any }
//!   chain prerouting  { type nat hook prerouting priority -100;  fib daddr type local jump hostports }
//!   chain output      { type nat hook output priority -100;      fib daddr type local jump hostports }
//!   chain postrouting { type nat hook postrouting priority 100
//!                       oifname != NAME ip saddr CIDR masquerade
//!                       oifname NAME ct status dnat ip saddr CIDR masquerade
//!                       oifname NAME ct status dnat ip saddr 127.0.0.0/8 masquerade }
//! }
//! ```
//!
//! A lookup costs the same with one hostPort as with thousands. The first rule of `guard` closes what
//! `route_localnet` opens (CVE-2020-8558): pods do not reach services that listen on the host's loopback only. The
//! last two of `postrouting` bring the answer of a pod called through a hostPort back by the host, when the caller
//! is a pod of the same bridge (itself perhaps) or a process that called 127.0.0.1.
//!
//! A table of family `ip6` beside this one is what dual stack would add. What another table drops stays dropped: a
//! `forward` chain with policy drop that is not ours has to let NAME through. A port that a process of the host
//! listens on is shadowed by a pod's hostPort, as with CNI's portmap.

use super::HostPort;
use super::cidr::Ipv4Cidr;
use super::netlink::Attributes;
use super::nft::{
    Batch, Element, Hook, IPV4, Register, TYPE_IPV4, TYPE_PORT, TYPE_PROTOCOL, connection_status,
    destination, destination_kind, destination_port, differs, drop_packet, equal, input_link, jump,
    link_name, look_up, mask, masquerade, output_link, protocol, rewrite_destination, source,
};
use coracle_pod::spec::Protocol;
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr};

const PORTS: &str = "ports";
const PORTS_ANY: &str = "ports_any";
const HOSTPORTS: &str = "hostports";
/// `NF_IP_PRI_RAW`: before connection tracking restores an answer's real destination.
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_SNAT: i32 = 100;
/// `IPS_DST_NAT` of `nf_conntrack_common.h`.
const STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL` of `rtnetlink.h`.
const ROUTE_LOCAL: u32 = 2;

/// An expression that loads one end of a packet into a register.
type Load = fn(Register) -> Attributes;

/// What the kernel has not got, by how it refuses such a batch: an unknown chain type or expression is `ENOENT`, an
/// unknown subsystem `EOPNOTSUPP`, an unknown protocol of the socket `EPROTONOSUPPORT`.
pub(super) fn means_unsupported(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ENOPROTOOPT
    )
}

/// The IP protocol number.
pub(super) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// The map element of one hostPort of the pod at `pod`.
pub(super) fn element(port: &HostPort, pod: Ipv4Addr) -> Element {
    let [high, low] = port.host_port.to_be_bytes();
    let rest = [number(port.protocol), 0, 0, 0, high, low, 0, 0];
    let mut value = pod.octets().to_vec();
    value.extend(port.container_port.to_be_bytes());
    value.extend([0, 0]);
    match port.bound_to() {
        Some(IpAddr::V4(host)) => {
            let mut key = host.octets().to_vec();
            key.extend(rest);
            Element { map: PORTS, key, value }
        }
        // `attach` refuses an IPv6 hostIP, so only the wildcard is left.
        Some(IpAddr::V6(_)) | None => Element { map: PORTS_ANY, key: rest.to_vec(), value },
    }
}

/// Replaces the whole table `name`, whatever it held, in one transaction.
pub(super) fn whole_table<'a>(name: &'a str, cidr: &Ipv4Cidr, elements: &[Element]) -> Batch<'a> {
    let mut batch = Batch::new(IPV4, name);
    batch.make_table();
    batch.delete_table();
    batch.make_table();
    batch.map(PORTS, &[TYPE_IPV4, TYPE_PROTOCOL, TYPE_PORT], &[TYPE_IPV4, TYPE_PORT]);
    batch.map(PORTS_ANY, &[TYPE_PROTOCOL, TYPE_PORT], &[TYPE_IPV4, TYPE_PORT]);
    batch.chain(HOSTPORTS);
    batch.base_chain("guard", "filter", Hook::PreRouting, PRIORITY_RAW);
    batch.base_chain("prerouting", "nat", Hook::PreRouting, PRIORITY_DNAT);
    batch.base_chain("output", "nat", Hook::Output, PRIORITY_DNAT);
    batch.base_chain("postrouting", "nat", Hook::PostRouting, PRIORITY_SNAT);

    let [first, second, third] = [Register(0), Register(1), Register(2)];
    let bridge = link_name(name);
    let in_range = |end: Load| [end(first), mask(first, cidr.mask().octets())];
    let network = cidr.network().octets();
    let loopback = |end: Load| [end(first), mask(first, [255, 0, 0, 0]), equal(first, &[127, 0, 0, 0])];

    let from_bridge = || vec![input_link(first), equal(first, &bridge)];
    batch.rule("guard", from_bridge().into_iter().chain(loopback(destination)).chain([drop_packet()]));
    let foreign = from_bridge().into_iter().chain(in_range(source)).chain([differs(first, &network)]);
    batch.rule("guard", foreign.chain([drop_packet()]));

    let rewrite = || rewrite_destination(IPV4, first, second);
    batch.rule(
        HOSTPORTS,
        [
            destination(first),
            protocol(second),
            destination_port(third),
            look_up(PORTS, first, first),
            rewrite(),
        ],
    );
    batch.rule(
        HOSTPORTS,
        [protocol(first), destination_port(second), look_up(PORTS_ANY, first, first), rewrite()],
    );
    for chain in ["prerouting", "output"] {
        let local = equal(first, &ROUTE_LOCAL.to_ne_bytes());
        batch.rule(chain, [destination_kind(first), local, jump(HOSTPORTS)]);
    }

    let leaving = [output_link(first), differs(first, &bridge)];
    let from_pod = || in_range(source).into_iter().chain([equal(first, &network)]);
    batch.rule("postrouting", leaving.into_iter().chain(from_pod()).chain([masquerade()]));
    let through_hostport = || {
        let dnat = STATUS_DNAT.to_ne_bytes();
        let set = [connection_status(first), mask(first, dnat), differs(first, &[0; 4])];
        [output_link(first), equal(first, &bridge)].into_iter().chain(set)
    };
    batch.rule("postrouting", through_hostport().chain(from_pod()).chain([masquerade()]));
    batch.rule("postrouting", through_hostport().chain(loopback(source)).chain([masquerade()]));
    batch.add(elements);
    batch
}

/// Removes the table, whether it is there or not.
pub(super) fn no_table(name: &str) -> Batch<'_> {
    let mut batch = Batch::new(IPV4, name);
    batch.make_table();
    batch.delete_table();
    batch
}

/// Adds elements; refused with `ENOENT` or `EEXIST` if the table is not what this code left.
pub(super) fn add<'a>(name: &'a str, elements: &[Element]) -> Batch<'a> {
    let mut batch = Batch::new(IPV4, name);
    batch.add(elements);
    batch
}

/// Removes elements; refused with `ENOENT` if one is missing.
pub(super) fn remove<'a>(name: &'a str, elements: &[Element]) -> Batch<'a> {
    let mut batch = Batch::new(IPV4, name);
    batch.remove(elements);
    batch
}
