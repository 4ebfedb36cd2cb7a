//! Who comes with a certificate that ended: a node that was away for long.

use super::BACKDATED;
use super::policy::{EXPIRED_PREFIX, ISSUED, KEY, NODE_PREFIX};
use super::token::GROUP;
use crate::auth::Identity;
use crate::pki::hex;
use jiff::Timestamp;
use x509_parser::prelude::X509Certificate;

/// `None` for a certificate that is good. Otherwise somebody who may send a request for a certificate like any board that
/// joins, who is no node, and who says when the old certificate was issued: `policy` judges by that.
pub(crate) fn ended(certificate: &X509Certificate<'_>, now: Timestamp) -> Option<Identity> {
    let validity = certificate.validity();
    if now.as_second() <= validity.not_after.timestamp() {
        return None;
    }
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let node = name.and_then(|name| name.strip_prefix(NODE_PREFIX)).unwrap_or_default();
    let mut identity = Identity::known(format!("{EXPIRED_PREFIX}{node}"), [GROUP.to_string()]);
    let backdated = i64::try_from(BACKDATED.as_secs()).unwrap_or_default();
    let issued = validity.not_before.timestamp().saturating_add(backdated);
    identity.extra.insert(ISSUED.into(), vec![issued.to_string()]);
    identity.extra.insert(KEY.into(), vec![key_of(certificate)]);
    Some(identity)
}

/// The SHA-256 of a certificate's key, in hex, as a request for a certificate has it.
pub(crate) fn key_of(certificate: &X509Certificate<'_>) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, certificate.public_key().raw).as_ref())
}
