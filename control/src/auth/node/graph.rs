//! Which nodes run pods that need an object: kept by following pods and volumes. Pure.
//!
//! ```text
//! node ◄─ pod ◄─ secret, configmap, service account, claim ◄─ volume
//! ```
//! Invariant: a mirror pod needs nothing, whatever it says: a node makes those itself.

use crate::object;
use serde_json::Value;
use std::collections::HashMap;

/// Marks pods that a node shows of its own files.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a pod may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Needed {
    /// The pod itself.
    Pod,
    /// By volume, environment or for its images.
    Secret,
    /// By volume or environment.
    ConfigMap,
    /// A volume claim.
    Claim,
    /// The one that it runs as.
    ServiceAccount,
}

/// Namespace and name.
type Key = (String, String);

#[derive(Debug)]
struct Pod {
    node: String,
    needs: Vec<(Needed, String)>,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Graph {
    pods: HashMap<Key, Pod>,
    /// How many pods of each node need it.
    nodes: HashMap<Needed, HashMap<Key, HashMap<String, u32>>>,
    /// The claim that a volume is bound to.
    volumes: HashMap<String, Key>,
}

fn key(object: &Value) -> Key {
    (object::namespace(object).into(), object::name(object).into())
}

impl Graph {
    /// A pod as it is now.
    pub fn put_pod(&mut self, pod: &Value) {
        let key = key(pod);
        let node = object::text(pod, &["spec", "nodeName"]);
        let needs = if node.is_empty() { Vec::new() } else { needs(pod) };
        let same = |known: &Pod| known.node == node && known.needs == needs;
        if self.pods.get(&key).is_some_and(same) {
            return;
        }
        self.remove_pod(&key.0, &key.1);
        if node.is_empty() {
            return;
        }
        for (what, name) in &needs {
            let objects = self.nodes.entry(*what).or_default();
            let nodes = objects.entry((key.0.clone(), name.clone())).or_default();
            *nodes.entry(node.into()).or_default() += 1;
        }
        self.pods.insert(key, Pod { node: node.into(), needs });
    }

    /// A pod that is gone.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let Some(pod) = self.pods.remove(&(namespace.into(), name.into())) else { return };
        for (what, name) in pod.needs {
            let Some(objects) = self.nodes.get_mut(&what) else { continue };
            let key = (namespace.to_string(), name);
            let Some(nodes) = objects.get_mut(&key) else { continue };
            if let Some(count) = nodes.get_mut(&pod.node) {
                *count -= 1;
                if *count == 0 {
                    nodes.remove(&pod.node);
                }
            }
            if nodes.is_empty() {
                objects.remove(&key);
            }
        }
    }

    /// All pods as they are now.
    pub fn replace_pods(&mut self, pods: &[Value]) {
        self.pods.clear();
        self.nodes.clear();
        for pod in pods {
            self.put_pod(pod);
        }
    }

    /// A volume as it is now.
    pub fn put_volume(&mut self, volume: &Value) {
        let claim = |key: &str| object::text(volume, &["spec", "claimRef", key]).to_string();
        let name = object::name(volume);
        if claim("name").is_empty() {
            self.volumes.remove(name);
        } else {
            self.volumes.insert(name.into(), (claim("namespace"), claim("name")));
        }
    }

    /// A volume that is gone.
    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    /// All volumes as they are now.
    pub fn replace_volumes(&mut self, volumes: &[Value]) {
        self.volumes.clear();
        for volume in volumes {
            self.put_volume(volume);
        }
    }

    /// Whether a pod on the node needs the object.
    pub fn needs(&self, node: &str, what: Needed, namespace: &str, name: &str) -> bool {
        self.has(node, what, &(namespace.into(), name.into()))
    }

    fn has(&self, node: &str, what: Needed, key: &Key) -> bool {
        let nodes = self.nodes.get(&what).and_then(|objects| objects.get(key));
        nodes.is_some_and(|nodes| nodes.contains_key(node))
    }

    /// Whether a pod on the node needs the volume.
    pub fn needs_volume(&self, node: &str, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|claim| self.has(node, Needed::Claim, claim))
    }
}

/// What a pod needs, itself included.
fn needs(pod: &Value) -> Vec<(Needed, String)> {
    let mut found = vec![(Needed::Pod, object::name(pod).to_string())];
    if !object::at(pod, &["metadata", "annotations", MIRROR]).is_string() {
        found.extend(references(pod));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether a pod is one that a node shows of its own files.
pub fn is_mirror(pod: &Value) -> bool {
    object::at(pod, &["metadata", "annotations", MIRROR]).is_string()
}

/// Every object that a pod's spec names.
pub fn references(pod: &Value) -> Vec<(Needed, String)> {
    let mut found = Vec::new();
    let mut add = |what: Needed, holder: &Value, path: &[&str]| match object::text(holder, path) {
        "" => {}
        name => found.push((what, name.to_string())),
    };
    let spec = object::at(pod, &["spec"]);
    add(Needed::ServiceAccount, spec, &["serviceAccountName"]);
    for secret in object::items(spec, &["imagePullSecrets"]) {
        add(Needed::Secret, secret, &["name"]);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in object::items(spec, &[list]) {
            for source in object::items(container, &["envFrom"]) {
                add(Needed::Secret, source, &["secretRef", "name"]);
                add(Needed::ConfigMap, source, &["configMapRef", "name"]);
            }
            for variable in object::items(container, &["env"]) {
                add(Needed::Secret, variable, &["valueFrom", "secretKeyRef", "name"]);
                add(Needed::ConfigMap, variable, &["valueFrom", "configMapKeyRef", "name"]);
            }
        }
    }
    for volume in object::items(spec, &["volumes"]) {
        add(Needed::ConfigMap, volume, &["configMap", "name"]);
        add(Needed::Claim, volume, &["persistentVolumeClaim", "claimName"]);
        // Most kinds of volumes name their secret one way or the other.
        for (_, source) in volume.as_object().into_iter().flatten() {
            add(Needed::Secret, source, &["secretName"]);
            add(Needed::Secret, source, &["secretRef", "name"]);
            add(Needed::Secret, source, &["nodePublishSecretRef", "name"]);
        }
        for source in object::items(volume, &["projected", "sources"]) {
            add(Needed::Secret, source, &["secret", "name"]);
            add(Needed::ConfigMap, source, &["configMap", "name"]);
        }
        if object::at(volume, &["ephemeral"]).is_object() {
            let claim = format!("{}-{}", object::name(pod), object::text(volume, &["name"]));
            add(Needed::Claim, &Value::from(claim), &[]);
        }
    }
    found
}

#[cfg(test)]
#[path = "graph_test.rs"]
mod tests;
