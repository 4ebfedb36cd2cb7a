//! Where pods come from on a standalone board: the manifest directory, watched by inotify.
//!
//! Every change re-reads the directory; files that look unchanged (inode, size, time) are not parsed again. A
//! file counts once it is closed or renamed into place, so an editor's half-written file is not read.

use crate::engine::Message;
use crate::record::Source;
use coracle_api::manifest;
use k8s_openapi::api::core::v1::Pod;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Files of the directory that are read; others are left out with a warning.
const FILES_MAX: usize = 1000;

/// One file as it is now.
#[derive(Clone, Debug)]
pub(crate) struct FileManifest {
    pub name: String,
    /// The pods in it, or the one line that says why not.
    pub pods: Result<Vec<Pod>, String>,
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
    seen: BTreeMap<String, (Identity, FileManifest)>,
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
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(path, flags)?;
        let inotify = coracle_runtime::readiness::watch(Watch(inotify), Interest::READABLE)?;
        Ok(ManifestDirectory { path: path.into(), inotify, seen: BTreeMap::new() })
    }

    /// Tells the engine of each change, for ever.
    pub(crate) async fn watch(mut self, engine: mpsc::Sender<Message>) {
        loop {
            let mut ready = match self.inotify.readable().await {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "the manifest directory is no longer watched; restart the agent");
                    return;
                }
            };
            // The events only say that something changed; the directory says what.
            while ready.get_inner().0.read_events().is_ok() {}
            ready.clear_ready();
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
            let file = match self.seen.get(&name) {
                Some((same, file)) if *same == identity => file.clone(),
                _ => FileManifest { name: name.clone(), pods: read_file(&entry.path()) },
            };
            seen.insert(name, (identity, file));
        }
        self.seen = seen;
        self.seen.values().map(|(_, file)| file.clone()).collect()
    }
}

fn read_file(path: &Path) -> Result<Vec<Pod>, String> {
    let bound = manifest::MANIFEST_BYTES_MAX as u64 + 1;
    let mut text = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(bound).read_to_end(&mut text))
        .map_err(|e| e.to_string())?;
    manifest::pods(&text).map_err(|e| e.to_string())
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
