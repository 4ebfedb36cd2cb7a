//! How a pod's pid 1 gives up everything that a container of the pod could take from it.
//!
//! A container with `CAP_SYS_PTRACE` in a shared pid namespace may look through `/proc/1/root` and steer the process by
//! ptrace(2), so there must be nothing to find: no file, no capability, no namespace of the host but the user's.

use super::check;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// The user and group of Kubernetes' own pause image.
const NOBODY: libc::c_uint = 65535;
/// Names of the pod's own namespaces beside its pid namespace's file; what it shares with the host is not there.
const NAMESPACES: [&str; 3] = ["net", "ipc", "uts"];

/// Joins the namespaces that are held below `directory`, takes an empty read-only root, and becomes a user with no
/// capability and no way to gain one. `directory` only lends its name: what lies there stays.
///
/// # Errors
/// The kernel's; the process is then neither here nor there, and must end.
pub(crate) fn confine(directory: &CStr) -> io::Result<()> {
    let path = directory.to_string_lossy().into_owned();
    for name in NAMESPACES {
        match File::open(format!("{path}/{name}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            // SAFETY: no pointer is passed.
            Ok(file) => drop(check(unsafe { libc::setns(file.as_raw_fd(), 0) })?),
        }
    }
    // SAFETY: every string is NUL-terminated, and null where mount(2) allows it.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        let (none, private) = (ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        check(libc::mount(none, c"/".as_ptr(), none, private, ptr::null()))?;
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let (tmpfs, options) = (c"tmpfs".as_ptr(), c"size=4k,mode=555".as_ptr());
        check(libc::mount(tmpfs, directory.as_ptr(), tmpfs, flags, options.cast()))?;
        check(libc::chdir(directory.as_ptr()))?;
        // The old root comes to lie on the new one, and is then taken off: pivot_root(2), "pivot_root(".", ".")".
        let here = c".".as_ptr();
        if libc::syscall(libc::SYS_pivot_root, here, here) < 0 {
            return Err(io::Error::last_os_error());
        }
        check(libc::umount2(here, libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))?;
    }
    drop_privileges()
}

fn drop_privileges() -> io::Result<()> {
    // SAFETY: no pointer is passed, but an empty list whose length is 0.
    unsafe {
        let zero: libc::c_ulong = 0;
        for capability in zero..64 {
            // EINVAL: the kernel knows no more of them.
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, zero, zero, zero) < 0 {
                break;
            }
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, zero + 1, zero, zero, zero))?;
        check(libc::setgroups(0, ptr::null()))?;
        check(libc::setresgid(NOBODY, NOBODY, NOBODY))?;
        // From user 0 to another every capability goes: capabilities(7).
        check(libc::setresuid(NOBODY, NOBODY, NOBODY))?;
        check(libc::prctl(libc::PR_SET_DUMPABLE, zero, zero, zero, zero))?;
    }
    Ok(())
}
