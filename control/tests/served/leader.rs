//! Two control planes on one etcd: one runs the controllers, and the other when it is killed.

use crate::control::Control;
use crate::etcd::EtcdServer;
use crate::kubectl::Kubectl;
use crate::scheduling::{board, pod};

#[test]
fn the_other_control_plane_takes_over() {
    let etcd = EtcdServer::start();
    let mut first = Control::start(&["--etcd", &etcd.endpoint]);
    let leads = |control: &Control| {
        let metrics = Kubectl(control).ok(&["get", "--raw", "/metrics"]);
        metrics.contains("leader_election_master_status{name=\"coracle-control\"} 1")
    };
    let lease = ["-n", "kube-system", "wait", "--for=create", "lease/coracle-control", "--timeout=30s"];
    Kubectl(&first).ok(&lease);
    let second = Control::start(&["--etcd", &etcd.endpoint]);
    let kubectl = Kubectl(&second);
    let create = |object: &str| kubectl.run(&["create", "-f", "-"], object).expect("made");
    create(&board("board-1", "4").to_string());
    create(&pod("before", "100m"));
    // What is asked of one is done by the other.
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/before", "--timeout=30s"]);
    assert!(leads(&first) && !leads(&second));
    let holder =
        ["-n", "kube-system", "get", "lease", "coracle-control", "-o", "jsonpath={.spec.holderIdentity}"];
    let of_first = kubectl.ok(&holder);

    first.process.0.kill().expect("it runs");
    first.process.0.wait().expect("it ends");
    create(&pod("after", "100m"));
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/after", "--timeout=90s"]);
    assert!(leads(&second));
    assert_ne!(kubectl.ok(&holder), of_first);
    let transitions =
        ["-n", "kube-system", "get", "lease", "coracle-control", "-o", "jsonpath={.spec.leaseTransitions}"];
    assert_eq!(kubectl.ok(&transitions), "1");
}
