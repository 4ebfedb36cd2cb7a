//! What a pod is to a service: its endpoint, its ports. Pure.

use super::slices::Family;
use crate::object::{at, is_terminating, items, name, namespace, text, uid};
use serde_json::{Map, Value, json};

/// The label of what is behind a service without an address of its own.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

/// `spec.selector`, if the service has pods found for it; one of a name elsewhere has none.
pub fn selector(service: &Value) -> Option<&Map<String, Value>> {
    let selector = at(service, &["spec", "selector"]).as_object().filter(|selector| !selector.is_empty());
    selector.filter(|_| text(service, &["spec", "type"]) != "ExternalName")
}

/// Whether a selector matches labels.
pub fn selects(selector: &Map<String, Value>, labels: &Value) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a service has no address of its own.
pub fn is_headless(service: &Value) -> bool {
    matches!(text(service, &["spec", "clusterIP"]), "" | "None")
}

/// Whether pods that are not ready are shown as if they were.
pub fn publishes_all(service: &Value) -> bool {
    at(service, &["spec", "publishNotReadyAddresses"]).as_bool().unwrap_or_default()
}

/// The families of a service's addresses, the first one first.
pub fn families(service: &Value) -> Vec<Family> {
    let said = items(service, &["spec", "ipFamilies"]).iter().filter_map(Value::as_str);
    let mut families: Vec<Family> = Vec::new();
    for said in said {
        let family = if said == Family::V6.name() { Family::V6 } else { Family::V4 };
        if !families.contains(&family) {
            families.push(family);
        }
    }
    if families.is_empty() {
        families.push(Family::of(text(service, &["spec", "clusterIP"])));
    }
    families
}

/// Whether a pod is behind a service that selects it: it has an address, and has not ended.
pub fn takes_part(pod: &Value) -> bool {
    !matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed") && addresses(pod).next().is_some()
}

/// Whether the pod says that it is ready.
pub fn is_ready(pod: &Value) -> bool {
    let mut conditions = items(pod, &["status", "conditions"]).iter();
    conditions.any(|told| text(told, &["type"]) == "Ready" && text(told, &["status"]) == "True")
}

fn addresses(pod: &Value) -> impl Iterator<Item = &str> {
    let several = items(pod, &["status", "podIPs"]).iter().map(|address| text(address, &["ip"]));
    let single = items(pod, &["status", "podIPs"]).is_empty().then(|| text(pod, &["status", "podIP"]));
    several.chain(single).filter(|address| !address.is_empty())
}

/// The pod's addresses of a family.
pub fn addresses_of(pod: &Value, family: Family) -> Vec<&str> {
    addresses(pod).filter(|address| Family::of(address) == family).collect()
}

/// A reference to the pod, as endpoints have it.
pub fn reference(pod: &Value) -> Value {
    json!({"kind": "Pod", "name": name(pod), "namespace": namespace(pod), "uid": uid(pod)})
}

/// The host name under which the service's name leads to the pod.
pub fn hostname<'a>(service: &Value, pod: &'a Value) -> Option<&'a str> {
    let hostname = text(pod, &["spec", "hostname"]);
    let found = !hostname.is_empty() && text(pod, &["spec", "subdomain"]) == name(service);
    found.then_some(hostname)
}

/// Where a node is.
pub fn zone(node: &Value) -> &str {
    text(node, &["metadata", "labels", ZONE])
}

/// The pod as an `Endpoint`; `None` when it has no address of the family.
pub fn endpoint(service: &Value, pod: &Value, node: Option<&Value>, family: Family) -> Option<Value> {
    let addresses = addresses_of(pod, family);
    if addresses.is_empty() {
        return None;
    }
    let (serving, terminating) = (is_ready(pod), is_terminating(pod));
    let mut endpoint = json!({
        "addresses": addresses,
        "conditions": {
            "ready": publishes_all(service) || serving && !terminating,
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": reference(pod),
    });
    let zone = node.map_or("", zone);
    for (key, value) in [
        ("hostname", hostname(service, pod).unwrap_or_default()),
        ("nodeName", text(pod, &["spec", "nodeName"])),
        ("zone", zone),
    ] {
        if !value.is_empty() {
            endpoint[key] = value.into();
        }
    }
    Some(endpoint)
}

/// The service's ports as the pod serves them: a target's name may be another number in another pod, or nowhere in it.
pub fn ports(service: &Value, pod: &Value) -> Vec<Value> {
    let ports = items(service, &["spec", "ports"]).iter();
    let resolve = |port: &Value| {
        let number = target(pod, port)?;
        let mut found = json!({
            "name": text(port, &["name"]), "port": number, "protocol": text(port, &["protocol"]),
        });
        if let Some(spoken) = port.get("appProtocol").filter(|spoken| spoken.is_string()) {
            found["appProtocol"] = spoken.clone();
        }
        Some(found)
    };
    ports.filter_map(resolve).collect()
}

fn target(pod: &Value, port: &Value) -> Option<i64> {
    let named = match at(port, &["targetPort"]) {
        Value::Number(number) => return number.as_i64(),
        Value::String(named) => named,
        _ => return at(port, &["port"]).as_i64(),
    };
    let sidecars = items(pod, &["spec", "initContainers"]).iter();
    let sidecars = sidecars.filter(|container| text(container, &["restartPolicy"]) == "Always");
    let containers = items(pod, &["spec", "containers"]).iter().chain(sidecars);
    let mut open = containers.flat_map(|container| items(container, &["ports"]));
    let protocol = |port: &Value| match text(port, &["protocol"]) {
        "" => "TCP".to_string(),
        said => said.to_string(),
    };
    let found = open.find(|open| text(open, &["name"]) == named && protocol(open) == protocol(port))?;
    at(found, &["containerPort"]).as_i64()
}

/// What of a pod endpoints are made of: a change of anything else concerns nobody here.
pub fn concerned(pod: &Value) -> impl PartialEq + use<> {
    let copy = |path: &[&str]| at(pod, path).clone();
    (
        copy(&["metadata", "labels"]),
        [copy(&["spec", "nodeName"]), copy(&["spec", "hostname"]), copy(&["spec", "subdomain"])],
        [copy(&["status", "podIPs"]), copy(&["status", "podIP"])],
        (takes_part(pod), is_ready(pod), is_terminating(pod), uid(pod).to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_api::patch;

    fn service(change: Value) -> Value {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "clusterIP": "10.96.0.7",
                "selector": {"app": "web"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": "http"}],
            },
        });
        patch::merge(&mut service, change);
        service
    }

    fn pod(change: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "board-1",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
            },
            "status": {
                "phase": "Running",
                "podIP": "10.244.0.5",
                "podIPs": [{"ip": "10.244.0.5"}, {"ip": "fd00::5"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        patch::merge(&mut pod, change);
        pod
    }

    #[test]
    fn conditions_of_an_endpoint() {
        let check = |svc: Value, change: Value, expected: [bool; 3]| {
            let endpoint = endpoint(&service(svc), &pod(change), None, Family::V4).expect("an address");
            let told = &endpoint["conditions"];
            let expected = json!({"ready": expected[0], "serving": expected[1], "terminating": expected[2]});
            assert_eq!(told, &expected);
        };
        let unready = json!({"status": {"conditions": []}});
        let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let all = json!({"spec": {"publishNotReadyAddresses": true}});
        check(json!({}), json!({}), [true, true, false]);
        check(json!({}), unready.clone(), [false, false, false]);
        check(json!({}), ending.clone(), [false, true, true]);
        check(all.clone(), unready, [true, false, false]);
        check(all, ending, [true, true, true]);
    }

    #[test]
    fn what_an_endpoint_says() {
        let node = json!({"metadata": {"labels": {ZONE: "attic"}}});
        let named = pod(json!({"spec": {"hostname": "web-0", "subdomain": "web"}}));
        let found = endpoint(&service(json!({})), &named, Some(&node), Family::V6).expect("an address");
        assert_eq!(
            found,
            json!({
                "addresses": ["fd00::5"],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "hostname": "web-0",
                "nodeName": "board-1",
                "targetRef": {"kind": "Pod", "name": "p", "namespace": "default", "uid": "u"},
                "zone": "attic",
            })
        );
        let elsewhere = pod(json!({"spec": {"hostname": "web-0", "subdomain": "other"}}));
        assert_eq!(hostname(&service(json!({})), &elsewhere), None);
        let single = pod(json!({"status": {"podIPs": null}}));
        assert_eq!(endpoint(&service(json!({})), &single, None, Family::V6), None);
        assert_eq!(addresses_of(&single, Family::V4), ["10.244.0.5"]);
    }

    #[test]
    fn target_ports_are_found_in_each_pod() {
        let check = |port: Value, change: Value, expected: Option<i64>| {
            let mut service = service(json!({}));
            patch::merge(&mut service["spec"]["ports"][0], port);
            let found = ports(&service, &pod(change));
            assert_eq!(found.first().and_then(|port| port["port"].as_i64()), expected);
        };
        check(json!({}), json!({}), Some(8080));
        check(json!({"targetPort": 99}), json!({}), Some(99));
        check(json!({"targetPort": "other"}), json!({}), None);
        check(json!({"protocol": "UDP"}), json!({}), None);
        let open = json!([{"name": "http", "containerPort": 7, "protocol": "TCP"}]);
        let init = |policy: &str| json!({"spec": {"containers": [], "initContainers": [{"restartPolicy": policy, "ports": open}]}});
        check(json!({}), init("Always"), Some(7));
        check(json!({}), init(""), None);
    }

    #[test]
    fn who_takes_part() {
        let check = |change: Value, expected: bool| assert_eq!(takes_part(&pod(change)), expected);
        check(json!({}), true);
        check(json!({"status": {"phase": "Succeeded"}}), false);
        check(json!({"status": {"phase": "Failed"}}), false);
        check(json!({"status": {"podIP": null, "podIPs": null}}), false);
        check(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), true);
        assert!(
            concerned(&pod(json!({}))) == concerned(&pod(json!({"metadata": {"annotations": {"a": "b"}}})))
        );
        assert!(concerned(&pod(json!({}))) != concerned(&pod(json!({"status": {"conditions": []}}))));
    }

    #[test]
    fn which_services_select() {
        let check = |change: Value, expected: bool| {
            let service = service(change);
            let found = selector(&service).is_some_and(|all| selects(all, &json!({"app": "web", "b": "c"})));
            assert_eq!(found, expected);
        };
        check(json!({}), true);
        check(json!({"spec": {"selector": {"app": "other"}}}), false);
        check(json!({"spec": {"selector": {"more": "x"}}}), false);
        check(json!({"spec": {"selector": null}}), false);
        check(json!({"spec": {"type": "ExternalName"}}), false);
    }
}
