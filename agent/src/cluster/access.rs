//! The way to one API server: where it is, how it is verified, who we are to it.
//!
//! Made of a kubeconfig, or, before there is one, of what `coracle join` was told. TLS 1.2 or newer, always verified. The
//! time that certificates are verified at is the caller's, since a board's clock may stand at 1970.

use super::kubeconfig::{Kubeconfig, KubeconfigError};
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Uri};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Name resolution, TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// Sent bytes that nobody acknowledges for so long end a connection (`TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// A connection that is quiet so long is asked whether it is there …
const KEEPALIVE: Duration = Duration::from_secs(30);
/// … and again this often, until [`UNACKNOWLEDGED`] has passed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// A server that cannot be reached or believed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccessError {
    /// The file.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// The server's URL.
    #[error("{0:?} is no API server: such as https://HOST:6443")]
    Server(String),
    /// A certificate or a key that is none.
    #[error("{what}: {why}")]
    Credential {
        /// Which.
        what: &'static str,
        /// In the words of the parser.
        why: String,
    },
    /// No answer, or TLS refused it.
    #[error("connect to {server}: {source}")]
    Connect {
        /// `HOST:PORT`.
        server: String,
        /// The kernel's or rustls' answer.
        #[source]
        source: io::Error,
    },
}

/// Whom to believe.
pub(crate) enum Trust {
    /// Certificates of these authorities, in PEM.
    Authorities(Vec<u8>),
    /// Those that the system trusts.
    System,
    /// Whom this one believes.
    Verifier(Arc<dyn ServerCertVerifier>),
}

/// See the module.
pub(crate) struct Access {
    host: String,
    port: u16,
    /// Before every path; no slash at its end.
    prefix: String,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    /// `Bearer …`.
    authorization: Option<HeaderValue>,
}

impl Access {
    /// Of a kubeconfig that was read.
    pub(crate) fn of(config: &Kubeconfig, clock: Arc<dyn TimeProvider>) -> Result<Access, AccessError> {
        let trust = match &config.authority {
            Some(pem) => Trust::Authorities(pem.clone()),
            None => Trust::System,
        };
        let identity = config.client_certificate.as_ref().map(|(certificate, key)| (&**certificate, &**key));
        let mut access = Access::new(&config.server, trust, identity, config.token.as_deref(), clock)?;
        if let Some(name) = &config.tls_server_name {
            access.server_name = server_name(name)?;
        }
        Ok(access)
    }

    /// `identity`: certificates and key in PEM.
    pub(crate) fn new(
        server: &str,
        trust: Trust,
        identity: Option<(&[u8], &[u8])>,
        token: Option<&str>,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Access, AccessError> {
        let wrong = || AccessError::Server(server.chars().take(256).collect());
        let uri: Uri = server.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_string();
        if uri.scheme_str() != Some("https") || uri.query().is_some() {
            return Err(wrong());
        }
        let authorization = token.map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                AccessError::Credential { what: "token", why: "not the text of a header".into() }
            })?;
            value.set_sensitive(true);
            Ok::<_, AccessError>(value)
        });
        Ok(Access {
            port: uri.port_u16().unwrap_or(443),
            prefix: uri.path().trim_end_matches('/').into(),
            server_name: server_name(&host)?,
            host,
            tls: Arc::new(tls(trust, identity, clock)?),
            authorization: authorization.transpose()?,
        })
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>, AccessError> {
        let connected = tokio::time::timeout(CONNECT, async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            let socket = socket2::SockRef::from(&stream);
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
            let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
            socket.set_tcp_keepalive(&keepalive.with_interval(KEEPALIVE_INTERVAL))?;
            TlsConnector::from(self.tls.clone()).connect(self.server_name.clone(), stream).await
        });
        let connected = connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|source| AccessError::Connect { server: self.server(), source })
    }

    /// The start of a request for `path`, which holds a query too.
    pub(crate) fn request(&self, method: Method, path: &str) -> request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(header::HOST, self.server())
            .header(header::USER_AGENT, USER_AGENT);
        match &self.authorization {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
    }

    /// `HOST:PORT`.
    pub(crate) fn server(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Names the field manager too: the part before the slash.
const USER_AGENT: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"));

fn server_name(host: &str) -> Result<ServerName<'static>, AccessError> {
    ServerName::try_from(host.to_string()).map_err(|_| AccessError::Server(host.chars().take(256).collect()))
}

fn tls(
    trust: Trust,
    identity: Option<(&[u8], &[u8])>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, AccessError> {
    fn wrong<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> AccessError {
        move |error| AccessError::Credential { what, why: error.to_string() }
    }
    const AUTHORITY: &str = "certificate-authority";
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = match trust {
        Trust::Authorities(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                roots.add(certificate.map_err(wrong(AUTHORITY))?).map_err(wrong(AUTHORITY))?;
            }
            Ok(roots)
        }
        Trust::System => {
            let mut roots = RootCertStore::empty();
            // One that cannot be parsed is no reason to leave out the others.
            let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            tracing::debug!(added, "the system's authorities");
            Ok(roots)
        }
        Trust::Verifier(verifier) => Err(verifier),
    };
    let verifier: Arc<dyn ServerCertVerifier> = match roots {
        Ok(roots) => WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(wrong(AUTHORITY))?,
        Err(verifier) => verifier,
    };
    let builder = ClientConfig::builder_with_details(provider, clock)
        .with_safe_default_protocol_versions()
        .map_err(wrong("TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(wrong("client-certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong("client-key"))?;
    builder.with_client_auth_cert(chain, key).map_err(wrong("client-certificate"))
}
