//! Pulling: manifest, configuration, layers; what is here already is not fetched, what is half here is resumed.
//!
//! A layer's bytes go to `tmp/blob-HEX`, which outlives an interruption of any kind. Once whole and verified they
//! are unpacked and removed. An interrupted stream is resumed at once a few times before the pull fails.

use super::credential::Credential;
use super::digest::{Digest, Hashing};
use super::error::Also;
use super::platform::describe;
use super::reference::Reference;
use super::registry::{Endpoint, Registry, candidates, endpoints};
use super::unpack::Compression;
use super::{Image, ImageError, ImageStore, diff_ids, parse_config};
use futures_util::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Names of interrupted downloads start so.
pub(super) const PARTIAL: &str = "blob-";
/// Bytes of one compressed layer.
const BLOB_BYTES_MAX: u64 = 16 << 30;
/// A stream that gives less than [`PACE_BYTES`] in so long is broken.
const STALL: Duration = Duration::from_secs(60);
/// About 1 KiB a second: less than any link that images come over, and more than a registry that holds its clients.
const PACE_BYTES: u64 = 64 << 10;
/// Attempts at one layer within a pull, each going on where the last one broke.
const ATTEMPTS_MAX: u32 = 5;

/// How far a pull is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A layer is here already.
    Present {
        /// The blob's digest.
        layer: String,
    },
    /// Bytes of a layer are here.
    Fetched {
        /// The blob's digest.
        layer: String,
        /// So far.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// A layer is verified and unpacked.
    Unpacked {
        /// The blob's digest.
        layer: String,
    },
}

impl ImageStore {
    /// Pulls an image from its mirrors in order, then its registry. `credentials` are tried before those of the
    /// credential files. Idempotent; safe to abandon and to repeat.
    ///
    /// # Errors
    /// The last place's, with what the others said; see [`ImageError::reason`].
    pub async fn pull(
        self: &Arc<Self>,
        reference: &str,
        credentials: &[Credential],
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Image, ImageError> {
        let reference = Reference::parse(reference)?;
        let mut also = Vec::new();
        let places = endpoints(&self.config, &reference);
        let last = places.len() - 1;
        for (number, endpoint) in places.into_iter().enumerate() {
            let place = endpoint.host().to_string();
            match self.pull_at(endpoint, &reference, credentials, &progress).await {
                Ok(image) => return Ok(image),
                Err(error) if number == last => return Err(with_mirrors(error, also)),
                // What is wrong with the image itself, or with this board's disk, no other place mends.
                Err(error) if !is_places_fault(&error) => return Err(error),
                Err(error) => also.push(format!("{place}: {error}")),
            }
        }
        unreachable!("the registry itself is always among the places")
    }

    /// From one place, as each who may have access there.
    async fn pull_at(
        self: &Arc<Self>,
        endpoint: Endpoint,
        reference: &Reference,
        credentials: &[Credential],
        progress: &(impl Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let mut others = candidates(&endpoint, reference, credentials, &self.config)?.into_iter();
        let mut registry = Registry::new(endpoint, reference, others.next())?;
        loop {
            let result = self.pull_from(&mut registry, reference, progress).await;
            let denied = matches!(result, Err(ImageError::Unauthorized { .. }));
            match others.next().filter(|_| denied) {
                Some(other) => registry.log_in_as(other),
                None => return result,
            }
        }
    }

    async fn pull_from(
        self: &Arc<Self>,
        registry: &mut Registry,
        reference: &Reference,
        progress: &(impl Fn(Progress) + Send + Sync),
    ) -> Result<Image, ImageError> {
        let name = reference.to_string();
        let bytes = registry.manifest(&reference.version()).await?;
        let found = Digest::of(&bytes);
        if let Some(expected) = reference.digest.filter(|expected| *expected != found) {
            return Err(ImageError::DigestMismatch {
                reference: name,
                what: "the manifest".into(),
                expected,
                found,
            });
        }
        let (manifest_bytes, manifest) = self.choose(registry, &name, bytes).await?;
        let config_digest = digest_of(&name, manifest.config())?;
        let config_path = self.blob(&config_digest);
        let config_bytes = match fs::read(&config_path) {
            Ok(bytes) if Digest::of(&bytes) == config_digest => bytes,
            _ => registry.small_blob(&config_digest.to_string()).await?,
        };
        verify(&name, "the configuration", config_digest, &config_bytes)?;
        let config = parse_config(&name, &config_bytes)?;
        let ids = diff_ids(&self.target, &name, &config)?;
        if ids.len() != manifest.layers().len() {
            let why = "manifest and configuration differ in the number of layers".into();
            return Err(ImageError::Malformed { reference: name, why });
        }
        // Connections are shared by the client below; the mutable part of a registry is only its token.
        let registry = tokio::sync::Mutex::new(registry);
        // Boxed, so that the stream of them is Send whatever the compiler can prove of their borrows.
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers().iter().zip(&ids) {
            layers.push(self.layer(&registry, &name, layer, *diff_id, progress).boxed());
        }
        let mut running =
            futures_util::stream::iter(layers).buffer_unordered(self.config.parallel_layers.max(1));
        while let Some(result) = running.next().await {
            result?;
        }
        drop(running);
        let repo_digest = format!("{}@{found}", reference.name());
        let (store, reference) = (self.clone(), reference.clone());
        let register = move || {
            store.register(Some(&reference), Some(repo_digest), Some(&manifest_bytes), &config_bytes, &ids)
        };
        tokio::task::spawn_blocking(register).await.expect("registering does not panic")
    }

    /// The manifest for this board, out of an index if it is one.
    async fn choose(
        &self,
        registry: &mut Registry,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<(Vec<u8>, ImageManifest), ImageError> {
        let malformed = |e: serde_json::Error| ImageError::Malformed {
            reference: name.into(),
            why: format!("its manifest: {e}"),
        };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(malformed)?;
        if value.get("manifests").is_none() {
            let manifest = serde_json::from_value(value).map_err(malformed)?;
            return Ok((bytes, manifest));
        }
        let index: ImageIndex = serde_json::from_value(value).map_err(malformed)?;
        let rank = |d: &&Descriptor| d.platform().as_ref().and_then(|p| self.target.rank_platform(p));
        let best = index.manifests().iter().filter(|d| rank(d).is_some()).min_by_key(rank);
        let Some(best) = best else {
            let offered = index.manifests().iter().filter_map(|d| d.platform().as_ref());
            let offered: Vec<String> = offered
                .map(|p| describe(&p.os().to_string(), &p.architecture().to_string(), p.variant().as_deref()))
                .collect();
            let offered = offered.join(", ");
            return Err(ImageError::WrongPlatform {
                reference: name.into(),
                wanted: self.target.to_string(),
                offered,
            });
        };
        let digest = digest_of(name, best)?;
        let bytes = registry.manifest(&digest.to_string()).await?;
        verify(name, "the manifest", digest, &bytes)?;
        let manifest = serde_json::from_slice(&bytes).map_err(malformed)?;
        Ok((bytes, manifest))
    }

    async fn layer(
        self: &Arc<Self>,
        registry: &tokio::sync::Mutex<&mut Registry>,
        name: &str,
        layer: &Descriptor,
        diff_id: Digest,
        progress: &(impl Fn(Progress) + Send + Sync),
    ) -> Result<(), ImageError> {
        let digest = digest_of(name, layer)?;
        let label = digest.to_string();
        if self.layer_dir(&diff_id).is_dir() {
            progress(Progress::Present { layer: label });
            return Ok(());
        }
        let total = layer.size();
        if total > BLOB_BYTES_MAX {
            let why = format!("layer {label} says that it has {total} bytes");
            return Err(ImageError::Malformed { reference: name.into(), why });
        }
        // Images share layers, and an image may hold one twice: the bytes of one blob are one pull's at a time.
        let turn = self.turn(digest).lock_owned().await;
        if self.layer_dir(&diff_id).is_dir() {
            progress(Progress::Present { layer: label });
            return Ok(());
        }
        let path = self.dir("tmp").join(format!("{PARTIAL}{}", digest.hex()));
        let mut attempt = 1;
        loop {
            match self.fetch(registry, &path, &label, total, progress).await {
                Ok(()) => break,
                Err(ImageError::Unavailable { message, .. }) if attempt < ATTEMPTS_MAX => {
                    tracing::debug!(
                        layer = label,
                        attempt,
                        message,
                        "a layer's stream broke; going on where it did"
                    );
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
        let (store, text) = (self.clone(), name.to_string());
        let unpack = move || {
            // To the end of unpacking, even if nobody waits for it any more.
            let _turn = turn;
            store.verify_and_unpack(&text, &path, digest, &diff_id)
        };
        tokio::task::spawn_blocking(unpack).await.expect("unpacking does not panic")?;
        progress(Progress::Unpacked { layer: label });
        Ok(())
    }

    /// Whose turn it is to bring a blob; locks that nobody holds are forgotten.
    fn turn(&self, blob: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&blob).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        turns.insert(blob, Arc::downgrade(&turn));
        turn
    }

    /// Brings the blob to its full length on disk.
    async fn fetch(
        &self,
        registry: &tokio::sync::Mutex<&mut Registry>,
        path: &Path,
        label: &str,
        total: u64,
        progress: &(impl Fn(Progress) + Send + Sync),
    ) -> Result<(), ImageError> {
        let failed = |e| ImageError::io(path, e);
        let mut file = File::options().create(true).append(true).open(path).map_err(failed)?;
        let mut have = file.metadata().map_err(failed)?.len();
        if have > total {
            file.set_len(0).map_err(failed)?;
            have = 0;
        }
        if have == total {
            return Ok(());
        }
        let (mut body, partial) = {
            let mut registry = registry.lock().await;
            registry.blob(label, have).await?
        };
        if have > 0 && !partial {
            // A registry without ranges sends everything again.
            file.set_len(0).map_err(failed)?;
            have = 0;
        }
        let broken = |message: String| ImageError::Unavailable {
            reference: label.into(),
            registry: "the registry".into(),
            message,
            also: Also::default(),
        };
        let mut pace = Pace::begin(Instant::now());
        loop {
            let frame = match tokio::time::timeout_at(pace.deadline.into(), body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(broken(error.to_string())),
                Ok(None) => break,
                Err(_) => {
                    let seconds = STALL.as_secs();
                    return Err(broken(format!("only {} bytes came in {seconds} s", pace.bytes)));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            pace.come(data.len() as u64, Instant::now());
            have += data.len() as u64;
            if have > total {
                file.set_len(0).map_err(failed)?;
                let why = format!("layer {label} is longer than the manifest says");
                return Err(ImageError::Malformed { reference: label.into(), why });
            }
            if let Err(error) = file.write_all(&data) {
                drop(fs::remove_file(path));
                return Err(failed(error));
            }
            progress(Progress::Fetched { layer: label.into(), bytes: have, total });
        }
        if have == total {
            Ok(())
        } else {
            Err(broken(format!("the stream ended after {have} of {total} bytes")))
        }
    }

    /// Verifies all bytes before the first is unpacked; the file is gone afterwards, good or bad.
    fn verify_and_unpack(
        &self,
        name: &str,
        path: &PathBuf,
        digest: Digest,
        diff_id: &Digest,
    ) -> Result<(), ImageError> {
        let work = || {
            let mut file = File::open(path).map_err(|e| ImageError::io(path, e))?;
            let mut hashing = Hashing::new(&file);
            io::copy(&mut hashing, &mut io::sink()).map_err(|e| ImageError::io(path, e))?;
            let found = hashing.finish();
            if found != digest {
                let what = "a layer".into();
                return Err(ImageError::DigestMismatch {
                    reference: name.into(),
                    what,
                    expected: digest,
                    found,
                });
            }
            let mut start = [0; 4];
            file.seek(SeekFrom::Start(0)).map_err(|e| ImageError::io(path, e))?;
            let length = io::Read::read(&mut file, &mut start).map_err(|e| ImageError::io(path, e))?;
            file.seek(SeekFrom::Start(0)).map_err(|e| ImageError::io(path, e))?;
            self.add_layer(name, &file, Compression::of(&start[..length]), diff_id)
        };
        let result = work();
        crate::tree::remove(path).map_err(|e| ImageError::io(path, e)).and(result)
    }
}

/// How fast a stream comes: slower than its bound, it is as good as broken.
struct Pace {
    bytes: u64,
    deadline: Instant,
}

impl Pace {
    fn begin(now: Instant) -> Pace {
        Pace { bytes: 0, deadline: now + STALL }
    }

    fn come(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if self.bytes >= PACE_BYTES {
            *self = Pace::begin(now);
        }
    }
}

fn digest_of(name: &str, descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let parsed = descriptor.digest().to_string().parse();
    parsed.map_err(|e: super::digest::BadDigest| ImageError::Malformed {
        reference: name.into(),
        why: e.to_string(),
    })
}

fn verify(name: &str, what: &str, expected: Digest, bytes: &[u8]) -> Result<(), ImageError> {
    let found = Digest::of(bytes);
    if found == expected {
        return Ok(());
    }
    Err(ImageError::DigestMismatch { reference: name.into(), what: what.into(), expected, found })
}

/// Another place may do better.
fn is_places_fault(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::NotFound { .. }
            | ImageError::Unauthorized { .. }
            | ImageError::Unavailable { .. }
            | ImageError::Refused { .. }
            | ImageError::DigestMismatch { .. }
            | ImageError::Malformed { .. }
            | ImageError::NoCertificates { .. }
    )
}

fn with_mirrors(mut error: ImageError, mirrors: Vec<String>) -> ImageError {
    if let ImageError::NotFound { also, .. }
    | ImageError::Unauthorized { also, .. }
    | ImageError::Unavailable { also, .. }
    | ImageError::Refused { also, .. } = &mut error
    {
        *also = Also(mirrors);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte now and then kept a pull going for ever.
    #[test]
    fn a_trickle_does_not_put_the_deadline_off() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut pace = Pace::begin(start);
        pace.come(1, start + second);
        pace.come(PACE_BYTES - 2, start + 2 * second);
        assert_eq!(pace.deadline, start + STALL);
        pace.come(1, start + 3 * second);
        assert_eq!((pace.bytes, pace.deadline), (0, start + 3 * second + STALL));
    }
}
