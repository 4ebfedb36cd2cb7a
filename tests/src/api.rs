//! A client of the API that is as quick as the benches need, and says what it got.

use crate::fleet::{ADDRESS, Fleet, PORT};
use anyhow::{Context, Result, ensure};
use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The administrator's credentials.
#[derive(Clone)]
pub struct Access {
    tls: Arc<ClientConfig>,
    token: Option<String>,
}

impl Access {
    /// Of the fleet's kubeconfig, whichever kind of credential it holds.
    pub fn of(fleet: &Fleet) -> Result<Access> {
        let view = fleet.kubectl(&["config", "view", "--raw", "-o", "json"])?;
        let view: Value = serde_json::from_str(&view)?;
        let pem = |value: &Value| -> Result<Vec<u8>> {
            Ok(base64::engine::general_purpose::STANDARD
                .decode(value.as_str().context("base64 expected")?)?)
        };
        let mut roots = RootCertStore::empty();
        let authority = pem(&view["clusters"][0]["cluster"]["certificate-authority-data"])?;
        roots.add(CertificateDer::from_pem_slice(&authority)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let user = &view["users"][0]["user"];
        let tls = match &user["client-certificate-data"] {
            Value::Null => tls.with_no_client_auth(),
            certificate => tls.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(&pem(certificate)?)?],
                PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?,
            )?,
        };
        Ok(Access { tls: Arc::new(tls), token: user["token"].as_str().map(String::from) })
    }

    /// A connection from this thread's network namespace. Requests on it go one after another.
    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect((ADDRESS, PORT)).await?;
        stream.set_nodelay(true)?;
        let tls = TlsConnector::from(self.tls.clone());
        let tls = tls.connect(ServerName::try_from(ADDRESS)?, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        // Its end shows in the next request.
        tokio::spawn(connection);
        Ok(Connection { sender, token: self.token.clone() })
    }
}

/// One connection.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    token: Option<String>,
}

impl Connection {
    /// Sends a request; the answer with its body still to come.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<hyper::Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", ADDRESS)
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// Sends a request and reads the whole answer; anything but success is an error with the body.
    pub async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let answer = self.send(method, path, body).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// Begins a watch; its events come line by line.
    pub async fn watch(mut self, path: &str) -> Result<Lines> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", answer.status());
        Ok(Lines { body: answer.into_body(), rest: Vec::new(), _connection: self })
    }
}

/// The lines of a watch.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
    _connection: Connection,
}

impl Lines {
    /// The next line; `None` when the watch is over.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(end + 1);
                return Ok(Some(std::mem::replace(&mut self.rest, rest)));
            }
            match self.body.frame().await {
                Some(frame) => self.rest.extend_from_slice(frame?.data_ref().map_or(&[][..], |data| data)),
                None => return Ok(None),
            }
        }
    }
}

/// Runs this in the fleet's namespace, as the administrator.
pub fn run<T: Send>(fleet: &Fleet, work: impl AsyncFnOnce(Access) -> Result<T> + Send) -> Result<T> {
    let access = Access::of(fleet)?;
    fleet.block_on(async || work(access).await)
}
