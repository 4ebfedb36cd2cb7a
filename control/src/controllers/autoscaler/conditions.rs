//! The conditions of an autoscaler: what they were, and what they become.

use crate::object::{items, text};
use jiff::Timestamp;
use serde_json::{Value, json};

/// In the order in which they were first set.
#[derive(Debug)]
pub struct Conditions {
    all: Vec<Value>,
    now: String,
}

impl Conditions {
    /// Those of an object.
    pub fn of(object: &Value, now: Timestamp) -> Conditions {
        let now = crate::clock::stamp(now);
        Conditions { all: items(object, &["status", "conditions"]).to_vec(), now }
    }

    /// Sets one; its time is that of the last change from true to false, or back.
    pub fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { "True" } else { "False" };
        let mut condition = json!({
            "type": kind, "status": status, "reason": reason, "message": message.into(),
            "lastTransitionTime": self.now,
        });
        match self.all.iter_mut().find(|told| text(told, &["type"]) == kind) {
            Some(told) => {
                if text(told, &["status"]) == status {
                    condition["lastTransitionTime"] = told["lastTransitionTime"].clone();
                }
                *told = condition;
            }
            None => self.all.push(condition),
        }
    }

    /// `status.conditions`.
    pub fn into_value(self) -> Value {
        self.all.into()
    }
}
