//! What the demonstrations have in common: they stay until they are told to go, and then leave nothing.

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

/// Ctrl-C and SIGTERM, kept from ending the process half-way.
#[derive(Debug)]
pub struct Stop(SigSet);

impl Stop {
    /// Must be called before the first thread: threads inherit what is blocked.
    pub fn block() -> Result<Stop> {
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGINT);
        stop.add(Signal::SIGTERM);
        stop.thread_block()?;
        Ok(Stop(stop))
    }

    /// Whether the demonstration ends by itself: `DEMO_EXIT` is set.
    pub fn is_at_once(&self) -> bool {
        std::env::var_os("DEMO_EXIT").is_some()
    }

    /// Waits for either signal.
    pub fn wait(&self) -> Result<()> {
        self.0.wait()?;
        Ok(())
    }
}
