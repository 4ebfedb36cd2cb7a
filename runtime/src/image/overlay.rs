//! Stacking layers: overlayfs(5), kernel doc `filesystems/overlayfs.rst`.
//!
//! The newer mount API takes one layer at a time (`lowerdir+`, Linux 6.5) and so has no limit on their number; older
//! kernels get mount(2) with one page of options. `volatile` is not used: it would save syncs, but a container's
//! writable layer must survive a power cut as well as any other file.

use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Options that mount(2) takes: a page, with room for the rest.
const OPTIONS_BYTES_MAX: usize = 4000;

/// Mounts `lowers` (lowest first) with a writable `upper` at `target`. Blocking. Undone by [`unmount`].
///
/// # Errors
/// The kernel's; `InvalidInput` when an old kernel cannot take so many layers.
pub fn mount(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    // An image without layers still needs a lower directory: its own empty work directory's sibling.
    let empty = work.with_file_name("empty");
    let lowers = if lowers.is_empty() {
        std::fs::create_dir_all(&empty)?;
        std::slice::from_ref(&empty)
    } else {
        lowers
    };
    match by_descriptors(lowers, upper, work, target) {
        // EINVAL: no `lowerdir+` before 6.5; ENOSYS, EPERM: no new mount API, or a filter in front of it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) => {
            by_options(lowers, upper, work, target)
        }
        done => done,
    }
}

fn by_descriptors(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount};
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    for lower in lowers.iter().rev() {
        fsconfig_set_string(&context, "lowerdir+", lower)?;
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mounted, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn by_options(lowers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let mut options = OsString::from("lowerdir=");
    for (index, lower) in lowers.iter().rev().enumerate() {
        if index > 0 {
            options.push(":");
        }
        options.push(lower);
    }
    for (name, dir) in [(",upperdir=", upper), (",workdir=", work)] {
        options.push(name);
        options.push(dir);
    }
    if options.len() > OPTIONS_BYTES_MAX {
        let why = format!("{} layers are more than this kernel can stack; Linux 6.5 can", lowers.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(mount2(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_os_str()))?)
}

/// Detaches what is mounted at `target`. Idempotent.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
