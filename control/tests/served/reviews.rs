//! Who somebody is and what they may, as kubectl and others ask it.

use crate::control::{Client, Control};
use crate::rbac::{GROUP, binding, role, user};
use serde_json::{Value, json};
use std::process::Command;

async fn ask(client: &mut Client, path: &str, spec: &Value) -> Value {
    let (code, answer) = client.json("POST", path, Some(&json!({"spec": spec}))).await;
    assert_eq!(code, 201, "{answer}");
    answer["status"].clone()
}

#[tokio::test]
async fn access_is_told_with_its_reason() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    admin.json("POST", &format!("{GROUP}/namespaces/default/roles"), Some(&role("reader", &rules))).await;
    let bound = binding("b", ("Role", "reader"), &user("bob"));
    admin.json("POST", &format!("{GROUP}/namespaces/default/rolebindings"), Some(&bound)).await;
    let mut bob = control.connect().await.act_as("bob", &[]);
    bob.until(404, "GET", "/api/v1/namespaces/default/pods/x", None).await;

    let reviews = "/apis/authorization.k8s.io/v1";
    let pods = json!({"namespace": "default", "verb": "get", "resource": "pods"});
    let told =
        ask(&mut bob, &format!("{reviews}/selfsubjectaccessreviews"), &json!({"resourceAttributes": pods}))
            .await;
    let reason = "RBAC: allowed by RoleBinding \"b/default\" of Role \"reader\" to User \"bob\"";
    assert_eq!(told, json!({"allowed": true, "reason": reason}));
    let of_bob = json!({"user": "bob", "resourceAttributes": pods});
    assert_eq!(
        ask(&mut admin, &format!("{reviews}/subjectaccessreviews"), &of_bob).await["allowed"],
        json!(true)
    );
    let local = format!("{reviews}/namespaces/default/localsubjectaccessreviews");
    assert_eq!(ask(&mut admin, &local, &of_bob).await["allowed"], json!(true));
    assert_eq!(
        bob.json("POST", &local, Some(&json!({"spec": of_bob}))).await.0,
        403,
        "it is not bob's to ask of others"
    );
    let paths = json!({"user": "bob", "nonResourceAttributes": {"verb": "get", "path": "/metrics"}});
    assert_eq!(
        ask(&mut admin, &format!("{reviews}/subjectaccessreviews"), &paths).await,
        json!({"allowed": false})
    );
    // A node, with the selector that its list would have.
    let list = |value: &str| {
        json!({
            "user": "system:node:a", "groups": ["system:nodes"],
            "resourceAttributes": {"verb": "list", "resource": "pods", "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": [value]}]}},
        })
    };
    assert_eq!(
        ask(&mut admin, &format!("{reviews}/subjectaccessreviews"), &list("a")).await["allowed"],
        json!(true)
    );
    assert_eq!(
        ask(&mut admin, &format!("{reviews}/subjectaccessreviews"), &list("b")).await["allowed"],
        json!(false)
    );

    for (path, spec, why) in [
        (
            "subjectaccessreviews",
            json!({"resourceAttributes": pods}),
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ),
        (
            "selfsubjectaccessreviews",
            json!({}),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        (
            "namespaces/kube-system/localsubjectaccessreviews",
            of_bob.clone(),
            "spec.resourceAttributes.namespace: Invalid value: \"default\": must match metadata.namespace",
        ),
    ] {
        let (code, answer) =
            admin.json("POST", &format!("{reviews}/{path}"), Some(&json!({"spec": spec}))).await;
        assert!(
            code == 422 && answer["message"].as_str().is_some_and(|text| text.contains(why)),
            "{code} {answer}"
        );
    }
    let rules =
        ask(&mut bob, &format!("{reviews}/selfsubjectrulesreviews"), &json!({"namespace": "default"})).await;
    let read = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
    assert!(rules["resourceRules"].as_array().is_some_and(|rules| rules.contains(&read)), "{rules}");
    assert_eq!(rules["incomplete"], json!(false));
    // Reviews are answered, and nothing else.
    assert_eq!(admin.json("GET", &format!("{reviews}/subjectaccessreviews"), None).await.0, 405);
}

#[tokio::test]
async fn kubectl_asks_who_it_is_what_it_may_and_for_tokens() {
    let control = Control::start(&[]);
    let kubectl = |arguments: &str| {
        let output = Command::new("kubectl")
            .env("KUBECONFIG", control.dir.join("admin.conf"))
            .env("HOME", &control.dir)
            .args(arguments.split(' '))
            .output()
            .expect("kubectl runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
    };
    let check = |arguments: &str, code: i32, wanted: &str| {
        let (found, output) = kubectl(arguments);
        assert!(found == code && output.contains(wanted), "kubectl {arguments}: {found}\n{output}");
        output
    };
    check("auth whoami -o yaml", 0, "username: admin");
    check("auth can-i create pods", 0, "yes");
    check("auth can-i create pods --as bob", 1, "no");
    check("auth can-i --list --as bob", 0, "selfsubjectaccessreviews.authorization.k8s.io");
    check("auth can-i get /metrics --as bob", 1, "no");
    check("get pods --as bob", 1, "User \"bob\" cannot list resource \"pods\"");
    check("create serviceaccount robot", 0, "created");
    check("create rolebinding views --clusterrole view --serviceaccount default:robot", 0, "created");
    let token = check("create token robot --duration 10m", 0, "ey");
    let mut robot = control.connect().await;
    robot.token = Some(token.trim().into());
    robot.until(200, "GET", "/api/v1/namespaces/default/pods", None).await;
    assert_eq!(robot.json("GET", "/api/v1/namespaces/default/secrets", None).await.0, 403);
    check("auth can-i list pods --as system:serviceaccount:default:robot", 0, "yes");
    check("auth can-i list secrets --as system:serviceaccount:default:robot", 1, "no");
    check(
        "create clusterrole r --verb get --resource pods --as bob",
        1,
        "cannot create resource \"clusterroles\"",
    );
    let file = control.dir.join("review.yaml");
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}},
    });
    std::fs::write(&file, review.to_string()).expect("written");
    check(&format!("create -f {} -o jsonpath={{.status.allowed}}", file.display()), 0, "true");
    check("explain serviceaccount.secrets", 0, "secrets");
    check("api-resources --api-group authorization.k8s.io", 0, "selfsubjectrulesreviews");
}
