//! Endpoints that users write for services without a selector, shown as slices.

use super::slices::{self, Family, MANAGED_BY, SERVICE_NAME, Template, Wanted};
use super::{legacy, pods, slices_of, write};
use crate::controllers::cache::{Cache, Change};
use crate::controllers::client::{Client, Delete};
use crate::controllers::frame::{Controller, Next};
use crate::controllers::key::Key;
use crate::controllers::kinds::{ENDPOINT_SLICES, ENDPOINTS, SERVICES};
use crate::controllers::owned::controller_reference;
use crate::object::{at, is_terminating, name, namespace, text, uid};
use coracle_api::status::StatusError;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// Annotations that concern the Endpoints alone.
const OWN_ANNOTATIONS: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// The controller.
pub struct Mirroring {
    client: Client,
}

impl Mirroring {
    /// Over a client.
    pub fn new(client: Client) -> Mirroring {
        Mirroring { client }
    }

    /// Whether the Endpoints is a user's, and its service leaves it to them.
    fn is_mirrored(&self, endpoints: &Value) -> bool {
        let service = Key::of(*SERVICES, namespace(endpoints), name(endpoints));
        let service = self.client.cache().get(&service);
        !is_terminating(endpoints)
            && legacy::is_written_by_users(endpoints)
            && service.is_some_and(|service| pods::selector(&service).is_none())
    }
}

fn template(endpoints: &Value) -> Template {
    let map = |key: &str| -> Map<String, Value> {
        at(endpoints, &["metadata", key]).as_object().cloned().unwrap_or_default()
    };
    let (mut labels, mut annotations) = (map("labels"), map("annotations"));
    labels.insert(SERVICE_NAME.into(), name(endpoints).into());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    for key in OWN_ANNOTATIONS {
        annotations.remove(key);
    }
    Template {
        namespace: namespace(endpoints).into(),
        prefix: name(endpoints).into(),
        owner: controller_reference(endpoints),
        labels,
        annotations: Some(annotations),
    }
}

impl Controller for Mirroring {
    const NAME: &'static str = "endpointslicemirroring";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        let named = |name: &str| Key::of(*ENDPOINTS, change.key.namespace(), name);
        if change.of(*ENDPOINTS) || change.of(*SERVICES) {
            return vec![named(change.key.name())];
        }
        if !change.of(*ENDPOINT_SLICES) {
            return Vec::new();
        }
        let states = [&change.old, &change.new].into_iter().flatten();
        let slices = states.filter_map(|entry| cache.object(&change.key, entry));
        let ours = slices.filter(|slice| text(slice, &["metadata", "labels", MANAGED_BY]) == CONTROLLER);
        ours.map(|slice| named(text(&slice, &["metadata", "labels", SERVICE_NAME]))).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(endpoints) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let existing = slices_of(self.client.cache(), &endpoints, CONTROLLER);
        if !self.is_mirrored(&endpoints) {
            let gone = existing.iter().map(|slice| {
                (Key::of(*ENDPOINT_SLICES, namespace(slice), name(slice)), uid(slice).to_string())
            });
            let failed = self.client.delete_all(gone.collect(), Delete::default()).await;
            return failed.into_iter().next().map_or(Ok(Next::Done), Err);
        }
        let mut wanted = Wanted::default();
        let mut families = BTreeSet::new();
        for (family, ports, endpoint) in legacy::mirrored(&endpoints) {
            families.insert(family);
            wanted.add(family, &ports, endpoint);
        }
        if families.is_empty() {
            families.insert(Family::V4);
        }
        let families: Vec<Family> = families.into_iter().collect();
        let changes = slices::plan(wanted, &families, &existing, &template(&endpoints));
        write(&self.client, changes, false).await?;
        Ok(Next::Done)
    }
}
