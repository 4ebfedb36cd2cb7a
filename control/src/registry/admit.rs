//! What a new object needs of others before it is validated: upstream's admission plugins that are always on.
//!
//! NamespaceLifecycle (its namespace exists and stays), ServiceAccount (a pod's account, its token's volume), Priority,
//! LimitRanger ([`super::limits`]), DefaultTolerationSeconds, TaintNodesByCondition.

use super::{Registry, Resource, Target, load, meta, random_suffix, refused, seal};
use crate::auth::Identity;
use crate::auth::node::{is_mirror, restrict};
use crate::kinds;
use crate::object;
use crate::storage::StorageError;
use coracle_api::status::{GroupResource, StatusError};
use serde_json::{Value, json};

const TOKEN_DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

impl Registry {
    /// Fills in and judges a new object.
    pub(super) async fn admit_create(
        &self,
        who: &Identity,
        target: &Target,
        object: &mut Value,
    ) -> Result<(), StatusError> {
        if target.resource.namespaced {
            self.admit_namespace(target, object).await?;
        }
        if target.resource.kind == "Pod" && target.resource.group.is_empty() {
            self.admit_service_account(target, object).await?;
            self.admit_priority(target, object).await?;
            self.admit_limits(target, object).await?;
            tolerate_lost_nodes(object);
        }
        if target.resource.kind == "Node" {
            distrust(object);
        }
        if target.resource.kind == "CertificateSigningRequest" {
            kinds::sign_request(object, who);
        }
        self.judge_create(who, target, object).await
    }

    async fn admit_namespace(&self, target: &Target, object: &Value) -> Result<(), StatusError> {
        let namespaces = kinds::find("", "v1", "namespaces").expect("namespaces are in the table");
        let name = &target.namespace;
        let entry = self.storage.get(&namespaces.key("", name)).await.map_err(refused)?;
        let missing = || StatusError::not_found(namespaces.group_resource(), name);
        let namespace = load(namespaces, &entry.ok_or_else(missing)?)?;
        if object::is_terminating(&namespace) {
            let why =
                format!("unable to create new content in namespace {name} because it is being terminated");
            return Err(StatusError::forbidden(target.resource.group_resource(), object::name(object), why));
        }
        Ok(())
    }

    async fn admit_service_account(&self, target: &Target, pod: &mut Value) -> Result<(), StatusError> {
        if is_mirror(pod) {
            // It shows what a node runs by itself, and gets nothing for it.
            let why = |what: &str| match what {
                "a service account" => "a mirror pod may not reference service accounts".to_string(),
                what => format!("a mirror pod may not reference {what}"),
            };
            let resource = target.resource.group_resource();
            return restrict::mirror_needs_nothing(pod)
                .map_err(|what| StatusError::forbidden(resource, object::name(pod), why(what)));
        }
        let spec = object::child(pod, "spec");
        object::default(spec, "serviceAccountName", "default");
        let account = object::text(spec, &["serviceAccountName"]).to_string();
        object::fields(spec).insert("serviceAccount".into(), account.clone().into());
        let accounts = kinds::find("", "v1", "serviceaccounts").expect("service accounts are in the table");
        let entry = self.storage.get(&accounts.key(&target.namespace, &account)).await.map_err(refused)?;
        let Some(entry) = entry else {
            let namespace = &target.namespace;
            let why = format!(
                "error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found"
            );
            return Err(StatusError::forbidden(target.resource.group_resource(), object::name(pod), why));
        };
        let account = load(accounts, &entry)?;
        let spec = object::child(pod, "spec");
        let secrets = object::at(&account, &["imagePullSecrets"]);
        if secrets.is_array() {
            object::default(spec, "imagePullSecrets", secrets.clone());
        }
        let of_account = object::at(&account, &["automountServiceAccountToken"]).as_bool();
        let of_pod = object::at(spec, &["automountServiceAccountToken"]).as_bool();
        if of_pod.or(of_account).unwrap_or(true) {
            mount_token(spec)?;
        }
        Ok(())
    }

    /// What every namespace has: its default service account, and the authority's certificate. Idempotent.
    pub(crate) async fn furnish(&self, namespace: &str) -> Result<(), StatusError> {
        let named = |name: &str| json!({"metadata": {"name": name, "namespace": namespace}});
        self.put_absent("serviceaccounts", named("default")).await?;
        let mut root = named(ROOT_CA);
        let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
        object::set_meta(&mut root, "annotations", json!({"kubernetes.io/description": about}));
        object::fields(&mut root).insert("data".into(), json!({"ca.crt": self.root_ca()}));
        self.put_absent("configmaps", root).await
    }

    /// The authority's certificate, PEM.
    pub(crate) fn root_ca(&self) -> String {
        String::from_utf8_lossy(&self.root_ca).into_owned()
    }

    /// Stores an object of the core group as it is, unless there is one.
    pub(super) async fn put_absent(&self, plural: &str, object: Value) -> Result<(), StatusError> {
        let resource = kinds::find("", "v1", plural).expect("a kind of the table");
        self.put_absent_of(resource, object).await
    }

    /// The same of any kind.
    pub(super) async fn put_absent_of(
        &self,
        resource: &'static Resource,
        mut object: Value,
    ) -> Result<(), StatusError> {
        let key = resource.key(object::namespace(&object), object::name(&object));
        if self.storage.get(&key).await.map_err(refused)?.is_some() {
            return Ok(());
        }
        let fields = object::fields(&mut object);
        fields.insert("apiVersion".into(), resource.api_version().into());
        fields.insert("kind".into(), resource.kind.into());
        (resource.default)(&mut object);
        meta::prepare_create(resource, &mut object)?;
        (resource.prepare_create)(&mut object);
        match self.storage.create(&key, seal(resource, &object)).await {
            Ok(_) | Err(StorageError::Conflict(_)) => Ok(()),
            Err(error) => Err(refused(error)),
        }
    }

    /// What a cluster has from its start. Idempotent.
    ///
    /// # Errors
    /// The storage's.
    pub async fn bootstrap(&self, port: u16) -> Result<(), StatusError> {
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            self.put_absent("namespaces", json!({"metadata": {"name": name}})).await?;
            self.furnish(name).await?;
        }
        self.furnish_priorities().await?;
        self.repair_claims().await?;
        let address = self.services.first().to_string();
        let kubernetes = json!({
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": address,
                "clusterIPs": [address],
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
            },
        });
        self.put_absent("services", kubernetes).await?;
        self.claim_first().await
    }
}

/// What is refused to be created in a namespace that does not exist.
pub(super) const fn services() -> GroupResource<'static> {
    GroupResource { group: "", resource: "services" }
}

fn mount_token(spec: &mut Value) -> Result<(), StatusError> {
    let volume = format!("kube-api-access-{}", random_suffix()?);
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in object::items_mut(spec, list) {
            let mounted = object::items(container, &["volumeMounts"])
                .iter()
                .any(|mount| object::text(mount, &["mountPath"]) == TOKEN_DIRECTORY);
            if mounted {
                continue;
            }
            used = true;
            let mounts = object::fields(container).entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({"mountPath": TOKEN_DIRECTORY, "name": volume, "readOnly": true}));
            }
        }
    }
    if !used {
        return Ok(());
    }
    let field = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
    let projected = json!({
        "name": volume,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": ROOT_CA}},
                {"downwardAPI": {"items": [{"fieldRef": field, "path": "namespace"}]}},
            ],
        },
    });
    let volumes = object::fields(spec).entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(projected);
    }
    Ok(())
}

/// TaintNodesByCondition: nothing is placed on a new node until it is known to be ready.
fn distrust(node: &mut Value) {
    const NOT_READY: &str = "node.kubernetes.io/not-ready";
    let spec = object::fields(object::child(node, "spec"));
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    if taints.is_null() {
        *taints = json!([]);
    }
    if let Some(taints) = taints.as_array_mut() {
        let is = |taint: &Value| {
            object::text(taint, &["key"]) == NOT_READY && object::text(taint, &["effect"]) == "NoSchedule"
        };
        if !taints.iter().any(is) {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
    }
}

/// A pod stays five minutes on a node that is not ready or not reachable, unless it says otherwise.
fn tolerate_lost_nodes(pod: &mut Value) {
    let spec = object::child(pod, "spec");
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = object::items(spec, &["tolerations"]).iter().any(|toleration| {
            let effect = object::text(toleration, &["effect"]);
            let named = object::text(toleration, &["key"]);
            (named == key || named.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if tolerated {
            continue;
        }
        let toleration =
            json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        let tolerations = object::fields(spec).entry("tolerations").or_insert_with(|| json!([]));
        if let Some(tolerations) = tolerations.as_array_mut() {
            tolerations.push(toleration);
        }
    }
}
