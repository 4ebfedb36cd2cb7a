//! How much of their quotas namespaces use (`v1` ResourceQuota status).
//!
//! Counted anew whenever something that is counted comes, goes or changes size; what requests have reserved and not yet stored
//! is counted with it. See [`crate::quota`].

use super::cache::{Cache, Change};
use super::client::Client;
use super::frame::{Controller, Next};
use super::key::Key;
use super::kinds::{EVENTS, QUOTAS};
use crate::object::{self, at, is_terminating, namespace, uid};
use crate::quota::{self, Amounts, Reservation, Seen};
use coracle_api::quantity::Quantity;
use coracle_api::status::{Reason, StatusError};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Objects that are remembered to have been there: their reservations are not waited for.
const GONE_MAX: usize = 4096;

/// The controller.
pub struct Quotas {
    client: Client,
    gone: Mutex<VecDeque<String>>,
}

impl Quotas {
    /// Over a client.
    pub fn new(client: Client) -> Quotas {
        Quotas { client, gone: Mutex::default() }
    }

    fn is_gone(&self, uid: &str) -> bool {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|gone| gone == uid)
    }

    fn remember(&self, uid: &str) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if gone.len() >= GONE_MAX {
            gone.pop_front();
        }
        gone.push_back(uid.to_string());
    }

    /// What is used, which reservations still count, and when that changes by the clock.
    fn count(&self, quota: &Value, now: Timestamp) -> (Amounts, Vec<Reservation>, Option<Duration>) {
        let cache = self.client.cache();
        let hard = Amounts::read(at(quota, &["spec", "hard"]));
        let mut used = Amounts::default();
        hard.names().for_each(|name| used.set(name, Quantity::ZERO));
        let mut again: Option<Duration> = None;
        let mut wait = |left: jiff::SignedDuration| {
            let left = Duration::try_from(left).unwrap_or_default();
            again = Some(again.map_or(left, |again| again.min(left)));
        };
        for kind in quota::kinds(&hard) {
            for object in cache.list(kind, namespace(quota)) {
                used.add(&quota::share(quota, kind, &object, now));
                if is_terminating(&object)
                    && let Some(left) = quota::until(&object, now).filter(|left| !left.is_zero())
                {
                    wait(left);
                }
            }
        }
        let (kept, missing) = quota::outstanding(quota::reservations(quota), now, |reservation| {
            if self.is_gone(&reservation.uid) {
                return Seen::Gone;
            }
            let key = Key::read(&Arc::from(reservation.key.as_str()));
            let object = key.and_then(|key| Some((key.resource(), cache.get(&key)?)));
            match object.filter(|(_, object)| uid(object) == reservation.uid) {
                Some((kind, object)) => Seen::As(quota::share(quota, kind, &object, now)),
                None => Seen::Not,
            }
        });
        kept.iter().filter_map(|reservation| reservation.left(now)).for_each(&mut wait);
        used.add(&missing.only(|name, _| hard.has(name)));
        (used, kept, again)
    }
}

impl Controller for Quotas {
    const NAME: &'static str = "resourcequota";

    fn concerns(&self, change: &Change, cache: &Cache) -> Vec<Key> {
        if change.of(*QUOTAS) {
            return vec![change.key.clone()];
        }
        let namespace = change.key.namespace();
        if namespace.is_empty() || change.of(*EVENTS) {
            return Vec::new();
        }
        let quotas = cache.keys(*QUOTAS, namespace);
        if quotas.is_empty() {
            return Vec::new();
        }
        let object = |entry: &Option<_>| entry.as_ref().and_then(|entry| cache.object(&change.key, entry));
        let (old, new) = (object(&change.old), object(&change.new));
        let now = crate::clock::now();
        let usage = |object: &Arc<Value>| quota::usage(change.key.resource(), object, now);
        match (&old, &new) {
            (Some(old), Some(new)) if uid(old) == uid(new) => {
                // A pod that begins to end is looked at again when its grace is over.
                let ends = is_terminating(old) != is_terminating(new);
                let same = usage(old) == usage(new) && !ends;
                return if same { Vec::new() } else { quotas };
            }
            (Some(old), _) => self.remember(uid(old)),
            _ => {}
        }
        quotas
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, StatusError> {
        let Some(quota) = self.client.cache().get(key) else { return Ok(Next::Done) };
        let now = crate::clock::now();
        let (used, kept, again) = self.count(&quota, now);
        let told = |field: &str| Amounts::read(at(&quota, &["status", field]));
        let hard = at(&quota, &["spec", "hard"]);
        let same = told("used") == used && told("hard") == Amounts::read(hard);
        if same && kept == quota::reservations(&quota) {
            return Ok(Next::at(again));
        }
        let mut new = (*quota).clone();
        let status = json!({"hard": hard, "used": used.to_value()});
        object::fields(&mut new).insert("status".into(), status);
        quota::set_reservations(&mut new, &kept);
        match self.client.update(new, Some("status")).await {
            Ok(_) => Ok(Next::at(again)),
            Err(error) if error.reason == Reason::NotFound => Ok(Next::Done),
            Err(error) => Err(error),
        }
    }
}
