//! Which pods are behind which service: EndpointSlices, and the older Endpoints.
//!
//! ```text
//! services, pods, nodes ─► Endpoints ─┬─► slices of 100  (slices)
//!                                     └─► one object of at most 1000 addresses  (legacy)
//! Endpoints of users, for services without a selector ─► Mirroring ─► slices
//! ```
//! Invariants: what is as it should be is not written; decisions are pure, in [`pods`], [`slices`] and [`legacy`].
//!
//! Left out on purpose: `endpoints.kubernetes.io/last-change-trigger-time`, which only upstream's own latency figures read,
//! and topology hints.

mod legacy;
mod mirror;
mod pods;
mod slices;

pub use mirror::Mirroring;

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES};
use super::owned::{controller_reference, ends_with_namespace};
use crate::object::{at, is_terminating, name, namespace, text, uid};
use coracle_api::status::{Reason, StatusError};
use serde_json::{Map, Value};
use slices::{Changes, MANAGED_BY, SERVICE_NAME, Template, Wanted};
use std::collections::BTreeSet;
use std::sync::Arc;

const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// The controller of what is behind services with a selector.
pub struct Endpoints {
    /// Writes slices.
    slices: Client,
    /// Writes Endpoints.
    legacy: Client,
    recorder: Recorder,
}

impl Endpoints {
    /// Over a client for each of upstream's two controllers.
    pub fn new(slices: Client, legacy: Client, recorder: Recorder) -> Endpoints {
        Endpoints { slices, legacy, recorder }
    }

    async fn write_slices(&self, service: &Value, pods: &[Arc<Value>]) -> Result<(), StatusError> {
        let cache = self.slices.cache();
        let families = pods::families(service);
        let mut wanted = Wanted::default();
        for pod in pods.iter().filter(|pod| pods::takes_part(pod)) {
            let node = cache.get(&Key::of(*NODES, "", text(pod, &["spec", "nodeName"])));
            // Its node is gone, and it soon.
            if node.is_none() && !pods::publishes_all(service) {
                continue;
            }
            let ports = pods::ports(service, pod);
            for family in &families {
                if let Some(endpoint) = pods::endpoint(service, pod, node.as_deref(), *family) {
                    wanted.add(*family, &ports, endpoint);
                }
            }
        }
        let existing = slices_of(cache, service, CONTROLLER);
        let changes = slices::plan(wanted, &families, &existing, &template(service));
        let written = write(&self.slices, changes, is_terminating(service)).await;
        if let Err(error) = &written
            && error.reason != Reason::Conflict
        {
            let (namespace, name) = (namespace(service), name(service));
            let why = format!("Error updating Endpoint Slices for Service {namespace}/{name}: {error}");
            self.recorder.say(service, Kind::Warning, "FailedToUpdateEndpointSlices", why);
        }
        written
    }

    async fn write_legacy(&self, service: &Value, pods: &[Arc<Value>]) -> Result<(), StatusError> {
        let key = Key::of(*ENDPOINTS, namespace(service), name(service));
        let current = self.legacy.cache().get(&key);
        let Some(endpoints) = legacy::desired(service, pods, current.as_deref()) else { return Ok(()) };
        let (reason, doing, written) = match current {
            Some(_) => {
                let updated = self.legacy.update(endpoints, None).await;
                ("FailedToUpdateEndpoint", "update", updated)
            }
            None if is_terminating(service) => return Ok(()),
            None => {
                let created = self.legacy.create(*ENDPOINTS, endpoints).await;
                ("FailedToCreateEndpoint", "create", created)
            }
        };
        match written {
            Ok(_) => Ok(()),
            Err(error) if ends_with_namespace(&error) => Ok(()),
            Err(error) => {
                if error.reason != Reason::Conflict {
                    let of = format!("{}/{}", namespace(service), name(service));
                    let why = format!("Failed to {doing} endpoint for service {of}: {error}");
                    self.recorder.say(service, Kind::Warning, reason, why);
                }
                Err(error)
            }
        }
    }
}

/// What all slices of a service say.
fn template(service: &Value) -> Template {
    let mut labels: Map<String, Value> =
        at(service, &["metadata", "labels"]).as_object().cloned().unwrap_or_default();
    labels.remove(pods::HEADLESS);
    if pods::is_headless(service) {
        labels.insert(pods::HEADLESS.into(), "".into());
    }
    labels.insert(SERVICE_NAME.into(), name(service).into());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    Template {
        namespace: namespace(service).into(),
        prefix: name(service).into(),
        owner: controller_reference(service),
        labels,
        annotations: None,
    }
}

/// The slices that an owner has from one of the controllers.
fn slices_of(cache: &Cache, owner: &Value, by: &str) -> Vec<Arc<Value>> {
    let ours = |(key, slice): (Key, Arc<Value>)| {
        let kept = text(&slice, &["metadata", "labels", MANAGED_BY]) == by && !is_terminating(&slice);
        (key.is(*ENDPOINT_SLICES) && kept).then_some(slice)
    };
    cache.owned(uid(owner)).into_iter().filter_map(ours).collect()
}

/// New ones first, so that no endpoint is missing in between.
async fn write(client: &Client, changes: Changes, ending: bool) -> Result<(), StatusError> {
    if !ending {
        for made in client.create_all(*ENDPOINT_SLICES, changes.create).await {
            match made {
                Ok(_) => {}
                Err(error) if ends_with_namespace(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
    for slice in changes.update {
        client.update(slice, None).await?;
    }
    let gone = changes
        .delete
        .iter()
        .map(|slice| (Key::of(*ENDPOINT_SLICES, namespace(slice), name(slice)), uid(slice).to_string()));
    client.delete_all(gone.collect(), Delete::default()).await.into_iter().next().map_or(Ok(()), Err)
}

/// The services of a namespace that select a pod.
fn selecting(cache: &Cache, pod: &Value) -> Vec<Key> {
    let services = cache.list(*SERVICES, namespace(pod)).into_iter();
    let selecting = services.filter(|service| {
        pods::selector(service)
            .is_some_and(|selector| pods::selects(selector, at(pod, &["metadata", "labels"])))
    });
    selecting.map(|service| Key::of(*SERVICES, namespace(&service), name(&service))).collect()
}

impl Controller for Endpoints {
    const NAME: &'static str = "endpointslice";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        let states = || [&change.old, &change.new].into_iter().flatten();
        let objects = || states().filter_map(|entry| cache.object(&change.key, entry));
        if change.of(*SERVICES) {
            return vec![change.key.clone()];
        }
        if change.of(*PODS) {
            let objects: Vec<_> = objects().collect();
            if let [old, new] = &objects[..]
                && pods::concerned(old) == pods::concerned(new)
            {
                return Vec::new();
            }
            let keys: BTreeSet<Key> = objects.iter().flat_map(|pod| selecting(cache, pod)).collect();
            return keys.into_iter().collect();
        }
        if change.of(*NODES) {
            let zones: Vec<_> = objects().map(|node| pods::zone(&node).to_string()).collect();
            if matches!(&zones[..], [old, new] if old == new) {
                return Vec::new();
            }
            let pods = cache.pods_on(change.key.name());
            let keys: BTreeSet<Key> = pods.iter().flat_map(|pod| selecting(cache, pod)).collect();
            return keys.into_iter().collect();
        }
        let label = |key: &'static str, by: &str| {
            let mut objects = objects();
            objects.any(|object| text(&object, &["metadata", "labels", key]) == by)
        };
        if change.of(*ENDPOINTS) && label(legacy::MANAGED_BY, legacy::CONTROLLER) {
            return vec![Key::of(*SERVICES, change.key.namespace(), change.key.name())];
        }
        if change.of(*ENDPOINT_SLICES) && label(MANAGED_BY, CONTROLLER) {
            let named = objects()
                .map(|slice| text(&slice, &["metadata", "labels", SERVICE_NAME]).to_string())
                .map(|name| Key::of(*SERVICES, change.key.namespace(), &name))
                // Whoever labels a slice so must not end the Endpoints of a name without a service.
                .filter(|key| cache.get(key).is_some());
            return named.collect();
        }
        Vec::new()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let cache = self.slices.cache();
        let Some(service) = cache.get(key) else {
            // Slices have an owner; Endpoints, as upstream, have none and go by name.
            let endpoints = Key::of(*ENDPOINTS, key.namespace(), key.name());
            if cache.get(&endpoints).is_some() {
                self.legacy.delete(&endpoints, "", Delete::default()).await?;
            }
            return Ok(Next::Done);
        };
        let Some(selector) = pods::selector(&service) else { return Ok(Next::Done) };
        let pods = cache.labelled(*PODS, key.namespace(), selector);
        let slices = self.write_slices(&service, &pods).await;
        self.write_legacy(&service, &pods).await?;
        slices.map(|()| Next::Done)
    }
}
