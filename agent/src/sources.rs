//! Where pods and secrets come from on a standalone board: the manifest directory, watched by inotify.
//!
//! Every change re-reads the directory; files that look unchanged (inode, size, time) are not parsed again. A file
//! counts once it is closed or renamed into place: what somebody has open for writing is left as it was, whichever
//! event brought the agent there. The directory may be moved away and another put in its place.

use crate::engine::Message;
use crate::record::Source;
use coracle_api::manifest::{self, Object};
use k8s_openapi::api::core::v1::Pod;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Files of the directory that are read; others are left out with a warning.
const FILES_MAX: usize = 1000;
/// What happens to files of the directory. A link is made and never closed.
const FILES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_ATTRIB);
/// Until a file that is being written is looked at again, and at most, for as long as it stays so. Its close is an event, but the
/// kernel tells of it a moment before it counts the writer out (fs/file_table.c, `__fput`): whoever is quick sees it open still.
const BUSY: Duration = Duration::from_millis(50);
const BUSY_MAX: Duration = Duration::from_secs(30);
/// What happens to the directory itself.
const PLACE: AddWatchFlags = AddWatchFlags::IN_MOVE_SELF.union(AddWatchFlags::IN_DELETE_SELF);

/// One file as it is now.
#[derive(Clone, Debug)]
pub(crate) struct FileManifest {
    pub name: String,
    /// What is in it, or the one line that says why not.
    pub objects: Result<Vec<Object>, String>,
}

#[derive(PartialEq, Eq, Clone)]
struct Identity {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// The watched directory.
pub(crate) struct ManifestDirectory {
    path: PathBuf,
    inotify: AsyncFd<Watch>,
    /// It was moved away, and its parent is watched.
    missing: bool,
    seen: BTreeMap<String, (Identity, FileManifest)>,
    /// A file was open for writing when it was looked at.
    busy: bool,
}

struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl ManifestDirectory {
    /// Starts to watch. Must be called before the first [`ManifestDirectory::read`], so that no change is missed.
    pub(crate) fn open(path: &Path) -> io::Result<ManifestDirectory> {
        fs::create_dir_all(path)?;
        let (inotify, missing) = inotify(path)?;
        Ok(ManifestDirectory { path: path.into(), inotify, missing, busy: false, seen: BTreeMap::new() })
    }

    /// Tells the engine of each change, for ever.
    pub(crate) async fn watch(mut self, engine: mpsc::Sender<Message>) {
        let mut pause = BUSY;
        loop {
            let ready = tokio::select! {
                ready = self.inotify.readable() => Some(ready),
                () = tokio::time::sleep(pause), if self.busy => None,
            };
            // The events only say that something changed; the directory says what.
            let mut moved = self.missing;
            match ready {
                Some(Ok(mut ready)) => {
                    while let Ok(events) = ready.get_inner().0.read_events() {
                        moved |= events.iter().any(|event| event.mask.intersects(PLACE));
                    }
                    ready.clear_ready();
                    pause = BUSY;
                }
                Some(Err(error)) => {
                    tracing::error!(%error, "the manifest directory is no longer watched; restart the agent");
                    return;
                }
                None => pause = (2 * pause).min(BUSY_MAX),
            }
            if moved {
                match inotify(&self.path) {
                    Ok((inotify, missing)) => (self.inotify, self.missing) = (inotify, missing),
                    Err(error) => {
                        tracing::error!(%error, "the manifest directory is no longer watched; restart the agent");
                        return;
                    }
                }
            }
            let files = self.read();
            if engine.send(Message::Manifests(files)).await.is_err() {
                return;
            }
        }
    }

    /// The directory as it is. Blocking, briefly: names and changed files only.
    pub(crate) fn read(&mut self) -> Vec<FileManifest> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "the manifest directory cannot be read; its pods stay");
                return self.seen.values().map(|(_, file)| file.clone()).collect();
            }
        };
        let mut seen = BTreeMap::new();
        self.busy = false;
        for entry in entries.filter_map(Result::ok) {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let known = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
            if name.starts_with('.') || !known || seen.len() >= FILES_MAX {
                continue;
            }
            // stat and not lstat: a link to a manifest is a manifest.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if !metadata.is_file() {
                continue;
            }
            let identity = Identity {
                inode: metadata.ino(),
                bytes: metadata.len(),
                changed: (metadata.mtime(), metadata.mtime_nsec()),
            };
            let known = self.seen.get(&name);
            if let Some((_, file)) = known.filter(|(same, _)| *same == identity) {
                seen.insert(name, (identity, file.clone()));
            } else if let Some(objects) = read_file(&entry.path()) {
                seen.insert(name.clone(), (identity, FileManifest { name, objects }));
            } else {
                self.busy = true;
                if let Some(before) = known {
                    seen.insert(name, before.clone());
                }
            }
        }
        self.seen = seen;
        self.seen.values().map(|(_, file)| file.clone()).collect()
    }
}

/// Watches the directory; where there is none, its parent for one to come. The flag says which.
fn inotify(path: &Path) -> io::Result<(AsyncFd<Watch>, bool)> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let missing = match inotify.add_watch(path, FILES | PLACE | AddWatchFlags::IN_ONLYDIR) {
        Ok(_) => false,
        Err(Errno::ENOENT) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            inotify.add_watch(parent, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | PLACE)?;
            if path.exists() {
                return self::inotify(path);
            }
            true
        }
        Err(error) => return Err(error.into()),
    };
    Ok((coracle_runtime::readiness::watch(Watch(inotify), Interest::READABLE)?, missing))
}

/// `None` while somebody has the file open for writing: closing it is an event.
fn read_file(path: &Path) -> Option<Result<Vec<Object>, String>> {
    let bound = manifest::MANIFEST_BYTES_MAX as u64 + 1;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) => return Some(Err(error.to_string())),
    };
    if coracle_runtime::is_open_for_writing(&file) {
        return None;
    }
    let mut text = Vec::new();
    if let Err(error) = file.take(bound).read_to_end(&mut text) {
        return Some(Err(error.to_string()));
    }
    Some(manifest::objects(&text).map_err(|e| e.to_string()))
}

/// The uid of a pod that the board itself names: the same text from the same place is the same pod.
pub(crate) fn uid(pod: &Pod, source: &Source) -> String {
    let mut plain = pod.clone();
    plain.status = None;
    plain.metadata.uid = None;
    plain.metadata.creation_timestamp = None;
    let mut digest = Sha256::new();
    digest.update(format!("{source:?}\n"));
    digest.update(serde_json::to_vec(&plain).expect("a pod serializes"));
    uuid(&digest.finalize())
}

/// A uid that no pod had.
pub(crate) fn fresh_uid() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel makes uuids");
    text.trim().to_string()
}

/// 16 bytes in the form of a version 8 UUID (RFC 9562).
fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-8{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_being_written_is_looked_at_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut manifests = ManifestDirectory::open(dir.path()).expect("watched");
        let file = fs::File::create(dir.path().join("pod.yaml")).expect("made");
        assert!(manifests.read().is_empty() && manifests.busy, "somebody writes it");
        drop(file);
        assert!(manifests.read().len() == 1 && !manifests.busy, "it is whole");
    }
}
