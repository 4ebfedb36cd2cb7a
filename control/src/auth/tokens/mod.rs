//! Tokens of service accounts: JSON Web Tokens, signed by a key of this control plane, bound to what they were asked for.
//!
//! ```text
//! TokenRequest ─► account, pod, node as they are stored ─► claims ─► ES256 ─► token
//! token ─► signature, issuer, audience, time ─► account, pod, secret, node still there, with the same uid ─► Identity
//! ```
//! Invariants: a token is believed for as long as what it is bound to is there, and no longer; what is remembered is only that
//! a signature was good. Control planes that share an etcd share the key.

mod legacy;
mod provider;
mod request;

pub(crate) use legacy::{ACCOUNT_NAME, ACCOUNT_UID, SECRET_TYPE};
pub use request::request;

use super::Identity;
use super::impersonate::{service_account_groups, service_account_user};
use crate::object;
use crate::pki::{self, PkiError};
use crate::registry::Registry;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_api::status::StatusError;
use der::Encode;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::digest::{SHA256, digest};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Who says so, and whom tokens are for unless somebody else is named: upstream's name of the API within a cluster.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Clocks of boards and of control planes differ.
const LEEWAY_SECONDS: i64 = 60;
/// Signatures that are remembered to be good.
const VERIFIED_MAX: usize = 4096;
/// Of a token; longer ones are not looked at.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// What a token names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

/// The claim `kubernetes.io`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
    nbf: i64,
    sub: String,
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// Its file.
    #[error(transparent)]
    File(#[from] PkiError),
    /// Another kind of key.
    #[error("the key of service accounts' tokens is none of ECDSA on P-256")]
    Curve,
}

/// Signs and knows tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens(Arc<Key>);

struct Key {
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// Of the public key, as tokens name it.
    id: String,
    /// x and y.
    point: [String; 2],
    verified: Mutex<HashMap<[u8; 32], Claims>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Reads the key at `path`, PEM; makes one if there is none.
    ///
    /// # Errors
    /// A file that is there and is no key of ECDSA on P-256, or cannot be written.
    pub fn open(path: &Path) -> Result<Tokens, TokenKeyError> {
        provider::install();
        let key = if path.exists() {
            PrivatePkcs8KeyDer::from_pem_file(path)
                .map_err(|source| PkiError::Read { path: path.into(), source })?
        } else {
            let key = pki::new_key()?;
            let pem = pki::pem("PRIVATE KEY", key.secret_pkcs8_der())?;
            pki::write(path, pem.as_bytes(), 0o600)?;
            key
        };
        let public = pki::public_key(&key)?;
        let point = public.subject_public_key.raw_bytes();
        let half = |range: std::ops::Range<usize>| point.get(range).map(|half| URL_SAFE_NO_PAD.encode(half));
        let (Some(x), Some(y), 65) = (half(1..33), half(33..65), point.len()) else {
            return Err(TokenKeyError::Curve);
        };
        let id = digest(&SHA256, &public.to_der().map_err(PkiError::from)?);
        Ok(Tokens(Arc::new(Key {
            encoding: EncodingKey::from_ec_der(key.secret_pkcs8_der()),
            decoding: DecodingKey::from_ec_der(point),
            id: URL_SAFE_NO_PAD.encode(id),
            point: [x, y],
            verified: Mutex::default(),
        })))
    }

    fn sign(&self, claims: &Claims) -> Result<String, StatusError> {
        let header = Header { typ: None, kid: Some(self.0.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.0.encoding).map_err(StatusError::internal)
    }

    /// Whether a text could be a token of this kind.
    pub fn is_one(token: &str) -> bool {
        token.len() <= TOKEN_BYTES_MAX && token.split('.').count() == 3
    }

    /// What a token says, if it is one of this key, for one of the audiences, and of now.
    fn claims(&self, token: &str, audiences: &[String]) -> Option<Claims> {
        let digest: [u8; 32] = digest(&SHA256, token.as_bytes()).as_ref().try_into().ok()?;
        let known = self.verified().get(&digest).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let mut validation = Validation::new(Algorithm::ES256);
                validation.set_issuer(&[ISSUER]);
                validation.set_required_spec_claims(&["exp", "iss", "aud", "sub", "nbf"]);
                validation.validate_nbf = true;
                // Audiences differ from question to question, and are compared below.
                validation.validate_aud = false;
                let claims: Claims = jsonwebtoken::decode(token, &self.0.decoding, &validation).ok()?.claims;
                let mut verified = self.verified();
                if verified.len() >= VERIFIED_MAX {
                    verified.clear();
                }
                verified.insert(digest, claims.clone());
                claims
            }
        };
        let now = jiff::Timestamp::now().as_second();
        let current = now < claims.exp.saturating_add(LEEWAY_SECONDS) && claims.nbf <= now + LEEWAY_SECONDS;
        (current && claims.aud.iter().any(|audience| audiences.contains(audience))).then_some(claims)
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Claims>> {
        // An entry is there or not.
        self.0.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose token it is, and which of the audiences it is for.
    ///
    /// # Errors
    /// 401 for a token that is not, or not any more, one of this cluster; the storage's.
    pub async fn identify(
        &self,
        registry: &Registry,
        token: &str,
        audiences: &[String],
    ) -> Result<(Identity, Vec<String>), StatusError> {
        if legacy::claims_to_be(token) {
            return self.identify_legacy(registry, token, audiences).await;
        }
        let claims = self.claims(token, audiences).ok_or_else(StatusError::unauthorized)?;
        let bound = &claims.bound;
        let namespace = bound.namespace.as_str();
        let account = &bound.serviceaccount;
        if claims.sub != service_account_user(namespace, &account.name) {
            return Err(StatusError::unauthorized());
        }
        is_there(registry, "serviceaccounts", namespace, account).await?;
        let credential =
            ("authentication.kubernetes.io/credential-id".to_string(), vec![format!("JTI={}", claims.jti)]);
        let mut identity = Identity {
            uid: account.uid.clone(),
            extra: [credential].into(),
            ..Identity::known(claims.sub.clone(), service_account_groups(namespace))
        };
        if let Some(secret) = &bound.secret {
            is_there(registry, "secrets", namespace, secret).await?;
        }
        if let Some(pod) = &bound.pod {
            is_there(registry, "pods", namespace, pod).await?;
        } else if let Some(node) = &bound.node {
            // Of a pod's token the node is only told: the pod goes with it.
            is_there(registry, "nodes", "", node).await?;
        }
        for (what, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
            let Some(Reference { name, uid }) = reference else { continue };
            for (key, value) in [("name", name), ("uid", uid)] {
                let key = format!("authentication.kubernetes.io/{what}-{key}");
                identity.extra.insert(key, vec![value.clone()]);
            }
        }
        let audiences = audiences.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        Ok((identity, audiences))
    }

    /// `/.well-known/openid-configuration`.
    pub fn configuration() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let [x, y] = &self.0.point;
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.0.id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}

/// Whether what a token is bound to is there, with the uid that it had.
async fn is_there(
    registry: &Registry,
    plural: &str,
    namespace: &str,
    reference: &Reference,
) -> Result<(), StatusError> {
    let found = registry.stored(plural, namespace, &reference.name).await?;
    let lives = |object: &Value| {
        // What was to be gone by now does not count any more, whoever holds it.
        let deadline =
            object::text(object, &["metadata", "deletionTimestamp"]).parse::<jiff::Timestamp>().ok();
        let now = jiff::Timestamp::now().as_second();
        object::uid(object) == reference.uid
            && deadline.is_none_or(|deadline| deadline.as_second() + LEEWAY_SECONDS >= now)
    };
    if found.is_some_and(|object| lives(&object)) { Ok(()) } else { Err(StatusError::unauthorized()) }
}

#[cfg(test)]
#[path = "tokens_test.rs"]
mod tests;
