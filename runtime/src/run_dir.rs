//! `RUN` describes running things: it must not outlive the boot, and should cost no flash write.
//!
//! `/run/coracle` is in memory already. Below a `--root` of its own a tmpfs is mounted once per boot, and stays for the
//! agents that come after; [`crate::board::teardown`] takes it away. Not so in a mount namespace of the agent's own (`ip
//! netns exec`): nobody outside would find the socket. There, and where that cannot be told, `RUN` stays on the disk, and is emptied by the first agent
//! of the next boot.

use crate::layout::Layout;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::statfs;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

/// linux/magic.h.
const MAGICS_IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
/// Bundles, name files and compiled filters of 110 pods take less than 8 MiB.
const OPTIONS: &str = "mode=755,size=64m";

/// Makes `RUN`, with nothing of an earlier boot in it. Idempotent; blocking.
pub fn prepare(layout: &Layout) -> io::Result<()> {
    fs::create_dir_all(&layout.run)?;
    let magic = statfs(&layout.run)?.filesystem_type().0 as u64 & 0xffff_ffff;
    if MAGICS_IN_MEMORY.contains(&magic) {
        return Ok(());
    }
    if shares_mounts_with_init()? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        return Ok(mount(Some("tmpfs"), &layout.run, Some("tmpfs"), flags, Some(OPTIONS))?);
    }
    let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
    let marker = layout.run.join("boot");
    match fs::read(&marker) {
        Ok(of) if of == boot => return Ok(()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Err(_) => {}
        // Nothing is mounted there, and nobody holds its lock: what is in it ended with that boot.
        Ok(_) => {
            fs::remove_dir_all(&layout.run)?;
            fs::create_dir(&layout.run)?;
        }
    }
    fs::write(marker, boot)
}

/// Whether mounts that we make are seen by whoever logs in. Where pid 1 may not be looked at, nobody can tell.
fn shares_mounts_with_init() -> io::Result<bool> {
    let identity = |of: &str| fs::metadata(format!("/proc/{of}/ns/mnt")).map(|m| (m.dev(), m.ino()));
    match identity("1") {
        Ok(init) => Ok(identity("thread-self")? == init),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    #[test]
    fn run_state_on_the_disk_ends_with_the_boot() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on a disk");
        let layout = Layout::of_root(dir.path());
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("the tests run as root");
            prepare(&layout).expect("made");
            let stale = layout.run.join("pods");
            fs::create_dir(&stale).expect("made");
            prepare(&layout).expect("there");
            assert!(stale.exists(), "the same boot");
            fs::write(layout.run.join("boot"), "another").expect("written");
            prepare(&layout).expect("made anew");
            assert!(!stale.exists() && layout.run.exists());
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).expect("as promised");
    }
}
