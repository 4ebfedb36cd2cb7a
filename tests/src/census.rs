//! Counting what a board has in the kernel, and clearing what a failed test left.

use crate::agent::in_namespace;
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What of a board exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Mount points below its root, by path.
    pub mounts: Vec<String>,
    /// cgroup directories of its pods and shims.
    pub cgroups: Vec<String>,
    /// Network interfaces in its namespace.
    pub links: Vec<String>,
    /// Address leases.
    pub leases: Vec<String>,
    /// Directories of pods, on disk and in RUN.
    pub pods: Vec<String>,
    /// Processes in its cgroups.
    pub processes: usize,
}

/// Counts.
pub fn count(name: &str, root: &Path, netns: &File) -> Result<Census> {
    let links = in_namespace(netns, || {
        // /proc/thread-self: the namespace is this thread's.
        let text = fs::read_to_string("/proc/thread-self/net/dev")?;
        Ok::<_, std::io::Error>(
            text.lines()
                .skip(2)
                .filter_map(|l| l.split(':').next())
                .map(|l| l.trim().to_string())
                .collect::<Vec<_>>(),
        )
    })??;
    let dirs = cgroup_dirs(name);
    let pods = |dir: PathBuf| {
        names(&dir).into_iter().map(move |n| dir.join(n).display().to_string()).collect::<Vec<_>>()
    };
    let mut found = Census {
        mounts: mounts_below(root)?
            .into_iter()
            // The agent's own, which stay for the next agent.
            .filter(|p| *p != root.join("run") && !p.ends_with("rt/coracle"))
            .map(|p| p.display().to_string())
            .collect(),
        cgroups: dirs.iter().filter(|d| is_of_a_pod(d)).map(|d| d.display().to_string()).collect(),
        links,
        leases: names(&root.join("run/net/leases")).into_iter().filter(|n| n != "last").collect(),
        pods: [pods(root.join("pods")), pods(root.join("run/pods")), pods(root.join("logs"))].concat(),
        processes: pids(name).len(),
    };
    for list in [&mut found.mounts, &mut found.cgroups, &mut found.links, &mut found.leases, &mut found.pods]
    {
        list.sort();
    }
    Ok(found)
}

/// `…/podUID`, `…/shims/UID`, and what is below them.
fn is_of_a_pod(dir: &Path) -> bool {
    let text = dir.display().to_string();
    text.contains("/pod") && text.contains("/kubepods/") || text.contains("/shims/")
}

/// Kills every process in the board's cgroups, detaches its mounts and removes its cgroups.
pub fn clear(name: &str, root: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let alive = pids(name);
        if alive.is_empty() {
            break;
        }
        for pid in alive {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(e) => bail!("kill {pid}: {e}"),
            }
        }
        if Instant::now() > deadline {
            bail!("processes of board {name} do not end");
        }
        std::thread::yield_now();
    }
    for point in mounts_below(root)?.into_iter().rev() {
        match umount2(&point, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(e) => bail!("unmount {}: {e}", point.display()),
        }
    }
    let mut dirs = cgroup_dirs(name);
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    for dir in dirs {
        match fs::remove_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| dir.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}

fn pids(name: &str) -> Vec<i32> {
    let read = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = cgroup_dirs(name)
        .iter()
        .flat_map(|d| read(d).lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Every directory of the board's tree in every cgroup hierarchy.
fn cgroup_dirs(name: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut dirs = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if !right.starts_with("cgroup") {
            continue;
        }
        if let Some(point) = left.split(' ').nth(4) {
            // The slice is what the tree is called under systemd with cgroup v2.
            for top in [name.to_string(), format!("{name}.slice")] {
                walk(&Path::new(point).join(top), &mut dirs);
            }
        }
    }
    dirs
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    if !dir.is_dir() {
        return;
    }
    found.push(dir.into());
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}

fn mounts_below(root: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|p| p.starts_with(root)).collect())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Everything below a directory, in order; what cannot be listed has nothing.
pub fn everything_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut all: Vec<_> = entries
        .flat_map(|entry| {
            let path = entry.path();
            let below =
                if path.is_dir() && !path.is_symlink() { everything_below(&path) } else { Vec::new() };
            std::iter::once(path).chain(below)
        })
        .collect();
    all.sort();
    all
}
