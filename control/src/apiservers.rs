//! The control planes that serve this cluster: how they know of each other, and where pods find them.
//!
//! ```text
//! alone (embedded storage):  at the start ──────────────────────────────────► Endpoints, EndpointSlice `default/kubernetes`
//! several (etcd): each keeps a Lease ─┬─ who renews writes whose Leases live ─► the same
//!                                     └─ `tunnel/relay` asks who has a board
//! ```
//! One Lease per control plane, in `kube-system`, as upstream's API servers keep: its annotations say where other control
//! planes reach it, and where everybody does. Whether it lives is judged by its changes as they are seen here: clocks are not
//! compared. A Lease that has not been seen to change yet is believed as far as it was published before, so a control plane
//! that starts does not publish again those that are dead. A loopback is nobody else's address: it is not published.

use crate::auth::Identity;
use crate::kinds;
use crate::object::{self, at, name, text};
use crate::registry::options::{DeleteOptions, ListOptions, Query, WriteOptions};
use crate::registry::{Registry, Target};
use coracle_api::decode::Document;
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

const NAMESPACE: &str = "kube-system";
/// Upstream's label of API servers' Leases.
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
/// Where other control planes reach one.
const PEER_ADDRESS: &str = "coracle.dev/peer-address";
/// Where pods and boards reach one.
const API_ADDRESS: &str = "coracle.dev/api-address";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Of the Endpoints: we show them as slices ourselves, as upstream.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// As upstream's.
const RENEW: Duration = Duration::from_secs(10);
/// A Lease that has not changed for so long, as seen here, is nobody's: nobody is asked there or sent there …
const SILENT: Duration = Duration::from_secs(40);
/// … and after this it is removed.
const GONE: Duration = Duration::from_secs(3600);
/// Control planes that are asked, and published.
const PEERS_MAX: usize = 15;

/// The control planes of a cluster. A handle; clones are the same.
#[derive(Clone, Debug)]
pub struct Apiservers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Registry,
    peer: SocketAddr,
    api: SocketAddr,
    /// The name of our own Lease.
    name: String,
    known: Mutex<Known>,
}

/// Leases of others as they were last seen.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    version: String,
    since: Instant,
    /// Whether it was another before.
    renewed: bool,
}

impl Apiservers {
    /// The others reach this one at `peer`, pods at `api`.
    pub fn new(registry: Registry, peer: SocketAddr, api: SocketAddr) -> Apiservers {
        // The same after a restart, so that no Leases pile up.
        let digest = ring::digest::digest(&ring::digest::SHA256, peer.to_string().as_bytes());
        let name = format!("apiserver-{}", &crate::pki::hex(digest.as_ref())[..24]);
        Apiservers(Arc::new(Shared { registry, peer, api, name, known: Mutex::default() }))
    }

    /// Publishes the address of one that is alone; tries again until it is.
    pub async fn publish_alone(self) {
        loop {
            match self.0.publish(&published(self.0.api)).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "the API's address is not published"),
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// Keeps our Lease, publishes who lives, and removes the Leases of control planes that are no more. For ever.
    pub async fn announce(self) {
        loop {
            if let Err(error) = self.0.renew().await
                && !matches!(error.reason, Reason::Conflict | Reason::AlreadyExists)
            {
                tracing::warn!(%error, "the other control planes are not told where this one is");
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// Where the others are that live, as far as anybody knows.
    pub(crate) async fn peers(&self) -> Result<Vec<SocketAddr>, StatusError> {
        let leases = self.0.leases().await?;
        Ok(self.0.known().peers(&self.0.name, &leases, Instant::now()))
    }
}

fn target(group: &str, plural: &str, namespace: &str, name: &str) -> Target {
    let resource = kinds::find(group, "v1", plural).expect("a kind of the table");
    Target { resource, namespace: namespace.into(), name: name.into() }
}

fn lease(name: &str) -> Target {
    target("coordination.k8s.io", "leases", NAMESPACE, name)
}

fn endpoints(name: &str) -> Target {
    target("", "endpoints", "default", name)
}

fn slice(name: &str) -> Target {
    target("discovery.k8s.io", "endpointslices", "default", name)
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn labelled(&self, collection: &Target, key: &str, value: &str) -> Result<Vec<Value>, StatusError> {
        let query = Query::parse(&format!("labelSelector={}%3D{value}", key.replace('/', "%2F")));
        let options = ListOptions::parse(collection.resource, &query)?;
        Ok(self.registry.list(collection, &options).await?.items)
    }

    /// The Leases of all control planes.
    async fn leases(&self) -> Result<Vec<Value>, StatusError> {
        self.labelled(&lease(""), LABEL.0, LABEL.1).await
    }

    async fn renew(&self) -> Result<(), StatusError> {
        let now = crate::clock::micro_stamp(crate::clock::now());
        let annotations = json!({PEER_ADDRESS: self.peer.to_string(), API_ADDRESS: self.api.to_string()});
        let labels = json!({LABEL.0: LABEL.1});
        let spec = json!({
            "holderIdentity": self.name,
            "leaseDurationSeconds": GONE.as_secs(),
            "renewTime": now,
        });
        self.put(&lease(&self.name), |lease| {
            object::set_meta(lease, "labels", labels.clone());
            object::set_meta(lease, "annotations", annotations.clone());
            object::fields(lease).insert("spec".into(), spec.clone());
        })
        .await?;
        let leases = self.leases().await?;
        let before = self.published().await?;
        let now = Instant::now();
        let mut serving = self.known().serving(&self.name, &leases, &before, now);
        serving.extend(published(self.api));
        self.publish(&serving).await?;
        let gone = self.known().gone(&self.name, &leases, now);
        for name in gone {
            self.remove(&lease(&name)).await?;
            tracing::info!(name, "a control plane has been away for an hour and is forgotten");
        }
        Ok(())
    }

    /// What the Endpoints say now.
    async fn published(&self) -> Result<BTreeSet<SocketAddr>, StatusError> {
        match self.registry.get(&endpoints("kubernetes")).await {
            Ok(found) => Ok(addresses(&found)),
            Err(error) if error.reason == Reason::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        }
    }

    /// Writes the Endpoints and their slices, where they differ.
    async fn publish(&self, serving: &BTreeSet<SocketAddr>) -> Result<(), StatusError> {
        let wanted = slices(serving);
        let existing = self.labelled(&slice(""), SERVICE_NAME, "kubernetes").await?;
        for found in
            existing.iter().filter(|found| text(found, &["metadata", "labels", MANAGED_BY]).is_empty())
        {
            let kept = wanted.get(name(found));
            if kept.is_none_or(|kept| kept["addressType"] != found["addressType"]) {
                self.remove(&slice(name(found))).await?;
            }
        }
        for (name, shown) in &wanted {
            self.put(&slice(name), |slice| {
                object::set_meta(slice, "labels", json!({SERVICE_NAME: "kubernetes"}));
                object::fields(slice).extend(shown.as_object().cloned().unwrap_or_default());
            })
            .await?;
        }
        if serving.is_empty() && self.published().await?.is_empty() {
            return Ok(());
        }
        let subsets = subsets(serving);
        self.put(&endpoints("kubernetes"), |endpoints| {
            object::set_meta(endpoints, "labels", json!({SKIP_MIRROR: "true"}));
            object::fields(endpoints).insert("subsets".into(), subsets.clone());
        })
        .await
    }

    /// Writes an object, unless it is so already.
    async fn put(&self, target: &Target, shape: impl Fn(&mut Value)) -> Result<(), StatusError> {
        let who = Identity::apiserver();
        let options = WriteOptions { manager: "kube-apiserver".into(), ..WriteOptions::default() };
        let document = |value| Document { value, duplicates: Vec::new() };
        match self.registry.get(target).await {
            Ok(found) => {
                let mut wanted = found.clone();
                shape(&mut wanted);
                if wanted != found {
                    self.registry.update(&who, target, None, document(wanted), &options).await?;
                }
            }
            Err(error) if error.reason == Reason::NotFound => {
                let mut wanted = json!({"metadata": {"name": target.name, "namespace": target.namespace}});
                shape(&mut wanted);
                let collection = Target { name: String::new(), ..target.clone() };
                self.registry.create(&who, &collection, document(wanted), &options).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn remove(&self, target: &Target) -> Result<(), StatusError> {
        match self.registry.delete(&Identity::apiserver(), target, &DeleteOptions::default()).await {
            Err(error) if error.reason != Reason::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Known {
    /// How long each Lease but our own has not changed, as seen here. Those that are gone are forgotten.
    fn look<'a>(&mut self, own: &str, leases: &'a [Value], now: Instant) -> Vec<(&'a Value, Duration)> {
        let mut seen = BTreeMap::new();
        let mut ages = Vec::new();
        for lease in leases.iter().filter(|lease| name(lease) != own) {
            let version = text(lease, &["metadata", "resourceVersion"]).to_string();
            let latest = match self.0.remove(name(lease)) {
                Some(known) if known.version == version => known,
                known => Seen { version, since: now, renewed: known.is_some() },
            };
            ages.push((lease, now.duration_since(latest.since)));
            seen.insert(name(lease).to_string(), latest);
        }
        self.0 = seen;
        ages
    }

    fn peers(&mut self, own: &str, leases: &[Value], now: Instant) -> Vec<SocketAddr> {
        let ages = self.look(own, leases, now);
        let alive = ages.into_iter().filter(|(_, age)| *age < SILENT);
        alive.filter_map(|(lease, _)| annotated(lease, PEER_ADDRESS)).take(PEERS_MAX).collect()
    }

    /// Where the others serve, of whom `before` is published.
    fn serving(
        &mut self,
        own: &str,
        leases: &[Value],
        before: &BTreeSet<SocketAddr>,
        now: Instant,
    ) -> BTreeSet<SocketAddr> {
        let ages = self.look(own, leases, now);
        let alive = ages.into_iter().filter(|(_, age)| *age < SILENT);
        let found = alive.filter_map(|(lease, _)| Some((name(lease), annotated(lease, API_ADDRESS)?)));
        let renewed = |name: &str| self.0.get(name).is_some_and(|seen| seen.renewed);
        let believed = found.filter(|(name, api)| renewed(name) || before.contains(api));
        believed.flat_map(|(_, api)| published(api)).take(PEERS_MAX).collect()
    }

    fn gone(&mut self, own: &str, leases: &[Value], now: Instant) -> Vec<String> {
        let ages = self.look(own, leases, now);
        let gone = ages.into_iter().filter(|(_, age)| *age >= GONE);
        gone.map(|(lease, _)| name(lease).to_string()).collect()
    }
}

fn annotated(lease: &Value, key: &str) -> Option<SocketAddr> {
    text(lease, &["metadata", "annotations", key]).parse().ok()
}

/// An address as far as others reach it.
fn published(api: SocketAddr) -> BTreeSet<SocketAddr> {
    Some(api).into_iter().filter(|api| kinds::may_be_endpoint(api.ip())).collect()
}

fn addresses(endpoints: &Value) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for subset in object::items(endpoints, &["subsets"]) {
        let ips =
            object::items(subset, &["addresses"]).iter().filter_map(|ip| text(ip, &["ip"]).parse().ok());
        let ports = object::items(subset, &["ports"]).iter();
        let ports: Vec<u16> =
            ports.filter_map(|port| u16::try_from(at(port, &["port"]).as_u64()?).ok()).collect();
        found.extend(ips.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port))));
    }
    found
}

fn ports(port: u16) -> Value {
    json!([{"name": "https", "port": port, "protocol": "TCP"}])
}

/// Addresses by their port.
fn subsets(serving: &BTreeSet<SocketAddr>) -> Value {
    let mut by_port: BTreeMap<u16, Vec<Value>> = BTreeMap::new();
    for address in serving {
        by_port.entry(address.port()).or_default().push(json!({"ip": address.ip().to_string()}));
    }
    let subset = |(port, addresses)| json!({"addresses": addresses, "ports": ports(port)});
    by_port.into_iter().map(subset).collect()
}

/// By name. Upstream has one, for all have one port and one family there; what differs has slices beside it.
fn slices(serving: &BTreeSet<SocketAddr>) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<(bool, u16), Vec<Value>> = BTreeMap::new();
    for address in serving {
        let endpoint = json!({"addresses": [address.ip().to_string()], "conditions": {"ready": true}});
        groups.entry((address.is_ipv6(), address.port())).or_default().push(endpoint);
    }
    let shown = groups.into_iter().enumerate().map(|(index, ((six, port), endpoints))| {
        let family = if six { "IPv6" } else { "IPv4" };
        let name = match index {
            0 => "kubernetes".to_string(),
            _ => format!("kubernetes-{}-{port}", family.to_lowercase()),
        };
        (name, json!({"addressType": family, "endpoints": endpoints, "ports": ports(port)}))
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(all: &[&str]) -> BTreeSet<SocketAddr> {
        all.iter().map(|address| address.parse().expect("an address")).collect()
    }

    fn lease(name: &str, version: u32, address: &str) -> Value {
        let annotations = json!({PEER_ADDRESS: address, API_ADDRESS: address});
        json!({"metadata": {"name": name, "resourceVersion": version.to_string(), "annotations": annotations}})
    }

    #[test]
    fn who_is_silent_is_not_asked_and_forgotten_in_the_end() {
        let start = Instant::now();
        let mut known = Known::default();
        let mut check = |seconds: u64, leases: &[Value], alive: &[&str], gone: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            let found: Vec<String> =
                known.peers("own", leases, now).iter().map(ToString::to_string).collect();
            assert_eq!(found, alive, "at {seconds}");
            assert_eq!(known.gone("own", leases, now), gone, "at {seconds}");
        };
        let (own, bad) = (lease("own", 1, "10.0.0.1:1"), lease("bad", 1, "not an address"));
        check(0, &[own.clone(), bad.clone(), lease("a", 1, "10.0.0.2:6443")], &["10.0.0.2:6443"], &[]);
        check(39, &[lease("a", 1, "10.0.0.2:6443")], &["10.0.0.2:6443"], &[]);
        check(40, &[lease("a", 1, "10.0.0.2:6443")], &[], &[]);
        check(50, &[lease("a", 2, "10.0.0.3:6443"), own], &["10.0.0.3:6443"], &[]);
        check(3649, &[lease("a", 2, "10.0.0.3:6443")], &[], &[]);
        check(3650, &[lease("a", 2, "10.0.0.3:6443")], &[], &["a"]);
        // One that was never seen before is as good as new: clocks are not compared.
        check(9999, &[lease("b", 7, "[fd00::1]:6443")], &["[fd00::1]:6443"], &[]);
    }

    #[test]
    fn who_was_seen_to_live_or_is_published_and_not_silent_serves() {
        let start = Instant::now();
        let mut known = Known::default();
        let mut check = |seconds: u64, leases: &[Value], before: &[&str], expected: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            let found = known.serving("own", leases, &sockets(before), now);
            assert_eq!(found, sockets(expected), "at {seconds}");
        };
        let (a, b) = ("192.0.2.1:6443", "192.0.2.2:6443");
        let both = |first: u32, second: u32| [lease("a", first, a), lease("b", second, b)];
        // Nothing is known of either yet: what is published stays.
        check(0, &both(1, 1), &[a], &[a]);
        check(10, &both(1, 2), &[a], &[a, b]);
        check(40, &both(1, 3), &[a, b], &[b]);
        check(50, &both(2, 4), &[b], &[a, b]);
        let here = "127.0.0.1:6443";
        check(60, &[lease("a", 3, here)], &[here], &[]);
    }

    #[test]
    fn addresses_with_the_same_port_are_together() {
        let serving = sockets(&["192.0.2.2:6443", "192.0.2.1:6443", "192.0.2.3:443", "[2001:db8::1]:443"]);
        let found = subsets(&serving);
        assert_eq!(
            found,
            json!([
                {"addresses": [{"ip": "192.0.2.3"}, {"ip": "2001:db8::1"}], "ports": ports(443)},
                {"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "ports": ports(6443)},
            ])
        );
        assert_eq!(addresses(&json!({"subsets": found})), serving);
        let shown: Vec<_> = slices(&serving)
            .into_iter()
            .map(|(name, slice)| {
                let port = at(&slice["ports"][0], &["port"]).as_u64();
                (name, port, slice["endpoints"].as_array().map(Vec::len))
            })
            .collect();
        let shown: Vec<_> = shown.iter().map(|(name, port, count)| (name.as_str(), *port, *count)).collect();
        assert_eq!(
            shown,
            [
                ("kubernetes", Some(443), Some(1)),
                ("kubernetes-ipv4-6443", Some(6443), Some(2)),
                ("kubernetes-ipv6-443", Some(443), Some(1)),
            ]
        );
    }
}
