//! Who vouches for whom.
//!
//! ```text
//! ca          ├─► the API's serving certificate                 what boards and kubectl believe
//!             └─► clients: boards (system:node:…), users, the API server itself towards kubelets
//! kubelet-ca  └─► kubelets' serving certificates                what the API server alone believes
//! ```
//! A board names its own addresses. Were there but one authority, a board that calls itself `kubernetes.default.svc` could
//! pass for the API. Keys of authorities are 0600 in the data directory; those of our own certificates are in memory only.

mod authority;
mod clients;
mod own;
mod request;

pub use authority::{Authority, Leaf, general_name, new_key, pem, public_key, subject};
pub use request::{Request, RequestError, usages};

use clients::Clients;
use der::{Decode, Encode};
use own::{Own, Purpose};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ResolvesServerCert;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Names under which pods know the API.
const NAMES: &[&str] = &[
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// Certificates that cannot be made, kept or used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Writing or reading DER.
    #[error("a certificate cannot be made or read: {0}")]
    Make(#[from] der::Error),
    /// Reading PEM.
    #[error("{path} is no PEM certificate or key: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate and a key that do not belong together.
    #[error("{path} is not the certificate of the key beside it")]
    Mismatch {
        /// The certificate.
        path: PathBuf,
    },
    /// A key that is none of ours, or no random numbers.
    #[error("a key cannot be used, or the kernel gives no random numbers")]
    Crypto,
    /// TLS does not take them.
    #[error("TLS refuses a certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority does not verify clients.
    #[error("client certificates cannot be verified: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Who a control plane is to kubelets and to other control planes. With the group of masters it is signed for nobody else.
pub const CONTROL_PLANE: &str = "kube-apiserver-kubelet-client";

/// What TLS needs, and what clients need to trust it.
#[derive(Clone, Debug)]
pub struct Pki {
    /// Of the API and of its clients; PEM.
    pub ca: String,
    /// The same, to sign with.
    pub authority: Arc<Authority>,
    /// Of kubelets.
    pub kubelets: Arc<Authority>,
    /// As whom the API server dials kubelets.
    pub kubelet_client: Arc<ClientConfig>,
    /// As whom a control plane dials the others: the same, believing what the API is served with.
    pub peer_client: Arc<ClientConfig>,
    /// Serving, asking clients for certificates of the same authority and accepting those that have none.
    pub tls: Arc<ServerConfig>,
}

impl Pki {
    /// Reads the authorities of `dir`, or makes them. The API is served as `hosts` besides the names that pods use; boards'
    /// certificates are good for asking for the next one `expired` longer than they last.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn open(dir: &Path, hosts: &[String], expired: Duration) -> Result<Pki, PkiError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| PkiError::File { path: dir.into(), source })?;
        let authority = Arc::new(Authority::open(dir, "ca", "coracle")?);
        let kubelets = Arc::new(Authority::open(dir, "kubelet-ca", "coracle-kubelets")?);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let names = NAMES.iter().map(ToString::to_string);
        let serving = Purpose::Serving {
            hosts: names.chain(hosts.iter().cloned()).collect(),
            file: dir.join("server.crt"),
        };
        let serving: Arc<dyn ResolvesServerCert> = Arc::new(Own::new(authority.clone(), serving)?);
        let client = Purpose::Client { name: CONTROL_PLANE, groups: vec![crate::auth::MASTERS.into()] };
        let client: Arc<dyn ResolvesClientCert> = Arc::new(Own::new(authority.clone(), client)?);
        let dialling = |believed: &Authority| -> Result<Arc<ClientConfig>, PkiError> {
            let config = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots(believed)?)
                .with_client_cert_resolver(client.clone());
            Ok(Arc::new(config))
        };
        let (kubelet_client, peer_client) = (dialling(&kubelets)?, dialling(&authority)?);
        let clients = Clients::new(roots(&authority)?, provider.clone(), expired)?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(serving);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Pki {
            ca: authority.pem().to_string(),
            authority,
            kubelets,
            kubelet_client,
            peer_client,
            tls: Arc::new(tls),
        })
    }
}

/// `sha256:…` of the public key of a certificate in PEM, as `coracle join` and kubeadm want it.
///
/// # Errors
/// It is no certificate.
pub fn key_hash(pem: &[u8]) -> Result<String, PkiError> {
    let der = CertificateDer::from_pem_slice(pem)
        .map_err(|source| PkiError::Read { path: "the authority".into(), source })?;
    let certificate = x509_cert::Certificate::from_der(&der)?;
    let info = certificate.tbs_certificate().subject_public_key_info().to_der()?;
    Ok(format!("sha256:{}", hex(ring::digest::digest(&ring::digest::SHA256, &info).as_ref())))
}

fn roots(authority: &Authority) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone())?;
    Ok(roots)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.into(), source })
}

/// Whole or not at all, and durable.
pub fn write(path: &Path, text: &[u8], mode: u32) -> Result<(), PkiError> {
    // One of its own for each file, made anew: what a crash left may have another's mode.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = (|| {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|source| PkiError::File { path: path.into(), source })
}
