//! What etcd remembers of the past: five minutes, as upstream. The embedded storage bounds its history by itself.

use crate::storage::{Revision, Storage, StorageError};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(300);

/// Compacts, for ever.
pub async fn run(storage: Storage) {
    if matches!(storage, Storage::Embedded(_)) {
        return std::future::pending().await;
    }
    let mut last = Revision(0);
    loop {
        let before = last;
        match storage.revision().await {
            Ok(revision) => last = revision,
            Err(error) => tracing::warn!(%error, "the history is not compacted"),
        }
        // Nothing was written since: nothing is to be forgotten.
        if before > Revision(0) && before < last {
            match storage.compact(before).await {
                // Another control plane was faster.
                Ok(()) | Err(StorageError::Compacted { .. }) => {}
                Err(error) => tracing::warn!(%error, "the history is not compacted"),
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
