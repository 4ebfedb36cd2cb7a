//! What is found behind services: Endpoints, and EndpointSlices.
//!
//! Addresses of a node itself are refused, as upstream: whoever may write endpoints must not have boards send what was meant for
//! a service to their own loopback, or to a cloud's metadata.

use super::pod::{immutable, one_of};
use super::service::PORT_RANGE;
use crate::object::{at, default, default_zero, items, items_mut, text};
use crate::registry::Name;
use coracle_api::field::{Errors, Path, Problem};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of a slice: upstream's bounds.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn default_endpoints(endpoints: &mut Value) {
    for subset in items_mut(endpoints, "subsets") {
        for port in items_mut(subset, "ports") {
            default_zero(port, "protocol", "TCP");
        }
    }
}

pub(super) fn default_endpoint_slice(slice: &mut Value) {
    for port in items_mut(slice, "ports") {
        default(port, "name", "");
        default(port, "protocol", "TCP");
    }
}

pub(super) fn validate_endpoints(endpoints: &Value, errors: &mut Errors) {
    for (index, subset) in items(endpoints, &["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| items(subset, &[list]).is_empty()) {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in lists {
            for (index, address) in items(subset, &[list]).iter().enumerate() {
                let path = path.child(list).index(index);
                let ip = text(address, &["ip"]);
                match ip.parse() {
                    Ok(found) => validate_ip(found, ip, &path.child("ip"), errors),
                    Err(_) => {
                        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                        errors.invalid(&path.child("ip"), ip, why);
                    }
                }
                validate_names(address, &path, errors);
            }
        }
        let ports = items(subset, &["ports"]);
        for (index, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(index);
            if text(port, &["name"]).is_empty() && ports.len() > 1 {
                errors.required(&path.child("name"), "");
            }
            validate_port(port, &path, errors);
        }
    }
}

/// Whether an address may be behind a service.
pub(crate) fn may_be_endpoint(ip: IpAddr) -> bool {
    let mut errors = Errors::default();
    validate_ip(ip, "", &Path::new("ip"), &mut errors);
    errors.is_empty()
}

/// Addresses that are the node's own, or everybody's.
fn validate_ip(ip: IpAddr, said: &str, path: &Path, errors: &mut Errors) {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let checks = [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ];
    for (_, why) in checks.into_iter().filter(|(wrong, _)| *wrong) {
        errors.invalid(path, said, why);
    }
}

fn validate_names(address: &Value, path: &Path, errors: &mut Errors) {
    for (key, form) in [("hostname", Name::Label), ("nodeName", Name::Subdomain)] {
        let name = text(address, &[key]);
        for why in form.problems(name).into_iter().filter(|_| !name.is_empty()) {
            errors.invalid(&path.child(key), name, why);
        }
    }
}

fn validate_port(port: &Value, path: &Path, errors: &mut Errors) {
    let name = text(port, &["name"]);
    for why in Name::Label.problems(name).into_iter().filter(|_| !name.is_empty()) {
        errors.invalid(&path.child("name"), name, why);
    }
    let number = at(port, &["port"]);
    if number.is_number() && !number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
        errors.invalid(&path.child("port"), number.clone(), PORT_RANGE);
    }
    one_of(port, "protocol", PROTOCOLS, path, errors);
}

pub(super) fn validate_slice(slice: &Value, errors: &mut Errors) {
    let path = Path::new("addressType");
    let kind = text(slice, &["addressType"]);
    match kind {
        "" => errors.required(&path, ""),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.not_supported(&path, other, &["FQDN", "IPv4", "IPv6"]),
    }
    let endpoints = items(slice, &["endpoints"]);
    bounded(endpoints.len(), ENDPOINTS_MAX, &Path::new("endpoints"), errors);
    for (index, endpoint) in endpoints.iter().take(ENDPOINTS_MAX).enumerate() {
        let path = Path::new("endpoints").index(index);
        let addresses = items(endpoint, &["addresses"]);
        if addresses.is_empty() {
            errors.required(&path.child("addresses"), "must contain at least 1 address");
        }
        bounded(addresses.len(), ADDRESSES_MAX, &path.child("addresses"), errors);
        for (index, address) in addresses.iter().take(ADDRESSES_MAX).enumerate() {
            let path = path.child("addresses").index(index);
            let address = address.as_str().unwrap_or_default();
            let ip: Option<IpAddr> = match kind {
                "IPv4" => address.parse::<Ipv4Addr>().ok().map(IpAddr::from),
                "IPv6" => address.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                _ => continue,
            };
            match ip {
                Some(ip) => validate_ip(ip, address, &path, errors),
                None => errors.invalid(&path, address, format!("must be a valid {kind} address")),
            }
        }
        validate_names(endpoint, &path, errors);
    }
    let ports = items(slice, &["ports"]);
    bounded(ports.len(), PORTS_MAX, &Path::new("ports"), errors);
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().take(PORTS_MAX).enumerate() {
        let path = Path::new("ports").index(index);
        if !names.insert(text(port, &["name"])) {
            errors.duplicate(&path.child("name"), text(port, &["name"]));
        }
        validate_port(port, &path, errors);
    }
}

fn bounded(count: usize, most: usize, path: &Path, errors: &mut Errors) {
    if count > most {
        errors.push(path, Problem::TooMany(count, most));
    }
}

pub(super) fn update_slice(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(new, old, &["addressType"], errors);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_that_are_not_a_pods_are_refused() {
        let check = |ip: &str, expected: &str| {
            let mut errors = Errors::default();
            validate_endpoints(&json!({"subsets": [{"addresses": [{"ip": ip}]}]}), &mut errors);
            assert_eq!(
                errors.into_result().map_or_else(|errors| errors.to_string(), |()| String::new()),
                expected
            );
            let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
            let slice = json!({"addressType": family, "endpoints": [{"addresses": [ip]}]});
            let mut errors = Errors::default();
            validate_slice(&slice, &mut errors);
            assert_eq!(errors.is_empty(), expected.is_empty(), "{ip}");
        };
        let at = |ip: &str, why: &str| format!("subsets[0].addresses[0].ip: Invalid value: \"{ip}\": {why}");
        check("10.0.0.1", "");
        check("2001:db8::1", "");
        check("127.0.0.1", &at("127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"));
        check("::1", &at("::1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"));
        let link = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
        check("169.254.169.254", &at("169.254.169.254", link));
        check("fe80::1", &at("fe80::1", link));
        check("0.0.0.0", &at("0.0.0.0", "may not be unspecified (0.0.0.0 or ::)"));
        let multicast = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        check("224.0.0.1", &at("224.0.0.1", multicast));
        let nonsense = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        check("nonsense", &at("nonsense", nonsense));
    }

    #[test]
    fn slices_are_bounded_and_of_one_kind() {
        let check = |slice: Value, expected: &str| {
            let mut errors = Errors::default();
            validate_slice(&slice, &mut errors);
            let found = errors.into_result().expect_err("it is wrong").to_string();
            assert!(found.contains(expected), "{found}");
        };
        check(json!({}), "addressType: Required value");
        check(json!({"addressType": "IP"}), "addressType: Unsupported value: \"IP\"");
        let of = |address: &str| json!({"addressType": "IPv4", "endpoints": [{"addresses": [address]}]});
        check(of("::2"), "endpoints[0].addresses[0]: Invalid value: \"::2\": must be a valid IPv4 address");
        let many: Vec<Value> = (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect();
        check(json!({"addressType": "IPv4", "endpoints": many}), "endpoints: Too many: 1001");
        let twice = json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}]);
        check(json!({"addressType": "IPv4", "ports": twice}), "ports[1].name: Duplicate value: \"a\"");
    }
}
