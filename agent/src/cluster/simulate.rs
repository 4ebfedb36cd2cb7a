//! `coracle simulate`: boards that are not there, for the figures of a control plane. Debug builds alone have it.
//!
//! Each board joins with the line that it is given, and from there on is the agent's own client code: credentials, client,
//! lease, watch, outbox. Its runtime is a table: a pod runs the moment that it is seen, and is gone the moment that it is to
//! be. Left out: events, the tunnel, objects that pods name, and what changes in a real Node's status.

use super::client::{Client, ClientError, Collection};
use super::clock::Clock;
use super::credentials::Credentials;
use super::join::{self, Join};
use super::reports::{Report, Reports};
use super::watch::Delta;
use super::{lease, pods};
use crate::engine::Message;
use crate::record::Source;
use anyhow::{Context, Result};
use coracle_api::patch::PatchType;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch as cell};
use tokio::task::JoinSet;
use tracing::{info, warn};

/// Boards that join at once.
const JOINS_MAX: usize = 16;
/// Of one board, as the agent's engine has it.
const MESSAGES_MAX: usize = 64;
/// Between reports of a Node's status, as the agent's default.
const STATUS: Duration = Duration::from_secs(300);

/// What `coracle simulate` was told.
#[derive(Debug, clap::Args)]
pub(crate) struct Simulate {
    /// How many.
    #[arg(long)]
    boards: usize,
    /// Where each keeps its credentials.
    #[arg(long)]
    dir: PathBuf,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 10)]
    lease_renew_seconds: u64,
    #[command(flatten)]
    join: Join,
}

/// Runs them until it is killed.
pub(crate) async fn run(simulate: Simulate) -> Result<()> {
    let simulate = Arc::new(simulate);
    let joining = Arc::new(Semaphore::new(JOINS_MAX));
    let mut boards = JoinSet::new();
    for number in 0..simulate.boards {
        boards.spawn(board(number, simulate.clone(), joining.clone()));
    }
    while let Some(ended) = boards.join_next().await {
        ended.context("a board")??;
    }
    Ok(())
}

async fn board(number: usize, simulate: Arc<Simulate>, joining: Arc<Semaphore>) -> Result<()> {
    let name = format!("board-{number:04}");
    let credentials = Credentials::below(&simulate.dir.join(&name));
    let place = joining.acquire().await.context("never closed")?;
    join::join(&credentials, &simulate.join, &name).await?;
    drop(place);
    let client = Client::of_kubeconfig(credentials.kubeconfig(), Arc::new(Clock::of(&[], &[])));
    let (uid, node_uid) = cell::channel(None);
    let interval = Duration::from_secs(simulate.lease_renew_seconds);
    let (engine, heard) = mpsc::channel(MESSAGES_MAX);
    let reports = Reports::default();
    let pods = pods::Pods {
        client: client.clone(),
        node_name: name.clone(),
        node_uid: node_uid.clone(),
        engine,
        reports: reports.clone(),
    };
    tokio::join!(
        node(&client, &name, &uid),
        lease::run(client.clone(), name.clone(), node_uid, interval, cell::channel(0).0),
        pods.run(),
        table(heard, reports, number),
    );
    Ok(())
}

/// Tells the Node's status, for ever. The approval made the Node.
async fn node(client: &Client, name: &str, uid: &cell::Sender<Option<String>>) {
    loop {
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""});
        let room = json!({"cpu": "4", "memory": "4Gi", "pods": "110", "ephemeral-storage": "16Gi"});
        let patch = json!({"status": {"conditions": [ready], "capacity": room, "allocatable": room}});
        let path = Collection::NODES.part("", name, "status");
        let told: Result<Node, ClientError> = client.patch(&path, PatchType::StrategicMerge, &patch).await;
        match told {
            Ok(node) => {
                if uid.send_replace(node.metadata.uid).is_none() {
                    info!(name, "registered");
                }
                tokio::time::sleep(STATUS).await;
            }
            Err(error) => {
                warn!(name, %error, "the node's status was not told");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// The runtime: what is to run runs.
async fn table(mut heard: mpsc::Receiver<Message>, reports: Reports, number: usize) {
    let mut count = 0_usize;
    while let Some(message) = heard.recv().await {
        let Message::Api(delta) = message else { continue };
        let pods = match *delta {
            Delta::All(pods) => pods,
            Delta::Changed(pod) => vec![pod],
            Delta::Deleted(_) => continue,
        };
        for mut pod in pods {
            let gone = pod.metadata.deletion_timestamp.is_some();
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            if !gone && phase == Some("Running") {
                continue;
            }
            count += 1;
            let address = format!("10.{}.{}.{}", 64 + number / 256, number % 256, count % 256);
            pod.status = Some(running(&pod, &address));
            reports.put(Report { pod, source: Source::Api, gone });
        }
    }
}

fn running(pod: &Pod, address: &str) -> PodStatus {
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).expect("a whole second").to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now.as_str()});
    let container = |container: &k8s_openapi::api::core::v1::Container| -> Value {
        json!({
            "name": container.name, "image": container.image, "imageID": "", "containerID": "coracle://0",
            "ready": true, "started": true, "restartCount": 0, "state": {"running": {"startedAt": now.as_str()}},
        })
    };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(container);
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let status = json!({
        "phase": "Running", "startTime": now.as_str(), "podIP": address, "podIPs": [{"ip": address}],
        "conditions": kinds.map(condition), "containerStatuses": containers.collect::<Vec<_>>(),
    });
    serde_json::from_value(status).expect("it is a status")
}
