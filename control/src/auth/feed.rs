//! Keeps the authorizer's state as the registry is: a list, then a watch, of each kind that it looks at.

use super::aggregate;
use super::authz::Authorizer;
use super::roles::Kind;
use crate::kinds;
use crate::object;
use crate::registry::options::{ListOptions, Query, Start, WatchOptions};
use crate::registry::{Registry, Resource, Target, WatchEvent};
use coracle_api::status::StatusError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Between two attempts to follow a kind, when the storage refuses.
const RETRY: Duration = Duration::from_secs(1);

const GROUP: &str = "rbac.authorization.k8s.io";
const KINDS: [(Kind, &str); 4] = [
    (Kind::ClusterRole, "clusterroles"),
    (Kind::ClusterRoleBinding, "clusterrolebindings"),
    (Kind::Role, "roles"),
    (Kind::RoleBinding, "rolebindings"),
];

/// What follows the registry; it stops when this is dropped.
#[derive(Debug)]
pub struct Feed(#[expect(dead_code, reason = "its tasks end when it is dropped")] JoinSet<()>);

/// Starts following, and waits until everything that is stored is known.
///
/// # Errors
/// The storage's.
pub async fn follow(registry: &Registry) -> Result<Feed, StatusError> {
    let mut tasks = JoinSet::new();
    let changed = Arc::new(Notify::new());
    for (kind, plural) in KINDS {
        let resource = kinds::find(GROUP, "v1", plural).expect("the kinds of RBAC are in the table");
        let followed = Followed { registry: registry.clone(), kind, resource, changed: changed.clone() };
        let since = followed.list().await?;
        tasks.spawn(followed.run(since));
    }
    tasks.spawn(aggregate::run(registry.clone(), changed));
    Ok(Feed(tasks))
}

struct Followed {
    registry: Registry,
    kind: Kind,
    resource: &'static Resource,
    /// Tells that cluster roles are others now.
    changed: Arc<Notify>,
}

impl Followed {
    fn target(&self) -> Target {
        Target { resource: self.resource, namespace: String::new(), name: String::new() }
    }

    fn authorizer(&self) -> &Authorizer {
        self.registry.authorizer()
    }

    fn told(&self) {
        if self.kind == Kind::ClusterRole {
            self.changed.notify_one();
        }
    }

    /// Takes all that is there; as of when.
    async fn list(&self) -> Result<Start, StatusError> {
        let options = ListOptions::parse(self.resource, &Query::default())?;
        let listed = self.registry.list(&self.target(), &options).await?;
        self.authorizer().roles_mut().replace(self.kind, &listed.items);
        self.told();
        Ok(Start::After(listed.revision))
    }

    async fn run(self, mut since: Start) {
        loop {
            match self.watch(since).await {
                // Watches end after a while, and when they fall behind.
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(kind = self.resource.kind, %error, "authorization is behind");
                    tokio::time::sleep(RETRY).await;
                }
            }
            since = loop {
                match self.list().await {
                    Ok(since) => break since,
                    Err(error) => {
                        tracing::warn!(kind = self.resource.kind, %error, "authorization is behind");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            };
        }
    }

    async fn watch(&self, since: Start) -> Result<(), StatusError> {
        let mut options = WatchOptions::parse(self.resource, &Query::default())?;
        options.start = since;
        let mut watch = self.registry.watch(&self.target(), options).await?;
        while let Some(event) = watch.next().await {
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.authorizer().roles_mut().put(self.kind, &object);
                    self.told();
                }
                WatchEvent::Deleted(object) => {
                    let (namespace, name) = (object::namespace(&object), object::name(&object));
                    self.authorizer().roles_mut().remove(self.kind, namespace, name);
                    self.told();
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(_) => break,
            }
        }
        Ok(())
    }
}
