//! What keeps a pod from sending as another pod, or as the gateway: containers have `CAP_NET_RAW` by default, and with
//! it any frame, forged ARP answers above all, goes onto a bridge that everybody is on.
//!
//! ```text
//! table netdev NAME {
//!   chain LINK { type filter hook ingress device LINK priority 0
//!                ether saddr != MAC drop
//!                meta protocol ip  ip saddr != ADDRESS drop
//!                meta protocol arp arp saddr ether != MAC drop
//!                meta protocol arp arp saddr ip != ADDRESS drop
//!                meta protocol != ip meta protocol != arp drop }     one chain for each pod's link
//! }
//! ```
//!
//! IPv6 is among what is dropped: the network has none, and a router advertisement would be believed by every pod.

use super::netlink::{Refusal, Socket};
use super::nft::{
    Batch, NETDEV, Register, arp_link_source, arp_source, differs, drop_packet, equal, link_protocol,
    link_source, source,
};
use super::{NetError, link, rules};
use nix::errno::Errno;
use std::net::Ipv4Addr;

const ETHERTYPE_IP: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];

/// The table of family `netdev`.
#[derive(Debug, Default)]
pub(super) struct SpoofGuard {
    /// The kernel has none, which was said once.
    unsupported: bool,
}

impl SpoofGuard {
    /// Makes the table, which the links' chains come into. Idempotent.
    pub(super) fn make(&mut self, table: &str, netfilter: &mut Socket) -> Result<(), NetError> {
        let mut batch = Batch::new(NETDEV, table);
        batch.make_table();
        self.commit(batch, netfilter)
    }

    /// Lets nothing through the pod's link but what is from `address`. Idempotent.
    pub(super) fn close(
        &mut self,
        table: &str,
        link: &str,
        address: Ipv4Addr,
        netfilter: &mut Socket,
    ) -> Result<(), NetError> {
        self.commit(chain(table, link, address), netfilter)
    }

    fn commit(&mut self, batch: Batch<'_>, netfilter: &mut Socket) -> Result<(), NetError> {
        if self.unsupported {
            return Ok(());
        }
        match batch.commit(netfilter) {
            Err((step, refusal)) if rules::means_unsupported(refusal.errno) => {
                tracing::warn!(
                    step,
                    %refusal,
                    "the kernel has no nf_tables at a link's ingress (CONFIG_NF_TABLES_NETDEV): a pod with \
                     CAP_NET_RAW can send as another pod"
                );
                self.unsupported = true;
                Ok(())
            }
            answer => answer.map_err(NetError::table),
        }
    }

    /// The reverse, before the link goes: newer kernels keep the chain of a link that is gone.
    #[expect(clippy::unused_self, reason = "the reverse of `close`")]
    pub(super) fn open(&self, table: &str, link: &str, netfilter: &mut Socket) -> Result<(), NetError> {
        let mut batch = Batch::new(NETDEV, table);
        batch.delete_chain(link);
        gone(batch.commit(netfilter))
    }

    /// Removes the whole table. Idempotent.
    #[expect(clippy::unused_self, reason = "the reverse of `close`")]
    pub(super) fn remove(&self, table: &str, netfilter: &mut Socket) -> Result<(), NetError> {
        let mut batch = Batch::new(NETDEV, table);
        batch.delete_table();
        gone(batch.commit(netfilter))
    }
}

/// What is not there, or cannot be on this kernel, is gone.
fn gone(answer: Result<(), (String, Refusal)>) -> Result<(), NetError> {
    match answer {
        Err((_, refusal)) if refusal.errno == Errno::ENOENT || rules::means_unsupported(refusal.errno) => {
            Ok(())
        }
        answer => answer.map_err(NetError::table),
    }
}

fn chain<'a>(table: &'a str, link: &str, address: Ipv4Addr) -> Batch<'a> {
    let [first, second] = [Register(0), Register(1)];
    let (mac, address) = (link::mac_of(address), address.octets());
    let is = |kind: &[u8; 2]| [link_protocol(first), equal(first, kind)];
    let is_not = |kind: &[u8; 2]| [link_protocol(first), differs(first, kind)];
    let mut batch = Batch::new(NETDEV, table);
    batch.make_table();
    batch.link_chain(link);
    batch.rule(link, [link_source(first), differs(first, &mac), drop_packet()]);
    let mut drop_if = |kind: &[u8; 2], field, value: &[u8]| {
        batch.rule(link, is(kind).into_iter().chain([field, differs(second, value), drop_packet()]));
    };
    drop_if(&ETHERTYPE_IP, source(second), &address);
    drop_if(&ETHERTYPE_ARP, arp_link_source(second), &mac);
    drop_if(&ETHERTYPE_ARP, arp_source(second), &address);
    let neither = is_not(&ETHERTYPE_IP).into_iter().chain(is_not(&ETHERTYPE_ARP));
    batch.rule(link, neither.chain([drop_packet()]));
    batch
}
