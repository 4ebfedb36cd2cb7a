use super::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::json;

/// A request of a fresh key for `CN`, `O` and alternative names.
fn request(common_name: &str, organization: &str, names: &[SanType]) -> Request {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.subject_alt_names = names.to_vec();
    let key = KeyPair::generate().expect("a key");
    let text = params.serialize_request(&key).expect("a request").pem().expect("PEM");
    Request::read(text.as_bytes()).expect("reads")
}

fn spec(signer: &str, user: &str, groups: &[&str], usages: &[&str]) -> Value {
    json!({"signerName": signer, "username": user, "groups": groups, "usages": usages})
}

const CLIENT: &[&str] = &["digital signature", "client auth"];
const SERVER: &[&str] = &["digital signature", "server auth"];

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

fn ip(address: &str) -> SanType {
    SanType::IpAddress(address.parse().expect("an address"))
}

#[test]
fn a_signer_signs_what_it_is_for() {
    let check = |signer: &str, request: &Request, usages: &[&str], expected: Result<(), &str>| {
        let found = signable(signer, request, &spec(signer, "", &[], usages));
        let told = match (&found, expected) {
            (Err(found), Err(expected)) => found.contains(expected),
            (Ok(()), Ok(())) => true,
            _ => false,
        };
        assert!(told, "{signer} {usages:?}: {found:?}, not {expected:?}");
    };
    let node = request("system:node:a", "system:nodes", &[]);
    check(KUBELET_CLIENT, &node, CLIENT, Ok(()));
    check(KUBELET_CLIENT, &node, &["digital signature", "key encipherment", "client auth"], Ok(()));
    check(KUBELET_CLIENT, &node, &["client auth"], Err("usages did not match"));
    check(
        KUBELET_CLIENT,
        &node,
        &["digital signature", "client auth", "server auth"],
        Err("usages did not match"),
    );
    check(
        KUBELET_CLIENT,
        &node,
        &["digital signature", "client auth", "cert sign"],
        Err("unrecognized usage values: [cert sign]"),
    );
    check(
        KUBELET_CLIENT,
        &request("system:node:a", "system:nodes", &[dns("a")]),
        CLIENT,
        Err("subjectAltNames are not allowed"),
    );
    check(KUBELET_CLIENT, &request("system:node:a", "system:masters", &[]), CLIENT, Err("organization"));
    check(KUBELET_CLIENT, &request("admin", "system:nodes", &[]), CLIENT, Err("common name"));
    check(KUBELET_CLIENT, &request("system:node:", "system:nodes", &[]), CLIENT, Err("common name"));
    check(KUBELET_CLIENT, &request("system:node:A/../b", "system:nodes", &[]), CLIENT, Err("common name"));
    check(KUBELET_SERVING, &request("system:node:a", "system:nodes", &[dns("a")]), SERVER, Ok(()));
    check(
        KUBELET_SERVING,
        &request("system:node:a", "system:nodes", &[dns("a")]),
        CLIENT,
        Err("usages did not match"),
    );
    check(KUBELET_SERVING, &node, SERVER, Err("subjectAltName is required"));
    check(API_CLIENT, &request("alice", "people", &[]), CLIENT, Ok(()));
    check(API_CLIENT, &request("alice", "people", &[]), SERVER, Err("usages did not match"));
}

#[test]
fn who_gets_which_name_by_itself() {
    let token = |node: Option<&str>| {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        let mut secret = json!({
            "metadata": {"name": "bootstrap-token-abcdef"},
            "type": token::TYPE,
            "data": {
                "token-id": STANDARD.encode("abcdef"),
                "token-secret": STANDARD.encode("0123456789abcdef"),
                token::NODE: node.map(|node| STANDARD.encode(node)),
            },
        });
        token::hash_at_rest(&mut secret);
        Token::of(&secret).expect("a token")
    };
    let (any, for_a, for_b) = (token(None), token(Some("a")), token(Some("b")));
    let a = request("system:node:a", "system:nodes", &[]);
    let node = |key: &str| {
        json!({
            "metadata": {
                "name": "a", "creationTimestamp": "2030-01-01T00:00:00Z", "annotations": {KEY: key},
            },
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "a.lan"},
            ]},
        })
    };
    let (others, own) = (node("another key"), node(&a.key_hash));
    let told = |verdict: Verdict| match verdict {
        Verdict::Approve(approval) => format!("{approval:?}"),
        Verdict::Deny(reason, _) => reason.to_string(),
        Verdict::Leave => "Leave".into(),
    };
    let joins = |node: Option<&Value>, token: Option<&Token>, expected: &str| {
        let spec = spec(KUBELET_CLIENT, "system:bootstrap:abcdef", &[token::GROUP], CLIENT);
        assert_eq!(told(judge(&a, &spec, Facts { node, token })), expected);
    };
    joins(None, Some(&any), "NewNode");
    joins(Some(&own), Some(&any), "Again");
    // A stolen token must not give away the name, and so the secrets, of a board that is there.
    joins(Some(&others), Some(&any), "NodeExists");
    joins(Some(&others), Some(&for_a), "Replacement");
    joins(None, Some(&for_b), "NodeName");
    joins(None, None, "Leave");

    let renews = |user: &str, groups: &[&str], issued: &str, node: Option<&Value>, expected: &str| {
        let mut spec = spec(KUBELET_CLIENT, user, groups, CLIENT);
        spec["extra"] = json!({ISSUED: [issued], KEY: ["another key"]});
        assert_eq!(told(judge(&a, &spec, Facts { node, token: None })), expected, "{user} {issued}");
    };
    let (born, before) = ("1893456000", "1893455999");
    renews("system:node:a", &[NODES], "", Some(&others), "Renewal");
    renews("system:node:a", &[NODES], "", None, "NodeDeleted");
    renews("system:node:b", &[NODES], "", Some(&others), "Leave");
    renews("system:node:a", &["people"], "", Some(&others), "Leave");
    let expired = "coracle.dev:expired-node:a";
    renews(expired, &[token::GROUP], born, Some(&others), "Renewal");
    renews(expired, &[token::GROUP], before, Some(&others), "NodeDeleted");
    renews(expired, &[token::GROUP], born, None, "NodeDeleted");
    renews(expired, &[token::GROUP], "", Some(&others), "NodeDeleted");
    renews("coracle.dev:expired-node:b", &[token::GROUP], born, Some(&others), "Leave");

    // A board that was replaced has the old certificate, and a name that is another's.
    let (own, stranger) = (node(&a.key_hash), node("the new board's key"));
    renews("system:node:a", &[NODES], "", Some(&stranger), "NodeReplaced");
    renews(expired, &[token::GROUP], born, Some(&stranger), "NodeReplaced");
    // An answer was lost: the name has the new key, and the board asks with it again.
    renews("system:node:a", &[NODES], "", Some(&own), "Renewal");
    // A node that was deleted and made itself anew was given to no key.
    let mut anew = node("");
    anew["metadata"]["annotations"] = Value::Null;
    renews("system:node:a", &[NODES], "", Some(&anew), "NodeReplaced");
    let mut renewed = node("a third key");
    renewed["metadata"]["annotations"][PREVIOUS] = "another key".into();
    renews("system:node:a", &[NODES], "", Some(&renewed), "Renewal");

    let serves = |user: &str, names: &[SanType], expected: &str| {
        let asked = request("system:node:a", "system:nodes", names);
        let spec = spec(KUBELET_SERVING, user, &[NODES], SERVER);
        assert_eq!(
            told(judge(&asked, &spec, Facts { node: Some(&own), token: None })),
            expected,
            "{names:?}"
        );
    };
    serves("system:node:a", &[dns("a"), dns("a.lan"), ip("10.0.0.1")], "Serving");
    serves("system:node:a", &[dns("kubernetes.default.svc")], "Leave");
    serves("system:node:a", &[ip("10.0.0.1"), ip("10.96.0.1")], "Leave");
    serves("system:node:b", &[dns("a")], "Leave");
    // What has expired serves nobody.
    serves(expired, &[dns("a")], "Leave");
}
