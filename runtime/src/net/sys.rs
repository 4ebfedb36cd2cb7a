//! The system calls of the network code: netlink sockets and entering a namespace.

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

/// The longest request: an nftables table with some 10,000 hostPorts. A bound, not a reservation.
const SEND_BYTES_MAX: usize = 1 << 20;

/// A netlink socket of the calling thread's network namespace; it stays in it for ever.
///
/// The kernel explains refusals in words on it (`NETLINK_EXT_ACK`) and does not echo the request.
pub(super) fn netlink(protocol: SockProtocol) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&fd, SndBufForce, &SEND_BYTES_MAX)?;
    set_option(&fd, libc::NETLINK_EXT_ACK)?;
    set_option(&fd, libc::NETLINK_CAP_ACK)?;
    Ok(fd)
}

/// Runs `work` in another network namespace: in a thread that enters it, and ends.
pub(super) fn inside<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sends one datagram, whole or not at all.
pub(super) fn send_all(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<()> {
    loop {
        match send(fd.as_raw_fd(), bytes, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(Errno::EMSGSIZE),
            Err(e) => return Err(e),
        }
    }
}

/// Receives one datagram; `None` if none is queued and `wait` is false.
pub(super) fn receive(fd: &OwnedFd, buffer: &mut [u8], wait: bool) -> nix::Result<Option<usize>> {
    let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
    loop {
        // MSG_TRUNC makes the kernel answer with the datagram's real length, so a cut is seen.
        match recv(fd.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if !wait => return Ok(None),
            Ok(length) if length > buffer.len() => return Err(Errno::EMSGSIZE),
            answer => return answer.map(Some),
        }
    }
}

fn set_option(fd: &OwnedFd, option: libc::c_int) -> nix::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: `fd` is open, and the kernel reads `length` bytes of `on`, which outlives the call.
    let answer = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_NETLINK, option, std::ptr::from_ref(&on).cast(), length)
    };
    Errno::result(answer).map(drop)
}
