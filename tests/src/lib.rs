//! The harness of the end-to-end tests, of the bench and of `make run`: real images from Debian's packages,
//! Debian's own registry server, and the real `coracle agent` in a network namespace of its own.
//!
//! Invariants: whatever a test made is gone when its [`agent::Board`] is dropped, also when the test failed; nothing
//! waits by sleeping where there is an event for it (a watch, a blocking read), and every wait has a deadline. Left
//! out on purpose: any mock of the runtime, of the store or of a registry.

pub mod agent;
pub mod api;
pub mod census;
pub mod demo;
pub mod figures;
pub mod fleet;
pub mod image;
pub mod manifest;
pub mod registry;
mod sys;
pub mod terminal;
pub mod tree;
pub mod vm;
