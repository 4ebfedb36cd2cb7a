//! The system calls of this crate that have no safe form in the standard library: its only `unsafe`.

mod confine;

pub(crate) use confine::confine;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

/// What the shim ignores, and its children must not: `SIG_IGN` survives `execve`.
const IGNORED: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE];

/// Descriptors accepted in one control message; what comes beyond is closed by the kernel.
pub(crate) const FDS_MAX: usize = 4;

/// Room for the header and [`FDS_MAX`] descriptors, aligned as `cmsghdr` asks.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Code(i32),
    Signal(i32),
}

impl Status {
    fn of(raw: libc::c_int) -> Status {
        if libc::WIFSIGNALED(raw) {
            Status::Signal(libc::WTERMSIG(raw))
        } else {
            Status::Code(libc::WEXITSTATUS(raw))
        }
    }
}

fn unix_address(path: &CStr) -> io::Result<libc::sockaddr_un> {
    // SAFETY: all zeroes is a valid `sockaddr_un`.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.to_bytes_with_nul();
    if bytes.len() > address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok(address)
}

fn seqpacket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointer is passed; a non-negative answer is a new descriptor that nobody else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?)) }
}

/// A non-blocking listening SEQPACKET socket at `path`.
pub(crate) fn listen(path: &CStr, backlog: i32) -> io::Result<OwnedFd> {
    let (socket, address) = (seqpacket()?, unix_address(path)?);
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a whole `sockaddr_un` of the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket)
}

/// A non-blocking SEQPACKET connection to `path`. Blocks only if the listener's backlog is full (never: `EAGAIN`).
pub(crate) fn connect(path: &CStr) -> io::Result<OwnedFd> {
    let (socket, address) = (seqpacket()?, unix_address(path)?);
    let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` is a whole `sockaddr_un` of the length given.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Accepts one non-blocking connection.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null addresses are allowed; a non-negative answer is a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags);
        Ok(OwnedFd::from_raw_fd(check(fd)?))
    }
}

/// Process and user at the other end, as they were when it called `connect` or `listen`.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<(i32, u32)> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `peer`, which is that large.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    })?;
    Ok((peer.pid, peer.uid))
}

/// The effective user of this process.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: always succeeds, touches no memory.
    unsafe { libc::geteuid() }
}

/// Sends one packet with descriptors, whole or not at all, without waiting.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(fds.len() <= FDS_MAX, "a packet carries at most {FDS_MAX} descriptors");
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let length = (fds.len() * size_of::<RawFd>()) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: `CMSG_SPACE` of four descriptors is 32 bytes, so header and data lie inside `control`, whose
        // alignment is that of `cmsghdr`; the kernel reads `iov` and `control` only during the call.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(length) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(length) as _;
            let mut data = libc::CMSG_DATA(first).cast::<RawFd>();
            for fd in fds {
                data.write_unaligned(fd.as_raw_fd());
                data = data.add(1);
            }
        }
    }
    // SAFETY: `header` points at live memory of the lengths it names.
    let sent = unsafe {
        libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What [`receive`] got. `truncated`: the packet or its descriptors did not fit; what did fit is here.
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) truncated: bool,
}

/// The whole length of the packet that [`receive`] would get now; 0 is the end of the connection.
pub(crate) fn next_length(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: a null buffer of length 0 is never written to.
    let length = unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), 0, flags) };
    if length < 0 { Err(io::Error::last_os_error()) } else { Ok(length as usize) }
}

/// Receives one message without waiting. A length of 0 is the end of the connection.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 64]);
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: no memory is touched: this only computes a size.
    header.msg_controllen = unsafe { libc::CMSG_SPACE((FDS_MAX * size_of::<RawFd>()) as u32) } as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: `header` points at live, writable memory of the lengths it names.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut fds = Vec::new();
    // SAFETY: the kernel left a well-formed chain of control headers in `control`; each SCM_RIGHTS descriptor is
    // new in this process and owned by nobody else.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(&raw const header);
        while !next.is_null() {
            if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            next = libc::CMSG_NXTHDR(&raw const header, next);
        }
    }
    let truncated = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    Ok(Received { length: length as usize, fds, truncated })
}

/// Waits for events. An interrupted wait is no event.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a deadline is reached when poll returns.
    let milliseconds = timeout.map_or(-1, |t| t.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
    // SAFETY: the pointer and length are those of one live slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, milliseconds) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            fds.iter_mut().for_each(|fd| fd.revents = 0);
            Ok(())
        }
        answer => answer.map(drop),
    }
}

/// Blocks SIGCHLD and SIGTERM, and returns the non-blocking descriptor that reports them instead.
pub(crate) fn signal_descriptor() -> io::Result<File> {
    // SAFETY: `mask` is initialised by `sigemptyset` before use; a non-negative `signalfd` is a new descriptor.
    unsafe {
        let mut mask: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGCHLD);
        libc::sigaddset(&raw mut mask, libc::SIGTERM);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const mask, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const mask, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(File::from_raw_fd(fd))
    }
}

/// Empties the descriptor of [`signal_descriptor`]; whether a SIGTERM was among what it reported.
pub(crate) fn drain_signals(mut signals: &File) -> bool {
    // signalfd(2): `struct signalfd_siginfo`, whose first field is the number.
    const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();
    let (mut buffer, mut terminated) = ([0; INFO_BYTES * 4], false);
    while let Ok(length @ 1..) = signals.read(&mut buffer) {
        let numbers = buffer[..length].chunks_exact(INFO_BYTES).filter_map(|info| info.first_chunk::<4>());
        terminated |= numbers.into_iter().any(|number| u32::from_ne_bytes(*number) == libc::SIGTERM as u32);
    }
    terminated
}

/// Ignores the signals that end a foreground job or a broken pipe.
pub(crate) fn ignore_signals() {
    for signal in IGNORED {
        // SAFETY: `SIG_IGN` installs no handler; the numbers are valid, so this cannot fail.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Reaps `pid` if it has ended.
pub(crate) fn wait(pid: i32) -> io::Result<Option<Status>> {
    wait_raw(pid).map(|ended| ended.map(|(_, status)| status))
}

/// Reaps any child that has ended.
pub(crate) fn wait_any() -> io::Result<Option<(i32, Status)>> {
    match wait_raw(-1) {
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        answer => answer,
    }
}

fn wait_raw(pid: i32) -> io::Result<Option<(i32, Status)>> {
    let mut raw = 0;
    // SAFETY: `raw` is a live int.
    let pid = check(unsafe { libc::waitpid(pid, &raw mut raw, libc::WNOHANG) })?;
    Ok((pid > 0).then(|| (pid, Status::of(raw))))
}

/// Whether the child `pid` has ended, leaving it to be reaped. `ECHILD`: it is no child of this process.
pub(crate) fn has_ended(pid: i32) -> io::Result<bool> {
    // SAFETY: `siginfo_t` is plain data, all zeroes is valid, and the kernel fills it; `si_pid` is defined for
    // the answer of `waitid` and stays 0 when nothing has ended.
    unsafe {
        let mut info: libc::siginfo_t = zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        check(libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, flags))?;
        Ok(info.si_pid() != 0)
    }
}

/// Sends `signal` to a child that this process has not reaped: its pid cannot have been reused.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    assert!(pid > 1, "kill of pid {pid} would reach more than one process");
    // SAFETY: no pointer is passed.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Kills a child that this process has not reaped, and leaves the reaping to the SIGCHLD that follows.
pub(crate) fn end(pid: i32) {
    let killed = kill(pid, libc::SIGKILL);
    // An unreaped child exists and is the shim's to signal, unless it changed its user below a shim without root.
    debug_assert!(killed.is_ok(), "SIGKILL of child {pid}: {killed:?}");
}

/// Starts `program` with `stdio` as its descriptors 0 to 2 and `result` as 3, and nothing else.
///
/// Signals and `oom_score_adj` are as this process found them. If `program` cannot be executed, the child says so
/// on `result` in the helper's own words.
pub(crate) fn spawn(
    program: &CStr,
    arguments: &[CString],
    stdio: [BorrowedFd<'_>; 3],
    result: BorrowedFd<'_>,
    oom_score_adj: &str,
) -> io::Result<i32> {
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(ptr::null());
    // SAFETY: this process has one thread, so the child may do all that the parent could.
    let pid = check(unsafe { libc::fork() })?;
    if pid > 0 {
        return Ok(pid);
    }
    let error = become_helper(program, &argv, stdio, result, oom_score_adj);
    // SAFETY: write-only duplicate of a live descriptor, owned by nobody else in this child; `_exit` never returns.
    unsafe {
        let fd = libc::fcntl(result.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0);
        if fd >= 0 {
            let text = format!("err cannot execute {}: {error}", program.to_string_lossy());
            drop(File::from_raw_fd(fd).write_all(text.as_bytes()));
        }
        libc::_exit(127)
    }
}

/// The child's half of [`spawn`]; returns only if something failed.
fn become_helper(
    program: &CStr,
    argv: &[*const libc::c_char],
    stdio: [BorrowedFd<'_>; 3],
    result: BorrowedFd<'_>,
    oom_score_adj: &str,
) -> io::Error {
    let prepare = || -> io::Result<()> {
        // SAFETY: `mask` is initialised before use; `SIG_DFL` installs no handler; every descriptor is open.
        unsafe {
            let mut mask: libc::sigset_t = zeroed();
            libc::sigemptyset(&raw mut mask);
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut()))?;
            for signal in IGNORED {
                libc::signal(signal, libc::SIG_DFL);
            }
            // First out of the way of 0 to 3, then into place: `dup2` clears close-on-exec.
            let mut aside = [0; 4];
            for (to, from) in aside.iter_mut().zip(stdio.iter().chain([&result])) {
                *to = check(libc::fcntl(from.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10))?;
            }
            for (to, from) in aside.iter().enumerate() {
                check(libc::dup2(*from, to as RawFd))?;
            }
        }
        set_oom_score_adj(oom_score_adj)
    };
    if let Err(error) = prepare() {
        return error;
    }
    // SAFETY: `program` and `argv` are NUL-terminated, and `argv` ends with a null pointer.
    unsafe { libc::execv(program.as_ptr(), argv.as_ptr()) };
    io::Error::last_os_error()
}

/// Writes `/proc/self/oom_score_adj`; raising it needs no privilege.
pub(crate) fn set_oom_score_adj(value: &str) -> io::Result<()> {
    File::options().write(true).open("/proc/self/oom_score_adj")?.write_all(value.as_bytes())
}

/// Forks into a child of a new session. `true` in the child; the caller in the parent should leave.
pub(crate) fn fork_session() -> io::Result<bool> {
    // SAFETY: this process has one thread.
    if check(unsafe { libc::fork() })? > 0 {
        return Ok(false);
    }
    // SAFETY: no pointer is passed; a fresh child is no group leader, so this succeeds.
    check(unsafe { libc::setsid() })?;
    Ok(true)
}

/// Closes every descriptor from 3 on.
///
/// To be called before this process opened anything: no `OwnedFd` may exist yet.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: no pointer is passed, and by the contract above nobody owns what is closed.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts `/dev/null` in the place of descriptors 0 to 2.
pub(crate) fn null_stdio(null: &File) -> io::Result<()> {
    for to in 0..3 {
        // SAFETY: replacing the standard descriptors keeps them open, so nobody's handle dangles.
        check(unsafe { libc::dup2(null.as_raw_fd(), to) })?;
    }
    Ok(())
}

/// Becomes the reaper of orphans, with the umask that containers expect, and keeps the heap small.
pub(crate) fn become_parent() -> io::Result<()> {
    // SAFETY: no pointer is passed.
    unsafe {
        check(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))?;
        libc::umask(0o022);
        #[cfg(target_env = "gnu")]
        {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 16 * 1024);
            libc::mallopt(libc::M_TOP_PAD, 4 * 1024);
        }
    }
    Ok(())
}

/// Makes reads and writes on `fd`'s open file return `EAGAIN` instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// Asks for a pipe buffer of `bytes`.
pub(crate) fn set_pipe_size(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) }).map(drop)
}

/// Bytes that can be read now.
pub(crate) fn bytes_waiting(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Sets a terminal's size; the kernel tells the foreground job by SIGWINCH.
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Reads a clock: whole seconds and nanoseconds.
pub(crate) fn clock(id: libc::clockid_t) -> (i64, u32) {
    // SAFETY: all zeroes is a valid `timespec`, and the kernel fills it; the clocks asked for always exist.
    let time = unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(id, &raw mut time);
        time
    };
    #[expect(clippy::useless_conversion, reason = "time_t is 32 bits wide on some targets")]
    (i64::from(time.tv_sec), time.tv_nsec as u32)
}

/// Moves future children of this process into a new pid namespace, and forks the first of them: its pid 1.
/// `None` in that child.
pub(crate) fn fork_pid_namespace() -> io::Result<Option<i32>> {
    // SAFETY: no pointer is passed; this process has one thread.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWPID))?;
        let pid = check(libc::fork())?;
        Ok((pid > 0).then_some(pid))
    }
}

/// Binds one file over another.
pub(crate) fn bind_mount(source: &CStr, target: &CStr) -> io::Result<()> {
    // SAFETY: both are NUL-terminated; a bind mount reads neither type nor data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), ptr::null(), libc::MS_BIND, ptr::null()) })
        .map(drop)
}

/// Ends this process at once, without unwinding or exit handlers: for a forked child that must not go on.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: takes no pointer and never returns.
    unsafe { libc::_exit(code) }
}

/// Reaps children: all that a pod's shared pid 1 has to do. After a SIGTERM, which the machine sends to every process
/// when it goes down, it ends once nobody else is in its pid namespace: sooner would kill them all.
pub(crate) fn reap_until_terminated() -> ! {
    static LOOK_AGAIN: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut terminated = false;
    loop {
        // SAFETY: `mask` is initialised before use; null is allowed for what is not wanted.
        unsafe {
            let mut mask: libc::sigset_t = zeroed();
            libc::sigemptyset(&raw mut mask);
            libc::sigaddset(&raw mut mask, libc::SIGCHLD);
            libc::sigaddset(&raw mut mask, libc::SIGTERM);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const mask, ptr::null_mut());
            // The others' end is no event here: they are not our children.
            let patience = if terminated { &raw const LOOK_AGAIN } else { ptr::null() };
            let signal = libc::sigtimedwait(&raw const mask, ptr::null_mut(), patience);
            terminated |= signal == libc::SIGTERM;
            while libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) > 0 {}
            // kill(2): -1 is every process but oneself, and ESRCH says that there is none, permitted or not.
            let alone =
                libc::kill(-1, 0) < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
            if terminated && alone {
                libc::_exit(0);
            }
        }
    }
}
