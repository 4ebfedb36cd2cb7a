//! A client of the running control plane: one connection, one request after another, as whom a kubeconfig says.

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use coracle_api::status::StatusError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// From the connection to the end of an answer.
const REQUEST: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Of one event of a watch: an object is smaller.
const EVENT_BYTES_MAX: usize = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    current_context: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    cluster: Option<Cluster>,
    #[serde(default)]
    user: Option<User>,
    #[serde(default)]
    context: Option<Current>,
}

/// Where the API is.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://HOST:PORT`.
    pub server: String,
    certificate_authority_data: String,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

#[derive(Clone, Deserialize)]
struct Current {
    cluster: String,
    user: String,
}

impl Cluster {
    /// The only one of a kubeconfig.
    pub fn only(kubeconfig: &str) -> anyhow::Result<Cluster> {
        let config: Kubeconfig =
            serde_saphyr::from_str(kubeconfig).map_err(|_| anyhow::anyhow!("no kubeconfig"))?;
        config.clusters.into_iter().find_map(|named| named.cluster).context("it names no cluster")
    }

    /// The authority, in PEM.
    pub fn authority(&self) -> anyhow::Result<Vec<u8>> {
        Ok(STANDARD.decode(self.certificate_authority_data.trim())?)
    }
}

/// The authority, in base64, and the token of a kubeconfig that `serve` wrote.
pub fn embedded(kubeconfig: &str) -> anyhow::Result<(String, String)> {
    let config: Kubeconfig =
        serde_saphyr::from_str(kubeconfig).map_err(|_| anyhow::anyhow!("no kubeconfig"))?;
    let authority = config.clusters.into_iter().find_map(|named| named.cluster);
    let token = config.users.into_iter().find_map(|named| named.user?.token);
    Ok((
        authority.context("it names no cluster")?.certificate_authority_data,
        token.context("it has no token")?,
    ))
}

/// The events of a watch.
pub struct Events {
    body: Incoming,
    rest: Vec<u8>,
    _sender: SendRequest<Full<Bytes>>,
}

impl Events {
    /// The next one; an error when there are no more.
    pub async fn next(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(end + 1);
                let line = std::mem::replace(&mut self.rest, rest);
                return Ok(serde_json::from_slice(&line)?);
            }
            ensure!(self.rest.len() <= EVENT_BYTES_MAX, "an event without an end");
            let frame = self.body.frame().await.context("the control plane ended the watch")??;
            self.rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        }
    }
}

/// A connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    token: Option<String>,
}

impl Client {
    /// As whom the kubeconfig says: with certificates and tokens that are written in it, as `serve` writes them.
    pub async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
        let text = std::fs::read_to_string(kubeconfig).with_context(|| {
            format!("{}: is the control plane running here, and are you root?", kubeconfig.display())
        })?;
        let connected = tokio::time::timeout(REQUEST, Client::with(&text));
        connected.await.context("no answer")?.with_context(|| kubeconfig.display().to_string())
    }

    async fn with(text: &str) -> anyhow::Result<Client> {
        // The parser's words may quote what is secret.
        let config: Kubeconfig =
            serde_saphyr::from_str(text).map_err(|_| anyhow::anyhow!("no kubeconfig"))?;
        let named = |list: &[Named], name: &str| list.iter().position(|named| named.name == name);
        let context =
            named(&config.contexts, &config.current_context).and_then(|i| config.contexts[i].context.clone());
        let context = context.context("there is no current context")?;
        let cluster =
            named(&config.clusters, &context.cluster).and_then(|i| config.clusters[i].cluster.clone());
        let cluster = cluster.context("the context's cluster is missing")?;
        let user = named(&config.users, &context.user).and_then(|i| config.users[i].user.clone());
        let user = user.context("the context's user is missing")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&cluster.authority()?) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = match (&user.client_certificate_data, &user.client_key_data) {
            (Some(certificate), Some(key)) => {
                let chain = STANDARD.decode(certificate.trim())?;
                let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
                let key = PrivateKeyDer::from_pem_slice(&STANDARD.decode(key.trim())?)?;
                tls.with_client_auth_cert(chain?, key)?
            }
            _ => tls.with_no_client_auth(),
        };
        let uri: Uri = cluster.server.parse().context("the server is no URL")?;
        let host = uri.host().context("the server is no URL")?.trim_matches(['[', ']']).to_string();
        let port = uri.port_u16().unwrap_or(443);
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .with_context(|| format!("the control plane does not answer at {}", cluster.server))?;
        let name = ServerName::try_from(host.clone())?;
        let tls = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        // Its error is the request's too, which is told there.
        tokio::spawn(connection);
        Ok(Client { sender, host: format!("{host}:{port}"), token: user.token })
    }

    /// Sends JSON, answers with JSON.
    pub async fn ask(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let asked = tokio::time::timeout(REQUEST, self.send(method, path, body));
        asked.await.context("the control plane does not answer")?
    }

    /// Watches what a path lists.
    pub async fn watch(mut self, path: &str) -> anyhow::Result<Events> {
        let begun = tokio::time::timeout(REQUEST, self.begin(Method::GET, path, None));
        let response = begun.await.context("the control plane does not answer")??;
        if !response.status().is_success() {
            bail!("{path} cannot be watched: {}", response.status());
        }
        Ok(Events { body: response.into_body(), rest: Vec::new(), _sender: self.sender })
    }

    async fn send(&mut self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let response = self.begin(method, path, body).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        if !status.is_success() {
            bail!(StatusError::answered(status.as_u16(), &body));
        }
        Ok(serde_json::from_slice(&body)?)
    }

    async fn begin(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<hyper::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }
}
