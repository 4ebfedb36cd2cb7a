//! The agent as a client of the Kubernetes API: coracle-control's, or an upstream kube-apiserver's.
//!
//! Everything here goes through [`client`], with the credentials of `DIR/cluster/kubeconfig` or of the file that the
//! configuration names. Without either the board stands alone, and nothing of this module runs. No private endpoint is
//! used, and no request is needed for what runs already to go on running.

pub(crate) mod access;
mod backoff;
pub(crate) mod client;
mod correlator;
pub(crate) mod events;
pub(crate) mod kubeconfig;
mod lease;
mod node;
mod node_status;
pub(crate) mod outbox;
mod pods;
pub(crate) mod reports;
mod status;
mod tunnel;
pub(crate) mod watch;

use crate::config::Config;
use crate::node_api::{Context, port};
use client::Client;
use coracle_runtime::layout::Layout;
use k8s_openapi::api::core::v1::Event;
use reports::Reports;
use rustls::time_provider::DefaultTimeProvider;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch as cell};

/// The kubeconfig, if this board belongs to a cluster.
fn kubeconfig(layout: &Layout, config: &Config) -> Option<PathBuf> {
    let joined = layout.data.join("cluster").join("kubeconfig");
    config.cluster.kubeconfig.clone().or_else(|| joined.exists().then_some(joined))
}

/// What the engine tells the API server through; it never waits for it.
#[derive(Clone)]
pub(crate) struct Ways {
    pub reports: Reports,
    pub events: mpsc::Sender<Event>,
}

/// What comes out of the [`Ways`], and whose credentials it is told with.
pub(crate) struct Link {
    kubeconfig: PathBuf,
    reports: Reports,
    events: mpsc::Receiver<Event>,
}

/// The ways to the API server, if this board belongs to a cluster.
pub(crate) fn link(layout: &Layout, config: &Config) -> Option<(Ways, Link)> {
    let kubeconfig = kubeconfig(layout, config)?;
    let (events, told) = events::queue();
    let reports = Reports::default();
    Some((Ways { reports: reports.clone(), events }, Link { kubeconfig, reports, events: told }))
}

/// Starts all that talks to the API. It ends with the engine.
pub(crate) fn start(link: Link, config: &Config, context: &Context) {
    let Context { board, engine, .. } = context.clone();
    let port = config.cluster.kubelet_port;
    let Link { kubeconfig, reports, events: told } = link;
    let client = Client::of_kubeconfig(kubeconfig.clone(), Arc::new(DefaultTimeProvider));
    tokio::spawn(events::run(client.clone(), told));
    tokio::spawn(tunnel::run(client.clone(), context.clone()));
    if port > 0 {
        tokio::spawn(serve_port(kubeconfig, port, client.clone(), context.clone()));
    }
    let (uid, node_uid) = cell::channel(None);
    let interval = Duration::from_secs(config.cluster.lease_renew_seconds);
    let node_name = board.settings().node_name.clone();
    let registrar = node::Registrar {
        client: client.clone(),
        board: board.clone(),
        labels: config.cluster.labels.clone(),
        memory_available_bytes: config.eviction_memory_available_bytes,
        port: port.into(),
        interval,
        report_interval: Duration::from_secs(config.cluster.status_report_seconds),
        uid,
    };
    tokio::spawn(registrar.run());
    tokio::spawn(lease::run(client.clone(), node_name.clone(), node_uid.clone(), interval));
    tokio::spawn(pods::Pods { client, node_name, node_uid, engine, reports }.run());
}

/// The kubelet's port, for as long as the agent runs. A board does without where it cannot be had.
async fn serve_port(kubeconfig: PathBuf, port: u16, client: Client, context: Context) {
    let authority = kubeconfig::Kubeconfig::read(&kubeconfig).map(|config| config.authority);
    let Ok(Some(authority)) = authority else {
        return tracing::warn!(
            "the kubelet's port is not served: the kubeconfig names no authority of the cluster"
        );
    };
    let dir = kubeconfig.parent().unwrap_or(Path::new("/"));
    if let Err(error) = port::serve(port, &authority, dir, client, context).await {
        tracing::warn!(%error, "the kubelet's port is not served; the tunnel does without");
    }
}
