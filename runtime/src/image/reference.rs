//! Image references: `nginx`, `docker.io/library/nginx:1.27`, `host:5000/team/web@sha256:…`.
//!
//! The grammar and the normal form are those of the distribution project's reference package, which kubelet
//! and every container runtime share: a first component with a dot, a colon, or `localhost` is a registry,
//! otherwise the registry is `docker.io`; a single name there lies in `library/`; the tag defaults to `latest`.
//! Written by hand: the regular expressions of `oci-spec` would stay in the agent's memory for good.

use super::digest::Digest;
use super::error::ImageError;
use std::fmt;

/// The registry of names without one.
pub const DOCKER_HUB: &str = "docker.io";
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// A reference in normal form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host and optional port: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/nginx`.
    pub repository: String,
    /// Absent only beside a digest.
    pub tag: Option<String>,
    /// Wins over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises.
    ///
    /// # Errors
    /// [`ImageError::InvalidReference`], with what is wrong.
    pub fn parse(text: &str) -> Result<Reference, ImageError> {
        parse(text).map_err(|why| ImageError::InvalidReference { reference: text.into(), why })
    }

    /// `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What a manifest is asked by: the digest, else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }
}

/// The normal form; with a digest the tag is left out, since it decides nothing.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.digest.is_some() { '@' } else { ':' };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.version())
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| "the digest is malformed")?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is malformed");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DOCKER_HUB, name),
    };
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    let repository = match registry == DOCKER_HUB && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    if path.is_empty() {
        return Err("the name is empty");
    }
    if !is_host(registry) {
        return Err("the registry's host is malformed");
    }
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository's name must be lower case");
    }
    if !repository.split('/').all(is_component) {
        return Err("the repository's name is malformed");
    }
    if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
        return Err("the name is longer than 255 bytes");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry: registry.into(), repository, tag, digest })
}

/// Whether the first component of a name is a registry: what the distribution project calls a domain.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').unwrap_or("")) };
            return address.parse::<std::net::Ipv6Addr>().is_ok() && port.is_none_or(is_port);
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// `[a-z0-9]+` joined by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut index = 0;
    loop {
        let start = index;
        while bytes.get(index).is_some_and(|byte| alphanumeric(*byte)) {
            index += 1;
        }
        if index == start {
            return false;
        }
        match (bytes.get(index), bytes.get(index + 1)) {
            (None, _) => return true,
            (Some(b'_'), Some(b'_')) => index += 2,
            (Some(b'.' | b'_'), _) => index += 1,
            (Some(b'-'), _) => index += bytes[index..].iter().take_while(|byte| **byte == b'-').count(),
            _ => return false,
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_have_one_normal_form() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Reference::parse(text).unwrap().to_string(), expected.replace('D', D), "{text}");
        };
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("team/web", "docker.io/team/web:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("index.docker.io/nginx", "docker.io/library/nginx:latest");
        check("docker.io/library/nginx:a_B.c-1", "docker.io/library/nginx:a_B.c-1");
        check("gcr.io/pause", "gcr.io/pause:latest");
        check("localhost/web", "localhost/web:latest");
        check("localhost:5000/web:2", "localhost:5000/web:2");
        check("127.0.0.1:5000/a/b__c/d--e.f", "127.0.0.1:5000/a/b__c/d--e.f:latest");
        check("[::1]:5000/web", "[::1]:5000/web:latest");
        check(&format!("nginx@{D}"), "docker.io/library/nginx@D");
        check(&format!("nginx:1.27@{D}"), "docker.io/library/nginx@D");
        check("UPPER/web", "UPPER/web:latest");
    }

    #[test]
    fn what_is_no_reference_says_why() {
        let check = |text: &str, expected: &str| {
            let error = Reference::parse(text).unwrap_err();
            assert_eq!(error.reason(), coracle_pod::observed::Reason::InvalidImageName);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        };
        check("", "name is empty");
        check("docker.io/", "name is empty");
        check("Nginx", "lower case");
        check("nginx:", "tag is malformed");
        check("nginx:-a", "tag is malformed");
        check(&format!("nginx:{}", "a".repeat(129)), "tag is malformed");
        check("nginx@sha256:12", "digest is malformed");
        check("a..b/c", "host is malformed");
        check("team/we b", "name is malformed");
        check("team//web", "name is malformed");
        check("team/web-", "name is malformed");
        check("team/a___b", "name is malformed");
        check("team/../web", "name is malformed");
        check("host:99999/web", "host is malformed");
        check("[::1/web", "host is malformed");
        check(&format!("a/{}", "b".repeat(255)), "longer than");
    }
}
