//! The pure core of Coracle: what a pod asks for, what is seen of it, and what to do next.
//!
//! ```text
//!  v1.Pod ──spec──► PodSpec ─┐
//!  runtime facts ─► Observed ┼─► plan() ─► Plan { actions, history, status, events, wake }
//!  store ─────────► History ─┘      ▲
//!  clocks ────────────────────► Now ┘
//! ```
//!
//! Invariants: nothing in this crate does IO, reads a clock, draws a random number or holds a lock; maps are
//! ordered; [`plan`] is total. It builds for `wasm32-unknown-unknown`, which the test-suite proves or, where
//! that standard library is missing, shows from the list of dependencies.
//!
//! Planning looks at one pod; only [`fit`] (may it run beside the others) and [`evict`] (which one goes) look at several.
//! Left out on purpose: the translation of facts from the kernel (see `coracle-runtime`).

pub mod action;
pub mod admission;
pub mod downward;
pub mod environment;
pub mod evict;
pub mod fit;
pub mod history;
pub mod objects;
pub mod observed;
pub mod payload;
pub mod plan;
pub mod resize;
pub mod spec;
pub mod storage;

pub use action::{Action, ActionKey, Event, EventType, Plan};
pub use admission::FieldError;
pub use history::History;
pub use observed::Observed;
pub use plan::plan;
pub use spec::PodSpec;
