//! Why a pod cannot be on the network, in words for the board's owner.

use super::cidr::Ipv4Cidr;
use super::netlink::Refusal;
use super::rules;
use coracle_pod::spec::PodUid;
use nix::errno::Errno;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// What the network of one board could not do.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{name:?} cannot name a bridge: take 1 to 15 of a-z, A-Z, 0-9, - and _")]
    Name { name: String },
    #[error(
        "a link {name} exists that is not Coracle's bridge: remove it, or choose another name in the config"
    )]
    ForeignLink { name: String },
    #[error(
        "network_cidr {cidr} overlaps {address} of link {link}: choose a range that the board does not use"
    )]
    Overlap { cidr: Ipv4Cidr, address: String, link: String },
    #[error(
        "{foreign} is outside {cidr}, but a pod has it by {directory}: put network_cidr back, or remove that pod",
        directory = directory.display()
    )]
    RangeChanged { cidr: Ipv4Cidr, foreign: Ipv4Addr, directory: PathBuf },
    #[error("no free address in {cidr}: {pods} pods have one each; widen network_cidr or run fewer pods")]
    Exhausted { cidr: Ipv4Cidr, pods: usize },
    #[error("hostPort {port} is already used by pod {}", holder.0)]
    PortTaken { port: String, holder: PodUid },
    #[error(
        "hostPort {port} is already in use by a program of this host: stop it (ss -lntup shows it), or choose another port"
    )]
    PortListened { port: String },
    #[error("hostPort {port}: this network has no IPv6; give an IPv4 hostIP or none")]
    Ipv6HostPort { port: String, host: Ipv6Addr },
    #[error("lease {path}: {source}", path = path.display())]
    Lease { path: PathBuf, source: io::Error },
    #[error("network namespace {path}: {source}", path = path.display())]
    Netns { path: PathBuf, source: io::Error },
    #[error("cannot set {path}: {source}; set it to 1 yourself, or let the agent write it", path = path.display())]
    Sysctl { path: PathBuf, source: io::Error },
    #[error("{doing}: not permitted: the agent needs CAP_NET_ADMIN and CAP_SYS_ADMIN; run it as root")]
    Permission { doing: String },
    #[error("{doing}: the kernel has no {kind} links: load module {kind} (CONFIG_{config})")]
    NoLinkKind { doing: String, kind: &'static str, config: &'static str, source: Refusal },
    #[error(
        "nftables, {step}: {source}: the kernel has no nf_tables nat; load nf_tables, nft_chain_nat, nft_nat, \
         nft_masq, nft_ct and nft_fib_ipv4 (CONFIG_NF_TABLES, NF_TABLES_IPV4, NFT_NAT, NFT_MASQ, NFT_CT, \
         NFT_FIB_IPV4)"
    )]
    NoNat { step: String, source: Refusal },
    #[error("{doing}: {source}")]
    Refused { doing: String, source: Refusal },
    /// Something failed, and so did undoing what was made before it.
    #[error("{failed}; undoing that: {undo}")]
    Undo { failed: Box<NetError>, undo: Box<NetError> },
}

impl NetError {
    /// For `map_err`: what was being done when the kernel refused.
    pub(super) fn doing(doing: impl Into<String>) -> impl FnOnce(Refusal) -> NetError {
        |source| match source.errno {
            Errno::EPERM | Errno::EACCES => NetError::Permission { doing: doing.into() },
            _ => NetError::Refused { doing: doing.into(), source },
        }
    }

    /// As [`NetError::doing`], for making a link of `kind`.
    pub(super) fn making(
        doing: impl Into<String>,
        kind: &'static str,
        config: &'static str,
    ) -> impl FnOnce(Refusal) -> NetError {
        move |source| match source.errno {
            Errno::EOPNOTSUPP => NetError::NoLinkKind { doing: doing.into(), kind, config, source },
            _ => NetError::doing(doing)(source),
        }
    }

    /// A refused step of a batch that makes the whole table.
    pub(super) fn table((step, source): (String, Refusal)) -> NetError {
        match source.errno {
            errno if rules::means_unsupported(errno) => NetError::NoNat { step, source },
            _ => NetError::doing(format!("nftables, {step}"))(source),
        }
    }
}
