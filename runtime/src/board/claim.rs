//! One agent per name: the cgroup, the bridge and the table are called after it, so a second agent of the same name
//! would take the first one's pods for leavings and remove them.
//!
//! Agents that run are kept apart by a lock on the name's own cgroup directory: it is machine-wide, lies in memory,
//! and the kernel lets go of it with the process. Pods outlive their agent; whose they are, their shims tell.

use super::OpenError;
use crate::cgroup::Tree;
use crate::layout::Layout;
use crate::shim_process;
use std::fs::{File, TryLockError};
use std::path::PathBuf;

/// Holds the name for as long as it lives.
#[derive(Debug)]
pub(super) struct Claim(
    #[expect(dead_code, reason = "the kernel's lock lives as long as the open file")] File,
);

/// Takes the name of `tree` for the agent of `layout`. Quick.
///
/// # Errors
/// [`OpenError::NameInUse`] while another agent, or a pod of another root directory, has it.
pub(super) fn claim(tree: &Tree, name: &str, layout: &Layout) -> Result<Claim, OpenError> {
    let in_use = |by: String| OpenError::NameInUse { name: name.into(), by };
    let dir = tree.top();
    let io = |source| OpenError::Io { path: dir.clone(), source };
    let file = File::open(&dir).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(in_use("another agent that runs".into())),
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    let own = layout.run.join("pods");
    for uid in tree.pods() {
        for pid in tree.shim_pids(&uid) {
            // A directory that is gone has no agent that could come back for the pod.
            let foreign = |dir: &PathBuf| dir.parent() != Some(own.as_path()) && dir.exists();
            if let Some(dir) = shim_process::directory(pid).filter(foreign) {
                return Err(in_use(format!("the pod in {}", dir.display())));
            }
        }
    }
    Ok(Claim(file))
}
