//! Whether the board belongs to a cluster, and when that changes.
//!
//! `coracle join` and `coracle leave` are other processes: what they do becomes true with one file, and inotify tells of it.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use tokio::io::Interest;

struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Ends when there is a kubeconfig in `dir` and was none, or the other way round. `dir` must be there.
pub(crate) async fn changes(dir: &Path, joined: bool) -> io::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let files = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
    inotify.add_watch(dir, files | AddWatchFlags::IN_CREATE)?;
    let watch = coracle_runtime::readiness::watch(Watch(inotify), Interest::READABLE)?;
    let kubeconfig = dir.join("kubeconfig");
    // Looked at after the watch is there: what happened before is seen, what happens later is told.
    while kubeconfig.exists() == joined {
        let mut ready = watch.readable().await?;
        match watch.get_ref().0.read_events() {
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn joining_and_leaving_are_seen_whenever_they_happen() {
        let dir = tempfile::tempdir().expect("a directory");
        let (new, kubeconfig) = (dir.path().join("kubeconfig.new"), dir.path().join("kubeconfig"));
        std::fs::write(&new, "").expect("written");
        let join = async { std::fs::rename(&new, &kubeconfig).expect("renamed") };
        let (seen, ()) = tokio::join!(changes(dir.path(), false), join);
        seen.expect("seen");
        changes(dir.path(), false).await.expect("seen afterwards");
        let leave = async { std::fs::remove_file(&kubeconfig).expect("removed") };
        let (seen, ()) = tokio::join!(changes(dir.path(), true), leave);
        seen.expect("seen");
    }
}
