//! Reading what the shim wrote: CRI logs with their rotated files, from an end, from a time, and on as they grow.
//!
//! Memory is bounded by a chunk and by what one stream says while a line of the other is open, whatever a log holds.
//! Files are read on the blocking pool, a chunk at a time, as fast as the receiver takes them. Following waits for
//! inotify and survives rotation: a file is read to its end before its successor is begun, and none is passed over
//! that is still there.

mod files;
mod reader;
mod record;

pub use record::Stream;

use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use reader::{Reader, Step};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

/// The last lines of a log are at most so long, taken together.
const LAST_LINES_BYTES_MAX: usize = 16 * 1024;

/// `v1.PodLogOptions`, resolved.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on as the log grows, until its container has ended.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only lines since then.
    pub since: Option<jiff::Timestamp>,
    /// Each line's time before it.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// One of the two only.
    pub stream: Option<Stream>,
}

/// Attempts that have a log in `dir` (`LOGS/CONTAINER`), oldest first.
pub fn attempts(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).filter_map(|e| e.file_name().into_string().ok());
    // Between a rename and the first line after it there is only `N.log.1`.
    let number = |name: String| name.split_once(".log")?.0.parse().ok();
    let mut attempts: Vec<u32> = names.filter_map(number).collect();
    attempts.sort_unstable();
    attempts.dedup();
    attempts
}

/// Sends the log of one attempt to `out` until it ends, or, following, until `ended` is true and all is sent.
///
/// # Errors
/// The disk's. A receiver that has gone away ends it quietly.
pub async fn send(
    dir: &Path,
    attempt: u32,
    options: &LogOptions,
    mut ended: watch::Receiver<bool>,
    out: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    // Watched before the first read, so that nothing written in between is missed.
    let mut watch = if options.follow { Some(Watch::new(dir)?) } else { None };
    let (current, options) = (dir.join(format!("{attempt}.log")), options.clone());
    let mut reader = blocking(move || Reader::open(current, options)).await?;
    loop {
        // Asked before reading: what was written before the end is there to be read after it.
        let over = *ended.borrow_and_update() || ended.has_changed().is_err();
        loop {
            let step;
            (reader, step) = blocking(move || {
                let step = reader.step()?;
                Ok((reader, step))
            })
            .await?;
            match step {
                Step::Idle => break,
                Step::Enough => return Ok(()),
                Step::Chunk(chunk) => {
                    if out.send(chunk.into()).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        let Some(watch) = watch.as_mut().filter(|_| !over) else { break };
        tokio::select! {
            changed = watch.changed() => changed?,
            // Whether it said so or is gone: the next round is the last.
            said = ended.changed() => tracing::trace!(?said, "a followed log ends"),
            () = out.closed() => return Ok(()),
        }
    }
    let rest = reader.finish();
    if !rest.is_empty() && out.send(rest.into()).await.is_err() {
        tracing::debug!("a log's reader left before its end");
    }
    Ok(())
}

/// The last `lines` lines of one attempt, at most 16 KiB of them. Blocking.
pub fn last_lines(dir: &Path, attempt: u32, lines: u64) -> io::Result<String> {
    let options = LogOptions { tail_lines: Some(lines), ..Default::default() };
    let mut reader = Reader::open(dir.join(format!("{attempt}.log")), options)?;
    let mut text = Vec::new();
    while let Step::Chunk(chunk) = reader.step()? {
        text.extend_from_slice(&chunk);
        text.drain(..text.len().saturating_sub(LAST_LINES_BYTES_MAX));
    }
    text.extend(reader.finish());
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

struct Watch(AsyncFd<Events>);

struct Events(Inotify);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    fn new(dir: &Path) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify
            .add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE)?;
        Ok(Watch(crate::readiness::watch(Events(inotify), tokio::io::Interest::READABLE)?))
    }

    async fn changed(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        while ready.get_inner().0.read_events().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written before the end is sent, also when the end is told first.
    #[tokio::test(flavor = "current_thread")]
    async fn a_follower_gets_everything_and_then_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = |text: &str| format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n");
        fs::write(dir.path().join("0.log"), line("one")).expect("written");
        let (out, mut chunks) = mpsc::channel(8);
        let (ended, over) = watch::channel(false);
        let path = dir.path().to_path_buf();
        let options = LogOptions { follow: true, ..Default::default() };
        let task = tokio::spawn(async move { send(&path, 0, &options, over, out).await });
        assert_eq!(chunks.recv().await.as_deref(), Some(b"one\n".as_slice()));
        fs::rename(dir.path().join("0.log"), dir.path().join("0.log.1")).expect("renamed");
        fs::write(dir.path().join("0.log"), line("two")).expect("written");
        assert_eq!(chunks.recv().await.as_deref(), Some(b"two\n".as_slice()));
        fs::write(dir.path().join("0.log"), line("two") + &line("last")).expect("written");
        ended.send_replace(true);
        assert_eq!(chunks.recv().await.as_deref(), Some(b"last\n".as_slice()));
        assert_eq!(chunks.recv().await, None);
        task.await.expect("runs").expect("reads");
        assert_eq!(attempts(dir.path()), [0]);
    }
}
