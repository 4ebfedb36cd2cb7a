//! Events as `kubectl get events` shows them: counted, bounded, in memory only (they cost no flash write).

use coracle_pod::{Event, EventType};
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::VecDeque;

/// Events kept; the oldest goes first.
const EVENTS_MAX: usize = 512;

/// The newest events of the board.
#[derive(Debug)]
pub(crate) struct Events {
    node_name: String,
    list: VecDeque<ApiEvent>,
    sequence: u64,
}

impl Events {
    pub(crate) fn new(node_name: String) -> Events {
        Events { node_name, list: VecDeque::new(), sequence: 0 }
    }

    /// Oldest first.
    pub(crate) fn list(&self) -> Vec<ApiEvent> {
        self.list.iter().cloned().collect()
    }

    /// One more about `pod`; an equal one is counted up instead.
    pub(crate) fn record(&mut self, pod: &Pod, event: &Event, now: jiff::Timestamp) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            field_path: event.field_path.clone(),
            ..Default::default()
        };
        let kind = match event.kind {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        let (namespace, name) = (about.namespace.as_deref(), about.name.as_deref());
        match event.kind {
            EventType::Normal => tracing::info!(namespace, name, reason = event.reason, "{}", event.message),
            EventType::Warning => tracing::warn!(namespace, name, reason = event.reason, "{}", event.message),
        }
        self.add(about, kind, event.reason, &event.message, now);
    }

    /// A warning about the board itself.
    pub(crate) fn node_warning(&mut self, reason: &str, message: &str, now: jiff::Timestamp) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node_name.clone()),
            ..Default::default()
        };
        self.add(about, "Warning", reason, message, now);
    }

    fn add(&mut self, about: ObjectReference, kind: &str, reason: &str, message: &str, now: jiff::Timestamp) {
        let same = |e: &&mut ApiEvent| {
            e.involved_object == about
                && e.reason.as_deref() == Some(reason)
                && e.message.as_deref() == Some(message)
        };
        if let Some(known) = self.list.iter_mut().find(same) {
            known.count = known.count.map(|n| n.saturating_add(1));
            known.last_timestamp = Some(Time(now));
            return;
        }
        if self.list.len() >= EVENTS_MAX {
            self.list.pop_front();
        }
        self.sequence += 1;
        let name = about.name.clone().unwrap_or_default();
        self.list.push_back(ApiEvent {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", self.sequence)),
                namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
                ..Default::default()
            },
            involved_object: about,
            type_: Some(kind.into()),
            reason: Some(reason.into()),
            message: Some(message.into()),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some("coracle".into()),
                host: Some(self.node_name.clone()),
            }),
            ..Default::default()
        });
    }
}
