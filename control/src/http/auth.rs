//! Who asks, and whether they may.
//!
//! ```text
//! client certificate (verified by TLS) ─► CN, O…  ┐
//! Authorization: Bearer TOKEN ─► the token file   ├─► Identity ─► authorize(identity, attributes)
//! neither ─► system:anonymous                     ┘
//! ```
//! Invariants: a credential that is wrong is 401, never anonymous; anonymous gets health and version only; tokens are kept
//! and compared as digests.
//!
//! Left out until the kinds of RBAC decide: roles. Now `system:masters` may do everything, others look around in
//! discovery.

use coracle_api::status::{Attempt, GroupResource, StatusError, refusal};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use std::path::Path;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Lines of a token file.
const TOKENS_MAX: usize = 10_000;
/// Whoever is in it may do everything.
pub const MASTERS: &str = "system:masters";
const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";
/// Of who is anybody.
const OPEN_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Of who is known; below these paths too.
const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi", "/version"];

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `system:node:a`, `admin`.
    pub user: String,
    /// With those that everybody of its kind is in.
    pub groups: Vec<String>,
}

impl Identity {
    fn known(user: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Identity {
        let mut groups: Vec<String> = groups.into_iter().collect();
        groups.push(AUTHENTICATED.into());
        Identity { user: user.into(), groups }
    }

    fn anonymous() -> Identity {
        Identity { user: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()] }
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What TLS knows of the other end.
#[derive(Debug, Default)]
pub(super) struct Peer {
    identity: Option<Identity>,
}

impl Peer {
    /// Of the certificates that TLS has verified, the leaf first.
    pub fn of(certificates: Option<&[CertificateDer<'_>]>) -> Peer {
        let leaf = certificates.and_then(<[_]>::first);
        Peer { identity: leaf.and_then(|leaf| of_certificate(leaf)) }
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
    (!user.is_empty()).then(|| Identity::known(user, groups))
}

/// The digest of a token, and whose it is.
#[derive(Debug)]
struct Token {
    digest: [u8; 32],
    identity: Identity,
}

/// Knows people by their credentials.
#[derive(Debug, Default)]
pub struct Authenticator {
    tokens: Vec<Token>,
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
    /// Reads upstream's static token file: `token,user,uid,"group,group"` a line.
    ///
    /// # Errors
    /// A file or a line that cannot be read.
    pub fn from_token_file(path: &Path) -> Result<Authenticator, TokenFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenFileError::Read { path: path.into(), source })?;
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate().take(TOKENS_MAX) {
            if line.trim().is_empty() {
                continue;
            }
            let wrong = || TokenFileError::Line { path: path.into(), line: index + 1 };
            let mut parts = line.splitn(4, ',');
            let (Some(token), Some(user), Some(_uid)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(wrong());
            };
            if token.len() < 16 || user.is_empty() {
                return Err(wrong());
            }
            let groups = parts.next().unwrap_or_default().trim_matches('"');
            let groups = groups.split(',').filter(|group| !group.is_empty()).map(String::from);
            tokens.push(Token {
                digest: sha256(token),
                identity: Identity::known(user, groups.collect::<Vec<_>>()),
            });
        }
        Ok(Authenticator { tokens })
    }

    /// Who asks.
    ///
    /// # Errors
    /// 401 for a credential that is not known.
    pub(super) fn identify(&self, peer: &Peer, authorization: Option<&str>) -> Result<Identity, StatusError> {
        if let Some(authorization) = authorization {
            let token = authorization.strip_prefix("Bearer ").ok_or_else(StatusError::unauthorized)?;
            let asked = sha256(token.trim());
            // What the time of comparing digests tells is of no use to whoever lacks the token.
            let found = self.tokens.iter().find(|token| token.digest == asked);
            return found.map(|token| token.identity.clone()).ok_or_else(StatusError::unauthorized);
        }
        Ok(peer.identity.clone().unwrap_or_else(Identity::anonymous))
    }
}

fn sha256(text: &str) -> [u8; 32] {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attributes<'a> {
    /// Objects.
    Resource {
        verb: &'a str,
        group: &'a str,
        plural: &'a str,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
    },
    /// A path.
    Path { method: &'a str, path: &'a str },
}

/// Whether they may.
///
/// # Errors
/// 403, worded as upstream.
pub(super) fn authorize(identity: &Identity, attributes: &Attributes<'_>) -> Result<(), StatusError> {
    if identity.is_in(MASTERS) {
        return Ok(());
    }
    match *attributes {
        Attributes::Path { path, .. } => {
            let below = |roots: &[&str]| {
                let rests = roots.iter().filter_map(|root| path.strip_prefix(root));
                rests.into_iter().any(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if below(OPEN_PATHS) || (identity.is_in(AUTHENTICATED) && below(DISCOVERY_PATHS)) {
                return Ok(());
            }
        }
        Attributes::Resource { .. } => {}
    }
    Err(match *attributes {
        Attributes::Path { method, path } => {
            let verb = method.to_lowercase();
            let why = refusal(&identity.user, &Attempt::Path { verb: &verb, path }, "");
            StatusError::forbidden(GroupResource::default(), "", why)
        }
        Attributes::Resource { verb, group, plural, subresource, namespace, name } => {
            let of = GroupResource { group, resource: plural };
            let why = refusal(&identity.user, &Attempt::Resource { verb, of, subresource, namespace }, "");
            StatusError::forbidden(of, name, why)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_known_reads_health_and_nothing_else() {
        let check = |identity: &Identity, attributes: Attributes<'_>, expected: Result<(), &str>| {
            let found = authorize(identity, &attributes).map_err(|error| error.message);
            assert_eq!(found, expected.map_err(String::from), "{attributes:?}");
        };
        let anonymous = Identity::anonymous();
        let user = Identity::known("u", []);
        let path = |path: &'static str| Attributes::Path { method: "GET", path };
        check(&anonymous, path("/healthz"), Ok(()));
        check(&anonymous, path("/readyz/ping"), Ok(()));
        check(&anonymous, path("/api"), Err("forbidden: User \"system:anonymous\" cannot get path \"/api\""));
        check(&user, path("/apis/apps/v1"), Ok(()));
        check(&user, path("/metrics"), Err("forbidden: User \"u\" cannot get path \"/metrics\""));
        let create = Attributes::Resource {
            verb: "create",
            group: "apps",
            plural: "deployments",
            subresource: "",
            namespace: "default",
            name: "",
        };
        let why = "deployments.apps is forbidden: User \"u\" cannot create resource \"deployments\" in API group \"apps\" in the namespace \"default\"";
        check(&user, create, Err(why));
        check(&Identity::known("a", [MASTERS.to_string()]), create, Ok(()));
    }
}
