//! What a board has of its cluster: `DIR/cluster`, for root alone.
//!
//! ```text
//! kubeconfig   where the API is; written last and removed first: with it the board belongs to a cluster
//! ca.crt       whom to believe            client.pem   certificate and key in one file, so that one rename changes both
//! pending.key  of a request under way     serving.crt, serving.key   of the kubelet's port        labels   KEY=VALUE lines
//! ```
//! Invariants: keys are made here, 0600, and never leave the directory; every file appears whole, by rename.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Of each file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The user that a node is.
pub(crate) const NODE_PREFIX: &str = "system:node:";
/// Every node is in it.
pub(crate) const NODES: &str = "system:nodes";

/// Credentials that cannot be read, kept or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("{path}: {source}", path = path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a key or a request cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the certificate that was signed is not the one that was asked for")]
    Foreign,
}

/// Seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub from: u64,
    pub until: u64,
}

/// What is of interest in a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub validity: Validity,
    pub common_name: String,
    /// Names and addresses.
    pub names: Vec<String>,
    /// The public key, as it stands in the certificate.
    key: Vec<u8>,
}

impl Certificate {
    /// The first certificate of a PEM text.
    pub(crate) fn read(pem: &[u8]) -> Option<Certificate> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        Certificate::parse(&CertificateDer::from_pem_slice(pem).ok()?)
    }

    /// DER.
    pub(crate) fn parse(der: &[u8]) -> Option<Certificate> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        let validity = parsed.validity();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let mut names = Vec::new();
        if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
            for name in &alternative.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.push((*name).to_string()),
                    GeneralName::IPAddress(bytes) => names.extend(address(bytes).map(|ip| ip.to_string())),
                    _ => {}
                }
            }
        }
        Some(Certificate {
            validity: Validity {
                from: seconds(validity.not_before.timestamp()),
                until: seconds(validity.not_after.timestamp()),
            },
            common_name: common_name.unwrap_or_default().to_string(),
            names,
            key: parsed.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Whether it is for this key.
    pub(crate) fn is_for(&self, key: &KeyPair) -> bool {
        self.key == key.public_key_raw()
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    dir: PathBuf,
}

impl Credentials {
    /// Below an agent's data directory.
    pub(crate) fn below(data: &Path) -> Credentials {
        Credentials { dir: data.join("cluster") }
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, for root alone.
    pub(crate) fn make_dir(&self) -> Result<(), CredentialError> {
        match DirBuilder::new().recursive(true).mode(0o700).create(&self.dir) {
            Ok(()) => Ok(()),
            Err(source) => Err(CredentialError::File { path: self.dir.clone(), source }),
        }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// Our certificate, if the board has joined.
    pub(crate) fn client(&self) -> Option<Certificate> {
        if !self.kubeconfig().exists() {
            return None;
        }
        Certificate::read(&self.read("client.pem").ok()??)
    }

    /// The node's name, if the board has joined.
    pub(crate) fn node_name(&self) -> Option<String> {
        let name = self.client()?.common_name;
        name.strip_prefix(NODE_PREFIX).map(String::from)
    }

    pub(crate) fn authority(&self) -> Option<Certificate> {
        Certificate::read(&self.read("ca.crt").ok()??)
    }

    pub(crate) fn serving(&self) -> Option<Certificate> {
        Certificate::read(&self.read("serving.crt").ok()??)
    }

    /// The labels that `coracle join` was given.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let text = self.read("labels").ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok());
        let pairs = text.unwrap_or_default();
        pairs.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    /// A key of that name: the one that is there, or a new one.
    pub(crate) fn key(&self, name: &str) -> Result<KeyPair, CredentialError> {
        if let Some(text) = self.read(name)? {
            let text = String::from_utf8_lossy(&text);
            // One that was torn by a crash is of no use to anybody.
            if let Ok(key) = KeyPair::from_pem(&text) {
                return Ok(key);
            }
        }
        let key = KeyPair::generate()?;
        self.write(name, key.serialize_pem().as_bytes(), 0o600)?;
        Ok(key)
    }

    /// Belongs to a cluster from here on.
    pub(crate) fn join(
        &self,
        server: &str,
        authority: &str,
        certificate: &str,
        key: &KeyPair,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), CredentialError> {
        self.write("ca.crt", authority.as_bytes(), 0o600)?;
        let lines: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        self.write("labels", lines.concat().as_bytes(), 0o600)?;
        self.renew_client(certificate, key)?;
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: coracle\n  cluster:\n    server: {server}\n    certificate-authority: ca.crt\nusers:\n- name: node\n  user:\n    client-certificate: client.pem\n    client-key: client.pem\ncontexts:\n- name: node\n  context: {{cluster: coracle, user: node}}\ncurrent-context: node\n"
        );
        self.write("kubeconfig", kubeconfig.as_bytes(), 0o600)
    }

    /// Another certificate, with its key.
    pub(crate) fn renew_client(&self, certificate: &str, key: &KeyPair) -> Result<(), CredentialError> {
        if !Certificate::read(certificate.as_bytes()).is_some_and(|found| found.is_for(key)) {
            return Err(CredentialError::Foreign);
        }
        let both = format!("{}\n{}", certificate.trim_end(), key.serialize_pem());
        self.write("client.pem", both.as_bytes(), 0o600)?;
        self.forget(PENDING)
    }

    /// Another serving certificate for the key that is there.
    pub(crate) fn renew_serving(&self, certificate: &str, key: &KeyPair) -> Result<(), CredentialError> {
        if !Certificate::read(certificate.as_bytes()).is_some_and(|found| found.is_for(key)) {
            return Err(CredentialError::Foreign);
        }
        self.write("serving.crt", certificate.as_bytes(), 0o600)
    }

    /// Belongs to none any more. Done again, it does what is left to do.
    pub(crate) fn leave(&self) -> Result<(), CredentialError> {
        for name in ["kubeconfig", "client.pem", PENDING, "serving.crt", "serving.key", "ca.crt", "labels"] {
            self.forget(name)?;
        }
        Ok(())
    }

    pub(crate) fn forget(&self, name: &str) -> Result<(), CredentialError> {
        let path = self.dir.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CredentialError::File { path, source })
            }
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, CredentialError> {
        let path = self.dir.join(name);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(bytes)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CredentialError::File { path, source }),
        }
    }

    /// Whole or not at all, and durable.
    fn write(&self, name: &str, text: &[u8], mode: u32) -> Result<(), CredentialError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        })();
        written.map_err(|source| CredentialError::File { path, source })
    }
}

/// The key of a request whose certificate has not come yet: asked again, it is the same board that asks.
pub(crate) const PENDING: &str = "pending.key";

/// A PKCS #10 request in PEM, for a node.
pub(crate) fn request(key: &KeyPair, node: &str, names: &[String]) -> Result<String, CredentialError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, format!("{NODE_PREFIX}{node}"));
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    Ok(params.serialize_request(key)?.pem()?)
}
