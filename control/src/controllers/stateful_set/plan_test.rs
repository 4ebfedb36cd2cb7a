//! Stateful sets in every state: who is made, who waits, who goes, what is counted.

use super::*;
use crate::object::uid;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

fn revision(name: &str) -> Revision {
    Revision {
        name: name.into(),
        template: json!({"metadata": {"labels": {"app": "web"}}, "spec": {"image": name}}),
    }
}

fn set(spec: Value) -> Value {
    let mut set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "web", "namespace": "n", "uid": "set", "generation": 2},
        "spec": {"replicas": 3, "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}},
    });
    coracle_api::patch::merge(&mut set["spec"], spec);
    set
}

/// `ORDINAL STATE`: `new` or `old`, with `+` when it is ready, `x` when it has failed, `-` when it is told to end, `#` when its
/// labels do not say who it is.
fn pod(text: &str) -> Arc<Value> {
    let (ordinal, state) = text.split_once(' ').expect("an ordinal and a state");
    let has = |mark: char| state.contains(mark);
    let name = format!("web-{ordinal}");
    let hash = if state.starts_with("new") { "new" } else { "old" };
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {REVISION_HASH: hash}},
        "status": {"phase": if has('x') { "Failed" } else { "Running" }, "conditions": [
            {"type": "Ready", "status": if has('+') { "True" } else { "False" },
             "lastTransitionTime": "2026-01-01T00:59:30Z"},
        ]},
    });
    if !has('#') {
        pod["metadata"]["labels"][POD_NAME] = name.into();
    }
    if has('-') {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
    }
    Arc::new(pod)
}

fn with<T>(spec: Value, pods: &[&str], look: impl FnOnce(&View<'_>) -> T) -> T {
    let (set, current, update) = (set(spec), revision("old"), revision("new"));
    let pods: Vec<Arc<Value>> = pods.iter().map(|text| pod(text)).collect();
    let pods = pods.iter().filter_map(|pod| Some((ordinal(&set, pod)?, pod))).collect();
    look(&View { set: &set, current: &current, update: &update, pods, now: now() })
}

/// `+ORDINAL` for who is made, `-ORDINAL` for who goes, `xORDINAL` for who ended, `#ORDINAL` for who gets its labels.
#[track_caller]
fn check(spec: Value, pods: &[&str], expected: &str) {
    let told = spec.clone();
    let plan = with(spec, pods, |view| view.plan());
    let mut words: Vec<String> = plan.make.iter().map(|ordinal| format!("+{ordinal}")).collect();
    for (mark, list) in [('-', &plan.delete), ('x', &plan.ended), ('#', &plan.unnamed)] {
        words.extend(list.iter().map(|pod| format!("{mark}{}", uid(pod).trim_start_matches("web-"))));
    }
    assert_eq!(words.join(" "), expected, "{told} {pods:?}");
}

#[test]
fn members_come_one_after_another() {
    let one = || json!({});
    check(one(), &[], "+0");
    check(one(), &["0 new"], "");
    check(one(), &["0 new+"], "+1");
    check(one(), &["0 new+", "1 new+", "2 new+"], "");
    // One that is lost is made again first; one that is on its way out is waited for.
    check(one(), &["1 new+", "2 new+"], "+0");
    check(one(), &["0 new-", "1 new+"], "");
    check(one(), &["0 newx", "1 new+"], "x0");
    check(one(), &["0 newx-", "1 new+"], "");
    check(json!({"ordinals": {"start": 5}, "replicas": 2}), &["5 new+"], "+6");
    // It has been ready for half a minute.
    check(json!({"minReadySeconds": 60}), &["0 new+"], "");
    check(json!({"minReadySeconds": 30}), &["0 new+"], "+1");
    check(json!({"replicas": 0}), &[], "");
    // One that was adopted.
    check(one(), &["0 new+#"], "+1 #0");
}

#[test]
fn members_come_all_at_once() {
    let all = || json!({"podManagementPolicy": "Parallel"});
    check(all(), &[], "+0 +1 +2");
    check(all(), &["1 new"], "+0 +2");
    check(all(), &["0 new", "1 new-", "2 newx"], "x2");
    check(json!({"podManagementPolicy": "Parallel", "replicas": 1}), &["0 new", "1 new+", "2 new"], "-2 -1");
    let plan =
        with(json!({"podManagementPolicy": "Parallel", "replicas": 2_000_000_000}), &[], |view| view.plan());
    assert_eq!(plan.make.len(), BURST);
}

#[test]
fn members_go_from_the_highest_down() {
    let one = || json!({"replicas": 1});
    check(one(), &["0 new+", "1 new+", "2 new+"], "-2");
    check(one(), &["0 new+", "1 new+", "2 new-"], "");
    check(one(), &["0 new+", "1 new+"], "-1");
    // Not while one that stays does not serve.
    check(one(), &["0 new", "1 new+", "2 new+"], "");
    // What is broken does not hold up those that go, if it is the first.
    check(one(), &["0 new+", "1 new+", "2 new"], "-2");
    check(one(), &["0 new+", "1 new", "2 new"], "");
    check(json!({"replicas": 0}), &["0 new+"], "-0");
    check(json!({"ordinals": {"start": 1}, "replicas": 2}), &["0 new+", "1 new+", "2 new+"], "-0");
}

#[test]
fn a_new_revision_comes_from_the_highest_down() {
    let one = || json!({});
    check(one(), &["0 old+", "1 old+", "2 old+"], "-2");
    check(one(), &["0 old+", "1 old+"], "+2");
    check(one(), &["0 old+", "1 old+", "2 new"], "");
    check(one(), &["0 old+", "1 old+", "2 new+"], "-1");
    check(one(), &["0 new+", "1 new+", "2 new+"], "");
    let upto = |partition: i64| json!({"updateStrategy": {"rollingUpdate": {"partition": partition}}});
    check(upto(2), &["0 old+", "1 old+", "2 old+"], "-2");
    check(upto(2), &["0 old+", "1 old+", "2 new+"], "");
    check(upto(9), &["0 old+", "1 old+", "2 old+"], "");
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &["0 old+", "1 old+", "2 old+"], "");
    let most = |most: Value, policy: &str| {
        json!({
            "podManagementPolicy": policy, "updateStrategy": {"rollingUpdate": {"maxUnavailable": most}},
        })
    };
    check(most(json!(2), "Parallel"), &["0 old+", "1 old+", "2 old+"], "-2 -1");
    check(most(json!(2), "OrderedReady"), &["0 old+", "1 old+", "2 old+"], "-2 -1");
    check(most(json!(2), "Parallel"), &["0 old+", "1 old+", "2 new"], "-1");
    check(most(json!("70%"), "Parallel"), &["0 old+", "1 old+", "2 old+"], "-2 -1");
    check(most(json!("10%"), "Parallel"), &["0 old+", "1 old+", "2 old+"], "-2");
    // What does not serve is no loss, and a broken update can be undone.
    check(json!({"podManagementPolicy": "Parallel"}), &["0 old+", "1 old+", "2 old"], "-2");
}

#[test]
fn a_new_member_has_the_revision_of_its_place() {
    let partition = json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}, "serviceName": "svc",
        "volumeClaimTemplates": [{"metadata": {"name": "www"}}]});
    with(partition, &[], |view| {
        let image = |ordinal: i64| view.pod(ordinal)["spec"]["image"].as_str().map(str::to_string);
        assert_eq!((image(0).as_deref(), image(1).as_deref()), (Some("old"), Some("new")));
        let pod = view.pod(1);
        assert_eq!(pod["metadata"]["name"], "web-1");
        assert_eq!(
            pod["metadata"]["labels"],
            json!({
                "app": "web", POD_NAME: "web-1", POD_INDEX: "1", REVISION_HASH: "new",
            })
        );
        assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-1"), &json!("svc")));
        let claim = json!([{"name": "www", "persistentVolumeClaim": {"claimName": "www-web-1"}}]);
        assert_eq!(pod["spec"]["volumes"], claim);
    });
    with(json!({"updateStrategy": {"type": "OnDelete"}}), &[], |view| {
        assert_eq!(view.pod(0)["spec"]["image"], "new");
    });
}

#[test]
fn members_are_counted() {
    // Replicas, ready, available, current, updated; the current revision.
    let check = |spec: Value, pods: &[&str], expected: ([i64; 5], &str)| {
        let status = with(spec, pods, |view| view.status(0));
        let count = |key: &str| status[key].as_i64().unwrap_or_default();
        let found = ["replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"];
        let revision = status["currentRevision"].as_str().expect("a name");
        assert_eq!((found.map(count), revision), expected, "{pods:?}");
        assert_eq!((&status["updateRevision"], &status["collisionCount"]), (&json!("new"), &json!(0)));
    };
    check(json!({}), &[], ([0, 0, 0, 0, 0], "old"));
    check(json!({}), &["0 old+", "1 old+", "2 new"], ([3, 2, 2, 2, 1], "old"));
    check(json!({}), &["0 old+", "1 old-", "2 new+"], ([3, 2, 2, 1, 1], "old"));
    check(json!({"minReadySeconds": 60}), &["0 old+"], ([1, 1, 0, 1, 0], "old"));
    // The update is complete.
    check(json!({}), &["0 new+", "1 new+", "2 new+"], ([3, 3, 3, 3, 3], "new"));
    check(json!({}), &["0 new+", "1 new+", "2 new"], ([3, 2, 2, 0, 3], "old"));
}

#[test]
fn only_names_with_an_ordinal_are_members() {
    let check = |name: &str, expected: Option<i64>| {
        assert_eq!(ordinal(&set(json!({})), &json!({"metadata": {"name": name}})), expected, "{name}");
    };
    check("web-0", Some(0));
    check("web-12", Some(12));
    check("web-2147483647", Some(2_147_483_647));
    for name in ["web", "web-", "web-x", "web-01", "web--1", "web-+1", "other-1", "web-1-1", "web-2147483648"]
    {
        check(name, None);
    }
}
