//! Roles and bindings: what they give, what they do not, and who may write them.

use crate::control::{Ask, Control};
use bytes::Bytes;
use serde_json::{Value, json};

pub const GROUP: &str = "/apis/rbac.authorization.k8s.io/v1";

pub fn role(name: &str, rules: &Value) -> Value {
    json!({"metadata": {"name": name}, "rules": rules})
}

pub fn binding(name: &str, role: (&str, &str), subject: &Value) -> Value {
    json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1},
        "subjects": [subject],
    })
}

pub fn user(name: &str) -> Value {
    json!({"kind": "User", "name": name})
}

const READ_PODS: &str = r#"[{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]"#;

fn read_pods() -> Value {
    serde_json::from_str(READ_PODS).expect("rules")
}

#[tokio::test]
async fn a_binding_gives_what_its_role_says_where_it_says_and_can_be_taken_back() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let mut bob = control.connect().await.act_as("bob", &[]);
    let pods = "/api/v1/namespaces/default/pods";
    let (code, refused) = bob.json("GET", pods, None).await;
    let why = "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));

    let roles = format!("{GROUP}/namespaces/default/roles");
    let bindings = format!("{GROUP}/namespaces/default/rolebindings");
    let missing = binding("b", ("Role", "reader"), &user("bob"));
    assert_eq!(
        admin.json("POST", &bindings, Some(&missing)).await.0,
        201,
        "an administrator may bind anything"
    );
    let why = format!("{why}: RBAC: role.rbac.authorization.k8s.io \"reader\" not found");
    let mut told = bob.json("GET", pods, None).await.1;
    while told["message"] != json!(why) {
        assert_eq!(told["code"], 403, "{told}");
        told = bob.json("GET", pods, None).await.1;
    }
    assert_eq!(admin.json("POST", &roles, Some(&role("reader", &read_pods()))).await.0, 201);
    bob.until(200, "GET", pods, None).await;
    assert_eq!(bob.json("GET", "/api/v1/namespaces/kube-system/pods", None).await.0, 403);
    assert_eq!(bob.json("GET", "/api/v1/pods", None).await.0, 403);
    assert_eq!(bob.json("GET", &format!("{pods}/x"), None).await.0, 404);
    assert_eq!(bob.json("DELETE", &format!("{pods}/x"), None).await.0, 403);
    assert_eq!(bob.json("GET", &format!("{pods}/x/log"), None).await.0, 403);
    assert_eq!(bob.json("GET", &format!("{pods}?watch=1&timeoutSeconds=1"), None).await.0, 403);

    let everywhere = binding("all", ("ClusterRole", "view"), &json!({"kind": "Group", "name": "people"}));
    assert_eq!(admin.json("POST", &format!("{GROUP}/clusterrolebindings"), Some(&everywhere)).await.0, 201);
    let mut alice = control.connect().await.act_as("alice", &["people"]);
    alice.until(200, "GET", "/api/v1/pods", None).await;
    assert_eq!(alice.json("GET", "/apis/apps/v1/deployments", None).await.0, 200, "view is aggregated");
    assert_eq!(alice.json("GET", "/api/v1/secrets", None).await.0, 403);
    assert_eq!(alice.json("GET", "/api/v1/nodes", None).await.0, 403);
    assert_eq!(alice.json("GET", "/api/v1/namespaces/default", None).await.0, 200);

    assert_eq!(admin.json("DELETE", &format!("{bindings}/b"), None).await.0, 200);
    bob.until(403, "GET", pods, None).await;
}

#[tokio::test]
async fn nobody_gives_what_they_do_not_have() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let author = role(
        "author",
        &json!([
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["create", "update", "patch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        ]),
    );
    let (roles, bindings) = (format!("{GROUP}/clusterroles"), format!("{GROUP}/clusterrolebindings"));
    assert_eq!(admin.json("POST", &roles, Some(&author)).await.0, 201);
    let bound = binding("author", ("ClusterRole", "author"), &user("mallory"));
    assert_eq!(admin.json("POST", &bindings, Some(&bound)).await.0, 201);
    let mut mallory = control.connect().await.act_as("mallory", &[]);
    let little = role("little", &json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]));
    mallory.until(201, "POST", &roles, Some(&little)).await;
    let much =
        role("much", &json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}]));
    let (code, refused) = mallory.json("POST", &roles, Some(&much)).await;
    let why = "clusterroles.rbac.authorization.k8s.io \"much\" is forbidden: user \"mallory\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
    let more = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    assert_eq!(mallory.json("PATCH", &format!("{roles}/little"), Some(&more)).await.0, 403);
    let mut gathers = role("gathers", &Value::Null);
    gathers["aggregationRule"] = json!({"clusterRoleSelectors": [{}]});
    let (code, refused) = mallory.json("POST", &roles, Some(&gathers)).await;
    let why = "clusterroles.rbac.authorization.k8s.io \"gathers\" is forbidden: must have cluster-admin privileges to use the aggregationRule";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
    let own = binding("own", ("ClusterRole", "cluster-admin"), &user("mallory"));
    let (code, refused) = mallory.json("POST", &bindings, Some(&own)).await;
    assert_eq!(code, 403, "{refused}");
    let local = format!("{GROUP}/namespaces/default/rolebindings");
    assert_eq!(mallory.json("POST", &local, Some(&own)).await.0, 403);
    let fine = binding("fine", ("ClusterRole", "little"), &user("eve"));
    assert_eq!(mallory.json("POST", &bindings, Some(&fine)).await.0, 201);
    // Others are bound to a role that somebody else has given more meanwhile: it is theirs to say.
    let taken = json!({"subjects": [user("mallory")]});
    assert_eq!(mallory.json("PATCH", &format!("{bindings}/cluster-admin"), Some(&taken)).await.0, 403);

    let binder = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"]}]);
    assert_eq!(admin.json("POST", &roles, Some(&role("binder", &binder))).await.0, 201);
    let bound = binding("binder", ("ClusterRole", "binder"), &user("mallory"));
    assert_eq!(admin.json("POST", &bindings, Some(&bound)).await.0, 201);
    mallory
        .until(201, "POST", &bindings, Some(&binding("viewer", ("ClusterRole", "view"), &user("eve"))))
        .await;
    assert_eq!(
        mallory
            .json("POST", &bindings, Some(&binding("editor", ("ClusterRole", "edit"), &user("eve"))))
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn aggregated_roles_follow_and_the_cluster_s_own_come_back() {
    let data = tempfile::tempdir().expect("a directory");
    let control = Control::start_in(data.path(), &[]);
    let mut admin = control.connect().await;
    let roles = format!("{GROUP}/clusterroles");
    let mut widgets =
        role("widgets", &json!([{"apiGroups": ["x"], "resources": ["widgets"], "verbs": ["get"]}]));
    widgets["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    assert_eq!(admin.json("POST", &roles, Some(&widgets)).await.0, 201);
    // view, then edit that gathers view, then admin that gathers edit.
    let has =
        |role: &Value| role["rules"].as_array().is_some_and(|rules| rules.contains(&widgets["rules"][0]));
    while !has(&admin.json("GET", &format!("{roles}/admin"), None).await.1) {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        admin.json("DELETE", &format!("{GROUP}/clusterrolebindings/system:discovery"), None).await.0,
        200
    );
    let own = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": []});
    assert_eq!(admin.json("PATCH", &format!("{roles}/system:basic-user"), Some(&own)).await.0, 200);
    let mut bob = control.connect().await.act_as("bob", &[]);
    bob.until(403, "GET", "/apis", None).await;
    drop(control);
    let control = Control::start_in(data.path(), &[]);
    let mut bob = control.connect().await.act_as("bob", &[]);
    assert_eq!(bob.json("GET", "/apis", None).await.0, 200, "discovery is back before anything is served");
    let mut admin = control.connect().await;
    let kept = admin.json("GET", &format!("{roles}/system:basic-user"), None).await.1;
    assert_eq!(kept["rules"], json!([]), "who wants another one has it");
}

#[tokio::test]
async fn only_who_may_acts_as_somebody_else() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let people =
        [("impersonate-user", "bob".to_string()), ("impersonate-group", "system:masters".to_string())];
    let mut bob = control.connect().await;
    bob.headers = people.to_vec();
    assert_eq!(bob.json("GET", "/api/v1/secrets", None).await.0, 200, "a group is acted as, too");
    bob.headers = vec![("impersonate-group", "system:masters".into())];
    assert_eq!(bob.json("GET", "/api/v1/secrets", None).await.0, 500, "groups without a user");

    let rules = json!([
        {"apiGroups": [""], "resources": ["users"], "resourceNames": ["bob"], "verbs": ["impersonate"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "resourceNames": ["a"], "verbs": ["impersonate"]},
    ]);
    assert_eq!(
        admin.json("POST", &format!("{GROUP}/clusterroles"), Some(&role("acts", &rules))).await.0,
        201
    );
    // Nobody acts as one who acts as another: the certificate or token says who may.
    let bound = binding("acts", ("ClusterRole", "acts"), &json!({"kind": "Group", "name": "deputies"}));
    assert_eq!(admin.json("POST", &format!("{GROUP}/clusterrolebindings"), Some(&bound)).await.0, 201);
    let mut deputy = crate::who::known(&control, "carol", "deputies").await;
    deputy.headers = vec![("impersonate-user", "bob".into()), ("impersonate-extra-scopes", "a".into())];
    deputy.until(200, "GET", "/apis", None).await;
    deputy.headers = vec![("impersonate-user", "bob".into()), ("impersonate-extra-scopes", "b".into())];
    let (code, refused) = deputy.json("GET", "/apis", None).await;
    let why = "userextras.authentication.k8s.io \"b\" is forbidden: User \"carol\" cannot impersonate resource \"userextras/scopes\" in API group \"authentication.k8s.io\" at the cluster scope";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
    deputy.headers = people.to_vec();
    let (code, refused) = deputy.json("GET", "/apis", None).await;
    let why = "groups \"system:masters\" is forbidden: User \"carol\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
    deputy.headers = vec![("impersonate-user", "system:serviceaccount:default:default".into())];
    let (code, refused) = deputy.json("GET", "/apis", None).await;
    let why = "serviceaccounts \"default\" is forbidden: User \"carol\" cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"default\"";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
}

#[tokio::test]
async fn an_apply_makes_nothing_for_whoever_may_only_change() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "patch"]}]);
    admin.json("POST", &format!("{GROUP}/clusterroles"), Some(&role("patches", &rules))).await;
    let bound = binding("patches", ("ClusterRole", "patches"), &user("bob"));
    admin.json("POST", &format!("{GROUP}/clusterrolebindings"), Some(&bound)).await;
    let config_maps = "/api/v1/namespaces/default/configmaps";
    let there = json!({"metadata": {"name": "there"}});
    assert_eq!(admin.json("POST", config_maps, Some(&there)).await.0, 201);
    let mut bob = control.connect().await.act_as("bob", &[]);
    bob.until(200, "GET", &format!("{config_maps}/there"), None).await;
    for (name, code, why) in [
        ("there", 200, ""),
        (
            "new",
            403,
            "configmaps \\\"new\\\" is forbidden: User \\\"bob\\\" cannot create resource \\\"configmaps\\\"",
        ),
    ] {
        let config =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}});
        let ask = Ask {
            method: "PATCH",
            path: &format!("{config_maps}/{name}?fieldManager=x"),
            body: Some(Bytes::from(config.to_string())),
            content_type: "application/apply-patch+yaml",
            ..Ask::default()
        };
        let (found, answer) = bob.ask(ask).await;
        assert!(found == code && answer.contains(why), "{name}: {found} {answer}");
    }
}
