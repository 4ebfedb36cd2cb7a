//! Unpacking one layer into overlayfs form, from bytes that an attacker may have written.
//!
//! Every name is resolved by the kernel below the layer's own root (`openat2` with `RESOLVE_IN_ROOT`), and the last
//! component never follows a link, so no tar, whatever its links and names, writes outside. Extension headers are
//! read here and not by the tar crate, which would take one of any size into memory.
//!
//! Whiteouts (OCI image-spec, "Layer") become character devices 0:0, opaque markers the `trusted.overlay.opaque`
//! attribute. Other `trusted.*` attributes are dropped: with them a layer could forge overlayfs' own marks.

use super::digest::{Digest, Hashing};
use super::error::is_full;
use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, symlinkat,
    unlinkat, utimensat,
};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Entries of one layer.
const ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of one layer's files: far above any image for a board, far below what a bomb wants.
const LAYER_BYTES_MAX: u64 = 16 << 30;
/// Bytes of the paths of one layer's directories, which are kept until its end.
const DIRECTORY_NAME_BYTES_MAX: usize = 64 << 20;
/// Bytes of the extension headers of one entry: long names, and attributes.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Components of a path.
const DEPTH_MAX: usize = 128;
/// zstd's window, as `zstd -d` without `--long` takes.
pub(super) const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes, whatever the media type claims.
    pub(super) fn of(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// A layer that is refused. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A name that would leave the layer.
    #[error("entry {0:?} leaves the layer's root")]
    Escape(PathBuf),
    /// A bound of this module.
    #[error("it has more than {0}")]
    TooMuch(&'static str),
    /// Not a tar, or not one that makes sense.
    #[error("entry {name:?}: {why}")]
    Malformed {
        /// The entry.
        name: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk, or the compressed stream.
    #[error("{name:?}: {source}")]
    Io {
        /// The entry at which it happened.
        name: PathBuf,
        /// The kernel's or the decompressor's answer.
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    pub(super) fn is_full(&self) -> bool {
        matches!(self, UnpackError::Io { source, .. } if is_full(source))
    }
}

/// What was unpacked.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// Digest of the uncompressed tar.
    pub(super) diff_id: Digest,
    /// Bytes of its files.
    pub(super) bytes: u64,
}

/// Unpacks into `root`, which is made and must not exist. Reads `compressed` to its end. Blocking.
pub(super) fn unpack(
    compressed: impl Read,
    compression: Compression,
    root: &Path,
) -> Result<Unpacked, UnpackError> {
    let failed = |source: io::Error| UnpackError::Io { name: root.into(), source };
    std::fs::create_dir(root).map_err(failed)?;
    let mut buffered = BufReader::with_capacity(64 * 1024, compressed);
    let done = match compression {
        Compression::None => entries(&mut buffered, root)?,
        Compression::Gzip => entries(flate2::bufread::MultiGzDecoder::new(&mut buffered), root)?,
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(&mut buffered).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(failed)?;
            entries(decoder, root)?
        }
    };
    // What follows the stream belongs to the blob's digest, which the caller computes.
    io::copy(&mut buffered, &mut io::sink()).map_err(failed)?;
    Ok(done)
}

fn entries(tar: impl Read, root: &Path) -> Result<Unpacked, UnpackError> {
    let mut hashing = Hashing::new(tar);
    let mut layer = Layer::open(root)?;
    {
        let mut archive = tar::Archive::new(&mut hashing);
        let list = archive.entries().map_err(|source| UnpackError::Io { name: root.into(), source })?;
        for entry in list.raw(true) {
            let entry = entry.map_err(|source| UnpackError::Io { name: layer.last.clone(), source })?;
            layer.entry(entry)?;
        }
    }
    // Padding after the last entry is part of the diff id.
    let failed = |source: io::Error| UnpackError::Io { name: layer.last.clone(), source };
    let rest =
        io::copy(&mut (&mut hashing).take(EXTENSION_BYTES_MAX + 1), &mut io::sink()).map_err(failed)?;
    if rest > EXTENSION_BYTES_MAX {
        return Err(UnpackError::TooMuch("1 MiB of padding"));
    }
    layer.finish()?;
    Ok(Unpacked { bytes: layer.bytes, diff_id: hashing.finish() })
}

/// Extension headers of the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    attributes: Vec<(String, Vec<u8>)>,
    /// Of all headers before one entry: a thousand small ones are one large one.
    bytes: u64,
}

struct Layer {
    root: OwnedFd,
    entries: u64,
    bytes: u64,
    next: Extensions,
    last: PathBuf,
    /// Times of directories change while their files are made: set last.
    directory_times: Vec<(PathBuf, i64)>,
    directory_name_bytes: usize,
}

impl Layer {
    fn open(root: &Path) -> Result<Layer, UnpackError> {
        let file = File::open(root).map_err(|source| UnpackError::Io { name: root.into(), source })?;
        Ok(Layer {
            root: file.into(),
            entries: 0,
            bytes: 0,
            next: Extensions::default(),
            last: PathBuf::new(),
            directory_times: Vec::new(),
            directory_name_bytes: 0,
        })
    }

    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), UnpackError> {
        use tar::EntryType;
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(UnpackError::TooMuch("1000000 entries"));
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => self.next.path = Some(self.long_name(&mut entry)?),
            EntryType::GNULongLink => self.next.link = Some(self.long_name(&mut entry)?),
            EntryType::XHeader => {
                let bytes = self.extension(&mut entry)?;
                self.pax(&bytes)?;
            }
            // Defaults for all that follows: nothing in them that a layer needs.
            EntryType::XGlobalHeader => drop(self.extension(&mut entry)?),
            _ => {
                let extensions = std::mem::take(&mut self.next);
                self.make(entry, extensions)?;
            }
        }
        Ok(())
    }

    fn long_name<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, UnpackError> {
        let mut bytes = self.extension(entry)?;
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Ok(bytes)
    }

    fn extension<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, UnpackError> {
        self.next.bytes = self.next.bytes.saturating_add(entry.size());
        if self.next.bytes > EXTENSION_BYTES_MAX {
            return Err(UnpackError::TooMuch("1 MiB in the extension headers of an entry"));
        }
        self.count(entry.size())?;
        let mut bytes = Vec::new();
        let failed = |source| UnpackError::Io { name: self.last.clone(), source };
        entry.read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > LAYER_BYTES_MAX { Err(UnpackError::TooMuch("16 GiB of files")) } else { Ok(()) }
    }

    /// `LENGTH KEY=VALUE\n` records. POSIX pax.
    fn pax(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let malformed =
            || UnpackError::Malformed { name: self.last.clone(), why: "a malformed pax header".into() };
        let mut rest = bytes;
        while !rest.is_empty() {
            let blank = rest.iter().position(|b| *b == b' ').ok_or_else(malformed)?;
            let length = std::str::from_utf8(&rest[..blank]).ok().and_then(|n| n.parse::<usize>().ok());
            let length = length.filter(|n| *n > blank + 1 && *n <= rest.len()).ok_or_else(malformed)?;
            let record = rest[blank + 1..length].strip_suffix(b"\n").ok_or_else(malformed)?;
            rest = &rest[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(malformed)?;
            let (key, value) =
                (String::from_utf8_lossy(&record[..equals]).into_owned(), record[equals + 1..].to_vec());
            let text = String::from_utf8_lossy(&value).into_owned();
            match key.as_str() {
                "path" => self.next.path = Some(value),
                "linkpath" => self.next.link = Some(value),
                "uid" => self.next.uid = Some(text.parse().map_err(|_| malformed())?),
                "gid" => self.next.gid = Some(text.parse().map_err(|_| malformed())?),
                "mtime" => self.next.mtime = text.split('.').next().and_then(|s| s.parse().ok()),
                // A size that differs from the header's would make two readers see two different archives.
                "size" => {
                    return Err(UnpackError::Malformed {
                        name: self.last.clone(),
                        why: "a size in a pax header".into(),
                    });
                }
                other => {
                    if let Some(name) = other.strip_prefix("SCHILY.xattr.") {
                        self.next.attributes.push((name.into(), value));
                    }
                }
            }
        }
        Ok(())
    }

    fn make<R: Read>(
        &mut self,
        mut entry: tar::Entry<'_, R>,
        extensions: Extensions,
    ) -> Result<(), UnpackError> {
        use std::os::unix::ffi::OsStringExt;
        use tar::EntryType;
        let header = entry.header().clone();
        let written = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let written = PathBuf::from(std::ffi::OsString::from_vec(written));
        self.last.clone_from(&written);
        let path = inside(&written)?;
        let failed = |source: io::Error| UnpackError::Io { name: written.clone(), source };
        let malformed = |why: &str| UnpackError::Malformed { name: written.clone(), why: why.into() };
        let Some(name) = path.file_name().map(ToOwned::to_owned) else {
            // The root itself: its mode counts, everything else is given.
            let mode = header.mode().map_err(failed)?;
            return chmodat(&self.root, ".", Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())
                .map_err(|e| failed(e.into()));
        };
        let parent = self.directory(path.parent().unwrap_or(Path::new(""))).map_err(failed)?;
        let text = name.to_string_lossy().into_owned();
        if text == ".wh..wh..opq" {
            return fsetxattr_at(&parent, "trusted.overlay.opaque", b"y").map_err(failed);
        }
        if let Some(hidden) = text.strip_prefix(".wh.") {
            if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.contains('/') {
                return Err(malformed("a whiteout of nothing"));
            }
            remove_at(&parent, Path::new(hidden)).map_err(failed)?;
            return mknodat(&parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
                .map_err(|e| failed(e.into()));
        }
        let kind = header.entry_type();
        let existing_dir = is_directory(&parent, Path::new(&name));
        if !(kind == EntryType::Directory && existing_dir) {
            remove_at(&parent, Path::new(&name)).map_err(failed)?;
        }
        let number = |n: io::Result<u64>| n.ok().and_then(|n| u32::try_from(n).ok());
        let owner = |pax: Option<u64>, field: &[u8], plain: io::Result<u64>| match pax {
            Some(id) => u32::try_from(id).ok(),
            // A field that was left out is root's, as Go's reader has it.
            None if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Some(0),
            None => number(plain),
        };
        let fields = header.as_old();
        let uid = owner(extensions.uid, &fields.uid, header.uid());
        let uid = uid.ok_or_else(|| malformed("an impossible owner"))?;
        let gid = owner(extensions.gid, &fields.gid, header.gid());
        let gid = gid.ok_or_else(|| malformed("an impossible group"))?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let mode = Mode::from_raw_mode(header.mode().map_err(failed)? & 0o7777);
        let mtime =
            extensions.mtime.or_else(|| header.mtime().ok().and_then(|t| i64::try_from(t).ok())).unwrap_or(0);
        let link = || -> Result<PathBuf, UnpackError> {
            let target =
                extensions.link.clone().or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
            let target = target
                .filter(|t| !t.is_empty() && !t.contains(&0))
                .ok_or_else(|| malformed("a link to nothing"))?;
            Ok(PathBuf::from(std::ffi::OsString::from_vec(target)))
        };
        let errno = |e: rustix::io::Errno| failed(e.into());
        match kind {
            EntryType::Directory => {
                if !existing_dir {
                    mkdirat(&parent, &name, Mode::from_raw_mode(0o700)).map_err(errno)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = openat(&parent, &name, flags, Mode::empty()).map_err(errno)?;
                fchown(&dir, Some(uid), Some(gid)).map_err(errno)?;
                rustix::fs::fchmod(&dir, mode).map_err(errno)?;
                set_attributes(&dir, &extensions.attributes).map_err(failed)?;
                self.directory_name_bytes += path.as_os_str().len();
                if self.directory_name_bytes > DIRECTORY_NAME_BYTES_MAX {
                    return Err(UnpackError::TooMuch("64 MiB of directory names"));
                }
                self.directory_times.push((path, mtime));
            }
            EntryType::Symlink => {
                symlinkat(link()?, &parent, &name).map_err(errno)?;
                chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                utimensat(&parent, &name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
            }
            EntryType::Link => {
                let target = inside(&link()?)?;
                let Some(target_name) = target.file_name() else {
                    return Err(malformed("a hard link to the root"));
                };
                let from = self.directory(target.parent().unwrap_or(Path::new(""))).map_err(failed)?;
                // Never follows a link in the last component: the link itself is linked.
                linkat(&from, target_name, &parent, &name, AtFlags::empty()).map_err(errno)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                // A fifo's numbers mean nothing and are often blank.
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
                let device: Dev = makedev(number(header.device_major()), number(header.device_minor()));
                let file_type = match kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                if file_type == FileType::CharacterDevice && device == makedev(0, 0) {
                    return Err(malformed("a device 0:0 is overlayfs' own whiteout"));
                }
                mknodat(&parent, &name, file_type, Mode::from_raw_mode(0o600), device).map_err(errno)?;
                chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                chmodat(&parent, &name, mode, AtFlags::empty()).map_err(errno)?;
                utimensat(&parent, &name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
            }
            EntryType::Regular | EntryType::Continuous => {
                let size = entry.size();
                self.count(size)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&parent, &name, flags, Mode::from_raw_mode(0o600)).map_err(errno)?;
                let mut file = File::from(file);
                let copied = io::copy(&mut entry, &mut file).map_err(failed)?;
                if copied != size {
                    return Err(malformed("the archive ends in the middle of it"));
                }
                file.flush().map_err(failed)?;
                // Owner first: chown(2) takes setuid and capabilities away.
                fchown(&file, Some(uid), Some(gid)).map_err(errno)?;
                rustix::fs::fchmod(&file, mode).map_err(errno)?;
                set_attributes(file.as_fd(), &extensions.attributes).map_err(failed)?;
                futimens(&file, &times(mtime)).map_err(errno)?;
            }
            _ => return Err(malformed("an entry type that layers do not have")),
        }
        Ok(())
    }

    /// The directory at `path`, made where it is missing; links in it stay below the root.
    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = |path: &Path| {
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            openat2(&self.root, path, flags, Mode::empty(), resolve)
        };
        match open(path) {
            Ok(dir) => return Ok(dir),
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let mut done = PathBuf::new();
        let mut here = open(&done)?;
        for part in path.components() {
            done.push(part);
            here = match open(&done) {
                Err(rustix::io::Errno::NOENT) => {
                    mkdirat(&here, part.as_os_str(), Mode::from_raw_mode(0o755))?;
                    open(&done)?
                }
                found => found?,
            };
        }
        Ok(here)
    }

    fn finish(&self) -> Result<(), UnpackError> {
        for (path, mtime) in self.directory_times.iter().rev() {
            let failed = |source: io::Error| UnpackError::Io { name: path.clone(), source };
            // One that a later entry replaced has no time to set.
            let Ok(dir) = self.directory(path) else { continue };
            futimens(&dir, &times(*mtime)).map_err(|e| failed(e.into()))?;
        }
        Ok(())
    }
}

/// `path` relative to the root, without `.`; a leading `/` is tolerated as tar does, `..` is not.
fn inside(path: &Path) -> Result<PathBuf, UnpackError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(UnpackError::Escape(path.into())),
        }
    }
    if clean.components().count() > DEPTH_MAX {
        return Err(UnpackError::TooMuch("128 directories in a path"));
    }
    Ok(clean)
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// What belongs into a container's root; anything else (`trusted.*` above all) is left out.
fn set_attributes(file: impl AsFd, attributes: &[(String, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in attributes {
        if name == "security.capability" || name.starts_with("user.") {
            match fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
                // tmpfs before 6.6 has no user attributes: a file without them is the best there is.
                Err(rustix::io::Errno::OPNOTSUPP) if name.starts_with("user.") => {}
                set => set?,
            }
        }
    }
    Ok(())
}

fn fsetxattr_at(dir: &OwnedFd, name: &str, value: &[u8]) -> io::Result<()> {
    Ok(fsetxattr(dir, name, value, XattrFlags::empty())?)
}

fn is_directory(parent: &OwnedFd, name: &Path) -> bool {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
}

/// Removes whatever has this name in `parent`, never following a link.
fn remove_at(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            use std::os::fd::AsRawFd;
            // Through the open parent: no link below it is followed.
            crate::tree::remove(&Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name))
        }
        Err(e) => Err(e.into()),
    }
}

/// Makes a whole layer durable at once: syncfs(2) of its file system.
pub(super) fn sync(root: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(root)?)?)
}

#[cfg(test)]
mod tests;
