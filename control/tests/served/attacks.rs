//! What was tried against the server, and must not work again.

use crate::control::{Ask, Control};
use serde_json::{Value, json};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

async fn bind(control: &Control, namespace: &str, role: &str, user: &str) {
    let mut admin = control.connect().await;
    let binding = json!({
        "metadata": {"name": format!("{user}-{role}")},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user}],
    });
    let path = match namespace {
        "" => format!("{RBAC}/clusterrolebindings"),
        namespace => format!("{RBAC}/namespaces/{namespace}/rolebindings"),
    };
    let (code, answer) = admin.json("POST", &path, Some(&binding)).await;
    assert_eq!(code, 201, "{answer}");
}

/// A cluster role of these rules.
async fn role(control: &Control, name: &str, rules: Value) {
    let role = json!({"metadata": {"name": name}, "rules": rules});
    let path = format!("{RBAC}/clusterroles");
    let (code, answer) = control.connect().await.json("POST", &path, Some(&role)).await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test]
async fn a_right_in_a_namespace_is_none_over_nodes() {
    let control = Control::start(&[]);
    bind(&control, "default", "cluster-admin", "mallory").await;
    let mut mallory = control.connect().await.act_as("mallory", &[]);
    mallory.until(200, "GET", "/api/v1/namespaces/default/pods", None).await;
    let node = json!({"metadata": {"name": "board"}});
    assert_eq!(control.connect().await.json("POST", "/api/v1/nodes", Some(&node)).await.0, 201);
    for path in [
        "/api/v1/namespaces/default/nodes/board/proxy/pods",
        "/api/v1/namespaces/default/nodes/board/proxy/",
        "/api/v1/namespaces/default/nodes/board",
    ] {
        let (code, answer) = mallory.json("GET", path, None).await;
        assert_eq!(
            (code, &answer["message"]),
            (404, &json!("the server could not find the requested resource")),
            "{path}"
        );
    }
    assert_eq!(mallory.json("GET", "/api/v1/nodes/board/proxy/pods", None).await.0, 403);
}

#[tokio::test]
async fn who_may_patch_may_not_create() {
    let control = Control::start(&[]);
    role(
        &control,
        "patcher",
        json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]}]),
    )
    .await;
    bind(&control, "default", "patcher", "bot").await;
    let mut bot = control.connect().await.act_as("bot", &[]);
    let path = "/api/v1/namespaces/default/configmaps/new";
    bot.until(404, "GET", path, None).await;
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}}).to_string();
    let apply = Ask {
        method: "PATCH",
        path: &format!("{path}?fieldManager=bot"),
        content_type: "application/apply-patch+yaml",
        body: Some(body.into()),
        ..Ask::default()
    };
    let (code, answer) = bot.ask(apply).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer.contains("cannot create resource"), "{answer}");
}

#[tokio::test]
async fn what_a_status_brings_along_is_checked() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let node = json!({"metadata": {"name": "board"}});
    assert_eq!(admin.json("POST", "/api/v1/nodes", Some(&node)).await.0, 201);
    let bad = json!({"metadata": {"name": "board", "labels": {"a": "not/a value"}}, "status": {"phase": "Running"}});
    let (code, answer) = admin.json("PUT", "/api/v1/nodes/board/status", Some(&bad)).await;
    assert_eq!((code, &answer["reason"]), (422, &json!("Invalid")), "{answer}");
    let good = json!({"metadata": {"name": "board", "labels": {"a": "b"}}});
    assert_eq!(admin.json("PUT", "/api/v1/nodes/board", Some(&good)).await.0, 200);
}

#[tokio::test]
async fn grants_are_bounded_and_are_what_they_say() {
    let control = Control::start(&[]);
    role(
        &control,
        "author",
        json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["create", "get"]},
               {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["bind"]}]),
    )
    .await;
    bind(&control, "", "author", "mallory").await;
    let mut mallory = control.connect().await.act_as("mallory", &[]);
    mallory.until(200, "GET", &format!("{RBAC}/clusterroles/author"), None).await;
    let many = |prefix: &str| -> Vec<String> { (0..100).map(|n| format!("{prefix}{n}")).collect() };
    let huge = json!({"metadata": {"name": "huge"}, "rules": [{
        "apiGroups": many("g"), "resources": many("r"), "verbs": many("v"), "resourceNames": many("n"),
    }]});
    let (code, answer) = mallory.json("POST", &format!("{RBAC}/namespaces/default/roles"), Some(&huge)).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer["message"].as_str().is_some_and(|m| m.contains("100000000 combinations")), "{answer}");
    // `bind` on roles gives none of the cluster roles that lie where a role without a namespace would.
    let disguised = json!({
        "metadata": {"name": "disguised"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "mallory"}],
    });
    let (code, answer) = mallory.json("POST", &format!("{RBAC}/clusterrolebindings"), Some(&disguised)).await;
    assert!(code == 422 || code == 404 || code == 403, "{code} {answer}");
    assert_eq!(mallory.json("GET", "/api/v1/secrets", None).await.0, 403);
}

#[tokio::test]
async fn a_new_pod_has_no_ephemeral_containers() {
    let control = Control::start(&[]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "containers": [{"name": "a", "image": "i"}],
        "ephemeralContainers": [{"name": "../e?", "image": "i"}],
    }});
    let mut admin = control.connect().await;
    let (code, answer) = admin.json("POST", "/api/v1/namespaces/default/pods", Some(&pod)).await;
    assert_eq!(code, 422, "{answer}");
    let why = "spec.ephemeralContainers: Forbidden: cannot be set on create";
    assert!(answer["message"].as_str().is_some_and(|message| message.contains(why)), "{answer}");
}

#[tokio::test]
async fn a_long_key_before_many_values_is_read_in_linear_time() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let body = format!("{{\"{}\":[{}0]}}", "k".repeat(2_800_000), "0,".repeat(90_000));
    let ask = Ask {
        method: "POST",
        path: "/api/v1/namespaces/default/configmaps",
        content_type: "application/json",
        body: Some(body.into()),
        ..Ask::default()
    };
    // Quadratic, this took minutes, and the request's own deadline could not end it.
    let (code, answer) = admin.ask(ask).await;
    assert!(code == 400 || code == 422, "{code} {answer}");
}

#[test]
fn connections_beyond_the_limit_of_files_end_nobody() {
    let control = Control::start_limited(256);
    let idle: Vec<std::net::TcpStream> =
        (0..400).map_while(|_| std::net::TcpStream::connect(&control.address).ok()).collect();
    assert!(idle.len() > 256, "the kernel queues what the server does not take: {}", idle.len());
    drop(idle);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ready = async {
        loop {
            // Refused, as long as those that left are still counted.
            let Ok(mut client) = control.try_connect(None).await else { continue };
            let ask = Ask { method: "GET", path: "/readyz", ..Ask::default() };
            if let Ok(answer) = client.try_send(ask).await {
                return answer.status().as_u16();
            }
        }
    };
    let within = std::time::Duration::from_secs(60);
    let code =
        runtime.block_on(async { tokio::time::timeout(within, ready).await.expect("it serves again") });
    assert_eq!(code, 200);
}

/// Monitoring reads what nodes say of themselves. Upstream lets it run what it likes in their pods: an upgrade is a GET.
#[tokio::test]
async fn who_looks_at_nodes_does_not_enter_their_pods() {
    let control = Control::start(&[]);
    let all = json!(["get", "update", "patch", "delete"]);
    role(&control, "looks", json!([{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": all}])).await;
    role(
        &control,
        "enters",
        json!([{"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get", "create"]}]),
    )
    .await;
    bind(&control, "", "looks", "mallory").await;
    bind(&control, "", "enters", "operator").await;
    let node = json!({"metadata": {"name": "board"}});
    assert_eq!(control.connect().await.json("POST", "/api/v1/nodes", Some(&node)).await.0, 201);
    let proxy = "/api/v1/nodes/board/proxy";
    let mut mallory = control.connect().await.act_as("mallory", &[]);
    let mut operator = control.connect().await.act_as("operator", &[]);
    // Allowed: then the board is dialled, which is not there.
    for path in ["healthz", "pods", "metrics", "containerLogs/default/p/c"] {
        let answer = mallory.until(500, "GET", &format!("{proxy}/{path}"), None).await;
        assert!(answer["message"].as_str().is_some_and(|text| text.contains("dialing backend")), "{answer}");
    }
    operator.until(500, "GET", &format!("{proxy}/exec/default/p/c?command=id"), None).await;
    let entering = [
        "/exec/default/p/c?command=id&input=1&output=1&tty=1",
        "/attach/default/p/c",
        "/portForward/default/p",
        "/run/default/p/c",
        "/cri/exec/token",
        "/coracle/v1/connect/default/p/80",
        "//exec/default/p/c",
        "/%65xec/default/p/c",
        "/%2Fexec/default/p/c",
        "/./exec/default/p/c",
        "/pods/../exec/default/p/c",
        "/pods/%2e%2e/exec/default/p/c",
        "/exec%zz/default/p/c",
    ];
    for path in entering {
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "POST"] {
            let (code, answer) = mallory.json(method, &format!("{proxy}{path}"), None).await;
            // The path that is no text is refused before anybody is asked.
            let expected = if path.contains("%zz") { 404 } else { 403 };
            assert_eq!(code, expected, "{method} {path}: {answer}");
            if method == "GET" && expected == 403 {
                let message = answer["message"].as_str().unwrap_or_default();
                assert!(message.contains("cannot create resource \"nodes/proxy\""), "{path}: {message}");
            }
        }
    }
    // By whichever path: nothing that looks on is an upgrade.
    for protocol in ["websocket", "SPDY/3.1", "tcp"] {
        let mut upgrading = control.connect().await.act_as("mallory", &[]);
        upgrading.headers.push(("connection", "Upgrade".into()));
        upgrading.headers.push(("upgrade", protocol.into()));
        for path in ["/healthz", "/exec&x/default/p/c", "/exec=/default/p/c", "/"] {
            let (code, answer) = upgrading.json("GET", &format!("{proxy}{path}"), None).await;
            assert_eq!(code, 403, "{protocol} {path}: {answer}");
        }
    }
}
