//! The node's heartbeat: `kube-node-lease/NODE`, renewed every few seconds, as the kubelet does (KEP-589).
//!
//! Nothing of it is on the disk. A renewal that fails is tried again sooner; when the server is back, so is the heartbeat.

use super::backoff::Backoff;
use super::client::{Client, ClientError, Collection};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

const NAMESPACE: &str = "kube-node-lease";
/// The lease holds for so many renewals.
const RENEWALS: u32 = 4;

/// Renews for ever, once the node is registered: until its registrar is gone.
pub(crate) async fn run(
    client: Client,
    node_name: String,
    mut node_uid: watch::Receiver<Option<String>>,
    interval: Duration,
    regained: watch::Sender<u64>,
) {
    let Ok(uid) = node_uid.wait_for(Option::is_some).await.map(|uid| uid.clone().unwrap_or_default()) else {
        return;
    };
    let mut heartbeat = Heartbeat { client, node_name, node_uid: uid, interval, held: None };
    let mut backoff = Backoff::default();
    let mut heard = Instant::now();
    loop {
        let wait = match heartbeat.beat().await {
            Ok(()) => {
                backoff.succeeded();
                // The server may have given this node up meanwhile.
                if heard.elapsed() > interval * 2 {
                    regained.send_modify(|times| *times += 1);
                }
                heard = Instant::now();
                interval
            }
            Err(error) => {
                debug!(%error, "the lease was not renewed");
                if heartbeat.held.take().is_some() {
                    info!(%error, "the lease cannot be renewed; tried again");
                }
                backoff.next().min(interval)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = node_uid.changed() => {
                if changed.is_err() {
                    return;
                }
                heartbeat.node_uid = node_uid.borrow_and_update().clone().unwrap_or_default();
                heartbeat.held = None;
            }
        }
    }
}

struct Heartbeat {
    client: Client,
    node_name: String,
    node_uid: String,
    interval: Duration,
    /// As the server has it.
    held: Option<Lease>,
}

impl Heartbeat {
    async fn beat(&mut self) -> Result<(), ClientError> {
        let path = Collection::LEASES.object(NAMESPACE, &self.node_name);
        let known = match self.held.take() {
            Some(lease) => Some(lease),
            None => match self.client.get::<Lease>(&path).await {
                Ok(lease) => Some(lease),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            },
        };
        let renewed = match known {
            // Somebody may have written in between, or deleted it: then it is read anew for the next try.
            Some(lease) => self.client.update(&path, &self.renewed(lease)).await?,
            None => {
                self.client.create(&Collection::LEASES.of(NAMESPACE), &self.renewed(Lease::default())).await?
            }
        };
        self.held = Some(renewed);
        Ok(())
    }

    fn renewed(&self, mut lease: Lease) -> Lease {
        let seconds = i32::try_from((self.interval * RENEWALS).as_secs()).unwrap_or(i32::MAX);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.node_name.clone()),
            lease_duration_seconds: Some(seconds.max(1)),
            renew_time: Some(MicroTime(jiff::Timestamp::now())),
            ..LeaseSpec::default()
        });
        lease.metadata = ObjectMeta {
            name: Some(self.node_name.clone()),
            namespace: Some(NAMESPACE.into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: self.node_name.clone(),
                uid: self.node_uid.clone(),
                ..OwnerReference::default()
            }]),
            ..lease.metadata
        };
        lease
    }
}
