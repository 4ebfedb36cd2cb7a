//! What a namespace may have in all (`v1` ResourceQuota): measured, judged, reserved. Pure.
//!
//! ```text
//! request ─► charge: used + reservation, by compare-and-set ─► object stored ──────────► controller sees it: drops the reservation
//!                     └─ over hard: 403                         └─ not stored: refund        └─ counts anew what there is
//! ```
//! `status.used` is always at least what is stored and what is about to be: a reservation names the object that it is for, and
//! is counted until that object is seen. So the controller may count anew at any time without giving away what a request
//! on this or another control plane was just promised. A request that died leaves its reservation for [`RESERVED`].

mod amounts;
mod scope;
mod usage;

pub use amounts::Amounts;
pub use scope::covers;
pub use usage::{measures, until, usage};

use crate::kinds::RESOURCES;
use crate::object::{at, text};
use crate::registry::Resource;
use coracle_api::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Where reservations are.
pub const ANNOTATION: &str = "coracle.dev/quota-reservations";
/// Longer than any request takes.
pub const RESERVED: SignedDuration = SignedDuration::from_secs(120);
/// Reservations of a quota; whoever would add one more is told to come again.
pub const RESERVATIONS_MAX: usize = 512;

/// What a request was promised for an object that is not yet seen.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reservation {
    /// Of this request alone.
    pub id: String,
    /// Where the object will be stored.
    pub key: String,
    /// Its uid.
    pub uid: String,
    /// When, in seconds since 1970.
    pub at: i64,
    /// All that the object takes then: a `v1.ResourceList`.
    pub usage: BTreeMap<String, String>,
}

impl Reservation {
    /// What the object takes then.
    pub fn amounts(&self) -> Amounts {
        Amounts::read(&json!(self.usage))
    }

    /// How long it is believed; `None` when no more. Clocks may differ either way.
    pub fn left(&self, now: Timestamp) -> Option<SignedDuration> {
        let age = SignedDuration::from_secs(now.as_second().saturating_sub(self.at)).abs();
        (age < RESERVED).then(|| RESERVED - age)
    }
}

/// The reservations that a quota has.
pub fn reservations(quota: &Value) -> Vec<Reservation> {
    let written = text(quota, &["metadata", "annotations", ANNOTATION]);
    if written.is_empty() {
        return Vec::new();
    }
    // Whoever may change quotas may write nonsense there; it reserves nothing.
    serde_json::from_str(written).unwrap_or_default()
}

/// Writes reservations into a quota.
pub fn set_reservations(quota: &mut Value, reservations: &[Reservation]) {
    let annotations = crate::object::child(crate::object::child(quota, "metadata"), "annotations");
    let fields = crate::object::fields(annotations);
    if reservations.is_empty() {
        fields.remove(ANNOTATION);
        if fields.is_empty() {
            crate::object::set_meta(quota, "annotations", Value::Null);
        }
    } else {
        fields.insert(ANNOTATION.into(), json!(reservations).to_string().into());
    }
}

/// What is known of the object of a reservation.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It is not there: not yet, as far as anybody knows.
    Not,
    /// It takes this much now.
    As(Amounts),
    /// It was there, and is gone.
    Gone,
}

/// The reservations that still count, and what is to be counted for them besides what is there.
pub fn outstanding(
    reservations: Vec<Reservation>,
    now: Timestamp,
    seen: impl Fn(&Reservation) -> Seen,
) -> (Vec<Reservation>, Amounts) {
    // Of several for one object, the largest: they are of requests that follow each other.
    let mut missing = BTreeMap::<String, Amounts>::new();
    let counts = |reservation: &Reservation| {
        let taken = match seen(reservation) {
            _ if reservation.left(now).is_none() => return false,
            Seen::Gone => return false,
            Seen::Not => None,
            Seen::As(taken) => Some(taken),
        };
        let mut excess = reservation.amounts();
        excess.subtract(&taken.clone().unwrap_or_default());
        let excess = excess.only(|_, amount| amount > Quantity::ZERO);
        if taken.is_some() && excess.is_empty() {
            return false;
        }
        missing.entry(reservation.uid.clone()).or_default().raise(&excess);
        true
    };
    let kept: Vec<Reservation> = reservations.into_iter().filter(counts).collect();
    let mut all = Amounts::default();
    missing.values().for_each(|excess| all.add(excess));
    (kept, all)
}

/// What an object takes of a quota, if the quota is about it: the amounts that the quota limits.
pub fn share(quota: &Value, resource: &Resource, object: &Value, now: Timestamp) -> Amounts {
    if !covers(quota, resource.group.is_empty() && resource.plural == "pods", object) {
        return Amounts::default();
    }
    let hard = Amounts::read(at(quota, &["spec", "hard"]));
    usage(resource, object, now).only(|name, _| hard.has(name))
}

/// The kinds whose objects take of what is limited, as they are stored.
pub fn kinds(hard: &Amounts) -> impl Iterator<Item = &'static Resource> {
    RESOURCES
        .iter()
        .filter(|kind| kind.namespaced && kind.stored.is_none())
        .filter(|kind| hard.names().any(|name| measures(kind, name)))
}

/// Whether `status` says how much of what is limited is used.
pub fn is_known(quota: &Value) -> bool {
    let (wanted, hard, used) = (
        Amounts::read(at(quota, &["spec", "hard"])),
        Amounts::read(at(quota, &["status", "hard"])),
        Amounts::read(at(quota, &["status", "used"])),
    );
    wanted == hard && hard.names().all(|name| used.has(name))
}

/// What must be said because it is limited, and is not.
pub fn require(quota: &Value, resource: &Resource, object: &Value) -> Result<(), String> {
    let is_pod = resource.group.is_empty() && resource.plural == "pods";
    if !is_pod || !covers(quota, true, object) {
        return Ok(());
    }
    let hard = Amounts::read(at(quota, &["spec", "hard"]));
    usage::unsaid(object, hard.names())
        .map_err(|why| format!("failed quota: {}: {why}", crate::object::name(quota)))
}

/// What is used after `more` is added; or that it is too much, in upstream's words.
pub fn charge(quota: &Value, used: &Amounts, more: &Amounts) -> Result<Amounts, String> {
    let hard = Amounts::read(at(quota, &["spec", "hard"]));
    let mut after = used.clone();
    after.add(more);
    let exceeded = more.only(|name, more| more > Quantity::ZERO && after.of(name) > hard.of(name));
    if exceeded.is_empty() {
        return Ok(after);
    }
    let shown = |amounts: &Amounts| {
        let mut shown = Amounts::default();
        exceeded.names().for_each(|name| shown.set(name, amounts.of(name)));
        shown
    };
    Err(format!(
        "exceeded quota: {}, requested: {exceeded}, used: {}, limited: {}",
        crate::object::name(quota),
        shown(used),
        shown(&hard)
    ))
}

#[cfg(test)]
mod tests;
