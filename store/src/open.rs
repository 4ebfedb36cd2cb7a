//! Opening: a child looks first, damage is set aside, the export fills what is new.

use crate::record::{exported_row_key, seal};
use crate::{CACHE_BYTES, Inner, Store, StoreError, export, sync_dir, sys};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Damaged stores that are kept for whoever wants to look; the oldest goes first.
const QUARANTINES_MAX: usize = 2;
/// Exit code of a check that met the disk's refusal rather than damage.
const ENVIRONMENT: i32 = 3;

/// How often, and at what distance, a locked store is tried: a second in all.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A store, and what had to be done to have it.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// Where a damaged one was set aside.
    pub quarantined: Option<PathBuf>,
    /// Records that the export gave to a new one.
    pub restored: usize,
}

pub(crate) fn open(dir: &Path, check_command: Option<Command>) -> Result<Opened, StoreError> {
    let failed = |source| StoreError::Io { path: dir.into(), source };
    let parent = dir.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed)?;
    let mut quarantined = None;
    if dir.join("db").exists() {
        let sound = match check_command {
            Some(command) => sound_by(command).map_err(failed)?,
            None => Ok(()),
        };
        if let Err(how) = sound {
            tracing::error!(path = %dir.display(), how, "the store is damaged and is set aside");
            quarantined = Some(set_aside(dir).map_err(failed)?);
        }
    }
    let fresh = !dir.join("db").exists();
    hide(dir).map_err(failed)?;
    let (db, file) = match sled_open(dir) {
        Err(StoreError::Damaged { message, .. }) => {
            tracing::error!(path = %dir.display(), message, "the store is damaged and is set aside");
            quarantined = Some(set_aside(dir).map_err(failed)?);
            hide(dir).map_err(failed)?;
            sled_open(dir)?
        }
        opened => opened?,
    };
    sys::give_back_zero_pages();
    let inner = Inner { db, file, blobs: BTreeSet::new(), failed: false, export_due: false };
    let store = Store { dir: dir.into(), inner: Mutex::new(inner) };
    let restored = if fresh || quarantined.is_some() { restore(&store)? } else { 0 };
    sync_dir(parent).map_err(failed)?;
    Ok(Opened { store, quarantined, restored })
}

/// Makes the directory if need be, for its owner alone: records may be secrets. Stores of older versions, and their
/// exports, were open to all.
fn hide(dir: &Path) -> io::Result<()> {
    const ALL_OTHERS: u32 = 0o077;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    for path in [dir.to_path_buf(), export::path(dir)] {
        let mode = match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?.mode(),
        };
        if mode & ALL_OTHERS != 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & !ALL_OTHERS))?;
        }
    }
    Ok(())
}

/// What the check command runs: opens the store and reads every row. The exit code says how it went; a panic or
/// an abort, which is how sled meets some damage, says it too.
pub fn check(dir: &Path) -> i32 {
    let walked = sled_open(dir)
        .and_then(|(db, _file)| db.iter().try_for_each(|row| row.map(|_| ())).map_err(|e| translate(dir, e)));
    match walked {
        Ok(()) => 0,
        Err(StoreError::Damaged { .. }) => 1,
        Err(_) => ENVIRONMENT,
    }
}

/// `Ok(Err(how))` when the child says or shows that the store is damaged.
fn sound_by(mut command: Command) -> io::Result<Result<(), String>> {
    let status = command.status()?;
    Ok(match status.code() {
        // A full or read-only disk is told by our own attempt, with its own words.
        Some(0 | ENVIRONMENT) => Ok(()),
        _ => Err(status.to_string()),
    })
}

/// Opens, and waits a moment for whoever has just closed it: sled lets its lock go in a thread of its own, some time
/// after the store is dropped, and flock(2) tells nobody.
pub(crate) fn sled_open(dir: &Path) -> Result<(sled::Db, File), StoreError> {
    for _ in 0..LOCK_TRIES {
        match sled_open_now(dir) {
            Err(StoreError::InUse(_)) => std::thread::sleep(LOCK_PAUSE),
            opened => return opened,
        }
    }
    sled_open_now(dir)
}

fn sled_open_now(dir: &Path) -> Result<(sled::Db, File), StoreError> {
    let config = sled::Config::new().path(dir).flush_every_ms(None).cache_capacity(CACHE_BYTES);
    let db = config.open().map_err(|e| translate(dir, e))?;
    let path = dir.join("db");
    let file = File::open(&path).map_err(|source| StoreError::Io { path, source })?;
    Ok((db, file))
}

pub(crate) fn translate(dir: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
            StoreError::InUse(dir.into())
        }
        sled::Error::Io(source)
            if matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
        {
            StoreError::Damaged { path: dir.into(), message: source.to_string() }
        }
        sled::Error::Io(source) => StoreError::Io { path: dir.into(), source },
        other => StoreError::Damaged { path: dir.into(), message: other.to_string() },
    }
}

/// Renames the store to `DIR.damaged-N`, and drops the oldest of those beyond the bound.
fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let name = |n: u64| dir.with_extension(format!("damaged-{n}"));
    let parent = dir.parent().unwrap_or(Path::new("."));
    let stem = format!("{}.damaged-", dir.file_stem().unwrap_or_default().to_string_lossy());
    let mut known: Vec<u64> = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?.file_name();
        known.extend(entry.to_str().and_then(|n| n.strip_prefix(&stem)).and_then(|n| n.parse::<u64>().ok()));
    }
    known.sort_unstable();
    let target = name(known.last().map_or(1, |n| n.saturating_add(1)));
    fs::rename(dir, &target)?;
    sync_dir(parent)?;
    let surplus = (known.len() + 1).saturating_sub(QUARANTINES_MAX);
    known.iter().take(surplus).try_for_each(|n| fs::remove_dir_all(name(*n)))?;
    Ok(target)
}

/// Fills a new store from the export.
fn restore(store: &Store) -> Result<usize, StoreError> {
    let Some(rows) = export::read(&store.dir) else { return Ok(0) };
    let mut batch = crate::Batch::new();
    for row in &rows {
        let payload = serde_json::to_vec(&row.value).expect("a JSON value serializes");
        let value = seal(&row.kind, &row.key, row.version, &payload);
        batch.rows.push((exported_row_key(&row.kind, &row.key), Some(value)));
    }
    if !batch.is_empty() {
        store.commit(batch)?;
    }
    Ok(rows.len())
}
