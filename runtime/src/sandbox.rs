//! A pod's namespaces, held by files.
//!
//! ```text
//! RUN/pods/UID/{net,ipc,uts}   nsfs bind mounts: a namespace lives as long as its file, with no process in it
//! RUN/pods/UID/shm             tmpfs that the pod's containers share as /dev/shm
//! RUN/pods/UID/etc/…           hosts, resolv.conf, hostname: a small tmpfs of their own, since containers may write to them
//! ```
//! [`create`] is undone by [`remove`]; both are idempotent. The network inside `net` is `crate::net`'s.

use crate::layout::Layout;
use crate::names::{self, HostNames};
use crate::volume::is_mount_point;
use coracle_pod::spec::{PodSpec, PodUid};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A sandbox that cannot be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct SandboxError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SandboxError + 'a {
    move |source| SandboxError { what, path: path.into(), source }
}

/// `/dev/shm` of a pod, as containerd sizes it.
const SHM_OPTIONS: &str = "mode=1777,size=64m";
/// The name files cost no flash write, and a container that writes to them for ever fills nothing but this
/// (CVE-2020-8557): `/run` is the whole board's.
const ETC_OPTIONS: &str = "mode=0755,size=1m";
/// The namespace files.
const NAMES: [(&str, CloneFlags); 3] =
    [("net", CloneFlags::CLONE_NEWNET), ("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)];

/// The namespace files that a pod has of its own: all but those it shares with the host.
fn own_namespaces(pod: &PodSpec) -> impl Iterator<Item = (&'static str, CloneFlags)> {
    let host_network = pod.host_network;
    let host_ipc = pod.host_ipc;
    NAMES.into_iter().filter(move |(name, _)| match *name {
        // The kubelet gives a hostNetwork pod the host's UTS namespace too.
        "net" | "uts" => !host_network,
        _ => !host_ipc,
    })
}

/// Path of one namespace file of `pod`, or `None` when it uses the host's.
pub fn namespace(layout: &Layout, pod: &PodSpec, name: &str) -> Option<PathBuf> {
    own_namespaces(pod).any(|(own, _)| own == name).then(|| layout.pod_run(&pod.uid).join(name))
}

/// Makes the namespaces, with `hostname` and the pod's sysctls in them, and `/dev/shm`. Blocking; idempotent.
pub fn create(layout: &Layout, pod: &PodSpec, hostname: &str) -> Result<(), SandboxError> {
    let run = layout.pod_run(&pod.uid);
    fs::create_dir_all(&run).map_err(failed("create", &run))?;
    for (name, options) in [("shm", SHM_OPTIONS), ("etc", ETC_OPTIONS)] {
        let dir = run.join(name);
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        if !is_mount_point(&dir).map_err(failed("look at", &dir))? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some(name), &dir, Some("tmpfs"), flags, Some(options))
                .map_err(io::Error::from)
                .map_err(failed("mount", &dir))?;
        }
    }
    let missing: Vec<_> = own_namespaces(pod).filter(|(name, _)| !is_nsfs(&run.join(name))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // A namespace belongs to a thread until its file is bound: this thread lives just that long.
    let make = || bind_fresh_namespaces(&run, &missing, pod, hostname);
    std::thread::scope(|scope| scope.spawn(make).join()).expect("the thread does not panic")
}

fn bind_fresh_namespaces(
    run: &Path,
    missing: &[(&'static str, CloneFlags)],
    pod: &PodSpec,
    hostname: &str,
) -> Result<(), SandboxError> {
    let flags = missing.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    unshare(flags).map_err(io::Error::from).map_err(failed("make namespaces for", run))?;
    if flags.contains(CloneFlags::CLONE_NEWUTS) {
        nix::unistd::sethostname(hostname)
            .map_err(io::Error::from)
            .map_err(failed("set the hostname in", run))?;
    }
    for (name, value) in &pod.security.sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(failed("set sysctl", &path))?;
    }
    for (name, _) in missing {
        let (source, target) = (Path::new("/proc/thread-self/ns").join(name), run.join(name));
        fs::File::create(&target).map_err(failed("create", &target))?;
        mount(Some(&source), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(io::Error::from)
            .map_err(failed("hold the namespace at", &target))?;
    }
    Ok(())
}

/// Writes `etc/hosts`, `etc/resolv.conf` and `etc/hostname` below `RUN/pods/UID`, after [`create`]. Idempotent; blocking.
pub fn write_names(
    layout: &Layout,
    pod: &PodSpec,
    ips: &[IpAddr],
    host: &HostNames,
) -> Result<(), SandboxError> {
    let etc = layout.pod_run(&pod.uid).join("etc");
    let files = [
        ("hosts", names::hosts(pod, ips, host)),
        ("resolv.conf", names::resolv_conf(pod, host)),
        ("hostname", names::hostname(pod, host) + "\n"),
    ];
    for (name, text) in files {
        let path = etc.join(name);
        fs::write(&path, text).map_err(failed("write", &path))?;
    }
    Ok(())
}

/// Unmounts and removes everything below `RUN/pods/UID`. Nothing of the pod may run. Idempotent; blocking.
pub fn remove(layout: &Layout, uid: &PodUid) -> Result<(), SandboxError> {
    let run = layout.pod_run(uid);
    unmount_below(&run)?;
    remove_dir(&run)
}

/// Removes a directory with everything in it; nothing may be mounted there. Idempotent; blocking.
pub fn remove_dir(dir: &Path) -> Result<(), SandboxError> {
    crate::tree::remove(dir).map_err(failed("remove", dir))
}

/// Detaches every mount at or below `dir`, innermost first. Idempotent; blocking.
pub fn unmount_below(dir: &Path) -> Result<(), SandboxError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(failed("read", table))?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p)));
    let mut points: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    points.reverse();
    for point in points {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // EINVAL: it went away with a mount that held it.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(e) => return Err(failed("unmount", &point)(e.into())),
        }
    }
    Ok(())
}

/// Octal escapes of mountinfo: blank, tab, newline, backslash. proc_pid_mountinfo(5).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (escape, plain)| text.replace(escape, plain))
}

/// Whether `path` holds a namespace: a file of nsfs.
pub fn is_nsfs(path: &Path) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type().0 as u64 & 0xffff_ffff == NSFS_MAGIC)
}
