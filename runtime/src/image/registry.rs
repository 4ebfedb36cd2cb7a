//! The OCI distribution protocol, as far as pulling needs it: manifests and blobs, with basic and bearer
//! authentication (distribution-spec; Docker Registry v2 authentication).
//!
//! A connection is made for a pull and dropped after it: an idle board keeps no TLS state in memory. Everything
//! that a registry says is bounded and checked; a redirect to another host takes no credentials along.

use super::error::Also;
use super::reference::Reference;
use super::{DOCUMENT_BYTES_MAX, ImageConfig, ImageError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// Until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Until the head of an answer is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a token answer or an error.
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a credential file.
const CREDENTIAL_BYTES_MAX: u64 = 1 << 20;

pub(super) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// A user of one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// `registry.example:5000`.
    pub registry: String,
    /// User name.
    pub user: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password stays out of logs.
        f.debug_struct("Credential")
            .field("registry", &self.registry)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// One place that may have an image: a mirror, or the registry itself.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// `https://host:port` and a mirror's path.
    base: String,
    host: String,
}

/// Where to ask for `reference`: mirrors in order, then the registry.
pub(super) fn endpoints(config: &ImageConfig, reference: &Reference) -> Vec<Endpoint> {
    /// Docker Hub's API has another name than its images.
    const HUB_API: &str = "registry-1.docker.io";
    let settings = config.registries.get(&reference.registry);
    let plain = settings.is_some_and(|s| s.plain_http);
    let origin =
        if reference.registry == super::reference::DOCKER_HUB { HUB_API } else { &reference.registry };
    let endpoint = |place: &str, plain: bool| {
        let place = place.trim_end_matches('/');
        let (scheme, rest) = match place.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None if plain || is_loopback(place) => ("http", place),
            None => ("https", place),
        };
        let host = rest.split('/').next().unwrap_or(rest).to_string();
        Endpoint { base: format!("{scheme}://{rest}"), host }
    };
    let mirrors = settings.into_iter().flat_map(|s| &s.mirrors);
    let mut list: Vec<Endpoint> = mirrors.map(|mirror| endpoint(mirror, plain)).collect();
    // With mirrors, `plain_http` is theirs; a registry without any is meant itself.
    list.push(endpoint(origin, plain && list.is_empty()));
    list
}

/// Registries on this very machine speak HTTP, as every runtime assumes.
fn is_loopback(place: &str) -> bool {
    let host = place.split('/').next().unwrap_or(place);
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
}

/// A pull's connection to one endpoint.
pub(super) struct Registry {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    endpoint: Endpoint,
    reference: Reference,
    credential: Option<Credential>,
    /// What goes into `Authorization` since the registry asked for it.
    authorization: Option<String>,
}

impl Registry {
    pub(super) fn new(
        endpoint: Endpoint,
        reference: &Reference,
        credentials: &[Credential],
        config: &ImageConfig,
    ) -> Result<Registry, ImageError> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let tls = rustls_config(endpoint.base.starts_with("https"))?;
        let https =
            hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(2)
            .build(https.wrap_connector(connector));
        let named = [endpoint.host.as_str(), reference.registry.as_str()];
        let mut known = credentials.to_vec();
        for file in &config.credential_files {
            known.extend(credential_file(file)?);
        }
        // A mirror gets its own credentials only, never those of the registry that it stands for.
        let own = if endpoint.host == reference.registry || is_hub(&endpoint.host) {
            &named[..]
        } else {
            &named[..1]
        };
        let credential = known.into_iter().find(|c| own.contains(&c.registry.as_str()));
        Ok(Registry { client, endpoint, reference: reference.clone(), credential, authorization: None })
    }

    /// The name of the place, for errors.
    pub(super) fn place(&self) -> &str {
        &self.endpoint.host
    }

    /// A manifest or index by tag or digest: its bytes.
    pub(super) async fn manifest(&mut self, version: &str) -> Result<Vec<u8>, ImageError> {
        let path = format!("{}/v2/{}/manifests/{version}", self.endpoint.base, self.reference.repository);
        let response = self.get(&path, Some(MANIFEST_TYPES), None).await?;
        self.read(response, DOCUMENT_BYTES_MAX).await
    }

    /// A blob as a stream from byte `from` on; the flag says whether the registry honoured that.
    pub(super) async fn blob(&mut self, digest: &str, from: u64) -> Result<(Incoming, bool), ImageError> {
        let path = format!("{}/v2/{}/blobs/{digest}", self.endpoint.base, self.reference.repository);
        let response = self.get(&path, None, (from > 0).then_some(from)).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        Ok((response.into_body(), partial))
    }

    /// A small blob, whole.
    pub(super) async fn small_blob(&mut self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let path = format!("{}/v2/{}/blobs/{digest}", self.endpoint.base, self.reference.repository);
        let response = self.get(&path, None, None).await?;
        self.read(response, DOCUMENT_BYTES_MAX).await
    }

    async fn read(&self, response: Response<Incoming>, bound: usize) -> Result<Vec<u8>, ImageError> {
        let body =
            tokio::time::timeout(ANSWER_TIMEOUT, Limited::new(response.into_body(), bound).collect()).await;
        let body = body.map_err(|_| self.unavailable("the answer takes too long".into()))?;
        Ok(body.map_err(|e| self.unavailable(e.to_string()))?.to_bytes().to_vec())
    }

    /// GET with authentication and redirects; only success is returned.
    async fn get(
        &mut self,
        url: &str,
        accept: Option<&str>,
        from: Option<u64>,
    ) -> Result<Response<Incoming>, ImageError> {
        let mut asked_for_token = false;
        loop {
            let (response, own) = self.follow(url, accept, from).await?;
            let status = response.status();
            match status {
                // A challenge is the registry's to make, and not of whoever it sends its clients to: with one of its
                // own another host would have the credentials sent to a token server of its choice (CVE-2020-15157).
                StatusCode::UNAUTHORIZED if own && !asked_for_token => {
                    asked_for_token = true;
                    let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|v| v.to_str().ok());
                    let challenge = challenge.unwrap_or_default().to_string();
                    self.authorization = Some(self.authorize(&challenge).await?);
                }
                _ if status.is_success() => return Ok(response),
                _ => {
                    let bytes = self.read(response, SMALL_BYTES_MAX).await.unwrap_or_default();
                    return Err(self.failure(status, &bytes));
                }
            }
        }
    }

    /// GET with redirects; the flag says whether the registry itself answered.
    async fn follow(
        &self,
        url: &str,
        accept: Option<&str>,
        from: Option<u64>,
    ) -> Result<(Response<Incoming>, bool), ImageError> {
        let mut url: Uri =
            url.parse().map_err(|e: hyper::http::uri::InvalidUri| self.refused(e.to_string()))?;
        for _ in 0..=REDIRECTS_MAX {
            let mut request =
                Request::get(url.clone()).header(USER_AGENT, concat!("coracle/", env!("CARGO_PKG_VERSION")));
            if let Some(types) = accept {
                request = request.header(ACCEPT, types);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let own = url.authority().is_some_and(|a| a.as_str() == self.endpoint.host);
            if let Some(authorization) = self.authorization.as_ref().filter(|_| own) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(Empty::new()).map_err(|e| self.refused(e.to_string()))?;
            let response = self.send(request).await?;
            if !response.status().is_redirection() {
                return Ok((response, own));
            }
            let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let next = redirected(&url, location)
                .ok_or_else(|| self.refused(format!("a redirect to {location:?}")))?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.refused("a redirect from HTTPS to plain HTTP".into()));
            }
            url = next;
        }
        Err(self.refused("too many redirects".into()))
    }

    async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, ImageError> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                // "client error (Connect)" alone helps nobody: the cause is inside.
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    text = cause.to_string();
                    source = cause.source();
                }
                Err(self.unavailable(text))
            }
            Err(_) => Err(self.unavailable("no answer in time".into())),
        }
    }

    /// What `Authorization` must say to a challenge.
    async fn authorize(&self, challenge: &str) -> Result<String, ImageError> {
        let basic = self
            .credential
            .as_ref()
            .map(|c| format!("Basic {}", STANDARD.encode(format!("{}:{}", c.user, c.password))));
        let (scheme, parameters) = parse_challenge(challenge);
        if scheme.eq_ignore_ascii_case("basic") {
            return basic.ok_or_else(|| self.failure(StatusCode::UNAUTHORIZED, b""));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(self.refused(format!("it asks for authentication by {scheme:?}")));
        }
        let realm = parameters.get("realm").map(String::as_str).unwrap_or_default();
        // Credentials go to this address: it must be as safe as the registry's own.
        let server: Option<Uri> = realm.parse().ok();
        let host = server.as_ref().and_then(Uri::host);
        let plain = match server.as_ref().and_then(Uri::scheme_str) {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(self.refused(format!("its token server {realm:?} is no address"))),
        };
        let own_host = self.endpoint.base.parse::<Uri>().ok().and_then(|uri| uri.host().map(String::from));
        if plain
            && (self.endpoint.base.starts_with("https") || basic.is_some() && host != own_host.as_deref())
        {
            return Err(self.refused(format!("its token server {realm:?} is not HTTPS")));
        }
        let default_scope = format!("repository:{}:pull", self.reference.repository);
        // In a block: the serializer must not live across the requests below.
        let query = {
            let mut query = form_urlencoded::Serializer::new(String::new());
            if let Some(service) = parameters.get("service") {
                query.append_pair("service", service);
            }
            query.append_pair("scope", parameters.get("scope").unwrap_or(&default_scope));
            query.finish()
        };
        let join = if realm.contains('?') { '&' } else { '?' };
        let mut request = Request::get(format!("{realm}{join}{query}"));
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let request = request.body(Empty::new()).map_err(|e| self.refused(e.to_string()))?;
        let response = self.send(request).await?;
        let status = response.status();
        let bytes = self.read(response, SMALL_BYTES_MAX).await?;
        if !status.is_success() {
            return Err(self.failure(status, &bytes));
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|e| self.refused(format!("its token: {e}")))?;
        let token = token
            .token
            .or(token.access_token)
            .ok_or_else(|| self.refused("its token server gave no token".into()))?;
        Ok(format!("Bearer {token}"))
    }

    fn failure(&self, status: StatusCode, body: &[u8]) -> ImageError {
        let (reference, registry) = (self.reference.to_string(), self.endpoint.host.clone());
        let message = error_message(body).unwrap_or_else(|| status.to_string());
        let also = Also::default();
        match status {
            StatusCode::NOT_FOUND => ImageError::NotFound { reference, registry, also },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ImageError::Unauthorized { reference, registry, message, also }
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                ImageError::Unavailable { reference, registry, message, also }
            }
            _ if status.is_server_error() => ImageError::Unavailable { reference, registry, message, also },
            _ => ImageError::Refused { reference, registry, message, also },
        }
    }

    pub(super) fn unavailable(&self, message: String) -> ImageError {
        let (reference, registry) = (self.reference.to_string(), self.endpoint.host.clone());
        ImageError::Unavailable { reference, registry, message, also: Also::default() }
    }

    fn refused(&self, message: String) -> ImageError {
        let (reference, registry) = (self.reference.to_string(), self.endpoint.host.clone());
        ImageError::Refused { reference, registry, message, also: Also::default() }
    }
}

/// Where a `Location` leads from `url`. RFC 9110, section 10.2.2, without `..`. `None` unless it is HTTP.
fn redirected(url: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (url.scheme_str()?, url.authority()?);
    let absolute = if location.contains("://") {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let (directory, _) = url.path().rsplit_once('/')?;
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let next: Uri = absolute.split('#').next()?.parse().ok()?;
    (!location.is_empty() && matches!(next.scheme_str(), Some("http" | "https"))).then_some(next)
}

fn is_hub(host: &str) -> bool {
    host.ends_with(".docker.io")
}

/// The system's certificates, or none where none are needed.
fn rustls_config(needs_roots: bool) -> Result<rustls::ClientConfig, ImageError> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let no_certificates = |why: String| ImageError::NoCertificates { why };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| no_certificates(e.to_string()))?;
    if needs_roots {
        let builder = builder.with_native_roots().map_err(|e| no_certificates(e.to_string()))?;
        return Ok(builder.with_no_client_auth());
    }
    Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
}

/// `Bearer realm="…",service="…"`. RFC 9110, section 11.6.1.
fn parse_challenge(text: &str) -> (&str, BTreeMap<String, String>) {
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut parameters = BTreeMap::new();
    let mut rest = rest.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, remaining) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').map_or((after, ""), |(v, r)| (v, r)),
        };
        parameters.insert(key.trim_matches([',', ' ']).to_ascii_lowercase(), value.to_string());
        rest = remaining.trim_start_matches([',', ' ']);
    }
    (scheme, parameters)
}

/// The first error of a distribution error object.
fn error_message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let first = value.get("errors")?.get(0)?;
    let word = |key: &str| first.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_string();
    let text = format!("{}: {}", word("code"), word("message"));
    // Shown in events: one line of a sane length.
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// Docker's `config.json`: `auths` by registry, each with `auth` = base64 of `user:password`.
fn credential_file(path: &Path) -> Result<Vec<Credential>, ImageError> {
    use std::io::Read;
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        auths: BTreeMap<String, Auth>,
    }
    #[derive(Deserialize)]
    struct Auth {
        auth: Option<String>,
        username: Option<String>,
        password: Option<String>,
    }
    let bad = |why: String| ImageError::Credentials { path: path.into(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
    file.take(CREDENTIAL_BYTES_MAX).read_to_string(&mut text).map_err(|e| bad(e.to_string()))?;
    let parsed: File = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let mut list = Vec::new();
    for (place, auth) in parsed.auths {
        let decoded = match (&auth.auth, auth.username, auth.password) {
            (_, Some(user), Some(password)) => Some((user, password)),
            (Some(encoded), ..) => {
                let bytes = STANDARD.decode(encoded).map_err(|e| bad(format!("auth of {place}: {e}")))?;
                let text = String::from_utf8(bytes).map_err(|e| bad(format!("auth of {place}: {e}")))?;
                text.split_once(':').map(|(user, password)| (user.to_string(), password.to_string()))
            }
            _ => None,
        };
        let Some((user, password)) = decoded else { continue };
        // Docker writes `https://index.docker.io/v1/` for its hub.
        let host = place.split("://").last().unwrap_or(&place).split('/').next().unwrap_or_default();
        let registry = if host == "index.docker.io" { super::reference::DOCKER_HUB } else { host };
        list.push(Credential { registry: registry.into(), user, password });
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::RegistryConfig;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let check = |text: &str, scheme: &str, expected: &[(&str, &str)]| {
            let (found, parameters) = parse_challenge(text);
            let wanted: BTreeMap<String, String> =
                expected.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            assert_eq!((found, parameters), (scheme, wanted), "{text}");
        };
        check("Basic realm=\"r\"", "Basic", &[("realm", "r")]);
        check(
            "Bearer realm=\"https://t/x\",service=\"s\",scope=\"repository:a/b:pull,push\"",
            "Bearer",
            &[("realm", "https://t/x"), ("service", "s"), ("scope", "repository:a/b:pull,push")],
        );
        check("Bearer realm=t, service=s", "Bearer", &[("realm", "t"), ("service", "s")]);
        check("", "", &[]);
        check("Bearer realm=\"open", "Bearer", &[("realm", "open")]);
    }

    #[test]
    fn a_redirect_leads_on_from_where_it_was_met() {
        let check = |location: &str, expected: Option<&str>| {
            let from: Uri = "https://cdn.example:444/v2/a/blobs/x?y=1".parse().expect("a URI");
            let found = redirected(&from, location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        };
        check("https://o.example/z?t=1", Some("https://o.example/z?t=1"));
        check("/z", Some("https://cdn.example:444/z"));
        check("z?t=1", Some("https://cdn.example:444/v2/a/blobs/z?t=1"));
        check("//o.example/z#part", Some("https://o.example/z"));
        check("file:///etc/passwd", None);
        check("", None);
    }

    #[test]
    fn mirrors_come_first_and_only_loopback_or_opted_in_places_speak_http() {
        let check = |image: &str, mirrors: &[&str], plain_http: bool, expected: &[&str]| {
            let reference = Reference::parse(image).expect("parses");
            let settings =
                RegistryConfig { mirrors: mirrors.iter().map(ToString::to_string).collect(), plain_http };
            let config = ImageConfig {
                registries: [(reference.registry.clone(), settings)].into(),
                ..Default::default()
            };
            let found: Vec<String> = endpoints(&config, &reference).into_iter().map(|e| e.base).collect();
            assert_eq!(found, expected, "{image}");
        };
        check("nginx", &[], false, &["https://registry-1.docker.io"]);
        check("nginx", &["m.example/hub"], false, &["https://m.example/hub", "https://registry-1.docker.io"]);
        check("nginx", &["m.example"], true, &["http://m.example", "https://registry-1.docker.io"]);
        check("localhost:5000/a", &[], false, &["http://localhost:5000"]);
        check("127.0.0.1:5000/a", &[], false, &["http://127.0.0.1:5000"]);
        check("r.example/a", &[], true, &["http://r.example"]);
        check("r.example/a", &["127.0.0.1:1"], false, &["http://127.0.0.1:1", "https://r.example"]);
    }
}
