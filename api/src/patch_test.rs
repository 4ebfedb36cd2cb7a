//! Patches on objects of real kinds, in the forms that kubectl sends them.

use serde_json::json;

use super::*;
use crate::decode::{DEPTH_MAX, depth};
use crate::schema;
use crate::status::Reason;

#[test]
fn json_patches() {
    let target = json!({"a": {"b": [1, 2, 3]}, "c~/d": "x"});
    let check = |patch: Value, expected: Option<Value>| {
        assert_eq!(json(target.clone(), &patch).ok(), expected, "{patch}");
    };
    check(json!([]), Some(target.clone()));
    check(
        json!([{"op": "add", "path": "/a/b/-", "value": 4}, {"op": "add", "path": "/a/b/0", "value": 0}]),
        Some(json!({"a": {"b": [0, 1, 2, 3, 4]}, "c~/d": "x"})),
    );
    check(json!([{"op": "remove", "path": "/a/b/-1"}]), Some(json!({"a": {"b": [1, 2]}, "c~/d": "x"})));
    check(
        json!([{"op": "replace", "path": "/c~0~1d", "value": null}]),
        Some(json!({"a": {"b": [1, 2, 3]}, "c~/d": null})),
    );
    check(
        json!([{"op": "move", "from": "/a/b", "path": "/e"}]),
        Some(json!({"a": {}, "e": [1, 2, 3], "c~/d": "x"})),
    );
    check(
        json!([{"op": "copy", "from": "/a/b/0", "path": "/f"}]),
        Some(json!({"a": {"b": [1, 2, 3]}, "f": 1, "c~/d": "x"})),
    );
    check(json!([{"op": "test", "path": "/a/b/1", "value": 2.0}]), Some(target.clone()));
    check(json!([{"op": "test", "path": "/none", "value": null}]), Some(target.clone()));
    check(json!([{"op": "replace", "path": "", "value": 1}]), Some(json!(1)));
    for bad in [
        json!({"op": "add"}),
        json!([{"op": "nope", "path": "/a"}]),
        json!([{"op": "add", "path": "a", "value": 1}]),
        json!([{"op": "add", "path": "/x"}]),
        json!([{"op": "add", "path": "/x/y", "value": 1}]),
        json!([{"op": "add", "path": "/a/b/5", "value": 1}]),
        json!([{"op": "add", "path": "/a/b/01", "value": 1}]),
        json!([{"op": "remove", "path": "/x"}]),
        json!([{"op": "remove", "path": ""}]),
        json!([{"op": "replace", "path": "/x", "value": 1}]),
        json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
        json!([{"op": "test", "path": "/a", "value": "y"}]),
    ] {
        check(bad, None);
    }
}

#[test]
fn json_patches_refused_are_upstreams_statuses() {
    let status = |patch: &Value| StatusError::from(json(json!({"a": 1}), patch).expect_err("refused"));
    let failed = status(&json!([{"op": "test", "path": "/a", "value": 2}]));
    assert_eq!((failed.code, failed.reason), (422, Reason::Invalid));
    assert_eq!(failed.message, "the server rejected our request due to an error in our request");
    assert_eq!(status(&json!([{"op": "x", "path": ""}])).code, 400);
    let many = Value::Array(vec![json!({"op": "remove", "path": "/a"}); OPERATIONS_MAX + 1]);
    assert_eq!(
        status(&many).message,
        "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
    );
}

#[test]
fn json_patches_cannot_grow_without_bound() {
    let double = json!({"op": "copy", "from": "", "path": "/a"});
    assert!(json(json!({}), &Value::Array(vec![double; 200])).is_err(), "depth");
    let wide = json!([{"op": "copy", "from": "/a", "path": "/a/-"}]);
    let wide = Value::Array(vec![wide[0].clone(); 60]);
    assert!(json(json!({"a": ["x".repeat(1 << 10)]}), &wide).is_err(), "bytes");
    let nested = (0..DEPTH_MAX).fold(json!(1), |inner, _| json!([inner]));
    assert!(json(json!({}), &json!([{"op": "add", "path": "/a", "value": nested}])).is_err());
}

#[test]
fn merge_patches_of_rfc_7386() {
    let check = |target: Value, patch: Value, expected: Value| {
        let mut found = target;
        merge(&mut found, patch);
        assert_eq!(found, expected);
    };
    check(json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"}));
    check(json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"}));
    check(json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"}));
    check(json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"}));
    check(json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}}));
    check(json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]}));
    check(json!(["a"]), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}}));
    check(json!({"a": "b"}), json!(["c"]), json!(["c"]));
}

fn patched(kind: &str, target: Value, patch: Value) -> Result<Value, PatchError> {
    let (version, name) = kind.rsplit_once('/').expect("version/Kind");
    strategic(schema::kind(version, name).expect("a known kind"), target, patch)
}

fn check_strategic(kind: &str, target: Value, patch: Value, expected: Value) {
    let shown = patch.to_string();
    assert_eq!(patched(kind, target, patch), Ok(expected), "{shown}");
}

fn deployment(spec: &Value) -> Value {
    json!({"spec": {"template": {"spec": spec}}})
}

#[test]
fn strategic_merge_of_keyed_lists() {
    let check = |target: Value, patch: Value, expected: Value| {
        check_strategic("apps/v1/Deployment", deployment(&target), deployment(&patch), deployment(&expected));
    };
    let two =
        || json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "2"}]});
    // kubectl set image.
    check(
        two(),
        json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "b"}], "containers": [{"name": "a", "image": "9"}]}),
        json!({"containers": [{"name": "a", "image": "9", "tty": true}, {"name": "b", "image": "2"}]}),
    );
    check(
        two(),
        json!({"containers": [{"name": "c", "image": "3", "tty": null}]}),
        json!({"containers": [{"name": "c", "image": "3"}, {"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "2"}]}),
    );
    check(
        two(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b", "image": "2"}]}),
    );
    check(
        two(),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check(
        two(),
        json!({"containers": [{"name": "a", "$patch": "replace", "image": "7"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    check(
        two(),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
        json!({"containers": [{"name": "b", "image": "2"}, {"name": "a", "image": "1", "tty": true}]}),
    );
    check(two(), json!({"containers": null}), json!({}));
    // Ports are keyed by number, of which two may be alike by protocol: the first is merged.
    check(
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 2, "name": "x"}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 2, "name": "x"}]}]}),
    );
    // Atomic lists are replaced.
    check(
        json!({"tolerations": [{"key": "a"}]}),
        json!({"tolerations": [{"key": "b"}]}),
        json!({"tolerations": [{"key": "b"}]}),
    );
    check(
        json!({"containers": [{"name": "a", "command": ["x", "y"]}]}),
        json!({"containers": [{"name": "a", "command": ["z"]}]}),
        json!({"containers": [{"name": "a", "command": ["z"]}]}),
    );
}

#[test]
fn strategic_merge_of_maps_and_scalars() {
    let check = |target: Value, patch: Value, expected: Value| {
        check_strategic("apps/v1/Deployment", target, patch, expected);
    };
    let strategy = |value: Value| json!({"spec": {"strategy": value}});
    check(
        strategy(json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}})),
        strategy(json!({"$retainKeys": ["type"], "type": "Recreate"})),
        strategy(json!({"type": "Recreate"})),
    );
    check(
        deployment(&json!({"volumes": [{"name": "v", "emptyDir": {}}]})),
        deployment(
            &json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        ),
        deployment(&json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})),
    );
    check(
        json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
        json!({"metadata": {"labels": {"a": null, "c": "3"}}}),
        json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
        json!({"metadata": {"labels": {"c": "3"}}}),
    );
    check(
        json!({"metadata": {"labels": {"a": "1"}}}),
        json!({"metadata": {"labels": {"$patch": "delete"}}}),
        json!({"metadata": {"labels": {}}}),
    );
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    check(finalizers(json!(["a", "b"])), finalizers(json!(["c", "a"])), finalizers(json!(["c", "a", "b"])));
    check(
        finalizers(json!(["a", "b"])),
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b", "c"], "finalizers": ["c"]}}),
        finalizers(json!(["b", "c"])),
    );
    check(
        json!({}),
        json!({"metadata": {"labels": {"a": null}, "$retainKeys": ["labels"]}}),
        json!({"metadata": {"labels": {}}}),
    );
}

#[test]
fn strategic_patches_that_are_none() {
    let check = |patch: Value, part: &str| {
        let target = json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x"]}, "spec": {"containers": [{"name": "a"}]}});
        let error = patched("v1/Pod", target, patch).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    check(json!([]), "invalid JSON document");
    check(json!({"metadata": {"labels": {"$patch": "merge"}}}), "unknown patch type: \"merge\"");
    check(json!({"spec": {"containers": [{"image": "x"}]}}), "does not contain declared merge key: name");
    check(json!({"spec": {"containers": ["x"]}}), "does not contain declared merge key: name");
    check(
        json!({"spec": {"containers": [{"$patch": "delete"}]}}),
        "does not contain declared merge key: name",
    );
    check(json!({"spec": {"containers": [{"$patch": 5, "name": "a"}]}}), "unknown patch type: 5");
    check(json!({"metadata": {"$retainKeys": "x"}}), "retainKeys");
    check(json!({"metadata": {"$retainKeys": ["a"], "labels": {}}}), "retainKeys");
    check(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}), "primitive list");
    check(json!({"metadata": {"$setElementOrder/finalizers": 1}}), "setElementOrder");
    check(
        json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}}),
        "doesn't match containers list",
    );
}

/// Lists as long as a body may hold cost no more than a body may.
#[test]
fn long_lists() {
    let containers: Vec<_> = (0..20_000).map(|n| json!({"name": n.to_string()})).collect();
    let order: Vec<_> = containers.iter().rev().cloned().collect();
    let target = json!({"spec": {"containers": containers}});
    let patch = json!({"spec": {"containers": order, "$setElementOrder/containers": order}});
    let found = patched("v1/Pod", target.clone(), patch).expect("patched");
    assert_eq!(found["spec"]["containers"][0]["name"], "19999");
    let first = json!({"op": "remove", "path": "/spec/containers/0"});
    assert!(json(target, &Value::Array(vec![first; OPERATIONS_MAX])).is_err(), "shifts");
}

/// Any patch gives an object of bounded depth or is refused; merging the same patch again and
/// again changes nothing, when it has no directives.
#[test]
fn hostile_patches() {
    let mut seed = 11_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    let names = [
        "spec",
        "containers",
        "name",
        "ports",
        "containerPort",
        "metadata",
        "finalizers",
        "labels",
        "volumes",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$deleteFromPrimitiveList/finalizers",
        "$setElementOrder/finalizers",
    ];
    fn make(random: &mut dyn FnMut(usize) -> usize, names: &[&str], deep: usize) -> Value {
        match random(if deep == 0 { 4 } else { 8 }) {
            0 => Value::Null,
            1 => json!(random(3)),
            2 => json!(["a", "delete", "replace", "b"][random(4)]),
            3 => json!(true),
            4 => Value::Array((0..random(4)).map(|_| make(random, names, deep - 1)).collect()),
            _ => (0..random(5))
                .map(|_| (names[random(names.len())].to_owned(), make(random, names, deep - 1)))
                .collect(),
        }
    }
    let form = schema::kind("v1", "Pod").expect("known");
    for _ in 0..10_000 {
        let target = make(&mut random, &names[..9], 5);
        let patch = make(&mut random, &names, 5);
        if let Ok(found) = strategic(form, target.clone(), patch.clone()) {
            assert!(depth(&found) <= depth(&target).max(depth(&patch)), "{target} {patch}");
        }
        let mut once = target.clone();
        merge(&mut once, patch.clone());
        let mut twice = once.clone();
        merge(&mut twice, patch.clone());
        assert_eq!(once, twice, "{target} {patch}");
        let plain = make(&mut random, &names[..9], 5);
        if let Ok(once) = strategic(form, target.clone(), plain.clone())
            && let Ok(twice) = strategic(form, once, plain.clone())
        {
            // A list that was not there is taken as it is, duplicates and all; from then on nothing changes.
            let thrice = strategic(form, twice.clone(), plain.clone());
            assert_eq!(Ok(twice), thrice, "{target} {plain}");
        }
    }
}
