//! Requests that ask before they write: dry runs, preconditions, and how unknown fields are taken.

use crate::control::{Ask, Client, Control};
use crate::kubectl::Kubectl;
use serde_json::{Value, json};

const DEFAULT: &str = "/api/v1/namespaces/default";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "shop"}}, "data": {"colour": "red"},
    })
}

fn pod(name: &str) -> Value {
    let containers = json!([{"name": "c", "image": "app:1"}]);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"containers": containers, "schedulerName": "none"},
    })
}

/// Everything that a dry run could have touched.
async fn everything(client: &mut Client) -> Vec<Value> {
    let mut all = Vec::new();
    for path in [
        CONFIG_MAPS,
        "/api/v1/namespaces/default/pods",
        "/api/v1/namespaces/default/replicationcontrollers",
        "/api/v1/namespaces/default/services",
        "/api/v1/namespaces",
        "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
        "/api/v1/namespaces/default/secrets",
    ] {
        let (code, list) = client.json("GET", path, None).await;
        assert_eq!(code, 200, "{list}");
        all.push(list["items"].clone());
    }
    all
}

#[tokio::test]
async fn a_dry_run_answers_as_the_request_would_and_stores_nothing() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let template =
        json!({"metadata": {"labels": {"app": "rc"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = json!({
        "metadata": {"name": "rc"},
        "spec": {"replicas": 0, "selector": {"app": "rc"}, "template": template},
    });
    let budget = json!({
        "metadata": {"name": "web"},
        "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "web"}}},
    });
    for (path, object) in [
        (CONFIG_MAPS.to_string(), config_map("a")),
        (CONFIG_MAPS.to_string(), config_map("b")),
        (format!("{DEFAULT}/pods"), pod("p")),
        (format!("{DEFAULT}/replicationcontrollers"), set),
        ("/api/v1/namespaces".to_string(), json!({"metadata": {"name": "shop"}})),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets".to_string(), budget),
    ] {
        let (code, made) = client.json("POST", &path, Some(&object)).await;
        assert_eq!(code, 201, "{made}");
    }
    let running =
        json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let (code, answer) = client.json("PATCH", &format!("{DEFAULT}/pods/p/status"), Some(&running)).await;
    assert_eq!(code, 200, "{answer}");
    // What controllers make of these by themselves comes first.
    client.until(200, "GET", &format!("{DEFAULT}/serviceaccounts/default"), None).await;
    for namespace in ["default", "shop"] {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt");
        client.until(200, "GET", &path, None).await;
    }
    let kubectl = Kubectl(&control);
    kubectl.ok(&["wait", "--for=jsonpath={.status.disruptionsAllowed}=1", "pdb/web", "--timeout=30s"]);
    let before = everything(&mut client).await;

    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "i"}]}});
    let service = json!({
        "metadata": {"name": "s"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.77", "ports": [{"port": 80, "nodePort": 30077}]},
    });
    let generated = json!({"metadata": {"generateName": "made-"}});
    let blue = json!({"data": {"colour": "blue"}});
    for (method, path, body, code, at, value) in [
        ("POST", "configmaps", Some(config_map("new")), 201, "/metadata/name", json!("new")),
        ("POST", "configmaps", Some(config_map("a")), 409, "/reason", json!("AlreadyExists")),
        ("POST", "configmaps", Some(generated), 201, "/metadata/generateName", json!("made-")),
        ("PUT", "configmaps/a", Some(json!({"metadata": {"name": "a"}})), 200, "/data", Value::Null),
        ("PATCH", "configmaps/a", Some(blue), 200, "/data/colour", json!("blue")),
        ("DELETE", "configmaps/a", None, 200, "/status", json!("Success")),
        ("DELETE", "configmaps", None, 200, "/items/0/metadata/name", json!("a")),
        ("POST", "services", Some(service.clone()), 201, "/spec/clusterIP", json!("10.96.0.77")),
        ("POST", "pods", Some(pod("q")), 201, "/status/phase", json!("Pending")),
        ("POST", "pods/p/binding", Some(binding), 201, "/status", json!("Success")),
        ("POST", "pods/p/eviction", Some(eviction.clone()), 201, "/status", json!("Success")),
        (
            "PATCH",
            "pods/p/ephemeralcontainers",
            Some(debug),
            200,
            "/spec/ephemeralContainers/0/name",
            json!("debug"),
        ),
        (
            "PATCH",
            "pods/p/status",
            Some(json!({"status": {"phase": "Failed"}})),
            200,
            "/status/phase",
            json!("Failed"),
        ),
        ("DELETE", "pods/p", None, 200, "/metadata/name", json!("p")),
        (
            "PATCH",
            "replicationcontrollers/rc/scale",
            Some(json!({"spec": {"replicas": 3}})),
            200,
            "/spec/replicas",
            json!(3),
        ),
        ("POST", "serviceaccounts/default/token", Some(json!({})), 201, "/kind", json!("TokenRequest")),
    ] {
        let path = format!("{DEFAULT}/{path}?dryRun=All&labelSelector=app%3Dshop");
        let path = if method == "DELETE" { path } else { path.replace("&labelSelector=app%3Dshop", "") };
        let (found, answer) = client.json(method, &path, body.as_ref()).await;
        assert_eq!(found, code, "{method} {path}: {answer}");
        assert_eq!(answer.pointer(at).unwrap_or(&Value::Null), &value, "{method} {path}: {answer}");
    }
    let (code, answer) = client.json("DELETE", "/api/v1/namespaces/shop?dryRun=All", None).await;
    assert_eq!(code, 200, "{answer}");
    // In the body as well.
    let dry = json!({"dryRun": ["All"]});
    let (code, answer) = client.json("DELETE", &format!("{CONFIG_MAPS}/a"), Some(&dry)).await;
    assert_eq!(code, 200, "{answer}");
    let mut said = eviction;
    said["deleteOptions"] = dry;
    let (code, answer) = client.json("POST", &format!("{DEFAULT}/pods/p/eviction"), Some(&said)).await;
    assert_eq!(code, 201, "{answer}");
    let apply = Ask {
        method: "PATCH",
        path: &format!("{CONFIG_MAPS}/applied?dryRun=All&fieldManager=test"),
        body: Some(config_map("applied").to_string().into()),
        content_type: "application/apply-patch+yaml",
        ..Ask::default()
    };
    assert_eq!(client.ask(apply).await.0, 201);
    let (code, refused) = client.json("DELETE", &format!("{CONFIG_MAPS}/a?dryRun=Some"), None).await;
    let why = "dryRun: Unsupported value: [\"Some\"]: supported values: \"All\"";
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().is_some_and(|found| found.ends_with(why)), "{refused}");

    for (was, is) in before.into_iter().zip(everything(&mut client).await) {
        assert_eq!(was, is);
    }
    // Neither the address nor the port was taken.
    let (code, made) = client.json("POST", &format!("{DEFAULT}/services"), Some(&service)).await;
    assert_eq!(code, 201, "{made}");
}

#[test]
fn kubectl_runs_dry_on_the_server() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    kubectl.run(&["apply", "-f", "-"], &config_map("a").to_string()).expect("made");
    let blue = config_map("a").to_string().replace("red", "blue");
    for (arguments, input, said) in [
        (&["apply", "-f", "-"][..], config_map("new").to_string(), "configmap/new created (server dry run)"),
        (&["apply", "-f", "-"], blue.clone(), "configmap/a configured (server dry run)"),
        (&["apply", "-f", "-"], config_map("a").to_string(), "configmap/a unchanged (server dry run)"),
        (
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            blue.clone(),
            "configmap/a serverside-applied (server dry run)",
        ),
        (&["replace", "-f", "-"], blue, "configmap/a replaced (server dry run)"),
        (
            &["create", "deployment", "web", "--image=i"],
            String::new(),
            "deployment.apps/web created (server dry run)",
        ),
        (&["label", "configmap", "a", "x=y"], String::new(), "configmap/a labeled (server dry run)"),
        (&["patch", "configmap", "a", "-p", r#"{"data":{"x":"y"}}"#], String::new(), "configmap/a patched"),
        (&["delete", "configmap", "a"], String::new(), "configmap \"a\" deleted (server dry run)"),
    ] {
        let told = kubectl.run(&[arguments, &["--dry-run=server"]].concat(), &input).expect(said);
        // Newer ones add the namespace to a deletion; of a patch kubectl does not say that it was dry.
        assert!(told.replace(" from default namespace", "").starts_with(said), "{arguments:?}: {told}");
    }
    let left = kubectl.ok(&[
        "get",
        "configmaps,deployments",
        "-l",
        "app=shop",
        "-o",
        "jsonpath={.items[*].metadata.name} {.items[*].data}",
    ]);
    assert_eq!(left, r#"a {"colour":"red"}"#);
    assert_eq!(kubectl.ok(&["get", "deployments", "-o", "name"]), "");
}

#[tokio::test]
async fn a_deletion_is_of_the_version_that_it_names() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let (_, first) = client.json("POST", CONFIG_MAPS, Some(&config_map("a"))).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (_, second) = client.json("PATCH", &path, Some(&json!({"data": {"colour": "blue"}}))).await;
    let version =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().expect("a version").to_string();
    let at = |version: &str| json!({"preconditions": {"resourceVersion": version, "uid": first["metadata"]["uid"]}});
    let (code, refused) = client.json("DELETE", &path, Some(&at(&version(&first)))).await;
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")), "{refused}");
    let why = format!(
        "Operation cannot be fulfilled on ConfigMap \"a\": the ResourceVersion in the precondition ({}) does not match the ResourceVersion in record ({}). The object might have been modified",
        version(&first),
        version(&second)
    );
    assert_eq!(refused["message"], why);
    assert_eq!(client.json("GET", &path, None).await.0, 200);
    assert_eq!(client.json("DELETE", &path, Some(&at(&version(&second)))).await.0, 200);
    assert_eq!(client.json("GET", &path, None).await.0, 404);
}

#[tokio::test]
async fn unknown_fields_are_ignored_warned_of_or_refused() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let unknown = r#"299 - "unknown field \"dat\"""#;
    let twice = r#"299 - "duplicate field \"metadata\"""#;
    for (n, (asked, code, warnings)) in [
        ("Ignore", 201, &[][..]),
        ("Warn", 201, &[unknown, twice]),
        // Who says nothing is warned.
        ("", 201, &[unknown, twice]),
        ("Strict", 400, &[]),
        ("Perhaps", 422, &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let body = format!(r#"{{"metadata":{{"name":"x"}},"dat":{{"a":"b"}},"metadata":{{"name":"n{n}"}}}}"#);
        for (method, path, content_type) in [
            ("POST", CONFIG_MAPS.to_string(), "application/json"),
            ("PUT", format!("{CONFIG_MAPS}/n{n}"), "application/json"),
            ("PATCH", format!("{CONFIG_MAPS}/n{n}"), "application/merge-patch+json"),
        ] {
            if method != "POST" && code != 201 {
                continue;
            }
            let path = format!("{path}?fieldValidation={asked}");
            let ask =
                Ask { method, path: &path, body: Some(body.clone().into()), content_type, ..Ask::default() };
            let response = client.send(ask).await;
            let expected = if method == "POST" { code } else { 200 };
            assert_eq!(response.status().as_u16(), expected, "{method} {asked}");
            let mut told: Vec<_> = response.headers().get_all("warning").iter().collect();
            told.sort_by_key(|told| told.to_str().is_ok_and(|told| told.contains("duplicate")));
            assert_eq!(told, warnings, "{method} {asked}");
            // Its body, before the connection is used again.
            let body =
                http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
            let answer: Value = serde_json::from_slice(&body).expect("JSON");
            match code {
                201 => assert_eq!(
                    (&answer["metadata"]["name"], &answer["dat"]),
                    (&json!(format!("n{n}")), &Value::Null)
                ),
                400 => {
                    let why = "strict decoding error: duplicate field \"metadata\", unknown field \"dat\"";
                    assert!(answer["message"].as_str().is_some_and(|found| found.ends_with(why)), "{answer}");
                }
                _ => {
                    let why = "fieldValidation: Unsupported value: \"Perhaps\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"";
                    assert!(answer["message"].as_str().is_some_and(|found| found.contains(why)), "{answer}");
                }
            }
        }
    }
}
