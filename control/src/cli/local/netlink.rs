//! The few requests to the kernel that a local cluster's network is made of: links, addresses, one route, one table of nftables.
//!
//! Follows `include/uapi/linux/{netlink,rtnetlink,if_link,if_addr}.h` and `netfilter/nf_tables.h`. The kernel handles a request
//! within `send`, so that its acknowledgement is queued when that returns: nothing here waits. Every call asks in the network
//! namespace of the calling thread. Nothing is read but acknowledgements.

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Acknowledgements are short: the kernel cuts what it was sent off after this.
const ANSWER_BYTES_MAX: usize = 8 << 10;
const HEADER_BYTES: usize = 16;
const NESTED: u16 = 0x8000;
const VETH_INFO_PEER: u16 = 1;
/// `IFLA_BR_MCAST_SNOOPING` and the like are left as they are; of a bridge only its kind is said.
const KIND: u16 = libc::IFLA_INFO_KIND;
/// `LOOPBACK_IFINDEX`: the same in every namespace.
pub const LOOPBACK: u32 = 1;

/// One request: its type, flags besides `NLM_F_REQUEST`, and what follows the header.
struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("nothing here comes near 64 KiB");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &parts.concat())
}

/// A number in network byte order, as netfilter has them.
fn network(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// `struct ifinfomsg`: family, type, index, flags, and which of the flags change.
fn link(index: u32, up: bool, attributes: &[Vec<u8>]) -> Vec<u8> {
    let flags = if up { libc::IFF_UP.unsigned_abs() } else { 0 };
    let mut bytes = vec![0; 4];
    for number in [index, flags, flags] {
        bytes.extend(number.to_ne_bytes());
    }
    bytes.extend(attributes.concat());
    bytes
}

/// Makes a bridge, or leaves the one that is there, and sets it up.
///
/// # Errors
/// The kernel's refusal.
pub fn make_bridge(name: &str) -> Result<(), Errno> {
    let wanted = [text(libc::IFLA_IFNAME, name), nest(libc::IFLA_LINKINFO, &[text(KIND, "bridge")])];
    new_link(link(0, true, &wanted))
}

/// Makes a veth pair: `name`, up, a port of the bridge with that index; and `peer` in the other namespace.
///
/// # Errors
/// The kernel's refusal.
pub fn make_veth(name: &str, bridge: u32, peer: &str, netns: BorrowedFd<'_>) -> Result<(), Errno> {
    let netns = netns.as_raw_fd().unsigned_abs().to_ne_bytes();
    let other = [text(libc::IFLA_IFNAME, peer), attribute(libc::IFLA_NET_NS_FD, &netns)];
    let data = [attribute(VETH_INFO_PEER, &link(0, false, &other))];
    let info = [text(KIND, "veth"), nest(libc::IFLA_INFO_DATA, &data)];
    let wanted = [
        text(libc::IFLA_IFNAME, name),
        attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes()),
        nest(libc::IFLA_LINKINFO, &info),
    ];
    new_link(link(0, true, &wanted))
}

fn new_link(body: Vec<u8>) -> Result<(), Errno> {
    route(Request { kind: libc::RTM_NEWLINK, flags: create(0), body })
}

/// Sets a link up.
///
/// # Errors
/// The kernel's refusal.
pub fn set_up(index: u32) -> Result<(), Errno> {
    route(Request { kind: libc::RTM_NEWLINK, flags: 0, body: link(index, true, &[]) })
}

/// Removes a link, and with it a veth's other end. One that is not there is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn delete_link(name: &str) -> Result<(), Errno> {
    let body = link(0, false, &[text(libc::IFLA_IFNAME, name)]);
    match route(Request { kind: libc::RTM_DELLINK, flags: 0, body }) {
        Err(Errno::ENODEV) => Ok(()),
        answer => answer,
    }
}

/// Gives a link an address; one that it has already is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn add_address(index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index.
    let mut body = vec![libc::AF_INET.unsigned_abs() as u8, prefix, 0, libc::RT_SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body.extend(attribute(kind, &address.octets()));
    }
    route(Request { kind: libc::RTM_NEWADDR, flags: create(libc::NLM_F_REPLACE), body })
}

/// Routes everything by `gateway`.
///
/// # Errors
/// The kernel's refusal.
pub fn set_default_route(gateway: Ipv4Addr) -> Result<(), Errno> {
    // struct rtmsg: family, two prefix lengths, tos, table, protocol, scope, type, flags.
    let (family, table) = (libc::AF_INET.unsigned_abs() as u8, libc::RT_TABLE_MAIN);
    let kinds = [libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST];
    let mut body = vec![family, 0, 0, 0, table, kinds[0], kinds[1], kinds[2], 0, 0, 0, 0];
    body.extend(attribute(libc::RTA_GATEWAY, &gateway.octets()));
    route(Request { kind: libc::RTM_NEWROUTE, flags: create(libc::NLM_F_REPLACE), body })
}

fn create(more: i32) -> u16 {
    (libc::NLM_F_CREATE | more) as u16
}

fn route(request: Request) -> Result<(), Errno> {
    call(SockProtocol::NetlinkRoute, vec![request])
}

/// Makes `table ip NAME`, whatever it held, with the one chain that a network behind this machine needs:
///
/// ```text
/// chain postrouting { type nat hook postrouting priority 100
///                     ip saddr != GATEWAY ip saddr NETWORK/PREFIX oifname != BRIDGE masquerade }
/// ```
/// What this machine itself sends from its address there, to itself by `lo` too, stays as it is.
///
/// # Errors
/// The kernel's refusal; nothing is changed then.
pub fn make_masquerade(table: &str, gateway: Ipv4Addr, prefix: u8, bridge: &str) -> Result<(), Errno> {
    const POSTROUTING: u32 = 4;
    const PRIORITY_SNAT: u32 = 100;
    /// `NFT_REG32_00`: four of these hold a link's name.
    const REGISTER: u32 = 8;
    const OUTPUT_LINK_NAME: u32 = 7;
    let expression = |name: &str, data: &[Vec<u8>]| nest(1, &[text(1, name), nest(2, data)]);
    let compare = |operation: u32, value: &[u8]| {
        expression("cmp", &[network(1, REGISTER), network(2, operation), nest(3, &[attribute(1, value)])])
    };
    let (equal, differs) = (0, 1);
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    let from = Ipv4Addr::from(u32::from(gateway) & mask);
    let mut link_name = [0; 16];
    link_name[..bridge.len()].copy_from_slice(bridge.as_bytes());
    let rule = [
        // ip saddr, and what of it is the network.
        expression("payload", &[network(1, REGISTER), network(2, 1), network(3, 12), network(4, 4)]),
        compare(differs, &gateway.octets()),
        expression(
            "bitwise",
            &[
                network(1, REGISTER),
                network(2, REGISTER),
                network(3, 4),
                nest(4, &[attribute(1, &mask.to_be_bytes())]),
                nest(5, &[attribute(1, &[0; 4])]),
            ],
        ),
        compare(equal, &from.octets()),
        expression("meta", &[network(1, REGISTER), network(2, OUTPUT_LINK_NAME)]),
        compare(differs, &link_name),
        expression("masq", &[]),
    ];
    let named = text(1, table);
    let hook = nest(4, &[network(1, POSTROUTING), network(2, PRIORITY_SNAT)]);
    let accept = network(5, 1);
    let steps = vec![
        (NEW_TABLE, create(0), vec![named.clone()]),
        (DELETE_TABLE, 0, vec![named.clone()]),
        (NEW_TABLE, create(0), vec![named.clone()]),
        (NEW_CHAIN, create(0), vec![named.clone(), text(3, "postrouting"), hook, accept, text(7, "nat")]),
        (NEW_RULE, create(libc::NLM_F_APPEND), vec![named, text(2, "postrouting"), nest(4, &rule)]),
    ];
    netfilter(steps)
}

/// Removes that table. One that is not there is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn delete_masquerade(table: &str) -> Result<(), Errno> {
    match netfilter(vec![(DELETE_TABLE, 0, vec![text(1, table)])]) {
        Err(Errno::ENOENT) => Ok(()),
        answer => answer,
    }
}

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

/// One transaction of the kernel's.
fn netfilter(steps: Vec<(u16, u16, Vec<Vec<u8>>)>) -> Result<(), Errno> {
    /// `NFPROTO_IPV4`.
    const IPV4: u8 = 2;
    let bound = |kind| Request { kind, flags: 0, body: vec![0, 0, 0, 10] };
    let mut requests = vec![bound(BATCH_BEGIN)];
    for (kind, flags, attributes) in steps {
        let body = [vec![IPV4, 0, 0, 0], attributes.concat()].concat();
        // The batch's own end is not acknowledged before Linux 6.10.
        requests.push(Request { kind: SUBSYSTEM | kind, flags: flags | libc::NLM_F_ACK as u16, body });
    }
    requests.push(bound(BATCH_END));
    call(SockProtocol::NetlinkNetFilter, requests)
}

/// Sends all in one datagram; the first refusal, if there is one.
fn call(protocol: SockProtocol, mut requests: Vec<Request>) -> Result<(), Errno> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    if let [only] = requests.as_mut_slice() {
        only.flags |= libc::NLM_F_ACK as u16;
    }
    let mut bytes = Vec::new();
    for (sequence, request) in (1_u32..).zip(&requests) {
        let length = u32::try_from(HEADER_BYTES + request.body.len()).expect("far below 4 GiB");
        bytes.extend(length.to_ne_bytes());
        bytes.extend(request.kind.to_ne_bytes());
        bytes.extend((request.flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&request.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if send(fd.as_raw_fd(), &bytes, MsgFlags::empty())? != bytes.len() {
        return Err(Errno::EMSGSIZE);
    }
    let mut acknowledged = 0;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let length = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => break,
            answer => answer?,
        };
        let mut rest = &buffer[..length];
        while let Some((code, after)) = answer(rest) {
            rest = after;
            match code {
                Some(0) => acknowledged += 1,
                Some(code) => return Err(Errno::from_raw(code.wrapping_neg())),
                None => {}
            }
        }
    }
    if acknowledged > 0 { Ok(()) } else { Err(Errno::ENOMSG) }
}

/// The code of the first message if it is an acknowledgement, and what follows it.
fn answer(bytes: &[u8]) -> Option<(Option<i32>, &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER_BYTES..length)?;
    let code = (i32::from(kind) == libc::NLMSG_ERROR)
        .then(|| body.first_chunk().map_or(-libc::EBADMSG, |code| i32::from_ne_bytes(*code)));
    Some((code, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_answers_are_no_panic() {
        for bytes in [&[][..], &[1, 0, 0], &[0; 15], &[0; 16], &[255; 40]] {
            assert!(answer(bytes).is_none(), "{bytes:?}");
        }
        let mut refused =
            [20_u32.to_ne_bytes(), [2, 0, 0, 0], [0; 4], [0; 4], (-17_i32).to_ne_bytes()].concat();
        assert_eq!(answer(&refused).map(|(code, _)| code), Some(Some(-17)));
        refused[4] = 3;
        assert_eq!(answer(&refused).map(|(code, _)| code), Some(None));
    }

    #[test]
    fn an_attribute_is_padded_and_its_length_is_not() {
        assert_eq!(text(3, "abc"), [8, 0, 3, 0, b'a', b'b', b'c', 0]);
        assert_eq!(nest(1, &[attribute(2, &[7])]), [12, 0, 1, 128, 5, 0, 2, 0, 7, 0, 0, 0]);
    }
}
