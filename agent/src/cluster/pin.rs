//! Whom a board believes that has not joined yet: whoever has a certificate of the authority whose key has the hash that the
//! board was told.
//!
//! The control plane sends its authority along with its own certificate. The handshake is believed only when that
//! authority's public key has the pinned hash, and then as strictly as any: chain, name, signature, time. So nothing is read
//! from a peer that is not verified, and nothing, above all not the token, is sent to one.

use super::credentials::Certificate;
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// `sha256:` and 64 hexadecimal digits: of the DER of a SubjectPublicKeyInfo, as kubeadm has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin([u8; 32]);

impl std::str::FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        let wrong = || "sha256: and 64 hexadecimal digits are expected".to_string();
        let hex =
            text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii()).ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            // from_str_radix takes a sign.
            let pair = hex[at..at + 2].bytes().all(|b| b.is_ascii_hexdigit()).then_some(&hex[at..at + 2]);
            *byte = u8::from_str_radix(pair.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        }
        Ok(Pin(bytes))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pinned {
    pin: Pin,
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl Pinned {
    pub(crate) fn new(pin: Pin) -> Arc<Pinned> {
        Arc::new(Pinned { pin, found: Mutex::new(None) })
    }

    /// The authority, once a handshake was believed.
    pub(crate) fn authority(&self) -> Option<CertificateDer<'static>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_hash(&self, der: &[u8]) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
        digest(&SHA256, certificate.public_key().raw).as_ref() == self.pin.0
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|certificate| self.has_hash(certificate));
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        // It began before now, whatever this board's clock says: see `clock`.
        let begun = Certificate::parse(authority).map_or(0, |authority| authority.validity.from);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(begun)));
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(authority.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    #[test]
    fn a_pin_is_read_or_refused() {
        let check = |text: &str, good: bool| assert_eq!(text.parse::<Pin>().is_ok(), good, "{text}");
        check(&format!("sha256:{}", "0f".repeat(32)), true);
        check(&format!("sha256:{}", "0f".repeat(31)), false);
        check(&format!("sha256:{}", "+f".repeat(32)), false);
        check(&format!("sha1:{}", "0f".repeat(32)), false);
        check(&format!("sha256:{}", "é".repeat(32)), false);
        check("", false);
    }

    #[test]
    fn only_the_authority_with_the_hash_is_believed() {
        let issuer = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_before = rcgen::date_time_ymd(2030, 1, 1);
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
        };
        let (ours, theirs) = (issuer("coracle"), issuer("coracle"));
        let leaf = |issuer: &CertifiedIssuer<'_, KeyPair>| {
            let mut params = CertificateParams::new(vec!["api".to_string()]).expect("a name");
            params.not_before = rcgen::date_time_ymd(2030, 1, 1);
            let key = KeyPair::generate().expect("a key");
            params.signed_by(&key, issuer).expect("signed").der().clone()
        };
        let (_, parsed) = X509Certificate::from_der(ours.der()).expect("a certificate");
        let pin = Pin(digest(&SHA256, parsed.public_key().raw).as_ref().try_into().expect("32 bytes"));
        let check = |leaf: &CertificateDer<'_>,
                     chain: Option<&CertificateDer<'static>>,
                     name: &str,
                     seconds,
                     good: bool| {
            let (pinned, chain) = (Pinned::new(pin.clone()), Vec::from_iter(chain.cloned()));
            let name = ServerName::try_from(name.to_string()).expect("a name");
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let found = pinned.verify_server_cert(leaf, &chain, &name, &[], now);
            assert_eq!(found.is_ok(), good, "{found:?}");
            assert_eq!(pinned.authority().is_some(), good);
        };
        let (own, foreign) = (leaf(&ours), leaf(&theirs));
        let (ca, other) = (ours.der().clone(), theirs.der().clone());
        check(&own, Some(&ca), "api", 1_900_000_000, true);
        // A board without a clock joins too.
        check(&own, Some(&ca), "api", 0, true);
        check(&own, Some(&ca), "elsewhere", 1_900_000_000, false);
        check(&own, None, "api", 1_900_000_000, false);
        check(&foreign, Some(&other), "api", 1_900_000_000, false);
        // Whoever knows our authority's certificate, as everybody does, is not believed for it.
        check(&foreign, Some(&ca), "api", 1_900_000_000, false);
        check(&own, Some(&other), "api", 1_900_000_000, false);
    }
}
