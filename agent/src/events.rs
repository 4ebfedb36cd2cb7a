//! Events as `kubectl get events` shows them: counted, bounded, in memory only (they cost no flash write).

use crate::cluster::outbox::mirror_name;
use crate::record::Source;
use coracle_pod::{Event, EventType};
use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// Events kept; the oldest goes first.
const EVENTS_MAX: usize = 512;

/// The newest events of the board.
#[derive(Debug)]
pub(crate) struct Events {
    node_name: String,
    list: VecDeque<ApiEvent>,
    sequence: u64,
    /// To the API server; `None` on a board that stands alone.
    told: Option<mpsc::Sender<ApiEvent>>,
}

impl Events {
    pub(crate) fn new(node_name: String, told: Option<mpsc::Sender<ApiEvent>>) -> Events {
        Events { node_name, list: VecDeque::new(), sequence: 0, told }
    }

    /// Oldest first.
    pub(crate) fn list(&self) -> Vec<ApiEvent> {
        self.list.iter().cloned().collect()
    }

    /// One more about `pod`; an equal one is counted up instead. To the API server a pod of the board's own is its mirror pod.
    pub(crate) fn record(&mut self, pod: &Pod, source: &Source, event: &Event, now: jiff::Timestamp) {
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
        let mirror = match source {
            Source::Api => None,
            Source::Manifest(_) | Source::Apply => Some(mirror_name(pod, &self.node_name)),
        };
        self.add(about, mirror, (kind, event.reason, &event.message), now);
    }

    /// A warning about the board itself.
    pub(crate) fn node_warning(&mut self, reason: &str, message: &str, now: jiff::Timestamp) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(self.node_name.clone()),
            // As the kubelet, and where kubectl describe looks.
            uid: Some(self.node_name.clone()),
            ..Default::default()
        };
        self.add(about, None, ("Warning", reason, message), now);
    }

    /// `mirror`: the object's name in the API, where that is another.
    fn add(
        &mut self,
        about: ObjectReference,
        mirror: Option<String>,
        (kind, reason, message): (&str, &str, &str),
        now: jiff::Timestamp,
    ) {
        self.sequence += 1;
        let unique = |name: &str| {
            // As client-go: no event of this object had this name before, nor with the agent before this one.
            format!("{name}.{:x}", now.as_nanosecond().saturating_add(i128::from(self.sequence)))
        };
        let event = ApiEvent {
            metadata: ObjectMeta {
                name: about.name.as_deref().map(unique),
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
            reporting_component: Some("coracle".into()),
            reporting_instance: Some(self.node_name.clone()),
            ..Default::default()
        };
        if let Some(told) = &self.told {
            let mut event = event.clone();
            if let Some(mirror) = mirror {
                event.metadata.name = Some(unique(&mirror));
                event.involved_object.name = Some(mirror);
            }
            if told.try_send(event).is_err() {
                tracing::debug!(reason, "an event is not told to the API server: too many wait");
            }
        }
        self.keep(event);
    }

    fn keep(&mut self, event: ApiEvent) {
        let same = |e: &&mut ApiEvent| {
            e.involved_object == event.involved_object
                && e.reason == event.reason
                && e.message == event.message
        };
        if let Some(known) = self.list.iter_mut().find(same) {
            known.count = known.count.map(|n| n.saturating_add(1));
            known.last_timestamp = event.last_timestamp;
            return;
        }
        if self.list.len() >= EVENTS_MAX {
            self.list.pop_front();
        }
        self.list.push_back(event);
    }
}
