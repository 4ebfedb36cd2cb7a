//! Owners and what they own, deleted in all ways; with the real server and kubectl.

use crate::control::Control;
use crate::kubectl::Kubectl;
use serde_json::{Value, json};

fn config(name: &str, owner: Option<(&str, &str)>) -> String {
    let mut object: Value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    if let Some((name, uid)) = owner {
        object["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true,
        }]);
    }
    object.to_string()
}

#[test]
fn what_is_owned_follows_its_owner() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let create = |object: &str| kubectl.run(&["create", "-f", "-"], object).expect("made");
    let uid = |name: &str| kubectl.ok(&["get", "configmap", name, "-o", "jsonpath={.metadata.uid}"]);
    let family = |name: &str| {
        let (child, grandchild) = (format!("{name}-child"), format!("{name}-grandchild"));
        create(&config(name, None));
        create(&config(&child, Some((name, &uid(name)))));
        create(&config(&grandchild, Some((&child, &uid(&child)))));
        [child, grandchild]
    };
    let gone = |name: &str| {
        kubectl.ok(&["wait", "--for=delete", &format!("configmap/{name}"), "--timeout=30s"]);
    };

    let [child, grandchild] = family("background");
    kubectl.ok(&["delete", "configmap", "background"]);
    gone(&child);
    gone(&grandchild);

    // The owner is the last to go.
    let [child, grandchild] = family("foreground");
    kubectl.ok(&["delete", "configmap", "foreground", "--cascade=foreground"]);
    for name in [&child, &grandchild] {
        kubectl.run(&["get", "configmap", name], "").expect_err("it went before");
    }

    let [child, grandchild] = family("orphan");
    kubectl.ok(&["delete", "configmap", "orphan", "--cascade=orphan"]);
    gone("orphan");
    let owners = ["get", "configmap", &child, "-o", "jsonpath={.metadata.ownerReferences}"];
    assert_eq!(kubectl.ok(&owners), "");
    kubectl.ok(&["get", "configmap", &grandchild]);

    // An owner that never was.
    create(&config("dangling", Some(("nobody", "11111111-2222-3333-4444-555555555555"))));
    gone("dangling");
    // One that has two loses the one that goes.
    create(&config("first", None));
    create(&config("second", None));
    let mut both: Value =
        serde_json::from_str(&config("both", Some(("first", &uid("first"))))).expect("JSON");
    let second = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "second", "uid": uid("second")});
    both["metadata"]["ownerReferences"].as_array_mut().expect("a list").push(second);
    create(&both.to_string());
    kubectl.ok(&["delete", "configmap", "first"]);
    let left = "--for=jsonpath={.metadata.ownerReferences[0].name}=second";
    kubectl.ok(&["wait", left, "configmap/both", "--timeout=30s"]);
}
