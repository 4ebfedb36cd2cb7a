//! The process's exit code, as `coracle --help` and coracle(1) list them.

use crate::cluster::join::Refused;
use crate::config::ConfigError;
use coracle_runtime::board::OpenError;
use coracle_runtime::cgroup::CgroupError;
use coracle_runtime::net::NetError;
use coracle_store::StoreError;
use std::path::PathBuf;

/// An agent that cannot start for a reason of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Not root.
    #[error("the agent must run as root: it makes namespaces, mounts and cgroups")]
    NotRoot,
    /// The lock is held.
    #[error("another coracle agent uses {path}; stop it, or choose another --root", path = .0.display())]
    InUse(PathBuf),
    /// A check of `coracle doctor` failed.
    #[error("this machine cannot run pods: see above")]
    Unfit,
}

/// The code for an error that ends the process.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    const FAILED: u8 = 1;
    const CONFIGURATION: u8 = 3;
    const UNFIT: u8 = 4;
    const IN_USE: u8 = 5;
    const NEWER: u8 = 6;
    const REFUSED: u8 = 7;
    for cause in error.chain() {
        if cause.is::<ConfigError>() {
            return CONFIGURATION;
        }
        if cause.is::<Refused>() {
            return REFUSED;
        }
        match cause.downcast_ref() {
            Some(StartError::InUse(_)) => return IN_USE,
            Some(StartError::NotRoot | StartError::Unfit) => return UNFIT,
            None => {}
        }
        match cause.downcast_ref() {
            Some(StoreError::InUse(_)) => return IN_USE,
            Some(StoreError::Newer { .. }) => return NEWER,
            _ => {}
        }
        if let Some(OpenError::NameInUse { .. }) = cause.downcast_ref() {
            return IN_USE;
        }
        let unfit = matches!(
            cause.downcast_ref(),
            Some(OpenError::Cgroup(_) | OpenError::Network(_) | OpenError::Unfit(_))
        );
        if unfit || cause.is::<CgroupError>() || cause.is::<NetError>() {
            return UNFIT;
        }
    }
    FAILED
}
