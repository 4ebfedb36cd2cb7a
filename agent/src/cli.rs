//! The command line: kubectl's verbs and columns for one board, over the node API and nothing else.

mod apply;
mod client;
mod exec;
mod image;
pub(crate) mod table;
mod view;

use crate::config::Config;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use client::Client;
use std::path::{Path, PathBuf};

/// Runs Kubernetes pods on a small board.
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    after_help = "Examples:\n  coracle agent                          start the agent in the foreground\n  coracle apply -f pod.yaml              run a pod\n  coracle ps -o wide                     list pods\n  coracle logs web -f                    follow the log of pod web\n  coracle exec -it web -- sh             a shell in pod web\n\nExit codes:\n  0 done   1 failed   2 wrong usage   3 configuration   4 this machine cannot run pods (coracle doctor says why)\n  5 another agent uses the directory   6 the store was written by a newer version   exec: the command's own"
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
        after_help = "Examples:\n  coracle ps\n  coracle ps -o wide -w\n  coracle ps web -o yaml"
    )]
    Ps {
        /// Only this pod.
        name: Option<String>,
        /// Only this namespace; all of them by default.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Output format.
        #[arg(short, long)]
        output: Option<Output>,
        /// After listing, watch for changes.
        #[arg(short, long)]
        watch: bool,
    },
    /// Show a pod in detail, with its events.
    #[command(after_help = "Examples:\n  coracle describe web")]
    Describe {
        #[command(flatten)]
        pod: PodName,
    },
    /// Print the logs of a container.
    #[command(
        after_help = "Examples:\n  coracle logs web\n  coracle logs web -c proxy -f --tail=20\n  coracle logs web --previous --since=10m"
    )]
    Logs {
        #[command(flatten)]
        pod: PodName,
        /// Container; the pod's first by default.
        #[arg(short, long)]
        container: Option<String>,
        /// Go on as the log grows.
        #[arg(short, long)]
        follow: bool,
        /// The instance before the current one.
        #[arg(short, long)]
        previous: bool,
        /// Only the last N lines.
        #[arg(long, allow_negative_numbers = true, default_value = "-1")]
        tail: i64,
        /// Only lines of this age at most: 5s, 2m, 3h.
        #[arg(long)]
        since: Option<String>,
        /// A timestamp before each line.
        #[arg(long)]
        timestamps: bool,
    },
    /// Run a command in a container.
    #[command(after_help = "Examples:\n  coracle exec web -- date\n  coracle exec -it web -c proxy -- sh")]
    Exec {
        #[command(flatten)]
        pod: PodName,
        /// Container; the pod's first by default.
        #[arg(short, long)]
        container: Option<String>,
        /// Pass standard input.
        #[arg(short = 'i', long)]
        stdin: bool,
        /// Give it a terminal.
        #[arg(short, long)]
        tty: bool,
        /// Command and arguments, after --.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run the pods of manifests.
    #[command(after_help = "Examples:\n  coracle apply -f pod.yaml\n  cat pods.yaml | coracle apply -f -")]
    Apply {
        /// Manifest file, or - for standard input; may be repeated.
        #[arg(short, long, required = true)]
        filename: Vec<PathBuf>,
    },
    /// Delete pods by name, or those of manifests.
    #[command(after_help = "Examples:\n  coracle delete web\n  coracle delete -f pod.yaml --grace-period=1")]
    Delete {
        /// Pod names.
        #[arg(required_unless_present = "filename")]
        names: Vec<String>,
        /// Manifest file, or -.
        #[arg(short, long)]
        filename: Vec<PathBuf>,
        /// Namespace of the names.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// Seconds before SIGKILL; the pod's own by default.
        #[arg(long)]
        grace_period: Option<i64>,
        /// Return at once instead of when the pod is gone.
        #[arg(long)]
        no_wait: bool,
    },
    /// Manage images.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Show CPU and memory of pods.
    Top,
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

/// A pod on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct PodName {
    /// Pod name, or pod/NAME.
    pub name: String,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

impl PodName {
    /// kubectl writes `pod/web` too.
    pub(crate) fn bare(&self) -> &str {
        self.name.strip_prefix("pod/").or_else(|| self.name.strip_prefix("pods/")).unwrap_or(&self.name)
    }
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
        Command::Ps { name, namespace, output, watch } => {
            view::ps(&client, name, namespace, output, watch).await?
        }
        Command::Describe { pod } => view::describe(&client, &pod).await?,
        Command::Logs { pod, container, follow, previous, tail, since, timestamps } => {
            let options = view::LogFlags { container, follow, previous, tail, since, timestamps };
            view::logs(&client, &pod, &options).await?;
        }
        Command::Exec { pod, container, stdin, tty, command } => {
            return exec::exec(&client, &pod, container.as_deref(), stdin, tty, &command).await;
        }
        Command::Apply { filename } => apply::apply(&client, &filename).await?,
        Command::Delete { names, filename, namespace, grace_period, no_wait } => {
            apply::delete(&client, &names, &filename, &namespace, grace_period, !no_wait).await?;
        }
        Command::Image(command) => image::run(&client, command).await?,
        Command::Top => view::top(&client).await?,
        Command::Config(ConfigCommand::Check { config }) => {
            let path = config.clone().unwrap_or_else(|| crate::config::DEFAULT_PATH.into());
            Config::load(config.as_deref())?;
            table::print(&format!("{}: ok\n", path.display()))?;
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
