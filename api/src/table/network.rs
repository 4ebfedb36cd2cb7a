//! The rows of services, endpoints and what else concerns the network.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::cell::{NONE, UNKNOWN, UNSET, first, int, labels, list, made, name, or, selector, text};

/// Addresses and ports shown before the rest is counted.
const SHOWN: usize = 3;

pub(super) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let ports: Vec<_> = list(&spec["ports"])
        .iter()
        .map(|port| {
            let (number, protocol) = (int(&port["port"]), or(&port["protocol"], "TCP"));
            match int(&port["nodePort"]) {
                0 => format!("{number}/{protocol}"),
                node => format!("{number}:{node}/{protocol}"),
            }
        })
        .collect();
    vec![
        name(object),
        or(&spec["type"], "ClusterIP").into(),
        or(&spec["clusterIPs"][0], or(&spec["clusterIP"], NONE)).into(),
        external(object).into(),
        if ports.is_empty() { NONE.into() } else { ports.join(",").into() },
        made(object, now),
        labels(&spec["selector"]).into(),
    ]
}

fn external(object: &Value) -> String {
    let spec = &object["spec"];
    let own: Vec<_> = list(&spec["externalIPs"]).iter().map(text).collect();
    match or(&spec["type"], "ClusterIP") {
        "ClusterIP" | "NodePort" if own.is_empty() => NONE.to_owned(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let given = balancer(object);
            match (given.is_empty(), own.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (false, true) => given,
                (true, false) => own.join(","),
                (false, false) => format!("{given},{}", own.join(",")),
            }
        }
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

/// The addresses or names that a load balancer gave, sorted.
fn balancer(object: &Value) -> String {
    let ingress = list(&object["status"]["loadBalancer"]["ingress"]).iter();
    let given: BTreeSet<_> =
        ingress.map(|i| or(&i["ip"], text(&i["hostname"]))).filter(|address| !address.is_empty()).collect();
    given.into_iter().collect::<Vec<_>>().join(",")
}

pub(super) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(&object["subsets"]) {
        let addresses = || list(&subset["addresses"]).iter().map(|a| text(&a["ip"]));
        let ports = list(&subset["ports"]);
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{}", int(&port["port"])),
                false => format!("{ip}:{}", int(&port["port"])),
            }));
        }
    }
    let shown = if list(&object["subsets"]).is_empty() { NONE.to_owned() } else { first(&all, SHOWN, ",") };
    vec![name(object), shown.into(), made(object, now)]
}

pub(super) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = list(&object["ports"]).iter();
    let ports: Vec<_> =
        ports.map(|p| p["port"].as_i64().map_or_else(|| "*".to_owned(), |n| n.to_string())).collect();
    let addresses = list(&object["endpoints"]).iter().flat_map(|e| list(&e["addresses"]));
    let addresses: Vec<_> = addresses.map(|a| text(a).to_owned()).collect();
    let shown = |items: &[String]| if items.is_empty() { UNSET.to_owned() } else { first(items, SHOWN, ",") };
    vec![
        name(object),
        text(&object["addressType"]).into(),
        shown(&ports).into(),
        shown(&addresses).into(),
        made(object, now),
    ]
}

pub(super) fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), selector(&object["spec"]["podSelector"]).into(), made(object, now)]
}

pub(super) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let hosts: Vec<_> = list(&spec["rules"])
        .iter()
        .map(|rule| text(&rule["host"]).to_owned())
        .filter(|host| !host.is_empty())
        .collect();
    vec![
        name(object),
        or(&spec["ingressClassName"], NONE).into(),
        if hosts.is_empty() { "*".into() } else { first(&hosts, SHOWN, ",").into() },
        balancer(object).into(),
        if list(&spec["tls"]).is_empty() { "80" } else { "80, 443" }.into(),
        made(object, now),
    ]
}

pub(super) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &object["spec"]["parameters"];
    let shown = match (text(&parameters["kind"]), text(&parameters["apiGroup"])) {
        ("", _) => NONE.to_owned(),
        (kind, "") => format!("{kind}/{}", text(&parameters["name"])),
        (kind, group) => format!("{kind}.{group}/{}", text(&parameters["name"])),
    };
    vec![name(object), text(&object["spec"]["controller"]).into(), shown.into(), made(object, now)]
}
