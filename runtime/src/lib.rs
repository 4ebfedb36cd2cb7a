//! Everything of Coracle that touches Linux: OCI spec, helper, sandbox, cgroup, network, images, volumes, logs.
//!
//! The agent's engine calls this crate with a [`coracle_pod::PodSpec`] and gets facts or one clear error back.
//! Policy (what to start, when, how often) lives in `coracle-pod`; this crate decides nothing about a pod's life.

pub mod cgroup;
pub mod layout;
pub mod names;
pub mod oci;
pub mod process;
pub mod rt;
pub mod sandbox;
pub mod seccomp;
mod sys;
pub mod volume;
