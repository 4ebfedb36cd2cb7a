use super::*;
use crate::kinds::find;
use coracle_api::patch;

fn pod(change: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{
            "name": "c",
            "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1"}},
        }]},
    });
    patch::merge(&mut pod, change);
    pod
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

#[test]
fn what_objects_take() {
    let check = |group: &str, plural: &str, object: Value, expected: &str| {
        let resource = find(group, "v1", plural).expect("a kind");
        assert_eq!(usage(resource, &object, now()).to_string(), expected, "{object}");
        for (name, _) in usage(resource, &object, now()).iter() {
            assert!(measures(resource, name), "{name}");
        }
    };
    let all = "count/pods=1,cpu=500m,limits.cpu=1,memory=64Mi,pods=1,requests.cpu=500m,requests.memory=64Mi";
    check("", "pods", pod(json!({})), all);
    check("", "pods", pod(json!({"status": {"phase": "Failed"}})), "count/pods=1");
    let ending = |deleted: &str| {
        pod(json!({"metadata": {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": 30}}))
    };
    check("", "pods", ending("2025-12-31T23:59:31Z"), all);
    check("", "pods", ending("2025-12-31T23:59:30Z"), "count/pods=1");
    let init = json!([
        {"name": "first", "resources": {"requests": {"cpu": "2"}}},
        {"name": "beside", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
        {"name": "last", "resources": {"requests": {"cpu": "2"}}},
    ]);
    let small = json!([{"name": "c", "resources": {"requests": {"cpu": "1", "example.test/gpu": "1"}}}]);
    check(
        "",
        "pods",
        json!({"spec": {"containers": small, "initContainers": init, "overhead": {"cpu": "10m"}}}),
        "count/pods=1,cpu=2110m,pods=1,requests.cpu=2110m,requests.example.test/gpu=1",
    );
    let service =
        |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}});
    let of = |nodes: u8, balancers: u8| {
        format!("count/services=1,services=1,services.loadbalancers={balancers},services.nodeports={nodes}")
    };
    check("", "services", service("ClusterIP"), &of(0, 0));
    check("", "services", service("NodePort"), &of(2, 0));
    check("", "services", service("LoadBalancer"), &of(2, 1));
    let mut without = service("LoadBalancer");
    without["spec"]["allocateLoadBalancerNodePorts"] = false.into();
    check("", "services", without, &of(1, 1));
    let claim = json!({"spec": {"storageClassName": "sd", "resources": {"requests": {"storage": "1Gi"}}}});
    check(
        "",
        "persistentvolumeclaims",
        claim,
        "count/persistentvolumeclaims=1,persistentvolumeclaims=1,requests.storage=1Gi,sd.storageclass.storage.k8s.io/persistentvolumeclaims=1,sd.storageclass.storage.k8s.io/requests.storage=1Gi",
    );
    check("", "configmaps", json!({}), "configmaps=1,count/configmaps=1");
    check("apps", "deployments", json!({}), "count/deployments.apps=1");
}

#[test]
fn which_pods_a_scope_covers() {
    let check = |spec: Value, change: Value, expected: bool| {
        assert_eq!(covers(&json!({"spec": spec}), true, &pod(change)), expected, "{spec}");
    };
    let scopes = |scope: &str| json!({"scopes": [scope]});
    let deadline = || json!({"spec": {"activeDeadlineSeconds": 5}});
    let nothing = || json!({"spec": {"containers": [{"name": "c"}]}});
    check(json!({}), json!({}), true);
    check(scopes("BestEffort"), json!({}), false);
    check(scopes("BestEffort"), nothing(), true);
    check(scopes("NotBestEffort"), json!({}), true);
    check(scopes("NotBestEffort"), nothing(), false);
    check(scopes("Terminating"), deadline(), true);
    check(scopes("Terminating"), json!({}), false);
    check(scopes("NotTerminating"), json!({}), true);
    check(scopes("NotTerminating"), deadline(), false);
    let class = |operator: &str| {
        let term = json!({"scopeName": "PriorityClass", "operator": operator, "values": ["high"]});
        json!({"scopeSelector": {"matchExpressions": [term]}})
    };
    let high = || json!({"spec": {"priorityClassName": "high"}});
    check(class("In"), high(), true);
    check(class("In"), json!({}), false);
    check(class("NotIn"), high(), false);
    check(class("NotIn"), json!({}), true);
    check(class("Exists"), high(), true);
    check(class("DoesNotExist"), high(), false);
    assert!(!covers(&json!({"spec": scopes("NotTerminating")}), false, &json!({})), "no pod, no scope");
}

#[test]
fn too_much_is_refused_in_upstreams_words() {
    let check = |hard: Value, used: Value, more: Value, expected: Result<&str, &str>| {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        let found = charge(&quota, &Amounts::read(&used), &Amounts::read(&more));
        let found = found.map(|after| after.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    };
    let hard = || json!({"pods": "2", "requests.cpu": "1"});
    let used = || json!({"pods": "1", "requests.cpu": "500m"});
    check(hard(), used(), json!({"pods": "1", "requests.cpu": "500m"}), Ok("pods=2,requests.cpu=1"));
    check(
        hard(),
        used(),
        json!({"pods": "1", "requests.cpu": "600m"}),
        Err(
            "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1",
        ),
    );
    check(
        hard(),
        used(),
        json!({"pods": "2", "requests.cpu": "600m"}),
        Err(
            "exceeded quota: q, requested: pods=2,requests.cpu=600m, used: pods=1,requests.cpu=500m, limited: pods=2,requests.cpu=1",
        ),
    );
    // What gets smaller is never too much.
    check(hard(), json!({"pods": "5"}), json!({"pods": "-1"}), Ok("pods=4"));
}

#[test]
fn what_is_limited_must_be_said() {
    let check = |hard: Value, change: Value, expected: Result<(), &str>| {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        let pods = find("", "v1", "pods").expect("a kind");
        assert_eq!(require(&quota, pods, &pod(change)).as_ref().copied().map_err(String::as_str), expected);
    };
    check(json!({"requests.cpu": "1", "limits.cpu": "1", "pods": "1"}), json!({}), Ok(()));
    check(
        json!({"limits.memory": "1Gi"}),
        json!({}),
        Err("failed quota: q: must specify limits.memory for: c"),
    );
    let init = json!({"spec": {"initContainers": [{"name": "i"}]}});
    check(
        json!({"limits.memory": "1Gi", "cpu": "1"}),
        init,
        Err("failed quota: q: must specify cpu for: i; limits.memory for: c,i"),
    );
}

#[test]
fn reservations_are_kept_in_an_annotation() {
    let one = Reservation {
        id: "x".into(),
        key: "/registry/core/pods/default/p".into(),
        uid: "u".into(),
        at: now().as_second(),
        usage: [("pods".to_string(), "1".to_string())].into(),
    };
    let mut quota = json!({"metadata": {"name": "q"}});
    set_reservations(&mut quota, std::slice::from_ref(&one));
    assert_eq!(reservations(&quota), std::slice::from_ref(&one));
    set_reservations(&mut quota, &[]);
    assert_eq!(quota, json!({"metadata": {"name": "q"}}));
    quota["metadata"]["annotations"] = json!({ANNOTATION: "nonsense"});
    assert_eq!(reservations(&quota), []);
    assert_eq!(one.amounts().to_string(), "pods=1");
    assert!(one.left(now()).is_some());
    for clock in [now() + RESERVED, now() - RESERVED] {
        assert_eq!(one.left(clock), None);
    }
}

/// The controller counts anew between the promise and the object: nobody gets the same room twice.
#[test]
fn what_is_reserved_and_not_yet_seen_is_counted() {
    let reservation = |id: &str, uid: &str, pods: &str, age: i64| Reservation {
        id: id.into(),
        key: String::new(),
        uid: uid.into(),
        at: now().as_second() - age,
        usage: [("pods".to_string(), "1".to_string()), ("cpu".to_string(), pods.to_string())].into(),
    };
    let as_much = |cpu: &str| Seen::As(Amounts::read(&json!({"pods": "1", "cpu": cpu})));
    let check = |reservations: &[Reservation], seen: &Seen, kept: &[&str], more: &str| {
        let (found, counted) = outstanding(reservations.to_vec(), now(), |_| seen.clone());
        let ids: Vec<&str> = found.iter().map(|reservation| reservation.id.as_str()).collect();
        assert_eq!((ids.as_slice(), counted.to_string().as_str()), (kept, more));
    };
    let one = [reservation("a", "u", "2", 0)];
    check(&one, &Seen::Not, &["a"], "cpu=2,pods=1");
    check(&one, &as_much("2"), &[], "");
    check(&one, &Seen::Gone, &[], "");
    // A change that is not yet seen.
    check(&one, &as_much("500m"), &["a"], "cpu=1500m");
    // More by now: somebody else was promised that.
    check(&one, &as_much("3"), &[], "");
    let two = [reservation("a", "u", "2", 0), reservation("b", "u", "3", 5)];
    check(&two, &Seen::Not, &["a", "b"], "cpu=3,pods=1");
    check(&two, &as_much("2"), &["b"], "cpu=1");
    let others = [reservation("a", "u", "2", 0), reservation("b", "v", "3", 0)];
    check(&others, &Seen::Not, &["a", "b"], "cpu=5,pods=2");
    check(&[reservation("a", "u", "2", RESERVED.as_secs())], &Seen::Not, &[], "");
}
