//! Bootstrap tokens: `ID.SECRET`, kept as Secrets of type `bootstrap.kubernetes.io/token` in kube-system.
//!
//! Invariants: no secret is at rest, but the SHA-256 of the whole token (its 82 random bits need no slower hash); digests are
//! compared in constant time; an id that does not exist and a secret that is wrong look the same; a use is taken by an
//! update that names the version it read, so that two boards never share one.

use crate::auth::Identity;
use crate::object::{self, at, text};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use serde_json::Value;
use std::collections::BTreeMap;
use subtle::ConstantTimeEq;

/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// The Secrets' type.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Before the id in a Secret's name.
pub const NAME_PREFIX: &str = "bootstrap-token-";
/// Whoever has one is in it.
pub const GROUP: &str = "system:bootstrappers";
/// Before the id in the user's name.
pub const USER_PREFIX: &str = "system:bootstrap:";
/// kubeadm's key for the secret itself. It is replaced before anything is stored.
const SECRET: &str = "token-secret";
/// Ours for its digest, in hexadecimal.
pub const DIGEST: &str = "token-secret-sha256";
/// How many boards may still join.
pub const USES: &str = "uses-left";
/// `key=value,…` for the Nodes that it makes.
pub const LABELS: &str = "node-labels";
/// The one Node that it is for, which may exist already.
pub const NODE: &str = "node-name";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;

/// What somebody presents.
#[derive(Clone, Copy)]
pub struct Presented<'a> {
    /// The public half.
    pub id: &'a str,
    whole: &'a str,
}

impl<'a> Presented<'a> {
    /// Whether a bearer token is of this form at all.
    pub fn parse(token: &'a str) -> Option<Presented<'a>> {
        let (id, secret) = token.split_once('.')?;
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        (id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH && plain(id) && plain(secret))
            .then_some(Presented { id, whole: token })
    }

    /// What is kept of it.
    pub fn digest(&self) -> String {
        crate::pki::hex(digest(&SHA256, self.whole.as_bytes()).as_ref())
    }
}

/// What a Secret says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The public half.
    pub id: String,
    digest: String,
    expires: Option<Timestamp>,
    authenticates: bool,
    groups: Vec<String>,
    /// Boards that may still join; `None` = as many as come.
    pub uses_left: Option<u64>,
    /// For the Nodes that it makes.
    pub labels: BTreeMap<String, String>,
    /// The one Node that it is for.
    pub node: Option<String>,
}

impl Token {
    /// Reads a Secret; `None` for one that is no token, or is being deleted.
    pub fn of(secret: &Value) -> Option<Token> {
        let value = |key: &str| -> Option<String> {
            let bytes = STANDARD.decode(text(secret, &["data", key])).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            (!text.is_empty()).then_some(text)
        };
        let id = object::name(secret).strip_prefix(NAME_PREFIX)?;
        let is_token = text(secret, &["type"]) == TYPE && value("token-id").as_deref() == Some(id);
        if !is_token || object::is_terminating(secret) {
            return None;
        }
        // What cannot be read is not taken for what is not there: such a token lets nobody in.
        let expires = match value("expiration") {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        let uses_left = match value(USES) {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        let groups = value("auth-extra-groups").unwrap_or_default();
        let groups =
            groups.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
        Some(Token {
            id: id.into(),
            digest: value(DIGEST)?,
            expires,
            authenticates: value("usage-bootstrap-authentication").as_deref() == Some("true"),
            groups: groups.map(String::from).collect(),
            uses_left,
            labels: parse_labels(&value(LABELS).unwrap_or_default()).ok()?,
            node: value(NODE),
        })
    }

    /// When it ends.
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    /// Whether it has not ended.
    pub fn is_current(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|end| now < end)
    }

    /// Who presents it.
    pub fn identify(&self, presented: Presented<'_>, now: Timestamp) -> Option<Identity> {
        let same: bool = self.digest.as_bytes().ct_eq(presented.digest().as_bytes()).into();
        if !same || !self.authenticates || !self.is_current(now) {
            return None;
        }
        let groups = self.groups.iter().cloned().chain([GROUP.to_string()]);
        Some(Identity::known(format!("{USER_PREFIX}{}", self.id), groups))
    }
}

/// The Secret with one use less.
pub fn spend(mut secret: Value, uses_left: u64) -> Value {
    let left = STANDARD.encode(uses_left.saturating_sub(1).to_string());
    object::fields(object::child(&mut secret, "data")).insert(USES.into(), left.into());
    secret
}

/// Replaces the secret of a token by its digest. Every Secret passes here before it is stored.
pub fn hash_at_rest(secret: &mut Value) {
    if text(secret, &["type"]) != TYPE || !at(secret, &["data", SECRET]).is_string() {
        return;
    }
    let data = object::child(secret, "data");
    let plain = |data: &Value, key: &str| {
        STANDARD.decode(text(data, &[key])).ok().and_then(|bytes| String::from_utf8(bytes).ok())
    };
    let whole = plain(data, "token-id").zip(plain(data, SECRET)).map(|(id, secret)| format!("{id}.{secret}"));
    object::remove(data, SECRET);
    // One of another form would let nobody in, and leaves nothing.
    if let Some(presented) = whole.as_deref().and_then(Presented::parse) {
        object::fields(data).insert(DIGEST.into(), STANDARD.encode(presented.digest()).into());
    }
}

/// `a=b,c=d`.
///
/// # Errors
/// The label that is none, in upstream's words.
pub fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
        labels.insert(key.to_string(), value.to_string());
    }
    let mut errors = coracle_api::field::Errors::default();
    let path = coracle_api::field::Path::new("labels");
    crate::registry::validate_labels(&serde_json::json!(labels), &path, &mut errors);
    errors.into_result().map_err(|errors| errors.to_string())?;
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    fn secret(data: &[(&str, &str)]) -> Value {
        let data: serde_json::Map<_, _> =
            data.iter().map(|(key, value)| ((*key).into(), STANDARD.encode(value).into())).collect();
        let mut secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": TYPE, "data": data});
        hash_at_rest(&mut secret);
        secret
    }

    const WHOLE: &[(&str, &str)] = &[
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
    ];

    #[test]
    fn a_token_lets_in_whoever_has_all_of_it_and_nobody_else() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let check = |more: &[(&str, &str)], presented: &str, expected: Option<&str>| {
            let mut data: BTreeMap<_, _> = WHOLE.iter().copied().collect();
            data.extend(more.iter().copied());
            let token = Token::of(&secret(&data.into_iter().collect::<Vec<_>>()));
            let found = token
                .zip(Presented::parse(presented))
                .and_then(|(token, presented)| token.identify(presented, now));
            assert_eq!(found.map(|who| who.user).as_deref(), expected, "{more:?} {presented}");
        };
        check(&[], TOKEN, Some("system:bootstrap:abcdef"));
        check(&[], "abcdef.0123456789abcdee", None);
        check(&[], "abcdef", None);
        check(&[], "abcdef.", None);
        check(&[], "abcdef.0123456789ABCDEF", None);
        check(&[("expiration", "2030-01-01T00:00:01Z")], TOKEN, Some("system:bootstrap:abcdef"));
        check(&[("expiration", "2030-01-01T00:00:00Z")], TOKEN, None);
        check(&[("expiration", "never")], TOKEN, None);
        check(&[("uses-left", "-1")], TOKEN, None);
        check(&[("usage-bootstrap-authentication", "false")], TOKEN, None);
        check(&[("token-id", "abcdeg")], TOKEN, None);
        // The digest itself is of no use to whoever reads the store.
        let digest = Presented::parse(TOKEN).expect("a token").digest();
        check(&[], &format!("abcdef.{}", &digest[..16]), None);
    }

    #[test]
    fn what_is_stored_does_not_hold_the_secret() {
        let stored = secret(WHOLE).to_string();
        assert!(!stored.contains(&STANDARD.encode("0123456789abcdef")), "{stored}");
        assert!(stored.contains(DIGEST));
        let malformed = secret(&[("token-id", "abcdef"), ("token-secret", "Hunter2")]).to_string();
        assert!(!malformed.contains(&STANDARD.encode("Hunter2")) && !malformed.contains(DIGEST));
    }
}
