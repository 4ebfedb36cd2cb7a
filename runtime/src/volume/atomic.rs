//! Files of a volume that change all at once, by the kubelet's scheme (`pkg/volume/util/atomic_writer.go`).
//!
//! ```text
//! VOLUME/..2026_01_31_09_15_00.0000000007/   the files; never changed once it has its name in ..data
//! VOLUME/..data -> ..2026_01_31_09_15_00.0000000007      replaced by rename: the one moment of change
//! VOLUME/config -> ..data/config             one link for each first component of a path
//! ```
//! Invariants: a reader that opened `..data` sees one state whole; equal files are not written again; a crash at any
//! moment leaves the old state or the new one, and what else it left goes with the next write. Containers mount the
//! volume read-only, so nobody else changes it.
//!
//! Left out on purpose: files whose names begin with two dots, which admission refuses.

use coracle_pod::payload::{File, Payload};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";
/// `SetVolumeOwnership` of a volume that containers only read.
const GROUP_FILE_BITS: u32 = 0o440;
const GROUP_DIR_BITS: u32 = 0o2550;

/// Makes `volume` hold exactly `files`. Blocking; idempotent. `true` when anything was written.
///
/// # Errors
/// The first answer of the kernel that is in the way; also for paths that lead out of the volume or through each other.
pub fn write(volume: &Path, files: &Payload, fs_group: Option<u32>) -> io::Result<bool> {
    if let Some(path) = files.keys().find(|path| !is_plain(path)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} leads out of the volume")));
    }
    let current = match fs::read_link(volume.join(DATA)) {
        Ok(target) => Some(target),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let same = match &current {
        Some(target) => holds(&volume.join(target), files, fs_group)?,
        None => false,
    };
    if !same {
        let name = fresh_name(volume)?;
        write_all(&volume.join(&name), files, fs_group)?;
        let next = volume.join(DATA_NEXT);
        remove_file(&next)?;
        symlink(&name, &next)?;
        fs::rename(&next, volume.join(DATA))?;
    }
    let links = link_all(volume, files)?;
    sweep(volume, &links)?;
    Ok(!same)
}

/// Relative, downwards, and not of the names that this scheme uses itself.
fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with("..")
        && !path.contains('\0')
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a state is the wanted one: every file with its bytes, mode and owner, and no other.
fn holds(state: &Path, files: &Payload, fs_group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let mut open = vec![state.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.is_dir() {
                open.push(path);
                continue;
            }
            let relative = path.strip_prefix(state).expect("below the directory that was read");
            let Some((name, wanted)) = relative.to_str().and_then(|name| files.get_key_value(name)) else {
                return Ok(false);
            };
            if !is_same(&path, wanted, fs_group)? {
                return Ok(false);
            }
            found.insert(name);
        }
    }
    // Names are written in one way only: `a//b` and `a/b` are the same file.
    let plain: BTreeSet<String> = files.keys().map(|path| normal(path)).collect();
    Ok(found.len() == plain.len() && files.len() == plain.len())
}

fn normal(path: &str) -> String {
    Path::new(path).components().collect::<std::path::PathBuf>().to_string_lossy().into_owned()
}

fn is_same(path: &Path, wanted: &File, fs_group: Option<u32>) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    let as_wanted = metadata.is_file()
        && metadata.mode() & 0o7777 == mode_of(wanted, fs_group)
        && metadata.uid() == wanted.owner.unwrap_or(0)
        && fs_group.is_none_or(|group| metadata.gid() == group)
        && metadata.len() == wanted.data.len() as u64;
    if !as_wanted {
        return Ok(false);
    }
    let mut bytes = Vec::with_capacity(wanted.data.len());
    fs::File::open(path)?.take(metadata.len()).read_to_end(&mut bytes)?;
    Ok(bytes == wanted.data)
}

fn mode_of(file: &File, fs_group: Option<u32>) -> u32 {
    file.mode | if fs_group.is_some() { GROUP_FILE_BITS } else { 0 }
}

/// A directory name that is not taken. The kubelet's form, which tools know; the time in it is only a hint.
fn fresh_name(volume: &Path) -> io::Result<String> {
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    for number in 0..u32::MAX {
        let name = format!("..{now}.{number:010}");
        match fs::create_dir(volume.join(&name)) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn write_all(state: &Path, files: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    own_directory(state, fs_group)?;
    for (path, file) in files {
        let mut dir = state.to_path_buf();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => own_directory(&dir, fs_group)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        let target = state.join(path);
        // Nobody else may read it before it has its owner and mode.
        let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        open.write_all(&file.data)?;
        if file.owner.is_some() || fs_group.is_some() {
            chown(&target, file.owner, fs_group)?;
        }
        // After chown(2), which takes set-id bits away, and past the umask.
        open.set_permissions(Permissions::from_mode(mode_of(file, fs_group)))?;
    }
    Ok(())
}

fn own_directory(dir: &Path, fs_group: Option<u32>) -> io::Result<()> {
    chown(dir, None, fs_group)?;
    let more = if fs_group.is_some() { GROUP_DIR_BITS } else { 0 };
    fs::set_permissions(dir, Permissions::from_mode(0o755 | more))
}

/// Links to the first component of each path; those that should be there.
fn link_all(volume: &Path, files: &Payload) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in files.keys() {
        let Some(Component::Normal(first)) = Path::new(path).components().next() else { continue };
        let name = first.to_string_lossy().into_owned();
        if names.insert(name.clone()) {
            let target = Path::new(DATA).join(&name);
            match symlink(&target, volume.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
    }
    Ok(names)
}

/// Removes links to what is no longer there, former states, and what a crash left.
fn sweep(volume: &Path, links: &BTreeSet<String>) -> io::Result<()> {
    let current = fs::read_link(volume.join(DATA))?;
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let kept =
            name == DATA || name == current.as_os_str() || name.to_str().is_some_and(|n| links.contains(n));
        if kept {
            continue;
        }
        if entry.file_type()?.is_dir() {
            // A container that mounts a file of it by subPath keeps that file; the directory goes.
            fs::remove_dir_all(entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str, u32)]) -> Payload {
        let file = |(path, data, mode): &(&str, &str, u32)| {
            ((*path).to_string(), File { data: data.as_bytes().to_vec(), mode: *mode, owner: None })
        };
        list.iter().map(file).collect()
    }

    /// What a user sees: names, without the scheme's own.
    fn seen(volume: &Path) -> Vec<String> {
        let names = fs::read_dir(volume).expect("read").map(|e| e.expect("read").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        assert_eq!(names.iter().filter(|name| name.starts_with("..2")).count(), 1, "one state: {names:?}");
        names.retain(|name| !name.starts_with("..2"));
        names
    }

    #[test]
    fn files_change_all_at_once_and_only_when_they_differ() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path();
        let one = files(&[("a", "1", 0o644), ("deep/b", "2", 0o400), ("deep/c", "3", 0o644)]);
        assert!(write(volume, &one, None).expect("written"));
        assert_eq!(seen(volume), ["..data", "a", "deep"]);
        assert_eq!(fs::read_to_string(volume.join("deep/b")).expect("read"), "2");
        assert_eq!(fs::metadata(volume.join("deep/b")).expect("there").mode() & 0o7777, 0o400);
        let state = fs::read_link(volume.join("..data")).expect("a link");
        assert!(!write(volume, &one, None).expect("equal"));
        assert_eq!(fs::read_link(volume.join("..data")).expect("a link"), state, "not touched");
        // Whoever holds the old state open goes on reading it.
        let held = fs::File::open(volume.join("a")).expect("open");
        let two = files(&[("a", "one", 0o644), ("e", "5", 0o644)]);
        assert!(write(volume, &two, None).expect("written"));
        assert_eq!(seen(volume), ["..data", "a", "e"]);
        assert_eq!(fs::read_to_string(volume.join("a")).expect("read"), "one");
        let mut old = String::new();
        { held }.read_to_string(&mut old).expect("read");
        assert_eq!(old, "1");
        for changed in
            [files(&[("a", "one", 0o600), ("e", "5", 0o644)]), files(&[("a", "one", 0o600)]), files(&[])]
        {
            assert!(write(volume, &changed, None).expect("written"), "{changed:?}");
            assert!(!write(volume, &changed, None).expect("equal"), "{changed:?}");
        }
        assert_eq!(seen(volume), ["..data"]);
    }

    #[test]
    fn a_crash_at_any_moment_is_mended_by_the_next_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path();
        let one = files(&[("a", "1", 0o644)]);
        // Before anything had its name, before the rename, and before the links.
        fs::create_dir_all(volume.join("..2020_01_01_00_00_00.0000000001/half")).expect("made");
        symlink("..2020_01_01_00_00_00.0000000001", volume.join(DATA_NEXT)).expect("linked");
        symlink("..data/gone", volume.join("gone")).expect("linked");
        assert!(write(volume, &one, None).expect("written"));
        assert_eq!(seen(volume), ["..data", "a"]);
        fs::remove_file(volume.join("a")).expect("removed");
        assert!(!write(volume, &one, None).expect("linked again"));
        assert_eq!(seen(volume), ["..data", "a"]);
        // `..data` leads nowhere.
        fs::remove_dir_all(volume.join(fs::read_link(volume.join(DATA)).expect("a link"))).expect("removed");
        assert!(write(volume, &one, None).expect("written"));
        assert_eq!(fs::read_to_string(volume.join("a")).expect("read"), "1");
    }

    #[test]
    fn no_file_lies_outside_the_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).expect("made");
        for path in ["", ".", "..", "../out", "/out", "a/../../out", "..data", "..data/x", "a\0b", "a/./../b"]
        {
            assert!(write(&volume, &files(&[(path, "x", 0o644)]), None).is_err(), "{path:?}");
        }
        assert!(
            write(&volume, &files(&[("a", "1", 0o644), ("a/b", "2", 0o644)]), None).is_err(),
            "a file is no directory"
        );
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
        assert!(!Path::new("/out").exists());
    }

    #[test]
    fn a_groups_files_are_readable_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut wanted = files(&[("d/token", "t", 0o600)]);
        wanted.get_mut("d/token").expect("there").owner = Some(1000);
        assert!(write(dir.path(), &wanted, Some(2000)).expect("written"));
        let check = |path: &str, expected: (u32, u32, u32)| {
            let found = fs::metadata(dir.path().join(path)).expect("there");
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), expected, "{path}");
        };
        check("d/token", (0o640, 1000, 2000));
        check("d", (0o2755, 0, 2000));
        check("..data", (0o2755, 0, 2000));
        assert!(!write(dir.path(), &wanted, Some(2000)).expect("equal"));
    }
}
