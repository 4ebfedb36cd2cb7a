//! A malicious node: it has a certificate, and tries what is not its own.

use crate::control::{Ask, Client, Control};
use bytes::Bytes;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// A pod with a secret of its own, bound to a node.
async fn pod_on(admin: &mut Client, name: &str, node: &str) {
    let secret = json!({"metadata": {"name": format!("{name}-secret")}, "stringData": {"k": "v"}});
    assert_eq!(admin.json("POST", SECRETS, Some(&secret)).await.0, 201);
    let pod = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "s", "secret": {"secretName": format!("{name}-secret")}}],
        },
    });
    let (code, made) = admin.json("POST", PODS, Some(&pod)).await;
    assert_eq!(code, 201, "{made}");
}

/// Node `a` of two, each with a pod.
async fn node(control: &Control) -> (Client, Client) {
    let mut admin = control.connect().await;
    let mut a = crate::who::known(control, "system:node:a", "system:nodes").await;
    let mut b = crate::who::known(control, "system:node:b", "system:nodes").await;
    for (node, client) in [("a", &mut a), ("b", &mut b)] {
        let labels = json!({"kubernetes.io/hostname": node, "example.com/own": "x"});
        let made = client
            .json("POST", "/api/v1/nodes", Some(&json!({"metadata": {"name": node, "labels": labels}})))
            .await;
        assert_eq!(made.0, 201, "a node registers itself: {}", made.1);
    }
    pod_on(&mut admin, "mine", "a").await;
    pod_on(&mut admin, "other", "b").await;
    a.until(200, "GET", &format!("{PODS}/mine"), None).await;
    b.until(200, "GET", &format!("{PODS}/other"), None).await;
    (admin, a)
}

async fn refused(client: &mut Client, method: &str, path: &str, body: Option<Value>, why: &str) {
    let (code, answer) = client.json(method, path, body.as_ref()).await;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 403 && message.contains(why), "{method} {path}: {code} {answer}");
}

#[tokio::test]
async fn a_node_reads_its_own_and_nothing_else() {
    let control = Control::start(&[]);
    let (mut admin, mut a) = node(&control).await;
    for path in [
        "/api/v1/nodes/a",
        "/api/v1/nodes?fieldSelector=metadata.name%3Da",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Da",
        &format!("{SECRETS}/mine-secret"),
        &format!("{SECRETS}?fieldSelector=metadata.name%3Dmine-secret"),
        "/api/v1/namespaces/default/configmaps/kube-root-ca.crt",
        "/api/v1/services",
    ] {
        let (code, answer) = a.json("GET", path, None).await;
        assert_eq!(code, 200, "{path}: {answer}");
    }
    let unrelated = "no relationship found between node 'a' and this object";
    let selector = "can only list/watch pods with spec.nodeName field selector";
    for (path, why) in [
        ("/api/v1/nodes", "node 'a' cannot read all nodes"),
        ("/api/v1/nodes/b", "node 'a' cannot read 'b'"),
        ("/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Db", "node 'a' cannot read 'b'"),
        ("/api/v1/pods", selector),
        (PODS, selector),
        ("/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3Db", selector),
        ("/api/v1/pods?fieldSelector=spec.nodeName%21%3Da", selector),
        // The first of two selectors is the one that is authorized and the one that is served.
        ("/api/v1/pods?fieldSelector=&fieldSelector=spec.nodeName%3Da", selector),
        (&format!("{PODS}/other"), unrelated),
        ("/api/v1/watch/namespaces/default/pods/other", unrelated),
        (&format!("{PODS}/other/log"), ""),
        (&format!("{PODS}/mine/exec?command=sh"), ""),
        ("/api/v1/secrets", "can only read namespaced object of this type"),
        (SECRETS, "No Object name found"),
        (&format!("{SECRETS}/other-secret"), unrelated),
        (&format!("{SECRETS}?watch=1&fieldSelector=metadata.name%3Dother-secret"), unrelated),
        (&format!("{SECRETS}?labelSelector=a&watch=1"), "No Object name found"),
        ("/api/v1/namespaces/default/serviceaccounts/default", "can only create tokens"),
        (&format!("{LEASES}/b"), "same name as the requesting node"),
        ("/apis/apps/v1/deployments", ""),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", ""),
        ("/api/v1/nodes/b/proxy/pods", ""),
    ] {
        refused(&mut a, "GET", path, None, why).await;
    }
    // What it sees of a selected list is its own, whatever else the query says.
    let both = "/api/v1/pods?fieldSelector=spec.nodeName%3Da,spec.nodeName%3Db";
    assert_eq!(a.json("GET", both, None).await.1["items"], json!([]));
    // A pod that goes takes its secret along.
    assert_eq!(admin.json("DELETE", &format!("{PODS}/mine?gracePeriodSeconds=0"), None).await.0, 200);
    a.until(403, "GET", &format!("{SECRETS}/mine-secret"), None).await;
}

#[tokio::test]
async fn a_node_writes_itself_and_its_pods_status_and_nothing_else() {
    let control = Control::start(&[]);
    let (mut admin, mut a) = node(&control).await;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    for (path, body) in [
        ("/api/v1/nodes/a/status", ready.clone()),
        (
            "/api/v1/nodes/a",
            json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z", "node.kubernetes.io/x": "y"}}}),
        ),
        (&format!("{PODS}/mine/status"), json!({"status": {"phase": "Running"}})),
    ] {
        let (code, answer) = a.json("PATCH", path, Some(&body)).await;
        assert_eq!(code, 200, "{path}: {answer}");
    }
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    assert_eq!(a.json("POST", LEASES, Some(&lease("a"))).await.0, 201);

    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "b", "uid": "u"}]);
    let owned = json!({"metadata": {"ownerReferences": owner}});
    let labels = "is not allowed to modify labels: ";
    for (path, body, why) in [
        ("/api/v1/nodes/a", taint.clone(), "node \"a\" is not allowed to modify taints"),
        ("/api/v1/nodes/a", label("node-restriction.kubernetes.io/x"), labels),
        ("/api/v1/nodes/a", label("x.node-restriction.kubernetes.io/x"), labels),
        ("/api/v1/nodes/a", label("node-role.kubernetes.io/control-plane"), labels),
        ("/api/v1/nodes/a/status", label("node-restriction.kubernetes.io/x"), labels),
        ("/api/v1/nodes/a", owned.clone(), "node \"a\" is not allowed to modify ownerReferences"),
        ("/api/v1/nodes/b", label("own"), "node \"a\" is not allowed to modify node \"b\""),
        ("/api/v1/nodes/b/status", ready, "node \"a\" is not allowed to modify node \"b\""),
        (
            &format!("{PODS}/other/status"),
            json!({"status": {"phase": "Failed"}}),
            "node \"a\" can only update pod status for pods with spec.nodeName set to itself",
        ),
        (&format!("{PODS}/mine/status"), label("app"), "node \"a\" cannot update labels through pod status"),
        (&format!("{PODS}/mine"), label("app"), ""),
        (&format!("{PODS}/mine"), json!({"spec": {"nodeName": "b"}}), ""),
        (&format!("{PODS}/mine/ephemeralcontainers"), json!({}), ""),
        (&format!("{LEASES}/b"), lease("b"), "same name as the requesting node"),
        (&format!("{SECRETS}/mine-secret"), json!({"data": {}}), "can only read resources of this type"),
    ] {
        refused(&mut a, "PATCH", path, Some(body), why).await;
    }
    // An update that says nothing of taints removes them.
    assert_eq!(admin.json("PATCH", "/api/v1/nodes/a", Some(&taint)).await.0, 200);
    refused(&mut a, "PUT", "/api/v1/nodes/a", Some(json!({"metadata": {"name": "a"}})), "modify taints")
        .await;
    // Through the status nothing but the status changes.
    let (_, mut own) = a.json("GET", "/api/v1/nodes/a", None).await;
    own["spec"] = json!({});
    let (code, kept) = a.json("PUT", "/api/v1/nodes/a/status", Some(&own)).await;
    assert_eq!((code, &kept["spec"]["taints"][0]["key"]), (200, &json!("k")));
    // Server-side apply is a write like any other.
    let apply = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a", "labels": {"node-role.kubernetes.io/x": ""}}});
    let ask = Ask {
        method: "PATCH",
        path: "/api/v1/nodes/a?fieldManager=x&force=true",
        body: Some(Bytes::from(apply.to_string())),
        content_type: "application/apply-patch+yaml",
        ..Ask::default()
    };
    let (code, answer) = a.ask(ask).await;
    assert!(code == 403 && answer.contains(labels), "{code} {answer}");
    let dry = "/api/v1/nodes/b?dryRun=All";
    refused(&mut a, "PATCH", dry, Some(label("x")), "node \"a\" is not allowed to modify node \"b\"").await;

    for path in ["/api/v1/nodes/a", "/api/v1/nodes/b", PODS, "/api/v1/nodes"] {
        refused(&mut a, "DELETE", path, None, "").await;
    }
    let why = "node \"a\" can only delete pods with spec.nodeName set to itself";
    refused(&mut a, "DELETE", &format!("{PODS}/other"), None, why).await;
    let evict = |name: &str| json!({"metadata": {"name": name}});
    let why = "node a can only evict pods with spec.nodeName set to itself";
    refused(&mut a, "POST", &format!("{PODS}/other/eviction"), Some(evict("other")), why).await;
    refused(&mut a, "POST", LEASES, Some(lease("c")), "same name as the requesting node").await;
    refused(
        &mut a,
        "POST",
        "/api/v1/nodes",
        Some(json!({"metadata": {"name": "c"}})),
        "node \"a\" is not allowed to modify node \"c\"",
    )
    .await;
    assert_eq!(
        a.json("DELETE", &format!("{PODS}/mine?gracePeriodSeconds=0"), None).await.0,
        200,
        "its own pod ended"
    );
}

#[tokio::test]
async fn a_node_shows_its_own_pods_and_gives_them_nothing() {
    let control = Control::start(&[]);
    let (mut admin, mut a) = node(&control).await;
    let (_, node) = admin.json("GET", "/api/v1/nodes/a", None).await;
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": node["metadata"]["uid"], "controller": true});
    let mirror = json!({
        "metadata": {
            "name": "static-a",
            "annotations": {"kubernetes.io/config.mirror": "x"},
            "ownerReferences": [owner],
        },
        "spec": {"nodeName": "a", "containers": [{"name": "c", "image": "i"}]},
    });
    let changed = |pointer: &str, value: Value| {
        let mut pod = mirror.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        pod.pointer_mut(parent).expect("there")[key] = value;
        pod
    };
    let secret = json!([{"name": "v", "secret": {"secretName": "other-secret"}}]);
    let config = json!([{"name": "v", "configMap": {"name": "kube-root-ca.crt"}}]);
    let claim = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]);
    let token = json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
    let mut uid = owner.clone();
    uid["uid"] = "u".into();
    for (pod, why) in [
        (changed("/metadata/annotations", json!({})), "node \"a\" can only create mirror pods"),
        (
            changed("/spec/nodeName", json!("b")),
            "node \"a\" can only create pods with spec.nodeName set to itself",
        ),
        (
            changed("/metadata/ownerReferences", json!([])),
            "node \"a\" can only create pods with an owner reference set to itself",
        ),
        (
            changed("/metadata/ownerReferences", json!([owner, owner])),
            "node \"a\" can only create pods with a single owner reference set to itself",
        ),
        (changed("/metadata/ownerReferences", json!([uid])), "node a UID mismatch: expected u got "),
        (
            changed("/spec/serviceAccountName", json!("default")),
            "a mirror pod may not reference service accounts",
        ),
        (changed("/spec/volumes", secret), "a mirror pod may not reference secrets"),
        (changed("/spec/volumes", config), "a mirror pod may not reference configmaps"),
        (changed("/spec/volumes", claim), "a mirror pod may not reference persistentvolumeclaims"),
        (changed("/spec/volumes", token), "a mirror pod may not reference service accounts"),
    ] {
        refused(&mut a, "POST", PODS, Some(pod), why).await;
    }
    let (code, made) = a.json("POST", PODS, Some(&mirror)).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"].get("serviceAccountName"), None);
    refused(&mut a, "GET", &format!("{SECRETS}/other-secret"), None, "no relationship").await;
    // A certificate without the group is nobody's node, and one without a name is none.
    for (user, group) in
        [("system:node:a", "people"), ("system:node:", "system:nodes"), ("a", "system:nodes")]
    {
        let mut other = crate::who::known(&control, user, group).await;
        refused(&mut other, "GET", &format!("{SECRETS}/mine-secret"), None, "").await;
        refused(&mut other, "PATCH", "/api/v1/nodes/a", Some(json!({})), "").await;
    }
}
