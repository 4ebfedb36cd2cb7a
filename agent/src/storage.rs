//! Measures the files of pods that have limits for them, and of no others: without such pods nothing is ever done.
//!
//! A period and no event: the kernel tells nobody that a tree grows, short of a watch for every directory in it.

use crate::engine::Message;
use coracle_pod::PodSpec;
use coracle_pod::storage::excess;
use coracle_runtime::board::Board;
use coracle_runtime::disk;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tracing::warn;

/// Between the end of one round and the next (kubelet: the eviction manager's `monitoringInterval`) …
const PERIOD: Duration = Duration::from_secs(10);
/// … or so many times as long as the round took, if that is longer.
const REST: u32 = 20;

/// The pods to be measured.
#[derive(Debug, Default)]
pub(crate) struct Limited(pub Vec<Arc<PodSpec>>);

/// Tells the engine which pods exceed their limits. Runs until it is gone.
pub(crate) async fn watch(
    board: Arc<Board>,
    mut limited: watch::Receiver<Limited>,
    inbox: mpsc::Sender<Message>,
) {
    loop {
        if limited.wait_for(|limited| !limited.0.is_empty()).await.is_err() {
            return;
        }
        tokio::time::sleep(PERIOD).await;
        let begun = Instant::now();
        let pods = limited.borrow().0.clone();
        for pod in pods {
            let (board, spec) = (board.clone(), pod.clone());
            let measured =
                tokio::task::spawn_blocking(move || disk::usage(&board.settings().layout, &spec)).await;
            let usage = match measured.expect("measuring does not panic") {
                Ok(usage) => usage,
                Err(error) => {
                    warn!(uid = pod.uid.0, %error, "the files of a pod cannot be measured");
                    continue;
                }
            };
            if let Some(excess) = excess(&pod, &usage) {
                let uid = pod.uid.clone();
                if inbox.send(Message::StorageExceeded { uid, excess }).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(begun.elapsed().saturating_mul(REST).saturating_sub(PERIOD)).await;
    }
}
