//! The Node object: registered, and its status kept true.
//!
//! As the kubelet: what changes is told within an interval, what does not is told again every few minutes, and the Lease
//! is the heartbeat. A Node that somebody deleted is registered again, since a control plane that lost its data is to find
//! its boards without anybody's help. Taints and `spec.unschedulable` are the scheduler's business.

use super::backoff::{Backoff, spread};
use super::client::{Client, ClientError, Collection};
use super::node_status::{self, Facts, Thresholds};
use coracle_api::patch::PatchType;
use coracle_runtime::board::Board;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// What the task needs.
pub(crate) struct Registrar {
    pub client: Client,
    pub board: Arc<Board>,
    /// From the configuration.
    pub labels: BTreeMap<String, String>,
    /// Less than this available is memory pressure; 0 = never.
    pub thresholds: Thresholds,
    /// Where the kubelet's API is served.
    pub port: i32,
    /// Between looks at what may have changed.
    pub interval: Duration,
    /// Between reports of what has not.
    pub report_interval: Duration,
    /// Counts how often the API server was heard again after a silence: what it holds of the node is not what it was told.
    pub regained: watch::Receiver<u64>,
    /// Who is told the Node's uid.
    pub uid: watch::Sender<Option<String>>,
}

/// What the API was told last.
struct Told {
    status: NodeStatus,
    again_at: Instant,
}

impl Registrar {
    /// For ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut told = None;
        let mut facts = Facts::default();
        loop {
            let wait = match self.tell(&mut told, &mut facts).await {
                Ok(()) => {
                    backoff.succeeded();
                    self.interval
                }
                Err(error) => {
                    if error.is_not_found() {
                        info!("the API server does not know this node: it is registered");
                        told = None;
                    } else {
                        warn!(%error, "the node's status was not told; tried again");
                    }
                    backoff.next().min(self.interval)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = self.regained.changed() => told = None,
            }
        }
    }

    async fn tell(&self, told: &mut Option<Told>, facts: &mut Facts) -> Result<(), ClientError> {
        let name = &self.board.settings().node_name;
        let board = self.board.clone();
        // Images are read from the disk where they are not in memory.
        let images = tokio::task::spawn_blocking(move || board.images().list()).await;
        let images = images.expect("listing images does not panic").unwrap_or_else(|error| {
            warn!(%error, "the images of the node's status are missing");
            Vec::new()
        });
        facts.look(&self.board, &images, self.thresholds);
        let before = match told {
            Some(told) => told.status.clone(),
            None => self.register(name).await?.status.unwrap_or_default(),
        };
        let now = jiff::Timestamp::now();
        let status = node_status::status(facts, self.port, &before, now);
        let due = told.as_ref().is_none_or(|told| told.again_at <= Instant::now());
        if !due && node_status::same(&status, &before) {
            return Ok(());
        }
        let patch = node_status::patch(&before, &status);
        let path = Collection::NODES.part("", name, "status");
        let node: Node = self.client.patch(&path, PatchType::StrategicMerge, &patch).await?;
        self.announce(&node);
        let again_at = Instant::now() + spread(self.report_interval);
        *told = Some(Told { status, again_at });
        Ok(())
    }

    /// The Node as the API has it, made if need be, with our labels.
    async fn register(&self, name: &str) -> Result<Node, ClientError> {
        let mut labels = node_status::labels(name);
        labels.extend(self.labels.clone());
        let node = match self.client.get::<Node>(&Collection::NODES.object("", name)).await {
            Ok(node) => {
                let has = node.metadata.labels.clone().unwrap_or_default();
                if labels.iter().all(|(key, value)| has.get(key) == Some(value)) {
                    node
                } else {
                    let patch = json!({"metadata": {"labels": labels}});
                    let path = Collection::NODES.object("", name);
                    self.client.patch(&path, PatchType::StrategicMerge, &patch).await?
                }
            }
            Err(error) if error.is_not_found() => {
                let node = Node {
                    metadata: ObjectMeta {
                        name: Some(name.into()),
                        labels: Some(labels),
                        ..ObjectMeta::default()
                    },
                    ..Node::default()
                };
                self.client.create(&Collection::NODES.of(""), &node).await?
            }
            Err(error) => return Err(error),
        };
        self.announce(&node);
        Ok(node)
    }

    fn announce(&self, node: &Node) {
        let uid = node.metadata.uid.clone();
        self.uid.send_if_modified(|known| {
            let news = uid.is_some() && *known != uid;
            if news {
                info!(uid, "registered");
                *known = uid;
            }
            news
        });
    }
}
