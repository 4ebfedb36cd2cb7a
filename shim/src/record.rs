//! How an instance ended: the record that the shim leaves on disk for an agent that was not there.
//!
//! The text is versioned and carries a checksum; a reader ignores keys that it does not know. It is also the form
//! in which a report travels over the socket. A record is written once and never changed.

use crate::clock::Stamp;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

const HEADING: &str = "coracle-exit 1";
const CHECKSUM: &str = "crc32 ";
/// The longest termination message, as the kubelet keeps it.
pub const MESSAGE_BYTES_MAX: usize = 4096;
/// More than the longest record: a message whose every byte is escaped, and the rest.
const RECORD_BYTES_MAX: u64 = 4 * MESSAGE_BYTES_MAX as u64 + 1024;

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// `web.0`.
    pub instance: String,
    /// What its first process was on the host.
    pub pid: i32,
    /// 0–255; 128 + signal when killed.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It failed, and its cgroup saw an OOM kill.
    pub oom_killed: bool,
    /// When it started.
    pub started: Stamp,
    /// When the shim reaped it.
    pub finished: Stamp,
    /// `/proc/sys/kernel/random/boot_id` that both belong to.
    pub boot_id: String,
    /// The termination message: at most [`MESSAGE_BYTES_MAX`] bytes, the last ones.
    pub message: String,
}

/// A record that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The disk refused.
    #[error("exit record: {0}")]
    Io(#[from] io::Error),
    /// Not a whole record of a version that this code knows.
    #[error("exit record is damaged or of another version: {0}")]
    Damaged(&'static str),
}

impl ExitReport {
    /// The record's text.
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(512 + self.message.len());
        let signal = self.signal.unwrap_or(0);
        let written = write!(
            text,
            "{HEADING}\ninstance {}\npid {}\ncode {}\nsignal {signal}\noom {}\nstarted {}\nfinished {}\n\
             boot {}\nmessage {}\n",
            self.instance,
            self.pid,
            self.code,
            u8::from(self.oom_killed),
            stamp_text(&self.started),
            stamp_text(&self.finished),
            self.boot_id,
            escape(&self.message),
        );
        let sum = crc32(text.as_bytes());
        let written = written.and_then(|()| writeln!(text, "{CHECKSUM}{sum:08x}"));
        written.expect("a String takes all that is written to it");
        text
    }

    /// Reads a record's text.
    ///
    /// # Errors
    /// [`RecordError::Damaged`] for anything that [`ExitReport::to_text`] did not write whole.
    pub fn parse(text: &str) -> Result<ExitReport, RecordError> {
        let damaged = RecordError::Damaged;
        let end = text.rfind(CHECKSUM).ok_or(damaged("no checksum"))?;
        let (body, sum) = text.split_at(end);
        let sum = sum.strip_prefix(CHECKSUM).and_then(|sum| sum.strip_suffix('\n'));
        if sum.and_then(|sum| u32::from_str_radix(sum, 16).ok()) != Some(crc32(body.as_bytes())) {
            return Err(damaged("wrong checksum"));
        }
        let mut lines = body.lines();
        if lines.next() != Some(HEADING) {
            return Err(damaged("unknown heading"));
        }
        let find = |key: &'static str| {
            let mut found = lines.clone().filter_map(|line| line.split_once(' '));
            found.find(|(name, _)| *name == key).map(|(_, value)| value).ok_or(damaged(key))
        };
        let number = |key| find(key)?.parse::<i32>().map_err(|_| damaged(key));
        let stamp = |key| stamp_of(find(key)?).ok_or(damaged(key));
        let signal = number("signal")?;
        Ok(ExitReport {
            instance: find("instance")?.into(),
            pid: number("pid")?,
            code: number("code")?,
            signal: (signal != 0).then_some(signal),
            oom_killed: number("oom")? != 0,
            started: stamp("started")?,
            finished: stamp("finished")?,
            boot_id: find("boot")?.into(),
            message: unescape(find("message")?).ok_or(damaged("message"))?,
        })
    }

    /// Writes the record durably: temporary file, fsync, rename, fsync of the directory, which is made if missing.
    /// Blocking; idempotent.
    ///
    /// # Errors
    /// The disk's; nothing is then left under `path`'s name.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Instance names hold one dot, so this is no record's name.
        let temporary = directory.join(".writing");
        let mut file = File::options().create(true).truncate(true).write(true).open(&temporary)?;
        file.write_all(self.to_text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    }

    /// Reads a record from disk; `None` if there is none. Blocking.
    ///
    /// # Errors
    /// The disk's, or [`RecordError::Damaged`].
    pub fn read(path: &Path) -> Result<Option<ExitReport>, RecordError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = str::from_utf8(&bytes).map_err(|_| RecordError::Damaged("not UTF-8"))?;
        ExitReport::parse(text).map(Some)
    }
}

fn stamp_text(stamp: &Stamp) -> String {
    let Stamp { wall_seconds, wall_nanoseconds, boottime } = stamp;
    format!("{wall_seconds} {wall_nanoseconds} {}", boottime.as_nanos())
}

fn stamp_of(text: &str) -> Option<Stamp> {
    let mut parts = text.split(' ');
    let stamp = Stamp {
        wall_seconds: parts.next()?.parse().ok()?,
        wall_nanoseconds: parts.next()?.parse().ok().filter(|nanoseconds| *nanoseconds < 1_000_000_000)?,
        boottime: Duration::from_nanos(parts.next()?.parse().ok()?),
    };
    parts.next().is_none().then_some(stamp)
}

/// One line: backslash, newline and carriage return are escaped.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next()? {
                '\\' => '\\',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            other => other,
        });
    }
    Some(plain)
}

/// CRC-32 as zlib computes it. Bit by bit: a record is short, and a table would be more than all the rest.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ExitReport {
        let stamp = |wall_seconds, nanoseconds| Stamp {
            wall_seconds,
            wall_nanoseconds: 999_999_999,
            boottime: Duration::from_nanos(nanoseconds),
        };
        ExitReport {
            instance: "web.0".into(),
            pid: 42,
            code: 137,
            signal: Some(9),
            oom_killed: true,
            started: stamp(-5, 1),
            finished: stamp(1_700_000_000, u64::MAX),
            boot_id: "b0b0".into(),
            message: "a\\n\n\r crc32 00000000\nfinished 1 2 3 \u{e9}".into(),
        }
    }

    #[test]
    fn checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn records_round_trip_through_text_and_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exits").join("web.0");
        assert!(ExitReport::read(&path).unwrap().is_none());
        report().write(&path).unwrap();
        report().write(&path).unwrap();
        assert_eq!(ExitReport::read(&path).unwrap(), Some(report()));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
        let plain = ExitReport { signal: None, oom_killed: false, message: String::new(), ..report() };
        assert_eq!(ExitReport::parse(&plain.to_text()).unwrap(), plain);
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_noticed() {
        let text = report().to_text();
        for end in 0..text.len() {
            let cut = text.get(..end).map(ExitReport::parse);
            assert!(cut.is_none_or(|parsed| parsed.is_err()), "cut at {end}");
        }
        for index in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[index] ^= 0x01;
            let parsed = str::from_utf8(&bytes).map(ExitReport::parse);
            // Upper and lower case digits of the checksum itself are the same number.
            assert!(parsed.is_err() || parsed.is_ok_and(|parsed| parsed.is_err()), "flip at {index}");
        }
    }

    #[test]
    fn a_later_versions_keys_are_skipped() {
        let text = report().to_text();
        let body = format!("{}colour blue\n", &text[..text.rfind(CHECKSUM).unwrap()]);
        let sealed = format!("{body}{CHECKSUM}{:08x}\n", crc32(body.as_bytes()));
        assert_eq!(ExitReport::parse(&sealed).unwrap(), report());
    }
}
