//! Addresses and node ports of services: each is a key of its own, so that two control planes never give one twice.
//!
//! ```text
//! claim keys ─► store the service ─► (on failure) release them
//! ```
//! What a crash leaves claimed is found at the next start: a claim without its service is released.

use super::{Registry, Resource, admit, load, random, refused};
use crate::kinds;
use crate::object;
use crate::storage::{ListQuery, StorageError};
use coracle_api::field::{Errors, Path};
use coracle_api::status::StatusError;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// Node ports, as upstream's default.
pub const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;
const ADDRESSES: &str = "/ranges/serviceips/";
const PORTS: &str = "/ranges/servicenodeports/";

/// Where services get their addresses.
#[derive(Clone, Copy, Debug)]
pub struct ServiceRange {
    base: u32,
    /// Hosts in it, without the network's own address and the last.
    size: u32,
}

impl ServiceRange {
    /// `10.96.0.0/16`; at least a /29.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<ServiceRange, String> {
        let (address, bits) = text.split_once('/').ok_or_else(|| format!("{text}: no prefix length"))?;
        let address: Ipv4Addr = address.parse().map_err(|error| format!("{text}: {error}"))?;
        let bits: u32 = bits.parse().map_err(|error| format!("{text}: {error}"))?;
        if !(8..=29).contains(&bits) {
            return Err(format!("{text}: a prefix of 8 to 29 bits is needed"));
        }
        let size = 1_u32 << (32 - bits);
        Ok(ServiceRange { base: u32::from(address) & !(size - 1), size: size - 2 })
    }

    /// The address of the service `kubernetes`.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    fn at(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1 + index % self.size)
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        (1..=self.size).contains(&u32::from(address).wrapping_sub(self.base))
    }
}

/// A key that was claimed.
pub(super) type Claim = String;

/// Who claims, and whether it is meant.
struct Claimant {
    service: String,
    dry_run: bool,
}

impl Registry {
    /// Gives a service what it needs and has not; what was claimed is to be released when it is not stored.
    pub(super) async fn claim(
        &self,
        resource: &Resource,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Vec<Claim>, StatusError> {
        let mut claims = Vec::new();
        if resource.kind == "Service" && resource.group.is_empty() {
            let name = format!("{}/{}", object::namespace(service), object::name(service));
            let claimant = Claimant { service: name, dry_run };
            let claimed = self.claim_for(service, old, &claimant, &mut claims).await;
            if let Err(error) = claimed {
                self.release(claims).await;
                return Err(error);
            }
        }
        Ok(claims)
    }

    async fn claim_for(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        claimant: &Claimant,
        claims: &mut Vec<Claim>,
    ) -> Result<(), StatusError> {
        let held = old.map(keys).unwrap_or_default();
        let kind = object::text(service, &["spec", "type"]).to_string();
        if kind == "ExternalName" {
            return Ok(());
        }
        self.claim_address(service, &held, claimant, claims).await?;
        let balanced =
            object::at(service, &["spec", "allocateLoadBalancerNodePorts"]).as_bool().unwrap_or(true);
        if kind == "NodePort" || (kind == "LoadBalancer" && balanced) {
            self.claim_ports(service, &held, claimant, claims).await?;
        }
        Ok(())
    }

    async fn claim_address(
        &self,
        service: &mut Value,
        held: &BTreeSet<String>,
        claimant: &Claimant,
        claims: &mut Vec<Claim>,
    ) -> Result<(), StatusError> {
        let asked = object::text(service, &["spec", "clusterIP"]).to_string();
        let address = match asked.as_str() {
            "None" => asked,
            "" => {
                let start = u32::from_le_bytes(random()?);
                let mut found = None;
                for step in 0..self.services.size {
                    let address = self.services.at(start.wrapping_add(step)).to_string();
                    let key = format!("{ADDRESSES}{address}");
                    if self.take(&key, claimant, claims).await? {
                        found = Some(address);
                        break;
                    }
                }
                found.ok_or_else(|| StatusError::internal("failed to allocate a serviceIP: range is full"))?
            }
            address => {
                let key = format!("{ADDRESSES}{address}");
                let path = Path::new("spec").child("clusterIPs");
                let refuse = |why: &str| {
                    let mut errors = Errors::default();
                    errors.invalid(
                        &path,
                        json!([address]),
                        format!("failed to allocate IP {address}: {why}"),
                    );
                    invalid(service, &errors)
                };
                let known = address.parse().is_ok_and(|address| self.services.contains(address));
                if !known {
                    return Err(refuse("the provided network does not match the current range"));
                }
                if !held.contains(&key) && !self.take(&key, claimant, claims).await? {
                    return Err(refuse("provided IP is already allocated"));
                }
                address.to_string()
            }
        };
        let spec = object::fields(object::child(service, "spec"));
        spec.insert("clusterIP".into(), address.clone().into());
        spec.insert("clusterIPs".into(), json!([address]));
        Ok(())
    }

    async fn claim_ports(
        &self,
        service: &mut Value,
        held: &BTreeSet<String>,
        claimant: &Claimant,
        claims: &mut Vec<Claim>,
    ) -> Result<(), StatusError> {
        let count = object::items(service, &["spec", "ports"]).len();
        let mut mine: BTreeSet<String> = held.clone();
        for index in 0..count {
            let path = Path::new("spec").child("ports").index(index).child("nodePort");
            let asked =
                object::at(&object::items(service, &["spec", "ports"])[index], &["nodePort"]).as_u64();
            if let Some(port) = asked.filter(|port| *port != 0) {
                let key = format!("{PORTS}{port}");
                let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
                let mut errors = Errors::default();
                if !u16::try_from(port).is_ok_and(|port| NODE_PORTS.contains(&port)) {
                    let why = format!(
                        "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                    );
                    errors.invalid(&path, port, why);
                } else if !mine.contains(&key) && !self.take(&key, claimant, claims).await? {
                    errors.invalid(&path, port, "provided port is already allocated");
                }
                errors.into_result().map_err(|errors| invalid(service, &errors))?;
                mine.insert(key);
                continue;
            }
            let start = u32::from_le_bytes(random()?);
            let span = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
            let mut found = None;
            for step in 0..span {
                let port = u32::from(*NODE_PORTS.start()) + start.wrapping_add(step) % span;
                if self.take(&format!("{PORTS}{port}"), claimant, claims).await? {
                    found = Some(port);
                    break;
                }
            }
            let port =
                found.ok_or_else(|| StatusError::internal("failed to allocate a nodePort: range is full"))?;
            let ports = object::items_mut(object::child(service, "spec"), "ports");
            object::fields(&mut ports[index]).insert("nodePort".into(), port.into());
        }
        Ok(())
    }

    /// Claims a key; false when somebody has it.
    async fn take(&self, key: &str, by: &Claimant, claims: &mut Vec<Claim>) -> Result<bool, StatusError> {
        if by.dry_run {
            return Ok(self.storage.get(key).await.map_err(refused)?.is_none());
        }
        match self.storage.create(key, by.service.clone().into()).await {
            Ok(_) => {
                claims.push(key.to_string());
                Ok(true)
            }
            Err(StorageError::Conflict(_)) => Ok(false),
            Err(error) => Err(refused(error)),
        }
    }

    /// Gives claims back. What cannot be given back now is found at the next start.
    pub(super) async fn release(&self, claims: impl IntoIterator<Item = Claim>) {
        for key in claims {
            let released = match self.storage.get(&key).await {
                Ok(Some(entry)) => self.storage.delete(&key, entry.modified).await.map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = released {
                tracing::warn!(%error, key, "a service's claim stays until the next start");
            }
        }
    }

    /// Gives back all that a service had.
    pub(super) async fn release_all(&self, resource: &Resource, old: &Value) {
        if resource.kind == "Service" && resource.group.is_empty() {
            self.release(keys(old)).await;
        }
    }

    /// Gives back what an update dropped.
    pub(super) async fn release_dropped(&self, resource: &Resource, old: &Value, new: &Value) {
        if resource.kind == "Service" && resource.group.is_empty() {
            let kept = keys(new);
            self.release(keys(old).into_iter().filter(|key| !kept.contains(key))).await;
        }
    }

    /// Claims the address of the service `kubernetes`.
    pub(super) async fn claim_first(&self) -> Result<(), StatusError> {
        let claimant = Claimant { service: "default/kubernetes".into(), dry_run: false };
        let key = format!("{ADDRESSES}{}", self.services.first());
        self.take(&key, &claimant, &mut Vec::new()).await.map(drop)
    }

    /// Releases what a crash left claimed.
    pub(super) async fn repair_claims(&self) -> Result<(), StatusError> {
        let services = kinds::find("", "v1", admit::services().resource).expect("services are in the table");
        let query = ListQuery { prefix: services.prefix(""), ..ListQuery::default() };
        let mut used = BTreeSet::new();
        for entry in self.storage.list(&query).await.map_err(refused)?.entries {
            used.extend(keys(&load(services, &entry)?));
        }
        for prefix in [ADDRESSES, PORTS] {
            let query = ListQuery { prefix: prefix.into(), ..ListQuery::default() };
            let claimed = self.storage.list(&query).await.map_err(refused)?.entries;
            let left = claimed.iter().map(|entry| entry.key.to_string()).filter(|key| !used.contains(key));
            self.release(left.collect::<Vec<_>>()).await;
        }
        Ok(())
    }
}

/// The claims that belong to a service.
fn keys(service: &Value) -> BTreeSet<String> {
    let addresses = object::items(service, &["spec", "clusterIPs"])
        .iter()
        .filter_map(Value::as_str)
        .filter(|address| *address != "None")
        .map(|address| format!("{ADDRESSES}{address}"));
    let ports = object::items(service, &["spec", "ports"])
        .iter()
        .filter_map(|port| object::at(port, &["nodePort"]).as_u64())
        .map(|port| format!("{PORTS}{port}"));
    addresses.chain(ports).collect()
}

fn invalid(service: &Value, errors: &Errors) -> StatusError {
    let kind = coracle_api::status::GroupKind { group: "", kind: "Service" };
    StatusError::invalid(kind, object::name(service), errors)
}
