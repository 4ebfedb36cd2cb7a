//! `RUN` is in memory: what describes running things must not outlive the boot, and costs no flash write.
//!
//! `/run/coracle` is already. Below a `--root` of its own a tmpfs is mounted once per boot, and stays for the agents
//! that come after; [`crate::board::teardown`] takes it away.

use crate::layout::Layout;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::statfs;
use std::fs;
use std::io;

/// linux/magic.h.
const MAGICS_IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// Bundles, name files and compiled filters of 110 pods take less than 8 MiB.
const OPTIONS: &str = "mode=755,size=64m";

/// Makes `RUN`, in memory. Idempotent; blocking.
pub fn prepare(layout: &Layout) -> io::Result<()> {
    fs::create_dir_all(&layout.run)?;
    let magic = statfs(&layout.run)?.filesystem_type().0 as u64 & 0xffff_ffff;
    if MAGICS_IN_MEMORY.contains(&magic) {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), &layout.run, Some("tmpfs"), flags, Some(OPTIONS))?)
}
