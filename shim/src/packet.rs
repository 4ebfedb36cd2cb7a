//! The socket between agent and shim: SEQPACKET, one message a packet, descriptors alongside.
//!
//! Nothing here waits: a socket that is not ready answers [`WouldBlock`](std::io::ErrorKind::WouldBlock).

use crate::sys;
use crate::wire::MESSAGE_BYTES_MAX;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Descriptors in one packet, at most.
pub const FDS_MAX: usize = sys::FDS_MAX;

/// One received packet.
#[derive(Debug)]
pub struct Packet {
    /// At most [`MESSAGE_BYTES_MAX`] bytes.
    pub bytes: Vec<u8>,
    /// What came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// The sender put more bytes or descriptors into the packet than a message may have; they are lost.
    pub truncated: bool,
}

/// `path` through its open directory, so that a socket address never grows past the kernel's 107 bytes.
fn short(path: &Path) -> io::Result<(File, CString)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let directory = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(parent)?;
    let mut address = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    address.extend_from_slice(name.as_bytes());
    Ok((directory, CString::new(address)?))
}

/// Connects to the shim's socket.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` mean that no shim serves it.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = short(path)?;
    sys::connect(&address)
}

/// Listens at `path` with mode 0600, taking the place of a socket that nobody answers on.
///
/// # Errors
/// `AddrInUse` if somebody does answer.
pub(crate) fn listen(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    match connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(error) => return Err(error),
    }
    let (_directory, address) = short(path)?;
    let socket = sys::listen(&address, backlog)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Accepts a connection, if it is of this process's own user.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let socket = sys::accept(listener)?;
    let (_, user) = sys::peer(socket.as_fd())?;
    if user != sys::effective_user() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(socket)
}

/// Sends one message whole, or nothing.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MESSAGE_BYTES_MAX || fds.len() > FDS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    sys::send(socket, bytes, fds)
}

/// Receives one message; `None` is the end of the connection.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    // As large as the message, so that an idle shim keeps no buffer for the largest.
    let mut bytes = vec![0; sys::next_length(socket)?.min(MESSAGE_BYTES_MAX)];
    let received = sys::receive(socket, &mut bytes)?;
    if received.length == 0 {
        return Ok(None);
    }
    bytes.truncate(received.length);
    Ok(Some(Packet { bytes, fds: received.fds, truncated: received.truncated }))
}

/// The process that listens at the other end of a connection.
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    Ok(sys::peer(socket)?.0)
}
