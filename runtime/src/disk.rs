//! What a pod's files take on the disk: blocks, as du(1) counts them.
//!
//! The trees are the containers' and hostile. Nothing is followed out of a tree: no symbolic link, no mount, no
//! directory that is moved away meanwhile. A file with several names counts once, without a list of those seen: each
//! name counts for its share. Descriptors, memory and the share of the processor are bounded; a tree that is deeper or
//! larger than any program has use for counts as endless. Reading leaves no trace, not even of when it was read.
//!
//! Left out on purpose: files without a name that are still open, which du(1) does not see either.

use crate::layout::Layout;
use coracle_pod::spec::PodSpec;
use coracle_pod::storage::{self, Usage};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// A path of `PATH_MAX` bytes names nothing that is deeper.
const DEPTH_MAX: usize = 2048;
/// Entries of one tree.
const ENTRIES_MAX: u32 = 16 << 20;
/// Directories that are kept open on the way down.
const OPEN_MAX: usize = 32;
/// Read of a directory at once.
const BUFFER_BYTES: usize = 8 << 10;
/// So many entries, and then a rest …
const ENTRIES_AT_ONCE: u32 = 1024;
/// … that is so much longer than the work was.
const REST: u32 = 4;
/// Of `stx_blocks`, whatever the file system's are.
const BLOCK_BYTES: u64 = 512;

/// Measures what limits of the pod speak of. What is not there takes nothing. Blocking, for long with many files.
///
/// # Errors
/// A tree that cannot be read.
pub fn usage(layout: &Layout, pod: &PodSpec) -> io::Result<Usage> {
    let measured = storage::measured(pod);
    let mut usage = Usage::default();
    let data = layout.pod_data(&pod.uid);
    for volume in measured.volumes {
        usage.volumes.insert(volume.into(), tree_bytes(&data.join("volumes").join(volume))?);
    }
    for container in measured.containers {
        let mut bytes = tree_bytes(&layout.logs_of(pod).join(container))?;
        // What earlier attempts wrote is there until they are removed, and is not this one's.
        let attempts = std::fs::read_dir(data.join("containers").join(container));
        let attempts =
            attempts.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        if let Some(attempt) = attempts.filter_map(|name| name.parse::<u32>().ok()).max() {
            let layer = data.join("containers").join(container).join(attempt.to_string());
            bytes = bytes.saturating_add(tree_bytes(&layer)?);
        }
        usage.containers.insert(container.into(), bytes);
    }
    Ok(usage)
}

/// A directory that is being read further up.
struct Level {
    id: Id,
    /// Where to go on reading.
    cookie: u64,
    /// Of the uppermost levels only.
    open: Option<OwnedFd>,
}

/// Which directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    device: (u32, u32),
    inode: u64,
}

impl Id {
    fn of(stat: &Statx) -> Id {
        Id { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino }
    }
}

/// Of what has this name in `dir`, or of itself; of a link, and not of what it leads to.
fn look(dir: &OwnedFd, name: &CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS)
}

/// The blocks of everything at and below `root` that lies on its mount; `u64::MAX` for an endless tree.
fn tree_bytes(root: &Path) -> io::Result<u64> {
    let mut dir = match rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(0),
        opened => opened?,
    };
    let stat = look(&dir, c"")?;
    let mut id = Id::of(&stat);
    let device = id.device;
    let mut bytes = blocks(&stat);
    let mut above: Vec<Level> = Vec::new();
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
    let (mut entries, mut since) = (0_u32, Instant::now());
    loop {
        let mut down = None;
        let mut list = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = list.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            entries += 1;
            if entries > ENTRIES_MAX {
                return Ok(u64::MAX);
            }
            if entries.is_multiple_of(ENTRIES_AT_ONCE) {
                std::thread::sleep(since.elapsed().min(Duration::from_secs(1)) * REST);
                since = Instant::now();
            }
            // Another may be removing it.
            let Ok(stat) = look(&dir, name) else { continue };
            if Id::of(&stat).device != device {
                continue;
            }
            bytes = bytes.saturating_add(blocks(&stat));
            if is_directory(&stat) {
                if above.len() >= DEPTH_MAX {
                    return Ok(u64::MAX);
                }
                if let Ok(child) = open_below(&dir, name) {
                    let id = Id::of(&look(&child, c"")?);
                    down = Some((child, id, entry.next_entry_cookie()));
                    break;
                }
            }
        }
        match down {
            Some((child, child_id, cookie)) => {
                let parent = std::mem::replace(&mut dir, child);
                let open = (above.len() < OPEN_MAX).then_some(parent);
                above.push(Level { id, cookie, open });
                id = child_id;
            }
            None => match up(&dir, &mut above)? {
                Some((parent, parent_id)) => (dir, id) = (parent, parent_id),
                None => return Ok(bytes),
            },
        }
    }
}

const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::NOATIME).union(OFlags::CLOEXEC);

/// A directory in `dir`, never through a link nor into a mount.
fn open_below(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match rustix::fs::openat2(dir, name, DIRECTORY, Mode::empty(), resolve) {
        // Before Linux 5.6, or behind a filter: the device alone tells a mount.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, name, DIRECTORY, Mode::empty()),
        opened => opened,
    }
}

/// Back to where reading was left off, one level up. A directory that was moved away leads elsewhere by now: then what is
/// left of the levels that are not open is passed over, this time.
fn up(dir: &OwnedFd, above: &mut Vec<Level>) -> io::Result<Option<(OwnedFd, Id)>> {
    let mut moved = false;
    while let Some(Level { id, cookie, open }) = above.pop() {
        let parent = match open {
            Some(parent) => parent,
            None if moved => continue,
            None => {
                let parent = rustix::fs::openat(dir, c"..", DIRECTORY, Mode::empty());
                let is_parent = |fd: &OwnedFd| look(fd, c"").is_ok_and(|stat| Id::of(&stat) == id);
                match parent.ok().filter(is_parent) {
                    Some(parent) => parent,
                    None => {
                        moved = true;
                        continue;
                    }
                }
            }
        };
        rustix::fs::seek(&parent, SeekFrom::Start(cookie))?;
        return Ok(Some((parent, id)));
    }
    Ok(None)
}

/// What this name of it counts for, rounded up.
fn blocks(stat: &Statx) -> u64 {
    let bytes = stat.stx_blocks.saturating_mul(BLOCK_BYTES);
    // A directory's links are its subdirectories.
    let names = if is_directory(stat) { 1 } else { stat.stx_nlink };
    bytes.div_ceil(names.max(1).into())
}

fn is_directory(stat: &Statx) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    const MIB: u64 = 1 << 20;

    fn file(path: &Path, bytes: u64) {
        fs::write(path, vec![1; usize::try_from(bytes).expect("small")]).expect("written");
    }

    /// What is in it, within `slack`, which directories take.
    fn check(dir: &Path, expected: u64, slack: u64) {
        let found = tree_bytes(dir).expect("measured");
        assert!((expected..=expected + slack).contains(&found), "{found} is not {expected} + {slack}");
    }

    #[test]
    fn files_count_once_and_nothing_outside_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        check(&tree, 0, 0);
        fs::create_dir_all(tree.join("below")).expect("made");
        fs::create_dir(&outside).expect("made");
        file(&outside.join("large"), 8 * MIB);
        file(&tree.join("below/file"), MIB);
        for n in 0..7 {
            fs::hard_link(tree.join("below/file"), tree.join(format!("link{n}"))).expect("linked");
        }
        symlink(&outside, tree.join("directory")).expect("linked");
        symlink(outside.join("large"), tree.join("below/large")).expect("linked");
        File::create(tree.join("sparse")).and_then(|f| f.set_len(1 << 40)).expect("made");
        nix::unistd::mkfifo(&tree.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        check(&tree, MIB, 64 << 10);
        // The tree itself as a link, and a file: neither is a tree.
        assert!(tree_bytes(&tree.join("directory")).is_err());
        assert!(tree_bytes(&tree.join("sparse")).is_err());
    }

    #[test]
    fn mounts_in_a_tree_are_not_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        for below in ["tree/tmpfs", "tree/bind", "outside"] {
            fs::create_dir_all(dir.path().join(below)).expect("made");
        }
        file(&dir.path().join("outside/large"), 4 * MIB);
        let bind = |from: &Path, to: &str, kind: Option<&str>, flags| {
            mount(Some(from), &tree.join(to), kind, flags, None::<&str>).expect("mounted");
        };
        bind(Path::new("tmpfs"), "tmpfs", Some("tmpfs"), MsFlags::empty());
        bind(&dir.path().join("outside"), "bind", None, MsFlags::MS_BIND);
        file(&tree.join("tmpfs/large"), 4 * MIB);
        let found = tree_bytes(&tree);
        for mounted in ["tmpfs", "bind"] {
            umount2(&tree.join(mounted), MntFlags::MNT_DETACH).expect("unmounted");
        }
        assert!(found.expect("measured") < MIB);
    }

    #[test]
    fn deep_trees_are_measured_with_few_descriptors_and_endless_ones_are_endless() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = rustix::fs::openat(CWD, dir.path(), DIRECTORY, Mode::empty()).expect("opened");
        let deeper = |from: &OwnedFd, levels: usize| -> OwnedFd {
            let mut at = rustix::io::dup(from).expect("copied");
            for _ in 0..levels {
                for name in [c"a", c"d", c"z"] {
                    rustix::fs::mkdirat(&at, name, Mode::RWXU).expect("made");
                }
                at = rustix::fs::openat(&at, c"d", DIRECTORY, Mode::empty()).expect("opened");
            }
            at
        };
        let bottom = deeper(&root, DEPTH_MAX - 1);
        let large = rustix::fs::openat(&bottom, c"large", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
        rustix::fs::fallocate(large.expect("made"), rustix::fs::FallocateFlags::empty(), 0, 64 * MIB)
            .expect("allocated");
        let each = u64::try_from(DEPTH_MAX).expect("small") * 3 * 4096;
        check(dir.path(), 64 * MIB, each);
        deeper(&bottom, 2);
        assert_eq!(tree_bytes(dir.path()).expect("measured"), u64::MAX);
        crate::tree::remove(&dir.path().join("d")).expect("removed");
    }

    #[test]
    fn a_directory_that_is_moved_away_does_not_lead_out_of_the_tree() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("outside/large")).expect("made");
        fs::create_dir_all(dir.path().join("tree/below")).expect("made");
        let open = |path: &str| {
            rustix::fs::openat(CWD, dir.path().join(path), DIRECTORY, Mode::empty()).expect("opened")
        };
        let (tree, below) = (open("tree"), open("tree/below"));
        let id = Id::of(&look(&tree, c"").expect("there"));
        let other = Id { inode: 0, ..id };
        fs::rename(dir.path().join("tree/below"), dir.path().join("outside/below")).expect("moved");
        let mut above = vec![
            Level { id, cookie: 0, open: Some(tree) },
            Level { id: other, cookie: 0, open: None },
            Level { id: other, cookie: 0, open: None },
        ];
        let (_, found) = up(&below, &mut above).expect("goes on").expect("with the tree");
        assert_eq!(found, id);
        assert!(above.is_empty());
    }
}
