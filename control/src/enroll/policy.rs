//! Which requests for certificates are approved without anybody's asking, and which no signer signs. Pure.
//!
//! ```text
//! requester                        signer                          approved when
//! bootstrap token                  kube-apiserver-client-kubelet   the name is free, or was given to this very key
//! node, with a valid certificate   "                               its own name, and its Node is there
//! node, whose certificate ended    "                               its own name, and its Node is older than that certificate
//! node, with a valid certificate   kubelet-serving                 its own name and the addresses of its Node
//! ```
//! A token for one name takes the name over: whoever made it said so. What is not in the table waits for
//! `kubectl certificate approve`; a bootstrap token's request for a name that is taken is denied, so that the board hears why.

use super::token::{self, Token};
use crate::auth::MASTERS;
use crate::object::{self, items, text};
use crate::pki::{Request, usages};
use jiff::Timestamp;
use serde_json::Value;
use std::net::IpAddr;

/// Client certificates of nodes.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Client certificates of anybody.
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Serving certificates of nodes.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Whose user is a node.
pub const NODE_PREFIX: &str = "system:node:";
/// Every node is in it.
pub const NODES: &str = "system:nodes";
/// Before a node's name, in the name of whoever has but its certificate that ended.
pub const EXPIRED_PREFIX: &str = "coracle.dev:expired-node:";
/// Of such a user: when that certificate was issued, in seconds.
pub const ISSUED: &str = "coracle.dev/certificate-issued";
/// On a Node: the SHA-256 of the key that its name was given to.
pub const KEY: &str = "coracle.dev/client-key";

/// On a Node: the one before, after a renewal. A board that lost the answer to it still has that one alone.
pub const PREVIOUS: &str = "coracle.dev/previous-client-key";

/// Whether a Node's name was given to this key, and to no other since. A Node that nobody enrolled was given to none.
pub fn holds(node: &Value, key: &str) -> bool {
    [KEY, PREVIOUS].iter().any(|of| text(node, &["metadata", "annotations", of]) == key) && !key.is_empty()
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Approve, and if it is a token's, take one use of it and make the Node.
    Approve(Approval),
    /// Deny: reason and message.
    Deny(&'static str, String),
    /// Somebody else is to say.
    Leave,
}

/// Why a request is approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// A name that nobody has.
    NewNode,
    /// A name that a token was made for, from whoever had it.
    Replacement,
    /// The same board, the same key once more.
    Again,
    /// The next certificate of a node.
    Renewal,
    /// A node's serving certificate.
    Serving,
}

/// What is known besides the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// The Node of the name that is asked for.
    pub node: Option<&'a Value>,
    /// The requester's token.
    pub token: Option<&'a Token>,
}

/// What may be in a certificate of a signer.
///
/// # Errors
/// Why it does not sign this.
pub fn signable(signer: &str, request: &Request, spec: &Value) -> Result<(), String> {
    let wanted: Vec<&str> = items(spec, &["usages"]).iter().filter_map(Value::as_str).collect();
    if let Err(unknown) = usages(wanted.iter().copied()) {
        return Err(format!("unrecognized usage values: [{unknown}]"));
    }
    let (purpose, kubelet) = match signer {
        KUBELET_CLIENT => ("client auth", true),
        KUBELET_SERVING => ("server auth", true),
        _ => ("client auth", false),
    };
    let allowed = ["digital signature", "key encipherment", purpose];
    let fits = wanted.contains(&purpose) && wanted.iter().all(|usage| allowed.contains(usage));
    if !fits || (kubelet && !wanted.contains(&"digital signature")) {
        return Err(format!("usages did not match [{}]", allowed.join(" ")));
    }
    let (dns, ips, others) = request.hosts();
    if !kubelet {
        // However the request came to be stored: who is in this group is beyond every role.
        if signer == API_CLIENT && request.organizations.iter().any(|o| o == MASTERS) {
            return Err(format!("the organization {MASTERS} is not signed for"));
        }
        return match request.common_name.is_empty() {
            true => Err("one subject common name is needed".into()),
            false => Ok(()),
        };
    }
    if request.organizations != [NODES] || request.other_attributes > 0 {
        return Err("subject organization is not system:nodes".into());
    }
    let name = request.common_name.strip_prefix(NODE_PREFIX).unwrap_or_default();
    if !is_node_name(name) {
        return Err("subject common name does not begin with system:node:".into());
    }
    match signer {
        KUBELET_CLIENT if !request.names.is_empty() => {
            Err("DNS, IP, email and URI subjectAltNames are not allowed".into())
        }
        KUBELET_SERVING if others > 0 => Err("email and URI subjectAltNames are not allowed".into()),
        KUBELET_SERVING if dns.is_empty() && ips.is_empty() => {
            Err("DNS or IP subjectAltName is required".into())
        }
        _ => Ok(()),
    }
}

/// What becomes of a request that [`signable`] has nothing against. `spec` says who asks.
pub fn judge(request: &Request, spec: &Value, facts: Facts<'_>) -> Verdict {
    let name = request.common_name.strip_prefix(NODE_PREFIX).unwrap_or_default();
    let user = text(spec, &["username"]);
    let is_in = |group: &str| items(spec, &["groups"]).iter().any(|g| g == group);
    let itself = |prefix: &str| user.strip_prefix(prefix) == Some(name);
    // The requester's key, or the one that is asked for: after an answer that was lost it has the name already.
    let presented = items(spec, &["extra", KEY]).first().and_then(Value::as_str).unwrap_or_default();
    let may_renew = |node: &Value| holds(node, presented) || holds(node, &request.key_hash);
    let replaced = || {
        let why = format!("node {name:?} was deleted or given to another board since: it must join again");
        Verdict::Deny("NodeReplaced", why)
    };
    match text(spec, &["signerName"]) {
        KUBELET_CLIENT if user.starts_with(token::USER_PREFIX) && is_in(token::GROUP) => {
            joining(request, name, facts)
        }
        KUBELET_CLIENT if itself(NODE_PREFIX) && is_in(NODES) => match facts.node {
            Some(node) if may_renew(node) => Verdict::Approve(Approval::Renewal),
            Some(_) => replaced(),
            None => Verdict::Deny("NodeDeleted", format!("node {name:?} was deleted: it must join again")),
        },
        KUBELET_CLIENT if itself(EXPIRED_PREFIX) && is_in(token::GROUP) => {
            let issued = items(spec, &["extra", ISSUED]).first().and_then(Value::as_str);
            let issued = issued.and_then(|text| text.parse::<i64>().ok());
            let made = facts.node.map(|node| text(node, &["metadata", "creationTimestamp"]));
            let made = made.and_then(|text| text.parse::<Timestamp>().ok());
            match (made, issued) {
                // A Node that is younger belongs to another board of the same name.
                (Some(made), Some(issued)) if made.as_second() <= issued => {
                    if facts.node.is_some_and(may_renew) {
                        Verdict::Approve(Approval::Renewal)
                    } else {
                        replaced()
                    }
                }
                _ => Verdict::Deny(
                    "NodeDeleted",
                    format!("node {name:?} was deleted since its certificate was issued: it must join again"),
                ),
            }
        }
        KUBELET_SERVING if itself(NODE_PREFIX) && is_in(NODES) => match facts.node {
            Some(node) if is_its_own(request, name, node) => Verdict::Approve(Approval::Serving),
            _ => Verdict::Leave,
        },
        _ => Verdict::Leave,
    }
}

fn joining(request: &Request, name: &str, facts: Facts<'_>) -> Verdict {
    let Some(token) = facts.token else { return Verdict::Leave };
    if token.node.as_deref().is_some_and(|node| node != name) {
        return Verdict::Deny("NodeName", format!("the token is not for a node of the name {name:?}"));
    }
    let approval = match facts.node {
        Some(node) if text(node, &["metadata", "annotations", KEY]) == request.key_hash => Approval::Again,
        Some(_) if token.node.is_some() => Approval::Replacement,
        Some(_) => {
            return Verdict::Deny(
                "NodeExists",
                format!(
                    "node {name:?} exists: delete it first, choose another --node-name, or create a token with --node {name}"
                ),
            );
        }
        None => Approval::NewNode,
    };
    Verdict::Approve(approval)
}

/// Whether a serving certificate names nothing but the node.
fn is_its_own(request: &Request, name: &str, node: &Value) -> bool {
    let (dns, ips, _) = request.hosts();
    let addresses: Vec<&str> =
        items(node, &["status", "addresses"]).iter().map(|address| text(address, &["address"])).collect();
    let own = |ip: &IpAddr| addresses.iter().any(|address| address.parse() == Ok(*ip));
    object::name(node) == name
        && dns.iter().all(|dns| *dns == name || addresses.contains(dns))
        && ips.iter().all(own)
}

/// RFC 1123 subdomain, as `metadata.name` of a Node.
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
#[path = "policy_test.rs"]
mod tests;
