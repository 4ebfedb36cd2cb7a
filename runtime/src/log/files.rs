//! The files of one attempt's log: `0.log` is the newest, `0.log.1` the one before it, and so on.
//!
//! The shim rotates by renaming, oldest first, while we look. A file is therefore known by its inode, which cannot be
//! used again while it is open here; and names are looked at from the newest on, so that a file which moves
//! meanwhile is met under its next name at the latest.

use super::record::{self, Record};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes read at once when looking for the last lines.
const BLOCK_BYTES: usize = 64 * 1024;
/// Rotation leaves one name empty for a moment; two empty names in a row are the end.
const GAP_MAX: u32 = 1;

/// Files that are newer than the one with inode `than`, or all of them; oldest first. Blocking.
pub(super) fn newer(current: &Path, than: Option<u64>) -> io::Result<Vec<File>> {
    let (mut files, mut inodes, mut gap) = (Vec::new(), Vec::new(), 0);
    for number in 0_u32.. {
        let path = match number {
            0 => current.to_path_buf(),
            _ => PathBuf::from(format!("{}.{number}", current.display())),
        };
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && gap < GAP_MAX => {
                gap += 1;
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            file => file?,
        };
        gap = 0;
        let inode = file.metadata()?.ino();
        if Some(inode) == than {
            break;
        }
        if !inodes.contains(&inode) {
            inodes.push(inode);
            files.push(file);
        }
    }
    files.reverse();
    Ok(files)
}

/// Drops what lies before the last `lines` lines; where in the first file left they begin. A line is what ends with a
/// whole record, whatever parts it has, and what is still open at the end. Of a line whose parts the other stream's
/// lines lie between, the parts before the first line are not shown. Blocking.
pub(super) fn tail(files: &mut Vec<File>, lines: u64) -> io::Result<u64> {
    let mut found = 0;
    let mut first_seen = false;
    for index in (0..files.len()).rev() {
        if let Some(offset) = cut(&files[index], lines, &mut found, &mut first_seen)? {
            files.drain(..index);
            return Ok(offset);
        }
    }
    Ok(0)
}

/// Where the last `lines` lines begin, if that is in this file; `found` counts what it has of them.
fn cut(file: &File, lines: u64, found: &mut u64, first_seen: &mut bool) -> io::Result<Option<u64>> {
    let mut backwards = Backwards::new(file)?;
    // The end of the record at hand: whole records only.
    let mut end = backwards.before(u64::MAX)?;
    while let Some(stop) = end.filter(|stop| *stop > 0) {
        let start = backwards.before(stop - 1)?.unwrap_or(0);
        let mut head = [0; record::HEAD_BYTES_MAX];
        let length = (stop - start).min(head.len() as u64) as usize;
        file.read_exact_at(&mut head[..length], start)?;
        let closes = record::tag_of(&head[..length]).is_none_or(|whole| whole);
        if closes || !*first_seen {
            *found += 1;
        }
        *first_seen = true;
        if *found > lines {
            return Ok(Some(stop));
        }
        end = Some(start);
    }
    Ok(None)
}

/// Newlines from the end of a file to its beginning.
struct Backwards<'a> {
    file: &'a File,
    length: u64,
    block: Vec<u8>,
    /// Where in the file the block begins.
    at: u64,
}

impl Backwards<'_> {
    fn new(file: &File) -> io::Result<Backwards<'_>> {
        let length = file.metadata()?.len();
        Ok(Backwards { file, length, block: Vec::new(), at: length })
    }

    /// The position after the last newline that lies before `limit`.
    fn before(&mut self, limit: u64) -> io::Result<Option<u64>> {
        let mut limit = limit.min(self.length);
        loop {
            if limit > self.at {
                let here = &self.block[..(limit - self.at) as usize];
                if let Some(index) = here.iter().rposition(|byte| *byte == b'\n') {
                    return Ok(Some(self.at + index as u64 + 1));
                }
                limit = self.at;
            }
            if limit == 0 {
                return Ok(None);
            }
            let length = limit.min(BLOCK_BYTES as u64);
            self.at = limit - length;
            self.block.resize(length as usize, 0);
            self.file.read_exact_at(&mut self.block, self.at)?;
        }
    }
}

/// The next whole record of `file` from `offset` on, into `buffer`; how many bytes it takes, 0 at the end. What has no
/// newline within a record's bound was not written by a shim, and is passed over.
pub(super) fn next_record(block: &mut Block, file: &File, offset: u64) -> io::Result<usize> {
    block.fill(file, offset)?;
    let bytes = block.bytes();
    Ok(match bytes.iter().position(|byte| *byte == b'\n') {
        Some(index) => index + 1,
        None if bytes.len() >= Record::BYTES_MAX => bytes.len(),
        None => 0,
    })
}

/// What was read ahead of a file.
#[derive(Debug, Default)]
pub(super) struct Block {
    bytes: Vec<u8>,
    from: usize,
    /// Offset in the file of `bytes[from]`.
    offset: u64,
}

impl Block {
    /// Unread bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    /// Takes `length` bytes off the front.
    pub(super) fn consume(&mut self, length: usize) {
        self.from += length;
        self.offset += length as u64;
    }

    /// Another file: nothing that was read ahead counts.
    pub(super) fn clear(&mut self) {
        *self = Block { bytes: std::mem::take(&mut self.bytes), from: 0, offset: 0 };
        self.bytes.clear();
    }

    /// Makes sure that a whole record is at hand from `offset` on, if the file has one.
    fn fill(&mut self, file: &File, offset: u64) -> io::Result<()> {
        if self.offset != offset {
            self.clear();
            self.offset = offset;
        }
        if self.bytes().contains(&b'\n') || self.bytes().len() >= Record::BYTES_MAX {
            return Ok(());
        }
        self.bytes.drain(..self.from);
        self.from = 0;
        let held = self.bytes.len();
        self.bytes.resize(held + BLOCK_BYTES, 0);
        let read = file.read_at(&mut self.bytes[held..], offset + held as u64)?;
        self.bytes.truncate(held + read);
        Ok(())
    }
}
