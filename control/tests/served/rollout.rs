//! Deployments with the real server and kubectl; boards are played: what is placed is said to run.

use crate::boards::{image, play, ready};
use crate::control::Control;
use crate::kubectl::Kubectl;
use crate::scheduling::board;

/// Plays the boards until something is so: images that do not exist do not start.
fn until(kubectl: &Kubectl<'_>, what: &str, so: impl Fn() -> bool) {
    play(kubectl, what, |pod| (!image(pod).ends_with(":v10")).then(ready), so);
}

#[test]
fn a_deployment_rolls_out_back_and_down() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    for name in ["a", "b"] {
        kubectl.run(&["create", "-f", "-"], &board(name, "8").to_string()).expect("a node");
    }
    kubectl.ok(&["create", "deployment", "web", "--image=app:v1", "--replicas=4"]);
    let get = |path: &str| kubectl.ok(&["get", "deployment", "web", "-o", &format!("jsonpath={{{path}}}")]);
    let ready = |image: &str| {
        let images = kubectl.ok(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].spec.containers[0].image}",
        ]);
        let images: Vec<&str> = images.split_whitespace().collect();
        get(".status.availableReplicas") == "4"
            && images.len() == 4
            && images.iter().all(|found| *found == image)
    };
    until(&kubectl, "four pods", || ready("app:v1"));
    assert!(
        kubectl
            .ok(&["rollout", "status", "deployment/web", "--timeout=30s"])
            .contains("successfully rolled out")
    );
    let sets = || kubectl.ok(&["get", "rs", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"]);
    let first = sets();
    assert!(first.starts_with("web-") && !first.contains(' '), "{first}");
    let pods = kubectl.ok(&["get", "pods", "-o", "name"]);
    assert!(pods.lines().all(|pod| pod.starts_with(&format!("pod/{first}-"))), "{pods}");
    let nodes = kubectl.ok(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    assert_eq!(nodes.matches('a').count(), 2, "spread: {nodes}");

    kubectl.ok(&["set", "image", "deployment/web", "app=app:v2"]);
    until(&kubectl, "the second version", || ready("app:v2"));
    kubectl.ok(&["rollout", "status", "deployment/web", "--timeout=30s"]);
    assert_eq!(get(".metadata.annotations.deployment\\.kubernetes\\.io/revision"), "2");

    // An image that does not exist: what is needed stays, and undoing heals.
    kubectl.ok(&["set", "image", "deployment/web", "app=app:v10"]);
    until(&kubectl, "the third version, as far as it goes", || get(".status.updatedReplicas") == "2");
    assert_eq!(get(".status.availableReplicas"), "3");
    kubectl.ok(&["rollout", "undo", "deployment/web"]);
    until(&kubectl, "the second version again", || ready("app:v2"));
    let history = kubectl.ok(&["rollout", "history", "deployment/web"]);
    let revisions: Vec<&str> =
        history.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(revisions, ["1", "3", "4"], "{history}");

    // A pod that is lost is replaced; a new size is taken.
    let lost = kubectl.ok(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    kubectl.ok(&["delete", "pod", &lost, "--force", "--grace-period=0"]);
    until(&kubectl, "another pod", || ready("app:v2"));
    kubectl.ok(&["scale", "deployment/web", "--replicas=0"]);
    let none = || kubectl.ok(&["get", "pods", "-o", "name"]).is_empty();
    until(&kubectl, "nothing", none);
    let described = kubectl.ok(&["describe", "deployment", "web"]);
    assert!(described.contains("Scaled up replica set") && described.contains("from 0 to 4"), "{described}");
    assert!(described.contains("NewReplicaSetAvailable"), "{described}");

    kubectl.ok(&["delete", "deployment", "web"]);
    until(&kubectl, "no replica sets", || sets().is_empty());
}
