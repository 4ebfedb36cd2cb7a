//! What is behind services, with the real server and kubectl; boards are played.

use crate::control::Control;
use crate::etcd::EtcdServer;
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Waits until kubectl's answer is as wanted.
pub fn until(kubectl: &Kubectl<'_>, arguments: &[&str], so: impl Fn(&str) -> bool) -> String {
    until_within(Duration::from_secs(60), kubectl, arguments, so)
}

fn until_within(
    patience: Duration,
    kubectl: &Kubectl<'_>,
    arguments: &[&str],
    so: impl Fn(&str) -> bool,
) -> String {
    let deadline = Instant::now() + patience;
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

/// A configuration of a control plane that is reached from elsewhere at this address.
fn advertising(address: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("control.toml");
    std::fs::write(&config, format!("advertise = \"{address}\"\n")).expect("written");
    (dir, config.to_str().expect("text").to_string())
}

/// What is read of the Endpoints is read of the slice as well.
fn both_show(patience: Duration, kubectl: &Kubectl<'_>, addresses: &[&str]) {
    let endpoints: Vec<String> = addresses.iter().map(|address| format!("{address}:6443")).collect();
    let shown = ["get", "endpoints", "kubernetes", "--no-headers"];
    until_within(patience, kubectl, &shown, |shown| {
        shown.split_whitespace().nth(1) == Some(endpoints.join(",").as_str())
    });
    let slice = ["get", "endpointslices", "kubernetes", "--no-headers"];
    until_within(patience, kubectl, &slice, |shown| {
        let columns: Vec<_> = shown.split_whitespace().collect();
        columns[..4] == ["kubernetes", "IPv4", "6443", addresses.join(",").as_str()]
    });
}

#[test]
fn the_api_is_found_behind_its_service() {
    const SOON: Duration = Duration::from_secs(60);
    let data = tempfile::tempdir().expect("a directory");
    let (_first, config) = advertising("192.0.2.1:6443");
    let serve = |config: &str| Control::start_in(data.path(), &["--config", config]);
    let alone = serve(&config);
    both_show(SOON, &Kubectl(&alone), &["192.0.2.1"]);
    // One slice, ours: nobody mirrors the Endpoints as well.
    let names = ["get", "endpointslices", "-l", "kubernetes.io/service-name=kubernetes", "-o", "name"];
    assert_eq!(Kubectl(&alone).ok(&names).trim(), "endpointslice.discovery.k8s.io/kubernetes");
    let version =
        ["get", "endpoints", "kubernetes", "-o", "jsonpath={.metadata.resourceVersion} {.metadata.uid}"];
    let before = Kubectl(&alone).ok(&version);
    drop(alone);
    let again = serve(&config);
    both_show(SOON, &Kubectl(&again), &["192.0.2.1"]);
    assert_eq!(Kubectl(&again).ok(&version), before, "what is so is not written");
    drop(again);
    // It moves, and then it serves nobody but this machine.
    let (_other, config) = advertising("192.0.2.2:6443");
    let moved = serve(&config);
    both_show(SOON, &Kubectl(&moved), &["192.0.2.2"]);
    drop(moved);
    let here = Control::start_in(data.path(), &[]);
    let shown = ["get", "endpoints", "kubernetes", "--no-headers"];
    until(&Kubectl(&here), &shown, |shown| shown.contains("<none>"));
    until(&Kubectl(&here), &names, |shown| !shown.contains("endpointslice.discovery.k8s.io/kubernetes"));
}

#[test]
fn who_serves_no_more_leaves_the_endpoints_of_the_api() {
    let etcd = EtcdServer::start();
    let (_first, one) = advertising("192.0.2.1:6443");
    let (_second, two) = advertising("192.0.2.2:6443");
    let mut first = Control::start(&["--config", &one, "--etcd", &etcd.endpoint]);
    let second = Control::start(&["--config", &two, "--etcd", &etcd.endpoint]);
    let patience = Duration::from_secs(180);
    both_show(patience, &Kubectl(&first), &["192.0.2.1", "192.0.2.2"]);
    let leases = [
        "get",
        "leases",
        "-n",
        "kube-system",
        "-l",
        "apiserver.kubernetes.io/identity=kube-apiserver",
        "-o",
        "name",
    ];
    assert_eq!(Kubectl(&first).ok(&leases).lines().count(), 2, "one each");
    first.process.0.kill().expect("it runs");
    first.process.0.wait().expect("it ends");
    // Forty seconds, and up to ten until the other looks.
    both_show(patience, &Kubectl(&second), &["192.0.2.2"]);
    // One that comes does not bring back who is gone, whose Lease is still there.
    let (_third, three) = advertising("192.0.2.3:6443");
    let third = Control::start(&["--config", &three, "--etcd", &etcd.endpoint]);
    both_show(patience, &Kubectl(&third), &["192.0.2.2", "192.0.2.3"]);
    assert_eq!(Kubectl(&third).ok(&leases).lines().count(), 3);
}
