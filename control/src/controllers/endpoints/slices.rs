//! How endpoints lie in slices: pure, and with as few slices touched as can be.
//!
//! ```text
//! wanted ──┐  per ports and family of addresses
//! existing ┴─► drop what is gone, take over what changed ─► fill those that change anyway, the fullest first
//!              ─► what is left: into an unchanged slice that it fills best, else into new ones
//! ```
//! Invariants: an endpoint stays in the slice in which it is; a slice that nothing changes in is not written; what would be
//! deleted is written anew instead when another one would be made.

use crate::object::{at, fields, items, name, text};
use crate::registry::api_version;
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Endpoints of a slice, as upstream's default.
pub const ENDPOINTS_MAX: usize = 100;

/// Which service a slice is of.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Who keeps a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Four bytes.
    V4,
    /// Sixteen.
    V6,
}

impl Family {
    /// `spec.ipFamilies` and `addressType` say it alike.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// Of an address as text.
    pub fn of(address: &str) -> Family {
        if address.contains(':') { Family::V6 } else { Family::V4 }
    }
}

/// Endpoints by what slices may not mix: family and ports.
#[derive(Debug, Default)]
pub struct Wanted(BTreeMap<(Family, String), Group>);

#[derive(Debug, Default)]
struct Group {
    ports: Vec<Value>,
    /// By identity.
    endpoints: BTreeMap<String, Value>,
}

impl Wanted {
    /// Adds an endpoint that serves these ports.
    pub fn add(&mut self, family: Family, ports: &[Value], endpoint: Value) {
        let group = self.0.entry((family, ports_key(ports))).or_default();
        if group.endpoints.is_empty() {
            group.ports = ports.to_vec();
        }
        group.endpoints.insert(identity(&endpoint), endpoint);
    }
}

/// What the slices of one owner have in common.
#[derive(Debug)]
pub struct Template {
    /// Where they are.
    pub namespace: String,
    /// What they are generated from, without the dash.
    pub prefix: String,
    /// Whose they are.
    pub owner: Value,
    /// All of their labels.
    pub labels: Map<String, Value>,
    /// All of their annotations; `None` leaves them alone.
    pub annotations: Option<Map<String, Value>>,
}

impl Template {
    fn slice(&self, family: Family, ports: &[Value]) -> Value {
        let mut slice = json!({
            "apiVersion": api_version("discovery.k8s.io", "v1"),
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": format!("{}-", self.prefix),
                "namespace": self.namespace,
                "labels": self.labels,
                "ownerReferences": [self.owner],
            },
            "addressType": family.name(),
            "endpoints": [],
            "ports": ports,
        });
        self.annotate(&mut slice);
        slice
    }

    fn annotate(&self, slice: &mut Value) {
        let Some(annotations) = &self.annotations else { return };
        let metadata = fields(&mut slice["metadata"]);
        if annotations.is_empty() {
            metadata.remove("annotations");
        } else {
            metadata.insert("annotations".into(), annotations.clone().into());
        }
    }

    /// Whether a slice says what it is to say besides its endpoints.
    fn fits(&self, slice: &Value) -> bool {
        let same = |key: &str, wanted: &Map<String, Value>| {
            let found = at(slice, &["metadata", key]).as_object();
            found.map_or(wanted.is_empty(), |found| found == wanted)
        };
        same("labels", &self.labels) && self.annotations.as_ref().is_none_or(|all| same("annotations", all))
    }
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Changes {
    /// Slices that are not there.
    pub create: Vec<Value>,
    /// Slices as they are to be, with the version that was read.
    pub update: Vec<Value>,
    /// Slices that nobody needs.
    pub delete: Vec<Arc<Value>>,
}

/// What brings the slices that are there to what is wanted. Families without endpoints have one empty slice, so that
/// whoever looks sees that there are none.
pub fn plan(
    mut wanted: Wanted,
    families: &[Family],
    existing: &[Arc<Value>],
    template: &Template,
) -> Changes {
    let mut changes = Changes::default();
    let mut slices: BTreeMap<(Family, String), Vec<Arc<Value>>> = BTreeMap::new();
    for slice in existing {
        let family = families.iter().find(|family| family.name() == text(slice, &["addressType"]));
        match family {
            Some(family) => {
                let key = (*family, ports_key(items(slice, &["ports"])));
                slices.entry(key).or_default().push(slice.clone());
            }
            None => changes.delete.push(slice.clone()),
        }
    }
    for family in families {
        if !wanted.0.keys().any(|(other, _)| other == family) {
            wanted.0.insert((*family, ports_key(&[])), Group::default());
        }
    }
    for (key, group) in wanted.0 {
        let there = slices.remove(&key).unwrap_or_default();
        pack(key.0, group, there, template, &mut changes);
    }
    changes.delete.extend(slices.into_values().flatten());
    reuse(&mut changes);
    changes
}

/// One group.
fn pack(family: Family, group: Group, there: Vec<Arc<Value>>, template: &Template, changes: &mut Changes) {
    let Group { ports, endpoints: mut left } = group;
    let placeholder = left.is_empty();
    let (mut unchanged, mut changed, mut emptied) = (Vec::new(), Vec::new(), Vec::new());
    for slice in there {
        let mut kept = Vec::new();
        let mut differs = false;
        for endpoint in items(&slice, &["endpoints"]) {
            match left.remove(&identity(endpoint)) {
                Some(wanted) => {
                    differs |= wanted != *endpoint;
                    kept.push(wanted);
                }
                None => differs = true,
            }
        }
        let stays = !kept.is_empty() || placeholder && unchanged.is_empty() && changed.is_empty();
        if !stays {
            emptied.push(slice);
        } else if differs || !template.fits(&slice) {
            changed.push((slice, kept));
        } else {
            unchanged.push(slice);
        }
    }
    let mut left: Vec<Value> = left.into_values().collect();
    changed.sort_by_key(|(slice, kept)| (Reverse(kept.len()), name(slice).to_string()));
    for (_, kept) in &mut changed {
        take(&mut left, kept);
    }
    while !left.is_empty() {
        let fits = |slice: &&Arc<Value>| items(slice, &["endpoints"]).len() + left.len() <= ENDPOINTS_MAX;
        let fullest = unchanged.iter().filter(fits).max_by_key(|slice| items(slice, &["endpoints"]).len());
        match fullest.map(|slice| name(slice).to_string()) {
            Some(found) => {
                let index = unchanged.iter().position(|slice| name(slice) == found);
                let slice = unchanged.swap_remove(index.expect("found above"));
                let mut kept = items(&slice, &["endpoints"]).to_vec();
                take(&mut left, &mut kept);
                changed.push((slice, kept));
            }
            None => {
                let mut slice = template.slice(family, &ports);
                let mut kept = Vec::new();
                take(&mut left, &mut kept);
                slice["endpoints"] = kept.into();
                changes.create.push(slice);
            }
        }
    }
    if placeholder && unchanged.is_empty() && changed.is_empty() {
        changes.create.push(template.slice(family, &ports));
    }
    changes.update.extend(changed.into_iter().map(|(slice, kept)| rewritten(&slice, kept.into(), template)));
    changes.delete.extend(emptied);
}

fn take(left: &mut Vec<Value>, into: &mut Vec<Value>) {
    let room = ENDPOINTS_MAX.saturating_sub(into.len()).min(left.len());
    into.extend(left.drain(..room));
}

fn rewritten(slice: &Value, endpoints: Value, template: &Template) -> Value {
    let mut slice = slice.clone();
    slice["endpoints"] = endpoints;
    slice["metadata"]["labels"] = template.labels.clone().into();
    template.annotate(&mut slice);
    slice
}

/// Writes new slices over those that would go: an address type is for ever, ports are not.
fn reuse(changes: &mut Changes) {
    let mut kept = Vec::new();
    for slice in std::mem::take(&mut changes.delete) {
        let same = |new: &Value| text(new, &["addressType"]) == text(&slice, &["addressType"]);
        match changes.create.iter().rposition(same) {
            Some(index) => {
                let mut new = changes.create.remove(index);
                // Its name and version are kept.
                let mut metadata = at(&slice, &["metadata"]).clone();
                for key in ["labels", "annotations"] {
                    fields(&mut metadata).remove(key);
                    if let Some(value) = new["metadata"].get(key) {
                        metadata[key] = value.clone();
                    }
                }
                new["metadata"] = metadata;
                changes.update.push(new);
            }
            None => kept.push(slice),
        }
    }
    changes.delete = kept;
}

/// Ports as a key, whatever their order.
fn ports_key(ports: &[Value]) -> String {
    let said = ["name", "protocol", "port", "appProtocol"];
    let port = |port: &Value| said.map(|key| at(port, &[key]).to_string()).join(" ");
    let mut ports: Vec<String> = ports.iter().map(port).collect();
    ports.sort_unstable();
    ports.join(",")
}

/// What makes an endpoint the same one: its addresses, and what is behind them.
fn identity(endpoint: &Value) -> String {
    let target = at(endpoint, &["targetRef"]);
    let (uid, name) = (text(target, &["uid"]), text(target, &["name"]));
    format!("{} {uid} {name} {}", at(endpoint, &["addresses"]), text(endpoint, &["hostname"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn template() -> Template {
        let mut labels = Map::new();
        labels.insert(SERVICE_NAME.into(), "web".into());
        let (namespace, prefix) = ("default".into(), "web".into());
        Template { namespace, prefix, owner: json!({"uid": "s"}), labels, annotations: None }
    }

    fn endpoint(n: usize, ready: bool) -> Value {
        json!({
            "addresses": [format!("10.0.{}.{}", n / 250, n % 250)],
            "conditions": {"ready": ready},
            "targetRef": {"uid": format!("u{n}")},
        })
    }

    fn http() -> Vec<Value> {
        vec![json!({"name": "", "port": 80, "protocol": "TCP"})]
    }

    fn slice(name: &str, endpoints: impl IntoIterator<Item = usize>) -> Arc<Value> {
        let mut slice = template().slice(Family::V4, &http());
        slice["metadata"]["name"] = name.into();
        slice["endpoints"] = endpoints.into_iter().map(|n| endpoint(n, true)).collect();
        slice.into()
    }

    fn wanted(endpoints: impl IntoIterator<Item = usize>) -> Wanted {
        let mut wanted = Wanted::default();
        for n in endpoints {
            wanted.add(Family::V4, &http(), endpoint(n, true));
        }
        wanted
    }

    /// Slices of so many endpoints each, by name; new ones without.
    type Shape<'a> = &'a [(&'a str, usize)];

    #[track_caller]
    fn check(existing: &[Arc<Value>], wanted: Wanted, written: Shape<'_>, deleted: &[&str]) -> Changes {
        let all: BTreeSet<String> =
            wanted.0.values().flat_map(|group| group.endpoints.keys().cloned()).collect();
        let changes = plan(wanted, &[Family::V4], existing, &template());
        let mut found: Vec<(&str, usize)> = changes
            .create
            .iter()
            .chain(&changes.update)
            .map(|slice| (name(slice), items(slice, &["endpoints"]).len()))
            .collect();
        found.sort_unstable();
        assert_eq!(found, written);
        let gone: Vec<&str> = changes.delete.iter().map(|slice| name(slice)).collect();
        assert_eq!(gone, deleted);
        // Whatever is written: afterwards each endpoint is there once.
        let touched = |slice: &Value| {
            changes.update.iter().any(|other| name(other) == name(slice)) || gone.contains(&name(slice))
        };
        let left = existing.iter().map(Arc::as_ref).filter(|slice| !touched(slice));
        let after: Vec<String> = left
            .chain(&changes.create)
            .chain(&changes.update)
            .flat_map(|slice| items(slice, &["endpoints"]).iter().map(identity))
            .collect();
        assert_eq!(after.len(), all.len());
        assert_eq!(after.into_iter().collect::<BTreeSet<_>>(), all);
        changes
    }

    #[test]
    fn few_slices_are_touched() {
        check(&[], wanted([]), &[("", 0)], &[]);
        check(&[], wanted(0..3), &[("", 3)], &[]);
        check(&[], wanted(0..250), &[("", 50), ("", 100), ("", 100)], &[]);
        check(&[slice("a", 0..3)], wanted(0..3), &[], &[]);
        check(&[slice("a", 0..3)], wanted(0..2), &[("a", 2)], &[]);
        check(&[slice("a", 0..3)], wanted(1..5), &[("a", 4)], &[]);
        // Added to the slice that it fills best; the others are left alone.
        let halves = [slice("a", 0..40), slice("b", 100..180), slice("c", 200..300)];
        let all = || (0..40).chain(100..180).chain(200..300);
        check(&halves, wanted(all().chain(500..510)), &[("b", 90)], &[]);
        check(&halves, wanted(all().chain(500..550)), &[("a", 90)], &[]);
        check(&halves, wanted(all().chain(500..580)), &[("", 80)], &[]);
        // One that changes anyway is filled first.
        check(&halves, wanted(all().filter(|n| *n != 3).chain(500..510)), &[("a", 49)], &[]);
        // Emptied slices go, and are not rewritten by the others' endpoints.
        check(&halves, wanted((0..40).chain(200..300)), &[], &["b"]);
        // None left: one empty slice stays.
        check(&halves, wanted([]), &[("a", 0)], &["b", "c"]);
    }

    #[test]
    fn the_last_endpoint_leaves_an_empty_slice() {
        let changes = check(&[slice("a", 0..1)], wanted([]), &[("a", 0)], &[]);
        assert_eq!(changes.update[0]["ports"], json!([]));
        let mut empty = (*slice("a", [])).clone();
        empty["ports"] = json!([]);
        check(&[empty.clone().into()], wanted([]), &[], &[]);
        // The API shows an empty list as null.
        empty["ports"] = Value::Null;
        empty["endpoints"] = Value::Null;
        check(&[empty.clone().into()], wanted([]), &[], &[]);
        check(&[empty.into()], wanted(0..2), &[("a", 2)], &[]);
    }

    #[test]
    fn a_change_is_written_where_the_endpoint_is() {
        let mut one = wanted(0..40);
        one.add(Family::V4, &http(), endpoint(7, false));
        let changes = check(&[slice("a", 0..20), slice("b", 20..40)], one, &[("a", 20)], &[]);
        assert_eq!(changes.update[0]["endpoints"][7]["conditions"]["ready"], false);
    }

    #[test]
    fn other_ports_and_families_have_slices_of_their_own() {
        let mut several = wanted(0..2);
        let other = [json!({"name": "", "port": 81, "protocol": "TCP"})];
        several.add(Family::V4, &other, endpoint(9, true));
        let mut six = endpoint(1, true);
        six["addresses"] = json!(["fd00::1"]);
        several.add(Family::V6, &http(), six);
        let changes = plan(several, &[Family::V4, Family::V6], &[slice("a", 0..2)], &template());
        let made: Vec<_> = changes
            .create
            .iter()
            .map(|slice| (text(slice, &["addressType"]), slice["ports"][0]["port"].as_i64()))
            .collect();
        assert_eq!(made, [("IPv4", Some(81)), ("IPv6", Some(80))]);
        assert!(changes.update.is_empty() && changes.delete.is_empty());
        // A family that the service has no more.
        let changes = plan(Wanted::default(), &[Family::V6], &[slice("a", 0..2)], &template());
        assert_eq!((changes.create.len(), changes.delete.len()), (1, 1));
    }

    #[test]
    fn labels_follow_their_service() {
        let mut template = template();
        template.labels.insert("tier".into(), "front".into());
        let changes = plan(wanted(0..2), &[Family::V4], &[slice("a", 0..2)], &template);
        assert_eq!(changes.update.len(), 1);
        assert_eq!(changes.update[0]["metadata"]["labels"]["tier"], "front");
        let updated: Arc<Value> = changes.update[0].clone().into();
        assert!(plan(wanted(0..2), &[Family::V4], &[updated], &template).update.is_empty());
    }
}
