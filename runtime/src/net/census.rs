//! Counting what a network namespace holds, to show that nothing is left behind.

use super::netlink::{Attributes, Message, Socket, attribute, attributes};
use super::{NetError, link, nft};
use nix::sys::socket::SockProtocol;

const GET_TABLE: u16 = nft::SUBSYSTEM | 1;
const GET_RULE: u16 = nft::SUBSYSTEM | 7;
const GET_SET: u16 = nft::SUBSYSTEM | 10;
const GET_ELEMENT: u16 = nft::SUBSYSTEM | 13;

/// How many things there are, whoever made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Census {
    pub links: usize,
    pub ipv4_addresses: usize,
    pub nft_tables: usize,
    pub nft_rules: usize,
    /// Elements of every set and map.
    pub nft_elements: usize,
}

/// Counts what the calling thread's network namespace holds. Blocking.
///
/// # Errors
/// The kernel's refusal.
pub fn census() -> Result<Census, NetError> {
    let doing = || NetError::doing("census");
    let mut route = Socket::open(SockProtocol::NetlinkRoute).map_err(doing())?;
    let mut netfilter = Socket::open(SockProtocol::NetlinkNetFilter).map_err(doing())?;
    let mut dump = |kind, family, wanted: &Attributes| {
        netfilter.dump(&Message::new(kind, 0, &[family, 0, 0, 0], wanted)).map_err(doing())
    };
    let everything = Attributes::new();
    let mut nft_elements = 0;
    for set in dump(GET_SET, 0, &everything)? {
        let Some((header, body)) = set.split_first_chunk::<4>() else { continue };
        let (Some(table), Some(name)) = (attribute(body, 1), attribute(body, 2)) else { continue };
        let wanted = Attributes::new().bytes(1, table).bytes(2, name);
        for part in dump(GET_ELEMENT, header[0], &wanted)? {
            let list = part.get(4..).and_then(|body| attribute(body, 3)).unwrap_or_default();
            nft_elements += attributes(list).count();
        }
    }
    Ok(Census {
        nft_tables: dump(GET_TABLE, 0, &everything)?.len(),
        nft_rules: dump(GET_RULE, 0, &everything)?.len(),
        nft_elements,
        links: link::all(&mut route).map_err(doing())?.len(),
        ipv4_addresses: link::addresses(&mut route).map_err(doing())?.len(),
    })
}
