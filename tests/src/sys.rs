//! The harness's unsafe corner.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child start in a network namespace of its own, with its loopback up.
pub(crate) fn own_network(command: &mut Command) {
    let enter = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        loopback_up()
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(enter) };
}

/// Ends the child with the thread that starts it, also when that is killed. prctl(2), PR_SET_PDEATHSIG.
pub(crate) fn die_with_us(command: &mut Command) {
    let bind = || nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call: no allocation, no lock.
    unsafe { command.pre_exec(bind) };
}

/// Makes the child's standard input, which is a terminal, its controlling one, in a session of its own.
pub(crate) fn own_terminal(command: &mut Command) {
    let take = || {
        nix::unistd::setsid()?;
        // SAFETY: one ioctl on the child's own standard input; its argument is a number (tty_ioctl(4), TIOCSCTTY).
        match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(take) };
}

/// tty_ioctl(4), TIOCSWINSZ: whoever has the terminal gets SIGWINCH.
pub(crate) fn resize(terminal: &std::os::fd::OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`, which outlives the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// netdevice(7): SIOCSIFFLAGS on `lo`.
fn loopback_up() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `ifreq`; the socket is closed before the function ends.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        let answer = libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request);
        let result = if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        libc::close(socket);
        result
    }
}
