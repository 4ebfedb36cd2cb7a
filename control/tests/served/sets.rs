//! Daemon sets and stateful sets with the real server and kubectl; boards are played.

use crate::boards::{image, play, ready};
use crate::control::Control;
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use serde_json::{Value, json};

/// Images that end in `broken` do not start.
fn until(kubectl: &Kubectl<'_>, what: &str, so: impl Fn() -> bool) {
    play(kubectl, what, |pod| (!image(pod).ends_with("broken")).then(ready), so);
}

fn set(kind: &str, name: &str, more: &Value) -> String {
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "app:v1"}],
            }},
        },
    });
    for (key, value) in more.as_object().expect("fields") {
        set["spec"][key] = value.clone();
    }
    set.to_string()
}

#[test]
fn a_daemon_set_is_on_every_board() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    let add = |name: &str| {
        kubectl.run(&["create", "-f", "-"], &board(name, "8").to_string()).expect("a node");
    };
    add("a");
    add("b");
    let get = |path: &str| kubectl.ok(&["get", "daemonset", "logs", "-o", &format!("jsonpath={{{path}}}")]);
    let pods = |path: &str| {
        let found =
            kubectl.ok(&["get", "pods", "-l", "app=logs", "-o", &format!("jsonpath={{.items[*]{path}}}")]);
        let mut words: Vec<String> = found.split_whitespace().map(str::to_string).collect();
        words.sort();
        words.join(" ")
    };
    kubectl.run(&["create", "-f", "-"], &set("DaemonSet", "logs", &json!({}))).expect("made");
    let available = |count: &str| get(".status.numberAvailable") == count;
    until(&kubectl, "two", || available("2"));
    assert_eq!(pods(".spec.nodeName"), "a b");
    kubectl.ok(&["rollout", "status", "daemonset/logs", "--timeout=30s"]);
    // A board comes, is drained (which is no reason to go), and one is closed to it.
    add("c");
    until(&kubectl, "three", || available("3"));
    kubectl.ok(&["cordon", "c"]);
    kubectl.ok(&["taint", "node", "b", "own=yes:NoSchedule"]);
    until(&kubectl, "two wanted", || get(".status.desiredNumberScheduled") == "2");
    assert_eq!((pods(".spec.nodeName").as_str(), get(".status.numberMisscheduled").as_str()), ("a b c", "1"));
    kubectl.ok(&["taint", "node", "b", "own=yes:NoExecute"]);
    until(&kubectl, "it has left b", || pods(".spec.nodeName") == "a c");
    kubectl.ok(&["taint", "node", "b", "own-"]);
    until(&kubectl, "three again", || available("3"));

    kubectl.ok(&["set", "image", "daemonset/logs", "c=app:v2"]);
    until(&kubectl, "the second version", || {
        pods(".spec.containers[0].image") == "app:v2 app:v2 app:v2" && available("3")
    });
    kubectl.ok(&["rollout", "status", "daemonset/logs", "--timeout=30s"]);
    // One that does not start takes one board, no more; undoing heals.
    kubectl.ok(&["set", "image", "daemonset/logs", "c=app:broken"]);
    until(&kubectl, "the third, as far as it goes", || get(".status.updatedNumberScheduled") == "1");
    assert_eq!(get(".status.numberUnavailable"), "1");
    let history = kubectl.ok(&["rollout", "history", "daemonset/logs"]);
    let numbers = |history: &str| {
        let lines = history.lines().skip(2).filter_map(|line| line.split_whitespace().next());
        lines.map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&history), ["1", "2", "3"], "{history}");
    let second = kubectl.ok(&["rollout", "history", "daemonset/logs", "--revision=2"]);
    assert!(second.contains("app:v2"), "{second}");
    kubectl.ok(&["rollout", "undo", "daemonset/logs"]);
    until(&kubectl, "the second again", || {
        pods(".spec.containers[0].image") == "app:v2 app:v2 app:v2" && available("3")
    });
    assert_eq!(numbers(&kubectl.ok(&["rollout", "history", "daemonset/logs"])), ["1", "3", "4"]);
    kubectl.ok(&["rollout", "undo", "daemonset/logs", "--to-revision=1"]);
    until(&kubectl, "the first", || {
        pods(".spec.containers[0].image") == "app:v1 app:v1 app:v1" && available("3")
    });
    kubectl.ok(&["rollout", "restart", "daemonset/logs"]);
    until(&kubectl, "restarted", || get(".status.updatedNumberScheduled") == "3" && available("3"));

    let described = kubectl.ok(&["describe", "daemonset", "logs"]);
    for part in [
        "Desired Number of Nodes Scheduled: 3",
        "Pods Status:  3 Running",
        "Created pod: logs-",
        "Deleted pod: logs-",
    ] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let listed = kubectl.ok(&["get", "daemonset", "logs", "--no-headers"]);
    assert_eq!(listed.split_whitespace().take(6).collect::<Vec<_>>(), ["logs", "3", "3", "3", "3", "3"]);
    kubectl.ok(&["delete", "daemonset", "logs"]);
    let left = || kubectl.ok(&["get", "pods,controllerrevisions", "-o", "name"]);
    until(&kubectl, "nothing", || left().is_empty());
}

#[test]
fn a_stateful_set_keeps_names_order_and_claims() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    kubectl.run(&["create", "-f", "-"], &board("a", "16").to_string()).expect("a node");
    let get = |what: &str, path: &str| kubectl.ok(&["get", what, "-o", &format!("jsonpath={{{path}}}")]);
    let of = |path: &str| get("statefulset/db", path);
    let pods = |path: &str| {
        kubectl.ok(&["get", "pods", "-l", "app=db", "-o", &format!("jsonpath={{.items[*]{path}}}")])
    };
    // A pod with its label and a member's name is adopted; one with another name is left alone.
    let orphan = |name: &str| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "db"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "app:v0"}]},
        });
        kubectl.run(&["create", "-f", "-"], &pod.to_string()).expect("made");
    };
    orphan("db-1");
    orphan("stranger");
    let more = json!({"replicas": 3, "serviceName": "db"});
    kubectl.run(&["create", "-f", "-"], &set("StatefulSet", "db", &more)).expect("made");
    until(&kubectl, "three", || of(".status.availableReplicas") == "3");
    assert_eq!(get("pod/stranger", ".metadata.ownerReferences"), "");
    kubectl.ok(&["delete", "pod", "stranger", "--force", "--grace-period=0"]);
    kubectl.ok(&["rollout", "status", "statefulset/db", "--timeout=60s"]);
    // The adopted one is of no revision: it has been replaced.
    until(&kubectl, "all of one template", || {
        pods(".spec.containers[0].image") == "app:v1 app:v1 app:v1" && of(".status.updatedReplicas") == "3"
    });
    assert_eq!(pods(".metadata.name"), "db-0 db-1 db-2");
    let label = |key: &str| get("pod/db-1", &format!(".metadata.labels.{key}"));
    assert_eq!(label("statefulset\\.kubernetes\\.io/pod-name"), "db-1");
    assert_eq!(label("apps\\.kubernetes\\.io/pod-index"), "1");
    assert_eq!(get("pod/db-1", ".spec['hostname','subdomain']"), "db-1 db");
    // A member that is lost comes back by its name.
    let uid = get("pod/db-1", ".metadata.uid");
    kubectl.ok(&["delete", "pod", "db-1", "--wait=false"]);
    until(&kubectl, "another db-1", || {
        kubectl.run(&["get", "pod", "db-1", "-o", "jsonpath={.metadata.uid}"], "").is_ok_and(|new| new != uid)
            && of(".status.availableReplicas") == "3"
    });

    // Down to the partition first, then all of them.
    kubectl.ok(&[
        "patch",
        "statefulset",
        "db",
        "-p",
        r#"{"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}}"#,
    ]);
    kubectl.ok(&["set", "image", "statefulset/db", "c=app:v2"]);
    until(&kubectl, "the last one", || {
        pods(".spec.containers[0].image") == "app:v1 app:v1 app:v2" && of(".status.availableReplicas") == "3"
    });
    kubectl.ok(&[
        "patch",
        "statefulset",
        "db",
        "-p",
        r#"{"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}"#,
    ]);
    until(&kubectl, "all", || {
        pods(".spec.containers[0].image") == "app:v2 app:v2 app:v2"
            && of(".status.currentRevision") == of(".status.updateRevision")
    });
    kubectl.ok(&["rollout", "status", "statefulset/db", "--timeout=30s"]);
    let history = kubectl.ok(&["rollout", "history", "statefulset/db"]);
    let numbers: Vec<&str> =
        history.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(numbers, ["1", "2"], "{history}");
    kubectl.ok(&["rollout", "undo", "statefulset/db"]);
    until(&kubectl, "the first again", || pods(".spec.containers[0].image") == "app:v1 app:v1 app:v1");
    kubectl.ok(&["scale", "statefulset/db", "--replicas=1"]);
    until(&kubectl, "one", || pods(".metadata.name") == "db-0" && of(".status.replicas") == "1");
    let described = kubectl.ok(&["describe", "statefulset", "db"]);
    for part in [
        "create Pod db-0 in StatefulSet db successful",
        "delete Pod db-2 in StatefulSet db successful",
        "Replicas:           1 desired | 1 total",
        "Pods Status:        1 Running",
    ] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let listed = kubectl.ok(&["get", "statefulset", "db", "--no-headers"]);
    assert_eq!(listed.split_whitespace().take(2).collect::<Vec<_>>(), ["db", "1/1"]);
    kubectl.ok(&["delete", "statefulset", "db"]);
    let left = || kubectl.ok(&["get", "pods,controllerrevisions", "-o", "name"]);
    until(&kubectl, "nothing", || left().is_empty());
}

#[test]
fn claims_stay_or_go_as_the_policy_says() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    let claims = json!([{
        "metadata": {"name": "www"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }]);
    let more = json!({
        "replicas": 2, "podManagementPolicy": "Parallel", "volumeClaimTemplates": claims,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Delete"},
    });
    kubectl.run(&["create", "-f", "-"], &set("StatefulSet", "db", &more)).expect("made");
    let names = |kind: &str| kubectl.ok(&["get", kind, "-o", "jsonpath={.items[*].metadata.name}"]);
    until(&kubectl, "two", || names("pods") == "db-0 db-1");
    assert_eq!(names("pvc"), "www-db-0 www-db-1");
    let volume = kubectl.ok(&[
        "get",
        "pod",
        "db-1",
        "-o",
        "jsonpath={.spec.volumes[0].persistentVolumeClaim.claimName}",
    ]);
    assert_eq!(volume, "www-db-1");
    let owners = |claim: &str| {
        kubectl.ok(&["get", "pvc", claim, "-o", "jsonpath={.metadata.ownerReferences[*].kind}"])
    };
    assert_eq!(owners("www-db-1"), "");
    kubectl.ok(&["scale", "statefulset/db", "--replicas=1"]);
    until(&kubectl, "its claim goes with its member", || names("pods,pvc") == "db-0 www-db-0");
    let policy = r#"{"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}}"#;
    kubectl.ok(&["patch", "statefulset", "db", "-p", policy]);
    until(&kubectl, "the set has the other", || owners("www-db-0") == "StatefulSet");
    kubectl.ok(&["delete", "statefulset", "db"]);
    until(&kubectl, "nothing", || names("pods,pvc").is_empty());
}
