//! The roles and bindings that every cluster has (upstream's bootstrap policy), and how they are brought back at each start.
//!
//! What is missing is added, permissions that somebody added stay, and an object whose annotation
//! `rbac.authorization.kubernetes.io/autoupdate` is `false` is left alone. Roles of kinds that are not served are left out
//! where they would be empty; those of upstream's many controllers too, as ours are one process with one name.

use super::Identity;
use super::roles::rules_of;
use super::rules::{PolicyRule, uncovered};
use crate::kinds;
use crate::object;
use crate::registry::options::WriteOptions;
use crate::registry::{Registry, Target};
use coracle_api::decode::Document;
use coracle_api::status::{Reason, StatusError};
use futures_util::future::try_join_all;
use serde_json::{Map, Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// How often an object that appears and disappears is tried.
const ATTEMPTS_MAX: usize = 3;

const READ: &str = "get list watch";
const WRITE: &str = "create delete deletecollection patch update";
const READ_WRITE: &str = "create delete deletecollection get list patch update watch";
const EVENTS: Allow = allow("create patch update", "core events.k8s.io", "events");

/// One rule: words with spaces between them, `core` for the group without a name.
struct Allow {
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
    paths: &'static str,
}

const fn allow(verbs: &'static str, groups: &'static str, resources: &'static str) -> Allow {
    Allow { verbs, groups, resources, names: "", paths: "" }
}

const fn named(
    verbs: &'static str,
    groups: &'static str,
    resources: &'static str,
    names: &'static str,
) -> Allow {
    Allow { verbs, groups, resources, names, paths: "" }
}

const fn paths(paths: &'static str) -> Allow {
    Allow { verbs: "get", groups: "", resources: "", names: "", paths }
}

impl Allow {
    fn rule(&self) -> PolicyRule {
        let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let groups = self.groups.split_whitespace();
        PolicyRule {
            api_groups: groups
                .map(|group| if group == "core" { String::new() } else { group.into() })
                .collect(),
            resources: words(self.resources),
            resource_names: words(self.names),
            non_resource_urls: words(self.paths),
            verbs: words(self.verbs),
        }
    }
}

/// Its name, the role that gathers it (`admin` of `aggregate-to-admin`), and its rules; a role that gathers has none.
struct RoleRow(&'static str, &'static str, &'static [Allow]);

/// What a node may do, where it is not told object by object (`node`).
const NODE: &[Allow] = &[
    allow("create", "authentication.k8s.io", "tokenreviews"),
    allow("create", "authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews"),
    allow(READ, "core", "services"),
    allow("create get list watch", "core", "nodes"),
    allow("patch update", "core", "nodes/status"),
    allow("patch update", "core", "nodes"),
    allow("create patch update", "core", "events"),
    allow(READ, "core", "pods"),
    allow("create delete", "core", "pods"),
    allow("patch update", "core", "pods/status"),
    allow("create", "core", "pods/eviction"),
    allow(READ, "core", "configmaps secrets"),
    allow("get", "core", "persistentvolumeclaims persistentvolumes"),
    allow("get", "core", "endpoints"),
    allow("create get list watch", "certificates.k8s.io", "certificatesigningrequests"),
    allow("create delete get patch update", "coordination.k8s.io", "leases"),
    allow("get", "storage.k8s.io", "volumeattachments"),
    allow("create", "core", "serviceaccounts/token"),
    allow("get patch update", "core", "persistentvolumeclaims/status"),
    allow(READ, "storage.k8s.io", "csidrivers"),
    allow("create delete get patch update", "storage.k8s.io", "csinodes"),
    allow(READ, "node.k8s.io", "runtimeclasses"),
];

const CLUSTER_ROLES: &[RoleRow] = &[
    RoleRow("admin", "", &[]),
    RoleRow(
        "cluster-admin",
        "",
        &[allow("*", "*", "*"), Allow { verbs: "*", groups: "", resources: "", names: "", paths: "*" }],
    ),
    RoleRow("edit", "admin", &[]),
    RoleRow(
        "system:aggregate-to-admin",
        "admin",
        &[
            allow("create", "authorization.k8s.io", "localsubjectaccessreviews"),
            allow(READ_WRITE, GROUP, "rolebindings roles"),
        ],
    ),
    RoleRow(
        "system:aggregate-to-edit",
        "edit",
        &[
            allow(READ, "core", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
            allow("impersonate", "core", "serviceaccounts"),
            allow(WRITE, "core", "pods pods/attach pods/exec pods/portforward pods/proxy"),
            allow("create", "core", "pods/eviction"),
            allow(
                WRITE,
                "core",
                "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets serviceaccounts services services/proxy",
            ),
            allow("create", "core", "serviceaccounts/token"),
            allow(
                WRITE,
                "apps",
                "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets statefulsets/scale",
            ),
            allow(WRITE, "autoscaling", "horizontalpodautoscalers"),
            allow(WRITE, "batch", "cronjobs jobs"),
            allow(
                WRITE,
                "extensions",
                "daemonsets deployments deployments/rollback deployments/scale ingresses networkpolicies replicasets replicasets/scale replicationcontrollers/scale",
            ),
            allow(WRITE, "policy", "poddisruptionbudgets"),
            allow(WRITE, "networking.k8s.io", "ingresses networkpolicies"),
            allow(READ_WRITE, "coordination.k8s.io", "leases"),
        ],
    ),
    RoleRow(
        "system:aggregate-to-view",
        "view",
        &[
            allow(
                READ,
                "core",
                "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
            ),
            allow(
                READ,
                "core",
                "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status",
            ),
            allow(READ, "core", "namespaces"),
            allow(READ, "discovery.k8s.io", "endpointslices"),
            allow(
                READ,
                "apps",
                "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
            ),
            allow(READ, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
            allow(READ, "batch", "cronjobs cronjobs/status jobs jobs/status"),
            allow(
                READ,
                "extensions",
                "daemonsets daemonsets/status deployments deployments/scale deployments/status ingresses ingresses/status networkpolicies replicasets replicasets/scale replicasets/status replicationcontrollers/scale",
            ),
            allow(READ, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
            allow(READ, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
            // `kubectl top`: upstream's metrics server brings this as system:aggregated-metrics-reader.
            allow(READ, "metrics.k8s.io", "nodes pods"),
        ],
    ),
    RoleRow(
        "system:auth-delegator",
        "",
        &[
            allow("create", "authentication.k8s.io", "tokenreviews"),
            allow("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    RoleRow(
        "system:basic-user",
        "",
        &[
            allow("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews"),
            allow("create", "authentication.k8s.io", "selfsubjectreviews"),
        ],
    ),
    RoleRow(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "",
        &[allow("create", "certificates.k8s.io", "certificatesigningrequests/nodeclient")],
    ),
    RoleRow(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "",
        &[allow("create", "certificates.k8s.io", "certificatesigningrequests/selfnodeclient")],
    ),
    RoleRow(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        "",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client")],
    ),
    RoleRow(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        "",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kube-apiserver-client-kubelet")],
    ),
    RoleRow(
        "system:certificates.k8s.io:kubelet-serving-approver",
        "",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/kubelet-serving")],
    ),
    RoleRow(
        "system:certificates.k8s.io:legacy-unknown-approver",
        "",
        &[named("approve", "certificates.k8s.io", "signers", "kubernetes.io/legacy-unknown")],
    ),
    RoleRow(
        "system:discovery",
        "",
        &[paths("/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/")],
    ),
    RoleRow("system:kube-aggregator", "", &[allow(READ, "core", "endpoints services")]),
    RoleRow(
        "system:kube-controller-manager",
        "",
        &[
            EVENTS,
            allow("create", "coordination.k8s.io", "leases"),
            named("get update", "coordination.k8s.io", "leases", "kube-controller-manager"),
            allow("create", "core", "secrets serviceaccounts"),
            allow("delete", "core", "secrets"),
            allow("get", "core", "configmaps namespaces secrets serviceaccounts"),
            allow("update", "core", "secrets serviceaccounts"),
            allow("create", "authentication.k8s.io", "tokenreviews"),
            allow("create", "authorization.k8s.io", "subjectaccessreviews"),
            allow("list watch", "*", "*"),
            allow("create", "core", "serviceaccounts/token"),
        ],
    ),
    RoleRow("system:kube-dns", "", &[allow("list watch", "core", "endpoints services")]),
    RoleRow(
        "system:kube-scheduler",
        "",
        &[
            EVENTS,
            allow("create", "coordination.k8s.io", "leases"),
            named("get update", "coordination.k8s.io", "leases", "kube-scheduler"),
            allow(READ, "core", "nodes"),
            allow("delete get list watch", "core", "pods"),
            allow("create", "core", "bindings pods/binding"),
            allow("patch update", "core", "pods/status"),
            allow(READ, "core", "replicationcontrollers services"),
            allow(READ, "apps extensions", "replicasets"),
            allow(READ, "apps", "statefulsets"),
            allow(READ, "policy", "poddisruptionbudgets"),
            allow(READ, "core", "persistentvolumeclaims persistentvolumes"),
            allow("create", "authentication.k8s.io", "tokenreviews"),
            allow("create", "authorization.k8s.io", "subjectaccessreviews"),
            allow(READ, "storage.k8s.io", "csinodes"),
            allow(READ, "core", "namespaces"),
            allow(READ, "storage.k8s.io", "csidrivers"),
            allow(READ, "storage.k8s.io", "csistoragecapacities"),
        ],
    ),
    RoleRow(
        "system:kubelet-api-admin",
        "",
        &[
            allow(READ, "core", "nodes"),
            allow("proxy", "core", "nodes"),
            allow("*", "core", "nodes/log nodes/metrics nodes/proxy nodes/stats"),
        ],
    ),
    RoleRow(
        "system:monitoring",
        "",
        &[paths("/healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*")],
    ),
    RoleRow("system:node", "", NODE),
    RoleRow(
        "system:node-bootstrapper",
        "",
        &[allow("create get list watch", "certificates.k8s.io", "certificatesigningrequests")],
    ),
    RoleRow(
        "system:node-problem-detector",
        "",
        &[allow("get", "core", "nodes"), allow("patch", "core", "nodes/status"), EVENTS],
    ),
    RoleRow(
        "system:node-proxier",
        "",
        &[
            allow("list watch", "core", "endpoints services"),
            allow(READ, "core", "nodes"),
            EVENTS,
            allow("list watch", "discovery.k8s.io", "endpointslices"),
        ],
    ),
    RoleRow(
        "system:persistent-volume-provisioner",
        "",
        &[
            allow("create delete get list watch", "core", "persistentvolumes"),
            allow("get list update watch", "core", "persistentvolumeclaims"),
            allow(READ, "storage.k8s.io", "storageclasses"),
            allow("watch", "core", "events"),
            EVENTS,
        ],
    ),
    RoleRow("system:public-info-viewer", "", &[paths("/healthz /livez /readyz /version /version/")]),
    RoleRow(
        "system:service-account-issuer-discovery",
        "",
        &[paths("/.well-known/openid-configuration /openid/v1/jwks")],
    ),
    RoleRow(
        "system:volume-scheduler",
        "",
        &[
            allow("get list patch update watch", "core", "persistentvolumes"),
            allow(READ, "storage.k8s.io", "storageclasses"),
            allow("get list patch update watch", "core", "persistentvolumeclaims"),
        ],
    ),
    RoleRow("view", "edit", &[]),
];

/// The role of the cluster, which is the binding's name too, and who has it: `Kind:name`.
const BINDINGS: &[(&str, &[&str])] = &[
    ("cluster-admin", &["Group:system:masters"]),
    ("system:basic-user", &["Group:system:authenticated"]),
    ("system:discovery", &["Group:system:authenticated"]),
    ("system:kube-controller-manager", &["User:system:kube-controller-manager"]),
    ("system:kube-scheduler", &["User:system:kube-scheduler"]),
    ("system:monitoring", &["Group:system:monitoring"]),
    // The node authorizer judges nodes; the binding is upstream's, without subjects.
    ("system:node", &[]),
    // Boards that join. Upstream's kubeadm binds its own group so.
    ("system:node-bootstrapper", &["Group:system:bootstrappers"]),
    ("system:node-proxier", &["User:system:kube-proxy"]),
    ("system:public-info-viewer", &["Group:system:authenticated", "Group:system:unauthenticated"]),
    ("system:service-account-issuer-discovery", &["Group:system:serviceaccounts"]),
    ("system:volume-scheduler", &["User:system:kube-scheduler"]),
];

/// What every node may, of what is not told object by object.
pub(super) fn node_rules() -> Vec<PolicyRule> {
    NODE.iter().map(Allow::rule).collect()
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    })
}

fn cluster_roles() -> impl Iterator<Item = Value> {
    CLUSTER_ROLES.iter().map(|RoleRow(name, gathered, rules)| {
        let mut metadata = metadata(name);
        if !gathered.is_empty() {
            metadata["labels"][format!("{GROUP}/aggregate-to-{gathered}")] = "true".into();
        }
        let rules: Vec<PolicyRule> = rules.iter().map(Allow::rule).collect();
        let mut role = json!({"metadata": metadata, "rules": rules});
        if rules.is_empty() {
            let label = format!("{GROUP}/aggregate-to-{name}");
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
        role
    })
}

fn cluster_role_bindings() -> impl Iterator<Item = Value> {
    BINDINGS.iter().map(|(name, subjects)| {
        let subjects: Vec<Value> = subjects
            .iter()
            .filter_map(|subject| subject.split_once(':'))
            .map(|(kind, name)| json!({"apiGroup": GROUP, "kind": kind, "name": name}))
            .collect();
        let mut binding = json!({
            "metadata": metadata(name),
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
        });
        if !subjects.is_empty() {
            binding["subjects"] = subjects.into();
        }
        binding
    })
}

/// Brings the roles and bindings that every cluster has up to date.
///
/// # Errors
/// The storage's.
pub async fn reconcile(registry: &Registry) -> Result<(), StatusError> {
    let roles = cluster_roles().map(|role| restore(registry, "clusterroles", role));
    try_join_all(roles).await?;
    let bindings = cluster_role_bindings().map(|binding| restore(registry, "clusterrolebindings", binding));
    try_join_all(bindings).await?;
    Ok(())
}

async fn restore(registry: &Registry, plural: &'static str, expected: Value) -> Result<(), StatusError> {
    let resource = kinds::find(GROUP, "v1", plural).expect("the kinds of RBAC are in the table");
    let name = object::name(&expected).to_string();
    let collection = Target { resource, namespace: String::new(), name: String::new() };
    let target = Target { name, ..collection.clone() };
    let (who, options) = (
        Identity::apiserver(),
        WriteOptions { manager: "coracle-control".into(), ..WriteOptions::default() },
    );
    let document = |value: Value| Document { value, duplicates: Vec::new() };
    for _ in 0..ATTEMPTS_MAX {
        match registry.get(&target).await {
            Ok(existing) => {
                let Some(wanted) = reconciled(&existing, &expected) else { return Ok(()) };
                // A binding to another role cannot be changed: it is made anew.
                if object::at(&wanted, &["roleRef"]) != object::at(&existing, &["roleRef"]) {
                    registry.delete(&who, &target, &Default::default()).await?;
                    continue;
                }
                match registry.update(&who, &target, None, document(wanted), &options).await {
                    Err(error) if matches!(error.reason, Reason::Conflict | Reason::NotFound) => {}
                    written => return written.map(|_| ()),
                }
            }
            Err(error) if error.reason == Reason::NotFound => {
                match registry.create(&who, &collection, document(expected.clone()), &options).await {
                    // Another control plane was faster.
                    Err(error) if error.reason == Reason::AlreadyExists => {}
                    written => return written.map(|_| ()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The object as it should be; `None` when it is so, or is not to be touched.
fn reconciled(existing: &Value, expected: &Value) -> Option<Value> {
    if object::text(existing, &["metadata", "annotations", AUTOUPDATE]) == "false" {
        return None;
    }
    let mut wanted = existing.clone();
    for key in ["labels", "annotations"] {
        let mut all: Map<String, Value> =
            object::at(expected, &["metadata", key]).as_object().cloned().unwrap_or_default();
        let own = object::at(existing, &["metadata", key]).as_object().cloned();
        all.extend(own.unwrap_or_default());
        object::set_meta(&mut wanted, key, Value::Object(all));
    }
    let fields = object::fields(&mut wanted);
    match expected.get("roleRef") {
        Some(role) => {
            fields.insert("roleRef".into(), role.clone());
            let mut subjects = object::items(existing, &["subjects"]).to_vec();
            for subject in object::items(expected, &["subjects"]) {
                if !subjects.contains(subject) {
                    subjects.push(subject.clone());
                }
            }
            if !subjects.is_empty() {
                fields.insert("subjects".into(), subjects.into());
            }
        }
        None => {
            let missing = uncovered(&rules_of(existing), &rules_of(expected));
            if !missing.is_empty() {
                let mut rules = object::items(existing, &["rules"]).to_vec();
                rules.extend(missing.iter().filter_map(|rule| serde_json::to_value(rule).ok()));
                fields.insert("rules".into(), rules.into());
            }
            match expected.get("aggregationRule") {
                Some(rule) if existing.get("aggregationRule").is_none() => {
                    fields.insert("aggregationRule".into(), rule.clone());
                }
                None => {
                    fields.remove("aggregationRule");
                }
                Some(_) => {}
            }
        }
    }
    (wanted != *existing).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_needs_is_brought_back_and_what_somebody_added_stays() {
        let check = |existing: Value, expected: Value, wanted: Option<Value>| {
            assert_eq!(reconciled(&existing, &expected), wanted, "{existing} {expected}");
        };
        let role = |verbs: &[&str]| json!({"metadata": metadata("r"), "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}]});
        check(role(&["get", "list", "x"]), role(&["get", "list"]), None);
        let mut added = role(&["get"]);
        added["rules"]
            .as_array_mut()
            .expect("a list")
            .push(json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}));
        check(role(&["get"]), role(&["get", "list"]), Some(added));
        let mut own = role(&["get"]);
        own["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        check(own, role(&["get", "list"]), None);
        let bind = |subjects: Value| json!({"metadata": metadata("b"), "roleRef": {"name": "r"}, "subjects": subjects});
        check(bind(json!([1, 2])), bind(json!([2, 3])), Some(bind(json!([1, 2, 3]))));
    }

    #[test]
    fn every_rule_of_the_policy_says_what_it_is_about() {
        let roles: Vec<Value> = cluster_roles().collect();
        for role in &roles {
            for rule in rules_of(role) {
                let about_paths = rule.api_groups.is_empty() && rule.resources.is_empty();
                assert!(!rule.verbs.is_empty(), "{role}");
                assert_eq!(about_paths, !rule.non_resource_urls.is_empty(), "{role}");
            }
        }
        for binding in cluster_role_bindings() {
            let name = object::text(&binding, &["roleRef", "name"]);
            assert!(roles.iter().any(|role| object::name(role) == name), "{name}");
        }
    }
}
