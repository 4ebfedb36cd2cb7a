//! Everything of Coracle that touches Linux: OCI spec, helper, sandbox, cgroup, network, images, volumes, logs.
//!
//! The agent's engine calls this crate with a [`coracle_pod::PodSpec`] and gets facts or one clear error back.
//! Policy (what to start, when, how often) lives in `coracle-pod`; this crate decides nothing about a pod's life.

pub mod board;
pub mod cgroup;
pub mod container;
pub mod disk;
pub mod doctor;
pub mod exec;
pub mod image;
pub mod layout;
pub mod log;
pub mod names;
pub mod net;
pub mod oci;
pub mod probe;
pub mod process;
pub mod readiness;
mod redirect;
pub mod rt;
pub mod run_dir;
pub mod sandbox;
pub mod seccomp;
pub mod shim_client;
mod shim_process;
mod sys;
pub mod terminal;
mod tree;
pub mod volume;

pub use shim_process::join_mounts;
pub use sys::{give_memory_back, is_open_for_writing};
