//! The control plane: what serves the Kubernetes API to boards and kubectl.
//!
//! ```text
//! http (paths, negotiation, who, watch streams) ─► registry (verbs) ─► storage (revisions) ─► sled | etcd
//!                                                    └─► kinds (defaults, validation: one table)
//! ```

pub mod apiservers;
pub mod auth;
mod clock;
pub mod controllers;
pub mod enroll;
pub mod http;
pub mod kinds;
pub mod object;
pub mod pki;
pub mod quota;
pub mod registry;
pub mod scheduler;
mod shares;
#[cfg(test)]
mod simulated;
pub mod storage;
pub mod tunnel;
pub mod usage;
