//! Stacking layers: overlayfs(5), kernel doc `filesystems/overlayfs.rst`.
//!
//! mount(2) takes one page of options, on every kernel. What does not fit there goes by the newer mount API, one layer at
//! a time (`lowerdir+`, Linux 6.5): an older kernel that is asked for it refuses, and says so in its log each time, so
//! it is not asked first. `volatile` is not used: it would save syncs, but a container's
//! writable layer must survive a power cut as well as any other file.

use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
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
    match options(lowers, upper, work) {
        Some(options) => {
            Ok(mount2(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_os_str()))?)
        }
        None => by_descriptors(lowers, upper, work, target).map_err(|e| match e.raw_os_error() {
            // EINVAL: no `lowerdir+`; ENOSYS, EPERM: no new mount API, or a filter in front of it.
            Some(libc::EINVAL | libc::ENOSYS | libc::EPERM) => {
                let why =
                    format!("{} layers are more than this kernel can stack; Linux 6.5 can", lowers.len());
                io::Error::new(io::ErrorKind::InvalidInput, why)
            }
            _ => e,
        }),
    }
}

/// Whether the kernel has overlayfs, which is loaded if it is a module. Leaves nothing behind.
///
/// # Errors
/// ENODEV when it has not.
pub fn supported() -> io::Result<()> {
    match rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        // No new mount API, or a filter in front of it: mount(2) will tell.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
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

/// The options of mount(2); `None` when they do not fit, or a path has a character that means something there.
fn options(lowers: &[PathBuf], upper: &Path, work: &Path) -> Option<OsString> {
    let plain = |path: &Path| !path.as_os_str().as_bytes().iter().any(|byte| b",:\\".contains(byte));
    if !lowers.iter().map(PathBuf::as_path).chain([upper, work]).all(plain) {
        return None;
    }
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
    (options.len() <= OPTIONS_BYTES_MAX).then_some(options)
}

/// Detaches what is mounted at `target`. Idempotent.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_goes_by_options_and_the_topmost_layer_comes_first() {
        let (upper, work) = (Path::new("/u"), Path::new("/w"));
        let check = |lowers: &[&str], expected: Option<&str>| {
            let lowers: Vec<PathBuf> = lowers.iter().map(PathBuf::from).collect();
            assert_eq!(
                options(&lowers, upper, work).as_deref(),
                expected.map(std::ffi::OsStr::new),
                "{lowers:?}"
            );
        };
        check(&["/a", "/b"], Some("lowerdir=/b:/a,upperdir=/u,workdir=/w"));
        check(&["/a:b"], None);
        check(&["/a,userxattr"], None);
        let long = "/".repeat(OPTIONS_BYTES_MAX);
        check(&[&long], None);
    }
}
