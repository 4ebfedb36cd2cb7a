//! Volumes of one pod on this board: `emptyDir`, `hostPath`, and those whose files the board writes ([`atomic`]).
//!
//! The latter lie in a tmpfs each, whatever they hold: a secret never reaches the flash, and a change costs it nothing.
//! Every volume ends as one directory or file on the host that is then bind-mounted into containers. What is
//! made here is undone by [`remove_all`]; both are idempotent. A `hostPath` is the owner's: it is checked, made
//! where its type says so, and never removed.

mod atomic;

use crate::layout::Layout;
use coracle_pod::payload::{PAYLOAD_BYTES_MAX, Payload};
use coracle_pod::spec::{HostPathType, Medium, PodSpec, PodUid, Volume, VolumeSource};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A volume that cannot be had; the text follows the kubelet's `MountVolume.SetUp failed` wording.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A `hostPath` is missing or not what its type asks for.
    #[error(
        "MountVolume.SetUp failed for volume \"{volume}\" : hostPath type check failed: {path} is not {wanted}"
    )]
    WrongType {
        /// `spec.volumes[].name`.
        volume: String,
        /// `hostPath.path`.
        path: String,
        /// What the type asks for: `a directory`.
        wanted: &'static str,
    },
    /// The kernel or the disk refused.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {path}: {source}", path = path.display())]
    Io {
        /// `spec.volumes[].name`.
        volume: String,
        /// What was being made.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What the volumes hold whose files the board writes, by the volume's name.
pub type Payloads = BTreeMap<String, Payload>;

/// Makes every volume of `pod` and returns nothing: [`host_path`] tells where each one is. Blocking; idempotent.
pub fn set_up(layout: &Layout, pod: &PodSpec, payloads: &Payloads) -> Result<(), VolumeError> {
    for volume in &pod.volumes {
        let path = host_path(layout, &pod.uid, volume);
        let failed = |source| VolumeError::Io { volume: volume.name.clone(), path: path.clone(), source };
        match &volume.source {
            VolumeSource::EmptyDir { medium, size_limit_bytes } => {
                fs::create_dir_all(&path).map_err(failed)?;
                if *medium == Medium::Memory && !is_mount_point(&path).map_err(failed)? {
                    mount_tmpfs(&path, tmpfs_bytes(pod, *size_limit_bytes)).map_err(failed)?;
                }
                own_empty_dir(&path, pod.security.fs_group).map_err(failed)?;
            }
            VolumeSource::HostPath { kind, .. } => check_host_path(&volume.name, &path, *kind)?,
            VolumeSource::Projected(_) => {
                fs::create_dir_all(&path).map_err(failed)?;
                if !is_mount_point(&path).map_err(failed)? {
                    // Two states at once, for the moment of the change, and what directories take.
                    mount_tmpfs(&path, Some(3 * PAYLOAD_BYTES_MAX as u64)).map_err(failed)?;
                }
                own_empty_dir(&path, pod.security.fs_group).map_err(failed)?;
            }
        }
    }
    write(layout, pod, payloads)
}

/// Writes what has changed in volumes that the board writes. They were set up. Blocking; idempotent.
pub fn write(layout: &Layout, pod: &PodSpec, payloads: &Payloads) -> Result<(), VolumeError> {
    for volume in &pod.volumes {
        let Some(files) = payloads.get(&volume.name) else { continue };
        let path = host_path(layout, &pod.uid, volume);
        let failed = |source| VolumeError::Io { volume: volume.name.clone(), path: path.clone(), source };
        // Without its tmpfs (a reboot in between) nothing may be written in its place, on flash.
        if !is_mount_point(&path).map_err(failed)? {
            return Err(failed(io::Error::other("its tmpfs is not mounted")));
        }
        let written = atomic::write(&path, files, pod.security.fs_group).map_err(failed)?;
        tracing::debug!(uid = pod.uid.0, volume = volume.name, written, "files of a volume are as wanted");
    }
    Ok(())
}

/// Whether containers may only read it, whatever their mounts say.
pub fn is_read_only(volume: &Volume) -> bool {
    matches!(volume.source, VolumeSource::Projected(_))
}

/// Where `volume` lies on the host.
pub fn host_path(layout: &Layout, uid: &PodUid, volume: &Volume) -> PathBuf {
    match &volume.source {
        VolumeSource::EmptyDir { .. } | VolumeSource::Projected(_) => {
            layout.pod_data(uid).join("volumes").join(&volume.name)
        }
        VolumeSource::HostPath { path, .. } => path.into(),
    }
}

/// Unmounts every tmpfs volume of a pod and removes the volumes' directory. Idempotent; blocking.
///
/// # Errors
/// The first thing that could not be removed; calling again goes on from there.
pub fn remove_all(layout: &Layout, uid: &PodUid) -> io::Result<()> {
    let volumes = layout.pod_data(uid).join("volumes");
    let entries = match fs::read_dir(&volumes) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        while is_mount_point(&path)? {
            umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
        }
    }
    crate::tree::remove(&volumes)
}

/// Whether `path` itself is the root of a mount: its device differs from its parent's.
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let here = fs::symlink_metadata(path)?;
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(here.is_dir() && here.dev() != fs::symlink_metadata(parent)?.dev())
}

/// Never more than the pod may have of memory: what lies there counts as memory of the pod. Without either limit, the
/// kernel's default: half of the board's.
fn tmpfs_bytes(pod: &PodSpec, size_limit_bytes: Option<u64>) -> Option<u64> {
    [size_limit_bytes, pod.resources.memory_limit_bytes].into_iter().flatten().min()
}

fn mount_tmpfs(path: &Path, size_limit_bytes: Option<u64>) -> io::Result<()> {
    let options = match size_limit_bytes {
        Some(bytes) => format!("mode=0777,size={bytes}"),
        None => "mode=0777".into(),
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// World-writable as the kubelet makes it; with an `fsGroup`, group-owned and setgid.
fn own_empty_dir(path: &Path, fs_group: Option<u32>) -> io::Result<()> {
    let mode = match fs_group {
        Some(group) => {
            chown(path, None, Some(group))?;
            0o2777
        }
        None => 0o777,
    };
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn check_host_path(volume: &str, path: &Path, kind: HostPathType) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Io { volume: volume.into(), path: path.into(), source };
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(e)),
    };
    let (wanted, fits) = match kind {
        HostPathType::Unset => {
            if found.is_none() {
                fs::create_dir_all(path).map_err(failed)?;
            }
            ("anything", true)
        }
        HostPathType::DirectoryOrCreate if found.is_none() => {
            fs::create_dir_all(path).map_err(failed)?;
            fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed)?;
            ("a directory", true)
        }
        HostPathType::FileOrCreate if found.is_none() => {
            fs::File::options().create_new(true).write(true).open(path).map_err(failed)?;
            fs::set_permissions(path, Permissions::from_mode(0o644)).map_err(failed)?;
            ("a file", true)
        }
        HostPathType::Directory | HostPathType::DirectoryOrCreate => {
            ("a directory", found.is_some_and(|t| t.is_dir()))
        }
        HostPathType::File | HostPathType::FileOrCreate => ("a file", found.is_some_and(|t| t.is_file())),
        HostPathType::Socket => ("a socket", found.is_some_and(|t| t.is_socket())),
        HostPathType::CharDevice => ("a character device", found.is_some_and(|t| t.is_char_device())),
        HostPathType::BlockDevice => ("a block device", found.is_some_and(|t| t.is_block_device())),
    };
    if fits {
        Ok(())
    } else {
        Err(VolumeError::WrongType { volume: volume.into(), path: path.display().to_string(), wanted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_types_are_checked_and_created_as_the_kubelet_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let check = |path: &str, kind, expected: Result<(), &str>| {
            let found = check_host_path("v", &dir.path().join(path), kind).map_err(|e| e.to_string());
            match (found, expected) {
                (Ok(()), Ok(())) => {}
                (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
                other => panic!("{path} {kind:?}: {other:?}"),
            }
        };
        check("file", HostPathType::File, Ok(()));
        check("file", HostPathType::Unset, Ok(()));
        check("file", HostPathType::Directory, Err("is not a directory"));
        check("none", HostPathType::Directory, Err("is not a directory"));
        check("none", HostPathType::Socket, Err("is not a socket"));
        check("made/deep", HostPathType::DirectoryOrCreate, Ok(()));
        check("made/deep", HostPathType::Directory, Ok(()));
        check("made/file", HostPathType::FileOrCreate, Ok(()));
        check("made/file", HostPathType::CharDevice, Err("is not a character device"));
        check("file/below", HostPathType::DirectoryOrCreate, Err("Not a directory"));
    }
}
