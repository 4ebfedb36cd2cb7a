//! Records and their bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The layout of a row; changed only if the header itself changes.
const FORMAT: u8 = 1;
/// Format, version, checksum.
const HEADER_BYTES: usize = 1 + 2 + 4;

/// A kind of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Names the kind for ever; no NUL in it.
    const KIND: &'static str;
    /// Schema version of what [`Serialize`] writes.
    const VERSION: u16;
    /// Kept in the export too, from which a damaged store is rebuilt: for desired state.
    const EXPORTED: bool;

    /// Reads the JSON of a record of an older version; `None` when that cannot be.
    fn upgrade(version: u16, payload: &[u8]) -> Option<Self> {
        (version == Self::VERSION).then(|| serde_json::from_slice(payload).ok())?
    }
}

/// What [`crate::Store::all`] found.
#[derive(Debug)]
pub struct Scan<R> {
    /// By key.
    pub records: Vec<(String, R)>,
    /// Keys of records that cannot be read.
    pub damaged: Vec<String>,
}

/// Marks the row keys of exported kinds, so that the export needs no list of them.
pub(crate) const EXPORTED: char = '+';

pub(crate) fn prefix<R: Record>() -> Vec<u8> {
    let mark = if R::EXPORTED { EXPORTED.to_string() } else { String::new() };
    format!("{mark}{}\0", R::KIND).into_bytes()
}

pub(crate) fn row_key<R: Record>(key: &str) -> Vec<u8> {
    [prefix::<R>().as_slice(), key.as_bytes()].concat()
}

/// The row key of an exported kind by name.
pub(crate) fn exported_row_key(kind: &str, key: &str) -> Vec<u8> {
    format!("{EXPORTED}{kind}\0{key}").into_bytes()
}

/// Kind and key of a row; `None` for a row that is none of ours.
pub(crate) fn split_row_key(row: &[u8]) -> Option<(&str, &str)> {
    let at = row.iter().position(|b| *b == 0)?;
    Some((std::str::from_utf8(&row[..at]).ok()?, std::str::from_utf8(&row[at + 1..]).ok()?))
}

pub(crate) fn encode<R: Record>(key: &str, record: &R) -> Vec<u8> {
    let payload = serde_json::to_vec(record).expect("records are plain data with string keys");
    seal(R::KIND, key, R::VERSION, &payload)
}

/// A row's bytes around a payload.
pub(crate) fn seal(kind: &str, key: &str, version: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&checksum(kind, key, version, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Version and payload of a row whose checksum is right.
pub(crate) fn unseal<'a>(kind: &str, key: &str, bytes: &'a [u8]) -> Option<(u16, &'a [u8])> {
    let (header, payload) = bytes.split_at_checked(HEADER_BYTES)?;
    let version = u16::from_le_bytes([header[1], header[2]]);
    let sum = u32::from_le_bytes([header[3], header[4], header[5], header[6]]);
    (header[0] == FORMAT && sum == checksum(kind, key, version, payload)).then_some((version, payload))
}

/// What a row holds.
#[derive(Debug)]
pub(crate) enum Decoded<R> {
    Whole(R),
    Damaged,
    /// Whole, and of a version that this program does not know.
    Newer(u16),
}

pub(crate) fn decode<R: Record>(key: &str, bytes: &[u8]) -> Decoded<R> {
    let Some((version, payload)) = unseal(R::KIND, key, bytes) else { return Decoded::Damaged };
    if version > R::VERSION {
        return Decoded::Newer(version);
    }
    let record = if version == R::VERSION {
        serde_json::from_slice(payload).ok()
    } else {
        R::upgrade(version, payload)
    };
    record.map_or(Decoded::Damaged, Decoded::Whole)
}

fn checksum(kind: &str, key: &str, version: u16, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [kind.as_bytes(), &[0], key.as_bytes(), &[0], &version.to_le_bytes(), payload] {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_believed_only_whole_and_in_its_own_place() {
        let bytes = seal("pod", "a", 3, b"{}");
        assert_eq!(unseal("pod", "a", &bytes), Some((3, b"{}".as_slice())));
        assert_eq!(unseal("pod", "b", &bytes), None, "another key's row");
        assert_eq!(unseal("history", "a", &bytes), None, "another kind's row");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(unseal("pod", "a", &flipped), None, "bit {bit} of byte {at}");
            }
            assert_eq!(unseal("pod", "a", &bytes[..at]), None, "cut at {at}");
        }
    }
}
