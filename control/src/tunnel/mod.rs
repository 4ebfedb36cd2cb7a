//! The way to a board's kubelet API: through the connection that the board keeps open, or by its address.
//!
//! ```text
//! dial(node) ─┬─ its tunnel is here ────────────────────► a stream of it
//!             ├─ another control plane of this etcd has it ► a stream of it, through that one (`relay`)
//!             └─ nobody has it ─────────────────────────► TLS to InternalIP:kubeletEndpoint.Port, as the API server
//! ```
//! Each way ends in a byte pipe to the same HTTP/1.1 server on the board. A newer tunnel of a board replaces the older one:
//! a board behind a NAT that forgot a connection knows so before we do. Streams of one board are bounded
//! ([`coracle_api::tunnel::STREAMS_MAX`]), and no user has more than half of them, whichever control plane is asked; a tunnel whose board does not answer in time is closed.

mod dial;
mod link;
mod relay;

pub use dial::{Dialer, Io, TunnelError};
use link::Link;
pub use relay::{PROTOCOL as RELAY_PROTOCOL, Relay, USER as RELAY_USER};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Boards that are connected here.
#[derive(Debug, Default)]
pub struct Tunnels {
    links: Mutex<BTreeMap<String, Link>>,
}

impl Tunnels {
    /// Takes over a board's connection, which has been upgraded; returns when it has ended.
    ///
    /// # Errors
    /// Why it has.
    pub async fn run(&self, node: &str, io: impl Io + 'static) -> Result<(), TunnelError> {
        let (link, driver) = link::open(io);
        let id = link.id;
        tracing::info!(node, "a board's tunnel is open");
        // What was there before is dropped, and ends with that.
        self.links().insert(node.to_string(), link);
        let ended = driver.run().await;
        let mut links = self.links();
        if links.get(node).is_some_and(|link| link.id == id) {
            links.remove(node);
        }
        ended
    }

    /// Whether the board is connected here.
    pub fn has(&self, node: &str) -> bool {
        self.links().contains_key(node)
    }

    /// A stream to the board for a user, or for the control plane itself; `None` if it is not connected here.
    ///
    /// # Errors
    /// Too many are open, or the tunnel has ended.
    pub async fn stream(&self, node: &str, user: &str) -> Option<Result<Box<dyn Io>, TunnelError>> {
        let link = self.link(node)?;
        let opened = tokio::time::timeout(dial::CONNECT, link.stream(user)).await;
        let opened = opened.unwrap_or(Err(TunnelError::Silent(dial::CONNECT)));
        Some(opened.map(|stream| Box::new(stream) as Box<dyn Io>))
    }

    fn link(&self, node: &str) -> Option<Link> {
        self.links().get(node).cloned()
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<String, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
