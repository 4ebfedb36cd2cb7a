//! Secrets that hold a token of a service account: filled for whoever makes them, and gone with their account.
//!
//! ```text
//! secret names an account ─┬─ it is there, with the uid that is said, if any ─► token, ca.crt, namespace, the account's uid
//!                          └─ it is not ─► deleted
//! ```
//! As upstream's tokens controller. A token that is there stays: whether it is worth anything is seen when it is used.

use super::cache::{Cache, Change};
use super::client::{Client, Delete};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{ACCOUNTS, SECRETS};
use crate::auth::tokens::{ACCOUNT_NAME, ACCOUNT_UID, SECRET_TYPE, Tokens};
use crate::object::{self, at, child, fields, is_terminating, name, namespace, text, uid};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coracle_api::status::{Reason, StatusError};
use serde_json::Value;

/// The controller.
pub struct TokenSecrets {
    client: Client,
    tokens: Tokens,
}

impl TokenSecrets {
    /// Over a client; `tokens` signs.
    pub fn new(client: Client, tokens: Tokens) -> TokenSecrets {
        TokenSecrets { client, tokens }
    }
}

/// The account that a secret says it is for, and the uid that it says the account has.
fn account_of(secret: &Value) -> Option<(&str, &str)> {
    let annotation = |key: &str| text(secret, &["metadata", "annotations", key]);
    let account = annotation(ACCOUNT_NAME);
    (text(secret, &["type"]) == SECRET_TYPE && !account.is_empty())
        .then(|| (account, annotation(ACCOUNT_UID)))
}

/// The secret as it is to be; `None` if it is so.
fn filled(
    secret: &Value,
    account: &Value,
    ca: &str,
    token: impl FnOnce() -> Result<String, StatusError>,
) -> Result<Option<Value>, StatusError> {
    let mut new = secret.clone();
    let data = fields(child(&mut new, "data"));
    data.insert("ca.crt".into(), STANDARD.encode(ca).into());
    if data.get("namespace").and_then(Value::as_str).is_none_or(str::is_empty) {
        data.insert("namespace".into(), STANDARD.encode(namespace(account)).into());
    }
    if data.get("token").and_then(Value::as_str).is_none_or(str::is_empty) {
        data.insert("token".into(), STANDARD.encode(token()?).into());
    }
    let mut annotations = at(secret, &["metadata", "annotations"]).clone();
    fields(&mut annotations).insert(ACCOUNT_UID.into(), uid(account).into());
    object::set_meta(&mut new, "annotations", annotations);
    Ok((new != *secret).then_some(new))
}

impl Controller for TokenSecrets {
    const NAME: &'static str = "serviceaccount-token";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*SECRETS) {
            return change.new.is_some().then(|| change.key.clone()).into_iter().collect();
        }
        if !change.of(*ACCOUNTS) {
            return Vec::new();
        }
        let secrets = cache.list(*SECRETS, change.key.namespace());
        let of_it = secrets
            .iter()
            .filter(|secret| account_of(secret).is_some_and(|(account, _)| account == change.key.name()));
        of_it.map(|secret| Key::of(*SECRETS, namespace(secret), name(secret))).collect()
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(secret) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let Some((account, said)) = account_of(&secret).filter(|_| !is_terminating(&secret)) else {
            return Ok(Next::Done);
        };
        let account = Key::of(*ACCOUNTS, key.namespace(), account).target();
        // As it is, not as it was: what is deleted here does not come back.
        let account = match self.client.registry().get(&account).await {
            Ok(account) => Some(account).filter(|account| said.is_empty() || said == uid(account)),
            Err(error) if error.reason == Reason::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(account) = account else {
            self.client.delete(key, uid(&secret), Delete::default()).await?;
            return Ok(Next::Done);
        };
        // Nobody changes one that says that it never changes.
        if at(&secret, &["immutable"]).as_bool() == Some(true) {
            return Ok(Next::Done);
        }
        let ca = self.client.registry().root_ca();
        if let Some(new) = filled(&secret, &account, &ca, || self.tokens.of_secret(&secret, &account))? {
            self.client.update(new, None).await?;
        }
        Ok(Next::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_is_filled_once() {
        let account = json!({"metadata": {"name": "robot", "namespace": "n", "uid": "u"}});
        let annotations = json!({ACCOUNT_NAME: "robot", "other": "stays"});
        let secret = json!({"type": SECRET_TYPE, "metadata": {"name": "s", "namespace": "n", "annotations": annotations}});
        let fill = |secret: &Value, ca: &str, token: &str| {
            filled(secret, &account, ca, || Ok(token.to_string())).expect("signed")
        };
        let first = fill(&secret, "CA", "T").expect("it was empty");
        let encoded = |text: &str| json!(STANDARD.encode(text));
        let data = json!({"ca.crt": encoded("CA"), "namespace": encoded("n"), "token": encoded("T")});
        assert_eq!(first["data"], data);
        assert_eq!(
            first["metadata"]["annotations"],
            json!({ACCOUNT_NAME: "robot", ACCOUNT_UID: "u", "other": "stays"})
        );
        assert_eq!(fill(&first, "CA", "another"), None);
        // A new authority is told; the token stays.
        let renewed = fill(&first, "NEW", "another").expect("another authority");
        assert_eq!(renewed["data"]["ca.crt"], encoded("NEW"));
        assert_eq!(renewed["data"]["token"], encoded("T"));
    }

    #[test]
    fn only_secrets_of_the_type_are_an_accounts() {
        let check = |secret: Value, expected: Option<(&str, &str)>| assert_eq!(account_of(&secret), expected);
        let named = json!({"annotations": {ACCOUNT_NAME: "a", ACCOUNT_UID: "u"}});
        check(json!({"type": SECRET_TYPE, "metadata": named}), Some(("a", "u")));
        check(
            json!({"type": SECRET_TYPE, "metadata": {"annotations": {ACCOUNT_NAME: "a"}}}),
            Some(("a", "")),
        );
        check(json!({"type": SECRET_TYPE}), None);
        check(json!({"type": "Opaque", "metadata": named}), None);
    }
}
