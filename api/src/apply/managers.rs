//! `metadata.managedFields`: each manager with its set, read and written.
//!
//! A manager is known by name, operation and subresource, and one that updates by its version too. Entries that
//! cannot be read are as good as none: a client may have written them, and the next write makes new ones.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::set::FieldSet;
use super::{Conflict, UPDATE_MANAGERS_MAX};
use crate::field::quoted;

/// The one that the oldest updaters become.
const ANCIENT: &str = "ancient-changes";

/// Sorts as the entries do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    /// When its set last changed, RFC 3339.
    pub(super) time: Option<String>,
    pub(super) set: FieldSet,
}

impl Manager {
    pub(super) fn update(name: &str, api_version: &str) -> Manager {
        Manager {
            name: name.to_owned(),
            operation: Operation::Update,
            api_version: api_version.to_owned(),
            subresource: String::new(),
            time: None,
            set: FieldSet::default(),
        }
    }

    pub(super) fn with(mut self, set: FieldSet) -> Manager {
        self.set = set;
        self
    }

    fn is(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn shown(&self) -> String {
        let mut shown = quoted(&self.name);
        if !self.subresource.is_empty() {
            shown += &format!(" with subresource {}", quoted(&self.subresource));
        }
        if self.operation == Operation::Update {
            shown += &format!(" using {}", self.api_version);
        }
        shown
    }

    fn decode(entry: &Value) -> Option<Manager> {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let operation = match entry["operation"].as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if entry["fieldsType"].as_str().is_some_and(|kind| kind != "FieldsV1") {
            return None;
        }
        let set = match &entry["fieldsV1"] {
            Value::Null => FieldSet::default(),
            set => FieldSet::decode(set).ok()?,
        };
        Some(Manager {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: entry["time"].as_str().map(str::to_owned),
            set,
        })
    }

    fn encode(&self) -> Value {
        let mut entry = json!({
            "manager": self.name,
            "operation": self.operation.name(),
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.set.encode(),
        });
        if let Some(time) = &self.time {
            entry["time"] = time.as_str().into();
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.as_str().into();
        }
        entry
    }
}

/// The managers of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Managers(Vec<Manager>);

impl Managers {
    pub(super) fn decode(entries: &Value) -> Managers {
        let entries = entries.as_array().map(Vec::as_slice).unwrap_or_default();
        Managers(entries.iter().map(Manager::decode).collect::<Option<_>>().unwrap_or_default())
    }

    pub(super) fn encode(&self) -> Value {
        Value::Array(self.0.iter().map(Manager::encode).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, like: &Manager) -> Option<Manager> {
        let at = self.0.iter().position(|manager| manager.is(like))?;
        Some(self.0.remove(at))
    }

    pub(super) fn put(&mut self, manager: Manager) {
        self.0.push(manager);
    }

    /// What all hold together.
    pub(super) fn held(&self) -> FieldSet {
        self.0.iter().fold(FieldSet::default(), |all, manager| all.union(&manager.set))
    }

    /// Takes paths from everyone.
    pub(super) fn lose(&mut self, set: &FieldSet) {
        for manager in &mut self.0 {
            manager.set = manager.set.difference(set);
        }
    }

    /// Who holds what of a set, in order.
    pub(super) fn conflicts(&self, set: &FieldSet) -> Vec<Conflict> {
        let of = |manager: &Manager| {
            let shown = manager.shown();
            let paths = manager.set.intersection(set).paths();
            paths.into_iter().map(move |field| Conflict { manager: shown.clone(), field }).collect::<Vec<_>>()
        };
        let mut conflicts: Vec<_> = self.0.iter().flat_map(of).collect();
        conflicts.sort();
        conflicts
    }

    /// Drops who holds nothing, dates who changed, bounds and sorts the rest.
    pub(super) fn settle(&mut self, before: &Managers, now: Timestamp) {
        self.0.retain(|manager| !manager.set.is_empty());
        let now = Timestamp::from_second(now.as_second()).map(|now| now.to_string()).ok();
        for manager in &mut self.0 {
            let same = before.0.iter().find(|old| old.is(manager));
            manager.time = match same {
                Some(old) if old.set == manager.set && old.api_version == manager.api_version => {
                    old.time.clone()
                }
                _ => now.clone(),
            };
        }
        self.bound();
        self.0.sort_by(|a, b| {
            (a.operation, &a.time, &a.name, &a.api_version, &a.subresource).cmp(&(
                b.operation,
                &b.time,
                &b.name,
                &b.api_version,
                &b.subresource,
            ))
        });
    }

    /// Makes the oldest updaters of a version one, until they are few enough.
    fn bound(&mut self) {
        loop {
            let mut updaters: Vec<_> = self.0.iter().filter(|m| m.operation == Operation::Update).collect();
            if updaters.len() <= UPDATE_MANAGERS_MAX {
                return;
            }
            updaters.sort_by(|a, b| (&a.time, &a.name).cmp(&(&b.time, &b.name)));
            let pair = updaters.iter().enumerate().find_map(|(at, first)| {
                let second = updaters[at + 1..].iter().find(|m| m.api_version == first.api_version);
                second.map(|second| ((*first).clone(), (*second).clone()))
            });
            // As many versions as managers: there is no pair to merge.
            let Some((first, second)) = pair else { return };
            let mut bucket = Manager::update(ANCIENT, &second.api_version);
            bucket.set = first.set.union(&second.set);
            bucket.time.clone_from(&second.time);
            self.0.retain(|manager| !manager.is(&first) && !manager.is(&second));
            if let Some(older) = self.take(&bucket) {
                bucket.set = bucket.set.union(&older.set);
            }
            self.0.push(bucket);
        }
    }
}
