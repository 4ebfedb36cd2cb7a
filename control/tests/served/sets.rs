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
    let control = Control::start(&[]);
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
