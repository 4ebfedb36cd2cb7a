//! The log of one instance, in the CRI format: `TIME stdout F line`.
//!
//! A line is written when it is complete, or as `P` parts once it is longer than containerd lets a record grow, or
//! at the end of the stream. The files are bounded in size and number; a record is never split between two files,
//! nor left half-written by a full disk. What the disk refuses is counted, and the count is written when it takes
//! lines again. Nothing here fails towards the caller: a container never waits for its log.

use crate::clock::{RFC3339_LENGTH, Stamp};
use std::fs::{self, DirBuilder, File};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The longest text of one record, as containerd's `max_container_log_line_size`.
pub(crate) const RECORD_BYTES_MAX: usize = 16 * 1024;
/// Records that go to the disk in one call.
const BATCH_RECORDS_MAX: usize = 64;
/// A held part of a line keeps at most this much memory once it is written.
const HELD_BYTES_KEPT: usize = 1024;
/// Length of ` stdout F `.
const LABEL_LENGTH: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Bounds of one instance's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: u64,
    /// The current one included; at least 1.
    pub(crate) files_max: u32,
}

#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    bounds: Bounds,
    /// `None` before the first line, and while it cannot be opened.
    file: Option<File>,
    /// Bytes of whole records in `file`.
    size: u64,
    /// `file` may go on after `size`: a write was cut short and could not be undone yet.
    torn: bool,
    held: [Vec<u8>; 2],
    dropped: Dropped,
}

/// Records that the disk refused since it last took one.
#[derive(Debug, Default)]
struct Dropped {
    records: u64,
    bytes: u64,
    why: Option<io::Error>,
}

/// One record: a head, then up to three parts that end with a newline.
struct Record<'a>([&'a [u8]; 4]);

impl Record<'_> {
    fn length(&self) -> u64 {
        self.0.iter().map(|part| part.len() as u64).sum()
    }
}

type Head = [u8; RFC3339_LENGTH + LABEL_LENGTH];

fn head(time: &[u8; RFC3339_LENGTH], stream: Stream, whole: bool) -> Head {
    let label: &[u8; LABEL_LENGTH] = match (stream, whole) {
        (Stream::Stdout, true) => b" stdout F ",
        (Stream::Stdout, false) => b" stdout P ",
        (Stream::Stderr, true) => b" stderr F ",
        (Stream::Stderr, false) => b" stderr P ",
    };
    let mut head = [0; RFC3339_LENGTH + LABEL_LENGTH];
    head[..RFC3339_LENGTH].copy_from_slice(time);
    head[RFC3339_LENGTH..].copy_from_slice(label);
    head
}

impl Log {
    /// A log at `path`; nothing is made on disk before the first line.
    pub(crate) fn new(path: PathBuf, bounds: Bounds) -> Log {
        Log {
            path,
            bounds,
            file: None,
            size: 0,
            torn: false,
            held: Default::default(),
            dropped: Dropped::default(),
        }
    }

    /// Writes what a container wrote, up to its last complete line.
    pub(crate) fn append(&mut self, stream: Stream, chunk: &[u8], now: &Stamp) {
        let time = now.rfc3339();
        let (whole, part) = (head(&time, stream, true), head(&time, stream, false));
        let mut held = std::mem::take(&mut self.held[stream as usize]);
        let mut batch = Vec::with_capacity(BATCH_RECORDS_MAX.min(1 + chunk.len() / 64));
        // Held text belongs to the first record only.
        let mut before: &[u8] = &held;
        let mut rest = chunk;
        while !rest.is_empty() {
            let room = RECORD_BYTES_MAX - before.len();
            let window = &rest[..rest.len().min(room + 1)];
            let record = match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    let line;
                    (line, rest) = rest.split_at(end + 1);
                    Record([&whole, before, line, b""])
                }
                None if rest.len() > room => {
                    let text;
                    (text, rest) = rest.split_at(room);
                    Record([&part, before, text, b"\n"])
                }
                None => break,
            };
            before = b"";
            batch.push(record);
            if batch.len() == BATCH_RECORDS_MAX {
                self.write(&batch, now);
                batch.clear();
            }
        }
        self.write(&batch, now);
        let used = before.is_empty();
        drop(batch);
        if used {
            held.clear();
            held.shrink_to(HELD_BYTES_KEPT);
        }
        held.extend_from_slice(rest);
        self.held[stream as usize] = held;
    }

    /// Writes unfinished lines as parts: the stream has ended.
    pub(crate) fn finish(&mut self, now: &Stamp) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = std::mem::take(&mut self.held[stream as usize]);
            if !held.is_empty() {
                self.write(&[Record([&head(&now.rfc3339(), stream, false), &held, b"", b"\n"])], now);
            }
        }
    }

    /// Closes the file; a later line opens it again.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }

    fn write(&mut self, records: &[Record<'_>], now: &Stamp) {
        if !records.is_empty() {
            self.confess(now);
            self.write_bounded(records);
        }
    }

    /// Tells of dropped records, once the disk takes anything again.
    fn confess(&mut self, now: &Stamp) {
        let Some(why) = &self.dropped.why else { return };
        let text = format!(
            "[coracle: {} records, {} bytes, were dropped here: {why}]\n",
            self.dropped.records, self.dropped.bytes
        );
        let before = std::mem::take(&mut self.dropped);
        self.write_bounded(&[Record([
            &head(&now.rfc3339(), Stream::Stderr, true),
            text.as_bytes(),
            b"",
            b"",
        ])]);
        if self.dropped.why.is_some() {
            self.dropped = before;
        }
    }

    fn write_bounded(&mut self, records: &[Record<'_>]) {
        let mut rest = records;
        while !rest.is_empty() {
            if let Err(error) = self.ready() {
                return self.drop_records(rest, error);
            }
            let mut end = 0;
            let mut size = self.size;
            while end < rest.len() && (size == 0 || size + rest[end].length() <= self.bounds.bytes_max) {
                size += rest[end].length();
                end += 1;
            }
            let (fit, beyond) = rest.split_at(end);
            self.write_here(fit);
            if !beyond.is_empty()
                && let Err(error) = self.rotate()
            {
                return self.drop_records(beyond, error);
            }
            rest = beyond;
        }
    }

    /// Writes records into the current file, all or the first ones, and none in part.
    fn write_here(&mut self, records: &[Record<'_>]) {
        let (written, error) = match self.ready() {
            Err(error) => (0, error),
            Ok(file) => match write_all(file, records) {
                (written, None) => {
                    self.size += written;
                    return;
                }
                (written, Some(error)) => (written, error),
            },
        };
        let mut whole = 0;
        let mut bytes = 0;
        while whole < records.len() && bytes + records[whole].length() <= written {
            bytes += records[whole].length();
            whole += 1;
        }
        self.size += bytes;
        if written > bytes {
            // Tried again before the next record, should the disk refuse this as well.
            self.torn = self.file.as_ref().is_none_or(|file| file.set_len(self.size).is_err());
        }
        self.drop_records(&records[whole..], error);
    }

    fn drop_records(&mut self, records: &[Record<'_>], why: io::Error) {
        self.dropped.records += records.len() as u64;
        self.dropped.bytes += records.iter().map(Record::length).sum::<u64>();
        self.dropped.why = Some(why);
    }

    /// The current file, open, and ending with a whole record.
    fn ready(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let file = open(&self.path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        let file = self.file.as_ref().expect("opened above");
        if self.torn {
            file.set_len(self.size)?;
            self.torn = false;
        }
        Ok(file)
    }

    /// `0.log` becomes `0.log.1`, that becomes `0.log.2`, and the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        // A torn end must not be rotated away as if it were a record.
        self.ready()?;
        self.file = None;
        self.size = 0;
        let name = |number: u32| match number {
            0 => self.path.clone(),
            _ => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            }
        };
        if self.bounds.files_max <= 1 {
            return fs::remove_file(&self.path);
        }
        // Renames into the place of the oldest; a bound in the thousands still asks only for what is there.
        let last = (1..self.bounds.files_max - 1).find(|number| !name(*number).exists());
        for number in (0..last.unwrap_or(self.bounds.files_max - 1)).rev() {
            fs::rename(name(number), name(number + 1))?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    File::options().append(true).create(true).mode(0o640).open(path)
}

/// How much was written, and what stopped it.
fn write_all(mut file: &File, records: &[Record<'_>]) -> (u64, Option<io::Error>) {
    let mut slices: Vec<IoSlice<'_>> = records
        .iter()
        .flat_map(|record| record.0)
        .filter(|part| !part.is_empty())
        .map(IoSlice::new)
        .collect();
    let mut slices = slices.as_mut_slice();
    let mut written = 0;
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => {
                written += bytes as u64;
                IoSlice::advance_slices(&mut slices, bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: Stamp = Stamp { wall_seconds: 0, wall_nanoseconds: 0, boottime: Duration::ZERO };

    fn log(directory: &Path, bytes_max: u64, files_max: u32) -> Log {
        Log::new(directory.join("web").join("0.log"), Bounds { bytes_max, files_max })
    }

    /// The records of one file without their times.
    fn records(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| line[RFC3339_LENGTH + 1..].to_string()).collect()
    }

    #[test]
    fn lines_are_held_until_they_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 1 << 20, 2);
        for (stream, text) in [
            (Stream::Stdout, "a"),
            (Stream::Stderr, "x\ny"),
            (Stream::Stdout, "b"),
            (Stream::Stdout, "c\n\nd"),
            (Stream::Stdout, ""),
        ] {
            log.append(stream, text.as_bytes(), &NOW);
        }
        let path = directory.path().join("web/0.log");
        assert_eq!(records(&path), ["stderr F x", "stdout F abc", "stdout F "]);
        log.finish(&NOW);
        assert_eq!(records(&path)[3..], ["stdout P d", "stderr P y"]);
    }

    #[test]
    fn long_lines_become_parts_that_join_to_what_was_written() {
        let check = |chunks: &[usize], expected: &[(char, usize)]| {
            let directory = tempfile::tempdir().unwrap();
            let mut log = log(directory.path(), 1 << 20, 2);
            for length in chunks {
                log.append(Stream::Stdout, "x".repeat(*length).as_bytes(), &NOW);
            }
            log.append(Stream::Stdout, b"\n", &NOW);
            let found: Vec<_> = records(&directory.path().join("web/0.log"))
                .iter()
                .map(|record| (record.as_bytes()[7] as char, record.len() - 9))
                .collect();
            assert_eq!(found, expected, "{chunks:?}");
        };
        let max = RECORD_BYTES_MAX;
        check(&[max], &[('F', max)]);
        check(&[max + 1], &[('P', max), ('F', 1)]);
        check(&[1, max], &[('P', max), ('F', 1)]);
        check(&[max - 1, 1], &[('F', max)]);
        check(&[3 * max + 5], &[('P', max), ('P', max), ('P', max), ('F', 5)]);
        check(&[10, 10, max, 2 * max], &[('P', max), ('P', max), ('P', max), ('F', 20)]);
    }

    #[test]
    fn files_are_bounded_and_records_whole() {
        for (bytes_max, files_max) in [(100, 1), (100, 2), (1000, 3), (41, 4)] {
            let directory = tempfile::tempdir().unwrap();
            let mut log = log(directory.path(), bytes_max, files_max);
            for start in (0..1000).step_by(7) {
                let text: String = (start..start + 7).map(|number| format!("line {number}\n")).collect();
                log.append(Stream::Stdout, text.as_bytes(), &NOW);
            }
            let web = directory.path().join("web");
            let mut names: Vec<_> = fs::read_dir(&web).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            assert_eq!(names.len(), files_max as usize, "{names:?}");
            let mut kept = Vec::new();
            for path in names[1..].iter().rev().chain([&names[0]]) {
                let size = fs::metadata(path).unwrap().len();
                let records = records(path);
                assert!(size <= bytes_max || records.len() == 1, "{size} > {bytes_max}");
                kept.extend(records);
            }
            let last: Vec<_> =
                (1001 - kept.len()..1001).map(|number| format!("stdout F line {number}")).collect();
            assert_eq!(kept, last, "no line is missing between the oldest kept and the newest");
        }
    }

    #[test]
    fn what_the_disk_refuses_is_counted_and_the_count_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 1 << 20, 2);
        // A file where the directory should be stands for any failure to open.
        fs::write(directory.path().join("web"), "").unwrap();
        log.append(Stream::Stdout, b"one\ntwo\n", &NOW);
        log.append(Stream::Stdout, b"three\n", &NOW);
        fs::remove_file(directory.path().join("web")).unwrap();
        log.append(Stream::Stdout, b"four\n", &NOW);
        let found = records(&directory.path().join("web/0.log"));
        assert_eq!(found.len(), 2);
        assert!(
            found[0].starts_with("stderr F [coracle: 3 records, 134 bytes, were dropped here: "),
            "{found:?}"
        );
        assert_eq!(found[1], "stdout F four");
    }
}
