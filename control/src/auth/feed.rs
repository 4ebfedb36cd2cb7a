//! Keeps the authorizer's state as the registry is: a list, then a watch, of each kind that it looks at.

use super::authz::Authorizer;
use super::roles::Kind;
use super::{accounts, aggregate};
use crate::kinds;
use crate::object;
use crate::registry::options::{ListOptions, Query, Start, WatchOptions};
use crate::registry::{Registry, Resource, Target, WatchEvent};
use coracle_api::status::StatusError;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Between two attempts to follow a kind, when the storage refuses.
const RETRY: Duration = Duration::from_secs(1);

const GROUP: &str = "rbac.authorization.k8s.io";
const KINDS: [(Part, &str, &str); 6] = [
    (Part::Roles(Kind::ClusterRole), GROUP, "clusterroles"),
    (Part::Roles(Kind::ClusterRoleBinding), GROUP, "clusterrolebindings"),
    (Part::Roles(Kind::Role), GROUP, "roles"),
    (Part::Roles(Kind::RoleBinding), GROUP, "rolebindings"),
    (Part::Volumes, "", "persistentvolumes"),
    (Part::Pods, "", "pods"),
];

/// Which part of the state a kind makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Roles(Kind),
    Pods,
    Volumes,
}

impl Part {
    fn replace(self, authorizer: &Authorizer, objects: &[Value]) {
        match self {
            Part::Roles(kind) => authorizer.roles_mut().replace(kind, objects),
            Part::Pods => authorizer.graph_mut().replace_pods(objects),
            Part::Volumes => authorizer.graph_mut().replace_volumes(objects),
        }
    }

    fn put(self, authorizer: &Authorizer, object: &Value) {
        match self {
            Part::Roles(kind) => authorizer.roles_mut().put(kind, object),
            Part::Pods => authorizer.graph_mut().put_pod(object),
            Part::Volumes => authorizer.graph_mut().put_volume(object),
        }
    }

    fn remove(self, authorizer: &Authorizer, namespace: &str, name: &str) {
        match self {
            Part::Roles(kind) => authorizer.roles_mut().remove(kind, namespace, name),
            Part::Pods => authorizer.graph_mut().remove_pod(namespace, name),
            Part::Volumes => authorizer.graph_mut().remove_volume(name),
        }
    }
}

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
    for (part, group, plural) in KINDS {
        let resource = kinds::find(group, "v1", plural).expect("the kinds are in the table");
        let followed = Followed { registry: registry.clone(), part, resource, changed: changed.clone() };
        let since = followed.list().await?;
        tasks.spawn(followed.run(since));
    }
    tasks.spawn(aggregate::run(registry.clone(), changed));
    tasks.spawn(accounts::keep(registry.clone(), "serviceaccounts", "default"));
    tasks.spawn(accounts::keep(registry.clone(), "configmaps", "kube-root-ca.crt"));
    Ok(Feed(tasks))
}

struct Followed {
    registry: Registry,
    part: Part,
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
        if self.part == Part::Roles(Kind::ClusterRole) {
            self.changed.notify_one();
        }
    }

    /// Takes all that is there; as of when.
    async fn list(&self) -> Result<Start, StatusError> {
        let options = ListOptions::parse(self.resource, &Query::default())?;
        let listed = self.registry.list(&self.target(), &options).await?;
        self.part.replace(self.authorizer(), &listed.items);
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
                    self.part.put(self.authorizer(), &object);
                    self.told();
                }
                WatchEvent::Deleted(object) => {
                    let (namespace, name) = (object::namespace(&object), object::name(&object));
                    self.part.remove(self.authorizer(), namespace, name);
                    self.told();
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(_) => break,
            }
        }
        Ok(())
    }
}
