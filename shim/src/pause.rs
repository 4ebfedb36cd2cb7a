//! Pid 1 of a pod with `shareProcessNamespace`: holds the namespace and reaps its orphans, nothing else.
//!
//! `coracle-shim --pause FILE [--cgroup-procs FILE]…` leaves that process behind, binds its namespace to FILE, and
//! ends. It dies with the pod's shim cgroup, which the agent kills.

use crate::start::StartError;
use crate::sys;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// The first word of the command line that asks for this.
pub const FLAG: &str = "--pause";

/// Runs it; `arguments` follow [`FLAG`].
///
/// # Errors
/// The kernel's, in the parent; nothing is left behind then.
pub fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<(), StartError> {
    let usage = || StartError::Usage("--pause FILE [--cgroup-procs FILE]...".into());
    let target = arguments.next().ok_or_else(usage)?;
    while let Some(flag) = arguments.next() {
        let procs = arguments.next().filter(|_| flag == "--cgroup-procs").ok_or_else(usage)?;
        let entered = File::options().write(true).open(&procs).and_then(|mut file| file.write_all(b"0"));
        entered.map_err(StartError::io(procs.to_string_lossy()))?;
    }
    sys::close_inherited().map_err(StartError::io("closing inherited descriptors"))?;
    let null =
        File::options().read(true).write(true).open("/dev/null").map_err(StartError::io("/dev/null"))?;
    sys::null_stdio(&null).map_err(StartError::io("dup2"))?;
    sys::ignore_signals();
    let Some(pid) = sys::fork_pid_namespace().map_err(StartError::io("a new pid namespace"))? else {
        sys::reap_for_ever()
    };
    let hold = || {
        File::create(&target)?;
        let source = CString::new(format!("/proc/{pid}/ns/pid"))?;
        sys::bind_mount(&source, &CString::new(target.as_bytes())?)
    };
    hold().map_err(|error| {
        // Ours and not reaped, so the pid is still its own; without its file nobody could find it again.
        drop(sys::kill(pid, libc::SIGKILL));
        StartError::io(target.to_string_lossy())(error)
    })
}
