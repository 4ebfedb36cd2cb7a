//! Services, and who may speak to whom.

use super::pod::{one_of, port_name_problems};
use crate::object::{self, at, default, default_zero, fields, items, items_mut, text};
use crate::registry::Name;
use coracle_api::field::{Errors, Path};
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub(super) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
/// Three hours.
const AFFINITY_SECONDS: i64 = 10_800;

pub(super) fn default_service(service: &mut Value) {
    let spec = object::child(service, "spec");
    default_zero(spec, "sessionAffinity", "None");
    if text(spec, &["sessionAffinity"]) == "ClientIP" {
        let client = object::child(object::child(spec, "sessionAffinityConfig"), "clientIP");
        default(client, "timeoutSeconds", AFFINITY_SECONDS);
    } else {
        object::remove(spec, "sessionAffinityConfig");
    }
    default_zero(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        default_zero(port, "protocol", "TCP");
        let number = at(port, &["port"]).clone();
        default_zero(port, "targetPort", number);
    }
    let kind = text(spec, &["type"]).to_string();
    if kind != "ExternalName" {
        default_zero(spec, "internalTrafficPolicy", "Cluster");
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", "SingleStack");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

pub(super) fn prepare_service(service: &mut Value) {
    fields(service).insert("status".into(), json!({"loadBalancer": {}}));
}

/// What an update leaves out is as it was; what another type has no use for is dropped.
pub(super) fn update_service(new: &mut Value, old: &Value) {
    let kind = text(new, &["spec", "type"]).to_string();
    let spec = object::child(new, "spec");
    if kind == "ExternalName" {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            object::remove(spec, key);
        }
        return;
    }
    if text(spec, &["clusterIP"]).is_empty() {
        for key in ["clusterIP", "clusterIPs"] {
            let value = at(old, &["spec", key]);
            if !value.is_null() {
                fields(spec).insert(key.into(), value.clone());
            }
        }
    }
    let wants_ports = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    for port in items_mut(spec, "ports") {
        if !wants_ports && at(old, &["spec", "type"]) != kind.as_str() {
            object::remove(port, "nodePort");
        }
        let same =
            |other: &&Value| ["port", "protocol"].iter().all(|key| at(other, &[key]) == at(port, &[key]));
        let before = items(old, &["spec", "ports"]).iter().find(same);
        let before = before.map_or(&Value::Null, |port| at(port, &["nodePort"])).clone();
        if wants_ports && before.is_number() {
            default(port, "nodePort", before);
        }
    }
}

pub(super) fn validate_service(service: &Value, errors: &mut Errors) {
    let (spec, path) = (at(service, &["spec"]), Path::new("spec"));
    let kind = text(spec, &["type"]);
    let headless = text(spec, &["clusterIP"]) == "None";
    let ports = items(spec, &["ports"]);
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.required(&path.child("ports"), "");
    }
    if kind == "ExternalName" {
        let name = text(spec, &["externalName"]).trim_end_matches('.');
        if name.is_empty() {
            errors.required(&path.child("externalName"), "");
        } else {
            for why in Name::Subdomain.problems(name) {
                errors.invalid(&path.child("externalName"), name, why);
            }
        }
        if !matches!(text(spec, &["clusterIP"]), "" | "None") {
            let why = "may not be set when `type` is 'ExternalName'";
            errors.forbidden(&path.child("clusterIPs"), why);
        }
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        validate_port(port, ports.len() > 1, &mut names, &path.child("ports").index(index), errors);
    }
    crate::registry::validate_labels(at(spec, &["selector"]), &path.child("selector"), errors);
    one_of(spec, "sessionAffinity", &["ClientIP", "None"], &path, errors);
    one_of(spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &path, errors);
    let mut seen: Vec<Value> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let key = json!({"port": at(port, &["port"]), "protocol": at(port, &["protocol"])});
        if seen.contains(&key) {
            errors.duplicate(&path.child("ports").index(index), key.clone());
        }
        seen.push(key);
    }
}

fn validate_port<'a>(
    port: &'a Value,
    named: bool,
    names: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    let name = text(port, &["name"]);
    if name.is_empty() && named {
        errors.required(&path.child("name"), "");
    } else if !name.is_empty() {
        for why in Name::Label.problems(name) {
            errors.invalid(&path.child("name"), name, why);
        }
        if !names.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
    let number = at(port, &["port"]).as_i64().unwrap_or_default();
    if !(1..=65535).contains(&number) {
        errors.invalid(&path.child("port"), number, PORT_RANGE);
    }
    one_of(port, "protocol", &["SCTP", "TCP", "UDP"], path, errors);
    match at(port, &["targetPort"]) {
        Value::Number(number) if number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) => {}
        Value::Number(number) => errors.invalid(&path.child("targetPort"), number.as_i64(), PORT_RANGE),
        Value::String(name) => {
            for why in port_name_problems(name) {
                errors.invalid(&path.child("targetPort"), name.as_str(), why);
            }
        }
        _ => {}
    }
}

pub(super) fn validate_service_update(new: &Value, old: &Value, errors: &mut Errors) {
    let address = text(new, &["spec", "clusterIP"]);
    let before = text(old, &["spec", "clusterIP"]);
    let external = [new, old].iter().any(|service| text(service, &["spec", "type"]) == "ExternalName");
    if !external && !before.is_empty() && address != before {
        let path = Path::new("spec").child("clusterIPs").index(0);
        errors.invalid(&path, json!([address]), "may not change once set");
    }
}

pub(super) fn default_network_policy(policy: &mut Value) {
    let spec = object::child(policy, "spec");
    for direction in ["ingress", "egress"] {
        for rule in items_mut(spec, direction) {
            for port in items_mut(rule, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    }
    object::child(spec, "podSelector");
    let types =
        if items(spec, &["egress"]).is_empty() { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
    default(spec, "policyTypes", types);
}

pub(super) fn validate_network_policy(policy: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    coracle_api::selector::validate(at(policy, &["spec", "podSelector"]), &path.child("podSelector"), errors);
    for (index, kind) in items(policy, &["spec", "policyTypes"]).iter().enumerate() {
        if !matches!(kind.as_str(), Some("Ingress" | "Egress")) {
            errors.not_supported(
                &path.child("policyTypes").index(index),
                kind.clone(),
                &["Egress", "Ingress"],
            );
        }
    }
}

pub(super) fn default_ingress(ingress: &mut Value) {
    object::child(ingress, "spec");
}
