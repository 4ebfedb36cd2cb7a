//! Pods whose files have limits: handed out to be measured, and evicted for what was found.

use super::Engine;
use crate::record::Source;
use crate::storage::Limited;
use coracle_pod::observed::Sandbox;
use coracle_pod::spec::PodUid;
use coracle_pod::storage::{self, Excess};
use std::sync::Arc;
use tracing::warn;

impl Engine {
    /// Pods of manifest files are not measured: as the kubelet's static pods they are not evicted, and neither is what is
    /// critical.
    pub(super) fn tell_limited(&self) {
        let limited = self.pods.values().filter(|entry| {
            matches!(entry.observed.sandbox, Sandbox::Ready { .. })
                && entry.observed.eviction.is_none()
                && entry.spec.deletion.is_none()
                && !matches!(entry.record.source, Source::Manifest(_))
                && !entry.ended()
                && storage::is_limited(&entry.spec)
                && !coracle_pod::evict::is_critical(&entry.spec)
        });
        let limited = Limited(limited.map(|entry| entry.spec.clone()).collect());
        self.limited.send_if_modified(|known| {
            let same = known.0.len() == limited.0.len()
                && known.0.iter().zip(&limited.0).all(|(one, other)| Arc::ptr_eq(one, other));
            if !same {
                *known = limited;
            }
            !same
        });
    }

    pub(super) fn storage_exceeded(&mut self, uid: &PodUid, excess: &Excess) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        if entry.observed.eviction.is_none() {
            let message = excess.message(&entry.record.pod);
            warn!(uid = uid.0, message, "evicting a pod");
            entry.observed.eviction = Some(message);
            self.dirty.insert(uid.clone());
        }
    }
}
