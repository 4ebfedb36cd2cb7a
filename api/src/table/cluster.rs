//! The rows of nodes, events, volumes, access and the rest of a cluster.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::cell::{NONE, UNKNOWN, UNSET, deleted, int, list, made, name, or, plain, text};

/// Kinds that show no more than their age.
pub(super) fn named(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), made(object, now)]
}

pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let info = &object["status"]["nodeInfo"];
    let ready = list(&object["status"]["conditions"]).iter().find(|c| text(&c["type"]) == "Ready");
    let mut status = match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == true {
        status += ",SchedulingDisabled";
    }
    let address = |kind: &str| {
        let found = list(&object["status"]["addresses"]).iter().find(|a| text(&a["type"]) == kind);
        Value::from(found.map_or(NONE, |a| text(&a["address"])))
    };
    vec![
        name(object),
        status.into(),
        roles(object).into(),
        made(object, now),
        text(&info["kubeletVersion"]).into(),
        address("InternalIP"),
        address("ExternalIP"),
        or(&info["osImage"], UNKNOWN).into(),
        or(&info["kernelVersion"], UNKNOWN).into(),
        or(&info["containerRuntimeVersion"], UNKNOWN).into(),
    ]
}

fn roles(object: &Value) -> String {
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let role = |(key, value): (&'_ String, &'_ Value)| match key.strip_prefix("node-role.kubernetes.io/") {
        Some(role) => role.to_owned(),
        None if key == "kubernetes.io/role" => text(value).to_owned(),
        None => String::new(),
    };
    let roles: BTreeSet<_> = labels.map(role).filter(|role| !role.is_empty()).collect();
    if roles.is_empty() { NONE.to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

/// Events of both groups: the newer one has other names for the same.
pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |old: &str, new: &str| match &object[old] {
        Value::Null => object[new].clone(),
        value => value.clone(),
    };
    let mut first = either("firstTimestamp", "deprecatedFirstTimestamp");
    if first.is_null() {
        first = object["eventTime"].clone();
    }
    let mut last = either("lastTimestamp", "deprecatedLastTimestamp");
    if last.is_null() {
        last = first.clone();
    }
    let mut count = int(&either("count", "deprecatedCount")).max(1);
    if let series @ Value::Object(_) = &object["series"] {
        (last, count) = (series["lastObservedTime"].clone(), int(&series["count"]));
    }
    let about = either("involvedObject", "regarding");
    let kind = text(&about["kind"]).to_lowercase();
    let target = match text(&about["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = either("source", "deprecatedSource");
    let controller = either("reportingComponent", "reportingController");
    let mut from = or(&source["component"], text(&controller)).to_owned();
    let host = or(&source["host"], text(&object["reportingInstance"]));
    if !host.is_empty() {
        from += &format!(", {host}");
    }
    vec![
        age::since(&last, now).into(),
        text(&object["type"]).into(),
        text(&object["reason"]).into(),
        target.into(),
        text(&about["fieldPath"]).into(),
        from.into(),
        text(&either("message", "note")).trim().into(),
        age::since(&first, now).into(),
        count.into(),
        name(object),
    ]
}

pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["status"]["phase"]).into(), made(object, now)]
}

fn entries(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = entries(&object["data"]) + entries(&object["binaryData"]);
    vec![name(object), count.into(), made(object, now)]
}

pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["type"]).into(), entries(&object["data"]).into(), made(object, now)]
}

/// `RWO,ROX`, each once, in upstream's order.
fn modes(modes: &Value) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| list(modes).iter().any(|m| text(m) == mode);
    SHORT.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn phase(object: &Value) -> &str {
    if deleted(object) { "Terminating" } else { text(&object["status"]["phase"]) }
}

/// The class, which an older annotation may name.
fn class(object: &Value) -> &str {
    or(
        &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"],
        text(&object["spec"]["storageClassName"]),
    )
}

pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let claim = match &spec["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
    };
    vec![
        name(object),
        plain(&spec["capacity"]["storage"]).into(),
        modes(&spec["accessModes"]).into(),
        text(&spec["persistentVolumeReclaimPolicy"]).into(),
        phase(object).into(),
        claim.into(),
        class(object).into(),
        or(&spec["volumeAttributesClassName"], UNSET).into(),
        text(&object["status"]["reason"]).into(),
        made(object, now),
        or(&spec["volumeMode"], UNSET).into(),
    ]
}

pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let bound = !text(&spec["volumeName"]).is_empty();
    let when_bound = |text: String| Value::from(if bound { text } else { String::new() });
    vec![
        name(object),
        phase(object).into(),
        text(&spec["volumeName"]).into(),
        when_bound(plain(&status["capacity"]["storage"])),
        when_bound(modes(&status["accessModes"])),
        class(object).into(),
        or(&spec["volumeAttributesClassName"], UNSET).into(),
        made(object, now),
        or(&spec["volumeMode"], UNSET).into(),
    ]
}

pub(super) fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status["hard"].as_object().into_iter().flatten() {
        let used = match plain(&status["used"][resource.as_str()]) {
            used if used.is_empty() => "0".to_owned(),
            used => used,
        };
        let column = if resource.starts_with("limits.") { &mut limits } else { &mut requests };
        column.push(format!("{resource}: {used}/{}", plain(hard)));
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), made(object, now)]
}

pub(super) fn component(object: &Value) -> Vec<Value> {
    let healthy = list(&object["conditions"]).iter().find(|c| text(&c["type"]) == "Healthy");
    let status = match healthy.map(|c| text(&c["status"])) {
        Some("True") => "Healthy",
        Some("False") => "Unhealthy",
        _ => "Unknown",
    };
    let said = |field: &str| Value::from(healthy.map_or("", |c| text(&c[field])));
    vec![name(object), status.into(), said("message"), said("error")]
}

pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["spec"]["holderIdentity"]).into(), made(object, now)]
}

pub(super) fn signing_request(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let has = |kind: &str| list(&status["conditions"]).iter().any(|c| text(&c["type"]) == kind);
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state += ",Failed";
    }
    if !text(&status["certificate"]).is_empty() {
        state += ",Issued";
    }
    let asked = spec["expirationSeconds"].as_i64().map_or_else(|| NONE.to_owned(), age::human_duration);
    vec![
        name(object),
        made(object, now),
        or(&spec["signerName"], NONE).into(),
        text(&spec["username"]).into(),
        asked.into(),
        state.into(),
    ]
}

pub(super) fn role_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let of_kind = list(&object["subjects"]).iter().filter(|s| text(&s["kind"]) == kind);
        let shown = of_kind.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", text(&s["namespace"]), text(&s["name"])),
            _ => text(&s["name"]).to_owned(),
        });
        Value::from(shown.collect::<Vec<_>>().join(", "))
    };
    let role = &object["roleRef"];
    vec![
        name(object),
        format!("{}/{}", text(&role["kind"]), text(&role["name"])).into(),
        made(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

pub(super) fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        int(&object["value"]).into(),
        (object["globalDefault"] == true).into(),
        made(object, now),
        text(&object["preemptionPolicy"]).into(),
    ]
}

pub(super) fn storage_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = &object["metadata"]["annotations"];
    let default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|key| text(&annotations[*key]) == "true");
    let mut shown = text(&object["metadata"]["name"]).to_owned();
    if default {
        shown += " (default)";
    }
    vec![
        shown.into(),
        text(&object["provisioner"]).into(),
        or(&object["reclaimPolicy"], "Delete").into(),
        or(&object["volumeBindingMode"], "Immediate").into(),
        (object["allowVolumeExpansion"] == true).into(),
        made(object, now),
    ]
}

pub(super) fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(&object["handler"]).into(), made(object, now)]
}
