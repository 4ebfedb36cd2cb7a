//! What clients rely on besides single answers: versions, watches, selectors, deletion, bounds, both storages.

use crate::control::{Ask, Client, Control, Events};
use crate::etcd::EtcdServer;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Runs `check` on a control plane over each storage.
async fn on_both(check: impl AsyncFn(Control)) {
    check(Control::start(&[])).await;
    let etcd = EtcdServer::start();
    check(Control::start(&["--etcd", &etcd.endpoint])).await;
}

fn config_map(name: &str, labels: impl Into<Value>) -> Value {
    let labels = labels.into();
    json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn version(object: &Value) -> String {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).expect("a version").into()
}

async fn made(client: &mut Client, path: &str, object: &Value) -> Value {
    let (code, object) = client.json("POST", path, Some(object)).await;
    assert_eq!(code, 201, "{object}");
    object
}

async fn watch(control: &Control, path: &str) -> Events {
    let mut client = control.connect().await;
    let response = client.send(Ask { method: "GET", path, ..Ask::default() }).await;
    // The connection lives as long as its response is read.
    Events::of(response, client)
}

#[tokio::test]
async fn a_selected_watch_tells_what_enters_and_leaves_its_view_and_resumes() {
    on_both(async |control| {
        let mut client = control.connect().await;
        let first = made(&mut client, CONFIG_MAPS, &config_map("a", json!({"in": "yes"}))).await;
        let path =
            format!("{CONFIG_MAPS}?watch=true&labelSelector=in%3Dyes&resourceVersion={}", version(&first));
        let mut events = watch(&control, &path).await;
        made(&mut client, CONFIG_MAPS, &config_map("b", json!({"in": "no"}))).await;
        let patch = |labels: Value| json!({"metadata": {"labels": labels}});
        let path_b = format!("{CONFIG_MAPS}/b");
        client.json("PATCH", &path_b, Some(&patch(json!({"in": "yes"})))).await;
        assert_eq!(events.said().await, "ADDED b");
        let (_, b) = client.json("PATCH", &path_b, Some(&patch(json!({"x": "y"})))).await;
        assert_eq!(events.said().await, "MODIFIED b");
        let (_, left) = client.json("PATCH", &path_b, Some(&patch(json!({"in": "no"})))).await;
        let event = events.next().await.expect("an event");
        assert_eq!(event["type"], "DELETED");
        assert_eq!(version(&event["object"]), version(&left), "the version of its leaving");
        client.json("DELETE", &format!("{CONFIG_MAPS}/a"), None).await;
        assert_eq!(events.said().await, "DELETED a");

        let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version(&b));
        let mut resumed = watch(&control, &path).await;
        assert_eq!(resumed.said().await, "MODIFIED b");
        assert_eq!(resumed.said().await, "DELETED a");
    })
    .await;
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark_and_one_name_is_watched_alone() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    for name in ["a", "ab"] {
        made(&mut client, CONFIG_MAPS, &config_map(name, json!({}))).await;
    }
    let initial =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = watch(&control, &format!("{CONFIG_MAPS}?{initial}")).await;
    for expected in ["ADDED a", "ADDED ab", "ADDED kube-root-ca.crt"] {
        assert_eq!(events.said().await, expected);
    }
    let mark = events.next().await.expect("a bookmark");
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let mut one = watch(&control, &format!("{CONFIG_MAPS}?watch=true&fieldSelector=metadata.name%3Da")).await;
    assert_eq!(one.said().await, "ADDED a");
    client.json("DELETE", &format!("{CONFIG_MAPS}/ab"), None).await;
    client.json("DELETE", &format!("{CONFIG_MAPS}/a"), None).await;
    assert_eq!(one.said().await, "DELETED a");
    assert_eq!(events.said().await, "DELETED ab");

    let ends = Instant::now();
    let mut short = watch(&control, &format!("{PODS}?watch=true&timeoutSeconds=1")).await;
    assert_eq!(short.next().await, None, "it ends by itself");
    assert!(ends.elapsed() < Duration::from_secs(10));
    let (code, refused) =
        client.json("GET", &format!("{PODS}?watch=true&sendInitialEvents=true"), None).await;
    assert_eq!(code, 422);
    let why = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    assert_eq!(refused["message"], why);
}

#[tokio::test]
async fn a_restarted_control_plane_has_everything_and_says_410_for_what_it_forgot() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut control = Control::start_in(dir.path(), &[]);
    let mut client = control.connect().await;
    let a = made(&mut client, CONFIG_MAPS, &config_map("a", json!({}))).await;
    let b = made(&mut client, CONFIG_MAPS, &config_map("b", json!({}))).await;
    // SIGKILL, at once after the answer.
    control.process.0.kill().expect("it runs");
    control.process.0.wait().expect("it ends");
    let control = Control::start_in(dir.path(), &[]);
    let mut client = control.connect().await;
    for object in [&a, &b] {
        let name = object["metadata"]["name"].as_str().expect("a name");
        let (_, found) = client.json("GET", &format!("{CONFIG_MAPS}/{name}"), None).await;
        assert_eq!(found, *object);
    }
    let mut old = watch(&control, &format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version(&a))).await;
    let event = old.next().await.expect("an event");
    assert_eq!(
        (&event["type"], &event["object"]["code"], &event["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(old.next().await, None);
    let mut fresh =
        watch(&control, &format!("{CONFIG_MAPS}?watch=true&resourceVersion={}", version(&b))).await;
    let c = made(&mut client, CONFIG_MAPS, &config_map("c", json!({}))).await;
    assert!(version(&c).parse::<u64>().expect("a number") > version(&b).parse().expect("a number"));
    assert_eq!(fresh.said().await, "ADDED c");
}

#[tokio::test]
async fn pages_are_of_one_version() {
    on_both(async |control| {
        let mut client = control.connect().await;
        for name in ["a", "b", "c", "d"] {
            made(&mut client, CONFIG_MAPS, &config_map(name, json!({}))).await;
        }
        let (_, first) = client.json("GET", &format!("{CONFIG_MAPS}?limit=2"), None).await;
        assert_eq!(
            (first["items"].as_array().map(Vec::len), &first["metadata"]["remainingItemCount"]),
            (Some(2), &json!(3))
        );
        client.json("DELETE", &format!("{CONFIG_MAPS}/c"), None).await;
        let token = first["metadata"]["continue"].as_str().expect("a token");
        let (_, rest) = client.json("GET", &format!("{CONFIG_MAPS}?limit=5&continue={token}"), None).await;
        let names: Vec<_> =
            rest["items"].as_array().expect("items").iter().map(|i| &i["metadata"]["name"]).collect();
        assert_eq!(names, ["c", "d", "kube-root-ca.crt"]);
        assert_eq!(version(&rest), version(&first));
        let (code, wrong) = client.json("GET", &format!("{CONFIG_MAPS}?resourceVersion=999999"), None).await;
        assert_eq!((code, &wrong["reason"]), (504, &json!("Timeout")));
        let (_, selected) =
            client.json("GET", &format!("{CONFIG_MAPS}?limit=1&labelSelector=none"), None).await;
        assert_eq!(selected["items"], json!([]));
    })
    .await;
}

#[tokio::test]
async fn deletion_waits_for_grace_and_for_finalizers() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    // A pod that no node has is gone at once, one that a node has is not.
    made(&mut client, PODS, &pod("a")).await;
    let (code, _) = client.json("DELETE", &format!("{PODS}/a"), None).await;
    assert_eq!(code, 200);
    assert_eq!(client.json("GET", &format!("{PODS}/a"), None).await.0, 404);
    made(&mut client, PODS, &pod("b")).await;
    let binding = json!({"metadata": {"name": "b"}, "target": {"kind": "Node", "name": "n"}});
    assert_eq!(client.json("POST", &format!("{PODS}/b/binding"), Some(&binding)).await.0, 201);
    assert_eq!(client.json("POST", &format!("{PODS}/b/binding"), Some(&binding)).await.0, 409);
    let (_, marked) = client.json("DELETE", &format!("{PODS}/b?gracePeriodSeconds=20"), None).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 20);
    let (_, shorter) = client.json("DELETE", &format!("{PODS}/b?gracePeriodSeconds=5"), None).await;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let (_, listed) = client.json("GET", &format!("{PODS}?fieldSelector=spec.nodeName%3Dn"), None).await;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1));
    client.json("DELETE", &format!("{PODS}/b"), Some(&json!({"gracePeriodSeconds": 0}))).await;
    assert_eq!(client.json("GET", &format!("{PODS}/b"), None).await.0, 404);

    let mut held = config_map("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let held = made(&mut client, CONFIG_MAPS, &held).await;
    let path = format!("{CONFIG_MAPS}/held");
    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(client.json("DELETE", &path, Some(&wrong)).await.0, 409);
    client.json("DELETE", &path, None).await;
    let (_, waiting) = client.json("GET", &path, None).await;
    assert!(waiting["metadata"]["deletionTimestamp"].is_string(), "{waiting}");
    assert_eq!(waiting["metadata"]["uid"], held["metadata"]["uid"]);
    client.json("PATCH", &path, Some(&json!({"metadata": {"finalizers": null}}))).await;
    assert_eq!(client.json("GET", &path, None).await.0, 404);

    for name in ["x", "y"] {
        made(&mut client, CONFIG_MAPS, &config_map(name, json!({"many": "yes"}))).await;
    }
    let (code, _) = client.json("DELETE", &format!("{CONFIG_MAPS}?labelSelector=many"), None).await;
    let (_, left) = client.json("GET", CONFIG_MAPS, None).await;
    assert_eq!((code, left["items"].as_array().map(Vec::len)), (200, Some(1)));
}

#[tokio::test]
async fn ephemeral_containers_are_added_and_stay() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    made(&mut client, PODS, &pod("p")).await;
    let path = format!("{PODS}/p/ephemeralcontainers");
    let containers =
        |image: &str| json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": image}]}});
    let (code, added) = client.json("PATCH", &path, Some(&containers("busybox"))).await;
    assert_eq!((code, &added["metadata"]["generation"]), (200, &json!(2)), "{added}");
    assert_eq!(added["spec"]["ephemeralContainers"][0]["imagePullPolicy"], "Always");
    let (code, refused) = client.json("PATCH", &path, Some(&containers("other"))).await;
    assert_eq!((code, &refused["reason"]), (422, &json!("Invalid")), "{refused}");
    let elsewhere =
        json!({"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}});
    let (code, refused) = client.json("PATCH", &format!("{PODS}/p"), Some(&elsewhere)).await;
    assert_eq!(code, 422);
    let why = "Pod \"p\" is invalid: spec: Forbidden: pod updates may not add or remove containers";
    assert_eq!(refused["message"], why);
}

#[tokio::test]
async fn generation_counts_changes_of_the_spec_and_status_has_its_own_path() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    // Of a kind that no controller of ours writes.
    let path = "/api/v1/namespaces/default/replicationcontrollers";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = json!({
        "metadata": {"generateName": "web-"},
        "spec": {"selector": {"a": "b"}, "template": template},
        "status": {"replicas": 7},
    });
    let none = json!({"replicas": 0});
    let made = made(&mut client, path, &set).await;
    let name = made["metadata"]["name"].as_str().expect("a name").to_string();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
    assert_eq!((&made["metadata"]["generation"], &made["status"]), (&json!(1), &none));
    let path = format!("{path}/{name}");
    let (_, labelled) = client.json("PATCH", &path, Some(&json!({"metadata": {"labels": {"x": "y"}}}))).await;
    assert_eq!(labelled["metadata"]["generation"], 1);
    let (_, scaled) =
        client.json("PATCH", &path, Some(&json!({"spec": {"replicas": 3}, "status": {"replicas": 9}}))).await;
    assert_eq!((&scaled["metadata"]["generation"], &scaled["status"]), (&json!(2), &none));
    let status = format!("{path}/status");
    let patch = json!({"status": {"replicas": 3}, "spec": {"replicas": 5}});
    let (_, reported) = client.json("PATCH", &status, Some(&patch)).await;
    let seen =
        (&reported["status"]["replicas"], &reported["spec"]["replicas"], &reported["metadata"]["generation"]);
    assert_eq!(seen, (&json!(3), &json!(3), &json!(2)));
    // Nothing changes, nothing is written.
    let (_, same) = client.json("PATCH", &status, Some(&json!({"status": {"replicas": 3}}))).await;
    assert_eq!(version(&same), version(&reported));
    // An old version is refused.
    let (code, stale) = client.json("PUT", &path, Some(&labelled)).await;
    assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")));
}

#[tokio::test]
async fn what_a_stateful_set_selects_does_not_change() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let path = "/apis/apps/v1/namespaces/default/statefulsets";
    let labelled = |label: &str| {
        let template = json!({"metadata": {"labels": {"a": label}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"a": label}}, "template": template}})
    };
    made(&mut client, path, &labelled("b")).await;
    let (code, refused) = client.json("PATCH", &format!("{path}/web"), Some(&labelled("c"))).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().is_some_and(|m| m.contains("are forbidden")), "{refused}");
}

#[tokio::test]
async fn services_never_share_an_address_or_a_port() {
    on_both(async |control| {
        let path = "/api/v1/namespaces/default/services";
        let mut client = control.connect().await;
        let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
        let ports = json!([{"port": 80}]);
        let mut addresses = std::collections::BTreeSet::from(["10.96.0.1".to_string()]);
        for n in 0..5 {
            let spec = json!({"type": "NodePort", "ports": ports});
            let made = made(&mut client, path, &service(&format!("s{n}"), spec)).await;
            let port = made["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
            assert!((30000..=32767).contains(&port));
            assert!(addresses.insert(made["spec"]["clusterIP"].as_str().expect("an address").into()));
            assert!(addresses.insert(port.to_string()));
        }
        let taken = service("t", json!({"clusterIP": "10.96.0.1", "ports": ports}));
        let (code, refused) = client.json("POST", path, Some(&taken)).await;
        assert_eq!(code, 422);
        let why = "Service \"t\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.1\"]: failed to allocate IP 10.96.0.1: provided IP is already allocated";
        assert_eq!(refused["message"], why);
        // What is freed may be had again.
        let (_, s0) = client.json("GET", &format!("{path}/s0"), None).await;
        let address = s0["spec"]["clusterIP"].clone();
        client.json("DELETE", &format!("{path}/s0"), None).await;
        made(&mut client, path, &service("again", json!({"clusterIP": address, "ports": ports}))).await;
        let (_, kept) = client.json("PATCH", &format!("{path}/again"), Some(&json!({"spec": {"ports": [{"port": 81}]}}))).await;
        assert_eq!(kept["spec"]["clusterIP"], address);
    })
    .await;
}

#[tokio::test]
async fn one_object_in_two_versions_is_one_object() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let (v1, v2) = ["v1", "v2"]
        .map(|v| format!("/apis/autoscaling/{v}/namespaces/default/horizontalpodautoscalers"))
        .into();
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
    let autoscaler = json!({
        "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": target, "targetCPUUtilizationPercentage": 50},
    });
    let made_v1 = made(&mut client, &v1, &autoscaler).await;
    assert_eq!(made_v1["apiVersion"], "autoscaling/v1");
    let (_, seen) = client.json("GET", &format!("{v2}/h"), None).await;
    assert_eq!(seen["apiVersion"], "autoscaling/v2");
    assert_eq!(seen["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    let (_, back) = client.json("GET", &format!("{v1}/h"), None).await;
    assert_eq!(back["spec"], made_v1["spec"]);
    let event = json!({
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "text", "type": "Normal",
    });
    made(&mut client, "/api/v1/namespaces/default/events", &event).await;
    let (_, seen) = client.json("GET", "/apis/events.k8s.io/v1/namespaces/default/events/e", None).await;
    assert_eq!((&seen["note"], &seen["regarding"]["name"]), (&json!("text"), &json!("p")));
    let path = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp%2Creason%3DStarted";
    let (_, found) = client.json("GET", path, None).await;
    assert_eq!(found["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn bad_bodies_cost_an_error_and_nothing_else() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let large = "x".repeat((3 << 20) + 1);
    let ask = Ask { method: "POST", path: CONFIG_MAPS, body: Some(large.into()), ..Ask::default() };
    let response = client.send(ask).await;
    assert_eq!(response.status().as_u16(), 413);
    drop(response);
    let mut client = control.connect().await;
    for (content_type, body, code) in [
        ("application/yaml", "metadata: {name: yaml}\ndata: {a: b}", 201),
        ("application/yaml", "metadata: [", 400),
        ("application/json", "[]", 400),
        ("application/json", "nonsense", 400),
        ("application/x-nothing", "{}", 415),
        ("application/json", r#"{"metadata":{"name":"n","labels":5}}"#, 400),
        ("application/json", r#"{"kind":"Widget","metadata":{"name":"n"}}"#, 400),
        ("application/json", r#"{"apiVersion":"v2","metadata":{"name":"n"}}"#, 400),
        ("application/json", r#"{"metadata":{"name":"n","resourceVersion":"5"}}"#, 400),
    ] {
        let ask = Ask {
            method: "POST",
            path: CONFIG_MAPS,
            body: Some(body.into()),
            content_type,
            ..Ask::default()
        };
        let (found, answer) = client.ask(ask).await;
        assert_eq!(found, code, "{body}: {answer}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let ask = Ask { method: "POST", path: CONFIG_MAPS, body: Some(deep.into()), ..Ask::default() };
    assert_eq!(client.ask(ask).await.0, 400);
    let ask = Ask {
        method: "POST",
        path: &format!("{CONFIG_MAPS}?dryRun=All"),
        body: Some(r#"{"metadata":{"name":"n"},"dat":{}}"#.into()),
        ..Ask::default()
    };
    let response = client.send(ask).await;
    assert_eq!(response.headers()["warning"], "299 - \"unknown field \\\"dat\\\"\"");
}

#[tokio::test]
async fn a_reader_that_takes_nothing_slows_nobody_and_loses_nothing_silently() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let mut stalled = watch(&control, &format!("{CONFIG_MAPS}?watch=true&resourceVersion=1")).await;
    let mut quick = watch(&control, &format!("{CONFIG_MAPS}?watch=true&resourceVersion=1")).await;
    // More than the sockets hold, and more than the history keeps.
    let large = "x".repeat(900 << 10);
    let count = 40;
    for n in 0..count {
        let object = json!({"metadata": {"name": format!("c{n}")}, "data": {"a": large}});
        made(&mut client, CONFIG_MAPS, &object).await;
        while quick.said().await != format!("ADDED c{n}") {}
    }
    // It has the beginning, in order, and then is told that it missed the rest.
    let mut told = None;
    let mut seen = 0;
    while let Some(event) = stalled.next().await {
        if event["type"] == "ERROR" {
            told = Some(event["object"]["code"].clone());
        } else if event["object"]["metadata"]["name"] == format!("c{seen}") {
            seen += 1;
        }
    }
    assert_eq!(told, Some(json!(410)));
    assert!(seen < count, "{seen}");
}

#[tokio::test]
async fn every_one_of_many_watches_sees_every_change() {
    const WATCHES: usize = 200;
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(watch(&control, &format!("{CONFIG_MAPS}?watch=true&labelSelector=w")).await);
    }
    for n in 0..10 {
        made(&mut client, CONFIG_MAPS, &config_map(&format!("w{n}"), json!({"w": "x"}))).await;
    }
    for watch in &mut watches {
        for n in 0..10 {
            assert_eq!(watch.said().await, format!("ADDED w{n}"));
        }
    }
    let (_, metrics) = client.json("GET", "/metrics", None).await;
    let line = format!("apiserver_longrunning_requests{{verb=\"WATCH\"}} {WATCHES}");
    assert!(metrics.as_str().is_some_and(|text| text.contains(&line)), "{metrics}");
}

/// The issue's figures, printed; the asserted bounds have a margin for a busy machine and a debug build.
#[tokio::test]
async fn creating_and_reading_take_milliseconds() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let mut creates = Vec::new();
    for n in 0..100 {
        let start = Instant::now();
        made(&mut client, PODS, &pod(&format!("p{n}"))).await;
        creates.push(start.elapsed());
    }
    creates.sort();
    let start = Instant::now();
    for _ in 0..500 {
        assert_eq!(client.json("GET", &format!("{PODS}/p1"), None).await.0, 200);
    }
    let get = start.elapsed() / 500;
    println!("create p50 {:?}, get {get:?} one after another", creates[50]);
    assert!(creates[50] < Duration::from_millis(60), "{:?}", creates[50]);
}

/// A patch that names no version must never meet 409 because the status was written meanwhile.
#[tokio::test]
async fn patches_without_a_version_do_not_conflict() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    made(&mut client, CONFIG_MAPS, &config_map("shared", json!({}))).await;
    let writers = (0..2).map(|writer: u8| {
        let control = &control;
        async move {
            let mut client = control.connect().await;
            for round in 0..50_u8 {
                let patch = json!({"data": {format!("w{writer}"): round.to_string()}});
                let (code, answer) =
                    client.json("PATCH", &format!("{CONFIG_MAPS}/shared"), Some(&patch)).await;
                assert_eq!(code, 200, "{answer}");
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let (_, shared) = client.json("GET", &format!("{CONFIG_MAPS}/shared"), None).await;
    assert_eq!(shared["data"].as_object().map(serde_json::Map::len), Some(3), "{shared}");
}
