//! A board, as far as the API can tell: a node that registers, renews its lease, and does with pods what a kubelet says it did.

use super::who;
use crate::controllers::key::Key;
use crate::controllers::kinds::{LEASES, NODES, PODS};
use crate::object::{self, at, text};
use crate::registry::options::{DeleteOptions, ListOptions, Query, WriteOptions};
use crate::registry::{Registry, Resource, Target};
use crate::simulated::Random;
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::status::Reason;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// As the agent's.
const RENEW: Duration = Duration::from_secs(10);
/// An image that nobody has.
pub(super) const MISSING: &str = "example.test/missing:1";

/// A board.
pub(super) struct Board {
    pub name: String,
    /// It does nothing while it is not.
    pub is_there: bool,
    renewed: Option<Instant>,
}

pub(super) fn target(resource: &'static Resource, namespace: &str, name: &str) -> Target {
    Target { resource, namespace: namespace.into(), name: name.into() }
}

pub(super) async fn list(registry: &Registry, resource: &'static Resource) -> Vec<Value> {
    let options = ListOptions::parse(resource, &Query::parse("")).expect("no options");
    registry.list(&target(resource, "", ""), &options).await.expect("listed").items
}

pub(super) async fn create(registry: &Registry, resource: &'static Resource, namespace: &str, object: Value) {
    let document = Document { value: object, duplicates: Vec::new() };
    let made =
        registry.create(&who(), &target(resource, namespace, ""), document, &WriteOptions::default()).await;
    made.expect("made");
}

pub(super) async fn patch(registry: &Registry, target: &Target, part: Option<&str>, patch: Value) -> bool {
    let part = part.map(|name| target.resource.subresource(name).expect("a part"));
    let patch = (PatchType::StrategicMerge, Document { value: patch, duplicates: Vec::new() });
    match registry.patch(&who(), target, part, patch, &WriteOptions::default()).await {
        Ok(_) => true,
        Err(error) if error.reason == Reason::NotFound => false,
        Err(error) => panic!("{target:?}: {error}"),
    }
}

/// Writes an object as anybody might; whether it is there.
pub(super) async fn touch(registry: &Registry, key: &Key, number: usize) -> bool {
    let note = json!({"metadata": {"annotations": {"example.test/touched": number.to_string()}}});
    patch(registry, &key.target(), None, note).await
}

impl Board {
    pub fn new(name: String) -> Board {
        Board { name, is_there: true, renewed: None }
    }

    /// One thing that it has to do; what that was.
    pub async fn step(&mut self, registry: &Registry, random: &mut Random) -> Option<String> {
        if !self.is_there {
            return None;
        }
        if self.renewed.is_none_or(|at| at.elapsed() >= RENEW) {
            self.renewed = Some(Instant::now());
            return Some(self.live(registry).await);
        }
        let pods = list(registry, *PODS).await;
        let mut todo: Vec<(Value, Option<Value>)> = Vec::new();
        for pod in pods.into_iter().filter(|pod| text(pod, &["spec", "nodeName"]) == self.name) {
            if object::is_terminating(&pod) {
                // What was removed already waits for whoever holds it by a finalizer.
                if at(&pod, &["metadata", "deletionGracePeriodSeconds"]).as_i64() != Some(0) {
                    let status = killed(&pod);
                    todo.push((pod, status));
                }
            } else if let Some(status) = next(&pod) {
                todo.push((pod, Some(status)));
            }
        }
        if todo.is_empty() {
            return None;
        }
        let (pod, status) = todo.swap_remove(random.below(todo.len()));
        let of = target(*PODS, object::namespace(&pod), object::name(&pod));
        let uid = object::uid(&pod);
        match status {
            Some(status) => {
                let phase = text(&status, &["phase"]).to_string();
                patch(registry, &of, Some("status"), json!({"metadata": {"uid": uid}, "status": status}))
                    .await;
                Some(format!("{} {phase}", of.name))
            }
            None => {
                let now = DeleteOptions { grace: Some(0), uid: Some(uid.into()), ..DeleteOptions::default() };
                match registry.delete(&who(), &of, &now).await {
                    Err(error) if error.reason != Reason::NotFound => panic!("{of:?}: {error}"),
                    _ => Some(format!("{} ended", of.name)),
                }
            }
        }
    }

    /// Somebody deletes its Node; whether that was there.
    pub async fn forget(&self, registry: &Registry) -> bool {
        let node = target(*NODES, "", &self.name);
        registry.delete(&who(), &node, &DeleteOptions::default()).await.is_ok()
    }

    /// Node and lease, as the agent keeps them.
    async fn live(&self, registry: &Registry) -> String {
        let node = target(*NODES, "", &self.name);
        let told = |kind: &str, status: &str| {
            json!({"type": kind, "status": status, "reason": "Kubelet", "message": "",
                   "lastHeartbeatTime": crate::registry::timestamp(), "lastTransitionTime": crate::registry::timestamp()})
        };
        let known = registry.get(&node).await.ok();
        if known.is_none() {
            let labels = json!({"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"});
            create(registry, *NODES, "", json!({"metadata": {"name": self.name, "labels": labels}})).await;
        }
        let is_ready = known.is_some_and(|node| {
            let conditions = object::items(&node, &["status", "conditions"]);
            conditions.iter().any(|of| text(of, &["type"]) == "Ready" && text(of, &["status"]) == "True")
        });
        if !is_ready {
            let room = json!({"cpu": "4", "memory": "4Gi", "pods": "110"});
            let conditions = [
                ("Ready", "True"),
                ("MemoryPressure", "False"),
                ("DiskPressure", "False"),
                ("PIDPressure", "False"),
            ];
            let conditions: Vec<Value> =
                conditions.into_iter().map(|(kind, status)| told(kind, status)).collect();
            let status = json!({"capacity": room, "allocatable": room, "conditions": conditions});
            patch(registry, &node, Some("status"), json!({"status": status})).await;
        }
        let lease = target(*LEASES, "kube-node-lease", &self.name);
        let now = crate::clock::micro_stamp(crate::clock::now());
        let spec = json!({"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now});
        if !patch(registry, &lease, None, json!({"spec": spec})).await {
            let lease =
                json!({"metadata": {"name": self.name, "namespace": "kube-node-lease"}, "spec": spec});
            create(registry, *LEASES, "kube-node-lease", lease).await;
        }
        "lives".into()
    }
}

/// What is told of a pod that was killed before it had done its work.
fn killed(pod: &Value) -> Option<Value> {
    let runs_once = text(pod, &["spec", "restartPolicy"]) != "Always";
    let is_over = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    (runs_once && !is_over).then(|| json!({"phase": "Failed"}))
}

/// The status that a pod has next; `None` when it has that already.
fn next(pod: &Value) -> Option<Value> {
    let phase = text(pod, &["status", "phase"]);
    let container = &object::items(pod, &["spec", "containers"])[0];
    let (name, image) = (text(container, &["name"]), text(container, &["image"]));
    let is_ready = object::items(pod, &["status", "conditions"])
        .iter()
        .any(|of| text(of, &["type"]) == "Ready" && text(of, &["status"]) == "True");
    let once = text(pod, &["spec", "restartPolicy"]) != "Always";
    let now = crate::registry::timestamp();
    let conditions = |ready: bool| -> Value {
        let status = if ready { "True" } else { "False" };
        ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| {
                let of_this = if kind == "PodScheduled" || kind == "Initialized" { "True" } else { status };
                json!({"type": kind, "status": of_this, "lastTransitionTime": now})
            })
            .into_iter()
            .collect()
    };
    let container = |ready: bool, state: Value| json!([{"name": name, "image": image, "imageID": image, "ready": ready, "restartCount": 0, "state": state}]);
    if matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    if image == MISSING {
        let waits = text(pod, &["status", "containerStatuses"]).is_empty()
            && object::items(pod, &["status", "containerStatuses"]).is_empty();
        let state = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
        return waits.then(|| json!({"phase": "Pending", "conditions": conditions(false), "containerStatuses": container(false, state)}));
    }
    if phase == "Running" && once {
        let state = json!({"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now, "startedAt": now}});
        return Some(
            json!({"phase": "Succeeded", "conditions": conditions(false), "containerStatuses": container(false, state)}),
        );
    }
    if phase == "Running" && is_ready {
        return None;
    }
    // The same each time it is told.
    let digest =
        object::uid(pod).bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let [_, b, c, d] = digest.to_be_bytes();
    let ip = format!("10.{b}.{c}.{}", d % 250 + 2);
    let ip = match text(pod, &["status", "podIP"]) {
        "" => ip,
        known => known.to_string(),
    };
    let state = json!({"running": {"startedAt": now}});
    let started = match at(pod, &["status", "startTime"]) {
        Value::Null => json!(now),
        known => known.clone(),
    };
    Some(json!({
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": started,
        "conditions": conditions(true), "containerStatuses": container(true, state),
    }))
}
