//! The network of a local cluster: this machine's end, and the boards that have a namespace of their own.
//!
//! ```text
//!   this machine, board 1                                        board 2
//!   BRIDGE x.y.0.1/24 ◄─ coracle-control ── BRIDGEv2 ─ veth ─ eth0 x.y.0.2/24, default via x.y.0.1
//! ```
//! The first board is this machine: its pods are reached from here, and it reaches registries as this machine does. The others
//! come out by masquerading (table `ip BRIDGE`). Everything may be made twice and removed twice.
//!
//! Left out: a way through a firewall of this machine that drops what it forwards; nftables has none.

use super::place::{Network, Place};
use super::{netlink, netlink::LOOPBACK};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::statfs;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;

/// What boards call their way out.
const UPLINK: &str = "eth0";
/// The whole network's, in its first /24.
const PREFIX: u8 = 24;

/// Refuses a network that this machine is in already, by another link than ours.
///
/// # Errors
/// One line that says which.
pub fn check_free(place: &Place, network: Network) -> Result<()> {
    for found in nix::ifaddrs::getifaddrs().context("list the addresses of this machine")? {
        let address = found.address.and_then(|address| address.as_sockaddr_in().map(|address| address.ip()));
        let ours = found.interface_name.starts_with(place.bridge());
        if let Some(address) = address.filter(|address| network.contains(*address) && !ours) {
            let link = found.interface_name;
            bail!("{network} is in use: {link} has {address}; choose another one with --network");
        }
    }
    Ok(())
}

/// Makes this machine's end.
///
/// # Errors
/// The kernel's refusal.
pub fn make_bridge(place: &Place, network: Network) -> Result<()> {
    let name = place.bridge();
    let made = || -> Result<()> {
        netlink::make_bridge(name)?;
        let index = if_nametoindex(name)?;
        netlink::set_up(index)?;
        Ok(netlink::add_address(index, network.gateway(), PREFIX)?)
    };
    made().with_context(|| format!("bridge {name}"))
}

/// Whether this machine's end is there.
pub fn has_bridge(place: &Place) -> bool {
    if_nametoindex(place.bridge()).is_ok()
}

/// Makes a board's namespace and its way here.
///
/// # Errors
/// The kernel's refusal.
pub fn make_board(place: &Place, network: Network, n: u8) -> Result<()> {
    let made = || -> Result<()> {
        let path = place.netns(n);
        if !is_namespace(&path) {
            // One without its namespace leads nowhere.
            netlink::delete_link(&place.link(n))?;
            make_namespace(&path)?;
        }
        let netns = File::open(&path)?;
        if if_nametoindex(place.link(n).as_str()).is_err() {
            let bridge = if_nametoindex(place.bridge())?;
            netlink::make_veth(&place.link(n), bridge, UPLINK, netns.as_fd())?;
        }
        netlink::set_up(if_nametoindex(place.link(n).as_str())?)?;
        inside(&netns, || {
            let uplink = if_nametoindex(UPLINK)?;
            netlink::set_up(LOOPBACK)?;
            netlink::set_up(uplink)?;
            netlink::add_address(uplink, network.board(n), PREFIX)?;
            Ok(netlink::set_default_route(network.gateway())?)
        })?;
        let bridge = place.bridge();
        Ok(netlink::make_masquerade(bridge, network.gateway(), PREFIX, bridge)?)
    };
    made().with_context(|| format!("the network of board {n}"))
}

/// Removes a board's namespace and its way here. No process may be left in it.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_board(place: &Place, n: u8) -> Result<()> {
    let removed = || -> Result<()> {
        // The link first: a namespace takes its time to end, and what is in it goes with it.
        netlink::delete_link(&place.link(n))?;
        let path = place.netns(n);
        while is_namespace(&path) {
            umount2(&path, MntFlags::MNT_DETACH)?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    };
    removed().with_context(|| format!("the network of board {n}"))
}

/// Removes this machine's end.
///
/// # Errors
/// The kernel's refusal.
pub fn remove_bridge(place: &Place) -> Result<()> {
    let name = place.bridge();
    netlink::delete_masquerade(name).with_context(|| format!("table ip {name}"))?;
    netlink::delete_link(name).with_context(|| format!("bridge {name}"))
}

/// Whether a namespace is held by that file.
pub fn is_namespace(path: &Path) -> bool {
    const NSFS_MAGIC: u32 = 0x6e73_6673;
    // Of another width on each architecture.
    statfs(path).is_ok_and(|of| of.filesystem_type().0 as u32 == NSFS_MAGIC)
}

/// Makes a namespace that the file holds, for as long as it is mounted.
fn make_namespace(path: &Path) -> Result<()> {
    File::create(path)?;
    let make = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Some("/proc/thread-self/ns/net");
        Ok(mount(own, path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    };
    std::thread::scope(|scope| {
        scope.spawn(make).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs this in a namespace, in a thread that enters it and ends.
fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let enter = || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        work()
    };
    std::thread::scope(|scope| {
        scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
