//! Amounts of resources by name, as `v1.ResourceList`: exact, and in the notation in which they were written.

use coracle_api::quantity::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// By name. A resource that is absent is none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<String, Quantity>);

impl Amounts {
    /// A `v1.ResourceList`; what is no quantity is skipped.
    pub fn read(list: &Value) -> Amounts {
        let fields = list.as_object().into_iter().flatten();
        Amounts(
            fields.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.parse().ok()?))).collect(),
        )
    }

    /// Sets one.
    pub fn set(&mut self, name: impl Into<String>, amount: Quantity) {
        self.0.insert(name.into(), amount);
    }

    /// One; zero when absent.
    pub fn of(&self, name: &str) -> Quantity {
        self.0.get(name).copied().unwrap_or(Quantity::ZERO)
    }

    /// Whether one is said.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Quantity)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn combine(&mut self, other: &Amounts, with: impl Fn(Quantity, Quantity) -> Quantity) {
        for (name, amount) in other.iter() {
            let mine = self.0.entry(name.to_string()).or_insert(Quantity::ZERO);
            *mine = with(*mine, amount);
        }
    }

    /// Adds.
    pub fn add(&mut self, other: &Amounts) {
        self.combine(other, Quantity::plus);
    }

    /// Takes away, down to below zero.
    pub fn subtract(&mut self, other: &Amounts) {
        self.combine(other, Quantity::minus);
    }

    /// The larger of each.
    pub fn raise(&mut self, other: &Amounts) {
        self.combine(other, |mine, other| if other > mine { other } else { mine });
    }

    /// Those that are wanted.
    pub fn only(&self, wanted: impl Fn(&str, Quantity) -> bool) -> Amounts {
        Amounts(
            self.0
                .iter()
                .filter(|(name, amount)| wanted(name, **amount))
                .map(|(n, a)| (n.clone(), *a))
                .collect(),
        )
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As JSON.
    pub fn to_value(&self) -> Value {
        self.0.iter().map(|(name, amount)| (name.clone(), Value::from(amount.to_string()))).collect()
    }
}

/// `cpu=1,memory=2Gi`, as upstream's messages.
impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, amount)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{name}={amount}")?;
        }
        Ok(())
    }
}
