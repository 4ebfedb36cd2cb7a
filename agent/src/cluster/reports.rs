//! What the engine tells of its pods, on the way to the API server: the newest of each pod, and nothing older.
//!
//! The engine never waits here, and a server that cannot be reached makes nothing grow: there is one report a pod.

use crate::record::Source;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// How a pod is.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// With its status.
    pub pod: Pod,
    pub source: Source,
    /// It was to be deleted, and nothing of it is left on this board.
    pub gone: bool,
}

impl Report {
    /// The pod's uid on this board.
    pub(crate) fn uid(&self) -> String {
        self.pod.metadata.uid.clone().unwrap_or_default()
    }
}

/// See the module. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reports(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By uid.
    waiting: Mutex<BTreeMap<String, Report>>,
    news: Notify,
}

impl Reports {
    /// Replaces what waits of this pod.
    pub(crate) fn put(&self, report: Report) {
        self.waiting().insert(report.uid(), report);
        self.0.news.notify_one();
    }

    /// What waits, once there is something. May be dropped: nothing is lost. For one reader.
    pub(crate) async fn take(&self) -> BTreeMap<String, Report> {
        loop {
            let waiting = std::mem::take(&mut *self.waiting());
            if !waiting.is_empty() {
                return waiting;
            }
            self.0.news.notified().await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Report>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
