//! What happens without a request: settling what was approved by hand, and forgetting what is over.
//!
//! As upstream's cleaners: requests that were denied, failed or issued go after an hour, those that nobody decided after a
//! day; bootstrap tokens go when they have ended. Nothing is polled: changes wake the loop, and the next end that is known.

use super::token::{self, Token};
use super::{CSRS, Enrollment, SECRETS, has_condition, target_of};
use crate::object::{self, at, text};
use crate::registry::options::{DeleteOptions, ListOptions, Query, WatchOptions};
use crate::registry::{WatchEvent, WatchStream};
use coracle_api::status::{Reason, StatusError};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::time::Duration;

/// After a decision.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// Without one.
const PENDING: SignedDuration = SignedDuration::from_hours(24);
/// At least so long between two rounds, and after a failure; at most so long without one.
const ROUND_MIN: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_secs(5);
const ROUND_MAX: Duration = Duration::from_secs(3600);

/// Settles and cleans until it is dropped.
pub async fn run(enrollment: Enrollment) {
    loop {
        let wait = match round(&enrollment).await {
            Ok(()) => ROUND_MIN,
            Err(error) => {
                tracing::warn!(%error, "requests for certificates are not looked after");
                RETRY
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Everything once, then changes until one of the watches ends or the next end has come.
async fn round(enrollment: &Enrollment) -> Result<(), StatusError> {
    // Before the lists: a change in between is seen as one.
    let mut csrs = watch(enrollment, CSRS, "").await?;
    let mut secrets = watch(enrollment, SECRETS, token::NAMESPACE).await?;
    let now = Timestamp::now();
    let mut next = now + SignedDuration::try_from(ROUND_MAX).unwrap_or(DECIDED);
    let options = || ListOptions::parse(target_of(CSRS, "", "").resource, &Query::parse(""));
    for csr in enrollment.registry.list(&target_of(CSRS, "", ""), &options()?).await?.items {
        match end_of_csr(&csr) {
            Some(end) if end <= now => delete(enrollment, CSRS, &csr).await?,
            end => {
                next = end.map_or(next, |end| end.min(next));
                settle(enrollment, &csr).await?;
            }
        }
    }
    for secret in
        enrollment.registry.list(&target_of(SECRETS, token::NAMESPACE, ""), &options()?).await?.items
    {
        match Token::of(&secret).and_then(|token| token.expires()) {
            Some(end) if end <= now => delete(enrollment, SECRETS, &secret).await?,
            Some(end) => next = next.min(end),
            None => {}
        }
    }
    let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
    let deadline = tokio::time::sleep(left);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            () = &mut deadline => return Ok(()),
            event = csrs.next() => match event {
                Some(WatchEvent::Added(csr) | WatchEvent::Modified(csr)) => settle(enrollment, &csr).await?,
                Some(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_)) => {}
                Some(WatchEvent::Error(_)) | None => return Ok(()),
            },
            event = secrets.next() => match event {
                // Another token may end sooner.
                Some(WatchEvent::Added(secret)) if Token::of(&secret).is_some() => return Ok(()),
                Some(WatchEvent::Error(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}

async fn watch(
    enrollment: &Enrollment,
    of: (&'static str, &'static str),
    namespace: &str,
) -> Result<WatchStream, StatusError> {
    let target = target_of(of, namespace, "");
    let query = Query::parse("sendInitialEvents=false&resourceVersionMatch=NotOlderThan&timeoutSeconds=3600");
    let options = WatchOptions::parse(target.resource, &query)?;
    enrollment.registry.watch(&target, options).await
}

async fn settle(enrollment: &Enrollment, csr: &Value) -> Result<(), StatusError> {
    let done = at(csr, &["status", "certificate"]).is_string();
    // What no rule approves is looked at when somebody has approved it.
    if done || !has_condition(csr, "Approved") {
        return Ok(());
    }
    match enrollment.settle(object::name(csr)).await {
        Err(error) if error.reason != Reason::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn delete(
    enrollment: &Enrollment,
    of: (&'static str, &'static str),
    object: &Value,
) -> Result<(), StatusError> {
    let target = target_of(of, object::namespace(object), object::name(object));
    let options = DeleteOptions { uid: Some(object::uid(object).into()), ..DeleteOptions::default() };
    tracing::info!(kind = of.1, name = object::name(object), "over, and deleted");
    match enrollment.registry.delete(&enrollment.who, &target, &options).await {
        Err(error) if !matches!(error.reason, Reason::NotFound | Reason::Conflict) => Err(error),
        _ => Ok(()),
    }
}

/// When a request may be forgotten.
fn end_of_csr(csr: &Value) -> Option<Timestamp> {
    let conditions = object::items(csr, &["status", "conditions"]);
    let decided =
        conditions.iter().filter_map(|c| text(c, &["lastUpdateTime"]).parse::<Timestamp>().ok()).max();
    let signed = at(csr, &["status", "certificate"]).is_string();
    let approved = has_condition(csr, "Approved") && !has_condition(csr, "Failed");
    match decided {
        // Approved and not yet signed: that is to come.
        Some(decided) if signed || !approved => decided.checked_add(DECIDED).ok(),
        _ => {
            let made = text(csr, &["metadata", "creationTimestamp"]).parse::<Timestamp>().ok()?;
            made.checked_add(PENDING).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_forgotten_when_they_are_over() {
        let check = |conditions: Value, certificate: Option<&str>, expected: &str| {
            let csr = json!({
                "metadata": {"creationTimestamp": "2030-01-01T00:00:00Z"},
                "status": {"conditions": conditions, "certificate": certificate},
            });
            assert_eq!(end_of_csr(&csr).map(|end| end.to_string()).as_deref(), Some(expected), "{csr}");
        };
        let condition = |kind: &str| json!([{"type": kind, "lastUpdateTime": "2030-01-01T06:00:00Z"}]);
        check(json!([]), None, "2030-01-02T00:00:00Z");
        check(condition("Denied"), None, "2030-01-01T07:00:00Z");
        check(condition("Failed"), None, "2030-01-01T07:00:00Z");
        check(condition("Approved"), Some("x"), "2030-01-01T07:00:00Z");
        check(condition("Approved"), None, "2030-01-02T00:00:00Z");
    }
}
