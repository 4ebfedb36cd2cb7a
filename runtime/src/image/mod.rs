//! Images: content-addressed, verified before use, unpacked once per layer.
//!
//! ```text
//! DIR/index.json             what is here: references, configuration, layers
//! DIR/blobs/HEX              manifests and configurations, a few KiB each
//! DIR/layers/HEX24/          one layer, unpacked in overlayfs form, named by its diff id
//! DIR/tmp/…                  unpacking, and the bytes of interrupted pulls: `blob-HEX`
//! ```
//! Invariants: a layer's directory appears whole (unpack aside, syncfs, rename) or not at all; compressed blobs
//! are verified, unpacked and removed, since flash is short; the index is replaced whole and names only what is
//! there; nothing that a pod uses, nor what is pinned, is ever removed.
//!
//! Left out on purpose: building, pushing, signatures, and sharing layers between agents.

mod archive;
mod credential;
mod digest;
mod error;
mod gc;
pub mod overlay;
mod platform;
mod pull;
mod reference;
mod registry;
mod unpack;

pub use credential::{Credential, DockerConfigError, docker_cfg, docker_config};
pub use digest::Digest;
pub use error::{Also, ImageError};
pub use gc::Freed;
pub use pull::Progress;
pub use reference::Reference;
pub use unpack::UnpackError;

use oci_spec::image::ImageConfiguration;
use platform::Target;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};
use unpack::Compression;

/// Bytes of a manifest, an index or a configuration.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 4 << 20;
/// Layers of one image: overlayfs takes 500, builders make at most 127.
const LAYERS_MAX: usize = 256;
/// The label or annotation that keeps an image from being collected.
const PINNED: &str = "coracle.dev/pinned";

/// How an image store is set up.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// Where everything lies.
    pub dir: PathBuf,
    /// By registry host.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Docker-style `config.json` files.
    pub credential_files: Vec<PathBuf>,
    /// References that are never collected.
    pub pinned: Vec<String>,
    /// Collection starts when the disk is fuller than this.
    pub gc_high_percent: u8,
    /// … and stops at this.
    pub gc_low_percent: u8,
    /// Layers fetched at once.
    pub parallel_layers: usize,
}

/// Settings of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// `HOST[:PORT][/PATH]`, asked in order before the registry itself.
    pub mirrors: Vec<String>,
    /// HTTP instead of HTTPS, for the registry and its mirrors.
    pub plain_http: bool,
}

/// An image that can be run.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of its configuration: what Kubernetes calls the image id.
    pub id: String,
    /// Every reference to it, in normal form.
    pub references: Vec<String>,
    /// `name@sha256:…` of its manifest, if it came from a registry.
    pub repo_digest: Option<String>,
    /// The unpacked layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// OCI image configuration.
    pub config: ImageConfiguration,
    /// Bytes of its unpacked layers.
    pub size_bytes: u64,
    /// Never collected.
    pub pinned: bool,
}

/// One image in the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    config: Digest,
    manifest: Option<Digest>,
    layers: Vec<Digest>,
    references: Vec<String>,
    repo_digests: Vec<String>,
    size_bytes: u64,
    used_seconds: u64,
    pinned: bool,
    /// When it was last asked for, in [`Index::clock`]'s count.
    #[serde(skip)]
    asked: u64,
}

/// A moment in the life of an [`ImageStore`]; another run of the agent has others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

/// What a removal leaves alone.
#[derive(Clone, Debug)]
pub struct InUse {
    /// Images of pods, by id.
    pub ids: BTreeSet<String>,
    /// Taken before the pods were asked: an image that was looked for since is some newer pod's.
    pub since: Mark,
}

/// `index.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    version: u32,
    images: Vec<Entry>,
    /// Archives of the preload directory that were imported: name to size, time and inode.
    #[serde(default)]
    preloaded: BTreeMap<String, String>,
    /// Counts [`ImageStore::mark`]s.
    #[serde(skip)]
    clock: u64,
}

const INDEX_VERSION: u32 = 1;

/// The images of one board. Methods block on the disk unless they are `async`; any thread may call them.
#[derive(Debug)]
pub struct ImageStore {
    config: ImageConfig,
    target: Target,
    index: Mutex<Index>,
    /// Blobs that pulls bring at the moment.
    turns: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

impl ImageStore {
    /// Opens the store and removes what a crash left half-made; bytes of interrupted pulls stay. Idempotent.
    pub fn open(config: ImageConfig) -> Result<ImageStore, ImageError> {
        for name in ["blobs", "layers", "tmp"] {
            let dir = config.dir.join(name);
            fs::create_dir_all(&dir).map_err(|e| ImageError::io(&dir, e))?;
        }
        let path = config.dir.join("index.json");
        let index = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                // Layers and blobs are found again by their digests when the images are pulled or imported anew.
                tracing::error!(path = %path.display(), %error, "the image index is damaged: images are imported or pulled again");
                Index::default()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(e) => return Err(ImageError::io(&path, e)),
        };
        let store =
            ImageStore { config, target: Target::host(), index: Mutex::new(index), turns: Mutex::default() };
        store.remove_leavings()?;
        Ok(store)
    }

    fn remove_leavings(&self) -> Result<(), ImageError> {
        let tmp = self.dir("tmp");
        for entry in fs::read_dir(&tmp).map_err(|e| ImageError::io(&tmp, e))?.filter_map(Result::ok) {
            if !entry.file_name().to_string_lossy().starts_with(pull::PARTIAL) {
                crate::tree::remove(&entry.path()).map_err(|e| ImageError::io(&entry.path(), e))?;
            }
        }
        // An index entry whose layers are not all there was written by a store that lost them: forget it.
        let mut index = self.index();
        let before = index.images.len();
        let whole =
            |e: &Entry| e.layers.iter().all(|l| self.layer_dir(l).is_dir()) && self.blob(&e.config).is_file();
        index.images.retain(whole);
        if index.images.len() != before { self.save(&index) } else { Ok(()) }
    }

    /// This moment, for [`InUse::since`].
    pub fn mark(&self) -> Mark {
        let mut index = self.index();
        index.clock += 1;
        Mark(index.clock)
    }

    /// The image of a reference, if it is here. Quick.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`], or an unreadable configuration.
    pub fn resolve(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let mut index = self.index();
        let position = position(&index, reference)?;
        let Some(position) = position else { return Ok(None) };
        let clock = index.clock;
        let entry = &mut index.images[position];
        entry.used_seconds = now_seconds();
        entry.asked = clock;
        self.image(entry).map(Some)
    }

    /// Every image, by first reference.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let index = self.index();
        let mut images = index.images.iter().map(|e| self.image(e)).collect::<Result<Vec<_>, _>>()?;
        images.sort_by(|a, b| a.references.cmp(&b.references));
        Ok(images)
    }

    /// Takes the images of an archive in: an OCI layout directory, or a tar of one, or what `docker save` writes.
    /// Returns their references. Idempotent.
    pub fn import(&self, path: &Path) -> Result<Vec<String>, ImageError> {
        archive::import(self, path)
    }

    /// Imports every archive of a directory that was not imported before. One that fails does not stop the others.
    pub fn preload(&self, dir: &Path) -> Vec<(PathBuf, Result<Vec<String>, ImageError>)> {
        use std::os::unix::fs::MetadataExt;
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let mut results = Vec::new();
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let identity = format!("{} {} {}", metadata.len(), metadata.mtime(), metadata.ino());
            if name.starts_with('.') || self.index().preloaded.get(&name) == Some(&identity) {
                continue;
            }
            let result = self.import(&path).and_then(|references| {
                let mut index = self.index();
                index.preloaded.insert(name, identity);
                self.save(&index)?;
                Ok(references)
            });
            results.push((path, result));
        }
        results
    }

    /// Puts an image in the index whose layers and configuration are here.
    fn register(
        &self,
        reference: Option<&Reference>,
        repo_digest: Option<String>,
        manifest: Option<&[u8]>,
        config_bytes: &[u8],
        layers: &[Digest],
    ) -> Result<Image, ImageError> {
        let config_digest = self.write_blob(config_bytes)?;
        let manifest = manifest.map(|bytes| self.write_blob(bytes)).transpose()?;
        let config = parse_config(&config_digest.to_string(), config_bytes)?;
        let labels = config.config().as_ref().and_then(|c| c.labels().clone()).unwrap_or_default();
        let mut size_bytes = 0;
        for layer in layers {
            size_bytes += fs::read_to_string(self.layer_dir(layer).with_extension("size"))
                .ok()
                .and_then(|text| text.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
        let mut index = self.index();
        let name = reference.map(ToString::to_string);
        if let Some(name) = &name {
            // A tag that moved leaves the image that it named before.
            index.images.iter_mut().for_each(|e| e.references.retain(|r| r != name));
        }
        let known = index.images.iter().position(|e| e.config == config_digest);
        let position = known.unwrap_or_else(|| {
            index.images.push(Entry {
                config: config_digest,
                manifest: None,
                layers: layers.to_vec(),
                references: Vec::new(),
                repo_digests: Vec::new(),
                size_bytes,
                used_seconds: 0,
                asked: 0,
                pinned: false,
            });
            index.images.len() - 1
        });
        let entry = &mut index.images[position];
        entry.manifest = manifest.or(entry.manifest);
        entry.references.extend(name.filter(|n| !entry.references.contains(n)));
        entry.repo_digests.extend(repo_digest.filter(|d| !entry.repo_digests.contains(d)));
        entry.used_seconds = now_seconds();
        let configured = |r: &String| {
            self.config.pinned.iter().any(|p| Reference::parse(p).is_ok_and(|p| p.to_string() == *r))
        };
        entry.pinned |=
            labels.get(PINNED).is_some_and(|v| v == "true") || entry.references.iter().any(configured);
        let entry = entry.clone();
        index.version = INDEX_VERSION;
        self.save(&index)?;
        drop(index);
        self.image(&entry)
    }

    /// Unpacks one layer, unless it is here already; `compressed` is checked against `blob`, its content against
    /// `diff_id`. Blocking, long.
    fn add_layer(
        &self,
        reference: &str,
        compressed: impl Read,
        compression: Compression,
        diff_id: &Digest,
    ) -> Result<(), ImageError> {
        let target = self.layer_dir(diff_id);
        if target.is_dir() {
            return Ok(());
        }
        let tmp = self.dir("tmp");
        let aside = tempfile::Builder::new()
            .prefix("layer-")
            .tempdir_in(&tmp)
            .map_err(|e| ImageError::io(&tmp, e))?;
        let root = aside.path().join("root");
        let unpacked = unpack::unpack(compressed, compression, &root);
        let result =
            unpacked.map_err(|e| ImageError::layer(reference, *diff_id, &tmp, e)).and_then(|unpacked| {
                if unpacked.diff_id != *diff_id {
                    return Err(ImageError::DigestMismatch {
                        reference: reference.into(),
                        what: "a layer's content".into(),
                        expected: *diff_id,
                        found: unpacked.diff_id,
                    });
                }
                let size = target.with_extension("size");
                fs::write(&size, unpacked.bytes.to_string()).map_err(|e| ImageError::io(&size, e))?;
                unpack::sync(&root).map_err(|e| ImageError::io(&root, e))?;
                match fs::rename(&root, &target) {
                    // Somebody else finished the same layer first.
                    Err(_) if target.is_dir() => Ok(()),
                    renamed => renamed.map_err(|e| ImageError::io(&target, e)),
                }?;
                sync_dir(&self.dir("layers"))
            });
        // Hostile names and modes included: the standard library's removal copes with both as root.
        match (crate::tree::remove(&root), result) {
            (_, Err(error)) => Err(error),
            (Err(e), Ok(())) => Err(ImageError::io(&root, e)),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    fn write_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        let path = self.blob(&digest);
        if !path.is_file() {
            self.write_whole(&path, bytes)?;
        }
        Ok(digest)
    }

    fn image(&self, entry: &Entry) -> Result<Image, ImageError> {
        let path = self.blob(&entry.config);
        let bytes = fs::read(&path).map_err(|e| ImageError::io(&path, e))?;
        Ok(Image {
            id: entry.config.to_string(),
            references: entry.references.clone(),
            repo_digest: entry.repo_digests.first().cloned(),
            layers: entry.layers.iter().map(|l| self.layer_dir(l)).collect(),
            config: parse_config(&entry.config.to_string(), &bytes)?,
            size_bytes: entry.size_bytes,
            pinned: entry.pinned,
        })
    }

    fn save(&self, index: &Index) -> Result<(), ImageError> {
        let bytes = serde_json::to_vec(index).expect("an index serializes");
        self.write_whole(&self.config.dir.join("index.json"), &bytes)
    }

    /// Temporary file, fsync, rename, fsync of the directory. Two at once may write the same.
    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(self.dir("tmp"))?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|e| ImageError::io(path, e))?;
        sync_dir(path.parent().unwrap_or(Path::new(".")))
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.config.dir.join(name)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.config.dir.join("blobs").join(digest.hex())
    }

    /// 96 bits of the diff id: short, so that many layers fit the page that mount(2) takes.
    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.config.dir.join("layers").join(&diff_id.hex()[..24])
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the image of a reference, a digest or an id is in the index.
fn position(index: &Index, text: &str) -> Result<Option<usize>, ImageError> {
    if let Ok(id) = text.parse::<Digest>() {
        return Ok(index.images.iter().position(|e| e.config == id));
    }
    let reference = Reference::parse(text)?;
    let name = reference.to_string();
    Ok(index.images.iter().position(|e| e.references.contains(&name) || e.repo_digests.contains(&name)))
}

fn parse_config(reference: &str, bytes: &[u8]) -> Result<ImageConfiguration, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::Malformed {
        reference: reference.into(),
        why: format!("its configuration: {e}"),
    })
}

/// The configuration's layers, after checking that this board can run it.
fn diff_ids(
    target: &Target,
    reference: &str,
    config: &ImageConfiguration,
) -> Result<Vec<Digest>, ImageError> {
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    let variant = config.variant().clone();
    if target.rank(&os, &architecture, variant.as_deref()).is_none() {
        return Err(ImageError::WrongPlatform {
            reference: reference.into(),
            wanted: target.to_string(),
            offered: platform::describe(&os, &architecture, variant.as_deref()),
        });
    }
    let malformed = |why: String| ImageError::Malformed { reference: reference.into(), why };
    let ids: Result<Vec<Digest>, _> = config.rootfs().diff_ids().iter().map(|id| id.parse()).collect();
    let ids = ids.map_err(|e: digest::BadDigest| malformed(e.to_string()))?;
    if ids.len() > LAYERS_MAX {
        return Err(malformed(format!("it has more than {LAYERS_MAX} layers")));
    }
    Ok(ids)
}

fn sync_dir(dir: &Path) -> Result<(), ImageError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| ImageError::io(dir, e))
}

/// Wall time as a hint for what was used last; a clock that stands at 1970 makes everything equally old.
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
