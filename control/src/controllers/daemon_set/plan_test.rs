//! Daemon sets on nodes of all kinds: where pods go, how they are replaced, what is counted.

use super::*;
use crate::object::uid;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

/// `NAME@NODE STATE`: `new` or `old`, with `+` when it is ready, `x` when it has failed, `-` when it is told to end,
/// `?` when it is not placed yet.
fn pod(text: &str) -> Arc<Value> {
    let (place, state) = text.split_once(' ').expect("a place and a state");
    let (name, node) = place.split_once('@').expect("a name and a node");
    let hash = if state.starts_with("new") { "new" } else { "old" };
    let has = |mark: char| state.contains(mark);
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {REVISION_HASH: hash}},
        "spec": {"nodeName": node},
        "status": {"phase": if has('x') { "Failed" } else { "Running" }, "conditions": [
            {"type": "Ready", "status": if has('+') { "True" } else { "False" },
             "lastTransitionTime": "2026-01-01T00:59:30Z"},
        ]},
    });
    if has('?') {
        pod["spec"] = json!({});
        pod = on_node(pod, node);
    }
    if has('-') {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
    }
    Arc::new(pod)
}

fn set(update: &Value) -> Value {
    json!({"metadata": {"name": "d", "generation": 3}, "spec": {"updateStrategy": update, "minReadySeconds": 0}})
}

fn rolling(surge: i64, unavailable: i64) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// Nodes are `a`, `b`, …; `~` only tolerates pods, `!` wants none.
fn nodes(text: &'static str) -> BTreeMap<&'static str, Place> {
    let place = |word: &'static str| match (word.strip_prefix('~'), word.strip_prefix('!')) {
        (Some(node), _) => (node, Place::Tolerated),
        (_, Some(node)) => (node, Place::Closed),
        _ => (word, Place::Wanted),
    };
    text.split_whitespace().map(place).collect()
}

/// `+NODE` for a pod that is made, `-POD` for one that goes, `xPOD` for one that ended.
#[track_caller]
fn check(update: &Value, on: &'static str, pods: &[&str], expected: &str) {
    let set = set(update);
    let pods: Vec<Arc<Value>> = pods.iter().map(|text| pod(text)).collect();
    let plan = View::of(&set, "new", nodes(on), &pods, now()).plan();
    let mut words: Vec<String> = plan.make.iter().map(|node| format!("+{node}")).collect();
    words.extend(plan.delete.iter().map(|pod| format!("-{}", uid(pod))));
    words.extend(plan.ended.iter().map(|(_, pod)| format!("x{}", uid(pod))));
    words.sort();
    assert_eq!(words.join(" "), expected, "{on} {pods:?}");
}

#[test]
fn each_node_that_is_for_it_has_one_pod() {
    let update = rolling(0, 1);
    check(&update, "a b", &[], "+a +b");
    check(&update, "a b", &["p@a new+"], "+b");
    check(&update, "a b", &["p@a new+", "q@b new?"], "");
    // Not before the last one is gone.
    check(&update, "a", &["p@a new-"], "");
    check(&update, "a", &["p@a new-x"], "+a");
    check(&update, "~a !b", &["p@a new+", "q@b new+"], "-q");
    check(&update, "~a !b", &[], "");
    // The one that came first stays, and one that has its node.
    check(&update, "a", &["p@a new+", "q@a new+"], "-q");
    check(&update, "a", &["p@a new?", "q@a new+"], "-p");
    check(&update, "a", &["p@a newx"], "xp");
    // For a node that is gone: what is not placed never will be.
    check(&update, "a", &["p@a new+", "q@gone new?", "r@gone new+"], "-q");
}

#[test]
fn old_pods_go_while_few_nodes_are_without() {
    let one = rolling(0, 1);
    check(&one, "a b", &["p@a old+", "q@b old+"], "-p");
    check(&one, "a b", &["p@a old-", "q@b old+"], "");
    check(&one, "a b", &["p@a new", "q@b old+"], "");
    check(&one, "a b", &["p@a new+", "q@b old+"], "-q");
    // What does not serve is no loss.
    check(&one, "a b", &["p@a old", "q@b old+"], "-p");
    check(&one, "a b c", &["p@a old", "q@b old", "r@c old+"], "-p -q");
    check(&rolling(0, 2), "a b c", &["p@a old+", "q@b old+", "r@c old+"], "-p -q");
    check(
        &json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}}),
        "a b c",
        &["p@a old+", "q@b old+", "r@c old+"],
        "-p -q",
    );
    // Neither would never end.
    check(&rolling(0, 0), "a b", &["p@a old+", "q@b old+"], "-p");
    check(&json!({"type": "OnDelete"}), "a b", &["p@a old+", "q@b old"], "");
    check(&json!({"type": "OnDelete"}), "a b", &["p@a old+"], "+b");
}

#[test]
fn with_a_surge_the_new_pod_comes_first() {
    let one = rolling(1, 0);
    check(&one, "a b", &["p@a old+", "q@b old+"], "+a");
    check(&one, "a b", &["p@a old+", "n@a new", "q@b old+"], "");
    check(&one, "a b", &["p@a old+", "n@a new+", "q@b old+"], "-p");
    check(&one, "a b", &["n@a new+", "q@b old+"], "+b");
    // An old one that does not serve need not be waited for.
    check(&one, "a b", &["p@a old", "q@b old+"], "+a +b");
    check(&one, "a", &["p@a old", "n@a new"], "-p");
    // A node that wants none any more keeps its pod until there are enough elsewhere.
    check(&one, "~a b", &["p@a old+", "n@b new"], "");
    check(&one, "~a b", &["p@a old+", "n@b new+"], "-p");
}

#[test]
fn nodes_are_judged_by_what_the_template_asks() {
    let set = json!({"metadata": {"name": "d"}, "spec": {"template": {"spec": {
        "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "own", "operator": "Exists"}],
    }}}});
    let judged = scheduler::Pod::read(&super::pod(&set, "h"));
    let check = |labels: Value, taints: Value, expected: Place| {
        let node = json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
        assert_eq!(place(&judged, &node), expected, "{node}");
    };
    let ssd = || json!({"disk": "ssd"});
    check(ssd(), json!([]), Place::Wanted);
    check(json!({}), json!([]), Place::Closed);
    check(ssd(), json!([{"key": "own", "effect": "NoExecute"}]), Place::Wanted);
    check(ssd(), json!([{"key": "x", "effect": "PreferNoSchedule"}]), Place::Wanted);
    check(ssd(), json!([{"key": "x", "effect": "NoSchedule"}]), Place::Tolerated);
    check(ssd(), json!([{"key": "x", "effect": "NoExecute"}]), Place::Closed);
    // A board's own trouble, and one that is drained.
    for (key, effect) in TOLERATED {
        check(ssd(), json!([{"key": key, "effect": effect}]), Place::Wanted);
    }
}

#[test]
fn pods_are_counted_by_nodes() {
    let check = |on: &'static str, pods: &[&str], expected: [i64; 7]| {
        let set = set(&rolling(0, 1));
        let pods: Vec<Arc<Value>> = pods.iter().map(|text| pod(text)).collect();
        let (status, _) = View::of(&set, "new", nodes(on), &pods, now()).status();
        let count = |key: &str| status[key].as_i64().unwrap_or_default();
        let found = [
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberMisscheduled"),
            count("updatedNumberScheduled"),
            count("numberReady"),
            count("numberAvailable"),
            count("numberUnavailable"),
        ];
        assert_eq!(found, expected, "{on} {pods:?}");
        assert_eq!(status["observedGeneration"], 3);
    };
    check("", &[], [0; 7]);
    check("a b", &[], [2, 0, 0, 0, 0, 0, 2]);
    check("a b ~c", &["p@a new+", "q@b old", "r@c old+"], [2, 2, 1, 1, 1, 1, 1]);
    let mut patient = set(&rolling(0, 1));
    patient["spec"]["minReadySeconds"] = 60.into();
    let pods = [pod("p@a new+")];
    let (status, again) = View::of(&patient, "new", nodes("a"), &pods, now()).status();
    assert_eq!((status["numberReady"].as_i64(), status["numberUnavailable"].as_i64()), (Some(1), Some(1)));
    assert_eq!(again, Some(Duration::from_secs(30)), "it has been ready for half a minute");
}

#[test]
fn a_pod_says_which_node_it_is_for() {
    let unplaced = on_node(json!({"spec": {"affinity": {"podAffinity": {}}}}), "a");
    assert_eq!(node_of(&unplaced), Some("a"));
    assert_eq!(at(&unplaced, &["spec", "affinity", "podAffinity"]), &json!({}));
    assert_eq!(node_of(&json!({"spec": {"nodeName": "b"}})), Some("b"));
    assert_eq!(node_of(&json!({"spec": {}})), None);
}
