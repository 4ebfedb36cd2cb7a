//! Asking for a certificate: a CertificateSigningRequest, and the answer to it.

use super::backoff::Backoff;
use super::client::{Client, ClientError};
use super::credentials::{self, CredentialError};
use super::watch::Event;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::status::Reason;
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// Client certificates of nodes.
pub(crate) const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of nodes.
pub(crate) const SERVING: &str = "kubernetes.io/kubelet-serving";
/// A watch is asked for again after so long.
const WATCH_SECONDS: u64 = 300;

/// No certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SigningError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// Somebody, or a rule, said no.
    #[error("the control plane says no: {0}")]
    Denied(String),
    /// Nobody said anything.
    #[error(
        "request {name} was not approved within {} s; an administrator may do that: kubectl certificate approve {name}",
        .after.as_secs()
    )]
    Pending { name: String, after: Duration },
    /// Not what was asked for.
    #[error("the answer is no certificate")]
    Malformed,
}

/// A certificate of `signer` for `node`, in PEM. Waits so long for its approval.
pub(crate) async fn sign(
    client: &Client,
    signer: &str,
    key: &KeyPair,
    node: &str,
    names: &[String],
    patience: Duration,
) -> Result<String, SigningError> {
    let request = credentials::request(key, node, names)?;
    let purpose = if signer == SERVING { "server auth" } else { "client auth" };
    let csr = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "csr-"},
        "spec": {
            "request": STANDARD.encode(request),
            "signerName": signer,
            "usages": ["digital signature", purpose],
        },
    });
    // All boards of a fleet ask at once after a power cut: the server puts some off, and nothing of their request was done.
    let until = Instant::now() + patience;
    let mut backoff = Backoff::default();
    let csr: Value = loop {
        match client.create(PATH, &csr).await {
            Err(error) if error.reason() == Some(Reason::TooManyRequests) => {
                let wait = backoff.next();
                if Instant::now() + wait > until {
                    return Err(error.into());
                }
                tokio::time::sleep(wait).await;
            }
            answer => break answer?,
        }
    };
    if let Some(answer) = answer(&csr) {
        return answer;
    }
    // An upstream API server answers at once, and a controller signs later.
    let name = csr.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_string();
    let mut version =
        csr.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default().to_string();
    let selector = format!("metadata.name={name}");
    let waited = tokio::time::timeout(patience, async {
        loop {
            let query = [("fieldSelector", selector.as_str())];
            let mut watch = client.watch(PATH, &query, &version, WATCH_SECONDS).await?;
            while let Some(event) = watch.next().await? {
                let (Event::Changed(raw) | Event::Bookmark(raw)) = event else {
                    return Err(SigningError::Denied(format!("request {name} was deleted")));
                };
                let csr: Value = serde_json::from_str(raw.get()).map_err(|_| SigningError::Malformed)?;
                if let Some(seen) = csr.pointer("/metadata/resourceVersion").and_then(Value::as_str) {
                    version = seen.to_string();
                }
                if let Some(answer) = answer(&csr) {
                    return answer;
                }
            }
        }
    });
    waited.await.unwrap_or(Err(SigningError::Pending { name: name.clone(), after: patience }))
}

/// What has become of a request, if anything has.
fn answer(csr: &Value) -> Option<Result<String, SigningError>> {
    if let Some(encoded) = csr.pointer("/status/certificate").and_then(Value::as_str) {
        let pem = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        return Some(pem.ok_or(SigningError::Malformed));
    }
    let conditions = csr.pointer("/status/conditions").and_then(Value::as_array)?;
    let said_no = |condition: &&Value| matches!(condition["type"].as_str(), Some("Denied" | "Failed"));
    let no = conditions.iter().find(said_no)?;
    let said = no["message"].as_str().filter(|message| !message.is_empty()).or(no["reason"].as_str());
    Some(Err(SigningError::Denied(said.unwrap_or("without a reason").to_string())))
}
