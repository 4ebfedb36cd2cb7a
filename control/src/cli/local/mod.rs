//! `coracle-control local`: a cluster on this machine, for whoever wants to try one or to develop against one.
//!
//! ```text
//!            start                       stop                     delete
//!  nothing ────────► running ◄─────────────────────► stopped ───────────► nothing
//! ```
//! The control plane and a board's agent are processes of their own that outlive the command; everything lies below one
//! directory (`place`). `stop` ends the pods as well, each with its grace, as a machine's shutdown does, and keeps what they
//! wrote: `start` brings them back as a boot does. Invariants: every step may be done again, so that whatever interrupted a
//! command, the next `start` or `delete` goes on from what it finds; what is found is what the kernel says, not what a file says.
//!
//! Left out: a supervisor. A process that ends stays ended until the next `start`.

mod kubeconfig;
mod netlink;
mod network;
mod place;
mod processes;
mod ready;
mod start;
mod status;
mod stop;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use place::{BOARDS_MAX, DEFAULT_ROOT, Network, Place};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum LocalCommand {
    /// Start a cluster on this machine, and lead kubectl to it.
    #[command(
        after_help = "Examples:\n  coracle-control local start\n  coracle-control local start --boards 3\n  kubectl get nodes"
    )]
    Start(Start),
    /// Stop its pods, its boards and its control plane. Everything is kept for the next start.
    Stop(At),
    /// Show what of it runs.
    #[command(
        after_help = "Exit code: 0, or the sum of 1 (a board does not run), 2 (an agent or the API server does not run) and 4 (kubectl is not\nled here); 7 where there is no cluster."
    )]
    Status {
        #[command(flatten)]
        at: At,
        /// Form of the output.
        #[arg(long, short, value_enum, default_value = "text")]
        output: status::Output,
    },
    /// Stop it and remove everything of it.
    Delete(At),
    /// Become another program, where a cluster's programs run.
    #[command(hide = true)]
    Run {
        #[arg(long)]
        netns: Option<PathBuf>,
        #[arg(long)]
        resolv_conf: Option<PathBuf>,
        #[arg(last = true, required = true)]
        words: Vec<OsString>,
    },
}

/// Which local cluster.
#[derive(Debug, Args)]
pub struct At {
    /// Directory that holds everything of it.
    #[arg(long, default_value = DEFAULT_ROOT)]
    root: PathBuf,
}

/// What it is to be made of. A cluster that is there keeps what it has, but may get more boards.
#[derive(Debug, Args)]
pub struct Start {
    #[command(flatten)]
    at: At,
    /// How many boards. The first is this machine, each other has a network namespace of its own [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(BOARDS_MAX)))]
    boards: Option<u8>,
    /// The agent's program; `coracle` beside this one, or in PATH, by default.
    #[arg(long)]
    coracle: Option<PathBuf>,
    /// Where boards and pods get their addresses [default: 10.244.0.0/16].
    #[arg(long)]
    network: Option<Network>,
    /// The port of the API [default: 6443].
    #[arg(long)]
    port: Option<u16>,
    /// kubectl's name for it [default: coracle].
    #[arg(long)]
    context: Option<String>,
}

/// Runs one of them.
pub fn run(command: LocalCommand) -> Result<ExitCode> {
    if let LocalCommand::Run { netns, resolv_conf, words } = command {
        processes::become_program(netns.as_deref(), resolv_conf.as_deref(), &words)?;
        return Ok(ExitCode::FAILURE);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "coracle-control local makes namespaces, cgroups and mounts: run it as root, such as by sudo"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            LocalCommand::Start(start) => start::run(&Place::new(&start.at.root)?, &start).await,
            LocalCommand::Stop(at) => stop::stop(&Place::new(&at.root)?).await,
            LocalCommand::Delete(at) => stop::delete(&Place::new(&at.root)?).await,
            LocalCommand::Status { at, output } => {
                return status::run(&Place::new(&at.root)?, output).await;
            }
            LocalCommand::Run { .. } => unreachable!("it was run above"),
        }
        .map(|()| ExitCode::SUCCESS)
    })
}
