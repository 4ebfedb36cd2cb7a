//! Tokens in secrets of the type `kubernetes.io/service-account-token`: upstream's old kind, with no end.
//!
//! Such a token is worth what its secret is: it is believed while the secret is there and holds just this token, and the
//! account is there with the same uid. The controller (`controllers/token_secrets`) writes and deletes the secrets. Left out:
//! the labels that say when a token was last used.

use super::{ISSUER, Reference, TOKEN_BYTES_MAX, Tokens};
use crate::auth::Identity;
use crate::auth::impersonate::{service_account_groups, service_account_user};
use crate::object::{self, text};
use crate::registry::Registry;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use coracle_api::status::StatusError;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Upstream's name of whoever signs these.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The type of the secrets.
pub(crate) const SECRET_TYPE: &str = "kubernetes.io/service-account-token";
/// Their annotations.
pub(crate) const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub(crate) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// On a secret whose token an administrator has taken back.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

/// Whether a token says that it is of this kind. It says so itself: nothing is believed of it yet.
pub(super) fn claims_to_be(token: &str) -> bool {
    let payload = token.split('.').nth(1).and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok());
    let said = payload.and_then(|payload| serde_json::from_slice::<Value>(&payload).ok());
    said.is_some_and(|said| text(&said, &["iss"]) == LEGACY_ISSUER)
}

impl Tokens {
    /// The token of a secret that is an account's.
    ///
    /// # Errors
    /// The signer's.
    pub(crate) fn of_secret(&self, secret: &Value, account: &Value) -> Result<String, StatusError> {
        let (namespace, name) = (object::namespace(account), object::name(account));
        let claims = Claims {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.into(),
            secret: object::name(secret).into(),
            account: name.into(),
            uid: object::uid(account).into(),
            sub: service_account_user(namespace, name),
        };
        let header = Header { typ: None, kid: Some(self.0.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, &claims, &self.0.encoding).map_err(StatusError::internal)
    }

    /// Whose token it is; it is for the API alone.
    ///
    /// # Errors
    /// 401; the storage's.
    pub(super) async fn identify_legacy(
        &self,
        registry: &Registry,
        token: &str,
        audiences: &[String],
    ) -> Result<(Identity, Vec<String>), StatusError> {
        let here: Vec<String> = audiences.iter().filter(|audience| *audience == ISSUER).cloned().collect();
        let claims = self.legacy_claims(token).filter(|_| !here.is_empty());
        let claims = claims.ok_or_else(StatusError::unauthorized)?;
        let namespace = claims.namespace.as_str();
        if claims.sub != service_account_user(namespace, &claims.account) {
            return Err(StatusError::unauthorized());
        }
        let secret = registry.stored("secrets", namespace, &claims.secret).await?;
        let holds = |secret: &Value| {
            let held = STANDARD.decode(text(secret, &["data", "token"])).unwrap_or_default();
            text(secret, &["type"]) == SECRET_TYPE
                && !object::is_terminating(secret)
                && text(secret, &["metadata", "labels", INVALID_SINCE]).is_empty()
                && held == token.as_bytes()
        };
        if !secret.is_some_and(|secret| holds(&secret)) {
            return Err(StatusError::unauthorized());
        }
        let account = Reference { name: claims.account, uid: claims.uid };
        super::is_there(registry, "serviceaccounts", namespace, &account).await?;
        let groups = service_account_groups(namespace);
        Ok((Identity { uid: account.uid, ..Identity::known(claims.sub, groups) }, here))
    }

    fn legacy_claims(&self, token: &str) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[LEGACY_ISSUER]);
        validation.set_required_spec_claims(&["iss", "sub"]);
        // It has no end and no audience.
        validation.validate_exp = false;
        validation.validate_aud = false;
        jsonwebtoken::decode(token, &self.0.decoding, &validation).ok().map(|decoded| decoded.claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_token_of_a_secret_is_of_this_key_and_kind() {
        let dir = tempfile::tempdir().expect("a directory");
        let tokens = Tokens::open(&dir.path().join("sa.key")).expect("a key");
        let other = Tokens::open(&dir.path().join("other.key")).expect("another key");
        let secret = json!({"metadata": {"name": "s", "namespace": "n"}});
        let account = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}});
        let token = tokens.of_secret(&secret, &account).expect("a token");
        assert!(claims_to_be(&token) && Tokens::is_one(&token));
        let claims = tokens.legacy_claims(&token).expect("ours");
        let found = (claims.secret.as_str(), claims.account.as_str(), claims.uid.as_str());
        assert_eq!(found, ("s", "a", "u"));
        assert_eq!(claims.sub, "system:serviceaccount:n:a");
        assert_eq!(other.legacy_claims(&token), None);
        // It is none of the other kind, whose checks it would pass by having none.
        assert!(tokens.claims(&token, &[ISSUER.to_string()]).is_none());
        for nonsense in ["", "a.b.c", "..", &token[..token.len() - 4]] {
            assert_eq!(tokens.legacy_claims(nonsense), None, "{nonsense}");
        }
    }
}
