//! Removing images: by name, all unused ones, or the least recently used until the disk has room.

use super::{Digest, Entry, ImageError, ImageStore, InUse, position};
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

impl InUse {
    fn has(&self, entry: &Entry) -> bool {
        entry.asked >= self.since.0 || self.ids.contains(&entry.config.to_string())
    }
}

impl ImageStore {
    /// Removes a reference, and the image with its last one.
    ///
    /// # Errors
    /// [`ImageError::InUse`], [`ImageError::NotFound`].
    pub fn remove(&self, reference: &str, in_use: &InUse) -> Result<Freed, ImageError> {
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
        let freed = self.take_out(&[entry.config], in_use)?;
        if freed.images.is_empty() {
            return Err(ImageError::InUse { reference: reference.into() });
        }
        Ok(freed)
    }

    /// Removes every image that is neither in use nor pinned.
    pub fn prune(&self, in_use: &InUse) -> Result<Freed, ImageError> {
        let unused: Vec<Digest> = self.unused(in_use).into_iter().map(|e| e.config).collect();
        self.take_out(&unused, in_use)
    }

    /// Above the high watermark: removes unused images, the least recently used first, down to the low one.
    pub fn gc(&self, in_use: &InUse) -> Result<Freed, ImageError> {
        let mut freed = Freed::default();
        if self.fullness()? <= self.config.gc_high_percent {
            return Ok(freed);
        }
        for entry in self.unused(in_use) {
            if self.fullness()? <= self.config.gc_low_percent {
                break;
            }
            let one = self.take_out(&[entry.config], in_use)?;
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
    fn unused(&self, in_use: &InUse) -> Vec<Entry> {
        let index = self.index();
        let free = |e: &&Entry| !e.pinned && !in_use.has(e);
        let mut unused: Vec<Entry> = index.images.iter().filter(free).cloned().collect();
        unused.sort_by_key(|e| e.used_seconds);
        unused
    }

    /// The index first, then what nothing in it names any more: a crash between leaves only garbage behind.
    /// What has come into use by now stays: a pod may have been admitted since its images were chosen.
    fn take_out(&self, ids: &[Digest], in_use: &InUse) -> Result<Freed, ImageError> {
        let mut index = self.index();
        let (gone, kept): (Vec<Entry>, Vec<Entry>) = std::mem::take(&mut index.images)
            .into_iter()
            .partition(|e| ids.contains(&e.config) && !in_use.has(e));
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
                crate::tree::remove(&path).map_err(|e| ImageError::io(&path, e))?;
            }
        }
        let blobs: BTreeSet<Digest> =
            gone.iter().flat_map(|e| [Some(e.config), e.manifest]).flatten().collect();
        for blob in blobs.difference(&blobs_kept) {
            let path = self.blob(blob);
            crate::tree::remove(&path).map_err(|e| ImageError::io(&path, e))?;
        }
        freed.images = gone
            .iter()
            .map(|e| e.references.first().cloned().unwrap_or_else(|| e.config.to_string()))
            .collect();
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{ImageConfig, Index};

    /// Guards against a pod that was admitted, and whose image went, while a collection was under way.
    #[test]
    fn an_image_that_comes_into_use_during_a_collection_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = ImageConfig { dir: dir.path().into(), gc_high_percent: 100, ..ImageConfig::default() };
        let store = ImageStore::open(config).expect("opens");
        let id: Digest = format!("sha256:{}", "1".repeat(64)).parse().expect("a digest");
        let entry = Entry {
            config: id,
            manifest: None,
            layers: Vec::new(),
            references: vec!["example.test/a:1".into()],
            repo_digests: Vec::new(),
            size_bytes: 1,
            used_seconds: 0,
            pinned: false,
            asked: 0,
        };
        *store.index() = Index { images: vec![entry], ..Index::default() };
        let since = store.mark();
        let nobody = InUse { ids: BTreeSet::new(), since };
        // As an admission does, which the answer above came too early for; its configuration is not here to be read.
        drop(store.resolve("example.test/a:1"));
        assert!(store.prune(&nobody).expect("pruned").images.is_empty());
        assert!(matches!(store.remove("example.test/a:1", &nobody), Err(ImageError::InUse { .. })));
        let later = InUse { ids: BTreeSet::new(), since: store.mark() };
        assert_eq!(store.prune(&later).expect("pruned").images, ["example.test/a:1"]);
    }
}
