//! Removing trees that containers made: however deep they are, with three descriptors and no recursion.
//!
//! What is in a subdirectory is moved up until nothing is deeper than one level. Nobody else may be changing the tree, and
//! nothing may be mounted in it.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Read of a directory at once.
const BUFFER_BYTES: usize = 8 << 10;
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes `path` with everything below it, without following a link. Idempotent; blocking.
///
/// # Errors
/// What the kernel refuses; calling again goes on from there.
pub fn remove(path: &Path) -> io::Result<()> {
    let top = match rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(rustix::fs::unlinkat(CWD, path, AtFlags::empty())?),
        opened => opened?,
    };
    let mut moved = 0;
    while let Some(name) = clear(&top)? {
        let below = rustix::fs::openat(&top, &name, DIRECTORY, Mode::empty())?;
        while let Some(deeper) = clear(&below)? {
            lift(&below, &deeper, &top, &mut moved)?;
        }
        rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes what is no directory, and empty directories; the first that is not empty, if there is one.
fn clear(dir: &OwnedFd) -> Result<Option<CString>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut full = None;
    let mut list = RawDir::new(dir.as_fd(), &mut buffer);
    while let Some(entry) = list.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || remove_one(dir, name)? {
            continue;
        }
        full = Some(name.to_owned());
        break;
    }
    Ok(full)
}

/// `false` for a directory that is not empty.
fn remove_one(dir: &OwnedFd, name: &CStr) -> Result<bool, Errno> {
    let removed = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        // unlink(2) of a directory: EISDIR on Linux, EPERM by POSIX, which a file that is immutable gives too.
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves a directory up, to a name that is free there.
fn lift(from: &OwnedFd, name: &CStr, to: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        let free = format!(".{moved}");
        match renameat_with(from, name, to, free.as_str(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn trees_go_however_deep_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        remove(&tree).expect("is not there");
        fs::create_dir_all(&tree).expect("made");
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "x").expect("written");
        std::os::unix::fs::symlink(&outside, tree.join("link")).expect("linked");
        // Names that are wanted for what is moved up.
        for name in [".1/a/b", ".2/a"] {
            fs::create_dir_all(tree.join(name)).expect("made");
        }
        fs::write(tree.join(".3"), "x").expect("written");
        let mut at = rustix::fs::openat(CWD, &tree, DIRECTORY, Mode::empty()).expect("opened");
        // More than a process may have descriptors, and more than a stack would take.
        for _ in 0..30_000 {
            for name in [c"a", c"z"] {
                rustix::fs::mkdirat(&at, name, Mode::RWXU).expect("made");
            }
            drop(rustix::fs::openat(&at, c"file", OFlags::CREATE, Mode::RWXU).expect("made"));
            at = rustix::fs::openat(&at, c"a", DIRECTORY, Mode::empty()).expect("opened");
        }
        remove(&tree).expect("removed");
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(outside.join("file")).expect("still there"), "x");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&outside, &link).expect("linked");
        remove(&link).expect("removed");
        assert!(outside.exists() && !link.is_symlink());
    }
}
