//! Who asks: tokens, certificates of the authority and of others, nobody.

use crate::control::{Ask, Client, Control};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

type Issuer = CertifiedIssuer<'static, KeyPair>;
type Certificate = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn authority(key: KeyPair) -> Issuer {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "coracle");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    CertifiedIssuer::self_signed(params, key).expect("an authority")
}

fn certificate(issuer: &Issuer, user: &str, group: &str) -> Certificate {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, issuer).expect("signed").der().clone();
    (certificate, PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
}

/// A connection of a user with a certificate of the authority.
pub async fn known(control: &Control, user: &str, group: &str) -> Client {
    let key = std::fs::read_to_string(control.dir.join("pki/ca.key")).expect("the authority's key");
    let own = authority(KeyPair::from_pem(&key).expect("a key"));
    control.try_connect(Some(certificate(&own, user, group))).await.expect("connects")
}

#[tokio::test]
async fn certificates_of_the_authority_are_believed_and_no_others() {
    let control = Control::start(&[]);
    let mut admin = known(&control, "alice", "system:masters").await;
    assert_eq!(admin.json("GET", CONFIG_MAPS, None).await.0, 200);
    let mut other = known(&control, "bob", "people").await;
    let (code, refused) = other.json("GET", CONFIG_MAPS, None).await;
    let why = "configmaps is forbidden: User \"bob\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
    assert_eq!(other.json("GET", "/apis", None).await.0, 200, "who is known may discover");

    let foreign = authority(KeyPair::generate().expect("a key"));
    let refused = match control.try_connect(Some(certificate(&foreign, "eve", "system:masters"))).await {
        Ok(mut eve) => {
            let ask = Ask { method: "GET", path: CONFIG_MAPS, ..Ask::default() };
            eve.try_send(ask).await.map(|response| response.status()).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn who_is_not_known_gets_health_and_version_only() {
    let control = Control::start(&[]);
    let mut client = control.try_connect(None).await.expect("connects");
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(client.json("GET", path, None).await.0, 200, "{path}");
    }
    for path in ["/metrics", "/api", "/apis/apps/v1", "/openapi/v3"] {
        assert_eq!(client.json("GET", path, None).await.0, 403, "{path}");
    }
    let (code, refused) = client.json("POST", CONFIG_MAPS, Some(&json!({"metadata": {"name": "a"}}))).await;
    let why = "configmaps is forbidden: User \"system:anonymous\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"";
    assert_eq!((code, &refused["message"]), (403, &json!(why)));
    client.token = Some("wrong-wrong-wrong-wrong".into());
    let (code, refused) = client.json("GET", "/healthz", None).await;
    assert_eq!((code, &refused["message"]), (401, &Value::from("Unauthorized")));
}

#[tokio::test]
async fn a_kubeconfig_is_for_the_user_and_the_groups_that_it_names() {
    let control = Control::start(&[]);
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::control::binary());
        command.args(["kubeconfig", "create", "--data-dir"]).arg(&control.dir).args(arguments);
        command.output().expect("the command runs")
    };
    let file = control.dir.join("ada.conf");
    let path = file.to_str().expect("a path");
    let server = format!("https://{}", control.address);
    let output = run(&[
        "--user",
        "ada",
        "--group",
        "harbour",
        "--group",
        "people",
        "--expires",
        "1h",
        "--server",
        &server,
        "--output",
        path,
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("a file").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let kubectl = |arguments: &[&str]| {
        let mut command = std::process::Command::new("kubectl");
        command.env("KUBECONFIG", &file).env("HOME", &control.dir).args(arguments);
        let output = command.output().expect("kubectl runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let who =
        kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"]);
    assert_eq!(who, "ada [\"harbour\",\"people\",\"system:authenticated\"]");
    assert!(kubectl(&["get", "pods"]).contains("User \"ada\" cannot list resource \"pods\""));
    // Without a place to go, the running one says where it is.
    let output = run(&["--user", "ada"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("server: https://127.0.0.1:"), "{text}");
    for wrong in [
        &["--user", ""][..],
        &["--user", "a\nb"],
        &["--user", "a", "--expires", "0"],
        &["--user", "a", "--expires", "x"],
    ] {
        assert!(!run(wrong).status.success(), "{wrong:?}");
    }
}
