//! Shims as `/proc` shows them: whose pod one holds, and where its mounts are.

use crate::layout::Layout;
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// `RUN/pods/UID` of a shim, from its command line. `None` for any other process, and for one that has just ended.
pub(crate) fn directory(pid: u32) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    let program = Path::new(std::ffi::OsStr::from_bytes(words.next()?));
    if program.file_name()? != "coracle-shim" || words.next()? != b"--run" {
        return None;
    }
    Some(Path::new(std::ffi::OsStr::from_bytes(words.next()?)).into())
}

/// Moves this process into the mount namespace of the pods that already run, if that is another one: a container's
/// root is mounted by the agent and used by the pod's shim, so both must see the same mounts. An agent gets a mount
/// namespace of its own from `ip netns exec`, and from a unit with `PrivateTmp=` and the like, a new one at each start.
///
/// Returns the shim that was followed. To be called before there is a second thread (setns(2), `CLONE_NEWNS`).
///
/// # Errors
/// The kernel's refusal.
pub fn join_mounts(layout: &Layout) -> io::Result<Option<u32>> {
    let own = layout.run.join("pods");
    let here = fs::metadata("/proc/self/ns/mnt")?;
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if directory(pid).is_none_or(|dir| dir.parent() != Some(own.as_path())) {
            continue;
        }
        // A shim that ends meanwhile is followed by nobody.
        let Ok(namespace) = File::open(format!("/proc/{pid}/ns/mnt")) else { continue };
        let there = namespace.metadata()?;
        if (there.dev(), there.ino()) == (here.dev(), here.ino()) {
            return Ok(None);
        }
        // It leaves the process at that namespace's root directory.
        let working = std::env::current_dir()?;
        setns(namespace, CloneFlags::CLONE_NEWNS)?;
        std::env::set_current_dir(working)?;
        return Ok(Some(pid));
    }
    Ok(None)
}
