//! Sets of paths into an object, as `FieldsV1` has them.
//!
//! `{"f:metadata":{"f:labels":{".":{},"f:app":{}}}}` holds `.metadata.labels` and `.metadata.labels.app`. The text of a
//! step is canonical JSON, so that equal steps are equal texts.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use crate::decode::DEPTH_MAX;
use crate::field::go_json;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// `f:name`, of an object or a map.
    Field(String),
    /// `k:{"name":"a"}`, the keys of an item.
    Key(String),
    /// `v:"a"`, an item of a set.
    Value(String),
    /// `i:3`.
    Index(usize),
}

/// A `FieldsV1` that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    #[error("a set of fields is an object")]
    Shape,
    #[error("invalid path element {0}")]
    Step(String),
    #[error("exceeded max depth")]
    TooDeep,
}

/// A set of paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    steps: BTreeMap<Step, Node>,
}

/// Never both unowned and empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// Whether the path that ends here is in the set.
    owned: bool,
    below: FieldSet,
}

impl Step {
    fn parse(text: &str) -> Option<Step> {
        let json = |text: &str| serde_json::from_str::<Value>(text).ok();
        Some(match text.split_once(':')? {
            ("f", name) => Step::Field(name.to_owned()),
            ("k", keys) => Step::Key(json(keys).filter(Value::is_object)?.to_string()),
            ("v", value) => Step::Value(json(value)?.to_string()),
            ("i", index) => Step::Index(index.parse().ok()?),
            _ => return None,
        })
    }

    fn encoded(&self) -> String {
        match self {
            Step::Field(name) => format!("f:{name}"),
            Step::Key(keys) => format!("k:{keys}"),
            Step::Value(value) => format!("v:{value}"),
            Step::Index(index) => format!("i:{index}"),
        }
    }
}

/// As a conflict shows it.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Field(name) => write!(f, ".{name}"),
            Step::Value(value) => write!(f, "[={value}]"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let shown: Vec<_> =
                    keys.iter().map(|(key, value)| format!("{key}={}", go_json(value))).collect();
                write!(f, "[{}]", shown.join(","))
            }
        }
    }
}

impl FieldSet {
    /// Reads `FieldsV1`.
    pub fn decode(value: &Value) -> Result<FieldSet, SetError> {
        FieldSet::decode_at(value, 0)
    }

    fn decode_at(value: &Value, depth: usize) -> Result<FieldSet, SetError> {
        if depth > DEPTH_MAX {
            return Err(SetError::TooDeep);
        }
        let mut set = FieldSet::default();
        for (key, value) in value.as_object().ok_or(SetError::Shape)? {
            if key == "." {
                continue;
            }
            let step = Step::parse(key).ok_or_else(|| SetError::Step(key.clone()))?;
            let below = FieldSet::decode_at(value, depth + 1)?;
            let owned = below.is_empty() || value.get(".").is_some();
            set.steps.insert(step, Node { owned, below });
        }
        Ok(set)
    }

    /// Writes `FieldsV1`.
    pub fn encode(&self) -> Value {
        let mut map = Map::new();
        for (step, node) in &self.steps {
            let mut below = node.below.encode();
            if let (true, false, Some(below)) = (node.owned, node.below.is_empty(), below.as_object_mut()) {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(step.encoded(), below);
        }
        Value::Object(map)
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn insert(&mut self, path: &[Step]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.steps.entry(first.clone()).or_default();
            match rest {
                [] => node.owned = true,
                rest => node.below.insert(rest),
            }
        }
    }

    /// Whether the path of this one step is in the set.
    pub(super) fn has(&self, step: &Step) -> bool {
        self.steps.get(step).is_some_and(|node| node.owned)
    }

    /// What is below a step.
    pub(super) fn below(&self, step: &Step) -> Option<&FieldSet> {
        self.steps.get(step).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    /// Takes a step and all below it away.
    pub(super) fn forget(&mut self, step: &Step) {
        self.steps.remove(step);
    }

    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut union = self.clone();
        for (step, node) in &other.steps {
            let into = union.steps.entry(step.clone()).or_default();
            into.owned |= node.owned;
            into.below = into.below.union(&node.below);
        }
        union
    }

    /// The paths of this set that are not in the other. A path does not stand for those below it.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combined(|step, node| match other.steps.get(step) {
            Some(taken) => {
                Node { owned: node.owned && !taken.owned, below: node.below.difference(&taken.below) }
            }
            None => node.clone(),
        })
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combined(|step, node| match other.steps.get(step) {
            Some(shared) => {
                Node { owned: node.owned && shared.owned, below: node.below.intersection(&shared.below) }
            }
            None => Node::default(),
        })
    }

    fn combined(&self, with: impl Fn(&Step, &Node) -> Node) -> FieldSet {
        let nodes = self.steps.iter().map(|(step, node)| (step.clone(), with(step, node)));
        FieldSet { steps: nodes.filter(|(_, node)| node.owned || !node.below.is_empty()).collect() }
    }

    /// Adds the steps for which `named` holds, at each level. `named` gets what it returned for the step above.
    pub(super) fn with_members<T: Copy>(&self, at: T, named: &impl Fn(T, &Step) -> (bool, T)) -> FieldSet {
        let nodes = self.steps.iter().map(|(step, node)| {
            let (member, below) = named(at, step);
            let node = Node { owned: node.owned || member, below: node.below.with_members(below, named) };
            (step.clone(), node)
        });
        FieldSet { steps: nodes.collect() }
    }

    /// Every path, as text.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, before: &str, paths: &mut Vec<String>) {
        for (step, node) in &self.steps {
            let path = format!("{before}{step}");
            if node.owned {
                paths.push(path.clone());
            }
            node.below.collect(&path, paths);
        }
    }
}
