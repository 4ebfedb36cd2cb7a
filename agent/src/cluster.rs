//! The agent as a client of the Kubernetes API: coracle-control's, or an upstream kube-apiserver's.
//!
//! Everything here goes through [`client`], with the credentials of `DIR/cluster/kubeconfig` or of the file that the
//! configuration names. Without either the board stands alone, and nothing of this module runs. No private endpoint is
//! used, and no request is needed for what runs already to go on running.

pub(crate) mod access;
mod backoff;
pub(crate) mod client;
mod clock;
mod correlator;
pub(crate) mod credentials;
pub(crate) mod events;
pub(crate) mod join;
pub(crate) mod kubeconfig;
mod lease;
pub(crate) mod membership;
mod node;
mod node_status;
pub(crate) mod objects;
pub(crate) mod outbox;
mod pin;
mod pods;
mod renew;
pub(crate) mod reports;
mod signing;
#[cfg(debug_assertions)]
pub(crate) mod simulate;
mod status;
mod tunnel;
pub(crate) mod watch;

use crate::config::Config;
use crate::node_api::{Context, port};
use client::Client;
use clock::Clock;
use coracle_runtime::layout::Layout;
use credentials::Credentials;
use k8s_openapi::api::core::v1::Event;
use objects::Wanted;
use reports::Reports;
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
pub(crate) struct Ways {
    pub reports: Reports,
    pub events: mpsc::Sender<Event>,
    pub wanted: cell::Sender<Wanted>,
}

/// What comes out of the [`Ways`], and whose credentials it is told with.
pub(crate) struct Link {
    kubeconfig: PathBuf,
    reports: Reports,
    events: mpsc::Receiver<Event>,
    wanted: cell::Receiver<Wanted>,
}

/// The ways to the API server, if this board belongs to a cluster.
pub(crate) fn link(layout: &Layout, config: &Config) -> Option<(Ways, Link)> {
    let kubeconfig = kubeconfig(layout, config)?;
    let (events, told) = events::queue();
    let reports = Reports::default();
    let (wanted, asked) = cell::channel(Wanted::default());
    let ways = Ways { reports: reports.clone(), events, wanted };
    Some((ways, Link { kubeconfig, reports, events: told, wanted: asked }))
}

/// Starts all that talks to the API. It ends with the engine.
pub(crate) fn start(link: Link, config: &Config, context: &Context) {
    let Context { board, engine, .. } = context.clone();
    let port = config.cluster.kubelet_port;
    let Link { kubeconfig, reports, events: told, wanted } = link;
    let credentials = Credentials::below(&board.settings().layout.data);
    let certificates = [credentials.authority(), credentials.client()].map(|found| found.map(|c| c.validity));
    let [authority, own] = certificates.map(|found| found.as_slice().to_vec());
    let clock = Arc::new(Clock::of(&authority, &own));
    let client = Client::of_kubeconfig(kubeconfig.clone(), clock.clone());
    tokio::spawn(events::run(client.clone(), told));
    tokio::spawn(objects::run(client.clone(), wanted, engine.clone()));
    tokio::spawn(tunnel::run(client.clone(), context.clone()));
    if port > 0 {
        tokio::spawn(serve_port(kubeconfig, port, client.clone(), context.clone()));
    }
    let (uid, node_uid) = cell::channel(None);
    let (regained, silences) = cell::channel(0);
    let interval = Duration::from_secs(config.cluster.lease_renew_seconds);
    let node_name = board.settings().node_name.clone();
    let registrar = node::Registrar {
        client: client.clone(),
        board: board.clone(),
        labels: config.cluster.labels.clone().into_iter().chain(credentials.labels()).collect(),
        thresholds: node_status::Thresholds {
            memory_available_bytes: config.eviction_memory_available_bytes,
            disk_available_percent: config.eviction_disk_available_percent,
        },
        port: port.into(),
        interval,
        report_interval: Duration::from_secs(config.cluster.status_report_seconds),
        regained: silences,
        uid,
    };
    tokio::spawn(registrar.run());
    // Another's kubeconfig is another's to renew.
    if config.cluster.kubeconfig.is_none() {
        let renewal = renew::Renewal { client: client.clone(), credentials, clock, node: node_name.clone() };
        tokio::spawn(renewal.run());
    }
    tokio::spawn(lease::run(client.clone(), node_name.clone(), node_uid.clone(), interval, regained));
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
