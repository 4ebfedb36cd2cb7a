//! `rt run`: libcontainer makes the container, and our [`Workload`] takes the last steps before `execve`.
//!
//! The last steps are ours because libcontainer would compile the seccomp profile at each start (20 ms), and
//! because a failed `execve` is silent there: a close-on-exec pipe tells the helper how it went.

use super::{chain, text};
use crate::sys;
use caps::{CapSet, Capability};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::sys::signal::Signal;
use oci_spec::runtime::Spec;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Annotation: capabilities that libcontainer left in place only so that the filter can be installed.
pub(crate) const DROP_CAPABILITIES: &str = "dev.coracle.drop-capabilities";

/// Name of the compiled filter within a bundle.
pub(crate) const FILTER: &str = "seccomp.bpf";

/// Creates and starts the container; its init's pid in this pid namespace.
pub(super) fn run(state: &Path, id: &str, bundle: &Path, console: Option<PathBuf>) -> Result<i32, String> {
    let filter = match std::fs::read(bundle.join(FILTER)) {
        Ok(program) => Some(program),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(format!("{}: {e}", bundle.join(FILTER).display())),
    };
    let (outcome, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(text)?;
    // A number, not an owner: libcontainer clones the workload, and every copy must survive until execve.
    let report = report.into_raw_fd();
    let workload = Workload { filter, report };
    let built = ContainerBuilder::new(id.into(), SyscallType::default())
        .with_root_path(state)
        .map(|b| b.with_console_socket(console).with_executor(workload))
        .and_then(|b| b.as_init(bundle).with_systemd(false).with_detach(true).as_sibling(true).build());
    let mut container = built.map_err(|e| cause(&chain(&e)).to_string())?;
    let pid = container.pid().ok_or("libcontainer reported no pid")?;
    container.start().map_err(|e| chain(&e))?;
    drop(own(report));
    let mut failure = String::new();
    File::from(outcome).read_to_string(&mut failure).map_err(text)?;
    if failure.is_empty() { Ok(pid.as_raw()) } else { Err(failure) }
}

/// What the container's side said, without libcontainer's account of how it came to hear it.
fn cause(message: &str) -> &str {
    const HEARD: &str = "error in executing process : ";
    message.rsplit_once(HEARD).map_or(message, |(_, said)| said)
}

/// Takes the descriptor back so that dropping it closes this process's copy.
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: `fd` came from `into_raw_fd` in `run`, which calls this once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[derive(Clone)]
struct Workload {
    filter: Option<Vec<u8>>,
    /// Close-on-exec: end of file tells the helper that `execve` succeeded.
    report: RawFd,
}

impl Executor for Workload {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let refused = |m: String| ExecutorValidationError::ArgValidationError(m);
        let program = spec.process().as_ref().and_then(|p| p.args().as_ref()).and_then(|a| a.first());
        let program = program.filter(|p| !p.is_empty());
        let program = program.ok_or_else(|| refused("no command specified".into()))?;
        let path = spec.process().as_ref().and_then(|p| p.env().as_ref());
        let path = path.and_then(|env| env.iter().find_map(|e| e.strip_prefix("PATH="))).unwrap_or_default();
        find(program, path).map(|_| ()).map_err(refused)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Err(message) = self.last_steps(spec);
        let mut report = File::from(own(self.report));
        // The helper waits for this line; if it cannot be told, the exit code still says that nothing ran.
        report.write_all(message.as_bytes()).map_err(|e| ExecutorError::Other(e.to_string()))?;
        Err(ExecutorError::Other(message))
    }
}

impl Workload {
    fn last_steps(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let process = spec.process().as_ref().ok_or("no process")?;
        let args = process.args().as_deref().unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        let program = find(args.first().ok_or("no command specified")?, &path)?;
        let argv =
            args.iter().map(|a| CString::new(a.as_str())).collect::<Result<Vec<_>, _>>().map_err(text)?;
        let env = environment()?;
        let program = CString::new(program.as_os_str().as_bytes()).map_err(text)?;
        // Rust ignores SIGPIPE from the start, and an ignored signal stays ignored across execve.
        super::exec::reset_signals()?;
        // The container dies with its shim: no orphan runs unwatched. prctl(2); kept across execve.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(text)?;
        if let Some(filter) = &self.filter {
            sys::install_filter(filter).map_err(|e| format!("install the seccomp filter: {e}"))?;
        }
        let drop = spec.annotations().as_ref().and_then(|a| a.get(DROP_CAPABILITIES));
        for name in drop.iter().flat_map(|list| list.split(',')).filter(|name| !name.is_empty()) {
            drop_capability(name.parse().map_err(|_| format!("unknown capability {name}"))?)?;
        }
        let Err(error) = nix::unistd::execve(&program, &argv, &env);
        Err(format!("exec {}: {}", program.to_string_lossy(), error.desc()))
    }
}

/// Out of every set; bounding first, which itself asks for `CAP_SETPCAP`.
fn drop_capability(capability: Capability) -> Result<(), String> {
    let failed = |e: caps::errors::CapsError| format!("drop {capability}: {e}");
    caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::drop(None, set, capability).map_err(failed)?;
    }
    Ok(())
}

/// The environment that libcontainer set for the container.
fn environment() -> Result<Vec<CString>, String> {
    let pair = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut bytes = key.as_bytes().to_vec();
        bytes.push(b'=');
        bytes.extend_from_slice(value.as_bytes());
        CString::new(bytes)
    };
    std::env::vars_os().map(pair).collect::<Result<_, _>>().map_err(text)
}

/// `program` as `execvp` finds it, in runc's words when it does not.
pub(super) fn find(program: &str, path: &str) -> Result<PathBuf, String> {
    let check = |candidate: &Path| match nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK) {
        Ok(()) if candidate.is_dir() => Err("is a directory"),
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EACCES) => Err("permission denied"),
        Err(_) => Err("no such file or directory"),
    };
    if program.contains('/') {
        let candidate = PathBuf::from(program);
        return match check(&candidate) {
            Ok(()) => Ok(candidate),
            Err(why) => Err(format!("exec: {program:?}: stat {program}: {why}")),
        };
    }
    let mut found = std::env::split_paths(path).map(|dir| dir.join(program));
    found
        .find(|candidate| check(candidate).is_ok())
        .ok_or_else(|| format!("exec: {program:?}: executable file not found in $PATH"))
}
