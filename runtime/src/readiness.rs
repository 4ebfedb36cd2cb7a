//! Registering descriptors with the event loop, in one place.

use std::io;
use std::os::fd::AsRawFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches `owner`'s descriptor. `owner` must own it, so that it stays open for as long as it is watched.
pub fn watch<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe to call; every owner given here closes its descriptor last"
    )]
    AsyncFd::with_interest(owner, interest)
}
