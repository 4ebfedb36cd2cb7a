//! The unsafe corner of the crate: system calls that nix has no safe face for.
//!
//! [`clone_sibling`] and [`install_filter`] are for the short-lived, single-threaded helper only.

use nix::unistd::Pid;
use std::io;

/// Forks with `CLONE_PARENT`: the child's parent is the caller's parent. `None` in the child. clone(2).
///
/// Legal only in a process with one thread: the child goes on with the parent's whole memory, locks included.
pub(crate) fn clone_sibling() -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: no new stack is given, so the call behaves as fork(2); the zero arguments are unused without
    // their flags, in whatever order the architecture takes them. The helper has a single thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as libc::pid_t))),
    }
}

/// Size of `struct sock_filter`.
const INSTRUCTION_BYTES: usize = 8;

/// Installs a compiled seccomp filter for the calling thread, for ever. seccomp(2).
///
/// # Errors
/// `InvalidInput` when `program` is not a filter; `EACCES` without `CAP_SYS_ADMIN` or no-new-privileges.
pub(crate) fn install_filter(program: &[u8]) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let whole = program.len().is_multiple_of(INSTRUCTION_BYTES) && !instructions.is_empty();
    let Some(len) = u16::try_from(instructions.len()).ok().filter(|_| whole) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a seccomp program"));
    };
    let filter = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `filter` points at `len` instructions that live until the call returns; the kernel copies them.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_usize, &raw const filter)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on close-on-exec. close_range(2), Linux 5.11.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: only flags of descriptors change; nothing is closed before exec.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes descriptor 3, the helper's result pipe, and makes it close-on-exec. `None` when it is not open.
pub(crate) fn take_result_pipe() -> Option<std::fs::File> {
    use std::os::fd::FromRawFd;
    const RESULT: libc::c_int = 3;
    // SAFETY: F_SETFD on a number changes no memory; it fails when the number is not open.
    if unsafe { libc::fcntl(RESULT, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return None;
    }
    // SAFETY: open, as the call above shows, and the helper's contract gives it to nobody else.
    Some(unsafe { std::fs::File::from_raw_fd(RESULT) })
}

/// Makes the terminal at descriptor 0 the controlling one of a fresh session. `TIOCSCTTY`, tty_ioctl(4).
pub(crate) fn control_terminal() -> io::Result<()> {
    // SAFETY: the ioctl takes an integer and touches no memory of ours.
    let answer = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor that names the process itself, not its number. pidfd_open(2), Linux 5.3.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: takes two integers; a non-negative answer is a fresh descriptor that nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_u32) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: see above; descriptors fit an int.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Sets a signal's disposition to the default. signal(2).
pub(crate) fn default_signal(signal: nix::sys::signal::Signal) -> nix::Result<()> {
    use nix::sys::signal::SigHandler;
    // SAFETY: SIG_DFL installs no code of ours.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map(|_| ())
}

/// `union bpf_attr` as `BPF_PROG_LOAD` reads it, up to the name. bpf(2), linux/bpf.h.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. bpf(2).
pub(crate) fn load_device_program(
    program: &[crate::cgroup::Instruction],
) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    const PROG_LOAD: libc::c_long = 5;
    const CGROUP_DEVICE: u32 = 15;
    let count = u32::try_from(program.len()).map_err(io::Error::other)?;
    let attributes = ProgramLoad {
        kind: CGROUP_DEVICE,
        instruction_count: count,
        instructions: program.as_ptr() as usize as u64,
        license: c"Apache-2.0".as_ptr() as usize as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"coracle_devices\0",
    };
    // SAFETY: the structure is as long as it is said to be, and the instructions and the licence that it points to
    // outlive the call; the kernel copies them.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<ProgramLoad>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns; descriptors fit an int.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Attaches a device program to a cgroup v2 directory, beside those that are there. bpf(2), `BPF_PROG_ATTACH`.
pub(crate) fn attach_device_program(
    cgroup: std::os::fd::BorrowedFd<'_>,
    program: std::os::fd::BorrowedFd<'_>,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    const PROG_ATTACH: libc::c_long = 8;
    const CGROUP_DEVICE: i32 = 6;
    const ALLOW_MULTI: i32 = 2;
    // target_fd, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd.
    let attributes = [cgroup.as_raw_fd(), program.as_raw_fd(), CGROUP_DEVICE, ALLOW_MULTI, 0];
    // SAFETY: the attributes are as long as they are said to be; the kernel copies them.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attributes.as_ptr(), size_of_val(&attributes)) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives back what a burst of work leaves: free heap pages (malloc_trim(3)), and this program's code from the page
/// tables. The code stays in the page cache while there is room, and comes back by minor faults where it is used; what
/// ran once (start-up, a pull, the way up of a pod) no longer counts as in use on a board that is short of memory.
/// Takes about 0.1 ms. Idempotent.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: thread-safe by its specification; only pages that hold nothing are returned.
    unsafe {
        libc::malloc_trim(0);
    }
    match own_code() {
        Some((start, length)) => {
            // SAFETY: the range is one mapping, executable and not writable, of the program's own file, so none of
            // its pages can differ from the file's: dropping them from the page tables changes nothing that can be
            // read, by any thread. madvise(2), MADV_DONTNEED on a file mapping.
            let answer = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
            if answer != 0 {
                tracing::debug!(error = %io::Error::last_os_error(), "the code's pages were not given back");
            }
        }
        None => tracing::debug!("this program's code is not found in /proc/self/maps"),
    }
}

/// Start and length of the mapping that holds this very function, if it is a private, read-only one of a file.
fn own_code() -> Option<(usize, usize)> {
    let here = own_code as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let ours = fields.next()? == "r-xp" && (start..end).contains(&here);
        let file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
        (ours && file).then_some((start, end - start))
    })
}

/// Whether somebody has the file open for writing: the kernel gives a lease on reading only when nobody has
/// (fcntl(2), `F_SETLEASE`). On a file system without leases, such as NFS, the answer is no. The caller has SIGIO
/// blocked, which tells of a lease that breaks.
pub fn is_open_for_writing(file: &std::fs::File) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: fcntl on an open descriptor with an integer argument; no memory is passed.
    let lease = |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if lease(libc::F_RDLCK) == 0 {
        // One that is not given back ends with the descriptor.
        lease(libc::F_UNLCK);
        return false;
    }
    io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}
