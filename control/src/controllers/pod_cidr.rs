//! A range of addresses for the pods of each node (`spec.podCIDR`).
//!
//! ```text
//! node without a range ──► the lowest free one ──► claimed by a key of its own ──► written to the node
//! node gone ──► its claim is released
//! ```
//! The claim is what makes two control planes, of which one does not know yet that it leads no more, never give the same range
//! twice. What a crash leaves claimed belongs to the node that the claim names, and is given to it.

use super::cache::{Cache, Change};
use super::client::Client;
use super::events::{Kind, Recorder};
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::NODES;
use crate::object::{at, items, text};
use crate::storage::{ListQuery, StorageError};
use coracle_api::status::StatusError;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The claims; a value is the node's name.
const CLAIMS: &str = "/ranges/podcidrs/";
/// Bits of a node's prefix: 254 addresses.
const NODE_BITS: u32 = 24;

/// Where all pods get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterCidr {
    base: u32,
    bits: u32,
}

impl FromStr for ClusterCidr {
    type Err = String;

    /// `10.244.0.0/16`; room for at least one node.
    fn from_str(text: &str) -> Result<ClusterCidr, String> {
        let (address, bits) = text.split_once('/').ok_or_else(|| format!("{text}: no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|error| format!("{text}: {error}"))?;
        let bits: u32 = bits.parse().map_err(|error| format!("{text}: {error}"))?;
        if !(8..=NODE_BITS).contains(&bits) {
            return Err(format!("{text}: a prefix of 8 to {NODE_BITS} bits is needed"));
        }
        Ok(ClusterCidr { base: u32::from(address) & (u32::MAX << (32 - bits)), bits })
    }
}

impl Default for ClusterCidr {
    fn default() -> ClusterCidr {
        ClusterCidr { base: u32::from(Ipv4Addr::new(10, 240, 0, 0)), bits: 12 }
    }
}

impl ClusterCidr {
    /// The ranges of nodes, in order.
    fn ranges(self) -> impl Iterator<Item = String> {
        let count = 1_u32 << (NODE_BITS - self.bits);
        (0..count).map(move |index| {
            let base = self.base + (index << (32 - NODE_BITS));
            format!("{}/{NODE_BITS}", Ipv4Addr::from(base))
        })
    }
}

/// A key has no second slash.
fn claim_key(range: &str) -> String {
    format!("{CLAIMS}{}", range.replace('/', "-"))
}

/// The controller.
pub struct PodCidrs {
    client: Client,
    recorder: Recorder,
    cluster: ClusterCidr,
    /// One node after the other: the lowest free range is one.
    turn: tokio::sync::Mutex<()>,
}

impl PodCidrs {
    /// With the range of all pods.
    pub fn new(client: Client, recorder: Recorder, cluster: ClusterCidr) -> PodCidrs {
        PodCidrs { client, recorder, cluster, turn: tokio::sync::Mutex::default() }
    }

    /// The ranges that are claimed, and by whom.
    async fn claims(&self) -> Result<BTreeMap<String, String>, StatusError> {
        let query = ListQuery { prefix: CLAIMS.into(), ..ListQuery::default() };
        let page = self.client.registry().storage().list(&query).await.map_err(StatusError::internal)?;
        let claims = page
            .entries
            .iter()
            .map(|entry| (entry.key.to_string(), String::from_utf8_lossy(&entry.value).into_owned()));
        Ok(claims.collect())
    }

    /// Claims a range; false when somebody else has it.
    async fn claim(&self, range: &str, node: &str) -> Result<bool, StatusError> {
        let storage = self.client.registry().storage();
        match storage.create(&claim_key(range), node.to_string().into()).await {
            Ok(_) => Ok(true),
            Err(StorageError::Conflict(there)) => {
                Ok(there.is_some_and(|entry| *entry.value == *node.as_bytes()))
            }
            Err(error) => Err(StatusError::internal(error)),
        }
    }

    async fn release(&self, key: &str) -> Result<(), StatusError> {
        let storage = self.client.registry().storage();
        let Some(entry) = storage.get(key).await.map_err(StatusError::internal)? else { return Ok(()) };
        match storage.delete(key, entry.modified).await {
            Ok(_) | Err(StorageError::Conflict(_)) => Ok(()),
            Err(error) => Err(StatusError::internal(error)),
        }
    }
}

impl Controller for PodCidrs {
    const NAME: &'static str = "node-ipam";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if !change.of(*NODES) {
            return Vec::new();
        }
        let range = |entry| {
            let node = cache.object(&change.key, entry)?;
            Some(text(&node, &["spec", "podCIDR"]).to_string())
        };
        let (old, new) = (change.old.as_ref().and_then(range), change.new.as_ref().and_then(range));
        if old == new { Vec::new() } else { vec![change.key.clone()] }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let _turn = self.turn.lock().await;
        let Some(node) = self.client.cache().get(key) else {
            for (claim, _) in self.claims().await?.iter().filter(|(_, node)| *node == key.name()) {
                self.release(claim).await?;
            }
            return Ok(Next::Done);
        };
        let has = text(&node, &["spec", "podCIDR"]);
        if !has.is_empty() {
            // Given by hand, or by another version of this: nobody else gets it.
            let claimed = self.claim(has, key.name()).await?;
            if !claimed {
                tracing::error!(node = key.name(), range = has, "two nodes have the same pod range");
            }
            return Ok(Next::Done);
        }
        let claims = self.claims().await?;
        let mine = self
            .cluster
            .ranges()
            .find(|range| claims.get(&claim_key(range)).is_some_and(|node| node == key.name()));
        let range = match mine {
            Some(range) => Some(range),
            None => {
                // A node may have one that its claim is not made for yet.
                let nodes = self.client.cache().list(*NODES, "");
                let taken = |range: &String| {
                    claims.contains_key(&claim_key(range)) || nodes.iter().any(|node| has_range(node, range))
                };
                let mut found = None;
                for range in self.cluster.ranges().filter(|range| !taken(range)) {
                    if self.claim(&range, key.name()).await? {
                        found = Some(range);
                        break;
                    }
                }
                found
            }
        };
        let Some(range) = range else {
            let text = format!("Node {} status is now: CIDRNotAvailable", key.name());
            self.recorder.say(&node, Kind::Normal, "CIDRNotAvailable", text);
            return Err(StatusError::service_unavailable(
                "CIDR allocation failed; there are no remaining CIDRs left to allocate in the accepted range",
            ));
        };
        let version = text(&node, &["metadata", "resourceVersion"]);
        let patch = json!({
            "metadata": {"resourceVersion": version, "uid": at(&node, &["metadata", "uid"])},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
        });
        self.client.merge(key, None, patch).await?;
        Ok(Next::Done)
    }
}

fn has_range(node: &Value, range: &str) -> bool {
    text(node, &["spec", "podCIDR"]) == range
        || items(node, &["spec", "podCIDRs"]).iter().any(|other| other.as_str() == Some(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_divided() {
        let check = |text: &str, expected: Result<(&str, &str, usize), &str>| {
            let found = text.parse::<ClusterCidr>().map(|cidr| {
                let ranges: Vec<String> = cidr.ranges().collect();
                (ranges[0].clone(), ranges[ranges.len() - 1].clone(), ranges.len())
            });
            let found = found.as_ref().map(|(first, last, count)| (&**first, &**last, *count));
            assert_eq!(found.map_err(String::as_str), expected, "{text}");
        };
        check("10.244.0.0/16", Ok(("10.244.0.0/24", "10.244.255.0/24", 256)));
        check("10.1.2.3/24", Ok(("10.1.2.0/24", "10.1.2.0/24", 1)));
        check("10.0.0.0/8", Ok(("10.0.0.0/24", "10.255.255.0/24", 65536)));
        check("10.0.0.0/25", Err("10.0.0.0/25: a prefix of 8 to 24 bits is needed"));
        check("10.0.0.0", Err("10.0.0.0: no prefix length"));
    }
}
