//! Connections from within a pod's network, for port-forward: its loopback is nowhere else.

use super::sys;
use crate::layout::Layout;
use crate::sandbox;
use coracle_pod::PodSpec;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use tokio::net::{TcpSocket, TcpStream};

/// A pod's network namespace, held open; of a pod in the host's network, the agent's.
#[derive(Debug)]
pub struct PodDialer(Option<File>);

impl PodDialer {
    /// Of a pod whose sandbox is there.
    ///
    /// # Errors
    /// It is not.
    pub fn open(layout: &Layout, pod: &PodSpec) -> io::Result<PodDialer> {
        sandbox::namespace(layout, pod, "net").map(File::open).transpose().map(PodDialer)
    }

    /// Connects. The socket is made in the namespace, by a thread that enters it and ends; the rest is waited for without
    /// one.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let make = || socket(family, SockType::Stream, flags, None);
        let made = match &self.0 {
            Some(netns) => sys::inside(netns, make)?,
            None => make(),
        };
        let fd: OwnedFd = made?;
        TcpSocket::from_std_stream(fd.into()).connect(address).await
    }
}
