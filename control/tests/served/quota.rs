//! Quotas with the real server and kubectl.

use crate::control::Control;
use crate::endpoints::{apply, until};
use crate::etcd::EtcdServer;
use crate::kubectl::Kubectl;
use serde_json::{Value, json};

fn quota(name: &str, hard: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "app:1", "resources": {"requests": {"cpu": cpu}}}]},
    })
}

fn create(kubectl: &Kubectl<'_>, object: &Value) -> Result<String, String> {
    kubectl.run(&["create", "-f", "-"], &object.to_string())
}

/// Waits for `status.used` of a resource.
fn used(kubectl: &Kubectl<'_>, name: &str, resource: &str, wanted: &str) {
    let path = format!("jsonpath={{.status.used.{}}}", resource.replace('.', "\\."));
    until(kubectl, &["get", "quota", name, "-o", &path], |found| found == wanted);
}

#[test]
fn a_namespace_keeps_to_its_quota() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    // At once: what is not counted yet is counted by the request.
    apply(
        &kubectl,
        &quota(
            "q",
            &json!({"pods": "2", "requests.cpu": "1", "count/deployments.apps": "1", "services.nodeports": "1"}),
        ),
    );
    create(&kubectl, &pod("a", "500m")).expect("there is room");
    assert_eq!(
        create(&kubectl, &pod("b", "600m")).expect_err("too much"),
        "Error from server (Forbidden): error when creating \"STDIN\": pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
    );
    let silent = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"},
        "spec": {"containers": [{"name": "c", "image": "app:1"}]},
    });
    let refused = create(&kubectl, &silent).expect_err("it does not say");
    assert!(
        refused.ends_with("pods \"b\" is forbidden: failed quota: q: must specify requests.cpu for: c"),
        "{refused}"
    );
    create(&kubectl, &pod("b", "500m")).expect("it fits exactly");
    used(&kubectl, "q", "requests.cpu", "1");
    used(&kubectl, "q", "pods", "2");
    let described = kubectl.ok(&["describe", "quota", "q"]);
    for (resource, used, hard) in
        [("pods", "2", "2"), ("requests.cpu", "1", "1"), ("count/deployments.apps", "0", "1")]
    {
        assert!(
            described.lines().any(|line| line.split_whitespace().eq([resource, used, hard])),
            "{described}"
        );
    }
    let shown = kubectl.ok(&["get", "quota", "q", "--no-headers"]);
    assert!(shown.contains("pods: 2/2") && shown.contains("requests.cpu: 1/1"), "{shown}");
    // Seen as they are, nothing is reserved any more.
    until(&kubectl, &["get", "quota", "q", "-o", "jsonpath={.metadata.annotations}"], |told| {
        !told.contains("reservations")
    });

    // What is gone makes room.
    kubectl.ok(&["delete", "pod", "a", "--force", "--grace-period=0"]);
    used(&kubectl, "q", "pods", "1");
    // A name that is taken costs nothing.
    create(&kubectl, &pod("b", "100m")).expect_err("the name is taken");
    used(&kubectl, "q", "pods", "1");
    used(&kubectl, "q", "requests.cpu", "500m");

    // Other kinds, and changes.
    kubectl.ok(&["create", "deployment", "one", "--image=app:1", "--replicas=0"]);
    let refused = kubectl.run(&["create", "deployment", "two", "--image=app:1"], "").expect_err("one is all");
    assert!(refused.ends_with("deployments.apps \"two\" is forbidden: exceeded quota: q, requested: count/deployments.apps=1, used: count/deployments.apps=1, limited: count/deployments.apps=1"), "{refused}");
    kubectl.ok(&["create", "service", "clusterip", "web", "--tcp=80:80", "--tcp=81:81"]);
    let expose = ["patch", "service", "web", "-p", r#"{"spec": {"type": "NodePort"}}"#];
    let refused = kubectl.run(&expose, "").expect_err("two ports are too many");
    assert!(refused.contains("services \"web\" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1"), "{refused}");
    kubectl.ok(&[
        "patch",
        "quota",
        "q",
        "--type=merge",
        "-p",
        r#"{"spec": {"hard": {"services.nodeports": "2"}}}"#,
    ]);
    kubectl.ok(&expose);
    used(&kubectl, "q", "services.nodeports", "2");
    kubectl.ok(&["delete", "service", "web"]);
    used(&kubectl, "q", "services.nodeports", "0");

    // A deployment is told why it has no more pods.
    kubectl.ok(&["scale", "deployment", "one", "--replicas=1"]);
    until(&kubectl, &["get", "events", "-o", "custom-columns=M:.message"], |told| {
        told.contains("is forbidden: failed quota: q: must specify requests.cpu for: app")
    });
}

#[test]
fn scopes_and_mistakes() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let mut idle = quota("idle", &json!({"pods": "0"}));
    idle["spec"]["scopes"] = json!(["BestEffort"]);
    apply(&kubectl, &idle);
    create(&kubectl, &pod("a", "100m")).expect("it asks for something");
    let mut silent = pod("b", "1");
    silent["spec"]["containers"][0]["resources"] = json!({});
    let refused = create(&kubectl, &silent).expect_err("it asks for nothing");
    assert!(
        refused.ends_with("exceeded quota: idle, requested: pods=1, used: pods=0, limited: pods=0"),
        "{refused}"
    );
    let check = |spec: Value, expected: &str| {
        let mut wrong = quota("wrong", &json!({}));
        wrong["spec"] = spec;
        let refused = create(&kubectl, &wrong).expect_err("it is wrong");
        assert!(refused.contains(expected), "{refused}");
    };
    check(
        json!({"hard": {"gadgets": "1"}}),
        "spec.hard[gadgets]: Invalid value: \"gadgets\": must be a standard resource for quota",
    );
    check(
        json!({"hard": {"pods": "-1"}}),
        "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
    );
    check(json!({"hard": {"pods": "500m"}}), "spec.hard[pods]: Invalid value: \"500m\": must be an integer");
    check(json!({"hard": {"pods": "1"}, "scopes": ["Foo"]}), "unsupported scope");
    check(json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}), "conflicting scopes");
    check(
        json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}),
        "unsupported scope applied to resource",
    );
    let refused =
        kubectl.run(&["patch", "quota", "idle", "--type=merge", "-p", r#"{"spec": {"scopes": []}}"#], "");
    assert!(refused.expect_err("for ever").contains("spec.scopes: Invalid value"));
}

/// Never more than allowed, however many ask at once: of two control planes that share an etcd, too.
#[test]
fn many_at_once_never_exceed_a_quota() {
    let etcd = EtcdServer::start();
    let planes = [(); 2].map(|()| Control::start(&["--etcd", &etcd.endpoint]));
    let kubectl = Kubectl(&planes[0]);
    apply(&kubectl, &quota("q", &json!({"configmaps": "21", "pods": "3"})));
    // One is there from the start: kube-root-ca.crt.
    used(&kubectl, "q", "configmaps", "1");
    let made: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|worker| {
                let kubectl = Kubectl(&planes[worker % 2]);
                scope.spawn(move || {
                    let make = |n: &usize| {
                        kubectl.run(&["create", "configmap", &format!("c{worker}-{n}")], "").is_ok()
                    };
                    (0..8).filter(make).count()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("it ends")).sum()
    });
    assert_eq!(made, 20);
    let there = kubectl.ok(&["get", "configmaps", "-o", "name"]);
    assert_eq!(there.lines().count(), 21, "{there}");
    used(&kubectl, "q", "configmaps", "21");
    kubectl.ok(&["delete", "configmaps", "--all"]);
    until(&kubectl, &["get", "quota", "q", "-o", "jsonpath={.status.used.configmaps}"], |found| {
        matches!(found, "0" | "1")
    });
}
