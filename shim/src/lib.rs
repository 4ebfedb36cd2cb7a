//! The per-pod parent process, and what it shares with the agent that talks to it.
//!
//! One `coracle-shim` runs for each pod. It is the parent of the pod's containers and outlives the agent: it
//! writes their logs, knows how they ended, and answers the agent on a socket. It is one thread around `poll(2)`
//! and needs no allocation while nothing happens, since ten of these run on a board with little memory.
//!
//! - [`server`] is the shim itself, [`start`] turns a process into one; `main.rs` only joins the two.
//! - [`wire`], [`packet`] and [`record`] are shared with the agent: messages, the socket they travel on, and the
//!   exit records that are left on disk.
//!
//! # Invariants
//! - The shim never enters a namespace and never links libcontainer: a short-lived helper does both, and clones
//!   the container's init with `CLONE_PARENT`, so that the init is the shim's child. Namespaces are held open by
//!   nsfs bind mounts that the agent makes.
//! - An exit is on disk before anybody is told of it, unless the disk refuses.
//! - Neither a full disk, a slow reader nor a hostile message stops the shim or blocks a container.
//!
//! # Left out on purpose
//! Policy. The shim restarts nothing, kills nothing by itself and removes no cgroup. When the shim is killed its
//! containers die by the parent-death signal that the helper gave them, and what they left by their cgroup, which
//! the agent kills.

mod child;
pub mod clock;
mod cri;
mod helper;
pub mod packet;
pub mod pause;
pub mod record;
pub mod server;
pub mod start;
mod sys;
pub mod wire;
