//! `local stop` and `local delete`: the reverse of each step of `start`, whatever of it there is.
//!
//! Agents go first, so that nothing starts a container anew; then the pods' shims, which give containers their grace as they do
//! when a machine goes down; then the control plane; then what the agents made (`coracle teardown`), and the network.

use super::kubeconfig::{self, Owner};
use super::place::{DEFAULT_ROOT, Place, Settings};
use super::start::{agents, board_name, configure, control_plane, coracle_words, program, url};
use super::{network, processes};
use crate::cli::print;
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::unistd::Uid;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// For a control plane or an agent, which keep nothing that is not on the disk.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// For pods: a shim gives its containers a minute at most.
const PODS_GRACE: Duration = Duration::from_secs(70);

/// Runs `local stop`.
pub async fn stop(place: &Place) -> Result<()> {
    let lock = place.lock()?;
    let Some(settings) = place.settings()? else { return Ok(print(&none(place))?) };
    let _lock = lock.context("the directory vanished")?;
    end(place, &settings).await?;
    Ok(print("the local cluster is stopped; coracle-control local start goes on with it\n")?)
}

/// Runs `local delete`.
pub async fn delete(place: &Place) -> Result<()> {
    let Some(_lock) = place.lock()? else { return Ok(print(&none(place))?) };
    let Some(settings) = place.settings()? else {
        // What a `start` leaves that was interrupted before it kept anything.
        remove_file(&place.root().join("local.json.tmp"))?;
        remove_root(place)?;
        return Ok(print(&none(place))?);
    };
    end(place, &settings).await?;
    if let Some((path, uid)) = &settings.kubeconfig {
        // A user who is gone has no kubeconfig.
        if let Ok(owner) = Owner::of(Uid::from_raw(*uid)) {
            kubeconfig::take_out(&owner, path, &settings.context, &url(&settings))?;
        }
    }
    for dir in ["boards", "run", "logs", "control"] {
        let path = place.root().join(dir);
        unmount_below(&path)?;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    // Last: with it a `delete` that was interrupted is done again.
    remove_file(&place.root().join("local.json"))?;
    remove_root(place)?;
    Ok(print("the local cluster is deleted, and nothing of it is left\n")?)
}

fn none(place: &Place) -> String {
    let root = place.root();
    let at = if root == Path::new(DEFAULT_ROOT) { String::new() } else { format!(" in {}", root.display()) };
    format!("there is no local cluster{at}\n")
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// What is not of the cluster is not removed.
fn remove_root(place: &Place) -> Result<()> {
    match fs::remove_dir(place.root()) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            bail!("{} holds what is not of a local cluster, and stays", place.root().display())
        }
        answer => answer.with_context(|| place.root().display().to_string()),
    }
}

/// Ends everything and undoes what is outside the directory.
async fn end(place: &Place, settings: &Settings) -> Result<()> {
    let boards = 1..=settings.boards;
    let mut found = Vec::new();
    for n in boards.clone() {
        found.extend(agents(place, n)?);
    }
    processes::end(found, GRACE).await?;
    let mut shims = Vec::new();
    for n in boards.clone() {
        let pods = place.board(n).join("run").join("pods");
        shims.extend(processes::find("coracle-shim", |words| {
            words.first().is_some_and(|word| word == OsStr::new("--run"))
                && words.get(1).and_then(|dir| Path::new(dir).parent()) == Some(pods.as_path())
        })?);
    }
    processes::end(shims, PODS_GRACE).await?;
    processes::end(control_plane(place)?, GRACE).await?;
    for n in boards.rev() {
        if n == 1 {
            // Before the first board's own, which looks whether other bridges need this machine to forward.
            network::remove_bridge(place)?;
        }
        if place.board(n).exists() && (n == 1 || network::is_namespace(&place.netns(n))) {
            teardown(place, settings, n).await?;
        }
        if n > 1 {
            network::remove_board(place, n)?;
        }
        unmount_below(&place.board(n))?;
    }
    Ok(())
}

/// What a board's agent made outside its directory.
async fn teardown(place: &Place, settings: &Settings, n: u8) -> Result<()> {
    ensure!(
        settings.coracle.exists(),
        "{} is gone, and what it made is removed with it only: say where it is with local start --coracle PATH",
        settings.coracle.display()
    );
    configure(place, settings, n)?;
    let words = coracle_words(place, settings, n, &["teardown"]);
    let output = program(place, settings, n, words).command()?.output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default().trim_start_matches("error: ");
    ensure!(output.status.success(), "{} was not taken down: {last}", board_name(n));
    Ok(())
}

/// Unmounts whatever is mounted at a directory or below it.
fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    // The root is a plain path, and what is made below it too: nothing is escaped.
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let points: Vec<&Path> = points.filter(|point| point.starts_with(dir)).collect();
    for point in points.into_iter().rev() {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It went away with a mount that held it.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| point.display().to_string()),
        }
    }
    Ok(())
}
