//! Whose certificates TLS takes from clients.
//!
//! Those of the authority that are valid now; and those of boards that ended lately. A board that was off or out of reach
//! for longer than its certificate lasted can so prove that it has the old key, and is given nothing for it but leave to
//! ask for the next certificate: `crate::auth` makes of it somebody who may do nothing else.

use super::PkiError;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Debug)]
pub(super) struct Clients {
    valid: Arc<dyn ClientCertVerifier>,
    /// So long after its end.
    expired: Duration,
}

impl Clients {
    pub fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        expired: Duration,
    ) -> Result<Clients, PkiError> {
        let valid = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()?;
        Ok(Clients { valid, expired })
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.valid.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.valid.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let ended = match self.valid.verify_client_cert(end_entity, intermediates, now) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => not_after,
            verified => return verified,
        };
        let lately = now.as_secs().saturating_sub(ended.as_secs()) <= self.expired.as_secs();
        if !lately || !is_of_a_node(end_entity) {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        // Everything else about it must be right.
        self.valid.verify_client_cert(end_entity, intermediates, ended)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.valid.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.valid.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.valid.supported_verify_schemes()
    }
}

fn is_of_a_node(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let mut names = certificate.subject().iter_common_name();
    let name = names.next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let mut groups = certificate.subject().iter_organization();
    let group = groups.next().and_then(|group| group.as_str().ok());
    name.starts_with("system:node:")
        && group == Some("system:nodes")
        && names.next().is_none()
        && groups.next().is_none()
}
