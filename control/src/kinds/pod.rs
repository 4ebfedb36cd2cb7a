//! What is wrong with a pod, alone and in templates (`ValidatePodSpec`, `ValidatePodUpdate`).

use super::gates;
use crate::object::{at, items, text};
use crate::registry::Name;
use coracle_api::field::{Errors, Path};
use coracle_api::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
const POSITIVE: &str = "must be greater than 0";
/// `validation.IsNonNegativeInteger`.
pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

pub(super) fn default(pod: &mut Value) {
    super::podspec::default_pod(crate::object::child(pod, "spec"));
}

pub(super) fn prepare_create(pod: &mut Value) {
    let status = super::podspec::first_status(at(pod, &["spec"]));
    crate::object::fields(pod).insert("status".into(), status);
    gates::prepare(pod);
}

pub(super) fn validate(pod: &Value, errors: &mut Errors) {
    validate_spec(at(pod, &["spec"]), &Path::new("spec"), errors);
}

/// Of a template: the labels, then the spec.
pub(super) fn validate_template(template: &Value, path: &Path, errors: &mut Errors) {
    let labels = at(template, &["metadata", "labels"]);
    crate::registry::validate_labels(labels, &path.child("labels"), errors);
    validate_spec(at(template, &["spec"]), &path.child("spec"), errors);
}

pub(super) fn validate_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    let volumes = validate_volumes(items(spec, &["volumes"]), &path.child("volumes"), errors);
    let mut names = BTreeSet::new();
    if items(spec, &["containers"]).is_empty() {
        errors.required(&path.child("containers"), "");
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in items(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(index);
            validate_container(container, &path, &volumes, &mut names, errors);
        }
    }
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, errors);
    one_of(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path, errors);
    not_negative(spec, "terminationGracePeriodSeconds", path, errors);
    if at(spec, &["activeDeadlineSeconds"]).as_i64().is_some_and(|seconds| seconds < 1) {
        let why = "must be between 1 and 2147483647, inclusive";
        errors.invalid(
            &path.child("activeDeadlineSeconds"),
            at(spec, &["activeDeadlineSeconds"]).clone(),
            why,
        );
    }
    crate::registry::validate_labels(at(spec, &["nodeSelector"]), &path.child("nodeSelector"), errors);
    for (index, secret) in items(spec, &["imagePullSecrets"]).iter().enumerate() {
        if text(secret, &["name"]).is_empty() {
            errors.required(&path.child("imagePullSecrets").index(index).child("name"), "");
        }
    }
    for key in ["serviceAccountName", "nodeName"] {
        let name = text(spec, &[key]);
        for why in Name::Subdomain.problems(name).into_iter().filter(|_| !name.is_empty()) {
            errors.invalid(&path.child(key), name, why);
        }
    }
    for key in ["hostname", "subdomain"] {
        let name = text(spec, &[key]);
        for why in Name::Label.problems(name).into_iter().filter(|_| !name.is_empty()) {
            errors.invalid(&path.child(key), name, why);
        }
    }
    gates::validate(spec, path, errors);
    for (index, toleration) in items(spec, &["tolerations"]).iter().enumerate() {
        validate_toleration(toleration, &path.child("tolerations").index(index), errors);
    }
}

fn validate_toleration(toleration: &Value, path: &Path, errors: &mut Errors) {
    let (key, operator, effect) =
        (text(toleration, &["key"]), text(toleration, &["operator"]), text(toleration, &["effect"]));
    if key.is_empty() && operator != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid(&path.child("operator"), operator, why);
    }
    match operator {
        "" | "Equal" => {}
        "Exists" if text(toleration, &["value"]).is_empty() => {}
        "Exists" => {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.invalid(&path.child("operator"), text(toleration, &["value"]), why);
        }
        _ => errors.not_supported(&path.child("operator"), operator, &["Equal", "Exists"]),
    }
    if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        errors.not_supported(&path.child("effect"), effect, &known);
    }
}

/// The names of the volumes.
fn validate_volumes<'a>(volumes: &'a [Value], path: &Path, errors: &mut Errors) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let name = text(volume, &["name"]);
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            for why in Name::Label.problems(name) {
                errors.invalid(&path.child("name"), name, why);
            }
            if !names.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        let mut sources = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .filter(|key| *key != "name");
        let first = sources.next();
        for extra in sources {
            errors.forbidden(&path.child(extra), "may not specify more than 1 volume type");
        }
        let required = match first {
            Some("hostPath") => Some(("hostPath", "path")),
            Some("secret") => Some(("secret", "secretName")),
            Some("configMap") => Some(("configMap", "name")),
            Some("persistentVolumeClaim") => Some(("persistentVolumeClaim", "claimName")),
            _ => None,
        };
        match required {
            Some((source, key)) if text(volume, &[source, key]).is_empty() => {
                errors.required(&path.child(source).child(key), "");
            }
            _ => {}
        }
    }
    names
}

fn validate_container<'a>(
    container: &'a Value,
    path: &Path,
    volumes: &BTreeSet<&str>,
    names: &mut BTreeSet<&'a str>,
    errors: &mut Errors,
) {
    let name = text(container, &["name"]);
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        for why in Name::Label.problems(name) {
            errors.invalid(&path.child("name"), name, why);
        }
        if !names.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
    match text(container, &["image"]) {
        "" => errors.required(&path.child("image"), ""),
        image if image.trim() != image => {
            errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
        }
        _ => {}
    }
    one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path, errors);
    validate_ports(items(container, &["ports"]), &path.child("ports"), errors);
    validate_env(container, path, errors);
    validate_mounts(items(container, &["volumeMounts"]), &path.child("volumeMounts"), volumes, errors);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let value = at(container, &[probe]);
        if value.is_object() {
            validate_probe(value, &path.child(probe), probe != "readinessProbe", errors);
        }
    }
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    validate_resources(at(container, &["resources"]), &path.child("resources"), errors);
}

fn validate_ports(ports: &[Value], path: &Path, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = text(port, &["name"]);
        if !name.is_empty() {
            for why in port_name_problems(name) {
                errors.invalid(&path.child("name"), name, why);
            }
            if !names.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        match at(port, &["containerPort"]).as_i64() {
            None => errors.required(&path.child("containerPort"), ""),
            Some(1..=65535) => {}
            Some(number) => errors.invalid(&path.child("containerPort"), number, PORT_RANGE),
        }
        match at(port, &["hostPort"]).as_i64() {
            None | Some(1..=65535) => {}
            Some(number) => errors.invalid(&path.child("hostPort"), number, PORT_RANGE),
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
    }
}

/// `IsValidPortName`.
pub(super) fn port_name_problems(name: &str) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if name.len() > 15 {
        problems.push("must be no more than 15 bytes");
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|b| b.is_ascii_alphabetic()) {
        problems.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen");
    }
    problems
}

fn validate_env(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, variable) in items(container, &["env"]).iter().enumerate() {
        let path = path.child("env").index(index);
        match text(variable, &["name"]) {
            "" => errors.required(&path.child("name"), ""),
            name if name.contains('=') || !name.bytes().all(|b| (0x20..0x7f).contains(&b)) => {
                let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
                errors.invalid(&path.child("name"), name, why);
            }
            _ => {}
        }
        let from = at(variable, &["valueFrom"]);
        if from.is_object() {
            let path = path.child("valueFrom");
            let sources = from.as_object().map_or(0, serde_json::Map::len);
            if sources == 0 {
                let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
                errors.invalid(&path, "", why);
            } else if !text(variable, &["value"]).is_empty() {
                errors.invalid(&path, "", "may not be specified when `value` is not empty");
            } else if sources > 1 {
                errors.invalid(&path, "", "may not have more than one field specified at a time");
            }
        }
    }
}

fn validate_mounts(mounts: &[Value], path: &Path, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let mut targets = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.index(index);
        match text(mount, &["name"]) {
            "" => errors.required(&path.child("name"), ""),
            name if !volumes.contains(name) => errors.not_found(&path.child("name"), name),
            _ => {}
        }
        let target = text(mount, &["mountPath"]);
        if target.is_empty() {
            errors.required(&path.child("mountPath"), "");
        } else if !targets.insert(target) {
            errors.invalid(&path.child("mountPath"), target, "must be unique");
        }
        let sub = text(mount, &["subPath"]);
        if sub.starts_with('/') {
            errors.invalid(&path.child("subPath"), sub, "must be a relative path");
        } else if sub.split('/').any(|part| part == "..") {
            errors.invalid(&path.child("subPath"), sub, "must not contain '..'");
        }
    }
}

fn validate_probe(probe: &Value, path: &Path, once: bool, errors: &mut Errors) {
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
    let given: Vec<_> = handlers.iter().filter(|key| at(probe, &[key]).is_object()).collect();
    if given.is_empty() {
        errors.required(path, "must specify a handler type");
    }
    for extra in given.iter().skip(1) {
        errors.forbidden(&path.child(extra), "may not specify more than 1 handler type");
    }
    for (handler, key) in [("httpGet", "port"), ("tcpSocket", "port")] {
        match at(probe, &[handler, key]) {
            Value::Number(number) if !number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {
                errors.invalid(
                    &path.child(handler).child(key),
                    number.as_i64().unwrap_or_default(),
                    PORT_RANGE,
                );
            }
            _ => {}
        }
    }
    let counts =
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    for key in counts {
        not_negative(probe, key, path, errors);
    }
    let successes = at(probe, &["successThreshold"]).as_i64();
    if once && successes.is_some_and(|count| count != 1) {
        errors.invalid(&path.child("successThreshold"), successes.unwrap_or_default(), "must be 1");
    }
    let grace = at(probe, &["terminationGracePeriodSeconds"]).as_i64();
    if grace.is_some_and(|seconds| seconds <= 0) {
        errors.invalid(&path.child("terminationGracePeriodSeconds"), grace.unwrap_or_default(), POSITIVE);
    }
}

fn validate_resources(resources: &Value, path: &Path, errors: &mut Errors) {
    let amount = |kind: &str, name: &str| text(resources, &[kind, name]).parse::<Quantity>().ok();
    let named = |kind: &str| at(resources, &[kind]).as_object().into_iter().flatten();
    for kind in ["limits", "requests"] {
        for (name, value) in named(kind) {
            if amount(kind, name).is_some_and(|quantity| quantity.is_negative()) {
                errors.invalid(&path.child(kind).key(name), value.clone(), NOT_NEGATIVE);
            }
        }
    }
    for (name, value) in named("requests") {
        let (Some(request), Some(limit)) = (amount("requests", name), amount("limits", name)) else {
            continue;
        };
        if request > limit {
            let limit = text(resources, &["limits", name]);
            let why = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(&path.child("requests"), value.clone(), why);
        }
    }
}

/// A field that is one of some words, or not set.
pub(super) fn one_of(object: &Value, key: &str, known: &[&str], path: &Path, errors: &mut Errors) {
    match at(object, &[key]) {
        Value::Null => {}
        value if value.as_str().is_some_and(|value| known.contains(&value)) => {}
        value => errors.not_supported(&path.child(key), value.clone(), known),
    }
}

/// A number that is not below zero, or not set.
pub(super) fn not_negative(object: &Value, key: &str, path: &Path, errors: &mut Errors) {
    let number = at(object, &[key]).as_i64().unwrap_or_default();
    if number < 0 {
        errors.invalid(&path.child(key), number, NOT_NEGATIVE);
    }
}

/// `ValidatePodEphemeralContainersUpdate`: containers are added, and nothing else.
pub(super) fn validate_ephemeral(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("ephemeralContainers");
    let volumes: BTreeSet<&str> =
        items(new, &["spec", "volumes"]).iter().map(|volume| text(volume, &["name"])).collect();
    let regular = ["containers", "initContainers"].into_iter().flat_map(|list| items(new, &["spec", list]));
    let mut names: BTreeSet<&str> = regular.map(|container| text(container, &["name"])).collect();
    for (index, container) in items(new, &["spec", "ephemeralContainers"]).iter().enumerate() {
        let path = path.index(index);
        validate_container(container, &path, &volumes, &mut names, errors);
        for key in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if !at(container, &[key]).is_null() {
                errors.forbidden(&path.child(key), "cannot be set for an Ephemeral Container");
            }
        }
    }
    for (index, before) in items(old, &["spec", "ephemeralContainers"]).iter().enumerate() {
        let name = text(before, &["name"]);
        let now = items(new, &["spec", "ephemeralContainers"]).iter().find(|c| text(c, &["name"]) == name);
        match now {
            Some(now) if now == before => {}
            Some(_) => {
                let why = format!("existing ephemeral containers \"{name}\" may not be changed\n");
                errors.forbidden(&path.index(index), why);
            }
            None => {
                let why = format!("existing ephemeral containers \"{name}\" may not be removed\n");
                errors.forbidden(&path, why);
            }
        }
    }
}

/// `ValidatePodResize`: cpu and memory of containers and sidecars, nothing else, and not across the border of a QoS class.
pub(super) fn validate_resize(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    validate_spec(at(new, &["spec"]), &path, errors);
    let mut without = [at(old, &["spec"]).clone(), at(new, &["spec"]).clone()];
    let resizable = |list: &str, container: &Value| {
        list == "containers" || text(container, &["restartPolicy"]) == "Always"
    };
    for spec in &mut without {
        for list in ["containers", "initContainers"] {
            for container in crate::object::items_mut(spec, list) {
                if !resizable(list, container) {
                    continue;
                }
                let resources = crate::object::child(container, "resources");
                for kind in ["requests", "limits"] {
                    let amounts = crate::object::child(resources, kind);
                    for name in ["cpu", "memory"] {
                        crate::object::remove(amounts, name);
                    }
                }
            }
        }
    }
    if without[0] != without[1] {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
    let class = |pod: &Value| super::podspec::first_status(at(pod, &["spec"]))["qosClass"].clone();
    if class(new) != class(old) {
        let path = Path::new("metadata").child("qosClass");
        errors.invalid(&path, class(new), "Pod QOS Class may not change as a result of resizing");
    }
}

/// Of a pod only images, deadlines that come nearer and tolerations that are added may change.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let comparable = |pod: &Value, other: &Value| {
        let mut spec = at(pod, &["spec"]).clone();
        for list in ["containers", "initContainers"] {
            for container in crate::object::items_mut(&mut spec, list) {
                crate::object::remove(container, "image");
            }
        }
        for key in ["activeDeadlineSeconds", "tolerations"] {
            crate::object::remove(&mut spec, key);
        }
        gates::set_aside(&mut spec, gates::is_gated(old));
        // From negative to one second only: what says "at once".
        if at(other, &["spec", "terminationGracePeriodSeconds"]).as_i64().is_some_and(|seconds| seconds < 0) {
            crate::object::remove(&mut spec, "terminationGracePeriodSeconds");
        }
        spec
    };
    let containers = |pod: &Value| items(pod, &["spec", "containers"]).len();
    if containers(new) != containers(old) {
        errors.forbidden(&path, "pod updates may not add or remove containers");
        return;
    }
    let tolerations = items(new, &["spec", "tolerations"]);
    if items(old, &["spec", "tolerations"]).iter().any(|toleration| !tolerations.contains(toleration)) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&path.child("tolerations"), why);
    }
    gates::validate_update(new, old, errors);
    if comparable(new, old) != comparable(old, old) {
        errors.forbidden(
            &path,
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
}

/// `ValidateImmutableField`.
pub(super) fn immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    let value = at(new, fields);
    if value != at(old, fields) {
        let path = fields.iter().skip(1).fold(Path::new(fields[0]), |path, field| path.child(field));
        let shown = if value.is_null() { json!("null") } else { value.clone() };
        errors.invalid(&path, shown, "field is immutable");
    }
}
