use super::*;
use serde_json::json;

fn graph() -> Graph {
    let mut graph = Graph::default();
    for (name, node) in [("mine", "a"), ("other", "b")] {
        graph.put_pod(&json!({
            "metadata": {"namespace": "n", "name": name},
            "spec": {
                "nodeName": node,
                "serviceAccountName": format!("{name}-account"),
                "volumes": [
                    {"secret": {"secretName": format!("{name}-secret")}},
                    {"configMap": {"name": format!("{name}-config")}},
                    {"persistentVolumeClaim": {"claimName": format!("{name}-claim")}},
                ],
            },
        }));
    }
    graph
}

/// `VERB GROUP/RESOURCE[/PART] [NAMESPACE/][NAME] [FIELD=VALUE]` as node `a`; why not, if not.
fn check(asked: &str, expected: Result<(), &str>) {
    let words: Vec<&str> = asked.split(' ').collect();
    let of: Vec<&str> = words[1].split('/').collect();
    let (namespace, name) = words.get(2).map_or(("", ""), |at| at.split_once('/').unwrap_or(("", at)));
    let fields = words.get(3).map(|text| FieldSelector::parse(text, |_| true).expect("a selector"));
    let attributes = Attributes::Resource {
        verb: words[0],
        group: if of[0] == "core" { "" } else { of[0] },
        resource: of[1],
        subresource: of.get(2).copied().unwrap_or_default(),
        namespace,
        name,
        fields: fields.as_ref(),
    };
    let rules = crate::auth::policy::node_rules();
    let found = decide("a", &attributes, &graph(), &rules);
    assert_eq!(found, expected.map_err(String::from), "{asked}");
}

#[test]
fn a_node_reads_what_its_pods_need_and_nothing_of_others() {
    let unrelated = Err("no relationship found between node 'a' and this object");
    for (kind, name) in [("secrets", "secret"), ("configmaps", "config")] {
        let of = format!("core/{kind}");
        for verb in ["get", "list", "watch"] {
            check(&format!("{verb} {of} n/mine-{name}"), Ok(()));
            check(&format!("{verb} {of} n/other-{name}"), unrelated);
            check(&format!("{verb} {of} m/mine-{name}"), unrelated);
            check(&format!("{verb} {of} n/"), Err("No Object name found"));
            check(&format!("{verb} {of}"), Err("can only read namespaced object of this type"));
        }
        for verb in ["create", "update", "patch", "delete", "deletecollection"] {
            check(&format!("{verb} {of} n/mine-{name}"), Err("can only read resources of this type"));
        }
    }
    check("get core/persistentvolumeclaims n/mine-claim", Ok(()));
    check(
        "list core/persistentvolumeclaims n/mine-claim",
        Err("can only get individual resources of this type"),
    );
    check("get core/persistentvolumeclaims n/other-claim", unrelated);
    check("patch core/persistentvolumeclaims/status n/mine-claim", Ok(()));
    check("patch core/persistentvolumeclaims/status n/other-claim", unrelated);
    check(
        "patch core/persistentvolumeclaims n/mine-claim",
        Err("can only get individual resources of this type"),
    );
    check("get core/persistentvolumes x", unrelated);
}

#[test]
fn a_node_reads_its_own_pods_only() {
    let unrelated = Err("no relationship found between node 'a' and this object");
    let selector = Err("can only list/watch pods with spec.nodeName field selector");
    check("get core/pods n/mine", Ok(()));
    check("get core/pods n/other", unrelated);
    check("list core/pods / spec.nodeName=a", Ok(()));
    check("watch core/pods n/ spec.nodeName=a,status.phase!=Failed", Ok(()));
    check("list core/pods", selector);
    check("watch core/pods / spec.nodeName=b", selector);
    check("watch core/pods / spec.nodeName!=a", selector);
    check("watch core/pods / status.phase=Running", selector);
    check("watch core/pods n/other metadata.name=other", unrelated);
    check("watch core/pods n/mine metadata.name=mine", Ok(()));
    check("deletecollection core/pods / spec.nodeName=a", Err(""));
    for part in ["exec", "attach", "portforward", "proxy", "log", "binding", "ephemeralcontainers", "resize"]
    {
        for verb in ["get", "create", "update", "patch"] {
            check(&format!("{verb} core/pods/{part} n/mine"), Err(""));
        }
    }
    check("patch core/pods/status n/other", Ok(())); // what it may say of it, NodeRestriction judges
    check("update core/pods n/mine", Err(""));
    check("patch core/pods n/mine", Err(""));
}

#[test]
fn a_node_is_itself_and_no_other() {
    check("get core/nodes a", Ok(()));
    check("watch core/nodes a metadata.name=a", Ok(()));
    check("get core/nodes b", Err("node 'a' cannot read 'b', only its own Node object"));
    check("list core/nodes", Err("node 'a' cannot read all nodes, only its own Node object"));
    check("delete core/nodes a", Err(""));
    check("get core/nodes/proxy a", Err(""));
    let lease = "coordination.k8s.io/leases";
    check(&format!("get {lease} kube-node-lease/a"), Ok(()));
    check(&format!("create {lease} kube-node-lease/"), Ok(()));
    let other = "can only access node lease with the same name as the requesting node";
    check(&format!("update {lease} kube-node-lease/b"), Err(other));
    let place = "can only access leases in the \"kube-node-lease\" system namespace";
    check(&format!("get {lease} kube-system/a"), Err(place));
    let verbs = "can only get, create, update, patch, or delete a node lease";
    check(&format!("list {lease} kube-node-lease/"), Err(verbs));
}

#[test]
fn a_node_asks_for_tokens_of_its_pods_accounts() {
    check("create core/serviceaccounts/token n/mine-account", Ok(()));
    let unrelated = Err("no relationship found between node 'a' and this object");
    check("create core/serviceaccounts/token n/other-account", unrelated);
    check("create core/serviceaccounts/token m/mine-account", unrelated);
    let only = Err("can only create tokens for individual service accounts");
    check("get core/serviceaccounts n/mine-account", only);
    check("list core/serviceaccounts n/", only);
    check("create core/serviceaccounts n/", only);
    check(
        "create core/serviceaccounts/x n/mine-account",
        Err("can only create token subresource of serviceaccount"),
    );
}

#[test]
fn of_what_is_left_a_node_may_what_its_role_says() {
    check("list core/services", Ok(()));
    check("create core/events n/", Ok(()));
    check("list core/events n/", Err(""));
    check("create certificates.k8s.io/certificatesigningrequests", Ok(()));
    check("update certificates.k8s.io/certificatesigningrequests/approval x", Err(""));
    check("list apps/deployments n/", Err(""));
    check("create rbac.authorization.k8s.io/clusterrolebindings", Err(""));
    check("impersonate core/users admin", Err(""));
    check("list core/namespaces", Err(""));
}

#[test]
fn only_a_user_of_the_nodes_group_is_a_node() {
    let check = |user: &str, groups: &[&str], expected: Option<&str>| {
        let who = Identity::known(user, groups.iter().map(ToString::to_string));
        assert_eq!(of(&who), expected, "{user} {groups:?}");
    };
    check("system:node:a", &["system:nodes"], Some("a"));
    check("system:node:", &["system:nodes"], Some(""));
    check("system:node:a", &[], None);
    check("a", &["system:nodes"], None);
    check("system:nodes:a", &["system:nodes"], None);
}
