//! What a board and a control plane agree on about the one connection that a board keeps open.
//!
//! ```text
//! board ── GET /apis/coracle.dev/v1/nodes/NAME/tunnel, Upgrade: coracle-tunnel.v1 ──► control plane
//!       ◄─ 101, from now on yamux; the control plane opens streams, each an HTTP/1.1 connection to the kubelet's API ─
//! ```
//! An invention of Coracle's, hence under its own group: a board that joins an upstream API server is asked on its HTTPS
//! port, and nothing but streams needs either.

use std::time::Duration;

/// Of the `Upgrade` header. What comes after it is another protocol under another name.
pub const PROTOCOL: &str = "coracle-tunnel.v1";
/// Streams of a board that are open at once. A stream more would end the whole connection, so both ends allow twice as
/// many, and the control plane opens only these.
pub const STREAMS_MAX: usize = 64;
/// What yamux may keep of all streams that nobody reads, at most.
pub const WINDOW_BYTES_MAX: usize = 2 * STREAMS_MAX * (256 << 10);
/// How often the control plane asks for `/healthz` in the tunnel: less than the 30 s after which careless NATs forget.
pub const PING: Duration = Duration::from_secs(20);
/// For the answer to that.
pub const PONG: Duration = Duration::from_secs(15);
/// A board that no stream has reached for so long dials again.
pub const SILENCE: Duration = Duration::from_secs(50);

/// Where a board connects.
pub fn path(node: &str) -> String {
    format!("/apis/coracle.dev/v1/nodes/{node}/tunnel")
}
