//! Importing archives: OCI layouts, as directory or tar, and what `docker save` writes.
//!
//! A tar is read in place: one pass notes where each member lies, then members are read by offset, so importing
//! needs no second copy on the disk. A gzipped tar is unzipped aside first.

use super::digest::{Digest, Hashing};
use super::platform::describe;
use super::reference::Reference;
use super::unpack::{Compression, ZSTD_WINDOW_LOG_MAX};
use super::{DOCUMENT_BYTES_MAX, ImageError, ImageStore, diff_ids, parse_config};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Members of one archive.
const MEMBERS_MAX: usize = 10_000;
/// Bytes of a member's name. What is looked for has less than 100.
const NAME_BYTES_MAX: u64 = 4096;
/// Images of one archive, by every name that it gives them.
const IMAGES_MAX: usize = 1000;
/// Indexes within indexes.
const NESTING_MAX: usize = 3;

/// Where an archive's members are.
enum Archive {
    Directory(PathBuf),
    Tar {
        path: PathBuf,
        file: File,
        members: BTreeMap<String, (u64, u64)>,
        _aside: Option<tempfile::NamedTempFile>,
    },
}

pub(super) fn import(store: &ImageStore, path: &Path) -> Result<Vec<String>, ImageError> {
    let archive = Archive::open(store, path)?;
    if archive.has("index.json") {
        let index: ImageIndex = archive.json("index.json")?;
        let mut names = Vec::new();
        if index.manifests().len() > IMAGES_MAX {
            return Err(archive.unusable(&format!("it holds more than {IMAGES_MAX} images")));
        }
        for descriptor in index.manifests() {
            names.extend(layout_image(store, &archive, descriptor, 0)?);
        }
        if names.is_empty() {
            return Err(archive.unusable(&format!("it holds no image for {}", store.target)));
        }
        return Ok(names);
    }
    if archive.has("manifest.json") {
        return docker(store, &archive);
    }
    Err(archive.unusable("it has neither index.json nor manifest.json"))
}

/// One descriptor of a layout's index: an image, or an index of one per platform.
fn layout_image(
    store: &ImageStore,
    archive: &Archive,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<Vec<String>, ImageError> {
    let bytes = archive.blob(descriptor)?;
    let name = |descriptor: &Descriptor| {
        let annotations = descriptor.annotations().clone().unwrap_or_default();
        let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        keys.iter().find_map(|key| annotations.get(*key).cloned())
    };
    if let Ok(index) = serde_json::from_slice::<ImageIndex>(&bytes) {
        let rank = |d: &&Descriptor| d.platform().as_ref().and_then(|p| store.target.rank_platform(p));
        let best = index.manifests().iter().filter(|d| rank(d).is_some()).min_by_key(rank);
        let Some(best) = best.filter(|_| depth < NESTING_MAX) else {
            let offered = index.manifests().iter().filter_map(|d| d.platform().as_ref());
            let offered: Vec<String> = offered
                .map(|p| describe(&p.os().to_string(), &p.architecture().to_string(), p.variant().as_deref()))
                .collect();
            return Err(ImageError::WrongPlatform {
                reference: name(descriptor).unwrap_or_else(|| archive.path().display().to_string()),
                wanted: store.target.to_string(),
                offered: offered.join(", "),
            });
        };
        let mut best = best.clone();
        if name(&best).is_none() {
            best.set_annotations(descriptor.annotations().clone());
        }
        return layout_image(store, archive, &best, depth + 1);
    }
    let manifest: ImageManifest =
        serde_json::from_slice(&bytes).map_err(|e| archive.unusable(&format!("a manifest: {e}")))?;
    let text = name(descriptor).unwrap_or_else(|| manifest.config().digest().to_string());
    let reference = Reference::parse(&text).ok();
    let config_bytes = archive.blob(manifest.config())?;
    let config = parse_config(&text, &config_bytes)?;
    let ids = diff_ids(&store.target, &text, &config)?;
    if ids.len() != manifest.layers().len() {
        return Err(archive.unusable("manifest and configuration differ in the number of layers"));
    }
    for (layer, diff_id) in manifest.layers().iter().zip(&ids) {
        let digest = digest_of(layer, archive)?;
        let mut hashing = Hashing::new(archive.open_member(&format!("blobs/sha256/{}", digest.hex()))?);
        let (start, compression) = sniff(&mut hashing, archive)?;
        store.add_layer(&text, io::Cursor::new(start).chain(&mut hashing), compression, diff_id)?;
        io::copy(&mut hashing, &mut io::sink()).map_err(|e| ImageError::io(archive.path(), e))?;
        let found = hashing.finish();
        if found != digest {
            return Err(ImageError::DigestMismatch {
                reference: text,
                what: "a layer".into(),
                expected: digest,
                found,
            });
        }
    }
    store.register(reference.as_ref(), None, Some(&bytes), &config_bytes, &ids)?;
    Ok(vec![reference.map_or(text, |r| r.to_string())])
}

/// One image of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker(store: &ImageStore, archive: &Archive) -> Result<Vec<String>, ImageError> {
    let images: Vec<Saved> = archive.json("manifest.json")?;
    let tags = |image: &Saved| image.repo_tags.as_ref().map_or(1, |tags| tags.len().max(1));
    if images.iter().map(tags).sum::<usize>() > IMAGES_MAX {
        return Err(archive.unusable(&format!("it holds more than {IMAGES_MAX} images")));
    }
    let mut names = Vec::new();
    for image in images {
        let config_bytes = archive.document(&image.config)?;
        let tags = image.repo_tags.unwrap_or_default();
        let text = tags.first().cloned().unwrap_or_else(|| Digest::of(&config_bytes).to_string());
        let config = parse_config(&text, &config_bytes)?;
        let ids = diff_ids(&store.target, &text, &config)?;
        if ids.len() != image.layers.len() {
            return Err(archive.unusable("manifest and configuration differ in the number of layers"));
        }
        for (layer, diff_id) in image.layers.iter().zip(&ids) {
            let mut member = archive.open_member(layer)?;
            let (start, compression) = sniff(&mut member, archive)?;
            store.add_layer(&text, io::Cursor::new(start).chain(member), compression, diff_id)?;
        }
        if tags.is_empty() {
            store.register(None, None, None, &config_bytes, &ids)?;
            names.push(text.clone());
        }
        for tag in &tags {
            let reference = Reference::parse(tag)?;
            store.register(Some(&reference), None, None, &config_bytes, &ids)?;
            names.push(reference.to_string());
        }
    }
    if names.is_empty() { Err(archive.unusable("manifest.json names no image")) } else { Ok(names) }
}

/// The first bytes of a stream and what they say; the caller puts them back in front.
fn sniff(reader: &mut impl Read, archive: &Archive) -> Result<(Vec<u8>, Compression), ImageError> {
    let mut start = Vec::new();
    reader.take(4).read_to_end(&mut start).map_err(|e| ImageError::io(archive.path(), e))?;
    let compression = Compression::of(&start);
    Ok((start, compression))
}

fn digest_of(descriptor: &Descriptor, archive: &Archive) -> Result<Digest, ImageError> {
    descriptor
        .digest()
        .to_string()
        .parse()
        .map_err(|e: super::digest::BadDigest| archive.unusable(&e.to_string()))
}

impl Archive {
    fn open(store: &ImageStore, path: &Path) -> Result<Archive, ImageError> {
        let failed = |e| ImageError::io(path, e);
        if path.is_dir() {
            return Ok(Archive::Directory(path.into()));
        }
        let mut file = open_file(path).map_err(failed)?;
        let mut start = [0; 4];
        let length = file.read(&mut start).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut aside = None;
        match Compression::of(&start[..length]) {
            Compression::None => {}
            compression => {
                let tmp = store.dir("tmp");
                let mut plain = tempfile::NamedTempFile::new_in(&tmp).map_err(|e| ImageError::io(&tmp, e))?;
                // Its layers need as much again. A bomb is refused before it has filled the disk of every pod.
                let bound = free_bytes(&tmp).map_err(|e| ImageError::io(&tmp, e))? / 2;
                let copied = match compression {
                    Compression::Zstd => zstd::Decoder::new(&file).and_then(|mut decoder| {
                        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                        io::copy(&mut decoder.take(bound + 1), &mut plain)
                    }),
                    _ => io::copy(&mut flate2::read::MultiGzDecoder::new(&file).take(bound + 1), &mut plain),
                };
                if copied.map_err(failed)? > bound {
                    let why = "unzipped it needs more than half of the disk's free space".into();
                    return Err(ImageError::NotAnArchive { path: path.into(), why });
                }
                file = plain.reopen().map_err(|e| ImageError::io(&tmp, e))?;
                aside = Some(plain);
            }
        }
        let members = members(&file, path)?;
        Ok(Archive::Tar { path: path.into(), file, members, _aside: aside })
    }

    fn path(&self) -> &Path {
        match self {
            Archive::Directory(path) | Archive::Tar { path, .. } => path,
        }
    }

    fn unusable(&self, why: &str) -> ImageError {
        ImageError::NotAnArchive { path: self.path().into(), why: why.into() }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Archive::Directory(path) => path.join(name).is_file(),
            Archive::Tar { members, .. } => members.contains_key(name),
        }
    }

    /// A member to read; names come from the archive itself and are not trusted.
    fn open_member(&self, name: &str) -> Result<Box<dyn Read>, ImageError> {
        let missing = || self.unusable(&format!("it has no {name:?}"));
        match self {
            Archive::Directory(path) => {
                let plain =
                    Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
                let member = path.join(name);
                if !plain || member.is_symlink() {
                    return Err(missing());
                }
                Ok(Box::new(open_file(&member).map_err(|_| missing())?))
            }
            Archive::Tar { path, file, members, .. } => {
                let (offset, size) = *members.get(name).ok_or_else(missing)?;
                // A handle of its own position: several members may be open at once.
                use std::os::fd::AsRawFd;
                let own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
                    .map_err(|e| ImageError::io(path, e))?;
                let mut own = own;
                own.seek(SeekFrom::Start(offset)).map_err(|e| ImageError::io(path, e))?;
                Ok(Box::new(own.take(size)))
            }
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let bound = DOCUMENT_BYTES_MAX as u64 + 1;
        self.open_member(name)?
            .take(bound)
            .read_to_end(&mut bytes)
            .map_err(|e| ImageError::io(self.path(), e))?;
        if bytes.len() > DOCUMENT_BYTES_MAX {
            Err(self.unusable(&format!("{name:?} is too large")))
        } else {
            Ok(bytes)
        }
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, ImageError> {
        serde_json::from_slice(&self.document(name)?).map_err(|e| self.unusable(&format!("{name}: {e}")))
    }

    /// A small blob, verified.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = digest_of(descriptor, self)?;
        let bytes = self.document(&format!("blobs/sha256/{}", digest.hex()))?;
        let found = Digest::of(&bytes);
        if found == digest {
            return Ok(bytes);
        }
        let reference = self.path().display().to_string();
        Err(ImageError::DigestMismatch { reference, what: "a blob".into(), expected: digest, found })
    }
}

/// Opens a file to read. A fifo would be waited for, and is no archive, nor is a device.
fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Names, offsets and sizes of a tar's files. Symbolic links of `docker save` to equal layers are followed once.
fn members(file: &File, path: &Path) -> Result<BTreeMap<String, (u64, u64)>, ImageError> {
    let not = |why: String| ImageError::NotAnArchive { path: path.into(), why };
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    let (mut members, mut links) = (BTreeMap::new(), Vec::new());
    let (mut long_name, mut long_link) = (None, None);
    // Raw: the tar crate would take an extension header of any size into memory.
    for entry in archive.entries_with_seek().map_err(|e| not(e.to_string()))?.raw(true) {
        // The tar crate quotes the bytes that it does not understand: of no use to anybody, and not fit for a terminal.
        let damaged = |_| match members.len() + links.len() {
            0 => not("it is no tar archive".into()),
            count => not(format!("it is damaged after {count} members")),
        };
        let mut entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() {
            let mut bytes = Vec::new();
            // What is cut here is a name that nothing looks for.
            (&mut entry).take(NAME_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| not(e.to_string()))?;
            if kind.is_gnu_longname() {
                long_name = Some(bytes);
            } else if kind.is_gnu_longlink() {
                long_link = Some(bytes);
            } else {
                for extension in tar::PaxExtensions::new(&bytes).map_while(Result::ok) {
                    match extension.key_bytes() {
                        b"path" => long_name = Some(extension.value_bytes().into()),
                        b"linkpath" => long_link = Some(extension.value_bytes().into()),
                        _ => {}
                    }
                }
            }
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
        let name = long_name.take().map_or_else(|| text(&entry.path_bytes()), |name| text(&name));
        let name = name.trim_start_matches("./").to_string();
        if kind.is_file() {
            members.insert(name, (entry.raw_file_position(), entry.size()));
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target =
                long_link.take().or_else(|| entry.link_name_bytes().map(|target| target.into_owned()));
            links.extend(target.map(|target| (name, text(&target))));
        }
        if members.len() + links.len() > MEMBERS_MAX {
            return Err(not(format!("it has more than {MEMBERS_MAX} members")));
        }
    }
    for (name, target) in links {
        let target = target.trim_start_matches("../");
        if let Some(place) = members.get(target).copied() {
            members.insert(name, place);
        }
    }
    Ok(members)
}
