//! Rows whose payload is the caller's own bytes: the control plane's objects, which are JSON already.
//!
//! Such a row has the same seal as a record (format, version, checksum over kind, key, version, payload) and lives under
//! the same bounds. It is never in the export: whoever keeps a fleet's state keeps more of it than an export suits.

use crate::record::{seal, unseal};
use crate::{Batch, KEY_BYTES_MAX, Store, StoreError, VALUE_BYTES_MAX};

/// A kind of raw rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawKind {
    /// Names the kind for ever; no NUL in it, and no `+` at its start.
    pub name: &'static str,
    /// Of the payload's layout.
    pub version: u16,
}

impl RawKind {
    fn prefix(self) -> Vec<u8> {
        [self.name.as_bytes(), &[0]].concat()
    }

    fn row_key(self, key: &str) -> Vec<u8> {
        [self.name.as_bytes(), &[0], key.as_bytes()].concat()
    }
}

impl Batch {
    /// Adds or replaces a raw row. Its size is checked by [`Store::commit`].
    pub fn put_raw(&mut self, kind: RawKind, key: &str, payload: &[u8]) {
        if key.len() > KEY_BYTES_MAX || payload.len() > VALUE_BYTES_MAX {
            self.too_large = Some((kind.name, key.chars().take(64).collect(), payload.len()));
        }
        self.rows.push((kind.row_key(key), Some(seal(kind.name, key, kind.version, payload))));
    }

    /// Removes a raw row; one that is not there is no error.
    pub fn delete_raw(&mut self, kind: RawKind, key: &str) {
        self.rows.push((kind.row_key(key), None));
    }
}

impl Store {
    /// Shows every whole raw row of a kind in order of key; answers with the keys of those that are damaged.
    ///
    /// # Errors
    /// [`StoreError::Newer`] for the first row of a version beyond `kind.version`; the disk's.
    pub fn each_raw(
        &self,
        kind: RawKind,
        mut each: impl FnMut(&str, &[u8]),
    ) -> Result<Vec<String>, StoreError> {
        let inner = self.lock();
        let prefix = kind.prefix();
        let mut damaged = Vec::new();
        for row in inner.db.scan_prefix(&prefix) {
            let (row_key, bytes) = row.map_err(|e| self.error(e))?;
            let key = String::from_utf8_lossy(&row_key[prefix.len()..]);
            match unseal(kind.name, &key, &bytes) {
                Some((version, _)) if version > kind.version => {
                    return Err(self.newer_row(kind.name, &key, version, kind.version));
                }
                Some((_, payload)) => each(&key, payload),
                None => damaged.push(key.into_owned()),
            }
        }
        Ok(damaged)
    }
}
