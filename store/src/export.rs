//! The last-good export: desired state as lines of JSON beside the store, for the day the store is damaged.
//!
//! `DIR.export` holds one row a line and ends in a line with their number and checksum. It is replaced whole
//! (temporary file, fsync, rename, fsync of the directory), and only when an exported record changed. Nobody but its
//! owner may read it: records may be secrets.

use crate::record::{EXPORTED, split_row_key, unseal};
use crate::{row_value, sync_dir};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of an export that are read back.
const EXPORT_BYTES_MAX: u64 = 256 << 20;

/// The last line.
#[derive(Serialize, Deserialize)]
struct Trailer {
    rows: usize,
    crc32: u32,
}

/// A row read back.
#[derive(Deserialize)]
pub(crate) struct Row {
    pub kind: String,
    pub key: String,
    pub version: u16,
    pub value: Value,
}

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.with_extension("export")
}

/// Writes every row of the exported kinds. Blocking.
pub(crate) fn write(dir: &Path, db: &sled::Db) -> io::Result<()> {
    let mut text = Vec::new();
    let mut rows = 0;
    for row in db.iter() {
        let (key, bytes) = row.map_err(io::Error::other)?;
        let Some((kind, key)) = split_row_key(&key) else { continue };
        let Some(kind) = kind.strip_prefix(EXPORTED) else { continue };
        // A damaged row is left out: the export holds only what is good.
        let Some((version, payload)) = unseal(kind, key, &bytes) else { continue };
        let value: Value = serde_json::from_slice(payload)?;
        writeln!(text, "{}", row_value(kind, key, version, &value))?;
        rows += 1;
    }
    let trailer = Trailer { rows, crc32: crc32fast::hash(&text) };
    writeln!(text, "{}", serde_json::to_string(&trailer)?)?;
    let (target, temporary) = (path(dir), dir.with_extension("export.tmp"));
    let mut file = private(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, &target)?;
    sync_dir(target.parent().unwrap_or(Path::new(".")))
}

/// An empty file for its owner alone, whatever lies there already.
fn private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Every row of a whole export; `None` when there is none, or it is damaged.
pub(crate) fn read(dir: &Path) -> Option<Vec<Row>> {
    use std::io::Read;
    let mut text = String::new();
    File::open(path(dir)).ok()?.take(EXPORT_BYTES_MAX).read_to_string(&mut text).ok()?;
    let body_end = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
    let (body, trailer) = text.split_at(body_end);
    let trailer: Trailer = serde_json::from_str(trailer.trim()).ok()?;
    let rows: Option<Vec<Row>> = body.lines().map(|line| serde_json::from_str(line).ok()).collect();
    rows.filter(|rows| rows.len() == trailer.rows && crc32fast::hash(body.as_bytes()) == trailer.crc32)
}
