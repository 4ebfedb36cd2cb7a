//! `local start`: makes what is missing, in an order in which each step finds what it needs, and waits for the nodes.

use super::kubeconfig::{self, Access, Owner};
use super::place::DEFAULT_ROOT;
use super::place::{Place, Settings};
use super::processes::{self, Process, Program};
use super::ready::{self, Nodes, Notified};
use super::{Start, network};
use crate::cli::client::Client;
use crate::cli::{print, token};
use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a cluster needs before it has run anything: keys, a store, its logs.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// For a `coracle join`, which takes some hundredths of a second.
const JOIN: Duration = Duration::from_secs(60);

/// A node's name.
pub(super) fn board_name(n: u8) -> String {
    format!("board-{n}")
}

/// Runs the command.
pub async fn run(place: &Place, start: &Start) -> Result<()> {
    let began = Instant::now();
    let tell = |what: &str| print(&format!("{what:<58}{:>6.2} s\n", began.elapsed().as_secs_f64()));
    let _lock = place.make()?;
    let known = place.settings()?;
    let settings = settings(known.as_ref(), start)?;
    let control = control_plane(place)?;
    if control.is_empty() {
        enough_space(place)?;
        network::check_free(place, settings.network)?;
    }
    place.keep(&settings)?;
    let mut running = Vec::new();
    for n in 1..=settings.boards {
        running.push(!agents(place, n)?.is_empty());
    }
    let all_there = !control.is_empty() && running.iter().all(|runs| *runs);
    drop(control);
    network::make_bridge(place, settings.network)?;
    let admin = place.control().join("admin.conf");
    if !all_there || known.is_none() {
        start_control(place, &settings).await?;
    }
    let mut client = Client::connect(&admin).await?;
    if !all_there {
        tell(&format!("* the control plane serves {}", url(&settings)))?;
    }
    let before = if all_there { Nodes::default() } else { Nodes::now(&mut client).await? };
    let mut started = Vec::new();
    for (n, _) in (1..=settings.boards).zip(&running).filter(|(_, runs)| !**runs) {
        if n > 1 {
            network::make_board(place, settings.network, n)?;
        }
        configure(place, &settings, n)?;
        if !place.board(n).join("cluster/kubeconfig").exists() {
            join(place, &settings, n, &mut client).await?;
            tell(&format!("* {} joined", board_name(n)))?;
        }
        let log = fresh_log(place, &board_name(n))?;
        let agent = program(place, &settings, n, agent_words(place, &settings, n)).start(&log, None)?;
        started.push((board_name(n), log, agent));
    }
    let awaited = started.iter().map(|(name, ..)| name.clone()).collect();
    ready::nodes(&admin, &before, awaited, &mut started, |name| {
        Ok(tell(&format!("* node {name} is Ready"))?)
    })
    .await?;
    let kubeconfig = lead_kubectl(place, settings.clone())?;
    if all_there {
        let at = url(&settings);
        return Ok(print(&format!(
            "the local cluster is running already, at {at}; kubectl's context is {:?}\n",
            settings.context
        ))?);
    }
    tell(&format!("* kubectl's context is {:?} ({})", settings.context, kubeconfig.display()))?;
    let root = if place.root() == Path::new(DEFAULT_ROOT) {
        String::new()
    } else {
        format!(" --root {}", place.root().display())
    };
    Ok(print(&format!(
        "\nNow:\n  kubectl get nodes\n  kubectl create deployment web --image=docker.io/library/nginx:alpine\n  coracle-control local stop{root}      # and start again, with everything as it was\n  coracle-control local delete{root}    # leaves nothing\n"
    ))?)
}

/// What it is made of, by what there is and what was asked for.
fn settings(known: Option<&Settings>, start: &Start) -> Result<Settings> {
    let coracle = agent_program(start.coracle.as_deref(), known)?;
    let Some(known) = known else {
        let context = start.context.clone().unwrap_or_else(|| "coracle".into());
        ensure!(!context.is_empty() && !context.chars().any(char::is_control), "{context:?} is no name");
        let network =
            start.network.map_or_else(|| "10.244.0.0/16".parse(), Ok).map_err(anyhow::Error::msg)?;
        let (boards, port) = (start.boards.unwrap_or(1), start.port.unwrap_or(6443));
        ensure!(port != 0, "--port 0 is no port");
        return Ok(Settings {
            coracle,
            boards,
            network,
            port,
            context,
            resolv_conf: resolv_conf(),
            kubeconfig: None,
        });
    };
    let keeps = |what: &str, is: String, asked: Option<String>| match asked {
        Some(asked) if asked != is => {
            bail!(
                "the local cluster has {what} {is}: coracle-control local delete, then start it with {asked}"
            )
        }
        _ => Ok(()),
    };
    keeps("the network", known.network.to_string(), start.network.map(|network| network.to_string()))?;
    keeps("the port", known.port.to_string(), start.port.map(|port| port.to_string()))?;
    keeps("the context", known.context.clone(), start.context.clone())?;
    let boards = start.boards.unwrap_or(known.boards);
    ensure!(
        boards >= known.boards,
        "the local cluster has {} boards, and none is taken away: coracle-control local delete, then start it with {boards}",
        known.boards
    );
    Ok(Settings { coracle, boards, ..known.clone() })
}

/// The agent: as said, as known, beside this program, or in PATH.
fn agent_program(said: Option<&Path>, known: Option<&Settings>) -> Result<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0)
    };
    if let Some(said) = said {
        let path = std::path::absolute(said)?;
        ensure!(is_program(&path), "{} is no program", path.display());
        return Ok(path);
    }
    let beside = std::env::current_exe().context("find this program")?.with_file_name("coracle");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("coracle"));
    let known = known.map(|known| known.coracle.clone());
    known
        .into_iter()
        .chain([beside])
        .chain(in_path)
        .find(is_program)
        .context("the agent is missing: install `coracle` beside coracle-control, or say --coracle PATH")
}

fn enough_space(place: &Place) -> Result<()> {
    let of = rustix::fs::statvfs(place.root())?;
    let free = of.f_bavail.saturating_mul(of.f_frsize);
    ensure!(
        free >= FREE_BYTES_MIN,
        "{} has {} MiB left, and a local cluster needs {}",
        place.root().display(),
        free >> 20,
        FREE_BYTES_MIN >> 20
    );
    Ok(())
}

pub(super) fn url(settings: &Settings) -> String {
    format!("https://{}:{}", settings.network.gateway(), settings.port)
}

/// The control planes of this cluster that run: one or none.
pub(super) fn control_plane(place: &Place) -> Result<Vec<Process>> {
    let data = place.control();
    processes::find("coracle-control", |words| {
        processes::has(words, &[OsStr::new("--data-dir"), data.as_os_str()])
            && words.iter().any(|word| word == "serve")
    })
}

/// The agents of a board that run: one or none.
pub(super) fn agents(place: &Place, n: u8) -> Result<Vec<Process>> {
    let root = place.board(n);
    let is_agent = |words: &[OsString]| {
        processes::has(words, &[OsStr::new("--root"), root.as_os_str(), OsStr::new("agent")])
    };
    let mut found = processes::find("coracle", is_agent)?;
    // One that is about to become it.
    found.extend(processes::find("coracle-control", is_agent)?);
    Ok(found)
}

/// A program of the cluster, where a board's run.
pub(super) fn program(place: &Place, settings: &Settings, n: u8, words: Vec<OsString>) -> Program {
    match n {
        1 => Program { words, netns: None, resolv_conf: None },
        _ => Program { words, netns: Some(place.netns(n)), resolv_conf: settings.resolv_conf.clone() },
    }
}

/// What systemd-resolved writes for those that do not reach it, where it is this machine's resolver.
fn resolv_conf() -> Option<PathBuf> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let is_loopback = |server: &str| server.trim().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let other = PathBuf::from("/run/systemd/resolve/resolv.conf");
    (!text.is_empty() && servers.all(is_loopback) && other.exists()).then_some(other)
}

fn agent_words(place: &Place, settings: &Settings, n: u8) -> Vec<OsString> {
    coracle_words(place, settings, n, &["agent"])
}

/// `coracle --root ROOT COMMAND… --config FILE`.
pub(super) fn coracle_words(place: &Place, settings: &Settings, n: u8, command: &[&str]) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        vec![settings.coracle.clone().into(), "--root".into(), place.board(n).into()];
    words.extend(command.iter().map(OsString::from));
    words.extend(["--config".into(), place.board_config(n).into()]);
    words
}

/// Starts the control plane, or leaves the one that answers.
async fn start_control(place: &Place, settings: &Settings) -> Result<()> {
    let found = control_plane(place)?;
    if !found.is_empty() {
        if Client::connect(&place.control().join("admin.conf")).await.is_ok() {
            return Ok(());
        }
        // One that does not serve yet, or no more: what it has acknowledged is on the disk.
        processes::end(found, super::stop::GRACE).await?;
    }
    let address = SocketAddr::from((settings.network.gateway(), settings.port));
    if let Err(error) = TcpListener::bind(address) {
        bail!("{address} cannot be listened on: {error}; choose another port with --port");
    }
    let this = std::env::current_exe().context("find this program")?;
    let mut words: Vec<OsString> =
        vec![this.into(), "serve".into(), "--data-dir".into(), place.control().into()];
    let flags = [
        "--config",
        "/dev/null",
        "--listen",
        &address.to_string(),
        "--cluster-cidr",
        &settings.network.pods(),
    ];
    words.extend(flags.map(OsString::from));
    let (log, notified) = (fresh_log(place, "control")?, Notified::bind(place)?);
    let program = Program { words, netns: None, resolv_conf: None };
    let mut child = program.start(&log, Some(&notified.path))?;
    notified.ready(&mut child, "the control plane", &log).await
}

/// A log that begins here; the one before is kept beside it.
fn fresh_log(place: &Place, of: &str) -> Result<PathBuf> {
    let log = place.log(of);
    match fs::rename(&log, log.with_extension("log.1")) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| log.display().to_string())
        }
        _ => Ok(log),
    }
}

/// Writes a board's configuration where there is none: what is there may be somebody's work.
pub(super) fn configure(place: &Place, settings: &Settings, n: u8) -> Result<()> {
    let path = place.board_config(n);
    if path.exists() {
        return Ok(());
    }
    // A machine that people work on is full and busy: as kind has it, only memory evicts.
    let text = format!(
        "# Board {n} of a local cluster. Yours to edit; name, node_name and network_cidr are to stay.\nname = \"{}\"\nnode_name = \"{}\"\nnetwork_cidr = \"{}\"\neviction_disk_available_percent = 0\n\n[image]\ngc_high_percent = 100\n\n[cluster]\n# Streams come by the board's own connection; another kubelet may have the port.\nkubelet_port = 0\n",
        place.board_name(n),
        board_name(n),
        settings.network.pods_of(n),
    );
    Ok(coracle_control::pki::write(&path, text.as_bytes(), 0o600)?)
}

/// Lets a board in, as its administrator would.
async fn join(place: &Place, settings: &Settings, n: u8, client: &mut Client) -> Result<()> {
    let line = token::mint_for(client, &board_name(n)).await?;
    let mut words = coracle_words(place, settings, n, &["join", &line.server, "--ca-hash", &line.ca_hash]);
    words.extend(["--node-name".into(), board_name(n).into()]);
    let mut command = program(place, settings, n, words).command()?;
    // Not among the arguments, which everybody on this machine can read.
    command.env("CORACLE_TOKEN", &line.token);
    let output = tokio::time::timeout(JOIN, command.output()).await;
    let output = output.with_context(|| format!("{} does not join", board_name(n)))??;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        output.status.success(),
        "{} does not join: {}",
        board_name(n),
        last.trim_start_matches("error: ")
    );
    Ok(())
}

/// Merges the context, and keeps where it went; before it is there, so that an interrupted `start` is found out by `delete`.
fn lead_kubectl(place: &Place, mut settings: Settings) -> Result<PathBuf> {
    let (owner, files) = match &settings.kubeconfig {
        Some((path, uid)) => (Owner::of(Uid::from_raw(*uid))?, vec![path.clone()]),
        None => {
            let owner = Owner::of_caller()?;
            let files = owner.files()?;
            (owner, files)
        }
    };
    let path = kubeconfig::place(&owner, &files, &settings.context)?;
    settings.kubeconfig = Some((path.clone(), owner.uid()));
    place.keep(&settings)?;
    let text = fs::read_to_string(place.control().join("admin.conf")).context("admin.conf")?;
    let (authority, token) = crate::cli::client::embedded(&text).context("admin.conf")?;
    let access = Access {
        name: settings.context.clone(),
        cluster: json!({"server": url(&settings), "certificate-authority-data": authority}),
        user: json!({"token": token}),
    };
    kubeconfig::put(&owner, &files, &path, &access)?;
    Ok(path)
}
