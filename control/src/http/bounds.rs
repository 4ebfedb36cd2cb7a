//! How much of the server one client can have, and all of them together.
//!
//! Connections are counted by the address they come from, before anything of them is read: half of the places are left for
//! others, as many boards may be behind one address. Requests under way are counted by whether they write, as upstream's
//! max-in-flight; watches and streams are not among them: they are bounded by their connections.

use crate::shares::Shares;
use coracle_api::status::StatusError;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Connections at once; more wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 8192;
/// Files for the store, its threads, etcd, tunnels.
const OTHER_FILES: usize = 256;
/// Upstream's `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const READS_MAX: usize = 400;
const WRITES_MAX: usize = 200;
const RETRY_SECONDS: i32 = 1;

/// Lets this process open as many files as it may, and says how many connections that is good for. A unit's soft limit is
/// 1024, and accept(2) fails beyond it.
pub(super) fn connections() -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    let files = raised.unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files stays as it is");
        1024
    });
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    // A stream to a board by its address is a second file.
    (files.saturating_sub(OTHER_FILES) / 2).clamp(16, CONNECTIONS_MAX)
}

/// Places for connections by where they come from: half of all for each.
pub(super) fn sources(connections_max: usize) -> Arc<Shares<IpAddr>> {
    Shares::new(connections_max / 2)
}

/// Requests under way.
#[derive(Debug)]
pub(super) struct InFlight {
    reads: Semaphore,
    writes: Semaphore,
}

impl Default for InFlight {
    fn default() -> InFlight {
        InFlight { reads: Semaphore::new(READS_MAX), writes: Semaphore::new(WRITES_MAX) }
    }
}

impl InFlight {
    /// A place for a request.
    ///
    /// # Errors
    /// 429: try again in a second.
    pub(super) fn enter(&self, verb: &str) -> Result<SemaphorePermit<'_>, StatusError> {
        let reads = matches!(verb, "get" | "list" | "watch");
        let places = if reads { &self.reads } else { &self.writes };
        let full =
            |_| StatusError::too_many_requests("too many requests, please try again later", RETRY_SECONDS);
        places.try_acquire().map_err(full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_half_of_the_places() {
        let sources = sources(4);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut held: Vec<_> = (0..2).map(|_| sources.place(a).expect("a place")).collect();
        assert!(sources.place(a).is_none(), "half is the most");
        let other = sources.place(b).expect("another address has its own");
        held.pop();
        held.push(sources.place(a).expect("a place that was left"));
        drop((held, other));
        assert!(sources.is_empty(), "nothing is kept of who left");
    }

    #[test]
    fn writes_do_not_take_the_places_of_reads() {
        let requests = InFlight::default();
        let held: Vec<_> = (0..WRITES_MAX).map(|_| requests.enter("patch").expect("a place")).collect();
        let refused = requests.enter("create").expect_err("full");
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (429, "too many requests, please try again later")
        );
        drop(requests.enter("get").expect("reads go on"));
        drop(held);
        drop(requests.enter("create").expect("a place again"));
    }
}
