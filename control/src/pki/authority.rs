//! An authority: a key and a certificate in two files, and what it signs.
//!
//! Invariants: the key is written 0600, never leaves the machine and is never printed; serial numbers are random; nothing
//! that is signed outlives the authority, can sign itself, or has more than it was asked for.

use super::{PkiError, write};
use der::asn1::{Any, BitString, Ia5String, OctetString, SetOfVec, Utf8StringRef};
use der::flagset::FlagSet;
use der::oid::AssociatedOid;
use der::oid::db::rfc4519::{COMMON_NAME, ORGANIZATION_NAME};
use der::oid::db::rfc5912::{ECDSA_WITH_SHA_256, ID_EC_PUBLIC_KEY, SECP_256_R_1};
use der::pem::LineEnding;
use der::{Decode, Encode, Sequence};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::certificate::Version;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
    SubjectKeyIdentifier,
};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, ObjectIdentifier, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

/// Ten years.
const LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// Made valid so long before it was made, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(86_400);

/// Signs.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    name: Name,
    key: EcdsaKeyPair,
    key_id: OctetString,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// What is to be signed.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Whose it is.
    pub subject: Name,
    /// Whose key.
    pub key: SubjectPublicKeyInfoOwned,
    /// The subject's other names.
    pub names: Vec<GeneralName>,
    /// `digital signature`, …
    pub usages: FlagSet<KeyUsages>,
    /// `client auth`, …
    pub extended: Vec<ObjectIdentifier>,
    /// From.
    pub not_before: SystemTime,
    /// Until, or as long as the authority lives.
    pub not_after: SystemTime,
}

#[derive(Sequence)]
struct Body {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: Version,
    serial_number: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    key: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct Signed {
    body: Body,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

impl Authority {
    /// Reads `DIR/STEM.crt` and `DIR/STEM.key`, or makes them.
    ///
    /// # Errors
    /// Files that cannot be read, written or understood.
    pub fn open(dir: &Path, stem: &str, common_name: &str) -> Result<Authority, PkiError> {
        let (certificate, key) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        if !key.exists() || !certificate.exists() {
            // The key may be there alone, from a start that was cut short.
            let pkcs8 = if key.exists() { read_key(&key)? } else { new_key()? };
            let made = self_signed(common_name, &pkcs8)?;
            write(&key, pem("PRIVATE KEY", pkcs8.secret_pkcs8_der())?.as_bytes(), 0o600)?;
            write(&certificate, pem("CERTIFICATE", &made)?.as_bytes(), 0o644)?;
        }
        let text = super::read(&certificate)?;
        let der = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|source| PkiError::Read { path: certificate.clone(), source })?;
        let parsed = x509_cert::Certificate::from_der(&der)?;
        let body = parsed.tbs_certificate();
        let key_info = body.subject_public_key_info().to_der()?;
        let key_id = match body.get_extension::<SubjectKeyIdentifier>()? {
            Some((_, id)) => id.0,
            None => key_id(body.subject_public_key_info())?,
        };
        let key = ring_key(&read_key(&key)?)?;
        if key_spki(&key)?.to_der()? != key_info {
            return Err(PkiError::Mismatch { path: certificate });
        }
        Ok(Authority {
            name: body.subject().clone(),
            key_id,
            not_before: body.validity().not_before.to_system_time(),
            not_after: body.validity().not_after.to_system_time(),
            key,
            certificate: der,
            pem: text,
        })
    }

    /// In PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// In DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// From when on.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// A certificate.
    ///
    /// # Errors
    /// Times beyond what a certificate can say; no random numbers.
    pub fn sign(&self, leaf: Leaf) -> Result<CertificateDer<'static>, PkiError> {
        let mut extensions = vec![
            extension(true, &KeyUsage(leaf.usages))?,
            extension(true, &BasicConstraints { ca: false, path_len_constraint: None })?,
            extension(
                false,
                &AuthorityKeyIdentifier {
                    key_identifier: Some(self.key_id.clone()),
                    authority_cert_issuer: None,
                    authority_cert_serial_number: None,
                },
            )?,
        ];
        if !leaf.extended.is_empty() {
            extensions.push(extension(false, &ExtendedKeyUsage(leaf.extended))?);
        }
        if !leaf.names.is_empty() {
            extensions.push(extension(false, &SubjectAltName(leaf.names))?);
        }
        let body = Body {
            version: Version::V3,
            serial_number: serial_number()?,
            signature: algorithm(),
            issuer: self.name.clone(),
            validity: validity(leaf.not_before, leaf.not_after.min(self.not_after))?,
            subject: leaf.subject,
            key: leaf.key,
            extensions,
        };
        sign(body, &self.key)
    }
}

fn self_signed(common_name: &str, key: &PrivatePkcs8KeyDer<'_>) -> Result<CertificateDer<'static>, PkiError> {
    let key = ring_key(key)?;
    let info = key_spki(&key)?;
    let name = subject(common_name, &[])?;
    let now = SystemTime::now();
    let usages = KeyUsages::KeyCertSign | KeyUsages::CRLSign | KeyUsages::DigitalSignature;
    let extensions = vec![
        extension(true, &KeyUsage(usages))?,
        extension(true, &BasicConstraints { ca: true, path_len_constraint: Some(0) })?,
        extension(false, &SubjectKeyIdentifier(key_id(&info)?))?,
    ];
    let body = Body {
        version: Version::V3,
        serial_number: serial_number()?,
        signature: algorithm(),
        issuer: name.clone(),
        validity: validity(now - BACKDATED, now + LIFETIME)?,
        subject: name,
        key: info,
        extensions,
    };
    sign(body, &key)
}

fn sign(body: Body, key: &EcdsaKeyPair) -> Result<CertificateDer<'static>, PkiError> {
    let signature = key.sign(&SystemRandom::new(), &body.to_der()?).map_err(|_| PkiError::Crypto)?;
    let signature = BitString::from_bytes(signature.as_ref())?;
    Ok(Signed { body, algorithm: algorithm(), signature }.to_der()?.into())
}

/// A common name and organisations, each in an RDN of its own as Go writes them.
///
/// # Errors
/// Names that are longer than DER can say.
pub fn subject(common_name: &str, organizations: &[String]) -> Result<Name, PkiError> {
    let mut sequence = RdnSequence::default();
    let organizations = organizations.iter().map(|group| (ORGANIZATION_NAME, group.as_str()));
    for (oid, text) in organizations.chain([(COMMON_NAME, common_name)]) {
        let value = Any::encode_from(&Utf8StringRef::new(text)?)?;
        let mut set = SetOfVec::new();
        set.insert(AttributeTypeAndValue { oid, value })?;
        sequence.push(RelativeDistinguishedName::from(set));
    }
    Ok(Name::from_der(&sequence.to_der()?)?)
}

/// An address, or else a name.
///
/// # Errors
/// A name that is no ASCII.
pub fn general_name(host: &str) -> Result<GeneralName, PkiError> {
    Ok(match host.parse() {
        Ok(IpAddr::V4(ip)) => GeneralName::IpAddress(OctetString::new(ip.octets())?),
        Ok(IpAddr::V6(ip)) => GeneralName::IpAddress(OctetString::new(ip.octets())?),
        Err(_) => GeneralName::DnsName(Ia5String::new(host)?),
    })
}

/// A fresh key on P-256, as PKCS #8.
///
/// # Errors
/// No random numbers.
pub fn new_key() -> Result<PrivatePkcs8KeyDer<'static>, PkiError> {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
    Ok(pkcs8.map_err(|_| PkiError::Crypto)?.as_ref().to_vec().into())
}

/// Its public half.
///
/// # Errors
/// Not a key on P-256.
pub fn public_key(key: &PrivatePkcs8KeyDer<'_>) -> Result<SubjectPublicKeyInfoOwned, PkiError> {
    key_spki(&ring_key(key)?)
}

/// In PEM.
///
/// # Errors
/// None with such labels.
pub fn pem(label: &'static str, der: &[u8]) -> Result<String, PkiError> {
    der::pem::encode_string(label, LineEnding::LF, der).map_err(|error| PkiError::Make(error.into()))
}

fn read_key(path: &Path) -> Result<PrivatePkcs8KeyDer<'static>, PkiError> {
    PrivatePkcs8KeyDer::from_pem_file(path).map_err(|source| PkiError::Read { path: path.into(), source })
}

fn ring_key(key: &PrivatePkcs8KeyDer<'_>) -> Result<EcdsaKeyPair, PkiError> {
    let secret = key.secret_pkcs8_der();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, secret, &SystemRandom::new())
        .map_err(|_| PkiError::Crypto)
}

fn key_spki(key: &EcdsaKeyPair) -> Result<SubjectPublicKeyInfoOwned, PkiError> {
    Ok(SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: ID_EC_PUBLIC_KEY,
            parameters: Some(Any::encode_from(&SECP_256_R_1)?),
        },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref())?,
    })
}

/// RFC 7093, method 1: twenty bytes of the SHA-256 of the key.
fn key_id(key: &SubjectPublicKeyInfoOwned) -> Result<OctetString, PkiError> {
    let digest = ring::digest::digest(&ring::digest::SHA256, key.subject_public_key.raw_bytes());
    Ok(OctetString::new(&digest.as_ref()[..20])?)
}

fn algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: ECDSA_WITH_SHA_256, parameters: None }
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> Result<Extension, PkiError> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

fn serial_number() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| PkiError::Crypto)?;
    Ok(SerialNumber::new(&bytes)?)
}

fn validity(from: SystemTime, until: SystemTime) -> Result<Validity, PkiError> {
    let time = |at: SystemTime| {
        // Whole seconds: DER has no others.
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Time::try_from(UNIX_EPOCH + Duration::from_secs(seconds))
    };
    Ok(Validity::new(time(from)?, time(until)?))
}
