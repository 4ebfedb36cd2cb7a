//! One container, from image to bundle and back: everything about it that is not a process.
//!
//! ```text
//! RUN/pods/UID/NAME.ATTEMPT/{rootfs, config.json, seccomp.bpf, subpath/N, about.json}
//! DATA/pods/UID/containers/NAME/ATTEMPT/{upper, work, termination-log}
//! ```
//! [`prepare`] makes it, [`remove`] is its reverse; both are idempotent and blocking. A failed [`prepare`] leaves
//! what it made to [`remove`], which the caller then calls.

use crate::image::{Image, overlay};
use crate::layout::{Layout, instance_name};
use crate::oci::{self, Bind, Device};
use crate::process::{self, Identity, ProcessError};
use crate::rt::FILTER;
use crate::rt::exec::start_ticks;
use crate::{sandbox, volume};
use coracle_pod::downward::PodFacts;
use coracle_pod::environment::variables;
use coracle_pod::objects::Objects;
use coracle_pod::observed::{InstanceId, Reason};
use coracle_pod::spec::{ContainerSpec, PodSpec, PodUid};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a container could not be prepared, with the kubelet's reason.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PrepareError {
    /// `CreateContainerConfigError` or `CreateContainerError`.
    pub reason: Reason,
    /// One line.
    pub message: String,
}

impl From<ProcessError> for PrepareError {
    fn from(error: ProcessError) -> PrepareError {
        PrepareError { reason: Reason::CreateContainerConfigError, message: error.to_string() }
    }
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> PrepareError + 'a {
    move |source| PrepareError {
        reason: Reason::CreateContainerError,
        message: format!("{what} {}: {source}", path.display()),
    }
}

/// What is told of an instance for as long as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// `coracle://` and 64 hexadecimal digits.
    pub container_id: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// What the image wants to be stopped with, when that is not SIGTERM.
    #[serde(default)]
    pub stop_signal: Option<i32>,
}

/// What [`prepare`] needs beside the pod.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Directories.
    pub layout: &'a Layout,
    /// The image, unpacked.
    pub image: &'a Image,
    /// For `fieldRef`.
    pub facts: &'a PodFacts,
    /// For variables of ConfigMaps and Secrets.
    pub objects: &'a Objects,
    /// The process whose pid namespace it joins: its pid, and field 22 of its `/proc/PID/stat`.
    pub target: Option<(i32, u64)>,
    /// `HOSTNAME`, unless image or pod set another.
    pub hostname: &'a str,
    /// Its cgroup.
    pub cgroup_path: String,
    /// Capabilities that the agent itself holds.
    pub available_capabilities: u64,
    /// `oom_score_adj` for it, if it may be set.
    pub oom_score_adj: Option<i32>,
    /// `pids.max`.
    pub pids_max: u64,
    /// On cgroup v2?
    pub cgroup2: bool,
    /// Where it sees the hierarchies.
    pub cgroup_views: Vec<String>,
    /// The compiled filter for it, if it is to have one.
    pub filter: Option<&'a Path>,
}

/// Mounts the root, resolves process and mounts, and writes the bundle. Blocking.
pub fn prepare(
    pod: &PodSpec,
    container: &ContainerSpec,
    instance: &InstanceId,
    around: &Surroundings<'_>,
) -> Result<About, PrepareError> {
    let layout = around.layout;
    let bundle = layout.bundle(&pod.uid, instance);
    let rootfs = bundle.join("rootfs");
    let writable = layout.writable(&pod.uid, instance);
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for dir in [&rootfs, &upper, &work] {
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
    }
    overlay::mount(&around.image.layers, &upper, &work, &rootfs).map_err(|e| PrepareError {
        reason: Reason::CreateContainerError,
        message: format!("mount the root file system: {e}"),
    })?;
    let config = around.image.config.config().clone().unwrap_or_default();
    let (own, known) = variables(pod, container, around.objects, around.facts).map_err(ProcessError::from)?;
    let identity = process::identity(pod, container, &config, &rootfs)?;
    let args = process::arguments(container, &config, &known)?;
    let cwd = container.working_dir.clone().or_else(|| config.working_dir().clone()).unwrap_or_default();
    make_inside(&rootfs, &cwd, &identity).map_err(failed("create the working directory in", &rootfs))?;
    let log = writable.join("termination-log");
    File::create(&log).map_err(failed("create", &log))?;
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).map_err(failed("open to all", &log))?;
    if let Some(filter) = around.filter {
        let link = bundle.join(FILTER);
        fs::hard_link(filter, &link).map_err(failed("link", &link))?;
    }
    let binds = binds(layout, pod, container, instance, &log)?;
    for bind in &binds {
        clear_way(&rootfs, &bind.destination).map_err(failed("make way for a mount in", &rootfs))?;
    }
    let shared_pid = match around.target {
        _ if pod.share_process_namespace => Some(layout.pod_run(&pod.uid).join("pid")),
        Some(process) => Some(hold_pid_namespace(process, &bundle.join("target-pid"))?),
        None => None,
    };
    let namespace = |name| sandbox::namespace(layout, pod, name);
    let spec = oci::spec(&oci::Input {
        pod,
        container,
        args,
        env: process::environment(&config, &own, around.hostname, &identity, container.tty),
        image_working_dir: config.working_dir().clone(),
        identity,
        capabilities: oci::capabilities(container, around.available_capabilities),
        filtered: around.filter.is_some(),
        rootfs,
        cgroup_path: around.cgroup_path.clone(),
        net: namespace("net"),
        ipc: namespace("ipc"),
        uts: namespace("uts"),
        shared_pid,
        binds,
        devices: if container.security.privileged { host_devices(Path::new("/dev")) } else { Vec::new() },
        oom_score_adj: around.oom_score_adj,
        pids_max: around.pids_max,
        cgroup2: around.cgroup2,
        cgroup_views: around.cgroup_views.clone(),
    });
    let about = About {
        container_id: container_id(&pod.uid, instance),
        image_id: around.image.id.clone(),
        stop_signal: config.stop_signal().as_deref().and_then(process::signal_number),
    };
    let text = |value: Result<Vec<u8>, serde_json::Error>| value.expect("maps with string keys serialize");
    for (name, bytes) in
        [("config.json", text(serde_json::to_vec(&spec))), ("about.json", text(serde_json::to_vec(&about)))]
    {
        let path = bundle.join(name);
        fs::write(&path, bytes).map_err(failed("write", &path))?;
    }
    Ok(about)
}

/// Pins the pid namespace of a process by a bind mount, and only then makes sure that the process is still the one that
/// was meant: a pid may be another's by now.
fn hold_pid_namespace((pid, ticks): (i32, u64), file: &Path) -> Result<PathBuf, PrepareError> {
    File::create(file).map_err(failed("create", file))?;
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/pid"));
    let held = mount(Some(&namespace), file, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    held.map_err(io::Error::from).map_err(failed("hold the pid namespace of the target at", file))?;
    if start_ticks(pid) != Some(ticks) {
        return Err(failed("hold the pid namespace of the target at", file)(io::ErrorKind::NotFound.into()));
    }
    Ok(file.into())
}

/// Unmounts and removes the bundle, libcontainer's state and the writable layer. Idempotent; blocking.
pub fn remove(layout: &Layout, uid: &PodUid, instance: &InstanceId) -> Result<(), sandbox::SandboxError> {
    let bundle = layout.bundle(uid, instance);
    sandbox::unmount_below(&bundle)?;
    let state = layout.state(uid).join(instance_name(instance));
    for dir in [bundle, state, layout.writable(uid, instance)] {
        sandbox::remove_dir(&dir)?;
    }
    Ok(())
}

/// What was written about an instance when it was prepared; `None` when it is gone or unreadable.
pub fn about(layout: &Layout, uid: &PodUid, instance: &InstanceId) -> Option<About> {
    let bytes = fs::read(layout.bundle(uid, instance).join("about.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Stable over restarts of the agent: a digest of pod and instance.
pub fn container_id(uid: &PodUid, instance: &InstanceId) -> String {
    let digest = Sha256::digest(format!("{}/{}", uid.0, instance_name(instance)));
    let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("coracle://{hex}")
}

fn binds(
    layout: &Layout,
    pod: &PodSpec,
    container: &ContainerSpec,
    instance: &InstanceId,
    termination_log: &Path,
) -> Result<Vec<Bind>, PrepareError> {
    let run = layout.pod_run(&pod.uid);
    let bind = |source: PathBuf, destination: &str| Bind {
        source,
        destination: destination.into(),
        read_only: false,
    };
    let mut list = vec![bind(run.join("shm"), "/dev/shm")];
    let covered = |path: &str| container.mounts.iter().any(|m| m.mount_path == path);
    for name in ["hosts", "resolv.conf", "hostname"] {
        let destination = format!("/etc/{name}");
        if !covered(&destination) {
            let read_only = container.security.read_only_root;
            list.push(Bind { read_only, ..bind(run.join("etc").join(name), &destination) });
        }
    }
    list.push(bind(termination_log.into(), &container.termination_message_path));
    for (number, mount) in container.mounts.iter().enumerate() {
        let volume = pod.volumes.iter().find(|v| v.name == mount.volume);
        let volume = volume.expect("admission checked that each mount names a volume");
        if let ["" | "proc"] = mount.mount_path.trim_matches('/').split('/').collect::<Vec<_>>()[..] {
            let (volume, path) = (&mount.volume, &mount.mount_path);
            return Err(PrepareError {
                reason: Reason::CreateContainerError,
                message: format!(
                    "volume {volume:?} cannot be mounted at {path}: a container needs its own there"
                ),
            });
        }
        let mut source = volume::host_path(layout, &pod.uid, volume);
        if let Some(sub_path) = &mount.sub_path {
            let target = layout.bundle(&pod.uid, instance).join("subpath").join(number.to_string());
            hold_sub_path(&source, sub_path, &target).map_err(|e| PrepareError {
                reason: Reason::CreateContainerConfigError,
                message: format!("failed to prepare subPath {sub_path:?} of volume {:?}: {e}", mount.volume),
            })?;
            source = target;
        }
        let read_only = mount.read_only || volume::is_read_only(volume);
        list.push(Bind { source, destination: mount.mount_path.clone(), read_only });
    }
    // Parents before children, whatever order the manifest has: a volume at /etc does not hide our /etc/hosts. Of two
    // at one place the volume is the later, and so on top.
    list.sort_by_key(|bind| depth(&bind.destination));
    Ok(list)
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|p| !p.is_empty()).count()
}

/// Resolves `sub_path` inside the volume, where a container may have planted links, and pins what it found by a
/// bind mount of the open descriptor: what is checked is what is mounted (CVE-2017-1002101, CVE-2021-25741).
fn hold_sub_path(volume: &Path, sub_path: &str, target: &Path) -> io::Result<()> {
    let found = open_beneath(volume, sub_path)?;
    let pinned = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if fs::metadata(&pinned)?.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        File::create(target)?;
    }
    Ok(mount(Some(&pinned), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

/// Opens a path that may not leave `root`, making missing directories on the way. As the kubelet has it they get the
/// mode of the volume's own directory: whoever may write to the volume may write to them.
fn open_beneath(root: &Path, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = File::open(root)?;
    let mode = Mode::from_bits_truncate(root.metadata()?.mode() & 0o7777);
    let root = OwnedFd::from(root);
    let mut done = PathBuf::new();
    let mut here = openat2(&root, ".", how)?;
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        done.push(part);
        // From the volume's root each time: a link may point anywhere within it.
        here = match openat2(&root, &done, how) {
            Err(nix::errno::Errno::ENOENT) => {
                mkdirat(&here, part, mode)?;
                // Past the umask, and by descriptor: the name may be another's by now.
                let readable = how.flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
                fchmod(openat2(&here, part, readable)?, mode)?;
                openat2(&root, &done, how)?
            }
            found => found?,
        };
    }
    Ok(here)
}

/// Removes a link to nowhere on the way to a mount's destination. libcontainer makes missing directories and files but
/// does not go through such a link, and images have them: `/etc/resolv.conf` to systemd's in `/run`. What lies beyond
/// would be covered by the mount anyway.
fn clear_way(root: &Path, destination: &str) -> io::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = File::open(root)?;
    let mut done = PathBuf::from("/");
    for part in destination.split('/').filter(|p| !p.is_empty() && *p != ".") {
        let parent = openat2(&root, &done, how)?;
        done.push(part);
        match openat2(&root, &done, how) {
            Ok(_) => {}
            Err(nix::errno::Errno::ENOENT) => {
                let name = readlinkat(&parent, part);
                return if name.is_ok() {
                    Ok(unlinkat(&parent, part, UnlinkatFlags::NoRemoveDir)?)
                } else {
                    Ok(())
                };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes the working directory inside the container's root, as runc does; links are followed inside only.
fn make_inside(root: &Path, path: &str, identity: &Identity) -> io::Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = File::open(root)?;
    let mut done = PathBuf::from("/");
    for part in path.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..") {
        let parent = openat2(&root, &done, how)?;
        done.push(part);
        match openat2(&root, &done, how) {
            Err(nix::errno::Errno::ENOENT) => {
                mkdirat(&parent, part, Mode::from_bits_truncate(0o755))?;
                let uid = Some(nix::unistd::Uid::from_raw(identity.uid));
                let gid = Some(nix::unistd::Gid::from_raw(identity.gid));
                nix::unistd::fchownat(&parent, part, uid, gid, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            found => {
                found?;
            }
        }
    }
    Ok(())
}

/// Device nodes looked at below `/dev`.
const DEVICES_MAX: usize = 1024;

/// Every device node below `dir`, as containerd gives them to a privileged container.
fn host_devices(dir: &Path) -> Vec<Device> {
    const SKIPPED: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", ".udev"];
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries.filter_map(Result::ok) {
        // A node that goes away while it is looked at is a node that is not there.
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let kind = metadata.file_type();
        if metadata.is_dir() && !SKIPPED.contains(&entry.file_name().to_string_lossy().as_ref()) {
            found.extend(host_devices(&path));
        } else if (kind.is_char_device() || kind.is_block_device()) && entry.file_name() != "console" {
            let number = metadata.rdev();
            found.push(Device {
                path: path.to_string_lossy().into_owned(),
                kind: if kind.is_char_device() { 'c' } else { 'b' },
                major: nix::sys::stat::major(number),
                minor: nix::sys::stat::minor(number),
                mode: metadata.mode() & 0o777,
                uid: metadata.uid(),
                gid: metadata.gid(),
            });
        }
        if found.len() >= DEVICES_MAX {
            break;
        }
    }
    found
}

/// The kubelet's `oom_score_adj` by QoS class (pkg/kubelet/qos/policy.go).
pub fn oom_score_adj(pod: &PodSpec, container: &ContainerSpec, memory_bytes_total: u64) -> i32 {
    use coracle_pod::spec::QosClass;
    match pod.qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = container.resources.memory_request_bytes.unwrap_or(0);
            let share = u128::from(request) * 1000 / u128::from(memory_bytes_total.max(1));
            (1000 - i32::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_never_leaves_its_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("inside")).expect("made");
        fs::write(dir.path().join("secret"), "s").expect("written");
        std::os::unix::fs::symlink("../secret", volume.join("escape")).expect("linked");
        std::os::unix::fs::symlink("/etc", volume.join("absolute")).expect("linked");
        std::os::unix::fs::symlink("inside", volume.join("harmless")).expect("linked");
        let check =
            |path: &str, expected: bool| assert_eq!(open_beneath(&volume, path).is_ok(), expected, "{path}");
        check("inside", true);
        check("made/on/the/way", true);
        check("escape", false);
        check("absolute", false);
        check("absolute/passwd", false);
        check("../secret", false);
        check("inside/../../secret", false);
        check("harmless", true);
    }

    /// Guards against a container without root that could not write to the directory its `subPath` had made.
    #[test]
    fn directories_of_a_sub_path_are_as_open_as_their_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).expect("made");
        std::os::unix::fs::chown(&volume, None, Some(6000)).expect("given");
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o2777)).expect("opened");
        open_beneath(&volume, "made/here").expect("made");
        for path in ["made", "made/here"] {
            let found = fs::metadata(volume.join(path)).expect("there");
            assert_eq!((found.mode() & 0o7777, found.gid()), (0o2777, 6000), "{path}");
        }
    }

    /// Guards against images whose `/etc/resolv.conf` is a link into a `/run` that no container has.
    #[test]
    fn only_links_to_nowhere_are_cleared_out_of_the_way_of_a_mount() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc/real")).expect("made");
        fs::write(dir.path().join("outside"), "o").expect("written");
        for (link, target) in [
            ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
            ("etc/hosts", "../../outside"),
            ("etc/loop", "loop"),
            ("etc/alias", "/etc/real"),
            ("mnt", "/nowhere"),
        ] {
            symlink(target, root.join(link)).expect("linked");
        }
        let check = |destination: &str, link: &str, stays: bool| {
            clear_way(&root, destination).expect("clear");
            assert_eq!(root.join(link).symlink_metadata().is_ok(), stays, "{destination}");
        };
        check("/etc/resolv.conf", "etc/resolv.conf", false);
        check("/etc/hosts", "etc/hosts", false);
        check("/mnt/deep/below", "mnt", false);
        check("/etc/alias/below", "etc/alias", true);
        check("etc/real", "etc/real", true);
        assert!(clear_way(&root, "/etc/loop").is_err(), "a loop is an error of the image");
        assert!(dir.path().join("outside").exists());
    }

    #[test]
    fn a_working_directory_is_made_inside_the_root_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(&root).expect("made");
        std::os::unix::fs::symlink("/elsewhere", root.join("link")).expect("linked");
        let owner = Identity::default();
        make_inside(&root, "/a/b/../c", &owner).expect("made");
        assert!(root.join("a/b/c").is_dir());
        fs::create_dir(root.join("elsewhere")).expect("made");
        make_inside(&root, "/link/x", &owner).expect("made");
        assert!(root.join("elsewhere/x").is_dir() && !Path::new("/elsewhere").exists());
    }
}
