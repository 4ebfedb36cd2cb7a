//! The reverse of everything that an agent makes outside its data directory.

use super::claim::claim;
use super::{OpenError, names_in};
use crate::cgroup::Tree;
use crate::layout::Layout;
use crate::net::{Network, NetworkConfig};
use crate::sandbox;
use coracle_pod::spec::PodUid;
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Kills every pod, and removes sandboxes, network, cgroups and the run directory's content. Volumes, logs, images and
/// the store stay. No agent may run on the directory: the caller holds its lock. Idempotent; blocking.
///
/// # Errors
/// The first refusal; calling again goes on from there.
pub fn teardown(layout: &Layout, name: &str, network: NetworkConfig) -> Result<BTreeSet<PodUid>, OpenError> {
    let tree = Tree::open(name)?;
    let _claim = claim(&tree, name, layout)?;
    let mut pods = tree.pods();
    pods.extend(names_in(&layout.run.join("pods")).into_iter().map(PodUid));
    for uid in &pods {
        tree.kill_pod(uid)?;
        sandbox::remove(layout, uid)?;
        sandbox::unmount_below(&layout.pod_data(uid).join("volumes"))?;
        tree.remove_pod(uid)?;
    }
    Network::open(network)?.teardown()?;
    tree.remove()?;
    sandbox::unmount_below(&layout.run)?;
    for entry in names_in(&layout.run).into_iter().filter(|name| name != "lock") {
        let path = layout.run.join(entry);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(OpenError::Io { path, source: e });
            }
            _ => {}
        }
    }
    Ok(pods)
}
