//! What is behind services, with the real server and kubectl; boards are played.

use crate::control::Control;
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Waits until kubectl's answer is as wanted.
pub fn until(kubectl: &Kubectl<'_>, arguments: &[&str], so: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = kubectl.run(arguments, "").unwrap_or_else(|error| error);
        if so(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "kubectl {arguments:?}: {found}");
    }
}

pub fn apply(kubectl: &Kubectl<'_>, object: &Value) {
    kubectl.run(&["apply", "-f", "-"], &object.to_string()).expect("applied");
}

/// A pod that runs on `board-1` with this address.
fn run(kubectl: &Kubectl<'_>, name: &str, address: &str, ready: bool) {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {
            "nodeName": "board-1",
            "containers": [{"name": "c", "image": "app:1", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
    });
    apply(kubectl, &pod);
    say(kubectl, name, address, ready);
}

fn say(kubectl: &Kubectl<'_>, name: &str, address: &str, ready: bool) {
    let status = json!({"status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
    }});
    kubectl.ok(&[
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--type=strategic",
        "-p",
        &status.to_string(),
    ]);
}

#[test]
fn endpoints_follow_pods_and_services() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    apply(&kubectl, &board("board-1", "4"));
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "labels": {"tier": "front"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    apply(&kubectl, &service);
    let shown = ["get", "endpoints", "web", "--no-headers"];
    until(&kubectl, &shown, |shown| shown.contains("<none>"));
    let of_web = ["get", "endpointslices", "-l", "kubernetes.io/service-name=web", "--no-headers"];
    let empty = until(&kubectl, &of_web, |shown| shown.contains("<unset>"));
    assert!(empty.starts_with("web-") && empty.contains("IPv4"), "{empty}");

    run(&kubectl, "a", "10.244.1.2", true);
    run(&kubectl, "b", "10.244.1.3", false);
    until(&kubectl, &shown, |shown| shown.contains(" 10.244.1.2:8080 "));
    // A slice shows all, and says of each whether it is ready; and it is the slice that was there.
    let both = until(&kubectl, &of_web, |shown| shown.contains("10.244.1.2,10.244.1.3"));
    assert_eq!(both.split_whitespace().next(), empty.split_whitespace().next());
    assert!(both.contains(" 8080 "), "{both}");
    let described = kubectl.ok(&["describe", "service", "web"]);
    assert!(
        described.lines().any(|line| line.split_whitespace().eq(["Endpoints:", "10.244.1.2:8080"])),
        "{described}"
    );
    let slice: Value = serde_json::from_str(&kubectl.ok(&[
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
        "-o",
        "json",
    ]))
    .expect("JSON");
    let slice = &slice["items"][0];
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice["metadata"]["labels"]["tier"], "front");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Service");
    assert_eq!(
        slice["endpoints"][1]["conditions"],
        json!({"ready": false, "serving": false, "terminating": false})
    );
    assert_eq!(slice["endpoints"][0]["targetRef"]["name"], "a");
    assert_eq!(slice["endpoints"][0]["nodeName"], "board-1");

    say(&kubectl, "b", "10.244.1.3", true);
    until(&kubectl, &shown, |shown| shown.contains("10.244.1.2:8080,10.244.1.3:8080"));

    // What does not concern the service writes nothing; another service comes behind it, and is seen done.
    let version = |kind: &str| {
        kubectl.ok(&["get", kind, "-l", "tier=front", "-o", "jsonpath={.items[*].metadata.resourceVersion}"])
    };
    let before = (version("endpoints"), version("endpointslices"));
    kubectl.ok(&["annotate", "pod", "a", "note=x"]);
    let mut second = service;
    second["metadata"] = json!({"name": "second"});
    apply(&kubectl, &second);
    until(&kubectl, &["get", "endpoints", "second", "--no-headers"], |shown| shown.contains("10.244.1.3"));
    assert_eq!((version("endpoints"), version("endpointslices")), before);

    kubectl.ok(&["delete", "pod", "b", "--force", "--grace-period=0"]);
    until(&kubectl, &shown, |shown| shown.contains(" 10.244.1.2:8080 "));
    until(&kubectl, &of_web, |shown| shown.contains(" 10.244.1.2 "));

    // Somebody meddles: it is put right.
    kubectl.ok(&["delete", "endpointslices", "-l", "kubernetes.io/service-name=web"]);
    until(&kubectl, &of_web, |shown| shown.contains("10.244.1.2"));
    kubectl.ok(&["patch", "endpoints", "web", "--type=merge", "-p", r#"{"subsets": null}"#]);
    until(&kubectl, &shown, |shown| shown.contains("10.244.1.2:8080"));

    kubectl.ok(&["delete", "service", "web"]);
    until(&kubectl, &["get", "endpoints,endpointslices", "-l", "tier", "-o", "name"], str::is_empty);
}

#[test]
fn endpoints_of_users_are_shown_as_slices() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
        "spec": {"ports": [{"port": 5432}]},
    });
    apply(&kubectl, &service);
    let endpoints = |ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"port": 5432}]}],
        })
    };
    apply(&kubectl, &endpoints("192.0.2.1"));
    let of_db = ["get", "endpointslices", "-l", "kubernetes.io/service-name=db", "--no-headers"];
    let first = until(&kubectl, &of_db, |shown| shown.contains("192.0.2.1"));
    assert!(first.contains(" 5432 "), "{first}");
    apply(&kubectl, &endpoints("192.0.2.2"));
    let second = until(&kubectl, &of_db, |shown| shown.contains("192.0.2.2"));
    assert_eq!(first.split_whitespace().next(), second.split_whitespace().next(), "written over");
    let by = kubectl.ok(&[
        "get",
        "endpointslices",
        "-o",
        "jsonpath={.items[*].metadata.labels.endpointslice\\.kubernetes\\.io/managed-by}",
    ]);
    assert!(by.contains("endpointslicemirroring-controller.k8s.io"), "{by}");
    kubectl.ok(&["label", "endpoints", "db", "endpointslice.kubernetes.io/skip-mirror=true"]);
    until(&kubectl, &of_db, |shown| !shown.contains("192.0.2."));
    kubectl.ok(&["label", "endpoints", "db", "endpointslice.kubernetes.io/skip-mirror-"]);
    until(&kubectl, &of_db, |shown| shown.contains("192.0.2.2"));
    // The Endpoints of a name without a service are nobody's business.
    let mut other = endpoints("192.0.2.3");
    other["metadata"]["name"] = "other".into();
    apply(&kubectl, &other);
    kubectl.ok(&["delete", "service", "db"]);
    until(&kubectl, &["get", "endpoints", "db"], |shown| shown.contains("not found"));
    until(&kubectl, &of_db, |shown| !shown.contains("192.0.2."));
    kubectl.ok(&["get", "endpoints", "other"]);
}
