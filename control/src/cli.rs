//! The command line. What needs the running server asks it over the API, as the administrator whose kubeconfig `serve`
//! keeps in its data directory.

mod client;
mod kubeconfig;
mod local;
mod token;

use crate::config::{Config, DEFAULT_DATA_DIR};
use clap::{Args, CommandFactory, Parser, Subcommand};
use kubeconfig::KubeconfigCommand;
use local::LocalCommand;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use token::TokenCommand;

/// Serves the Kubernetes API to boards and kubectl.
#[derive(Debug, Parser)]
#[command(
    name = "coracle-control",
    version,
    arg_required_else_help = true,
    after_help = "Examples:\n  coracle-control serve --host api.example.com\n  coracle-control token create --ttl 1h\n  coracle-control kubeconfig create --user ada > ada.conf\n  coracle-control local start\n  coracle-control completion bash > /etc/bash_completion.d/coracle-control\n\nExit codes:\n  0 done   1 failed   2 wrong usage   3 configuration"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the control plane in the foreground.
    #[command(after_help = "Examples:\n  coracle-control serve --data-dir ./data --listen 127.0.0.1:6443")]
    Serve(Serve),
    /// Make, list and revoke the tokens that boards join with.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make kubeconfigs for people and programs.
    #[command(subcommand)]
    Kubeconfig(KubeconfigCommand),
    /// A cluster on this machine, in one command.
    #[command(subcommand)]
    Local(LocalCommand),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version,
    /// Print a completion script.
    #[command(
        after_help = "Examples:\n  coracle-control completion bash > /etc/bash_completion.d/coracle-control"
    )]
    Completion {
        /// Shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// Where to.
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file.
    Check {
        /// The file; the default place otherwise.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

/// Which control plane is meant, and as whom it is asked.
#[derive(Debug, Args)]
pub struct Running {
    /// Where `serve` keeps its data; what the configuration says (/var/lib/coracle-control) by default.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Another kubeconfig than the administrator's in the data directory.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
}

impl Running {
    async fn connect(&self) -> anyhow::Result<client::Client> {
        let path = match &self.kubeconfig {
            Some(path) => path.clone(),
            None => self.data_dir().join("admin.conf"),
        };
        client::Client::connect(&path).await
    }

    fn data_dir(&self) -> PathBuf {
        // A configuration that cannot be read is for `serve` to complain about.
        let configured = || Config::load(None).map_or(DEFAULT_DATA_DIR.into(), |config| config.data_dir);
        self.data_dir.clone().unwrap_or_else(configured)
    }
}

/// Every flag of it wins over the file.
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file; /etc/coracle/control.toml if that exists.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where keys, certificates and the embedded store are kept [default: /var/lib/coracle-control].
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where the API is served [default: 0.0.0.0:6443].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// A name or address of this machine, for the serving certificate; may be repeated.
    #[arg(long = "host")]
    hosts: Vec<String>,
    /// HOST[:PORT] at which boards reach the API; the first --host, or this machine's address, by default.
    #[arg(long)]
    advertise: Option<String>,
    /// An etcd cluster instead of the embedded store: http://HOST:PORT; may be repeated.
    #[arg(long)]
    etcd: Vec<String>,
    /// With --etcd: IP:PORT at which the other control planes reach this one; where it listens, by default.
    #[arg(long)]
    peer_address: Option<SocketAddr>,
    /// Static tokens: TOKEN,USER,UID,"GROUP,…" a line. Made with one for the administrator if it is missing.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Where services get their addresses [default: 10.96.0.0/16].
    #[arg(long)]
    service_cidr: Option<String>,
    /// Where pods get their addresses, a /24 of it for each node; empty leaves that to others.
    #[arg(long)]
    cluster_cidr: Option<String>,
}

impl Serve {
    /// The file, and what the flags say otherwise. Blocking.
    pub fn configuration(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref())?;
        let replace = |setting: &mut Vec<String>, flag: &[String]| {
            if !flag.is_empty() {
                *setting = flag.to_vec();
            }
        };
        replace(&mut config.hosts, &self.hosts);
        replace(&mut config.etcd, &self.etcd);
        config.data_dir = self.data_dir.clone().unwrap_or(config.data_dir);
        config.listen = self.listen.unwrap_or(config.listen);
        config.peer_address = self.peer_address.or(config.peer_address);
        config.advertise = self.advertise.clone().unwrap_or(config.advertise);
        config.token_file = self.token_file.clone().or(config.token_file);
        config.service_cidr = self.service_cidr.clone().unwrap_or(config.service_cidr);
        config.cluster_cidr = self.cluster_cidr.clone().unwrap_or(config.cluster_cidr);
        Ok(config)
    }
}

/// Runs a command that is not the server; how the process is to end.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Local(command) => return local::run(command),
        Command::Config(ConfigCommand::Check { config }) => {
            let path = config.clone().unwrap_or_else(|| crate::config::DEFAULT_PATH.into());
            Config::load(config.as_deref())?;
            let found = if path.exists() { "ok" } else { "not there, so every setting has its default" };
            print(&format!("{}: {found}\n", path.display()))?;
        }
        Command::Version => print(&format!("coracle-control {}\n", env!("CARGO_PKG_VERSION")))?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "coracle-control", &mut script);
            print(&String::from_utf8(script)?)?;
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), &dir)?,
        Command::Token(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(token::run(command))?;
        }
        Command::Kubeconfig(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(kubeconfig::run(command))?;
        }
        Command::Serve(_) => unreachable!("main runs it"),
    }
    Ok(ExitCode::SUCCESS)
}

/// To standard output.
fn print(text: &str) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes())
}
