//! Who asks: certificates that TLS has verified, and tokens.

use super::tokens::{ISSUER, Tokens};
use super::{Identity, MASTERS};
use crate::enroll;
use crate::pki::{CONTROL_PLANE, hex};
use crate::registry::Registry;
use coracle_api::status::StatusError;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use std::path::Path;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Lines of a token file.
const TOKENS_MAX: usize = 10_000;
/// Which of somebody's credentials it was.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// What TLS knows of the other end.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    identity: Option<Identity>,
}

impl Peer {
    /// Of the certificates that TLS has verified, the leaf first.
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Peer {
        let leaf = certificates.and_then(<[_]>::first);
        Peer { identity: leaf.and_then(|leaf| of_certificate(leaf)) }
    }

    /// Whether it is a control plane of the same authority: by its certificate, and by nothing that is sent.
    pub fn is_control_plane(&self) -> bool {
        self.identity.as_ref().is_some_and(|who| who.user == CONTROL_PLANE && who.is_in(MASTERS))
    }
}

/// The common name is the user, the organisations are the groups.
fn of_certificate(der: &[u8]) -> Option<Identity> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let user = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_string();
    let groups = certificate
        .subject()
        .iter_organization()
        .filter_map(|o| o.as_str().ok().map(String::from))
        .collect::<Vec<_>>();
    if let Some(ended) = enroll::ended(&certificate, jiff::Timestamp::now()) {
        // TLS lets nodes in with certificates that ended lately. They are nobody but those who ask for the next one.
        return Some(ended);
    }
    let id = hex(digest(&SHA256, der).as_ref());
    let extra = [
        (CREDENTIAL_ID.to_string(), vec![format!("X509SHA256={id}")]),
        (enroll::KEY.to_string(), vec![enroll::key_of(&certificate)]),
    ]
    .into();
    (!user.is_empty()).then(|| Identity { extra, ..Identity::known(user, groups) })
}

/// The digest of a token, and whose it is.
#[derive(Debug)]
struct Token {
    digest: [u8; 32],
    identity: Identity,
}

/// Knows people by their credentials.
#[derive(Debug)]
pub struct Authenticator {
    known: Vec<Token>,
    tokens: Tokens,
}

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file.
    #[error("{path}: {source}")]
    Read {
        /// Of the file.
        path: std::path::PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A line of it.
    #[error(
        "{path}, line {line}: TOKEN,USER,UID[,\"GROUP,…\"] is expected, with at least 16 characters of token"
    )]
    Line {
        /// Of the file.
        path: std::path::PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

impl Authenticator {
    /// Reads upstream's static token file: `token,user,uid,"group,group"` a line. `tokens` knows service accounts.
    ///
    /// # Errors
    /// A file or a line that cannot be read.
    pub fn from_token_file(path: &Path, tokens: Tokens) -> Result<Authenticator, TokenFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenFileError::Read { path: path.into(), source })?;
        let mut known = Vec::new();
        for (index, line) in text.lines().enumerate().take(TOKENS_MAX) {
            if line.trim().is_empty() {
                continue;
            }
            let wrong = || TokenFileError::Line { path: path.into(), line: index + 1 };
            let mut parts = line.splitn(4, ',');
            let (Some(token), Some(user), Some(uid)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(wrong());
            };
            if token.len() < 16 || user.is_empty() {
                return Err(wrong());
            }
            let groups = parts.next().unwrap_or_default().trim_matches('"');
            let groups = groups.split(',').filter(|group| !group.is_empty()).map(String::from);
            let identity = Identity { uid: uid.into(), ..Identity::known(user, groups) };
            known.push(Token { digest: sha256(token), identity });
        }
        Ok(Authenticator { known, tokens })
    }

    /// What knows the tokens of service accounts.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Who asks.
    ///
    /// # Errors
    /// 401 for a credential that is not known; the storage's.
    pub(crate) async fn identify(
        &self,
        registry: &Registry,
        peer: &Peer,
        authorization: Option<&str>,
    ) -> Result<Identity, StatusError> {
        let Some(authorization) = authorization else {
            return Ok(peer.identity.clone().unwrap_or_else(Identity::anonymous));
        };
        let token = authorization.strip_prefix("Bearer ").ok_or_else(StatusError::unauthorized)?;
        self.token(registry, token.trim(), &[ISSUER.to_string()]).await.map(|(identity, _)| identity)
    }

    /// Whose token it is, and which of the audiences it is for.
    ///
    /// # Errors
    /// 401; the storage's.
    pub(crate) async fn token(
        &self,
        registry: &Registry,
        token: &str,
        audiences: &[String],
    ) -> Result<(Identity, Vec<String>), StatusError> {
        let asked = sha256(token);
        // What the time of comparing digests tells is of no use to whoever lacks the token.
        if let Some(token) = self.known.iter().find(|token| token.digest == asked) {
            // It is for whoever it is shown to.
            return Ok((token.identity.clone(), audiences.to_vec()));
        }
        if Tokens::is_one(token) {
            return self.tokens.identify(registry, token, audiences).await;
        }
        Err(StatusError::unauthorized())
    }
}

fn sha256(text: &str) -> [u8; 32] {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}
