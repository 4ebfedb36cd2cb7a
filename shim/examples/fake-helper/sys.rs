//! The system calls of the fake helper.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::ptr;

fn check(answer: libc::c_int) -> libc::c_int {
    assert!(answer >= 0, "{}", std::io::Error::last_os_error());
    answer
}

/// Descriptor 3, no longer inherited.
pub(crate) fn result_pipe() -> File {
    // SAFETY: the shim gives descriptor 3 to this process, and nothing else here owns it.
    unsafe {
        check(libc::fcntl(3, libc::F_SETFD, libc::FD_CLOEXEC));
        File::from_raw_fd(3)
    }
}

pub(crate) fn pause() {
    loop {
        // SAFETY: touches no memory.
        unsafe { libc::pause() };
    }
}

/// A terminal's master and slave.
pub(crate) fn open_terminal() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: the two ints are written; null means no name, no modes and no size. Both descriptors are new.
    unsafe {
        check(libc::openpty(&raw mut master, &raw mut slave, ptr::null_mut(), ptr::null(), ptr::null()));
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

/// Sends the master as libcontainer does: a name, and the descriptor.
pub(crate) fn send_terminal(socket: &UnixStream, master: &OwnedFd) {
    use std::os::fd::AsFd;
    coracle_shim::packet::send(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()]).unwrap();
}

/// Starts `sh -c script` as a child of this process's parent.
pub(crate) fn start_sibling(script: &str, terminal: Option<OwnedFd>) -> i32 {
    let words = ["sh", "-c", script].map(|word| CString::new(word).unwrap());
    let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(ptr::null());
    let flags = (libc::CLONE_PARENT | libc::SIGCHLD) as libc::c_ulong;
    // SAFETY: without CLONE_VM and with a null stack this is a fork of a process that has one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, ptr::null_mut::<u8>(), 0, 0, 0) };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid > 0 {
        return i32::try_from(pid).unwrap();
    }
    // SAFETY: SIG_DFL installs no handler, the descriptors are open, `argv` is NUL-terminated strings and a null pointer.
    unsafe {
        // Rust's runtime ignores it before `main`.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        check(libc::setsid());
        if let Some(terminal) = terminal {
            check(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0));
            for to in 0..3 {
                check(libc::dup2(terminal.as_raw_fd(), to));
            }
            drop(terminal);
        }
        libc::execv(c"/bin/sh".as_ptr(), argv.as_ptr());
        libc::_exit(126)
    }
}

/// Waits for a process that is not this one's child.
pub(crate) fn wait_for_sibling(pid: i32) {
    // SAFETY: the descriptor is new; `poll` gets one live `pollfd`.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(i32::try_from(fd).unwrap());
        let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        check(libc::poll(&raw mut polled, 1, -1));
    }
}
