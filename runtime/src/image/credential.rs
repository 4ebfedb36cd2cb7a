//! Who a pull says that it is: Docker's `config.json`, and which of its entries are meant for an image.
//!
//! Entries are matched as the kubelet's keyring does (`k8s.io/kubernetes/pkg/credentialprovider`): each part of the
//! host may be a glob, the path is a prefix. No message here quotes what it read: it is shown in events.

use super::error::ImageError;
use super::reference::DOCKER_HUB;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a credential file.
const CREDENTIAL_BYTES_MAX: u64 = 1 << 20;
/// Credentials that one place is asked with, one after the other.
const CANDIDATES_MAX: usize = 10;

/// A user of one registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// `registry.example:5000`, `*.registry.example`, or with the start of the repository's name: `registry.example/team`.
    pub registry: String,
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password stays out of logs.
        f.debug_struct("Credential")
            .field("registry", &self.registry)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Why a text is no `config.json`. What was read is not in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// Not the JSON that it should be.
    #[error("not Docker's JSON of registries (line {line}, column {column})")]
    Shape {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// An entry that says nobody.
    #[error("the auth of {registry} is not base64 of user:password")]
    Auth {
        /// As written.
        registry: String,
    },
}

/// What Docker keeps of one registry.
#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// Docker's `config.json`: `auths` by registry, each with `auth` = base64 of `user:password`, or both by name. Entries
/// with neither, which a credential helper leaves, are passed over. The more exact registry comes first. Pure.
///
/// # Errors
/// [`DockerConfigError`].
pub fn docker_config(text: &[u8]) -> Result<Vec<Credential>, DockerConfigError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        auths: BTreeMap<String, Auth>,
    }
    credentials(serde_json::from_slice::<Config>(text).map_err(|e| shape(&e))?.auths)
}

/// Docker's old `.dockercfg`: what [`docker_config`] reads under `auths`, alone. Pure.
///
/// # Errors
/// [`DockerConfigError`].
pub fn docker_cfg(text: &[u8]) -> Result<Vec<Credential>, DockerConfigError> {
    credentials(serde_json::from_slice(text).map_err(|e| shape(&e))?)
}

/// serde's own words would show the value that has the wrong type.
fn shape(error: &serde_json::Error) -> DockerConfigError {
    DockerConfigError::Shape { line: error.line(), column: error.column() }
}

fn credentials(auths: BTreeMap<String, Auth>) -> Result<Vec<Credential>, DockerConfigError> {
    let mut list = Vec::new();
    for (place, entry) in auths {
        let auth = entry.auth.filter(|auth| !auth.is_empty());
        let (user, password) = match (auth, entry.username, entry.password) {
            (_, Some(user), Some(password)) => (user, password),
            (Some(auth), ..) => {
                decoded(&auth).ok_or_else(|| DockerConfigError::Auth { registry: place.clone() })?
            }
            _ => continue,
        };
        list.push(Credential { registry: registry_of(&place), user, password });
    }
    list.sort_by(|a, b| b.registry.cmp(&a.registry));
    Ok(list)
}

fn decoded(auth: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_string(), password.to_string()))
}

/// `registry.example/team` of what Docker and people write: with a scheme, with the API's version, with a slash at the
/// end. Docker writes `https://index.docker.io/v1/` for its hub.
fn registry_of(place: &str) -> String {
    let place = place.split_once("://").map_or(place, |(_, rest)| rest);
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let path = ["v1", "v2"]
        .iter()
        .find_map(|version| {
            path.strip_prefix(version).filter(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .unwrap_or(path);
    let host = if host == "index.docker.io" { DOCKER_HUB } else { host };
    let path = path.trim_matches('/');
    if path.is_empty() { host.to_string() } else { format!("{host}/{path}") }
}

/// A credential file of the configuration.
pub(super) fn credential_file(path: &Path) -> Result<Vec<Credential>, ImageError> {
    let bad = |why: String| ImageError::Credentials { path: path.into(), why };
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| bad(e.to_string()))?;
    file.take(CREDENTIAL_BYTES_MAX).read_to_end(&mut text).map_err(|e| bad(e.to_string()))?;
    docker_config(&text).map_err(|e| bad(e.to_string()))
}

/// Those of `known` that are meant for one of `places` (`host[:port]/repository`), in their order, at most
/// [`CANDIDATES_MAX`], none twice.
pub(super) fn candidates(known: impl IntoIterator<Item = Credential>, places: &[String]) -> Vec<Credential> {
    let mut found: Vec<Credential> = Vec::new();
    for credential in known {
        let meant = places.iter().any(|place| is_meant(&credential.registry, place));
        let same =
            |other: &Credential| (&other.user, &other.password) == (&credential.user, &credential.password);
        if meant && found.len() < CANDIDATES_MAX && !found.iter().any(same) {
            found.push(credential);
        }
    }
    found
}

/// The keyring's `URLsMatch`.
fn is_meant(pattern: &str, place: &str) -> bool {
    let split = |text: &str| {
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        // An address of IPv6 has colons of its own.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port),
            _ => (authority, ""),
        };
        (host.to_ascii_lowercase(), port.to_string(), path.to_string())
    };
    let ((globs, glob_port, prefix), (host, port, path)) = (split(pattern), split(place));
    let (globs, parts): (Vec<&str>, Vec<&str>) = (globs.split('.').collect(), host.split('.').collect());
    glob_port == port
        && path.starts_with(&prefix)
        && globs.len() == parts.len()
        && globs.iter().zip(&parts).all(|(glob, part)| is_glob_of(glob.as_bytes(), part.as_bytes()))
}

/// `*` is any run of bytes, `?` any one.
fn is_glob_of(glob: &[u8], part: &[u8]) -> bool {
    match (glob.split_first(), part.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((b'*', after)), rest) => {
            is_glob_of(after, part) || rest.is_some_and(|(_, part)| is_glob_of(glob, part))
        }
        (Some((b'?', after)), Some((_, part))) => is_glob_of(after, part),
        (Some((wanted, after)), Some((byte, part))) => wanted == byte && is_glob_of(after, part),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_json_is_read_as_docker_and_people_write_it() {
        let check = |text: &str, expected: Result<&[(&str, &str, &str)], &str>| {
            let found = docker_config(text.as_bytes()).map_err(|e| e.to_string());
            let found: Result<Vec<_>, _> =
                found.map(|list| list.into_iter().map(|c| (c.registry, c.user, c.password)).collect());
            let expected: Result<Vec<_>, _> = expected
                .map(|list| list.iter().map(|(r, u, p)| ((*r).into(), (*u).into(), (*p).into())).collect())
                .map_err(String::from);
            assert_eq!(found, expected, "{text}");
        };
        // boatswain:whistle
        let auth = |place: &str| {
            format!("{{\"auths\": {{\"{place}\": {{\"auth\": \"Ym9hdHN3YWluOndoaXN0bGU=\"}}}}}}")
        };
        for (place, registry) in [
            ("r.example:5000", "r.example:5000"),
            ("https://r.example/v2/", "r.example"),
            ("https://r.example/v2/team/", "r.example/team"),
            ("r.example/v2team", "r.example/v2team"),
            ("*.r.example/team", "*.r.example/team"),
            ("https://index.docker.io/v1/", "docker.io"),
        ] {
            check(&auth(place), Ok(&[(registry, "boatswain", "whistle")]));
        }
        check(
            r#"{"auths": {"a": {"username": "u", "password": "p:q"}, "a/b": {"username": "v", "password": ""}}}"#,
            Ok(&[("a/b", "v", ""), ("a", "u", "p:q")]),
        );
        check(r#"{"auths": {"a": {}, "b": {"auth": ""}}, "credsStore": "desktop"}"#, Ok(&[]));
        check("{}", Ok(&[]));
        check(
            r#"{"auths": {"a": {"auth": "hunter2"}}}"#,
            Err("the auth of a is not base64 of user:password"),
        );
        check(
            r#"{"auths": {"a": {"auth": "aHVudGVyMg=="}}}"#,
            Err("the auth of a is not base64 of user:password"),
        );
        let shape = "not Docker's JSON of registries (line 1, column 25)";
        check(r#"{"auths": {"a": "hunter2"}}"#, Err(shape));
    }

    #[test]
    fn a_credential_is_meant_for_its_registry_and_its_repositories() {
        let check = |pattern: &str, place: &str, expected: bool| {
            assert_eq!(is_meant(pattern, place), expected, "{pattern} for {place}");
        };
        check("r.example", "r.example/team/web", true);
        check("R.example", "r.example/team/web", true);
        check("r.example", "r.example:5000/team/web", false);
        check("r.example:5000", "r.example:5000/team/web", true);
        check("r.example/team", "r.example/team/web", true);
        check("r.example/team", "r.example/other/web", false);
        check("*.example", "r.example/web", true);
        check("*.example", "a.r.example/web", false);
        check("r*-?.example", "registry-2.example/web", true);
        check("r*-?.example", "registry-22.example/web", false);
        check("example", "r.example/web", false);
        check("[::1]:5000", "[::1]:5000/web", true);
        check("", "r.example/web", false);
    }
}
