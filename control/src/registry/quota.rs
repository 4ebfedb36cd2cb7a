//! The admission plugin ResourceQuota: what a new object takes is reserved before it is stored. See [`crate::quota`].
//!
//! Requests of this control plane take turns at a namespace's quotas; others' are met by compare-and-set.

use super::options::WriteOptions;
use super::write::Owners;
use super::{Registry, Resource, Target, Written, load, new_uid, refused};
use crate::auth::Identity;
use crate::kinds;
use crate::object::{self, at};
use crate::quota::{self, Amounts, RESERVATIONS_MAX, Reservation};
use crate::storage::{Entry, ListQuery};
use coracle_api::quantity::Quantity;
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::pin::Pin;

/// How often another control plane may be faster, besides the attempts of each write.
const ATTEMPTS_MAX: usize = 4;

/// What a request was promised: to be given back when its object is not stored.
#[derive(Debug, Default)]
pub(super) struct Charged {
    id: String,
    /// Of which quotas, and how much.
    quotas: Vec<(Target, Amounts)>,
}

/// What is asked of one quota.
struct Asked {
    quota: Target,
    /// All that the object takes.
    share: Amounts,
    /// What of it is new.
    more: Amounts,
}

impl Registry {
    /// Reserves what an object, or its change, takes of its namespace's quotas.
    ///
    /// # Errors
    /// 403 when it is too much, or something that is limited is not said.
    pub(super) async fn charge(
        &self,
        target: &Target,
        (new, old): (&Value, Option<&Value>),
        dry_run: bool,
    ) -> Result<Charged, StatusError> {
        // As upstream: events are never counted.
        if !target.resource.namespaced || target.resource.kind == "Event" {
            return Ok(Charged::default());
        }
        let quotas = self.quotas(&target.namespace).await?;
        if quotas.is_empty() {
            return Ok(Charged::default());
        }
        let forbid =
            |why: String| StatusError::forbidden(target.resource.group_resource(), object::name(new), why);
        let now = crate::clock::now();
        let mut all = Vec::new();
        for entry in &quotas {
            let quota = load(resource(), entry)?;
            quota::require(&quota, target.resource, new).map_err(forbid)?;
            let share = quota::share(&quota, target.resource, new, now);
            let mut more = share.clone();
            if let Some(old) = old {
                more.subtract(&quota::share(&quota, target.resource, old, now));
            }
            let more = more.only(|_, amount| amount > Quantity::ZERO);
            if more.is_empty() {
                continue;
            }
            if quota::is_known(&quota) {
                let used = Amounts::read(at(&quota, &["status", "used"]));
                quota::charge(&quota, &used, &more).map_err(forbid)?;
            }
            let namespace = target.namespace.clone();
            let quota = Target { resource: resource(), namespace, name: object::name(&quota).into() };
            all.push(Asked { quota, share, more });
        }
        if all.is_empty() || dry_run {
            return Ok(Charged::default());
        }
        let mut charged = Charged { id: new_uid()?, quotas: Vec::new() };
        let reservation = |share: &Amounts| Reservation {
            id: charged.id.clone(),
            key: target.resource.key(&target.namespace, object::name(new)),
            uid: object::uid(new).into(),
            at: now.as_second(),
            usage: share.iter().map(|(name, amount)| (name.to_string(), amount.to_string())).collect(),
        };
        let mut taken = Vec::new();
        let turn = self.quota_turn.lock().await;
        for asked in all {
            match self.reserve(&asked, &reservation(&asked.share), &forbid).await {
                Ok(true) => taken.push((asked.quota, asked.more)),
                Ok(false) => {}
                Err(error) => {
                    drop(turn);
                    charged.quotas = taken;
                    self.refund(charged).await;
                    return Err(error);
                }
            }
        }
        charged.quotas = taken;
        Ok(charged)
    }

    /// The same for what changes how much it takes when it is changed; of others only their number counts.
    pub(super) async fn charge_change(
        &self,
        target: &Target,
        new: &Value,
        old: &Value,
        dry_run: bool,
    ) -> Result<Charged, StatusError> {
        let changes = matches!(target.resource.plural, "pods" | "services" | "persistentvolumeclaims");
        if !changes || !target.resource.group.is_empty() || at(new, &["spec"]) == at(old, &["spec"]) {
            return Ok(Charged::default());
        }
        self.charge(target, (new, Some(old)), dry_run).await
    }

    async fn quotas(&self, namespace: &str) -> Result<Vec<Entry>, StatusError> {
        let query = ListQuery { prefix: resource().prefix(namespace), ..ListQuery::default() };
        Ok(self.storage.list(&query).await.map_err(refused)?.entries)
    }

    /// Reserves in one quota; false when it is gone.
    async fn reserve(
        &self,
        asked: &Asked,
        reservation: &Reservation,
        forbid: &(impl Fn(String) -> StatusError + Sync),
    ) -> Result<bool, StatusError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(entry) = self.storage.get(&asked.quota.key()).await.map_err(refused)? else {
                return Ok(false);
            };
            let quota = load(resource(), &entry)?;
            // The controller has not seen it yet, or not since its limits changed.
            let measured = if quota::is_known(&quota) { None } else { Some(self.measure(&quota).await?) };
            let produce = |old: &Value| {
                let mut reservations = quota::reservations(old);
                let used = match &measured {
                    _ if quota::is_known(old) => Amounts::read(at(old, &["status", "used"])),
                    Some(measured) => {
                        let mut used = measured.clone();
                        reservations.iter().for_each(|other| used.add(&other.amounts()));
                        used
                    }
                    None => {
                        let resources: Vec<&str> = asked.more.names().collect();
                        let name = &asked.quota.name;
                        let resources = resources.join(",");
                        return Err(forbid(format!(
                            "status unknown for quota: {name}, resources: {resources}"
                        )));
                    }
                };
                if reservations.len() >= RESERVATIONS_MAX {
                    let why = format!("quota {} is not yet counted anew", asked.quota.name);
                    return Err(StatusError::timeout(why, 1));
                }
                let used = quota::charge(old, &used, &asked.more).map_err(forbid)?;
                reservations.push(reservation.clone());
                let mut new = old.clone();
                let status = json!({"hard": at(old, &["spec", "hard"]), "used": used.to_value()});
                object::fields(&mut new).insert("status".into(), status);
                quota::set_reservations(&mut new, &reservations);
                Ok((new, Vec::new()))
            };
            match self.rewrite_quota(&asked.quota, &produce).await {
                Ok(_) => return Ok(true),
                Err(error) if error.reason == Reason::NotFound => return Ok(false),
                Err(error) if error.reason == Reason::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(StatusError::stale(resource().group_resource(), &asked.quota.name))
    }

    /// Gives back what was reserved for an object that is not stored. What cannot be given back now ages away.
    pub(super) async fn refund(&self, charged: Charged) {
        if charged.quotas.is_empty() {
            return;
        }
        let _turn = self.quota_turn.lock().await;
        for (quota, more) in &charged.quotas {
            let produce = |old: &Value| {
                let (mut new, mut reservations) = (old.clone(), quota::reservations(old));
                let before = reservations.len();
                reservations.retain(|reservation| reservation.id != charged.id);
                if reservations.len() < before {
                    let mut used = Amounts::read(at(old, &["status", "used"]));
                    used.subtract(more);
                    object::child(&mut new, "status")["used"] = used.to_value();
                    quota::set_reservations(&mut new, &reservations);
                }
                Ok((new, Vec::new()))
            };
            match self.rewrite_quota(quota, &produce).await {
                Ok(_) => {}
                Err(error) if error.reason == Reason::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, quota = quota.name, "a reservation stays until it has aged");
                }
            }
        }
    }

    /// Boxed: a write of an object writes a quota.
    fn rewrite_quota<'a>(
        &'a self,
        quota: &'a Target,
        produce: &'a super::write::Produce<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<Written, StatusError>> + Send + 'a>> {
        Box::pin(async move {
            let who = Identity::component("system:apiserver");
            let options = WriteOptions { manager: "coracle-control".into(), ..WriteOptions::default() };
            let status = quota.resource.subresource("status");
            self.rewrite(&who, quota, status, &options, Owners::ByChange, produce).await
        })
    }

    /// What is used of a quota, by what is stored.
    async fn measure(&self, quota: &Value) -> Result<Amounts, StatusError> {
        let hard = Amounts::read(at(quota, &["spec", "hard"]));
        let mut used = Amounts::default();
        hard.names().for_each(|name| used.set(name, Quantity::ZERO));
        let now = crate::clock::now();
        for kind in quota::kinds(&hard) {
            let prefix = kind.prefix(object::namespace(quota));
            let query = ListQuery { prefix, ..ListQuery::default() };
            for entry in self.storage.list(&query).await.map_err(refused)?.entries {
                used.add(&quota::share(quota, kind, &load(kind, &entry)?, now));
            }
        }
        Ok(used)
    }
}

fn resource() -> &'static Resource {
    kinds::find("", "v1", "resourcequotas").expect("quotas are in the table")
}
