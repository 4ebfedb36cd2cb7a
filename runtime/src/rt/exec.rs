//! `rt exec`: one more process in a running container, by pidfd and a single `setns`.
//!
//! Own code rather than libcontainer's tenant: that one applies no seccomp filter and leaks (ARCHITECTURE.md).
//! The process joins the container's cgroups before its namespaces, is cloned with `CLONE_PARENT` so that the
//! shim reaps it, and gets the container's filter, capabilities and identity.

use super::run::find;
use super::text;
use crate::sys;
use caps::{CapSet, CapsHashSet};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, setresgid, setresuid, setsid};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// How every message about the command itself begins, here and in [`find`].
pub(crate) const EXEC_FAILED: &str = "exec: ";

/// What to run, and in what: written by the agent, read by the helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecProcess {
    /// The container's init, and field 22 of its `/proc/PID/stat`: a reused pid is refused.
    pub pid: i32,
    /// Clock ticks since boot.
    pub pid_start_ticks: u64,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Absolute path in the container.
    pub cwd: String,
    /// Identity, as the container's own.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Bit numbers of capability.h.
    pub capabilities: u64,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
    /// The container's compiled filter.
    pub seccomp: Option<PathBuf>,
    /// `cgroup.procs` files to enter.
    pub cgroup_procs: Vec<PathBuf>,
}

/// Starts the process; its pid in this pid namespace.
pub(super) fn exec(process: &Path, console: Option<&Path>) -> Result<i32, String> {
    let bytes = std::fs::read(process).map_err(|e| format!("{}: {e}", process.display()))?;
    let process: ExecProcess = serde_json::from_slice(&bytes).map_err(text)?;
    let filter = match &process.seccomp {
        Some(path) => Some(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?),
        None => None,
    };
    let console = match console {
        Some(path) => Some(UnixStream::connect(path).map_err(|e| format!("console: {e}"))?),
        None => None,
    };
    let target = pidfd(&process)?;
    for procs in &process.cgroup_procs {
        let enter = OpenOptions::new().write(true).open(procs).and_then(|mut f| f.write_all(b"0"));
        enter.map_err(|e| format!("enter cgroup {}: {e}", procs.display()))?;
    }
    // From here on the container's processes might see this one: keep their hands off. ptrace(2).
    prctl::set_dumpable(false).map_err(text)?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    setns(&target, namespaces).map_err(|e| format!("join the container's namespaces: {}", e.desc()))?;
    let (outcome, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(text)?;
    match sys::clone_sibling().map_err(|e| format!("clone: {e}"))? {
        None => {
            let Err(message) = in_container(&process, filter.as_deref(), console);
            let written = File::from(report).write_all(message.as_bytes());
            // 126: found but not run, as shells say; the helper has been told why.
            nix_exit(if written.is_ok() { 126 } else { 127 })
        }
        Some(pid) => {
            drop(report);
            let mut failure = String::new();
            File::from(outcome).read_to_string(&mut failure).map_err(text)?;
            if failure.is_empty() { Ok(pid.as_raw()) } else { Err(failure) }
        }
    }
}

#[expect(clippy::exit, reason = "the cloned child of a single-threaded helper ends here")]
fn nix_exit(code: i32) -> ! {
    std::process::exit(code)
}

fn pidfd(process: &ExecProcess) -> Result<OwnedFd, String> {
    let gone = || "cannot exec in a stopped container".to_string();
    let fd = sys::pidfd_open(process.pid).map_err(|_| gone())?;
    // The pidfd pins the process, so a start time read afterwards belongs to it or to nobody.
    let ticks = start_ticks(process.pid).ok_or_else(gone)?;
    if ticks == process.pid_start_ticks { Ok(fd) } else { Err(gone()) }
}

/// Field 22 of `/proc/PID/stat`, proc(5): the pid's identity together with its number.
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its last parenthesis: state is field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn in_container(
    process: &ExecProcess,
    filter: Option<&[u8]>,
    console: Option<UnixStream>,
) -> Result<std::convert::Infallible, String> {
    setsid().map_err(text)?;
    reset_signals()?;
    if let Some(console) = console {
        open_terminal(&console, process)?;
    }
    std::env::set_current_dir(&process.cwd).map_err(|e| format!("chdir to cwd ({:?}): {e}", process.cwd))?;
    let wanted: CapsHashSet =
        caps::all().into_iter().filter(|c| process.capabilities >> c.index() & 1 == 1).collect();
    for capability in caps::all().into_iter().filter(|c| !wanted.contains(c)) {
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability).map_err(text)?;
        }
    }
    if process.no_new_privs {
        prctl::set_no_new_privs().map_err(text)?;
    } else if let Some(filter) = filter {
        // Needs CAP_SYS_ADMIN, so before the capabilities go.
        sys::install_filter(filter).map_err(|e| format!("install the seccomp filter: {e}"))?;
    }
    prctl::set_keepcaps(true).map_err(text)?;
    let groups: Vec<Gid> = process.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(|e| format!("setgroups: {}", e.desc()))?;
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    setresgid(gid, gid, gid).map_err(|e| format!("setresgid: {}", e.desc()))?;
    setresuid(uid, uid, uid).map_err(|e| format!("setresuid: {}", e.desc()))?;
    prctl::set_keepcaps(false).map_err(text)?;
    let effective = if process.uid == 0 { wanted } else { CapsHashSet::new() };
    let none = CapsHashSet::new();
    for (set, to) in
        [(CapSet::Effective, &effective), (CapSet::Permitted, &effective), (CapSet::Inheritable, &none)]
    {
        caps::set(None, set, to).map_err(text)?;
    }
    if let Some(filter) = filter.filter(|_| process.no_new_privs) {
        sys::install_filter(filter).map_err(|e| format!("install the seccomp filter: {e}"))?;
    }
    sys::close_on_exec_from(3).map_err(text)?;
    let program = process.args.first().ok_or("no command specified")?;
    let path = process.env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let program = find(program, path)?;
    let program = CString::new(program.as_os_str().as_bytes()).map_err(text)?;
    let strings =
        |list: &[String]| list.iter().map(|s| CString::new(s.as_str())).collect::<Result<Vec<_>, _>>();
    let (argv, env) = (strings(&process.args).map_err(text)?, strings(&process.env).map_err(text)?);
    let Err(error) = nix::unistd::execve(&program, &argv, &env);
    Err(format!("{EXEC_FAILED}{:?}: {}", program.to_string_lossy(), error.desc()))
}

/// The shim ignores some signals and blocks others; a container's process starts with neither.
pub(super) fn reset_signals() -> Result<(), String> {
    for number in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        sys::default_signal(number).map_err(text)?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(text)
}

/// Opens a terminal of the container's own devpts, sends its master to the shim, and takes its slave as stdio.
fn open_terminal(console: &UnixStream, process: &ExecProcess) -> Result<(), String> {
    let master = nix::pty::posix_openpt(nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY)
        .map_err(|e| format!("open /dev/ptmx in the container: {}", e.desc()))?;
    nix::pty::grantpt(&master).map_err(text)?;
    nix::pty::unlockpt(&master).map_err(text)?;
    let name = nix::pty::ptsname_r(&master).map_err(text)?;
    let slave = OpenOptions::new().read(true).write(true).open(&name).map_err(|e| format!("{name}: {e}"))?;
    nix::unistd::fchown(&slave, Some(Uid::from_raw(process.uid)), None).map_err(text)?;
    let fds = [master.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let sent =
        sendmsg::<UnixAddr>(console.as_raw_fd(), &[IoSlice::new(b"pty")], &rights, MsgFlags::empty(), None);
    sent.map_err(|e| format!("send the terminal: {}", e.desc()))?;
    dup2_stdin(&slave).map_err(text)?;
    dup2_stdout(&slave).map_err(text)?;
    dup2_stderr(&slave).map_err(text)?;
    sys::control_terminal().map_err(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_has_a_start_time_and_a_missing_one_has_none() {
        assert!(super::start_ticks(std::process::id() as i32).is_some_and(|t| t > 0));
        assert_eq!(super::start_ticks(-1), None);
    }
}
