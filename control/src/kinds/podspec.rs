//! Defaults of a pod's spec, alone and in templates (`SetDefaults_PodSpec`, `SetDefaults_Container`, …).

use crate::object::{self, child, default, default_zero, fields, items_mut};
use serde_json::{Value, json};

/// Of a file in a volume that says nothing else: 0644.
const FILE_MODE: i64 = 0o644;

/// Of a template: its metadata is there, and its spec is defaulted.
pub(super) fn default_template(template: &mut Value) {
    child(template, "metadata");
    default_spec(child(template, "spec"));
}

/// Of a pod's spec.
pub(super) fn default_spec(spec: &mut Value) {
    default_zero(spec, "restartPolicy", "Always");
    default_zero(spec, "dnsPolicy", "ClusterFirst");
    default_zero(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    child(spec, "securityContext");
    // The deprecated name of the same field.
    let account = match object::text(spec, &["serviceAccountName"]) {
        "" => object::text(spec, &["serviceAccount"]),
        account => account,
    }
    .to_string();
    if !account.is_empty() {
        fields(spec).insert("serviceAccountName".into(), account.clone().into());
        fields(spec).insert("serviceAccount".into(), account.into());
    }
    let host_network = object::at(spec, &["hostNetwork"]).as_bool().unwrap_or_default();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            default_container(container, host_network);
        }
    }
    for volume in items_mut(spec, "volumes") {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    child(container, "resources");
    default_zero(container, "terminationMessagePath", "/dev/termination-log");
    default_zero(container, "terminationMessagePolicy", "File");
    let image = object::text(container, &["image"]);
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    default_zero(container, "imagePullPolicy", policy);
    for port in items_mut(container, "ports") {
        default_zero(port, "protocol", "TCP");
        let number = object::at(port, &["containerPort"]).clone();
        if host_network && number.is_number() {
            default_zero(port, "hostPort", number);
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            default_zero(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            default_zero(probe, "timeoutSeconds", 1);
            default_zero(probe, "periodSeconds", 10);
            default_zero(probe, "successThreshold", 1);
            default_zero(probe, "failureThreshold", 3);
            default_handler(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.pointer_mut(&format!("/lifecycle/{hook}")) {
            default_handler(hook);
        }
    }
}

fn default_handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        default_zero(get, "path", "/");
        default_zero(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc") {
        default(grpc, "service", "");
    }
}

/// An image without tag and digest, or with the tag `latest`, is pulled always.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn default_volume(volume: &mut Value) {
    if volume.as_object().is_some_and(|volume| volume.keys().all(|key| key == "name")) {
        child(volume, "emptyDir");
    }
    for kind in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(kind) {
            default(source, "defaultMode", FILE_MODE);
            default_items(source);
            for projection in items_mut(source, "sources") {
                default_projection(projection);
            }
        }
    }
    if let Some(host_path) = volume.get_mut("hostPath") {
        default(host_path, "type", "");
    }
    if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        default(claim, "volumeMode", "Filesystem");
    }
}

fn default_projection(projection: &mut Value) {
    if let Some(token) = projection.get_mut("serviceAccountToken") {
        default(token, "expirationSeconds", 3600);
    }
    if let Some(downward) = projection.get_mut("downwardAPI") {
        default_items(downward);
    }
}

fn default_items(source: &mut Value) {
    for item in items_mut(source, "items") {
        if let Some(field) = item.get_mut("fieldRef") {
            default_zero(field, "apiVersion", "v1");
        }
    }
}

/// Only of pods themselves: what is limited and not requested is requested, and services are in the environment.
pub(super) fn default_pod(spec: &mut Value) {
    default_spec(spec);
    default(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            let limits = object::at(container, &["resources", "limits"]).clone();
            for (name, limit) in limits.as_object().into_iter().flatten() {
                let requests = child(child(container, "resources"), "requests");
                default(requests, name, limit.clone());
            }
        }
    }
}

/// `BestEffort`, `Burstable` or `Guaranteed`, as `ComputePodQOS`.
pub(super) fn qos_class(spec: &Value) -> &'static str {
    let mut some = false;
    let mut guaranteed = true;
    for list in ["initContainers", "containers"] {
        for container in object::items(spec, &[list]) {
            for resource in ["cpu", "memory"] {
                let amount = |kind: &str| {
                    object::text(container, &["resources", kind, resource])
                        .parse::<coracle_api::quantity::Quantity>()
                        .ok()
                        .filter(|quantity| !quantity.is_zero())
                };
                let (request, limit) = (amount("requests"), amount("limits"));
                some |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request == limit;
            }
        }
    }
    match (some, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The status of a new pod.
pub(super) fn first_status(spec: &Value) -> Value {
    json!({"phase": "Pending", "qosClass": qos_class(spec)})
}
