//! Reading a PKCS #10 request, as hostile text: one PEM block, a signature by its own key, nothing that is not understood.

use super::hex;
use der::asn1::{OctetString, PrintableStringRef, Utf8StringRef};
use der::flagset::FlagSet;
use der::oid::AssociatedOid;
use der::oid::db::rfc4519::{COMMON_NAME, ORGANIZATION_NAME};
use der::oid::db::rfc5280::{
    ID_KP_CLIENT_AUTH, ID_KP_CODE_SIGNING, ID_KP_EMAIL_PROTECTION, ID_KP_OCSP_SIGNING, ID_KP_SERVER_AUTH,
    ID_KP_TIME_STAMPING,
};
use der::{Decode, Encode};
use std::net::IpAddr;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{KeyUsages, SubjectAltName};
use x509_cert::name::Name;
use x509_cert::request::{CertReq, ExtensionReq};
use x509_cert::spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// More than any honest request.
const REQUEST_BYTES_MAX: usize = 64 << 10;
const LABEL: &str = "CERTIFICATE REQUEST";

/// A request that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Upstream's words for it.
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    Pem,
    /// The block's content.
    #[error("the request cannot be parsed")]
    Der,
    /// Whoever asks has no such key.
    #[error("the request is not signed by its own key")]
    Signature,
}

/// What somebody asks to be certified.
#[derive(Clone, Debug)]
pub struct Request {
    /// As it is written.
    pub subject: Name,
    /// The one common name; empty when there is none, or several.
    pub common_name: String,
    /// In order.
    pub organizations: Vec<String>,
    /// Attributes of the subject that are neither.
    pub other_attributes: usize,
    /// The key, which signed the request.
    pub key: SubjectPublicKeyInfoOwned,
    /// Its SHA-256, in hexadecimal.
    pub key_hash: String,
    /// Alternative names, as they are written.
    pub names: Vec<GeneralName>,
}

impl Request {
    /// Reads a `spec.request`, out of its base64.
    ///
    /// # Errors
    /// It is none.
    pub fn read(text: &[u8]) -> Result<Request, RequestError> {
        if text.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::Pem);
        }
        let (label, der) = der::pem::decode_vec(text.trim_ascii()).map_err(|_| RequestError::Pem)?;
        if label != LABEL {
            return Err(RequestError::Pem);
        }
        let request = CertReq::from_der(&der).map_err(|_| RequestError::Der)?;
        let (rest, signed) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Der)?;
        if !rest.is_empty() {
            return Err(RequestError::Der);
        }
        signed.verify_signature().map_err(|_| RequestError::Signature)?;
        let info = request.info;
        let (mut common_names, mut organizations, mut other_attributes) = (Vec::new(), Vec::new(), 0);
        for attribute in info.subject.iter() {
            match attribute.oid {
                COMMON_NAME => common_names.push(text_of(attribute)?),
                ORGANIZATION_NAME => organizations.push(text_of(attribute)?),
                _ => other_attributes += 1,
            }
        }
        let key_info = info.public_key.to_der().map_err(|_| RequestError::Der)?;
        let key_hash = hex(ring::digest::digest(&ring::digest::SHA256, &key_info).as_ref());
        let mut names = Vec::new();
        for attribute in info.attributes.iter().filter(|attribute| attribute.oid == ExtensionReq::OID) {
            for value in attribute.values.iter() {
                let extensions: Vec<Extension> = value.decode_as().map_err(|_| RequestError::Der)?;
                for extension in extensions.iter().filter(|e| e.extn_id == SubjectAltName::OID) {
                    let found = SubjectAltName::from_der(extension.extn_value.as_bytes());
                    names.extend(found.map_err(|_| RequestError::Der)?.0);
                }
            }
        }
        Ok(Request {
            subject: info.subject,
            common_name: match <[String; 1]>::try_from(common_names) {
                Ok([name]) => name,
                Err(_) => String::new(),
            },
            organizations,
            other_attributes,
            key: info.public_key,
            key_hash,
            names,
        })
    }

    /// Alternative names that are DNS names, those that are addresses, and how many are something else.
    pub fn hosts(&self) -> (Vec<&str>, Vec<IpAddr>, usize) {
        let (mut dns, mut ips, mut others) = (Vec::new(), Vec::new(), 0);
        for name in &self.names {
            match name {
                GeneralName::DnsName(name) => dns.push(name.as_str()),
                GeneralName::IpAddress(octets) => match address(octets) {
                    Some(ip) => ips.push(ip),
                    None => others += 1,
                },
                _ => others += 1,
            }
        }
        (dns, ips, others)
    }
}

fn address(octets: &OctetString) -> Option<IpAddr> {
    let bytes = octets.as_bytes();
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn text_of(attribute: &AttributeTypeAndValue) -> Result<String, RequestError> {
    let value = &attribute.value;
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_string());
    utf8.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_string()))
        .map_err(|_| RequestError::Der)
}

/// `spec.usages` as a certificate says them; the first that is not known otherwise.
///
/// # Errors
/// A usage that Kubernetes has not.
pub fn usages<'a>(
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(FlagSet<KeyUsages>, Vec<ObjectIdentifier>), &'a str> {
    let (mut flags, mut extended) = (FlagSet::default(), Vec::new());
    for name in names {
        match name {
            "signing" | "digital signature" => flags |= KeyUsages::DigitalSignature,
            "content commitment" => flags |= KeyUsages::NonRepudiation,
            "key encipherment" => flags |= KeyUsages::KeyEncipherment,
            "key agreement" => flags |= KeyUsages::KeyAgreement,
            "data encipherment" => flags |= KeyUsages::DataEncipherment,
            "encipher only" => flags |= KeyUsages::EncipherOnly,
            "decipher only" => flags |= KeyUsages::DecipherOnly,
            "server auth" => extended.push(ID_KP_SERVER_AUTH),
            "client auth" => extended.push(ID_KP_CLIENT_AUTH),
            "code signing" => extended.push(ID_KP_CODE_SIGNING),
            "email protection" | "s/mime" => extended.push(ID_KP_EMAIL_PROTECTION),
            "timestamping" => extended.push(ID_KP_TIME_STAMPING),
            "ocsp signing" => extended.push(ID_KP_OCSP_SIGNING),
            // `cert sign` and `crl sign` too: no signer here makes authorities.
            other => return Err(other),
        }
    }
    extended.dedup();
    Ok((flags, extended))
}
