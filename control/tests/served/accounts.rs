//! Service accounts and their tokens.

use crate::control::{Client, Control};
use crate::endpoints::until;
use crate::kubectl::Kubectl;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const WHO: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn request(spec: &Value) -> Value {
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
}

async fn token(client: &mut Client, account: &str, spec: &Value) -> String {
    let (code, made) =
        client.json("POST", &format!("{ACCOUNTS}/{account}/token"), Some(&request(spec))).await;
    assert_eq!(code, 201, "{made}");
    made["status"]["token"].as_str().expect("a token").to_string()
}

/// The code of the answer to who somebody is, and what it says.
async fn who(control: &Control, token: &str) -> (u16, Value) {
    let mut client = control.connect().await;
    client.token = Some(token.into());
    let (code, answer) = client.json("POST", WHO, Some(&json!({}))).await;
    (code, answer["status"]["userInfo"].clone())
}

fn pod(name: &str, account: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": "a",
            "serviceAccountName": account,
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}],
        },
    })
}

#[tokio::test]
async fn a_token_is_worth_what_it_is_bound_to() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let account = json!({"metadata": {"name": "robot"}});
    let robot = admin.json("POST", ACCOUNTS, Some(&account)).await.1;
    let free = token(&mut admin, "robot", &json!({})).await;
    let (code, info) = who(&control, &free).await;
    assert_eq!((code, &info["username"]), (201, &json!("system:serviceaccount:default:robot")), "{info}");
    assert_eq!(info["uid"], robot["metadata"]["uid"]);
    let groups = ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"];
    assert_eq!(info["groups"], json!(groups));

    let made = admin.json("POST", PODS, Some(&pod("p", "robot"))).await.1;
    let uid = &made["metadata"]["uid"];
    let bound = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}, "expirationSeconds": 3607});
    let of_pod = token(&mut admin, "robot", &bound).await;
    let (code, info) = who(&control, &of_pod).await;
    assert_eq!((code, &info["extra"]["authentication.kubernetes.io/pod-uid"]), (201, &json!([uid])));
    let secret = json!({"metadata": {"name": "s"}});
    admin.json("POST", "/api/v1/namespaces/default/secrets", Some(&secret)).await;
    let of_secret = token(
        &mut admin,
        "robot",
        &json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "s"}}),
    )
    .await;
    assert_eq!(who(&control, &of_secret).await.0, 201);

    // For somebody else it is nobody's here, and the other way round.
    let elsewhere = token(&mut admin, "robot", &json!({"audiences": ["vault"]})).await;
    assert_eq!(who(&control, &elsewhere).await.0, 401);
    let review = json!({"spec": {"token": elsewhere, "audiences": ["vault", "other"]}});
    let told = admin.json("POST", "/apis/authentication.k8s.io/v1/tokenreviews", Some(&review)).await.1;
    assert_eq!(told["status"]["authenticated"], json!(true));
    assert_eq!(told["status"]["audiences"], json!(["vault"]));
    let review = json!({"spec": {"token": free, "audiences": ["vault"]}});
    let told = admin.json("POST", "/apis/authentication.k8s.io/v1/tokenreviews", Some(&review)).await.1;
    assert_eq!(told["status"].get("authenticated"), None, "{told}");

    // What a token is bound to goes, and the token with it; one of the same name is another one.
    assert_eq!(admin.json("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), None).await.0, 200);
    assert_eq!(admin.json("POST", PODS, Some(&pod("p", "robot"))).await.0, 201);
    assert_eq!(who(&control, &of_pod).await.0, 401);
    admin.json("DELETE", "/api/v1/namespaces/default/secrets/s", None).await;
    assert_eq!(who(&control, &of_secret).await.0, 401);
    assert_eq!(who(&control, &free).await.0, 201);
    admin.json("DELETE", &format!("{ACCOUNTS}/robot"), None).await;
    admin.json("POST", ACCOUNTS, Some(&account)).await;
    assert_eq!(who(&control, &free).await.0, 401);
}

#[tokio::test]
async fn a_token_is_not_made_of_what_does_not_fit() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    admin.json("POST", ACCOUNTS, Some(&json!({"metadata": {"name": "robot"}}))).await;
    admin.json("POST", PODS, Some(&pod("p", "robot"))).await;
    let pod_ref = |name: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}});
    for (account, spec, code, message) in [
        ("none", json!({}), 404, "serviceaccounts \"none\" not found"),
        (
            "robot",
            json!({"expirationSeconds": 60}),
            422,
            "TokenRequest.authentication.k8s.io \"robot\" is invalid: spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes",
        ),
        ("robot", pod_ref("q", ""), 404, "pods \"q\" not found"),
        (
            "default",
            pod_ref("p", ""),
            400,
            "cannot bind token for serviceaccount \"default\" to pod running with serviceaccount \"robot\"",
        ),
        (
            "robot",
            json!({"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "x"}}),
            400,
            "cannot bind token to object of type v1, Kind=ConfigMap",
        ),
    ] {
        let (found, answer) =
            admin.json("POST", &format!("{ACCOUNTS}/{account}/token"), Some(&request(&spec))).await;
        assert_eq!((found, &answer["message"]), (code, &json!(message)));
    }
    let (code, answer) =
        admin.json("POST", &format!("{ACCOUNTS}/robot/token"), Some(&request(&pod_ref("p", "u")))).await;
    assert_eq!(code, 409, "{answer}");
    for wrong in ["a.b.c", "eyJhbGciOiJub25lIn0.e30.", "x"] {
        assert_eq!(who(&control, wrong).await.0, 401, "{wrong}");
    }
}

#[tokio::test]
async fn a_node_gets_tokens_of_its_own_pods_and_no_others() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    admin.json("POST", ACCOUNTS, Some(&json!({"metadata": {"name": "robot"}}))).await;
    let made = admin.json("POST", PODS, Some(&pod("p", "robot"))).await.1;
    let uid = made["metadata"]["uid"].as_str().expect("a uid");
    let mut other = pod("q", "default");
    other["spec"]["nodeName"] = "b".into();
    let other = admin.json("POST", PODS, Some(&other)).await.1;
    let other_uid = other["metadata"]["uid"].as_str().expect("a uid");
    let mut a = crate::who::known(&control, "system:node:a", "system:nodes").await;
    let bound = |name: &str, uid: &str, audiences: &[&str]| {
        request(
            &json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}, "audiences": audiences}),
        )
    };
    let path = format!("{ACCOUNTS}/robot/token");
    let made = a.until(201, "POST", &path, Some(&bound("p", uid, &["vault"]))).await;
    assert!(made["status"]["token"].is_string());
    assert_eq!(
        a.json("POST", &path, Some(&bound("p", uid, &[]))).await.0,
        201,
        "the API's own, which every pod has"
    );
    for (account, body, why) in [
        ("robot", request(&json!({})), "node requested token not bound to a pod"),
        ("robot", bound("p", "", &[]), "node requested token with a pod binding without a uid"),
        ("robot", bound("p", "u", &[]), "does not match the UID in record"),
        (
            "robot",
            bound("q", other_uid, &[]),
            "node requested token bound to a pod scheduled on a different node",
        ),
        (
            "robot",
            bound("p", uid, &["else"]),
            "audience \"else\" not found in pod spec volume, system:node:a is not authorized",
        ),
        ("robot", bound("p", uid, &["vault", "else"]), "node may only request 0 or 1 audiences"),
        ("default", bound("q", other_uid, &[]), "no relationship found between node 'a' and this object"),
    ] {
        let (code, answer) = a.json("POST", &format!("{ACCOUNTS}/{account}/token"), Some(&body)).await;
        assert!(
            code == 403 && answer["message"].as_str().is_some_and(|text| text.contains(why)),
            "{why}: {code} {answer}"
        );
    }
}

#[tokio::test]
async fn anybody_in_the_cluster_may_check_tokens_by_the_published_key() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let mut robot = control.connect().await;
    robot.token = Some(token(&mut admin, "default", &json!({})).await);
    let (code, found) = robot.json("GET", "/.well-known/openid-configuration", None).await;
    assert_eq!((code, &found["issuer"]), (200, &json!("https://kubernetes.default.svc.cluster.local")));
    let (code, keys) = robot.json("GET", "/openid/v1/jwks", None).await;
    assert_eq!((code, &keys["keys"][0]["alg"]), (200, &json!("ES256")));
    assert_eq!(robot.json("GET", "/api/v1/namespaces/default/secrets", None).await.0, 403);
    let mut nobody = control.try_connect(None).await.expect("connects");
    assert_eq!(nobody.json("GET", "/openid/v1/jwks", None).await.0, 403);
}

#[tokio::test]
async fn every_namespace_has_its_account_and_the_authority_whatever_somebody_does() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let namespace = json!({"metadata": {"name": "n"}});
    assert_eq!(admin.json("POST", "/api/v1/namespaces", Some(&namespace)).await.0, 201);
    let account = "/api/v1/namespaces/n/serviceaccounts/default";
    let authority = "/api/v1/namespaces/n/configmaps/kube-root-ca.crt";
    let first = admin.json("GET", account, None).await.1;
    let data = admin.json("GET", authority, None).await.1["data"].clone();
    assert_eq!(data["ca.crt"], std::fs::read_to_string(control.ca()).expect("the authority").as_str());
    assert_eq!(admin.json("DELETE", account, None).await.0, 200);
    let again = admin.until(200, "GET", account, None).await;
    assert_ne!(again["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(admin.json("DELETE", authority, None).await.0, 200);
    admin.until(200, "GET", authority, None).await;
    let forged = json!({"data": {"ca.crt": "mine", "other": "x"}});
    assert_eq!(admin.json("PATCH", authority, Some(&forged)).await.0, 200);
    while admin.json("GET", authority, None).await.1["data"] != data {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn pods_run_as_the_account_that_they_name_with_what_it_brings() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let account = json!({"metadata": {"name": "robot"}, "imagePullSecrets": [{"name": "pull"}], "automountServiceAccountToken": false});
    assert_eq!(admin.json("POST", ACCOUNTS, Some(&account)).await.0, 201);
    let container = json!([{"name": "c", "image": "i"}]);
    let mut make = async |name: &str, spec: Value| {
        let mut spec = spec;
        spec["containers"] = container.clone();
        admin.json("POST", PODS, Some(&json!({"metadata": {"name": name}, "spec": spec}))).await
    };
    let (_, made) = make("a", json!({})).await;
    assert_eq!(made["spec"]["serviceAccountName"], json!("default"));
    let volume = &made["spec"]["volumes"][0];
    assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], json!(3607));
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["name"], volume["name"]);
    let (_, made) = make("b", json!({"serviceAccountName": "robot"})).await;
    assert_eq!(made["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
    assert_eq!(made["spec"].get("volumes"), None, "the account mounts nothing");
    let (_, made) =
        make("c", json!({"serviceAccountName": "robot", "automountServiceAccountToken": true})).await;
    assert!(made["spec"]["volumes"][0]["projected"].is_object(), "the pod has the last word");
    let (code, refused) = make("d", json!({"serviceAccountName": "none"})).await;
    let why = "pods \"d\" is forbidden: error looking up service account default/none: serviceaccount \"none\" not found";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
}

/// A secret for a token of an account, and what it holds when it is filled.
async fn filled(control: &Control, name: &str, account: &str) -> Value {
    let mut admin = control.connect().await;
    let secret = json!({
        "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
        "type": "kubernetes.io/service-account-token",
    });
    let (code, made) = admin.json("POST", SECRETS, Some(&secret)).await;
    assert_eq!(code, 201, "{made}");
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let found = admin.json("GET", &format!("{SECRETS}/{name}"), None).await.1;
        if found["data"]["token"].is_string() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{found}");
        tokio::task::yield_now().await;
    }
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn held(secret: &Value, key: &str) -> String {
    use base64::Engine;
    let encoded = secret["data"][key].as_str().expect("it is there");
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).expect("base64");
    String::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn a_secret_gets_a_token_that_lives_as_long_as_it_and_its_account() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let robot = admin.json("POST", ACCOUNTS, Some(&json!({"metadata": {"name": "robot"}}))).await.1;
    let secret = filled(&control, "robot-token", "robot").await;
    assert_eq!(
        secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"],
        robot["metadata"]["uid"]
    );
    assert_eq!(held(&secret, "namespace"), "default");
    assert_eq!(held(&secret, "ca.crt"), std::fs::read_to_string(control.ca()).expect("the authority"));
    let token = held(&secret, "token");
    let (code, info) = who(&control, &token).await;
    assert_eq!((code, &info["username"]), (201, &json!("system:serviceaccount:default:robot")), "{info}");
    assert_eq!(info["uid"], robot["metadata"]["uid"]);
    let groups = ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"];
    assert_eq!(info["groups"], json!(groups));
    // kubectl shows it as the secret of this type.
    let described = Kubectl(&control).ok(&["describe", "secret", "robot-token"]);
    assert!(described.contains("kubernetes.io/service-account-token") && described.contains("ca.crt:"));

    // It is for the API, and for nobody else.
    let review = |token: &str, audiences: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": audiences}});
    const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
    let asked = admin.json("POST", REVIEWS, Some(&review(&token, json!(["vault"])))).await.1;
    assert_ne!(asked["status"]["authenticated"], json!(true), "{asked}");
    let asked = admin.json("POST", REVIEWS, Some(&review(&token, json!([])))).await.1;
    assert_eq!(asked["status"]["authenticated"], json!(true), "{asked}");

    // Copied into another secret it is nothing, and neither is one that the secret holds no more.
    let path = format!("{SECRETS}/robot-token");
    let label =
        |value: Value| json!({"metadata": {"labels": {"kubernetes.io/legacy-token-invalid-since": value}}});
    assert_eq!(admin.json("PATCH", &path, Some(&label(json!("2026-01-01")))).await.0, 200);
    assert_eq!(who(&control, &token).await.0, 401, "taken back");
    assert_eq!(admin.json("PATCH", &path, Some(&label(Value::Null))).await.0, 200);
    assert_eq!(who(&control, &token).await.0, 201);
    let other = json!({"data": {"token": "AAAA"}});
    assert_eq!(admin.json("PATCH", &path, Some(&other)).await.0, 200);
    assert_eq!(who(&control, &token).await.0, 401, "the secret holds another");
    assert_eq!(admin.json("PATCH", &path, Some(&json!({"data": {"token": null}}))).await.0, 200);
    until(&Kubectl(&control), &["get", "secret", "robot-token", "-o", "jsonpath={.data.token}"], |found| {
        found.len() > 4
    });
    let again = admin.json("GET", &path, None).await.1;
    let token = held(&again, "token");
    assert_eq!(who(&control, &token).await.0, 201, "filled again");

    // The secret goes, and another of its name is not it.
    assert_eq!(admin.json("DELETE", &path, None).await.0, 200);
    assert_eq!(who(&control, &token).await.0, 401, "the secret is gone");
    let second = filled(&control, "robot-token", "robot").await;
    let token = held(&second, "token");
    assert_eq!(who(&control, &token).await.0, 201);

    // The account goes, and its secrets with it; one of the same name is another.
    assert_eq!(admin.json("DELETE", &format!("{ACCOUNTS}/robot"), None).await.0, 200);
    assert_eq!(who(&control, &token).await.0, 401, "the account is gone");
    admin.until(404, "GET", &path, None).await;
    assert_eq!(admin.json("POST", ACCOUNTS, Some(&json!({"metadata": {"name": "robot"}}))).await.0, 201);
    let mut stolen = second.clone();
    for key in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        stolen["metadata"].as_object_mut().expect("metadata").remove(key);
    }
    assert_eq!(admin.json("POST", SECRETS, Some(&stolen)).await.0, 201);
    assert_eq!(who(&control, &token).await.0, 401, "of an account that was");
    admin.until(404, "GET", &path, None).await;
}

#[tokio::test]
async fn a_secret_of_nobody_is_deleted_and_one_without_a_name_refused() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let secret = |annotations: Value| json!({"metadata": {"name": "t", "annotations": annotations}, "type": "kubernetes.io/service-account-token"});
    let (code, answer) = admin.json("POST", SECRETS, Some(&secret(json!({})))).await;
    assert_eq!(code, 422, "{answer}");
    assert_eq!(
        answer["message"],
        "Secret \"t\" is invalid: metadata.annotations[kubernetes.io/service-account.name]: Required value"
    );
    let of_nobody = secret(json!({"kubernetes.io/service-account.name": "nobody"}));
    assert_eq!(admin.json("POST", SECRETS, Some(&of_nobody)).await.0, 201);
    admin.until(404, "GET", &format!("{SECRETS}/t"), None).await;
    let another = secret(json!({
        "kubernetes.io/service-account.name": "default",
        "kubernetes.io/service-account.uid": "another",
    }));
    assert_eq!(admin.json("POST", SECRETS, Some(&another)).await.0, 201);
    admin.until(404, "GET", &format!("{SECRETS}/t"), None).await;
}
