//! How boards come in, and how those who are none do not.

use crate::control::{Ask, Client, Control, binary};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rcgen::{
    CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::process::Command;

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// `ID.SECRET` of a new token.
fn token(control: &Control, arguments: &[&str]) -> String {
    let output = Command::new(binary())
        .args(["token", "create", "--data-dir"])
        .arg(&control.dir)
        .args(arguments)
        .output()
        .expect("runs");
    let line = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "join", url, "--token", token, "--ca-hash", hash] = words[..] else { panic!("{line}") };
    assert!(line.starts_with("coracle join https://") && line.ends_with('\n'), "{line}");
    assert!(
        url.starts_with("https://127.0.0.1:") && hash.starts_with("sha256:") && hash.len() == 71,
        "{line}"
    );
    token.to_string()
}

fn csr(key: &KeyPair, user: &str, group: &str, signer: &str) -> Value {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    let request = params.serialize_request(key).expect("a request").pem().expect("PEM");
    json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "csr-"},
        "spec": {
            "request": STANDARD.encode(request),
            "signerName": signer,
            "usages": ["digital signature", "client auth"],
        },
    })
}

async fn ask(control: &Control, token: &str, key: &KeyPair, node: &str) -> (u16, Value) {
    let mut client = control.try_connect(None).await.expect("connects");
    client.token = Some(token.into());
    let csr = csr(key, &format!("system:node:{node}"), "system:nodes", KUBELET_CLIENT);
    client.json("POST", CSRS, Some(&csr)).await
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

/// The certificate of an answer.
fn certificate(answer: &Value) -> Option<CertificateDer<'static>> {
    let text = STANDARD.decode(answer.pointer("/status/certificate")?.as_str()?).expect("base64");
    Some(CertificateDer::from_pem_slice(&text).expect("a certificate"))
}

fn reason(answer: &Value) -> &str {
    answer.pointer("/status/conditions/0/reason").and_then(Value::as_str).unwrap_or_default()
}

async fn as_node(control: &Control, certificate: CertificateDer<'static>, key: &KeyPair) -> Client {
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    control.try_connect(Some((certificate, key))).await.expect("connects")
}

#[tokio::test]
async fn a_token_lets_one_board_in_and_is_nowhere_at_rest() {
    let control = Control::start(&[]);
    let token = token(&control, &["--labels", "site=harbour,coracle.dev/row=3"]);
    let first = key();
    let (code, answer) = ask(&control, &token, &first, "a").await;
    assert_eq!((code, reason(&answer)), (201, "AutoApproved"), "{answer}");
    let mut node = as_node(&control, certificate(&answer).expect("signed"), &first).await;
    assert_eq!(node.json("GET", "/api", None).await.0, 200, "who is known may discover");
    let (_, mine) = control.connect().await.json("GET", "/api/v1/nodes/a", None).await;
    assert_eq!(mine.pointer("/metadata/labels/site"), Some(&json!("harbour")), "{mine}");
    // Its answer may have been lost: the same key may ask again.
    let (code, again) = ask(&control, &token, &first, "a").await;
    assert!(code == 201 && certificate(&again).is_some(), "{again}");
    // Nobody else may: it is used up, and that looks like no token at all.
    for name in ["a", "b"] {
        let (code, refused) = ask(&control, &token, &key(), name).await;
        assert_eq!((code, &refused["message"]), (401, &json!("Unauthorized")));
    }
    let secret = token.split('.').nth(1).expect("a secret");
    let mut looked_at = 0;
    let mut dirs = vec![control.dir.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                dirs.push(entry);
                continue;
            }
            let bytes = std::fs::read(&entry).expect("reads");
            for form in [secret.to_string(), STANDARD.encode(secret)] {
                let found = bytes.windows(form.len()).any(|window| window == form.as_bytes());
                assert!(!found, "the secret is in {}", entry.display());
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 3);
}

#[tokio::test]
async fn tokens_that_are_wrong_over_or_revoked_let_nobody_in() {
    let control = Control::start(&[]);
    let good = token(&control, &["--uses", "0"]);
    let (id, secret) = good.split_once('.').expect("a token");
    let short = token(&control, &["--ttl", "1s"]);
    let last = if secret.ends_with('a') { "b" } else { "a" };
    for wrong in [
        format!("{id}.{}{last}", &secret[..15]),
        format!("zzzzzz.{secret}"),
        format!("{id}.0000000000000000"),
        format!("{id}.{}", &secret[..15]),
    ] {
        let (code, answer) = ask(&control, &wrong, &key(), "a").await;
        assert_eq!((code, &answer["message"]), (401, &json!("Unauthorized")), "{wrong}");
    }
    // It ends by itself, and is then forgotten: the watch says when.
    let mut admin = control.connect().await;
    let path = format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{}", &short[..6]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while admin.json("GET", &path, None).await.0 != 404 {
        assert!(std::time::Instant::now() < deadline, "a token that ended stays");
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&control, &short, &key(), "a").await.0, 401);
    // What a token may is to ask: nothing is read, and no other kind of certificate is given.
    let mut client = control.try_connect(None).await.expect("connects");
    client.token = Some(good.clone());
    for path in ["/api/v1/nodes", "/api/v1/namespaces/kube-system/secrets", "/api/v1/pods"] {
        assert_eq!(client.json("GET", path, None).await.0, 403, "{path}");
    }
    for (user, group, signer) in [
        ("admin", "system:masters", KUBELET_CLIENT),
        ("system:node:a", "system:masters", KUBELET_CLIENT),
        ("admin", "people", "kubernetes.io/kube-apiserver-client"),
    ] {
        let (code, answer) = client.json("POST", CSRS, Some(&csr(&key(), user, group, signer))).await;
        assert!(code == 201 && certificate(&answer).is_none() && reason(&answer).is_empty(), "{answer}");
    }
    let masters = csr(&key(), "admin", "system:masters", "kubernetes.io/kube-apiserver-client");
    let (code, answer) = client.json("POST", CSRS, Some(&masters)).await;
    assert_eq!(code, 403, "{answer}");
    let revoke = Command::new(binary())
        .args(["token", "revoke", id, "--data-dir"])
        .arg(&control.dir)
        .output()
        .expect("runs");
    assert_eq!(String::from_utf8_lossy(&revoke.stdout), format!("token {id} revoked\n"));
    assert_eq!(ask(&control, &good, &key(), "a").await.0, 401);
}

#[tokio::test]
async fn a_name_that_is_taken_is_given_away_by_nobody_but_the_administrator() {
    let control = Control::start(&[]);
    let many = token(&control, &["--uses", "0"]);
    let (_, answer) = ask(&control, &many, &key(), "a").await;
    assert!(certificate(&answer).is_some(), "{answer}");
    let (_, refused) = ask(&control, &many, &key(), "a").await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, "NodeExists"), "{refused}");
    let replacing = token(&control, &["--node", "a"]);
    let (_, refused) = ask(&control, &replacing, &key(), "b").await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, "NodeName"), "{refused}");
    let (_, answer) = ask(&control, &replacing, &key(), "a").await;
    assert!(certificate(&answer).is_some(), "{answer}");
}

#[tokio::test]
async fn boards_that_come_at_once_never_share_the_last_use() {
    let control = Control::start(&[]);
    let token = token(&control, &["--uses", "3"]);
    let keys: Vec<KeyPair> = (0..12).map(|_| key()).collect();
    let names: Vec<String> = (0..12).map(|n| format!("board-{n}")).collect();
    let asked = keys.iter().zip(&names).map(|(key, name)| ask(&control, &token, key, name));
    let answers = futures_util::future::join_all(asked).await;
    let signed = answers.iter().filter(|(_, answer)| certificate(answer).is_some()).count();
    let refused = answers.iter().filter(|(code, _)| *code == 401).count();
    assert_eq!((signed, refused), (3, 9), "{answers:?}");
}

/// A certificate of the control plane's own authority, valid from and until so many seconds ago.
fn ended(
    control: &Control,
    user: &str,
    group: &str,
    (from, until): (u64, u64),
    key: &KeyPair,
) -> CertificateDer<'static> {
    let text = std::fs::read_to_string(control.dir.join("pki/ca.key")).expect("the authority's key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "coracle");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let issuer =
        CertifiedIssuer::self_signed(params, KeyPair::from_pem(&text).expect("a key")).expect("an authority");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let ago = |seconds| (std::time::SystemTime::now() - std::time::Duration::from_secs(seconds)).into();
    (params.not_before, params.not_after) = (ago(from), ago(until));
    params.signed_by(key, &issuer).expect("signed").der().clone()
}

const DAY: u64 = 86_400;

#[tokio::test]
async fn a_certificate_that_ended_is_good_for_the_next_one_and_nothing_else() {
    let control = Control::start(&[]);
    let mut admin = control.connect().await;
    let token = token(&control, &["--uses", "0"]);
    let owner = key();
    let (_, answer) = ask(&control, &token, &owner, "a").await;
    assert!(certificate(&answer).is_some(), "{answer}");
    let mut old = as_node(
        &control,
        ended(&control, "system:node:a", "system:nodes", (40 * DAY, 10 * DAY), &owner),
        &owner,
    )
    .await;
    for path in [
        "/api/v1/nodes/a",
        "/api/v1/pods?fieldSelector=spec.nodeName%3Da",
        "/api/v1/namespaces/kube-system/secrets",
    ] {
        assert_eq!(old.json("GET", path, None).await.0, 403, "{path}");
    }
    let renew = |name: &str| csr(&key(), &format!("system:node:{name}"), "system:nodes", KUBELET_CLIENT);
    // The Node is younger than this certificate: it belongs to another board.
    let (_, refused) = old.json("POST", CSRS, Some(&renew("a"))).await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, "NodeDeleted"), "{refused}");
    let (_, refused) = old.json("POST", CSRS, Some(&renew("b"))).await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, ""), "{refused}");
    // Certificates are valid from five minutes before they are issued: this one was when the Node was there.
    let late = ended(&control, "system:node:a", "system:nodes", (290, 5), &owner);
    let mut late = as_node(&control, late, &owner).await;
    assert_eq!(late.json("GET", "/api/v1/nodes/a", None).await.0, 403);
    let (_, answer) = late.json("POST", CSRS, Some(&renew("a"))).await;
    assert!(certificate(&answer).is_some(), "{answer}");
    let (_, refused) = late.json("POST", CSRS, Some(&renew("b"))).await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, ""), "{refused}");
    // Whoever deletes the Node takes that away.
    assert_eq!(admin.json("DELETE", "/api/v1/nodes/a", None).await.0, 200);
    let (_, refused) = late.json("POST", CSRS, Some(&renew("a"))).await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, "NodeDeleted"), "{refused}");
    let (_, refused) = old.json("POST", CSRS, Some(&renew("a"))).await;
    assert_eq!((certificate(&refused), reason(&refused)), (None, "NodeDeleted"), "{refused}");
    // Beyond the window, and of whoever is no node, TLS takes none.
    for (user, group, until) in [
        ("system:node:a", "system:nodes", 400 * DAY),
        ("alice", "people", DAY),
        ("system:node:a", "system:masters", DAY),
    ] {
        let certificate = ended(&control, user, group, (500 * DAY, until), &owner);
        let key = PrivateKeyDer::try_from(owner.serialize_der()).expect("a key");
        let refused = match control.try_connect(Some((certificate, key))).await {
            Ok(mut client) => {
                let ask = Ask { method: "GET", path: "/version", ..Ask::default() };
                client
                    .try_send(ask)
                    .await
                    .map(|response| response.status())
                    .map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        assert!(refused.is_err(), "{user} {until}: {refused:?}");
    }
}

#[tokio::test]
async fn kubectl_shows_approves_and_denies_requests() {
    let control = Control::start(&[]);
    let kubectl = |arguments: &[&str]| {
        let output = Command::new("kubectl")
            .env("KUBECONFIG", control.dir.join("admin.conf"))
            .env("HOME", &control.dir)
            .args(arguments)
            .output()
            .expect("kubectl runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let mut admin = control.connect().await;
    let alice = key();
    for (name, user) in [("alice", "alice"), ("eve", "eve")] {
        let mut csr = csr(&alice, user, "people", "kubernetes.io/kube-apiserver-client");
        csr["metadata"] = json!({"name": name});
        csr["spec"]["expirationSeconds"] = json!(3600);
        let (code, answer) = admin.json("POST", CSRS, Some(&csr)).await;
        assert_eq!((code, answer.pointer("/spec/username")), (201, Some(&json!("admin"))), "{answer}");
    }
    assert!(kubectl(&["get", "csr"]).contains("Pending"));
    kubectl(&["certificate", "approve", "alice"]);
    kubectl(&["certificate", "deny", "eve"]);
    let issued = ["wait", "--for=jsonpath={.status.certificate}", "--timeout=60s", "csr/alice"];
    kubectl(&issued);
    let shown = kubectl(&["get", "csr"]);
    assert!(shown.contains("Approved,Issued") && shown.contains("Denied"), "{shown}");
    let (_, answer) = admin.json("GET", &format!("{CSRS}/alice"), None).await;
    let signed = certificate(&answer).expect("signed");
    let (_, parsed) = x509_parser::parse_x509_certificate(&signed).expect("a certificate");
    let validity = parsed.validity().time_to_expiration().expect("valid").whole_seconds();
    assert!((3000..=3600).contains(&validity), "{validity}");
    let mut client = as_node(&control, signed.clone(), &alice).await;
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {}});
    assert_ne!(client.json("GET", "/api", None).await.0, 401, "{review}");
    let (_, denied) = admin.json("GET", &format!("{CSRS}/eve"), None).await;
    assert_eq!(certificate(&denied), None);
    // What is no request is told as upstream tells it.
    let mut wrong = csr(&alice, "alice", "people", "kubernetes.io/kube-apiserver-client");
    wrong["spec"]["request"] = json!(STANDARD.encode("hello"));
    let body = Some(Bytes::from(wrong.to_string()));
    let ask = Ask { method: "POST", path: CSRS, body, content_type: "application/json", ..Ask::default() };
    let (code, text) = admin.ask(ask).await;
    assert!(code == 422 && text.contains("PEM block type must be CERTIFICATE REQUEST"), "{text}");
}
