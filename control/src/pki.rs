//! The authority and the serving certificate: made once, kept in the data directory.
//!
//! Keys are written 0600 and never leave the machine. Left out until boards enroll: signing requests, renewal.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names under which pods know the API.
const NAMES: &[&str] = &[
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];
/// Ten years of an authority, one of what it signs.
const AUTHORITY_DAYS: i64 = 3650;
const SERVING_DAYS: i64 = 365;

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
    /// Making one.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Reading one.
    #[error("{path} is no PEM certificate or key: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// TLS does not take them.
    #[error("the serving certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority does not verify clients.
    #[error("client certificates cannot be verified: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What TLS needs, and what clients need to trust it.
#[derive(Clone, Debug)]
pub struct Pki {
    /// PEM.
    pub ca: String,
    /// As whom the API server dials kubelets.
    pub kubelet_client: Arc<ClientConfig>,
    /// Serving, asking clients for certificates of the same authority and accepting those that have none.
    pub tls: Arc<ServerConfig>,
}

impl Pki {
    /// Reads `DIR/ca.crt`, `ca.key`, `server.crt` and `server.key`; makes what is missing. The serving certificate is for
    /// `hosts` besides the names that pods use.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn open(dir: &Path, hosts: &[String]) -> Result<Pki, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.into(), source })?;
        let [ca, ca_key, server, server_key] =
            ["ca.crt", "ca.key", "server.crt", "server.key"].map(|name| dir.join(name));
        let authority = if ca_key.exists() {
            let key = KeyPair::from_pem(&read(&ca_key)?)?;
            CertifiedIssuer::self_signed(authority_params(), key)?
        } else {
            let authority = CertifiedIssuer::self_signed(authority_params(), KeyPair::generate()?)?;
            write(&ca_key, authority.key().serialize_pem().as_bytes(), 0o600)?;
            write(&ca, authority.pem().as_bytes(), 0o644)?;
            authority
        };
        // Made at each start: the hosts may be others now.
        let key = KeyPair::generate()?;
        let certificate = serving_params(hosts)?.signed_by(&key, &authority)?;
        write(&server_key, key.serialize_pem().as_bytes(), 0o600)?;
        write(&server, certificate.pem().as_bytes(), 0o644)?;
        let ca_pem = read(&ca)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate_of(&ca)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let kubelet_client = kubelet_client(&authority, roots.clone(), provider.clone())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let private = PrivateKeyDer::from_pem_file(&server_key)
            .map_err(|source| PkiError::Read { path: server_key.clone(), source })?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate_of(&server)?], private)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Pki { ca: ca_pem, kubelet_client, tls: Arc::new(tls) })
    }
}

/// A certificate that lasts as long as the process: nobody else needs it, so its key is never written.
fn kubelet_client(
    authority: &CertifiedIssuer<'_, KeyPair>,
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver-kubelet-client");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    validity(&mut params, SERVING_DAYS);
    let certificate = params.signed_by(&key, authority)?;
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )?;
    Ok(Arc::new(tls))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "coracle");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, AUTHORITY_DAYS);
    params
}

fn serving_params(hosts: &[String]) -> Result<CertificateParams, PkiError> {
    let names: Vec<String> = NAMES.iter().map(ToString::to_string).chain(hosts.iter().cloned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "coracle-control");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, SERVING_DAYS);
    Ok(params)
}

/// From a day ago, for clocks that are behind.
fn validity(params: &mut CertificateParams, days: i64) {
    let now = jiff::Timestamp::now().as_second();
    let date = |seconds: i64| {
        let at = jiff::Timestamp::from_second(seconds).unwrap_or_default();
        let date = at.to_zoned(jiff::tz::TimeZone::UTC).date();
        let part = |value: i8| u8::try_from(value).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    params.not_before = date(now - 86_400);
    params.not_after = date(now + days * 86_400);
}

fn certificate_of(path: &Path) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_file(path).map_err(|source| PkiError::Read { path: path.into(), source })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::File { path: path.into(), source })
}

/// Whole or not at all, and durable.
pub fn write(path: &Path, text: &[u8], mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension("tmp");
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|source| PkiError::File { path: path.into(), source })
}
