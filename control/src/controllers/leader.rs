//! Who runs the controllers when several control planes share a storage: the holder of the Lease `kube-system/coracle-control`.
//!
//! ```text
//! somebody holds it ──► not renewed for 15 s, as seen here ──► take it ──► lead; renew every 2 s ──► 10 s without: stop
//! ```
//! The times are client-go's. Clocks are not compared: a lease is stale when this process has seen it unchanged for its
//! duration. A leader that cannot renew stops before anybody else may begin. The embedded storage has one process, which
//! leads without a lease and so without a write.

use super::client::MANAGER;
use super::kinds::LEASES;
use crate::auth::Identity;
use crate::object;
use crate::registry::options::WriteOptions;
use crate::registry::{Registry, Target};
use crate::storage::Storage;
use coracle_api::decode::Document;
use coracle_api::status::{Reason, StatusError};
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

const NAME: &str = "coracle-control";
const NAMESPACE: &str = "kube-system";
const DURATION: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Runs terms, one after the other, whenever this process leads.
pub async fn lead<T: Future<Output = ()>>(registry: Registry, term: impl Fn() -> T) {
    if matches!(registry.storage(), Storage::Embedded(_)) {
        loop {
            term().await;
            // A term ends by a panic only.
            tokio::time::sleep(RETRY).await;
        }
    }
    let who = Identity::component("system:kube-controller-manager");
    let mut candidate = Candidate { registry, who, identity: identity(), seen: None };
    loop {
        candidate.acquire().await;
        tracing::info!(identity = candidate.identity, "this control plane leads");
        tokio::select! {
            () = term() => {}
            () = candidate.renew() => tracing::warn!("the lead is lost"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A name for this process, unlike all others.
fn identity() -> String {
    let random: String = match crate::registry::random_id() {
        Ok(id) => id,
        Err(error) => {
            tracing::warn!(%error, "no random identity");
            std::process::id().to_string()
        }
    };
    format!("{MANAGER}_{random}")
}

struct Candidate {
    registry: Registry,
    who: Identity,
    identity: String,
    /// The lease as it was last seen, and since when it has been so.
    seen: Option<(String, Instant)>,
}

impl Candidate {
    fn target(name: &str) -> Target {
        Target { resource: *LEASES, namespace: NAMESPACE.into(), name: name.into() }
    }

    /// Waits until the lease is this process's.
    async fn acquire(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) if matches!(error.reason, Reason::Conflict | Reason::AlreadyExists) => {}
                Err(error) => tracing::warn!(%error, "the lease cannot be asked for"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Returns when the lease could not be renewed in time.
    async fn renew(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_DEADLINE {
            tokio::time::sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                // Somebody else has it.
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the lease is not renewed"),
                Err(_) => return,
            }
        }
    }

    /// Takes or renews the lease; false when it is somebody else's.
    async fn attempt(&mut self) -> Result<bool, StatusError> {
        let now = crate::clock::micro_stamp(crate::clock::now());
        let options = WriteOptions { manager: MANAGER.into(), ..WriteOptions::default() };
        let lease = match self.registry.get(&Candidate::target(NAME)).await {
            Ok(lease) => lease,
            Err(error) if error.reason == Reason::NotFound => {
                let lease = json!({
                    "metadata": {"name": NAME, "namespace": NAMESPACE},
                    "spec": self.spec(&now, &now, 0),
                });
                let document = Document { value: lease, duplicates: Vec::new() };
                return self
                    .registry
                    .create(&self.who, &Candidate::target(""), document, &options)
                    .await
                    .map(|_| true);
            }
            Err(error) => return Err(error),
        };
        let version = object::text(&lease, &["metadata", "resourceVersion"]).to_string();
        let holder = object::text(&lease, &["spec", "holderIdentity"]);
        let mine = holder == self.identity;
        if !mine && !holder.is_empty() {
            let since = match &self.seen {
                Some((seen, since)) if *seen == version => *since,
                _ => Instant::now(),
            };
            self.seen = Some((version, since));
            if since.elapsed() < DURATION {
                return Ok(false);
            }
        }
        let transitions = object::at(&lease, &["spec", "leaseTransitions"]).as_i64().unwrap_or_default();
        let acquired = object::text(&lease, &["spec", "acquireTime"]).to_string();
        let spec = if mine {
            self.spec(&acquired, &now, transitions)
        } else {
            self.spec(&now, &now, transitions.saturating_add(1))
        };
        let mut new = lease;
        object::fields(&mut new).insert("spec".into(), spec);
        let document = Document { value: new, duplicates: Vec::new() };
        self.registry
            .update(&self.who, &Candidate::target(NAME), None, document, &options)
            .await
            .map(|_| true)
    }

    fn spec(&self, acquired: &str, renewed: &str, transitions: i64) -> Value {
        json!({
            "holderIdentity": self.identity,
            "leaseDurationSeconds": DURATION.as_secs(),
            "acquireTime": acquired,
            "renewTime": renewed,
            "leaseTransitions": transitions,
        })
    }
}
