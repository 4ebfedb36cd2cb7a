//! Forgetting tracked connections that would go on to a pod that is no more, or pass by one that is new.
//!
//! Connection tracking decides an address translation once per flow. A UDP client that sends from one port for ever
//! would be served by the first decision for ever. Follows `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use super::netlink::{Attributes, Message, Refusal, Socket, attribute, attributes};
use nix::errno::Errno;
use std::net::Ipv4Addr;

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];
const NESTED: u16 = 0x8000;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// One direction of a tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) destination_port: u16,
}

/// A tracked flow: as its first packet was, and as an answer is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) original: Tuple,
    pub(super) reply: Tuple,
}

impl Flow {
    /// Whether no address of the flow is translated.
    pub(super) fn is_plain(&self) -> bool {
        self.original.source == self.reply.destination && self.original.destination == self.reply.source
    }
}

/// Forgets every IPv4 flow that `stale` picks. The cost is one pass over the table of flows.
pub(super) fn forget(socket: &mut Socket, stale: impl Fn(&Flow) -> bool) -> Result<(), Refusal> {
    for body in socket.dump(&Message::new(SUBSYSTEM | GET, 0, &HEADER, &Attributes::new()))? {
        let found = body.get(HEADER.len()..).unwrap_or_default();
        let Some(flow) = parse(found) else { continue };
        if !stale(&flow) {
            continue;
        }
        let mut wanted = Attributes::new();
        for (kind, value) in attributes(found) {
            match kind {
                TUPLE_ORIGINAL => wanted = wanted.bytes(kind | NESTED, value),
                ID | ZONE => wanted = wanted.bytes(kind, value),
                _ => {}
            }
        }
        match socket.call(&Message::new(SUBSYSTEM | DELETE, 0, &HEADER, &wanted)) {
            // It ended by itself meanwhile.
            Err(refusal) if refusal.errno == Errno::ENOENT => {}
            answer => answer?,
        }
    }
    Ok(())
}

fn parse(body: &[u8]) -> Option<Flow> {
    Some(Flow {
        original: tuple(attribute(body, TUPLE_ORIGINAL)?)?,
        reply: tuple(attribute(body, TUPLE_REPLY)?)?,
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (ip, transport) = (attribute(bytes, 1)?, attribute(bytes, 2)?);
    let address = |kind| Some(Ipv4Addr::from(*attribute(ip, kind)?.first_chunk::<4>()?));
    let port = attribute(transport, 3).and_then(|value| value.first_chunk());
    Some(Tuple {
        source: address(1)?,
        destination: address(2)?,
        protocol: *attribute(transport, 1)?.first()?,
        destination_port: port.map_or(0, |bytes| u16::from_be_bytes(*bytes)),
    })
}
