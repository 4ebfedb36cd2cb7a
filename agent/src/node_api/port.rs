//! The kubelet's HTTPS port, for an API server that dials boards instead of waiting for their tunnel.
//!
//! ```text
//! accept ─► TLS ─► who? certificate of the cluster's authority, or token (TokenReview) ─► may they? (SubjectAccessReview) ─► route
//! ```
//! Invariants: nobody's request is looked at without one of the two, a certificate that another authority signed ends the
//! handshake, and nobody is answered whom the API server does not vouch for; connections, handshakes and cached answers are
//! bounded. Left out: anonymous health checks.

use super::review::Reviewer;
use super::{Context, Door, refused_as_kubelet, route, timed};
use crate::cluster::client::Client;
use crate::request::Refusal;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Connections at once; others wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an error of accept(2) that may pass: no file descriptors, no memory.
const PAUSE: Duration = Duration::from_secs(1);

/// A port that cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// Somebody else has it, or it is not ours to take.
    #[error("listen at port {port}: {source}")]
    Listen {
        port: u16,
        #[source]
        source: io::Error,
    },
    /// Whom to believe.
    #[error("the cluster's authority: {0}")]
    Authority(String),
    /// A certificate of our own.
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// Serves for ever. `authority` is PEM; `dir` holds `serving.crt` and `serving.key`, once there are any.
pub(crate) async fn serve(
    port: u16,
    authority: &[u8],
    dir: &Path,
    client: Client,
    context: Context,
) -> Result<(), PortError> {
    let node = context.board.settings().node_name.clone();
    let tls = TlsAcceptor::from(Arc::new(tls(authority, dir, &node)?));
    // Both families, where there are two.
    let listener = match TcpListener::bind(("::", port)).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            TcpListener::bind(("0.0.0.0", port)).await
        }
        bound => bound,
    };
    let listener = listener.map_err(|source| PortError::Listen { port, source })?;
    let reviewer = Arc::new(Reviewer::new(client, node));
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, reviewer, context) = (tls.clone(), reviewer.clone(), context.clone());
        tokio::spawn(async move {
            if let Err(error) = talk(stream, &tls, &reviewer, &context).await {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(slot);
        });
    }
}

async fn talk(
    stream: TcpStream,
    tls: &TlsAcceptor,
    reviewer: &Arc<Reviewer>,
    context: &Context,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let tls = timeout(HANDSHAKE, tls.accept(stream)).await??;
    let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certified = leaf.and_then(|leaf| Caller::of(leaf)).map(Arc::new);
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        let (context, certified, reviewer) = (context.clone(), certified.clone(), reviewer.clone());
        async move {
            let (head, body) = request.into_parts();
            let answered = match admit(certified, &reviewer, &head).await {
                Ok(()) => route(&context, Door::Cluster, hyper::Request::from_parts(head, body)).await,
                Err(refusal) => Err(refusal),
            };
            Ok::<_, Infallible>(answered.unwrap_or_else(|refusal: Refusal| refused_as_kubelet(&refusal)))
        }
    });
    let connection = timed().serve_connection(hyper_util::rt::TokioIo::new(tls), service).with_upgrades();
    connection.await.map_err(io::Error::other)
}

/// # Errors
/// 401 for whom nobody knows, 403 for what they may not.
async fn admit(certified: Option<Arc<Caller>>, reviewer: &Reviewer, request: &Parts) -> Result<(), Refusal> {
    let caller = match certified {
        Some(caller) => caller,
        None => {
            let bearer = request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            let token = bearer.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
            reviewer.authenticate(token.unwrap_or_default()).await?
        }
    };
    reviewer.review(&caller, request).await
}

/// Who calls. By the certificate that TLS has verified, the common name is the user, the organisations are the groups.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Caller {
    pub user: String,
    pub groups: Vec<String>,
}

impl Caller {
    fn of(der: &[u8]) -> Option<Caller> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_string();
        let groups = subject.iter_organization().filter_map(|o| o.as_str().ok().map(String::from));
        (!user.is_empty()).then(|| Caller { user, groups: groups.collect() })
    }
}

fn tls(authority: &[u8], dir: &Path, node: &str) -> Result<ServerConfig, PortError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        let certificate = certificate.map_err(|error| PortError::Authority(error.to_string()))?;
        roots.add(certificate)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        // They may have a token.
        .allow_unauthenticated()
        .build()
        .map_err(|error| PortError::Authority(error.to_string()))?;
    let serving = Serving::open(dir, node, provider.clone())?;
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(serving));
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

/// The serving certificate: the cluster's, read anew when it changes, or one that we signed ourselves until there is one.
#[derive(Debug)]
struct Serving {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    own: Arc<CertifiedKey>,
    read: Mutex<Option<(SystemTime, Arc<CertifiedKey>)>>,
}

impl Serving {
    fn open(dir: &Path, node: &str, provider: Arc<CryptoProvider>) -> Result<Serving, PortError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![node.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.self_signed(&key)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let own = CertifiedKey::from_der(vec![certificate], key, &provider)?;
        let [certificate, key] = ["serving.crt", "serving.key"].map(|name| dir.join(name));
        Ok(Serving { certificate, key, provider, own: Arc::new(own), read: Mutex::default() })
    }

    fn current(&self) -> Arc<CertifiedKey> {
        let Ok(modified) = std::fs::metadata(&self.certificate).and_then(|file| file.modified()) else {
            return self.own.clone();
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, certified)) = &*read
            && *of == modified
        {
            return certified.clone();
        }
        match self.load() {
            Ok(certified) => {
                *read = Some((modified, certified.clone()));
                certified
            }
            Err(error) => {
                tracing::warn!(path = %self.certificate.display(), error, "the serving certificate is of no use");
                read.as_ref().map_or_else(|| self.own.clone(), |(_, certified)| certified.clone())
            }
        }
    }

    fn load(&self) -> Result<Arc<CertifiedKey>, String> {
        let chain = CertificateDer::pem_file_iter(&self.certificate).map_err(|error| error.to_string())?;
        let chain: Result<Vec<_>, _> = chain.collect();
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| error.to_string())?;
        let certified = CertifiedKey::from_der(chain.map_err(|e| e.to_string())?, key, &self.provider);
        certified.map(Arc::new).map_err(|error| error.to_string())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}
