//! What a pod says about nodes and other pods: selectors, tolerations, affinity terms, spread constraints.

use crate::object::{at, items, text};
use coracle_api::selector::LabelSelector;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Labels of an object.
pub type Labels = BTreeMap<Box<str>, Box<str>>;

/// The labels at `metadata.labels`.
pub fn labels(object: &Value) -> Labels {
    strings(at(object, &["metadata", "labels"]))
}

/// A map of strings.
pub fn strings(map: &Value) -> Labels {
    let fields = map.as_object().into_iter().flatten();
    fields.map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into())).collect()
}

/// Whether a label selector matches.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.matches(|key| labels.get(key).map(|value| &**value))
}

/// One requirement of a node selector term.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: Box<str>,
    operator: Box<str>,
    values: Vec<Box<str>>,
}

impl Requirement {
    fn read(value: &Value) -> Requirement {
        Requirement {
            key: text(value, &["key"]).into(),
            operator: text(value, &["operator"]).into(),
            values: items(value, &["values"])
                .iter()
                .map(|value| value.as_str().unwrap_or_default().into())
                .collect(),
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let among = |value: &str| self.values.iter().any(|other| &**other == value);
        // Kubernetes compares labels as 64-bit integers, and nothing else.
        let pair = || {
            let bound = self.values.first()?.parse::<i64>().ok()?;
            Some((value?.parse::<i64>().ok()?, bound))
        };
        match &*self.operator {
            "In" => value.is_some_and(among),
            "NotIn" => !value.is_some_and(among),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            "Gt" => pair().is_some_and(|(value, bound)| value > bound),
            "Lt" => pair().is_some_and(|(value, bound)| value < bound),
            _ => false,
        }
    }
}

/// A term of a node selector: all its requirements hold. One without requirements matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTerm {
    expressions: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    /// A `v1.NodeSelectorTerm`.
    pub fn read(value: &Value) -> NodeTerm {
        let of = |key: &str| items(value, &[key]).iter().map(Requirement::read).collect();
        NodeTerm { expressions: of("matchExpressions"), fields: of("matchFields") }
    }

    /// Whether a node of that name and these labels is meant.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        if self.expressions.is_empty() && self.fields.is_empty() {
            return false;
        }
        let label = |key: &str| labels.get(key).map(|value| &**value);
        self.expressions.iter().all(|requirement| requirement.holds(label(&requirement.key)))
            && self
                .fields
                .iter()
                .all(|requirement| requirement.holds((&*requirement.key == "metadata.name").then_some(name)))
    }
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// Its key.
    pub key: Box<str>,
    /// May be empty.
    pub value: Box<str>,
    /// NoSchedule, PreferNoSchedule, NoExecute.
    pub effect: Box<str>,
}

impl Taint {
    /// A `v1.Taint`.
    pub fn read(value: &Value) -> Taint {
        Taint {
            key: text(value, &["key"]).into(),
            value: text(value, &["value"]).into(),
            effect: text(value, &["effect"]).into(),
        }
    }
}

/// A toleration of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    key: Box<str>,
    exists: bool,
    value: Box<str>,
    effect: Box<str>,
    /// How long it holds against NoExecute; `None` is for ever.
    pub seconds: Option<i64>,
}

impl Toleration {
    /// A `v1.Toleration`.
    pub fn read(value: &Value) -> Toleration {
        Toleration {
            key: text(value, &["key"]).into(),
            exists: text(value, &["operator"]) == "Exists",
            value: text(value, &["value"]).into(),
            effect: text(value, &["effect"]).into(),
            seconds: at(value, &["tolerationSeconds"]).as_i64(),
        }
    }

    /// `ToleratesTaint`.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && (self.exists || self.value == taint.value)
    }

    /// Whether it may count among those that weigh `PreferNoSchedule` taints.
    pub fn is_for_preference(&self) -> bool {
        self.effect.is_empty() || &*self.effect == "PreferNoSchedule"
    }
}

/// The tolerations of a pod.
pub fn tolerations(pod: &Value) -> Vec<Toleration> {
    items(pod, &["spec", "tolerations"]).iter().map(Toleration::read).collect()
}

/// A term of affinity or anti-affinity between pods.
#[derive(Clone, Debug)]
pub struct PodTerm {
    selector: Option<LabelSelector>,
    namespaces: BTreeSet<Box<str>>,
    namespace_selector: Option<LabelSelector>,
    /// The label of nodes within whose value it counts.
    pub topology: Box<str>,
}

impl PodTerm {
    /// A `v1.PodAffinityTerm` of a pod in a namespace.
    pub fn read(value: &Value, namespace: &str, pod: &Labels) -> PodTerm {
        let selector = |key: &str| match at(value, &[key]) {
            Value::Null => None,
            value => LabelSelector::from_value(value).ok(),
        };
        let mut namespaces: BTreeSet<Box<str>> =
            items(value, &["namespaces"]).iter().filter_map(Value::as_str).map(Into::into).collect();
        let namespace_selector = selector("namespaceSelector");
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.insert(namespace.into());
        }
        PodTerm {
            selector: LabelSelector::from_value(&keyed(value, pod)).ok().filter(|_| {
                // No selector at all matches nothing.
                !at(value, &["labelSelector"]).is_null()
            }),
            namespaces,
            namespace_selector,
            topology: text(value, &["topologyKey"]).into(),
        }
    }

    /// Whether a pod is meant; `namespaces` has the labels of namespaces.
    pub fn matches(&self, namespace: &str, labels: &Labels, namespaces: &BTreeMap<Box<str>, Labels>) -> bool {
        let here = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| {
                let none = Labels::new();
                selects(selector, namespaces.get(namespace).unwrap_or(&none))
            });
        here && self.selector.as_ref().is_some_and(|selector| selects(selector, labels))
    }
}

/// The label selector with what `matchLabelKeys` and `mismatchLabelKeys` take from the pod's own labels.
fn keyed(value: &Value, pod: &Labels) -> Value {
    let mut selector = at(value, &["labelSelector"]).clone();
    if selector.is_null() {
        return selector;
    }
    let mut expressions = items(&selector, &["matchExpressions"]).to_vec();
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in items(value, &[keys]).iter().filter_map(Value::as_str) {
            if let Some(own) = pod.get(key) {
                expressions.push(serde_json::json!({"key": key, "operator": operator, "values": [own]}));
            }
        }
    }
    crate::object::fields(&mut selector).insert("matchExpressions".into(), expressions.into());
    selector
}

/// A topology spread constraint.
#[derive(Clone, Debug)]
pub struct Spread {
    /// How far apart domains may be.
    pub skew_max: i64,
    /// The label of nodes that names the domain.
    pub topology: Box<str>,
    /// Whether it is a rule, or a wish.
    pub required: bool,
    /// Fewer domains count as if there was an empty one.
    pub domains_min: i64,
    /// Whether nodes that the pod's node affinity excludes are left out.
    pub honor_affinity: bool,
    /// Whether nodes with taints that the pod does not tolerate are left out.
    pub honor_taints: bool,
    selector: LabelSelector,
}

impl Spread {
    /// A `v1.TopologySpreadConstraint`.
    pub fn read(value: &Value, pod: &Labels) -> Option<Spread> {
        let selector = match keyed(value, pod) {
            // Nothing is counted.
            Value::Null => return None,
            selector => LabelSelector::from_value(&selector).ok()?,
        };
        Some(Spread {
            skew_max: at(value, &["maxSkew"]).as_i64().unwrap_or(1),
            topology: text(value, &["topologyKey"]).into(),
            required: text(value, &["whenUnsatisfiable"]) != "ScheduleAnyway",
            domains_min: at(value, &["minDomains"]).as_i64().unwrap_or(1),
            honor_affinity: text(value, &["nodeAffinityPolicy"]) != "Ignore",
            honor_taints: text(value, &["nodeTaintsPolicy"]) == "Honor",
            selector,
        })
    }

    /// Whether a pod with these labels is counted.
    pub fn counts(&self, labels: &Labels) -> bool {
        selects(&self.selector, labels)
    }
}
