//! Tables: nodes and pods in, the node or upstream's words out.

use super::*;
use crate::object::{child, fields};
use serde_json::{Value, json};
use std::slice::from_ref;

/// A node with 2 cores, 4 GiB, 10 pods, and its name as its hostname.
fn node(name: &str, change: &Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}},
    });
    coracle_api::patch::merge(&mut node, change.clone());
    node
}

fn pod(name: &str, change: &Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "c", "image": "app:1"}]},
    });
    coracle_api::patch::merge(&mut pod, change.clone());
    pod
}

fn asking(cpu: &str, memory: &str) -> Value {
    json!({"spec": {"containers": [
        {"name": "c", "image": "app:1", "resources": {"requests": {"cpu": cpu, "memory": memory}}},
    ]}})
}

fn on(node: &str, mut pod: Value) -> Value {
    fields(child(&mut pod, "spec")).insert("nodeName".into(), node.into());
    pod
}

fn fleet(nodes: &[Value], pods: &[Value]) -> Fleet {
    let mut fleet = Fleet::default();
    fleet.namespaces.insert("default".into(), [("team".into(), "a".into())].into());
    for node in nodes {
        fleet.set_node(Node::read(node));
    }
    for pod in pods {
        fleet.set_pod(&Arc::new(Pod::read(pod)));
    }
    fleet
}

/// The node, or why there is none.
#[track_caller]
fn check(nodes: &[Value], there: &[Value], pod: &Value, expected: Result<&str, &str>) {
    let mut fleet = fleet(nodes, there);
    let placed = place(&mut fleet, &Pod::read(pod), 0);
    let placed = placed.map_err(|why| why.to_string());
    assert_eq!(placed.as_deref().map_err(String::as_str), expected);
}

#[test]
fn resources() {
    let small = node("small", &json!({"status": {"allocatable": {"cpu": "500m", "memory": "256Mi"}}}));
    let big = node("big", &json!({}));
    check(&[], &[], &pod("p", &json!({})), Err("no nodes available to schedule pods"));
    check(&[small.clone(), big.clone()], &[], &pod("p", &asking("1", "1Gi")), Ok("big"));
    check(
        &[small.clone(), big.clone()],
        &[],
        &pod("p", &asking("3", "1Gi")),
        Err("0/2 nodes are available: 1 Insufficient memory, 2 Insufficient cpu."),
    );
    // What is there counts; what is free is enough to the last bit.
    let there = [on("big", pod("a", &asking("1500m", "1Gi")))];
    check(from_ref(&big), &there, &pod("p", &asking("500m", "3Gi")), Ok("big"));
    let full = Err("0/1 nodes are available: 1 Insufficient cpu.");
    check(from_ref(&big), &there, &pod("p", &asking("501m", "3Gi")), full);
    // Nothing asked for fits anywhere, but in number.
    let mut one = big.clone();
    one["status"]["allocatable"]["pods"] = json!("1");
    let full = Err("0/1 nodes are available: 1 Too many pods.");
    check(&[one], &there, &pod("p", &json!({})), full);
    let strange = pod(
        "p",
        &json!({"spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"example.com/gpu": "1"}}}
        ]}}),
    );
    check(from_ref(&big), &[], &strange, Err("0/1 nodes are available: 1 Insufficient example.com/gpu."));
}

#[test]
fn what_a_pod_asks_for() {
    let container = |cpu: &str, more: &Value| {
        let mut container = json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        coracle_api::patch::merge(&mut container, more.clone());
        container
    };
    let always = json!({"restartPolicy": "Always"});
    let check = |spec: Value, status: Value, millis: i64| {
        let pod = json!({"spec": spec, "status": status});
        assert_eq!(pod::requests(&pod).cpu_millis, millis, "{pod}");
    };
    let none = json!({});
    check(json!({"containers": [container("1", &none), container("2", &none)]}), none.clone(), 3000);
    // The largest moment of the init, with the sidecars that run by then.
    let init = |list: Vec<Value>| json!({"initContainers": list, "containers": [container("1", &none)]});
    check(init(vec![container("5", &none)]), none.clone(), 5000);
    check(init(vec![container("500m", &none)]), none.clone(), 1000);
    check(init(vec![container("2", &always), container("5", &none)]), none.clone(), 7000);
    check(init(vec![container("5", &none), container("2", &always)]), none.clone(), 5000);
    check(init(vec![container("2", &always)]), none.clone(), 3000);
    check(json!({"containers": [container("1", &none)], "overhead": {"cpu": "250m"}}), none.clone(), 1250);
    let whole = json!({"containers": [container("1", &none)], "resources": {"requests": {"cpu": "4"}}});
    check(whole, none.clone(), 4000);
    // While it shrinks it still has what it had.
    let had = json!({"containerStatuses": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]});
    check(json!({"containers": [container("1", &none)]}), had, 3000);
}

#[test]
fn nodes_that_are_wanted() {
    let nodes = [
        node("a", &json!({"metadata": {"labels": {"disk": "ssd", "rank": "5"}}})),
        node("b", &json!({"metadata": {"labels": {"disk": "sd", "rank": "12"}}})),
    ];
    let other = Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.");
    let selector = |disk: &str| pod("p", &json!({"spec": {"nodeSelector": {"disk": disk}}}));
    check(&nodes, &[], &selector("sd"), Ok("b"));
    check(&nodes, &[], &selector("tape"), other);
    let term = |key: &str, operator: &str, values: &[&str]| {
        let term = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}});
        pod("p", &json!({"spec": {"affinity": {"nodeAffinity": required}}}))
    };
    for (key, operator, values, expected) in [
        ("disk", "In", &["ssd", "nvme"][..], Ok("a")),
        ("disk", "NotIn", &["ssd"], Ok("b")),
        ("rank", "Gt", &["5"], Ok("b")),
        ("rank", "Lt", &["12"], Ok("a")),
        ("none", "Exists", &[], other),
        ("rank", "Gt", &["many"], other),
    ] {
        check(&nodes, &[], &term(key, operator, values), expected);
    }
    let field = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]});
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [field]}});
    check(&nodes, &[], &pod("p", &json!({"spec": {"affinity": {"nodeAffinity": required}}})), Ok("b"));
}

#[test]
fn taints() {
    let tainted = |taints: Value| node("a", &json!({"spec": {"taints": taints}}));
    let gpu = tainted(json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]));
    let refused = Err("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.");
    let tolerating = |toleration: Value| pod("p", &json!({"spec": {"tolerations": [toleration]}}));
    check(from_ref(&gpu), &[], &pod("p", &json!({})), refused);
    check(from_ref(&gpu), &[], &tolerating(json!({"key": "gpu", "value": "yes"})), Ok("a"));
    check(from_ref(&gpu), &[], &tolerating(json!({"key": "gpu", "value": "no"})), refused);
    check(from_ref(&gpu), &[], &tolerating(json!({"operator": "Exists"})), Ok("a"));
    check(
        from_ref(&gpu),
        &[],
        &tolerating(json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"})),
        refused,
    );
    // A mild taint keeps nobody away, when there is no better node.
    let mild = tainted(json!([{"key": "gpu", "effect": "PreferNoSchedule"}]));
    check(from_ref(&mild), &[], &pod("p", &json!({})), Ok("a"));
    check(&[mild, node("b", &json!({}))], &[], &pod("p", &json!({})), Ok("b"));
    let cordoned = node("a", &json!({"spec": {"unschedulable": true}}));
    let refused = Err("0/1 nodes are available: 1 node(s) were unschedulable.");
    check(from_ref(&cordoned), &[], &pod("p", &json!({})), refused);
    let daemon = json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"});
    check(from_ref(&cordoned), &[], &tolerating(daemon), Ok("a"));
}

#[test]
fn ports() {
    let with = |name: &str, ports: Value| {
        pod(name, &json!({"spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]}}))
    };
    let web = |port: u16, more: Value| {
        let mut port = json!({"containerPort": 80, "hostPort": port, "protocol": "TCP"});
        coracle_api::patch::merge(&mut port, more);
        json!([port])
    };
    let there = [on("a", with("x", web(80, json!({"hostIP": "10.0.0.1"}))))];
    let nodes = [node("a", &json!({}))];
    let taken = Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
    check(&nodes, &there, &with("p", web(80, json!({}))), taken);
    check(&nodes, &there, &with("p", web(80, json!({"hostIP": "10.0.0.2"}))), Ok("a"));
    check(&nodes, &there, &with("p", web(80, json!({"protocol": "UDP"}))), Ok("a"));
    check(&nodes, &there, &with("p", web(81, json!({}))), Ok("a"));
}

#[expect(clippy::needless_pass_by_value, reason = "a cell of a table")]
fn labelled(name: &str, app: &str, spec: Value) -> Value {
    pod(name, &json!({"metadata": {"labels": {"app": app}}, "spec": spec}))
}

fn affinity(kind: &str, app: &str, topology: &str) -> Value {
    let term = json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": topology});
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

#[test]
fn pods_that_are_wanted_near_or_far() {
    let zone = |name: &str, zone: &str| node(name, &json!({"metadata": {"labels": {"zone": zone}}}));
    let nodes = [zone("a", "1"), zone("b", "1"), zone("c", "2")];
    let host = "kubernetes.io/hostname";
    let there = [on("c", labelled("db", "db", json!({})))];
    let near = Err("0/3 nodes are available: 3 node(s) didn't match pod affinity rules.");
    check(&nodes, &there, &labelled("p", "web", affinity("podAffinity", "db", "zone")), Ok("c"));
    check(&nodes, &[], &labelled("p", "web", affinity("podAffinity", "db", "zone")), near);
    check(&nodes[..1], &[], &labelled("p", "web", affinity("podAffinity", "web", host)), Ok("a"));
    check(&nodes, &there, &labelled("p", "web", affinity("podAffinity", "db", "rack")), near);
    let far = labelled("p", "web", affinity("podAntiAffinity", "web", "zone"));
    let there = [on("a", labelled("x", "web", json!({}))), on("c", labelled("y", "db", json!({})))];
    check(&nodes, &there, &far, Ok("c"));
    let both = [on("a", labelled("x", "web", json!({}))), on("c", labelled("y", "web", json!({})))];
    let refused = "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.";
    check(&nodes, &both, &far, Err(refused));
    // Those that are there do not want it either.
    let there = [on("a", labelled("x", "db", affinity("podAntiAffinity", "web", host)))];
    let refused = "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules.";
    check(&nodes[..1], &there, &labelled("p", "web", json!({})), Err(refused));
    check(&nodes[..1], &there, &labelled("p", "db", json!({})), Ok("a"));
}

#[test]
fn spread() {
    let zone = |name: &str, zone: &str| node(name, &json!({"metadata": {"labels": {"zone": zone}}}));
    let nodes = [zone("a", "1"), zone("b", "2"), node("c", &json!({}))];
    let spread = |skew: i64| {
        labelled(
            "p",
            "web",
            json!({"topologySpreadConstraints": [{
                "maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}},
            }]}),
        )
    };
    let there = [on("a", labelled("x", "web", json!({})))];
    check(&nodes, &there, &spread(1), Ok("b"));
    let mut cordoned = nodes.clone();
    cordoned[1]["spec"]["unschedulable"] = json!(true);
    let refused = "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) didn't match pod topology spread constraints (missing required label), 1 node(s) were unschedulable.";
    check(&cordoned, &there, &spread(1), Err(refused));
    check(&cordoned, &there, &spread(2), Ok("a"));
}

#[test]
fn the_best_of_those_that_fit() {
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    // The emptier one.
    let there = [on("a", pod("x", &asking("1", "1Gi")))];
    check(&nodes, &there, &pod("p", &asking("100m", "64Mi")), Ok("b"));
    // Siblings apart.
    let owner = json!({"metadata": {"ownerReferences": [{"uid": "rs", "controller": true}]}});
    check(&nodes, &[on("b", pod("x", &owner))], &pod("p", &owner), Ok("a"));
    // A wish.
    let ssd = node("c", &json!({"metadata": {"labels": {"disk": "ssd"}}}));
    let term = json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]});
    let wish =
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": term}]});
    let wishing = pod("p", &json!({"spec": {"affinity": {"nodeAffinity": wish}}}));
    check(&[nodes[0].clone(), nodes[1].clone(), ssd], &[], &wishing, Ok("c"));
    // An image that is there already.
    let has = json!({"status": {"images": [{"names": ["app:1"], "sizeBytes": 900_000_000}]}});
    check(&[nodes[0].clone(), node("b", &has)], &[], &pod("p", &json!({})), Ok("b"));
}

#[test]
fn claims() {
    let with = pod("p", &json!({"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}}));
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let terms = |name: &str| {
        let field = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
        Some(Claim::Bound(Some(vec![terms::NodeTerm::read(&field)])))
    };
    for (claim, expected) in [
        (None, Err("0/2 nodes are available: persistentvolumeclaim \"data\" not found.")),
        (
            Some(Claim::Unbound),
            Err("0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        ),
        (terms("b"), Ok("b")),
        (
            terms("z"),
            Err("0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."),
        ),
    ] {
        let mut fleet = fleet(&nodes, &[]);
        fleet.claims.extend(claim.map(|claim| (("default".into(), "data".into()), claim)));
        let placed = place(&mut fleet, &Pod::read(&with), 0).map_err(|why| why.to_string());
        assert_eq!(placed.as_deref().map_err(String::as_str), expected);
    }
}

/// `node: victims`, or why it does not help.
#[track_caller]
fn check_preempt(nodes: &[Value], there: &[Value], pod: &Value, budgets: &[Budget], expected: &str) {
    let mut fleet = fleet(nodes, there);
    let pod = Pod::read(pod);
    let why = place(&mut fleet, &pod, 0).expect_err("it has no place");
    let text = match preempt(&fleet, &pod, &why, budgets) {
        Preemption::Evict { node, victims } => {
            let names: Vec<&str> = victims.iter().map(|pod| &*pod.name).collect();
            format!("{node}: {}", names.join(" "))
        }
        Preemption::Not(why) => why,
    };
    assert_eq!(text, expected);
}

#[test]
fn preemption() {
    let at = |priority: i64, mut pod: Value| {
        fields(child(&mut pod, "spec")).insert("priority".into(), priority.into());
        pod
    };
    let nodes = [node("a", &json!({})), node("b", &json!({}))];
    let important = at(10, pod("p", &asking("1500m", "1Gi")));
    let there = [
        on("a", at(5, pod("a1", &asking("1", "1Gi")))),
        on("a", at(1, pod("a2", &asking("1", "1Gi")))),
        on("b", at(3, pod("b1", &asking("1", "1Gi")))),
        on("b", at(3, pod("b2", &asking("1", "1Gi")))),
    ];
    // The least important ones.
    check_preempt(&nodes, &there, &important, &[], "b: b1 b2");
    // As few as possible.
    check_preempt(&nodes[..1], &there, &at(10, pod("p", &asking("1", "1Gi"))), &[], "a: a2");
    // Rather more important ones than a broken budget.
    let guarded = |name: &str| on("b", at(3, labelled(name, "db", asking("1", "1Gi")["spec"].clone())));
    let mut budgeted = there.to_vec();
    (budgeted[2], budgeted[3]) = (guarded("b1"), guarded("b2"));
    let selector = coracle_api::selector::LabelSelector::from_value(&json!({"matchLabels": {"app": "db"}}));
    let budget = Budget { namespace: "default".into(), selector: selector.expect("valid"), allowed: 0 };
    check_preempt(&nodes, &budgeted, &important, &[budget], "a: a1 a2");
    // Nobody is less important.
    let none = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
    check_preempt(&nodes, &there, &at(1, pod("p", &asking("1500m", "1Gi"))), &[], none);
    let beyond = "0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    check_preempt(&nodes, &there, &at(10, pod("p", &asking("3", "1Gi"))), &[], beyond);
    let mut never = important.clone();
    fields(child(&mut never, "spec")).insert("preemptionPolicy".into(), "Never".into());
    check_preempt(&nodes, &there, &never, &[], "not eligible due to preemptionPolicy=Never.");
    // Once the others are gone it takes the place that was made for it.
    let mut nominated = important;
    nominated["status"] = json!({"nominatedNodeName": "b"});
    check(&nodes, &there[..2], &nominated, Ok("b"));
}

#[test]
fn a_fleet_keeps_count_whatever_comes_first() {
    let mut fleet = Fleet::default();
    let early = Arc::new(Pod::read(&on("a", pod("early", &asking("1", "1Gi")))));
    fleet.set_pod(&early);
    assert!(fleet.set_node(Node::read(&node("a", &json!({})))), "a new node");
    assert_eq!(fleet.nodes["a"].requested.cpu_millis, 1000);
    fleet.set_pod(&early);
    assert!(!fleet.set_node(Node::read(&node("a", &json!({})))), "the same node");
    assert_eq!(fleet.nodes["a"].requested.cpu_millis, 1000);
    fleet.remove_node("a");
    assert!(fleet.set_node(Node::read(&node("a", &json!({})))), "it is back");
    assert_eq!(fleet.nodes["a"].requested.cpu_millis, 1000);
    assert!(fleet.remove_pod("early").is_some());
    assert_eq!(fleet.nodes["a"].requested.cpu_millis, 0);
    assert!(fleet.remove_pod("early").is_none());
}
