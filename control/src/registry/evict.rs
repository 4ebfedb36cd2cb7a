//! `pods/NAME/eviction`: a deletion that asks the disruption budgets first.
//!
//! ```text
//! ended, pending or on its way out ──► deleted
//! no budget, or unhealthy and not counted ──► deleted
//! a budget with room ──► one less (its status, by version: two evictions cannot share one place) ──► deleted
//! a budget without ──► 429
//! ```

use super::options::{DeleteOptions, Query, WriteOptions};
use super::{RETRIES_MAX, Registry, Target, now};
use crate::auth::Identity;
use crate::kinds;
use crate::object::{self, at, child, fields, items, text};
use crate::registry::options::{At, ListOptions};
use crate::registry::selector::Selector;
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::selector::LabelSelector;
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};

const FULL: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Evictions that the budget's controller has not seen done.
const DISRUPTED_MAX: usize = 2000;

impl Registry {
    /// Evicts a pod.
    ///
    /// # Errors
    /// 404, 409, 429 when its budget has no room, 500 when it has two budgets.
    pub async fn evict(
        &self,
        who: &Identity,
        target: &Target,
        eviction: &Value,
        options: &WriteOptions,
    ) -> Result<Value, StatusError> {
        let named = object::name(eviction);
        if !named.is_empty() && named != target.name {
            return Err(StatusError::bad_request("name in URL does not match name in Eviction object"));
        }
        let mut how = DeleteOptions::parse(&Query::default(), at(eviction, &["deleteOptions"]))?;
        how.dry_run |= options.dry_run;
        let pod = self.get(target).await?;
        // Before a place in the budget is taken.
        self.judge_eviction(who, target, &pod)?;
        if how.uid.is_none() {
            // The pod that was judged is the one that goes.
            how.uid = Some(object::uid(&pod).to_string());
        }
        if needs_budget(&pod) {
            self.take_place(who, target, &pod, how.dry_run).await?;
        }
        if !how.dry_run && needs_budget(&pod) {
            let condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
                "lastTransitionTime": now().to_string(),
            });
            let patch = json!({"metadata": {"uid": how.uid}, "status": {"conditions": [condition]}});
            let patch = (PatchType::StrategicMerge, Document { value: patch, duplicates: Vec::new() });
            let part = target.resource.subresource("status");
            self.patch(who, target, part, patch, options).await?;
        }
        self.delete(who, target, &how).await?;
        Ok(json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201}))
    }

    /// Takes a place in the budget of a pod, if it has one.
    async fn take_place(
        &self,
        who: &Identity,
        target: &Target,
        pod: &Value,
        dry_run: bool,
    ) -> Result<(), StatusError> {
        let budgets = kinds::find("policy", "v1", "poddisruptionbudgets").expect("budgets are in the table");
        let all = Target { resource: budgets, namespace: target.namespace.clone(), name: String::new() };
        for _ in 0..RETRIES_MAX {
            let selector = Selector::parse(budgets, "", "")?;
            let list = ListOptions { selector, limit: 0, after: None, at: At::Now };
            let listed = self.list(&all, &list).await?;
            let mut mine = listed.items.into_iter().filter(|budget| covers(budget, pod));
            let Some(budget) = mine.next() else { return Ok(()) };
            if mine.next().is_some() {
                return Err(StatusError::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
            if !is_ready(pod) && spares_unhealthy(&budget) {
                return Ok(());
            }
            let name = object::name(&budget).to_string();
            let taken = decrement(budget, &target.name, &now().to_string())?;
            if dry_run {
                return Ok(());
            }
            let one = Target { name, ..all.clone() };
            let document = Document { value: taken, duplicates: Vec::new() };
            let part = budgets.subresource("status");
            match self.update(who, &one, part, document, &WriteOptions::default()).await {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.reason, Reason::Conflict | Reason::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StatusError::too_many_requests(FULL, 10))
    }
}

/// Whether its end disrupts anything.
fn needs_budget(pod: &Value) -> bool {
    let idle = matches!(text(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending");
    !idle && !object::is_terminating(pod)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = items(pod, &["status", "conditions"]).iter();
    let ready = conditions.filter(|condition| text(condition, &["type"]) == "Ready");
    ready.into_iter().any(|condition| text(condition, &["status"]) == "True")
}

fn covers(budget: &Value, pod: &Value) -> bool {
    let selector = at(budget, &["spec", "selector"]);
    !selector.is_null()
        && LabelSelector::from_value(selector).is_ok_and(|selector| selector.matches_object(pod))
}

/// Whether a pod that is not ready may go without a place (`unhealthyPodEvictionPolicy`).
fn spares_unhealthy(budget: &Value) -> bool {
    let number = |key: &str| at(budget, &["status", key]).as_i64().unwrap_or_default();
    text(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || (number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy"))
}

/// The budget with a place less.
fn decrement(mut budget: Value, pod: &str, now: &str) -> Result<Value, StatusError> {
    let resource = kinds::find("policy", "v1", "poddisruptionbudgets").expect("budgets are in the table");
    let name = object::name(&budget).to_string();
    let forbidden = |why: &str| Err(StatusError::forbidden(resource.group_resource(), &name, why));
    let number = |path: &[&str]| at(&budget, path).as_i64().unwrap_or_default();
    if number(&["status", "observedGeneration"]) < number(&["metadata", "generation"]) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(StatusError::too_many_requests(FULL, 10).because("DisruptionBudget", why));
    }
    let allowed = number(&["status", "disruptionsAllowed"]);
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = at(&budget, &["status", "disruptedPods"]).as_object().map_or(0, serde_json::Map::len);
    if disrupted >= DISRUPTED_MAX {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let (desired, current) =
            (number(&["status", "desiredHealthy"]), number(&["status", "currentHealthy"]));
        let why =
            format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently");
        return Err(StatusError::too_many_requests(FULL, 0).because("DisruptionBudget", why));
    }
    let status = child(&mut budget, "status");
    fields(status).insert("disruptionsAllowed".into(), (allowed - 1).into());
    fields(child(status, "disruptedPods")).insert(pod.into(), now.into());
    Ok(budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_places_until_it_has_none() {
        let budget = |allowed: i64, observed: i64| {
            json!({
                "metadata": {"name": "b", "generation": 2},
                "status": {
                    "disruptionsAllowed": allowed, "observedGeneration": observed,
                    "desiredHealthy": 2, "currentHealthy": 2,
                },
            })
        };
        let check = |budget: Value, expected: Result<i64, (u16, &str)>| {
            let found = decrement(budget, "p", "now");
            let found =
                found.map(|budget| at(&budget, &["status", "disruptionsAllowed"]).as_i64().unwrap_or(-1));
            let found = found.map_err(|error| {
                let causes = error.details.as_ref().and_then(|details| details.causes.clone());
                let cause = causes.and_then(|causes| causes.into_iter().next()?.message);
                (error.code, cause.unwrap_or(error.message))
            });
            assert_eq!(
                found.as_ref().map_err(|(code, why)| (*code, why.as_str())),
                expected.as_ref().map_err(|(c, w)| (*c, *w))
            );
        };
        check(budget(2, 2), Ok(1));
        check(budget(0, 2), Err((429, "The disruption budget b needs 2 healthy pods and has 2 currently")));
        check(budget(2, 1), Err((429, "The disruption budget b is still being processed by the server.")));
    }
}
