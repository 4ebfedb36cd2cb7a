//! Ending every process of a cgroup, and removing cgroups.

use super::{CgroupError, entries, write};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

/// Rounds of SIGKILL before a cgroup is called unkillable; each waits up to [`KILL_WAIT_MILLISECONDS`].
const KILL_ROUNDS: u32 = 50;
const KILL_WAIT_MILLISECONDS: u16 = 40;

/// SIGKILLs everything in `dir` and below, and waits until it is gone. Idempotent; blocking.
pub(super) fn kill_all(dir: &Path) -> Result<(), CgroupError> {
    match File::open(dir.join("cgroup.events")) {
        Ok(events) => kill_v2(dir, events),
        Err(e) if e.kind() == io::ErrorKind::NotFound => kill_v1(dir),
        Err(source) => Err(CgroupError::Io { path: dir.join("cgroup.events"), source }),
    }
}

/// `cgroup.kill` (Linux 5.14), then the kernel's word that nobody is left: `cgroup.events` is polled with POLLPRI.
/// Where `cgroup.kill` is missing, by process. cgroup-v2.rst, "Un-populated Notification".
fn kill_v2(dir: &Path, mut events: File) -> Result<(), CgroupError> {
    let kill_file = dir.join("cgroup.kill");
    for _ in 0..KILL_ROUNDS {
        let mut text = String::new();
        match io::Seek::rewind(&mut events).and_then(|()| events.read_to_string(&mut text)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
            read => read.map_err(|source| CgroupError::Io { path: dir.join("cgroup.events"), source })?,
        };
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        if kill_file.exists() {
            write(&kill_file, "1")?;
        } else {
            kill_each(dir, &pids_below(dir)?)?;
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        if let Err(error) = poll(&mut fds, KILL_WAIT_MILLISECONDS) {
            // Interrupted: the next round looks again.
            tracing::debug!(%error, "waiting for a killed cgroup");
        }
    }
    Err(CgroupError::Unkillable(dir.into()))
}

fn kill_v1(dir: &Path) -> Result<(), CgroupError> {
    for round in 0..KILL_ROUNDS {
        let pids = pids_below(dir)?;
        if pids.is_empty() {
            return Ok(());
        }
        kill_each(dir, &pids)?;
        wait_for_exit(&pids, if round == 0 { 1 } else { KILL_WAIT_MILLISECONDS });
    }
    Err(CgroupError::Unkillable(dir.into()))
}

fn kill_each(dir: &Path, pids: &[Pid]) -> Result<(), CgroupError> {
    for pid in pids {
        match kill(*pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(CgroupError::Io { path: dir.into(), source: e.into() }),
        }
    }
    Ok(())
}

/// Waits for the first of `pids` to end, at most `milliseconds`. Others are looked for in the next round.
fn wait_for_exit(pids: &[Pid], milliseconds: u16) {
    // A pid that is already gone needs no waiting.
    let Some(Ok(fd)) = pids.first().map(|pid| crate::sys::pidfd_open(pid.as_raw())) else { return };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if let Err(error) = poll(&mut fds, milliseconds) {
        // Interrupted or timed out alike: the caller counts rounds and looks again.
        tracing::debug!(%error, "waiting for a killed process");
    }
}

/// Live processes of a cgroup and its children. Zombies count: they leave when their parent reaps them.
fn pids_below(dir: &Path) -> Result<Vec<Pid>, CgroupError> {
    let mut pids = Vec::new();
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => return Ok(pids),
        Err(source) => return Err(CgroupError::Io { path: dir.join("cgroup.procs"), source }),
    };
    pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw));
    for child in entries(dir) {
        pids.extend(pids_below(&dir.join(child))?);
    }
    Ok(pids)
}

/// Removes a cgroup with its children; none may hold a process. Idempotent.
pub(super) fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    for child in entries(dir) {
        remove_tree(&dir.join(child))?;
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::Io { path: dir.into(), source })
        }
        _ => Ok(()),
    }
}
