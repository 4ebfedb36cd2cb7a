//! The older form of endpoints (`v1` Endpoints), which many still read. Pure.

use super::pods::{
    HEADLESS, addresses_of, families, hostname, is_headless, is_ready, ports, publishes_all, reference,
    takes_part,
};
use super::slices::Family;
use crate::object::{at, is_terminating, items, name, namespace, text};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Addresses of one object; what is more is left out, and said.
pub const ADDRESSES_MAX: usize = 1000;
/// Says that addresses were left out.
pub const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const TRUNCATED: &str = "truncated";
/// Who keeps the object.
pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// [`MANAGED_BY`] of what is kept here.
pub const CONTROLLER: &str = "endpoint-controller";

/// The object as it is to be, over the one that is there; `None` when nothing is to be written.
pub fn desired(service: &Value, pods: &[Arc<Value>], current: Option<&Value>) -> Option<Value> {
    let subsets = subsets(service, pods);
    let (subsets, truncated) = truncate(subsets);
    let mut labels = at(service, &["metadata", "labels"]).as_object().cloned().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), "".into());
    }
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    let mut endpoints = current.cloned().unwrap_or_else(|| {
        json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": name(service), "namespace": namespace(service)},
        })
    });
    endpoints["metadata"]["labels"] = labels.into();
    let fields = crate::object::fields(&mut endpoints["metadata"]);
    let mut annotations = fields.get("annotations").and_then(Value::as_object).cloned().unwrap_or_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), TRUNCATED.into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        fields.remove("annotations");
    } else {
        fields.insert("annotations".into(), annotations.into());
    }
    let fields = crate::object::fields(&mut endpoints);
    if subsets.is_empty() {
        fields.remove("subsets");
    } else {
        fields.insert("subsets".into(), subsets.into());
    }
    (current != Some(&endpoints)).then_some(endpoints)
}

/// An address, ordered as it is shown.
type Address = (Option<IpAddr>, String, String);

/// `RepackSubsets`: addresses that serve the same ports are together.
fn subsets(service: &Value, pods: &[Arc<Value>]) -> Vec<Value> {
    let family = families(service).first().copied().unwrap_or(Family::V4);
    let without_ports = items(service, &["spec", "ports"]).is_empty();
    // Which addresses serve a port, by the port's text; the text is empty for a service without any.
    let mut served: BTreeMap<(String, String), (Value, BTreeMap<Address, bool>)> = BTreeMap::new();
    for pod in pods {
        let shown = takes_part(pod) && (publishes_all(service) || !is_terminating(pod));
        let Some(ip) = addresses_of(pod, family).first().copied().filter(|_| shown) else { continue };
        let mut address = json!({"ip": ip, "targetRef": reference(pod)});
        for (key, value) in [
            ("hostname", hostname(service, pod).unwrap_or_default()),
            ("nodeName", text(pod, &["spec", "nodeName"])),
        ] {
            if !value.is_empty() {
                address[key] = value.into();
            }
        }
        let ready = publishes_all(service) || is_ready(pod);
        let key: Address = (ip.parse().ok(), crate::object::uid(pod).to_string(), address.to_string());
        let mut add = |port: Value| {
            let by = (text(&port, &["name"]).to_string(), port.to_string());
            served.entry(by).or_insert_with(|| (port, BTreeMap::new())).1.insert(key.clone(), ready);
        };
        if without_ports && is_headless(service) {
            add(Value::Null);
        }
        for mut port in ports(service, pod) {
            if text(&port, &["name"]).is_empty() {
                crate::object::remove(&mut port, "name");
            }
            add(port);
        }
    }
    let mut together: BTreeMap<Vec<(Address, bool)>, Vec<Value>> = BTreeMap::new();
    for (port, addresses) in served.into_values() {
        together.entry(addresses.into_iter().collect()).or_default().push(port);
    }
    together.into_iter().map(|(addresses, ports)| subset(addresses, ports)).collect()
}

fn subset(addresses: Vec<(Address, bool)>, ports: Vec<Value>) -> Value {
    let mut subset = Map::new();
    let (ready, unready): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|(_, ready)| *ready);
    for (key, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
        let addresses: Vec<Value> = addresses
            .into_iter()
            .map(|((.., address), _)| serde_json::from_str(&address).expect("it was JSON"))
            .collect();
        if !addresses.is_empty() {
            subset.insert(key.into(), addresses.into());
        }
    }
    let ports: Vec<Value> = ports.into_iter().filter(|port| !port.is_null()).collect();
    if !ports.is_empty() {
        subset.insert("ports".into(), ports.into());
    }
    subset.into()
}

/// Holds the subsets to [`ADDRESSES_MAX`]: those not ready go first, each subset by its share.
fn truncate(mut subsets: Vec<Value>) -> (Vec<Value>, bool) {
    let count = |key: &str| subsets.iter().map(|subset| items(subset, &[key]).len()).sum::<usize>();
    let (ready, unready) = (count("addresses"), count("notReadyAddresses"));
    if ready + unready <= ADDRESSES_MAX {
        return (subsets, false);
    }
    let (key, total, room) = if ready > ADDRESSES_MAX {
        ("addresses", ready, ADDRESSES_MAX)
    } else {
        ("notReadyAddresses", unready, ADDRESSES_MAX - ready)
    };
    let mut left = room;
    for subset in &mut subsets {
        let here = items(subset, &[key]).len();
        let share = (here * room).div_ceil(total).min(left);
        left -= share;
        let kept = items(subset, &[key])[..share].to_vec();
        let fields = crate::object::fields(subset);
        if key == "addresses" {
            // The ready ones alone are too many.
            fields.remove("notReadyAddresses");
        }
        if kept.is_empty() {
            fields.remove(key);
        } else {
            fields.insert(key.into(), kept.into());
        }
    }
    subsets.retain(|subset| ["addresses", "notReadyAddresses"].iter().any(|key| subset.get(key).is_some()));
    (subsets, true)
}

/// Whether an Endpoints was written by somebody else, who wants it to be seen as slices.
pub fn is_written_by_users(endpoints: &Value) -> bool {
    let label = |key: &str| text(endpoints, &["metadata", "labels", key]);
    label("endpointslice.kubernetes.io/skip-mirror") != "true"
        && label(MANAGED_BY) != CONTROLLER
        && at(endpoints, &["metadata", "annotations", "control-plane.alpha.kubernetes.io/leader"]).is_null()
}

/// The endpoints of an Endpoints: family, ports and the endpoint, at most [`ADDRESSES_MAX`] of each subset.
pub fn mirrored(endpoints: &Value) -> Vec<(Family, Vec<Value>, Value)> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for subset in items(endpoints, &["subsets"]) {
        let ports: Vec<Value> = items(subset, &["ports"]).iter().map(mirrored_port).collect();
        let shown = [("addresses", true), ("notReadyAddresses", false)];
        let all = shown
            .into_iter()
            .flat_map(|(key, ready)| items(subset, &[key]).iter().map(move |address| (address, ready)));
        for (address, ready) in all.take(ADDRESSES_MAX) {
            let ip = text(address, &["ip"]);
            if ip.parse::<IpAddr>().is_err() || !seen.insert((ports.len(), format!("{ports:?}{address}"))) {
                continue;
            }
            let mut endpoint = json!({"addresses": [ip], "conditions": {"ready": ready}});
            for key in ["hostname", "nodeName", "targetRef"] {
                let value = at(address, &[key]);
                if !value.is_null() && value.as_str() != Some("") {
                    endpoint[key] = value.clone();
                }
            }
            found.push((Family::of(ip), ports.clone(), endpoint));
        }
    }
    found
}

fn mirrored_port(port: &Value) -> Value {
    let mut mirrored = json!({"name": text(port, &["name"]), "port": at(port, &["port"])});
    for key in ["protocol", "appProtocol"] {
        if let Some(value) = port.get(key).filter(|value| value.is_string()) {
            mirrored[key] = value.clone();
        }
    }
    mirrored
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_api::patch;

    fn service(change: Value) -> Value {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"tier": "front"}},
            "spec": {
                "clusterIP": "10.96.0.7",
                "selector": {"app": "web"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}],
            },
        });
        patch::merge(&mut service, change);
        service
    }

    fn pod(n: usize, port: u16, ready: bool) -> Arc<Value> {
        let ip = format!("10.1.{}.{}", n / 250, n % 250 + 1);
        Arc::new(json!({
            "metadata": {"name": format!("p{n}"), "namespace": "default", "uid": format!("u{n}")},
            "spec": {"nodeName": "b", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
            "status": {
                "phase": "Running",
                "podIP": ip,
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        }))
    }

    /// Subsets as `ready/unready:ports`.
    fn shape(endpoints: &Value) -> Vec<String> {
        let shown = |subset: &Value| {
            let count = |key: &str| items(subset, &[key]).len();
            let ports = items(subset, &["ports"]).iter().map(|port| port["port"].to_string());
            let ports: Vec<_> = ports.collect();
            format!("{}/{}:{}", count("addresses"), count("notReadyAddresses"), ports.join(","))
        };
        items(endpoints, &["subsets"]).iter().map(shown).collect()
    }

    #[test]
    fn addresses_with_the_same_ports_are_together() {
        let check = |change: Value, pods: &[Arc<Value>], expected: &[&str]| {
            let service = service(change);
            let endpoints = desired(&service, pods, None).expect("a new one");
            assert_eq!(shape(&endpoints), expected);
            assert_eq!(desired(&service, pods, Some(&endpoints)), None, "nothing has changed");
        };
        let pods = [pod(1, 80, true), pod(2, 80, false), pod(3, 81, true)];
        check(json!({}), &[], &[]);
        check(json!({}), &pods, &["1/1:80", "1/0:81"]);
        check(json!({"spec": {"publishNotReadyAddresses": true}}), &pods, &["2/0:80", "1/0:81"]);
        let two = json!({"spec": {"ports": [
            {"name": "a", "port": 1, "targetPort": 1, "protocol": "TCP"},
            {"name": "b", "port": 2, "targetPort": "http", "protocol": "TCP"},
        ]}});
        check(two, &pods[..2], &["1/1:1,80"]);
        check(json!({"spec": {"ports": null}}), &pods, &[]);
        check(json!({"spec": {"ports": null, "clusterIP": "None"}}), &pods, &["2/1:"]);
        let mut ending = (*pods[0]).clone();
        ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        check(json!({}), &[ending.into()], &[]);
    }

    #[test]
    fn a_thousand_addresses_are_shown() {
        let check = |ready: usize, unready: usize, expected: &str| {
            let pods: Vec<_> = (0..ready + unready).map(|n| pod(n, 80, n < ready)).collect();
            let endpoints = desired(&service(json!({})), &pods, None).expect("a new one");
            assert_eq!(shape(&endpoints), [expected]);
            let said = text(&endpoints, &["metadata", "annotations", OVER_CAPACITY]);
            assert_eq!(said, if ready + unready > ADDRESSES_MAX { TRUNCATED } else { "" });
            assert_eq!(desired(&service(json!({})), &pods, Some(&endpoints)), None);
        };
        check(999, 1, "999/1:80");
        check(999, 5, "999/1:80");
        check(1100, 5, "1000/0:80");
    }

    #[test]
    fn what_it_says_of_itself() {
        let pods = [pod(1, 80, true)];
        let endpoints = desired(&service(json!({"spec": {"clusterIP": "None"}})), &pods, None).expect("one");
        let labels = json!({"tier": "front", HEADLESS: "", MANAGED_BY: CONTROLLER});
        assert_eq!(endpoints["metadata"]["labels"], labels);
        assert_eq!(
            endpoints["subsets"],
            json!([{
                "addresses": [{
                    "ip": "10.1.0.2",
                    "nodeName": "b",
                    "targetRef": {"kind": "Pod", "name": "p1", "namespace": "default", "uid": "u1"},
                }],
                "ports": [{"port": 80, "protocol": "TCP"}],
            }])
        );
        let address = desired(&service(json!({})), &pods, Some(&endpoints)).expect("a label goes");
        assert_eq!(address["metadata"]["labels"].get(HEADLESS), None);
    }

    #[test]
    fn which_endpoints_are_mirrored() {
        let check = |metadata: Value, expected: bool| {
            assert_eq!(is_written_by_users(&json!({"metadata": metadata})), expected);
        };
        check(json!({}), true);
        check(json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}), false);
        check(json!({"labels": {MANAGED_BY: CONTROLLER}}), false);
        check(json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}), false);
        let written = json!({"subsets": [{
            "addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}, {"ip": "2001:db8::1", "hostname": "h"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}, {"ip": "nonsense"}],
            "ports": [{"port": 5432, "protocol": "TCP"}],
        }]});
        let found = mirrored(&written);
        let shown: Vec<_> = found
            .iter()
            .map(|(family, ports, endpoint)| {
                let ready = endpoint["conditions"]["ready"].as_bool();
                (family.name(), ports[0]["port"].as_i64(), text(endpoint, &["hostname"]), ready)
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("IPv4", Some(5432), "", Some(true)),
                ("IPv6", Some(5432), "h", Some(true)),
                ("IPv4", Some(5432), "", Some(false)),
            ]
        );
    }
}
