//! The command line: kubectl's verbs and columns for one board, over the node API and nothing else.

mod apply;
mod client;
mod describe;
mod exec;
mod image;
mod logs;
mod pods;
mod ps;
pub(crate) mod table;
mod top;

use crate::cluster::credentials::Credentials;
use crate::cluster::join;
use crate::config::Config;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use client::Client;
pub(crate) use client::ServerError;
use coracle_runtime::layout::Layout;
use std::path::{Path, PathBuf};

/// Runs Kubernetes pods on a small board.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  coracle agent                          start the agent in the foreground\n  coracle apply -f pod.yaml              run a pod\n  coracle ps -o wide                     list pods\n  coracle logs web -f                    follow the log of pod web\n  coracle exec -it web -- sh             a shell in pod web\n\nExit codes:\n  0 done   1 failed   2 wrong usage   3 configuration   4 this machine cannot run pods (coracle doctor says why)\n  5 another agent uses the directory   6 the store was written by a newer version   7 the control plane refused this board   exec: the command's own"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    pub command: Command,
}

/// Which agent is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Directory that holds everything of the agent; `root` of the configuration (/var/lib/coracle) by default.
    #[arg(long, global = true, env = "CORACLE_ROOT")]
    pub root: Option<PathBuf>,
}

impl Place {
    /// The directory, where the configuration is known.
    pub(crate) fn root<'a>(&'a self, config: &'a Config) -> &'a Path {
        self.root.as_deref().unwrap_or(&config.root)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node agent in the foreground.
    Agent {
        /// Configuration file; /etc/coracle/config.toml if that exists.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// List pods.
    #[command(
        alias = "get",
        after_help = "Examples:\n  coracle ps\n  coracle ps -o wide -w\n  coracle ps web -o yaml\n  coracle ps -l app=web"
    )]
    Ps(ps::Ps),
    /// Show pods in detail, with their events.
    #[command(after_help = "Examples:\n  coracle describe web")]
    Describe(PodNames),
    /// Print the logs of a container.
    #[command(
        after_help = "Examples:\n  coracle logs web\n  coracle logs web -c proxy -f --tail=20\n  coracle logs web --previous --since=10m"
    )]
    Logs(logs::Logs),
    /// Run a command in a container.
    #[command(after_help = "Examples:\n  coracle exec web -- date\n  coracle exec -it web -c proxy -- sh")]
    Exec(exec::Exec),
    /// Run the pods of manifests, and keep their secrets.
    #[command(after_help = "Examples:\n  coracle apply -f pod.yaml\n  cat pods.yaml | coracle apply -f -")]
    Apply {
        /// Manifest file, directory of them, or - for standard input; may be repeated.
        #[arg(short, long, required = true)]
        filename: Vec<PathBuf>,
    },
    /// Delete pods by name, or what manifests hold.
    #[command(after_help = "Examples:\n  coracle delete web\n  coracle delete -f pod.yaml --grace-period=1")]
    Delete(apply::Delete),
    /// Join a cluster with the line that `coracle-control token create` printed. A running agent follows by itself.
    #[command(
        after_help = "Examples:\n  coracle join https://control.example:6443 --token ID.SECRET --ca-hash sha256:…\n  CORACLE_TOKEN=ID.SECRET coracle join https://control.example:6443 --ca-hash sha256:… --node-name pi-7"
    )]
    Join(join::Join),
    /// Leave the cluster: pods of manifests run on, and the agent stands alone.
    Leave,
    /// Run boards that are not there, to measure a control plane. Debug builds alone have it.
    #[cfg(debug_assertions)]
    #[command(hide = true)]
    Simulate(crate::cluster::simulate::Simulate),
    /// Manage images.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Show CPU and memory of pods.
    #[command(after_help = "Examples:\n  coracle top\n  coracle top web")]
    Top(top::Top),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version,
    /// Print a completion script.
    #[command(after_help = "Examples:\n  coracle completion bash > /etc/bash_completion.d/coracle")]
    Completion {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Check whether this machine can run pods, and say what to do where it cannot.
    #[command(after_help = "Examples:\n  coracle doctor")]
    Doctor {
        /// Configuration file; /etc/coracle/config.toml if that exists.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Stop every pod and undo what the agent made on this machine; volumes, logs, images and the list of pods stay.
    #[command(after_help = "Examples:\n  systemctl stop coracle && coracle teardown")]
    Teardown {
        /// Configuration file; /etc/coracle/config.toml if that exists.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// Where to.
        dir: PathBuf,
    },
    /// Open a store and read all of it: what the agent does in a child process before it opens one itself.
    #[command(hide = true)]
    StoreCheck {
        /// The store's directory.
        dir: PathBuf,
    },
}

/// Pods on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct PodNames {
    /// Pod names; every pod of the namespace by default.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a configuration file.
    Check {
        /// The file; the default place otherwise.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// More columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// pod/NAME.
    Name,
}

/// Runs a command that is not the agent; the process's exit code.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<i32> {
    // A file that cannot be read is the agent's to complain about, and `config check`'s: one that runs is still asked.
    let config = Config::load(None).unwrap_or_default();
    let client = Client::at(cli.place.root(&config));
    match cli.command {
        Command::Ps(ps) => ps::ps(&client, ps).await?,
        Command::Describe(pods) => describe::describe(&client, &pods).await?,
        Command::Logs(flags) => logs::logs(&client, &flags).await?,
        Command::Exec(exec) => return exec::exec(&client, &exec).await,
        Command::Apply { filename } => apply::apply(&client, &filename).await?,
        Command::Delete(delete) => apply::delete(&client, &delete).await?,
        Command::Join(flags) => {
            let config = Config::load(flags.config.as_deref())?;
            let layout = Layout::of_root(&std::path::absolute(cli.place.root(&config))?);
            let credentials = Credentials::below(&layout.data);
            let done = join::join(&credentials, &flags, &crate::agent::node_name(&config)).await?;
            table::print(&format!("{done}\n"))?;
        }
        Command::Leave => {
            let layout = Layout::of_root(&std::path::absolute(cli.place.root(&config))?);
            table::print(&format!("{}\n", join::leave(&Credentials::below(&layout.data))?))?;
        }
        #[cfg(debug_assertions)]
        Command::Simulate(flags) => crate::cluster::simulate::run(flags).await?,
        Command::Image(command) => image::run(&client, command).await?,
        Command::Top(top) => top::top(&client, &top).await?,
        Command::Config(ConfigCommand::Check { config }) => {
            let path = config.clone().unwrap_or_else(|| crate::config::DEFAULT_PATH.into());
            Config::load(config.as_deref())?;
            let found = if path.exists() { "ok" } else { "not there, so every setting has its default" };
            table::print(&format!("{}: {found}\n", path.display()))?;
        }
        Command::Version => table::print(&format!("coracle {}\n", env!("CARGO_PKG_VERSION")))?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coracle", &mut script);
            table::print(&String::from_utf8(script)?)?;
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir)?,
        Command::Agent { .. }
        | Command::StoreCheck { .. }
        | Command::Doctor { .. }
        | Command::Teardown { .. } => {
            unreachable!("main runs these without a client")
        }
    }
    Ok(0)
}
