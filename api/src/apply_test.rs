//! Ownership through the life of objects, in the cases of upstream's documentation and more.

use super::*;
use crate::schema;

const NOW: &str = "2026-01-10T00:00:00Z";

fn by<'a>(kind: &str, manager: &'a str) -> Change<'a> {
    let (api_version, form) = match kind {
        "Deployment" => ("apps/v1", schema::kind("apps/v1", "Deployment")),
        kind => ("v1", schema::kind("v1", kind)),
    };
    let form = form.expect("a known kind");
    let now = NOW.parse().expect("a time");
    Change { form, api_version, manager, subresource: "", ignored: &["status"], now }
}

fn map(data: Value) -> Value {
    let mut object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"}});
    object["data"] = data;
    object
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let shown = |e: Value| {
        let name =
            format!("{} {}", e["manager"].as_str().expect("text"), e["operation"].as_str().expect("text"));
        (name, e["fieldsV1"].clone())
    };
    entries.into_iter().map(shown).collect()
}

fn check(object: &Value, expected: &[(&str, Value)]) {
    let expected: Vec<_> = expected.iter().map(|(name, set)| ((*name).to_owned(), set.clone())).collect();
    assert_eq!(owners(object), expected);
}

fn applied(kind: &str, manager: &str, live: Option<&Value>, config: &Value) -> Result<Value, ApplyError> {
    apply(&by(kind, manager), live, config, false)
}

#[test]
fn sets_are_read_and_written() {
    let check = |set: Value, paths: &[&str]| {
        let found = FieldSet::decode(&set).expect("a set");
        assert_eq!(found.paths(), paths, "{set}");
        assert_eq!(found.encode(), set);
    };
    check(json!({}), &[]);
    check(
        json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"a\"": {}}}}),
        &[".metadata.finalizers[=\"a\"]", ".metadata.labels", ".metadata.labels.app"],
    );
    check(
        json!({"f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}, "f:x": {"i:3": {}}}}),
        &[
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].port",
            ".spec.x[3]",
        ],
    );
    for bad in [
        json!([]),
        json!({"x:a": {}}),
        json!({"a": {}}),
        json!({"i:x": {}}),
        json!({"k:1": {}}),
        json!({"v:{": {}}),
        json!({"f:a": 5}),
    ] {
        assert!(FieldSet::decode(&bad).is_err(), "{bad}");
    }
    let deep = (0..200).fold(json!({}), |inner, _| json!({"f:a": inner}));
    assert_eq!(FieldSet::decode(&deep), Err(SetError::TooDeep));
}

#[test]
fn an_update_owns_what_it_changes() {
    let mut object = map(json!({"a": "1", "b": "2"}));
    update(&by("ConfigMap", "kubectl-create"), &Value::Null, &mut object);
    check(&object, &[("kubectl-create Update", json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}))]);
    assert_eq!(object["metadata"]["managedFields"][0]["time"], NOW);
    assert_eq!(object["metadata"]["managedFields"][0]["apiVersion"], "v1");

    let live = object;
    let mut object = map(json!({"a": "9", "c": "3"}));
    update(&by("ConfigMap", "edit"), &live, &mut object);
    check(
        &object,
        &[
            ("edit Update", json!({"f:data": {"f:a": {}, "f:c": {}}})),
            ("kubectl-create Update", json!({"f:data": {}})),
        ],
    );
    // Writing the same again changes no time and no owner.
    let live = object;
    let mut again = live.clone();
    let mut later = by("ConfigMap", "other");
    later.now = "2027-01-01T00:00:00Z".parse().expect("a time");
    update(&later, &live, &mut again);
    assert_eq!(again, live);
    // An empty list takes them all away.
    again["metadata"]["managedFields"] = json!([]);
    update(&later, &live, &mut again);
    check(&again, &[]);
}

#[test]
fn an_applier_owns_what_it_applies_and_removes_what_it_no_longer_does() {
    let object = applied("ConfigMap", "k", None, &map(json!({"a": "1", "b": "2"}))).expect("made");
    check(&object, &[("k Apply", json!({"f:data": {"f:a": {}, "f:b": {}}}))]);
    let object = applied("ConfigMap", "k", Some(&object), &map(json!({"a": "1"}))).expect("applied");
    assert_eq!(object["data"], json!({"a": "1"}));
    check(&object, &[("k Apply", json!({"f:data": {"f:a": {}}}))]);
    // Another applier holds the same value: what one leaves, the other keeps.
    let shared =
        applied("ConfigMap", "l", Some(&object), &map(json!({"a": "1", "x": "7"}))).expect("applied");
    let left = applied("ConfigMap", "k", Some(&shared), &map(json!({"z": "0"}))).expect("applied");
    assert_eq!(left["data"], json!({"a": "1", "x": "7", "z": "0"}));
    check(
        &left,
        &[
            ("k Apply", json!({"f:data": {"f:z": {}}})),
            ("l Apply", json!({"f:data": {"f:a": {}, "f:x": {}}})),
        ],
    );
    // Nothing applied any more: the manager is gone, and so is the field.
    let mut none = map(json!({}));
    none.as_object_mut().expect("an object").remove("data");
    let gone = applied("ConfigMap", "k", Some(&left), &none).expect("applied");
    assert_eq!(gone["data"], json!({"a": "1", "x": "7"}));
    check(&gone, &[("l Apply", json!({"f:data": {"f:a": {}, "f:x": {}}}))]);
}

#[test]
fn what_somebody_else_wrote_stays() {
    let live = applied("Deployment", "k", None, &deployment(json!({"replicas": 1}))).expect("made");
    let mut written = live.clone();
    written["spec"]["paused"] = true.into();
    update(&by("Deployment", "edit"), &live, &mut written);
    let mut none = deployment(json!({}));
    none.as_object_mut().expect("an object").remove("spec");
    let left = applied("Deployment", "k", Some(&written), &none).expect("applied");
    assert_eq!((&left["spec"]["paused"], &left["spec"]["replicas"]), (&json!(true), &Value::Null));
    check(&left, &[("edit Update", json!({"f:spec": {"f:paused": {}}}))]);
}

#[test]
fn conflicts_read_as_upstreams() {
    let mut live = map(json!({"a": "1", "b": "2"}));
    update(&by("ConfigMap", "kubectl-edit"), &Value::Null, &mut live);
    let error = applied("ConfigMap", "k", Some(&live), &map(json!({"a": "9"}))).expect_err("a conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using v1: .data.a"
    );
    let status = StatusError::from(error);
    assert_eq!((status.code, status.reason), (409, Reason::Conflict));
    let causes = status.details.expect("details").causes.expect("causes");
    assert_eq!(
        serde_json::to_value(causes).expect("JSON"),
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"kubectl-edit\" using v1", "field": ".data.a"}])
    );
    let error =
        applied("ConfigMap", "k", Some(&live), &map(json!({"a": "9", "b": "9"}))).expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-edit\" using v1:\n- .data.a\n- .data.b"
    );
    // The same value is shared, not fought over.
    let shared = applied("ConfigMap", "k", Some(&live), &map(json!({"a": "1"}))).expect("no conflict");
    check(
        &shared,
        &[
            ("k Apply", json!({"f:data": {"f:a": {}}})),
            ("kubectl-edit Update", json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}})),
        ],
    );
    let forced = apply(&by("ConfigMap", "k"), Some(&live), &map(json!({"a": "9"})), true).expect("forced");
    assert_eq!(forced["data"], json!({"a": "9", "b": "2"}));
    check(
        &forced,
        &[
            ("k Apply", json!({"f:data": {"f:a": {}}})),
            ("kubectl-edit Update", json!({"f:data": {".": {}, "f:b": {}}})),
        ],
    );
    let two = applied("ConfigMap", "l", Some(&forced), &map(json!({"a": "0"}))).expect_err("a conflict");
    assert_eq!(two.to_string(), "Apply failed with 1 conflict: conflict with \"k\": .data.a");
}

fn deployment(spec: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"}});
    object["spec"] = spec;
    object
}

#[test]
fn keyed_lists_merge_by_item() {
    let pod = |containers: Value| deployment(json!({"template": {"spec": {"containers": containers}}}));
    let config = pod(json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}]));
    let live = applied("Deployment", "k", None, &config).expect("made");
    check(
        &live,
        &[(
            "k Apply",
            json!({"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:name": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}}),
        )],
    );
    // A sidecar by another hand, and the scale of the deployment.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    scaled["spec"]["template"]["spec"]["containers"] =
        json!([{"name": "s", "image": "2"}, live["spec"]["template"]["spec"]["containers"][0]]);
    update(&by("Deployment", "injector"), &live, &mut scaled);
    let config = pod(json!([{"name": "a", "image": "3"}, {"name": "b", "image": "4"}]));
    let live = applied("Deployment", "k", Some(&scaled), &config).expect("no conflict");
    assert_eq!(live["spec"]["replicas"], 5);
    assert_eq!(
        live["spec"]["template"]["spec"]["containers"],
        json!([{"name": "s", "image": "2", "resources": {}}, {"name": "a", "image": "3", "resources": {}},
            {"name": "b", "image": "4", "resources": {}}])
    );
    // A container that is no longer applied goes; the sidecar stays.
    let live =
        applied("Deployment", "k", Some(&live), &pod(json!([{"name": "b", "image": "4"}]))).expect("applied");
    let names: Vec<_> = live["spec"]["template"]["spec"]["containers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| &c["name"])
        .collect();
    assert_eq!(names, ["s", "b"]);
    let error = applied("Deployment", "k", Some(&live), &pod(json!([{"name": "s", "image": "9"}])))
        .expect_err("a conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"injector\" using apps/v1: .spec.template.spec.containers[name=\"s\"].image"
    );
}

#[test]
fn atomic_values_and_sets() {
    let config = |selector: &str, finalizers: Value| {
        let mut object = deployment(json!({"selector": {"matchLabels": {"app": selector}}}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let live = applied("Deployment", "k", None, &config("a", json!(["x", "y"]))).expect("made");
    check(
        &live,
        &[(
            "k Apply",
            json!({"f:metadata": {"f:finalizers": {"v:\"x\"": {}, "v:\"y\"": {}}}, "f:spec": {"f:selector": {}}}),
        )],
    );
    let other = applied("Deployment", "l", Some(&live), &config("a", json!(["z"]))).expect("shared");
    assert_eq!(other["metadata"]["finalizers"], json!(["x", "y", "z"]));
    let less = applied("Deployment", "k", Some(&other), &config("a", json!(["y"]))).expect("applied");
    assert_eq!(less["metadata"]["finalizers"], json!(["y", "z"]));
    let error = applied("Deployment", "l", Some(&less), &config("b", json!(["z"]))).expect_err("a conflict");
    assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"k\": .spec.selector");
}

#[test]
fn what_was_there_before_the_first_apply() {
    let live = map(json!({"a": "1", "b": "2"}));
    let object = applied("ConfigMap", "k", Some(&live), &map(json!({"a": "1"}))).expect("applied");
    check(
        &object,
        &[
            ("k Apply", json!({"f:data": {"f:a": {}}})),
            ("before-first-apply Update", json!({"f:data": {"f:a": {}, "f:b": {}}})),
        ],
    );
    let error = applied("ConfigMap", "k", Some(&live), &map(json!({"a": "2"}))).expect_err("a conflict");
    assert!(error.to_string().contains("\"before-first-apply\" using v1: .data.a"), "{error}");
}

#[test]
fn subresources_have_owners_of_their_own() {
    let mut live = deployment(json!({"replicas": 1}));
    update(&by("Deployment", "k"), &Value::Null, &mut live);
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1});
    let mut change = by("Deployment", "k");
    (change.subresource, change.ignored) = ("status", &["spec"]);
    update(&change, &live, &mut new);
    check(
        &new,
        &[
            ("k Update", json!({"f:spec": {".": {}, "f:replicas": {}}})),
            ("k Update", json!({"f:status": {".": {}, "f:replicas": {}}})),
        ],
    );
    let entries = &new["metadata"]["managedFields"];
    assert_eq!((&entries[0]["subresource"], &entries[1]["subresource"]), (&Value::Null, &json!("status")));
}

#[test]
fn configurations_that_are_none() {
    let check = |config: Value, expected: &str, code: u16| {
        let error = applied("Deployment", "k", None, &config).expect_err(expected);
        assert_eq!(error.to_string(), expected);
        assert_eq!(StatusError::from(error).code, code);
    };
    let mut managed = deployment(json!({}));
    managed["metadata"]["managedFields"] = json!([]);
    check(managed, "metadata.managedFields must be nil", 400);
    check(
        deployment(json!({"foo": 1})),
        "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema",
        500,
    );
    check(
        deployment(json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}})),
        "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        500,
    );
    check(
        deployment(json!({"replicas": "x"})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        400,
    );
}

#[test]
fn managers_are_bounded() {
    let mut object = map(json!({}));
    for n in 0..30 {
        let live = object.clone();
        object["data"][format!("k{n}")] = "x".into();
        let name = format!("m{n:02}");
        let mut change = by("ConfigMap", &name);
        change.now = Timestamp::from_second(n).expect("a time");
        update(&change, &live, &mut object);
    }
    let owners = owners(&object);
    assert_eq!(owners.len(), UPDATE_MANAGERS_MAX);
    assert!(owners.iter().any(|(name, _)| name == "ancient-changes Update"));
    assert!(owners.iter().any(|(name, _)| name == "m29 Update"));
    // Broken entries are as good as none.
    object["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Sing"}]);
    let live = object.clone();
    let mut new = live.clone();
    new["data"]["z"] = "1".into();
    update(&by("ConfigMap", "k"), &live, &mut new);
    check(&new, &[("k Update", json!({"f:data": {"f:z": {}}}))]);
}

/// Whatever is applied is there, by whatever history; applying again changes nothing; what nobody applies or wrote
/// is not there.
#[test]
fn histories() {
    let mut seed = 3_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    let config = |random: &mut dyn FnMut(usize) -> usize| {
        let mut containers = Vec::new();
        for name in ["a", "b", "c"] {
            if random(2) == 0 {
                let mut container = json!({"name": name, "image": random(3).to_string()});
                // An empty list is owned by nobody, as upstream has it, and may go: not what is tested here.
                if random(2) == 0 {
                    container["ports"] = (0..=random(2)).map(|n| json!({"containerPort": 80 + n})).collect();
                }
                containers.push(container);
            }
        }
        if random(2) == 0 {
            containers.reverse();
        }
        let mut object = deployment(json!({}));
        if !containers.is_empty() {
            object["spec"]["template"]["spec"]["containers"] = containers.into();
        }
        for label in ["x", "y"] {
            if random(2) == 0 {
                object["metadata"]["labels"][label] = random(2).to_string().into();
            }
        }
        if random(2) == 0 {
            object["spec"]["replicas"] = random(3).into();
        }
        object
    };
    for _ in 0..400 {
        let mut live: Option<Value> = None;
        for _ in 0..8 {
            let manager = ["k", "l"][random(2)];
            let new = config(&mut random);
            if random(4) == 0
                && let Some(stored) = &live
            {
                let mut written = new.clone();
                update(&by("Deployment", "edit"), stored, &mut written);
                live = Some(written);
                continue;
            }
            let change = by("Deployment", manager);
            let once = apply(&change, live.as_ref(), &new, true).expect("forced");
            let twice = apply(&change, Some(&once), &new, false).expect("its own");
            assert_eq!(once, twice, "{new}");
            let set = walk::set_of(change.form, &new);
            let found = walk::with_named_fields(Some(change.form), &walk::set_of(change.form, &once));
            let missing = change.owned(&set).difference(&found);
            assert!(missing.is_empty(), "{:?}", missing.paths());
            live = Some(once);
        }
        // Both appliers let go: what is left is what was written by hand.
        let mut object = live.expect("some");
        for manager in ["k", "l"] {
            object = apply(&by("Deployment", manager), Some(&object), &deployment(json!({})), true)
                .expect("forced");
        }
        assert!(
            owners(&object).iter().all(|(name, set)| name == "edit Update" || *set == json!({"f:spec": {}})),
            "{object}"
        );
    }
}

/// Objects and sets that nobody should send are refused or owned, never more.
#[test]
fn hostile_objects() {
    let mut seed = 17_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    let names = [
        "metadata",
        "spec",
        "template",
        "containers",
        "name",
        "ports",
        "containerPort",
        "labels",
        "finalizers",
        "managedFields",
        "manager",
        "operation",
        "Update",
        "fieldsV1",
        "f:spec",
        "k:{\"name\":\"a\"}",
        "v:1",
        ".",
    ];
    fn make(random: &mut dyn FnMut(usize) -> usize, names: &[&str], deep: usize) -> Value {
        match random(if deep == 0 { 4 } else { 12 }) {
            0 => Value::Null,
            1 => json!(random(3)),
            2 => json!(["a", "b", "Apply", "Update"][random(4)]),
            3 => json!(true),
            4 | 5 => Value::Array((0..random(4)).map(|_| make(random, names, deep - 1)).collect()),
            _ => (0..random(6))
                .map(|_| (names[random(names.len())].to_owned(), make(random, names, deep - 1)))
                .collect(),
        }
    }
    let change = by("Deployment", "k");
    let mut merged = 0;
    for _ in 0..10_000 {
        let (live, config) = (make(&mut random, &names, 6), make(&mut random, &names[..9], 6));
        merged += usize::from(apply(&change, Some(&live), &config, true).is_ok());
        let mut new = config.clone();
        update(&change, &live, &mut new);
    }
    assert!(merged > 100, "not everything is refused: {merged}");
}

/// As many managers and items as a body may hold cost no more than a body may.
#[test]
fn long_objects() {
    let entry = |n: usize| json!({"manager": n.to_string(), "operation": "Update", "apiVersion": "v1", "fieldsV1": {"f:data": {"f:a": {}}}});
    let mut live = map(json!({"a": "1"}));
    live["metadata"]["managedFields"] = (0..5000).map(entry).collect();
    let mut new = live.clone();
    new["data"]["b"] = "2".into();
    update(&by("ConfigMap", "k"), &live, &mut new);
    assert_eq!(owners(&new).len(), UPDATE_MANAGERS_MAX);
    let finalizers = |range: std::ops::Range<usize>| {
        let mut object = map(json!({}));
        object["metadata"]["finalizers"] = range.map(|n| Value::from(n.to_string())).collect();
        object
    };
    let live = applied("ConfigMap", "k", None, &finalizers(0..20_000)).expect("made");
    let live = applied("ConfigMap", "l", Some(&live), &finalizers(10_000..30_000)).expect("shared");
    assert_eq!(live["metadata"]["finalizers"].as_array().map(Vec::len), Some(30_000));
}
