//! SPDY/3.1 framing, as `kubectl` speaks it for exec, attach and port-forward: bytes in, frames out, and the reverse.
//!
//! Without IO, without tasks. Invariants: a control frame is at most [`CONTROL_BYTES_MAX`] long and a header block
//! [`headers::BYTES_MAX`] once inflated, or the connection is over; data is never gathered, it goes through in the pieces
//! that it came in; no input makes this panic.
//!
//! Flow control is what moby/spdystream, the other end of all this, does: none of SPDY's. It neither sends nor heeds
//! `WINDOW_UPDATE`, so what is not taken stays in TCP. Left out: server push, credentials, priorities.
//!
//! Follows the SPDY protocol draft 3.1; names of fields and values are the draft's.

mod frame;
pub mod headers;

pub use frame::{CONTROL_BYTES_MAX, Decoder, Encoder, Frame, FrameError, StreamId};

/// `RST_STREAM` and `GOAWAY` status codes that are used.
pub mod status {
    /// Of `RST_STREAM`.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// Of `RST_STREAM`: none of it was looked at.
    pub const REFUSED_STREAM: u32 = 3;
    /// Of `RST_STREAM`: who opened it does not want it any more.
    pub const CANCEL: u32 = 5;
}

#[cfg(test)]
#[path = "spdy_test.rs"]
mod tests;
