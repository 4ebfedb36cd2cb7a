//! Pid 1 of a pod with `shareProcessNamespace`: holds the namespace and reaps its orphans, nothing else.
//!
//! `coracle-shim --pause FILE [--cgroup-procs FILE]…` leaves that process behind, binds its namespace to FILE, and
//! ends. It dies with the pod's shim cgroup, which the agent kills, and after a SIGTERM once it is alone. The containers see it, so before FILE is there it
//! has given up everything that it could be made to share: see [`sys::confine`].

use crate::start::StartError;
use crate::sys;
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The first word of the command line that asks for this.
pub const FLAG: &str = "--pause";

/// What the process says once it is confined.
const CONFINED: &str = "confined";

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
    let directory = Path::new(&target).parent().ok_or_else(usage)?;
    let directory = CString::new(directory.as_os_str().as_bytes()).map_err(|_| usage())?;
    let (mut told, tell) = io::pipe().map_err(StartError::io("a pipe"))?;
    let Some(pid) = sys::fork_pid_namespace().map_err(StartError::io("a new pid namespace"))? else {
        drop(told);
        stand(&directory, tell)
    };
    drop(tell);
    let mut hold = || {
        let mut said = String::new();
        told.read_to_string(&mut said)?;
        if said != CONFINED {
            return Err(io::Error::other(format!("the process could not be confined: {said}")));
        }
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

/// The child's half: gives up what it has, says so, and reaps.
fn stand(directory: &CStr, mut tell: io::PipeWriter) -> ! {
    let (text, code) = match sys::confine(directory) {
        Ok(()) => (CONFINED.to_string(), 0),
        Err(error) => (error.to_string(), 1),
    };
    if tell.write_all(text.as_bytes()).is_err() || code != 0 {
        sys::leave(1)
    }
    drop(tell);
    sys::reap_until_terminated()
}
