//! The control plane's own certificates: what the API is served with, and as whom kubelets are dialled.
//!
//! Their keys live in memory only. Each is made anew, while connections go on, once two thirds of its life are over; what
//! was handed out before stays good. What the API is served with is valid from the authority's own beginning, so that a
//! board whose clock stands at the time when it joined still believes it.

use super::authority::{self, Authority, Leaf};
use super::{PkiError, write};
use der::oid::db::rfc5280::{ID_KP_CLIENT_AUTH, ID_KP_SERVER_AUTH};
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use x509_cert::ext::pkix::KeyUsages;

/// So long each is good.
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// … and so long it is used.
const USED: Duration = Duration::from_secs(60 * 86_400);
/// How long one goes on being used when no new one can be made, before that is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Who we are.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// The API, at these hosts. The certificate is written to the file as well, for whoever looks.
    Serving { hosts: Vec<String>, file: PathBuf },
    /// A client, with these organisations.
    Client { name: &'static str, groups: Vec<String> },
}

/// A certificate that renews itself.
pub(super) struct Own {
    authority: Arc<Authority>,
    purpose: Purpose,
    current: Mutex<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    /// When another one is made. A clock that jumps back makes one too: nobody is harmed by that.
    made: SystemTime,
    renew: SystemTime,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

impl Own {
    pub fn new(authority: Arc<Authority>, purpose: Purpose) -> Result<Own, PkiError> {
        let current = make(&authority, &purpose, SystemTime::now())?;
        Ok(Own { authority, purpose, current: Mutex::new(current) })
    }

    /// The one to use now.
    fn current(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.renew || now < current.made {
            match make(&self.authority, &self.purpose, now) {
                Ok(made) => {
                    tracing::info!(purpose = ?self.purpose, "certificate renewed");
                    *current = made;
                }
                Err(error) => {
                    tracing::error!(%error, "a certificate of our own could not be renewed");
                    current.renew = now + RETRY;
                }
            }
        }
        current.key.clone()
    }
}

fn make(authority: &Authority, purpose: &Purpose, now: SystemTime) -> Result<Current, PkiError> {
    let key = authority::new_key()?;
    let (name, groups, hosts, extended) = match purpose {
        Purpose::Serving { hosts, .. } => ("coracle-control", &[][..], &**hosts, ID_KP_SERVER_AUTH),
        Purpose::Client { name, groups } => (*name, &**groups, &[][..], ID_KP_CLIENT_AUTH),
    };
    let certificate = authority.sign(Leaf {
        subject: authority::subject(name, groups)?,
        key: authority::public_key(&key)?,
        names: hosts.iter().map(|host| authority::general_name(host)).collect::<Result<_, _>>()?,
        usages: KeyUsages::DigitalSignature.into(),
        extended: vec![extended],
        not_before: authority.not_before(),
        not_after: now + LIFETIME,
    })?;
    if let Purpose::Serving { file, .. } = purpose {
        write(file, authority::pem("CERTIFICATE", &certificate)?.as_bytes(), 0o644)?;
    }
    let signer = any_ecdsa_type(&PrivateKeyDer::Pkcs8(key))?;
    // With the authority's own: a board that joins knows but the hash of its key.
    let chain = vec![certificate, authority.certificate().clone()];
    Ok(Current { key: Arc::new(CertifiedKey::new(chain, signer)), made: now, renew: now + USED })
}

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(SystemTime::now()))
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current(SystemTime::now()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Certificate};

    fn serial(key: &CertifiedKey) -> String {
        X509Certificate::from_der(&key.cert[0]).expect("a certificate").1.raw_serial_as_string()
    }

    #[test]
    fn a_certificate_is_renewed_while_it_is_in_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Arc::new(Authority::open(dir.path(), "ca", "coracle").expect("an authority"));
        let file = dir.path().join("server.crt");
        let hosts = vec!["a.example".into(), "10.0.0.1".into(), "::1".into()];
        let own = Own::new(authority.clone(), Purpose::Serving { hosts, file }).expect("a certificate");
        let now = SystemTime::now();
        let (first, later) = (own.current(now), own.current(now + USED - Duration::from_secs(60)));
        assert_eq!(serial(&first), serial(&later));
        let renewed = own.current(now + USED);
        assert_ne!(serial(&first), serial(&renewed));
        assert_eq!(serial(&own.current(now + USED)), serial(&renewed));
        let (_, leaf) = X509Certificate::from_der(&renewed.cert[0]).expect("a certificate");
        let (_, ca) = X509Certificate::from_der(authority.certificate()).expect("a certificate");
        leaf.verify_signature(Some(ca.public_key())).expect("the authority's");
        ca.verify_signature(None).expect("its own");
        assert_eq!(leaf.validity().not_before, ca.validity().not_before);
    }
}
