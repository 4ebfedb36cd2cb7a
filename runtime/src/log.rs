//! Reading what the shim wrote: CRI logs with their rotated files, from an end, from a time, and on as they grow.
//!
//! Memory is bounded by one block and one record, whatever a log holds. Following waits for inotify and survives
//! rotation: the old file is read to its end before the new one is begun.

use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

/// Bytes read at once when looking for the last lines.
const BLOCK_BYTES: usize = 64 * 1024;
/// A record that is longer was not written by a shim.
const RECORD_BYTES_MAX: u64 = 64 * 1024;
/// Bytes sent on at once.
const CHUNK_BYTES: usize = 32 * 1024;

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
}

/// Attempts that have a log in `dir` (`LOGS/CONTAINER`), oldest first.
pub fn attempts(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).filter_map(|e| e.file_name().into_string().ok());
    let mut attempts: Vec<u32> = names.filter_map(|n| n.strip_suffix(".log")?.parse().ok()).collect();
    attempts.sort_unstable();
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
    let current = dir.join(format!("{attempt}.log"));
    // Watched before the first read, so that nothing written in between is missed.
    let mut watch = if options.follow { Some(Watch::new(dir)?) } else { None };
    let mut sender =
        Sender { options: options.clone(), left: options.limit_bytes, pending: Vec::new(), open: false, out };
    let (mut files, start) = beginning(&current, options.tail_lines)?;
    let mut offset = start;
    while files.len() > 1 {
        let file = files.remove(0);
        if read_on(file, &mut offset, &mut sender).await?.is_none() {
            return Ok(());
        }
        offset = 0;
    }
    let mut file = files.pop();
    loop {
        let over = *ended.borrow_and_update();
        if let Some(open) = file.take() {
            match read_on(open, &mut offset, &mut sender).await? {
                Some(open) => file = Some(open),
                None => return Ok(()),
            }
        }
        let Some(watch) = watch.as_mut() else { return sender.flush().await };
        // Rotated: what was read belongs to a file of another name now.
        let there = fs::metadata(&current).ok().map(|m| m.ino());
        let here = match &file {
            Some(file) => Some(file.metadata()?.ino()),
            None => None,
        };
        if there.is_some() && there != here {
            file = Some(File::open(&current)?);
            offset = 0;
            continue;
        }
        if over {
            return sender.flush().await;
        }
        sender.flush().await?;
        tokio::select! {
            changed = watch.changed() => changed?,
            // A sender that is gone will not say any more that it ended.
            said = ended.changed() => if said.is_err() { return sender.flush().await },
            () = sender.out.closed() => return Ok(()),
        }
    }
}

/// The text of the last `lines` records of one attempt's current file. Blocking; bounded by the records' own bound.
pub fn last_lines(dir: &Path, attempt: u32, lines: u64) -> io::Result<String> {
    let mut file = File::open(dir.join(format!("{attempt}.log")))?;
    let (_, offset) = from_end(&mut file, lines)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(lines.saturating_mul(RECORD_BYTES_MAX)).read_to_end(&mut bytes)?;
    let mut text = Vec::new();
    for record in bytes.split_inclusive(|b| *b == b'\n') {
        if let Some((_, whole, line)) = parse(record) {
            text.extend_from_slice(line);
            text.extend(whole.then_some(b'\n'));
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The files to read, oldest first, and where in the first one to begin.
fn beginning(current: &Path, tail_lines: Option<u64>) -> io::Result<(Vec<File>, u64)> {
    let mut paths = vec![current.to_path_buf()];
    for number in 1.. {
        let older = PathBuf::from(format!("{}.{number}", current.display()));
        if !older.exists() {
            break;
        }
        paths.push(older);
    }
    let mut files = Vec::new();
    let mut wanted = tail_lines;
    for path in paths {
        // The newest first; one that rotation took away meanwhile is read under its other name or not at all.
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let Some(lines) = wanted else {
            files.insert(0, file);
            continue;
        };
        let (found, offset) = from_end(&mut file, lines)?;
        files.insert(0, file);
        if found >= lines {
            return Ok((files, offset));
        }
        wanted = Some(lines - found);
    }
    Ok((files, 0))
}

/// How many of the last `lines` whole lines a file has, and where the first of them begins.
fn from_end(file: &mut File, lines: u64) -> io::Result<(u64, u64)> {
    let end = file.metadata()?.len();
    let mut at = end;
    let mut found = 0;
    let mut block = vec![0; BLOCK_BYTES];
    while at > 0 {
        let length = at.min(BLOCK_BYTES as u64);
        at -= length;
        file.seek(SeekFrom::Start(at))?;
        let block = &mut block[..length as usize];
        file.read_exact(block)?;
        for index in (0..block.len()).rev() {
            // The newline at the very end closes the last line and begins none.
            let position = at + index as u64 + 1;
            if block[index] == b'\n' && position < end {
                found += 1;
                if found == lines {
                    return Ok((found, position));
                }
            }
        }
    }
    // The first line has no newline before it.
    Ok((if end > 0 { found + 1 } else { 0 }, if lines == 0 { end } else { 0 }))
}

/// Reads from `offset` to the end of the file now; `None` when the receiver is gone or has enough.
async fn read_on(mut file: File, offset: &mut u64, sender: &mut Sender) -> io::Result<Option<File>> {
    file.seek(SeekFrom::Start(*offset))?;
    let mut reader = BufReader::with_capacity(BLOCK_BYTES, file);
    let mut record = Vec::new();
    loop {
        record.clear();
        let length = reader.by_ref().take(RECORD_BYTES_MAX).read_until(b'\n', &mut record)?;
        if length == 0 || record.last() != Some(&b'\n') {
            // Half a record is read again once it is whole.
            break;
        }
        *offset += length as u64;
        if !sender.record(&record).await {
            return Ok(None);
        }
    }
    Ok(Some(reader.into_inner()))
}

struct Sender {
    options: LogOptions,
    left: Option<u64>,
    pending: Vec<u8>,
    /// In the middle of a line: parts follow.
    open: bool,
    out: mpsc::Sender<Bytes>,
}

impl Sender {
    /// Passes one record on; `false` when no more is wanted.
    async fn record(&mut self, record: &[u8]) -> bool {
        let Some((time, whole, text)) = parse(record) else { return true };
        if let Some(since) = self.options.since {
            let at: Option<jiff::Timestamp> = std::str::from_utf8(time).ok().and_then(|t| t.parse().ok());
            if at.is_none_or(|at| at < since) {
                return true;
            }
        }
        if self.options.timestamps && !self.open {
            self.pending.extend_from_slice(time);
            self.pending.push(b' ');
        }
        self.pending.extend_from_slice(text);
        if whole {
            self.pending.push(b'\n');
        }
        self.open = !whole;
        if self.pending.len() >= CHUNK_BYTES
            || self.left.is_some_and(|left| self.pending.len() as u64 >= left)
        {
            return self.flush().await.is_ok() && self.left != Some(0);
        }
        true
    }

    async fn flush(&mut self) -> io::Result<()> {
        if let Some(left) = &mut self.left {
            let allowed = usize::try_from(*left).unwrap_or(usize::MAX);
            self.pending.truncate(allowed);
            *left -= self.pending.len() as u64;
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.pending));
        self.out.send(chunk).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Time, whether the line ends here, and its text. CRI: `TIME STREAM P|F TEXT\n`.
fn parse(record: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut parts = record.strip_suffix(b"\n")?.splitn(4, |b| *b == b' ');
    let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    Some((time, tag == b"F", parts.next()?))
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

    async fn read(dir: &Path, options: LogOptions) -> String {
        let (out, mut chunks) = mpsc::channel(8);
        let (_ended, over) = watch::channel(true);
        let dir = dir.to_path_buf();
        let task = tokio::spawn(async move { send(&dir, 0, &options, over, out).await });
        let mut text = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            text.extend_from_slice(&chunk);
        }
        task.await.expect("runs").expect("reads");
        String::from_utf8(text).expect("text")
    }

    #[tokio::test(flavor = "current_thread")]
    async fn rotated_files_tails_times_and_parts_read_as_one_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let record = |second: u32, tag: &str, text: &str| {
            format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {text}\n")
        };
        let write = |name: &str, text: String| fs::write(dir.path().join(name), text).expect("written");
        write("0.log.2", record(1, "F", "one") + &record(2, "F", "two"));
        write("0.log.1", record(3, "P", "thr") + &record(3, "F", "ee") + &record(4, "F", ""));
        write("0.log", record(5, "F", "five") + "2026-01-01T00:00:06.0Z stdout F half-writ");
        let all = "one\ntwo\nthree\n\nfive\n";
        let check = async |options: LogOptions, expected: &str| {
            assert_eq!(read(dir.path(), options.clone()).await, expected, "{options:?}");
        };
        let tail = |lines| LogOptions { tail_lines: Some(lines), ..Default::default() };
        check(LogOptions::default(), all).await;
        check(LogOptions { follow: true, ..Default::default() }, all).await;
        check(tail(0), "").await;
        check(tail(2), "five\n").await;
        check(tail(3), "\nfive\n").await;
        check(tail(100), all).await;
        let since = "2026-01-01T00:00:04Z".parse().ok();
        check(LogOptions { since, ..Default::default() }, "\nfive\n").await;
        check(LogOptions { limit_bytes: Some(5), ..Default::default() }, "one\nt").await;
        let stamped = LogOptions { timestamps: true, since, ..Default::default() };
        check(stamped, "2026-01-01T00:00:04.000000000Z \n2026-01-01T00:00:05.000000000Z five\n").await;
        assert_eq!(attempts(dir.path()), [0]);
    }
}
