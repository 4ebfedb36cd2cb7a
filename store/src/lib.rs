//! Typed, versioned, checksummed records in sled that survive SIGKILL and power loss.
//!
//! ```text
//! Batch ─► sled batch (one tree, "KIND\0KEY") ─► flush ─► fsync(db), fsync(directory) ─► acknowledged
//! value = format (u8) · schema version (u16) · CRC-32 over kind, key, version, payload (u32) · JSON payload
//! ```
//! Invariants: what [`Store::commit`] returned `Ok` for is there after any crash; a batch is there whole or not
//! at all; a damaged record is reported and never half-believed; a directory that does not open is set aside
//! whole and rebuilt from the last-good export. sled 0.34 flushes with `sync_file_range`, which does not reach the
//! disk's metadata, so each commit adds its own fsync: without it 13 of 20 simulated power cuts lost
//! acknowledged data. sled panics on some damage, so a child process opens a store before the agent does.
//!
//! Left out on purpose: iteration by range, transactions over reads, anything that sled can do and we do not need.

mod export;
mod open;
mod raw;
mod record;
mod sys;

pub use open::{Opened, check};
pub use raw::RawKind;
pub use record::{Record, Scan};
pub use sys::keep_heap_small;

use record::{Decoded, decode, encode, prefix, row_key};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a record's key.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a record's JSON: the API server's own bound for an object.
pub const VALUE_BYTES_MAX: usize = 1536 * 1024;
/// sled's page cache. Everything hot is kept by the agent itself.
const CACHE_BYTES: u64 = 1 << 20;

/// A store that does not do what it is asked. One line each, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{path} is in use by another coracle agent; stop that one, or use another --root", path = .0.display())]
    InUse(PathBuf),
    /// The disk refused: full, read-only, no permission, broken.
    #[error("{path}: {source}{hint}", path = path.display(), hint = hint(source))]
    Io {
        /// What was touched.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The content is damaged: the store must be opened anew, which sets it aside.
    #[error("{path} is damaged: {message}; restart the agent, which sets it aside and rebuilds it", path = path.display())]
    Damaged {
        /// The store's directory.
        path: PathBuf,
        /// sled's words.
        message: String,
    },
    /// A record beyond the bounds.
    #[error(
        "record {kind} {key:?} is too large: {bytes} bytes, at most {VALUE_BYTES_MAX} in value and {KEY_BYTES_MAX} in key"
    )]
    TooLarge {
        /// [`Record::KIND`].
        kind: &'static str,
        /// The start of its key.
        key: String,
        /// Of its value.
        bytes: usize,
    },
    /// A newer version of this program wrote it. Nothing was changed.
    #[error(
        "{path} was written by a newer version of coracle (record {kind} {key:?} has version {version}, this program knows {known}): install that version again, or move the directory away to start with no pods; nothing was changed", path = path.display()
    )]
    Newer {
        /// The store's directory.
        path: PathBuf,
        /// [`Record::KIND`].
        kind: &'static str,
        /// Its key.
        key: String,
        /// Of the record.
        version: u16,
        /// [`Record::VERSION`].
        known: u16,
    },
    /// One record cannot be read; the others can.
    #[error("record {kind} {key:?} is damaged")]
    Record {
        /// [`Record::KIND`].
        kind: &'static str,
        /// Its key.
        key: String,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => ": free some space; pods run on meanwhile",
        Some(libc::EROFS) => ": remount the disk writable",
        Some(libc::EACCES | libc::EPERM) => ": the agent must run as root",
        _ => "",
    }
}

/// Changes that become durable together, or not at all.
#[derive(Debug, Default)]
pub struct Batch {
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    exported: bool,
    too_large: Option<(&'static str, String, usize)>,
}

impl Batch {
    /// No changes.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.too_large.is_none()
    }

    /// Adds or replaces a record. Its size is checked by [`Store::commit`].
    pub fn put<R: Record>(&mut self, key: &str, record: &R) {
        let value = encode(key, record);
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            self.too_large = Some((R::KIND, key.chars().take(64).collect(), value.len()));
        }
        self.rows.push((row_key::<R>(key), Some(value)));
        self.exported |= R::EXPORTED;
    }

    /// Removes a record; one that is not there is no error.
    pub fn delete<R: Record>(&mut self, key: &str) {
        self.rows.push((row_key::<R>(key), None));
        self.exported |= R::EXPORTED;
    }
}

/// An open store. One process at a time; its methods may be called from any thread and block on the disk.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: sled::Db,
    /// sled's log, for our fsync.
    file: File,
    /// Large values that were synced already.
    blobs: BTreeSet<std::ffi::OsString>,
    /// A write failed: sled answers nothing but that error until it is opened again.
    failed: bool,
    /// An exported record changed since the last export.
    export_due: bool,
}

impl Store {
    /// Opens the store at `dir`, or sets a damaged one aside and starts from the export. Blocking: about 20 ms.
    ///
    /// `check_command` is run first, with nothing added, and must end in [`check`] on `dir`. Call before the process has other
    /// threads: the zero-page trim looks at all of its memory.
    ///
    /// # Errors
    /// [`StoreError::InUse`], or the disk's. A damaged store is no error.
    pub fn open(dir: &Path, check_command: Option<std::process::Command>) -> Result<Opened, StoreError> {
        open::open(dir, check_command)
    }

    /// One record; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError::Record`], [`StoreError::Newer`], the disk's.
    pub fn get<R: Record>(&self, key: &str) -> Result<Option<R>, StoreError> {
        let inner = self.lock();
        let row = inner.db.get(row_key::<R>(key)).map_err(|e| self.error(e))?;
        row.map(|bytes| match decode(key, &bytes) {
            Decoded::Whole(record) => Ok(record),
            Decoded::Damaged => Err(StoreError::Record { kind: R::KIND, key: key.into() }),
            Decoded::Newer(version) => Err(self.newer::<R>(key, version)),
        })
        .transpose()
    }

    /// Every record of a kind, in order of key, and the keys of those that cannot be read.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for the first record of a version that [`Record::VERSION`] does not reach; the disk's.
    pub fn all<R: Record>(&self) -> Result<Scan<R>, StoreError> {
        let inner = self.lock();
        let prefix = prefix::<R>();
        let mut scan = Scan { records: Vec::new(), damaged: Vec::new() };
        for row in inner.db.scan_prefix(&prefix) {
            let (row_key, bytes) = row.map_err(|e| self.error(e))?;
            let key = String::from_utf8_lossy(&row_key[prefix.len()..]).into_owned();
            match decode(&key, &bytes) {
                Decoded::Whole(record) => scan.records.push((key, record)),
                Decoded::Damaged => scan.damaged.push(key),
                Decoded::Newer(version) => return Err(self.newer::<R>(&key, version)),
            }
        }
        Ok(scan)
    }

    /// Makes a batch durable. Blocking: 0.3–5 ms on a good disk, up to a second on an SD card.
    ///
    /// # Errors
    /// The disk's. Whether a batch that failed is there after a restart is open, but it is there whole or not at
    /// all; the store stays usable and the next commit tries the disk again.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if let Some((kind, key, bytes)) = batch.too_large {
            return Err(StoreError::TooLarge { kind, key, bytes });
        }
        let mut inner = self.lock();
        if inner.failed {
            self.reopen(&mut inner)?;
        }
        let mut rows = sled::Batch::default();
        for (key, value) in batch.rows {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(key),
            }
        }
        let written = inner.db.apply_batch(rows).and_then(|()| inner.db.flush().map(|_| ()));
        let synced = written.map_err(|e| self.error(e)).and_then(|()| self.sync(&mut inner));
        inner.failed = synced.is_err();
        synced?;
        inner.export_due |= batch.exported;
        if inner.export_due {
            // The records are durable already; an export that fails is due again with the next commit.
            match export::write(&self.dir, &inner.db) {
                Ok(()) => inner.export_due = false,
                Err(error) => tracing::warn!(%error, "the export of the store was not written"),
            }
        }
        Ok(())
    }

    /// What sled's own flush leaves out: the file's metadata, the directory, and large values' own files.
    fn sync(&self, inner: &mut Inner) -> Result<(), StoreError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StoreError::Io { path, source }
        };
        inner.file.sync_all().map_err(failed(&self.dir.join("db")))?;
        let blobs = self.dir.join("blobs");
        if let Ok(entries) = fs::read_dir(&blobs) {
            let names: BTreeSet<_> = entries.filter_map(Result::ok).map(|e| e.file_name()).collect();
            for name in names.difference(&inner.blobs) {
                let path = blobs.join(name);
                match File::open(&path) {
                    // sled collects old values by itself.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    file => file.and_then(|f| f.sync_all()).map_err(failed(&path))?,
                }
            }
            if names != inner.blobs {
                sync_dir(&blobs).map_err(failed(&blobs))?;
                inner.blobs = names;
            }
        }
        sync_dir(&self.dir).map_err(failed(&self.dir))
    }

    fn reopen(&self, inner: &mut Inner) -> Result<(), StoreError> {
        // sled must let go of its lock first, so a temporary store stands in.
        let standin = sled::Config::new().temporary(true).open().map_err(|e| self.error(e))?;
        drop(std::mem::replace(&mut inner.db, standin));
        let (db, file) = open::sled_open(&self.dir)?;
        inner.db = db;
        inner.file = file;
        inner.failed = false;
        Ok(())
    }

    fn newer<R: Record>(&self, key: &str, version: u16) -> StoreError {
        self.newer_row(R::KIND, key, version, R::VERSION)
    }

    fn newer_row(&self, kind: &'static str, key: &str, version: u16, known: u16) -> StoreError {
        StoreError::Newer { path: self.dir.clone(), kind, key: key.into(), version, known }
    }

    fn error(&self, error: sled::Error) -> StoreError {
        open::translate(&self.dir, error)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock ends a release build; in tests the data is still sled's and whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A row of the export.
fn row_value(kind: &str, key: &str, version: u16, value: &Value) -> Value {
    serde_json::json!({"kind": kind, "key": key, "version": version, "value": value})
}
