//! `coracle-control serve`: opens the storage, makes what a cluster has from its start, serves.

use crate::cli::Serve;
use crate::config::Config;
use crate::logging;
use anyhow::Context;
use coracle_control::apiservers::Apiservers;
use coracle_control::auth::tokens::Tokens;
use coracle_control::auth::{self, Authenticator};
use coracle_control::controllers;
use coracle_control::enroll::{self, Enrollment};
use coracle_control::http;
use coracle_control::pki::{self, Pki};
use coracle_control::registry::{Registry, ServiceRange};
use coracle_control::storage::{Embedded, Etcd, EtcdOptions, Storage};
use coracle_control::tunnel::{Dialer, Relay};
use coracle_control::usage::Boards;
use sd_notify::NotifyState;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

pub fn main(serve: &Serve) -> anyhow::Result<()> {
    coracle_store::keep_heap_small();
    let config = serve.configuration()?;
    logging::start();
    // Before any other thread runs: opening the embedded store gives back memory, see coracle-store.
    let embedded = if config.etcd.is_empty() {
        Some(Embedded::open(&config.data_dir.join("store")).context("the store does not open")?)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(config, embedded))
}

async fn run(config: Config, embedded: Option<Embedded>) -> anyhow::Result<()> {
    let storage = match embedded {
        Some(embedded) => Storage::Embedded(embedded),
        None => {
            Storage::Etcd(Box::new(Etcd::connect(&EtcdOptions { endpoints: config.etcd.clone() }).await?))
        }
    };
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("{} cannot be listened on", config.listen))?;
    let address = listener.local_addr()?;
    let services = ServiceRange::parse(&config.service_cidr).map_err(anyhow::Error::msg)?;
    let mut hosts = config.hosts.clone();
    hosts.extend([services.first().to_string(), "127.0.0.1".into()]);
    if !address.ip().is_unspecified() {
        hosts.push(address.ip().to_string());
    }
    hosts.push(advertised(&config, address, false));
    let peer_address = peer_address(&config, address);
    hosts.push(peer_address.ip().to_string());
    let expired = Duration::from_secs(u64::from(config.certificates.expired_days) * 86_400);
    let pki = Pki::open(&config.data_dir.join("pki"), &hosts, expired)?;
    let token_file = config.token_file.clone().unwrap_or_else(|| config.data_dir.join("tokens.csv"));
    if !token_file.exists() {
        make_administrator(&token_file, &config.data_dir, address, &pki)?;
    }
    let tokens = Tokens::open(&config.data_dir.join("pki/sa.key"))?;
    let authenticator = Authenticator::from_token_file(&token_file, tokens.clone())?;
    let registry = Registry::new(storage, services, pki.ca.clone());
    registry.bootstrap(address.port()).await?;
    let _authorization = auth::start(&registry).await?;
    let url = format!("https://{}", advertised(&config, address, true));
    enroll::publish(&registry, &url, &pki.ca).await?;
    let longest = Duration::from_secs(u64::from(config.certificates.days_max) * 86_400);
    let enrollment = Enrollment::new(registry.clone(), &pki, longest);
    let _enrolling = Task(tokio::spawn(enroll::run(enrollment.clone())));
    let mut dialer = Dialer::new(pki.kubelet_client.clone());
    let apiservers = Apiservers::new(registry.clone(), peer_address, api_address(&config, address));
    let _announcing = if matches!(registry.storage(), Storage::Etcd(_)) {
        dialer = dialer.with_relay(Relay::new(apiservers.clone(), pki.peer_client.clone()));
        Task(tokio::spawn(apiservers.announce()))
    } else {
        Task(tokio::spawn(apiservers.publish_alone()))
    };
    let dialer = Arc::new(dialer);
    let boards = Arc::new(Boards::new(dialer.clone()));
    let controllers = controllers::start(registry.clone(), settings(&config)?, boards.clone(), tokens);
    let context = http::Context::new(registry, authenticator, (dialer, boards), enrollment);
    let context = Arc::new(context.with_controllers(controllers));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tracing::info!(%address, "the API is served");
    tell(&[NotifyState::Ready, NotifyState::Status("the API is served")]);
    let outcome = tokio::select! {
        served = http::serve(listener, pki.tls, context) => served.context("the listener failed"),
        // What was acknowledged is durable, so there is nothing to wait for.
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tell(&[NotifyState::Stopping]);
    outcome
}

/// `HOST` or `HOST:PORT` at which boards reach the API, as far as anybody has said.
fn advertised(config: &Config, address: SocketAddr, with_port: bool) -> String {
    let said = match config.advertise.as_str() {
        "" => config.hosts.first().cloned().unwrap_or_default(),
        said => said.to_string(),
    };
    let ip = own_ip(address);
    let said = if said.is_empty() { ip.unwrap_or(Ipv4Addr::LOCALHOST.into()).to_string() } else { said };
    // HOST, HOST:PORT, [V6]:PORT or V6 itself.
    let (host, port) = match said.parse::<IpAddr>() {
        Ok(_) => (said.as_str(), None),
        Err(_) => match said.rsplit_once(':') {
            Some((host, port)) => (host.trim_matches(['[', ']']), port.parse().ok()),
            None => (said.as_str(), None),
        },
    };
    let port: u16 = port.unwrap_or(address.port());
    match (with_port, host.contains(':')) {
        (false, _) => host.to_string(),
        (true, true) => format!("[{host}]:{port}"),
        (true, false) => format!("{host}:{port}"),
    }
}

/// Where pods reach this one. By a name it is reached from outside; pods get an address.
fn api_address(config: &Config, address: SocketAddr) -> SocketAddr {
    let (host, authority) = (advertised(config, address, false), advertised(config, address, true));
    let own = own_ip(address);
    let ip = host.parse().ok().or(own).unwrap_or(address.ip());
    let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    SocketAddr::new(ip, port.unwrap_or(address.port()))
}

/// Where other control planes reach this one.
fn peer_address(config: &Config, address: SocketAddr) -> SocketAddr {
    let ip = own_ip(address);
    let own = SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), address.port());
    config.peer_address.unwrap_or(own)
}

/// The address of this machine, as far as it is known.
fn own_ip(address: SocketAddr) -> Option<IpAddr> {
    if address.ip().is_unspecified() { outward() } else { Some(address.ip()) }
}

/// The address from which this machine would speak to the world. Nothing is sent.
fn outward() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // RFC 5737: nobody's.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Ends with whoever holds it.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How the controllers are to be.
fn settings(config: &Config) -> anyhow::Result<controllers::Settings> {
    let cluster = match config.cluster_cidr.as_str() {
        "" => None,
        cluster => Some(cluster.parse().map_err(anyhow::Error::msg)?),
    };
    Ok(controllers::Settings {
        cluster_cidr: cluster,
        node_monitor_grace: Duration::from_secs(config.node_monitor_grace_seconds.into()),
        autoscaler_sync: Duration::from_secs(config.autoscaler_sync_seconds.into()),
        ..controllers::Settings::default()
    })
}

/// sd_notify(3). Without systemd nothing is sent, and that is no error.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // systemd acts on what it does not hear: it restarts us. Nobody else is to be told.
        tracing::debug!(%error, "systemd was not told");
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
