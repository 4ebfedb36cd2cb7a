//! Removing images: by name, all unused ones, or the least recently used until the disk has room.

use super::{Digest, Entry, ImageError, ImageStore, position, unpack};
use std::collections::BTreeSet;
use std::fs;

/// What a collection gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// References or ids of the removed images.
    pub images: Vec<String>,
    /// By the sizes of their layers; shared ones count once.
    pub bytes: u64,
}

impl ImageStore {
    /// Removes a reference, and the image with its last one. `in_use` holds ids.
    ///
    /// # Errors
    /// [`ImageError::InUse`], [`ImageError::NotFound`].
    pub fn remove(&self, reference: &str, in_use: &BTreeSet<String>) -> Result<Freed, ImageError> {
        let index = self.index();
        let Some(at) = position(&index, reference)? else {
            return Err(ImageError::NotFound {
                reference: reference.into(),
                registry: "this board".into(),
                also: Default::default(),
            });
        };
        let entry = index.images[at].clone();
        drop(index);
        if in_use.contains(&entry.config.to_string()) {
            return Err(ImageError::InUse { reference: reference.into() });
        }
        self.take_out(&[entry.config])
    }

    /// Removes every image that is neither in use nor pinned.
    pub fn prune(&self, in_use: &BTreeSet<String>) -> Result<Freed, ImageError> {
        let unused: Vec<Digest> = self.unused(in_use).into_iter().map(|e| e.config).collect();
        self.take_out(&unused)
    }

    /// Above the high watermark: removes unused images, the least recently used first, down to the low one.
    pub fn gc(&self, in_use: &BTreeSet<String>) -> Result<Freed, ImageError> {
        let mut freed = Freed::default();
        if self.fullness()? <= self.config.gc_high_percent {
            return Ok(freed);
        }
        for entry in self.unused(in_use) {
            if self.fullness()? <= self.config.gc_low_percent {
                break;
            }
            let one = self.take_out(&[entry.config])?;
            freed.images.extend(one.images);
            freed.bytes += one.bytes;
        }
        Ok(freed)
    }

    /// Percent of the disk in use, as `df` counts it.
    fn fullness(&self) -> Result<u8, ImageError> {
        let dir = &self.config.dir;
        let stat = rustix::fs::statvfs(dir).map_err(|e| ImageError::io(dir, e.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let total = used + stat.f_bavail;
        Ok(u8::try_from((used * 100).div_ceil(total.max(1))).unwrap_or(100))
    }

    /// Oldest use first.
    fn unused(&self, in_use: &BTreeSet<String>) -> Vec<Entry> {
        let index = self.index();
        let free = |e: &&Entry| !e.pinned && !in_use.contains(&e.config.to_string());
        let mut unused: Vec<Entry> = index.images.iter().filter(free).cloned().collect();
        unused.sort_by_key(|e| e.used_seconds);
        unused
    }

    /// The index first, then what nothing in it names any more: a crash between leaves only garbage behind.
    fn take_out(&self, ids: &[Digest]) -> Result<Freed, ImageError> {
        let mut index = self.index();
        let (gone, kept): (Vec<Entry>, Vec<Entry>) =
            std::mem::take(&mut index.images).into_iter().partition(|e| ids.contains(&e.config));
        index.images = kept;
        self.save(&index)?;
        let mut freed = Freed::default();
        let layers_kept: BTreeSet<Digest> =
            index.images.iter().flat_map(|e| e.layers.iter().copied()).collect();
        let blobs_kept: BTreeSet<Digest> =
            index.images.iter().flat_map(|e| [Some(e.config), e.manifest]).flatten().collect();
        let layers: BTreeSet<Digest> = gone.iter().flat_map(|e| e.layers.iter().copied()).collect();
        for layer in layers.difference(&layers_kept) {
            let dir = self.layer_dir(layer);
            let size = dir.with_extension("size");
            freed.bytes +=
                fs::read_to_string(&size).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
            for path in [dir, size] {
                unpack::remove_tree(&path).map_err(|e| ImageError::io(&path, e))?;
            }
        }
        let blobs: BTreeSet<Digest> =
            gone.iter().flat_map(|e| [Some(e.config), e.manifest]).flatten().collect();
        for blob in blobs.difference(&blobs_kept) {
            let path = self.blob(blob);
            unpack::remove_tree(&path).map_err(|e| ImageError::io(&path, e))?;
        }
        freed.images = gone
            .iter()
            .map(|e| e.references.first().cloned().unwrap_or_else(|| e.config.to_string()))
            .collect();
        Ok(freed)
    }
}
