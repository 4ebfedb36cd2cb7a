//! `coracle-control`: opens the storage, makes what a cluster has from its start, serves.

use anyhow::Context as _;
use clap::Parser;
use coracle_control::auth::{self, Authenticator};
use coracle_control::http;
use coracle_control::pki::{self, Pki};
use coracle_control::registry::{Registry, ServiceRange};
use coracle_control::storage::{Embedded, Etcd, EtcdOptions, Storage};
use coracle_control::tunnel::Dialer;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Serves the Kubernetes API to boards and kubectl.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where keys, certificates and the embedded store are kept.
    #[arg(long, default_value = "/var/lib/coracle-control")]
    data_dir: PathBuf,
    /// Where the API is served.
    #[arg(long, default_value = "0.0.0.0:6443")]
    listen: SocketAddr,
    /// Names and addresses of this machine, for the serving certificate.
    #[arg(long = "host")]
    hosts: Vec<String>,
    /// An etcd cluster instead of the embedded store: http://HOST:PORT, may be given several times.
    #[arg(long = "etcd")]
    etcd: Vec<String>,
    /// Static tokens: TOKEN,USER,UID,"GROUP,…" a line. Made with one for the administrator if it is missing.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Where services get their addresses.
    #[arg(long, default_value = "10.96.0.0/16")]
    service_cidr: String,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let asked: Option<Targets> = std::env::var("CORACLE_LOG").ok().and_then(|text| text.parse().ok());
    tracing_subscriber::registry()
        .with(asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO)))
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .init();
    // Before any other thread runs: opening the embedded store gives back memory, see coracle-store.
    let embedded = if arguments.etcd.is_empty() {
        Some(Embedded::open(&arguments.data_dir.join("store")).context("the store does not open")?)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(arguments, embedded))
}

async fn run(arguments: Arguments, embedded: Option<Embedded>) -> anyhow::Result<()> {
    let storage = match embedded {
        Some(embedded) => Storage::Embedded(embedded),
        None => {
            Storage::Etcd(Box::new(Etcd::connect(&EtcdOptions { endpoints: arguments.etcd.clone() }).await?))
        }
    };
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("{} cannot be listened on", arguments.listen))?;
    let address = listener.local_addr()?;
    let services = ServiceRange::parse(&arguments.service_cidr).map_err(anyhow::Error::msg)?;
    let mut hosts = arguments.hosts.clone();
    hosts.extend([services.first().to_string(), "127.0.0.1".into()]);
    if !address.ip().is_unspecified() {
        hosts.push(address.ip().to_string());
    }
    let pki = Pki::open(&arguments.data_dir.join("pki"), &hosts)?;
    let token_file = arguments.token_file.unwrap_or_else(|| arguments.data_dir.join("tokens.csv"));
    if !token_file.exists() {
        make_administrator(&token_file, &arguments.data_dir, address, &pki)?;
    }
    let authenticator = Authenticator::from_token_file(&token_file)?;
    let registry = Registry::new(storage, services, pki.ca.clone());
    registry.bootstrap(address.port()).await?;
    let context =
        Arc::new(http::Context::new(registry, authenticator, Dialer::new(pki.kubelet_client.clone())));
    tracing::info!(%address, "the API is served");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        served = http::serve(listener, pki.tls, context) => served.context("the listener failed"),
        // What was acknowledged is durable, so there is nothing to wait for.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// A token for the administrator, and the kubeconfig that has it.
fn make_administrator(token_file: &Path, dir: &Path, address: SocketAddr, pki: &Pki) -> anyhow::Result<()> {
    use base64::Engine;
    use ring::rand::SecureRandom;
    let mut secret = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut secret).map_err(|_| anyhow::anyhow!("no random numbers"))?;
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret);
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_string() } else { address.ip().to_string() };
    let ca = base64::engine::general_purpose::STANDARD.encode(&pki.ca);
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: coracle\n  cluster:\n    server: https://{host}:{}\n    certificate-authority-data: {ca}\nusers:\n- name: admin\n  user:\n    token: {token}\ncontexts:\n- name: coracle\n  context: {{cluster: coracle, user: admin}}\ncurrent-context: coracle\n",
        address.port()
    );
    pki::write(&dir.join("admin.conf"), kubeconfig.as_bytes(), 0o600)?;
    // Last: a crash before it makes both anew.
    pki::write(token_file, format!("{token},admin,admin,\"{}\"\n", auth::MASTERS).as_bytes(), 0o600)?;
    Ok(())
}
