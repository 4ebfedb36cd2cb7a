//! From files to the bytes that a reader of the log gets: one step at a time, without waiting.

use super::LogOptions;
use super::files::{self, Block};
use super::record::{Record, Stream};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Bytes handed on at once.
const CHUNK_BYTES: usize = 32 * 1024;
/// What one stream says while a line of the other is open is held back so far; then that line is broken.
const HELD_BYTES_MAX: usize = 256 * 1024;

/// What a step brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes to hand on; there may be more.
    Chunk(Vec<u8>),
    /// Nothing more until the log grows.
    Idle,
    /// Nothing more at all: as many bytes as were asked for.
    Enough,
}

/// Where a log is being read.
#[derive(Debug)]
pub(super) struct Reader {
    current: PathBuf,
    /// The file at hand and the ones known to follow it.
    files: VecDeque<File>,
    offset: u64,
    block: Block,
    lines: Lines,
}

impl Reader {
    /// At the beginning, or at the last lines. Blocking.
    pub(super) fn open(current: PathBuf, options: LogOptions) -> io::Result<Reader> {
        let mut files = files::newer(&current, None)?;
        let offset = match options.tail_lines {
            Some(lines) => files::tail(&mut files, lines)?,
            None => 0,
        };
        Ok(Reader {
            current,
            files: files.into(),
            offset,
            block: Block::default(),
            lines: Lines::new(options),
        })
    }

    /// Reads on until there is enough for a chunk. Blocking, for as long as the disk takes for one.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        loop {
            if self.lines.left == Some(0) {
                return Ok(Step::Enough);
            }
            if self.lines.out.len() >= CHUNK_BYTES {
                return Ok(Step::Chunk(self.lines.take()));
            }
            if self.read_record()? || self.advance()? {
                continue;
            }
            let rest = self.lines.take();
            return Ok(if rest.is_empty() { Step::Idle } else { Step::Chunk(rest) });
        }
    }

    /// What is held back for a line that will not be finished. The container has ended.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.lines.release(false);
        self.lines.take()
    }

    fn read_record(&mut self) -> io::Result<bool> {
        let Some(file) = self.files.front() else { return Ok(false) };
        let length = files::next_record(&mut self.block, file, self.offset)?;
        if length == 0 {
            return Ok(false);
        }
        if let Some(record) = Record::parse(&self.block.bytes()[..length]) {
            self.lines.add(&record);
        }
        self.block.consume(length);
        self.offset += length as u64;
        Ok(true)
    }

    /// To the next file, once there is one and this one is read to its end. A file that has a successor does not
    /// grow: so the successor is looked for first, and the end after it.
    fn advance(&mut self) -> io::Result<bool> {
        if self.files.len() < 2 {
            let here = self.files.front().map(|file| file.metadata().map(|m| m.ino())).transpose()?;
            self.files.extend(files::newer(&self.current, here)?);
            if here.is_none() {
                return Ok(!self.files.is_empty());
            }
        }
        if self.files.len() < 2 {
            return Ok(false);
        }
        if !self.read_record()? {
            self.files.pop_front();
            self.offset = 0;
            self.block.clear();
        }
        Ok(true)
    }
}

/// Records into lines, as the options want them.
#[derive(Debug)]
struct Lines {
    options: LogOptions,
    out: Vec<u8>,
    left: Option<u64>,
    /// The stream whose line is open, and whether that line is shown.
    open: Option<(Stream, bool)>,
    held: Vec<u8>,
    /// As `open`, of what is held back.
    held_open: Option<(Stream, bool)>,
}

impl Lines {
    fn new(options: LogOptions) -> Lines {
        let left = options.limit_bytes;
        Lines { options, out: Vec::new(), left, open: None, held: Vec::new(), held_open: None }
    }

    fn add(&mut self, record: &Record<'_>) {
        if self.options.stream.is_some_and(|wanted| wanted != record.stream) {
            return;
        }
        match self.open {
            Some((stream, _)) if stream != record.stream => {
                let shown = self.held_open.map_or_else(|| self.shown(record), |(_, shown)| shown);
                if shown {
                    write(&mut self.held, record, self.held_open.is_none(), self.options.timestamps);
                }
                self.held_open = (!record.whole).then_some((record.stream, shown));
                if self.held.len() > HELD_BYTES_MAX {
                    self.release(true);
                }
            }
            open => {
                let shown = open.map_or_else(|| self.shown(record), |(_, shown)| shown);
                if shown {
                    write(&mut self.out, record, open.is_none(), self.options.timestamps);
                }
                self.open = (!record.whole).then_some((record.stream, shown));
                if record.whole {
                    self.release(false);
                }
            }
        }
    }

    /// Hands on what was held back: after the open line has ended, or, `broken`, in the middle of it.
    fn release(&mut self, broken: bool) {
        if broken && matches!(self.open, Some((_, true))) {
            self.out.push(b'\n');
        }
        self.out.append(&mut self.held);
        self.open = self.held_open.take();
    }

    fn shown(&self, record: &Record<'_>) -> bool {
        let Some(since) = self.options.since else { return true };
        let at = std::str::from_utf8(record.time).ok().and_then(|t| t.parse::<jiff::Timestamp>().ok());
        at.is_some_and(|at| at >= since)
    }

    fn take(&mut self) -> Vec<u8> {
        if let Some(left) = &mut self.left {
            self.out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= self.out.len() as u64;
        }
        std::mem::take(&mut self.out)
    }
}

fn write(out: &mut Vec<u8>, record: &Record<'_>, begins: bool, timestamps: bool) {
    if timestamps && begins {
        out.extend_from_slice(record.time);
        out.push(b' ');
    }
    out.extend_from_slice(record.text);
    if record.whole {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn record(second: u32, stream: &str, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z {stream} {tag} {text}\n")
    }

    fn append(dir: &Path, name: &str, text: &str) {
        use std::io::Write;
        let mut file = File::options().create(true).append(true).open(dir.join(name)).expect("opened");
        file.write_all(text.as_bytes()).expect("written");
    }

    /// As the shim does it.
    fn rotate(dir: &Path) {
        for number in (1..5).rev() {
            let (from, to) = (dir.join(format!("0.log.{number}")), dir.join(format!("0.log.{}", number + 1)));
            if from.exists() {
                fs::rename(from, to).expect("renamed");
            }
        }
        fs::rename(dir.join("0.log"), dir.join("0.log.1")).expect("renamed");
    }

    fn read(reader: &mut Reader) -> String {
        let mut text = Vec::new();
        loop {
            match reader.step().expect("reads") {
                Step::Chunk(chunk) => text.extend_from_slice(&chunk),
                Step::Idle | Step::Enough => return String::from_utf8(text).expect("text"),
            }
        }
    }

    fn reader(dir: &Path, options: LogOptions) -> Reader {
        Reader::open(dir.join("0.log"), options).expect("opened")
    }

    /// Guards against lines lost between the last read and a rename, and files lost between two looks.
    #[test]
    fn nothing_is_lost_over_rotations_that_happen_between_two_looks() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        append(dir, "0.log", &record(1, "stdout", "F", "one"));
        let mut reader = reader(dir, LogOptions::default());
        assert_eq!(read(&mut reader), "one\n");
        append(dir, "0.log", &record(2, "stdout", "F", "two"));
        rotate(dir);
        append(dir, "0.log", &record(3, "stdout", "F", "three"));
        rotate(dir);
        assert_eq!(read(&mut reader), "two\nthree\n", "no current file for a moment");
        append(dir, "0.log", &record(4, "stdout", "F", "four"));
        rotate(dir);
        append(dir, "0.log", &record(5, "stdout", "F", "five"));
        assert_eq!(read(&mut reader), "four\nfive\n");
        // The file at hand is rotated away for good: what is left follows it.
        for second in 6..9 {
            rotate(dir);
            append(dir, "0.log", &record(second, "stdout", "F", &second.to_string()));
        }
        for number in 2..6 {
            drop(fs::remove_file(dir.join(format!("0.log.{number}"))));
        }
        assert_eq!(read(&mut reader), "7\n8\n");
    }

    #[test]
    fn lines_of_two_streams_are_not_mixed() {
        let check = |records: &[(&str, &str, &str)], options: LogOptions, expected: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            let text: String =
                records.iter().map(|(stream, tag, text)| record(1, stream, tag, text)).collect();
            append(dir.path(), "0.log", &text);
            let mut reader = reader(dir.path(), options);
            let mut said = read(&mut reader);
            said += std::str::from_utf8(&reader.finish()).expect("text");
            assert_eq!(said, expected, "{records:?}");
        };
        let mixed = [
            ("stdout", "P", "long "),
            ("stderr", "F", "oh"),
            ("stderr", "P", "no "),
            ("stdout", "F", "line"),
            ("stderr", "F", "more"),
            ("stdout", "F", "end"),
        ];
        check(&mixed, LogOptions::default(), "long line\noh\nno more\nend\n");
        let only = |stream| LogOptions { stream: Some(stream), ..Default::default() };
        check(&mixed, only(Stream::Stderr), "oh\nno more\n");
        check(&mixed, only(Stream::Stdout), "long line\nend\n");
        check(&[("stdout", "P", "ended so"), ("stderr", "F", "why")], LogOptions::default(), "ended sowhy\n");
        check(&[("other", "F", "no record")], LogOptions::default(), "");
    }

    #[test]
    fn tails_count_lines_and_not_records() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        append(dir, "0.log.2", &(record(1, "stdout", "F", "one") + &record(2, "stdout", "F", "two")));
        append(dir, "0.log.1", &(record(3, "stdout", "P", "thr") + &record(3, "stdout", "F", "ee")));
        append(dir, "0.log", &(record(4, "stdout", "F", "") + &record(5, "stdout", "F", "five")));
        append(dir, "0.log", "2026-01-01T00:00:06.0Z stdout F half-writ");
        let all = "one\ntwo\nthree\n\nfive\n";
        let tail = |lines| LogOptions { tail_lines: Some(lines), ..Default::default() };
        let check = |options: LogOptions, expected: &str| {
            assert_eq!(read(&mut reader(dir, options.clone())), expected, "{options:?}");
        };
        check(LogOptions::default(), all);
        check(tail(0), "");
        check(tail(1), "five\n");
        check(tail(2), "\nfive\n");
        check(tail(3), "three\n\nfive\n");
        check(tail(4), "two\nthree\n\nfive\n");
        check(tail(100), all);
        let since = "2026-01-01T00:00:04Z".parse().ok();
        check(LogOptions { since, ..Default::default() }, "\nfive\n");
        check(LogOptions { limit_bytes: Some(5), ..Default::default() }, "one\nt");
        let stamped = LogOptions { timestamps: true, since, ..Default::default() };
        check(stamped, "2026-01-01T00:00:04.000000000Z \n2026-01-01T00:00:05.000000000Z five\n");
        // The half-written record is shown once it is whole.
        let mut follower = reader(dir, tail(1));
        assert_eq!(read(&mut follower), "five\n");
        append(dir, "0.log", "ten\n");
        assert_eq!(read(&mut follower), "half-written\n");
    }

    #[test]
    fn a_long_line_and_rubbish_need_little_memory() {
        let dir = tempfile::tempdir().expect("a directory");
        let part = "x".repeat(16 * 1024);
        for _ in 0..64 {
            append(dir.path(), "0.log", &record(1, "stdout", "P", &part));
        }
        append(dir.path(), "0.log", &"no newline ".repeat(40_000));
        append(dir.path(), "0.log", &("\n".to_string() + &record(2, "stdout", "F", "end")));
        let mut reader = reader(dir.path(), LogOptions::default());
        let mut bytes = 0;
        while let Step::Chunk(chunk) = reader.step().expect("reads") {
            assert!(chunk.len() < 2 * CHUNK_BYTES);
            bytes += chunk.len();
        }
        assert_eq!(bytes, 64 * part.len() + "end\n".len());
    }
}
