//! Which object: its key in the storage, which names its kind, its namespace and itself.

use crate::kinds::RESOURCES;
use crate::registry::{Resource, Target};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The key of an object. Cheap to clone; ordered and compared by its text alone, which names the kind.
#[derive(Clone)]
pub struct Key {
    resource: &'static Resource,
    path: Arc<str>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.path == other.path
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        self.path.cmp(&other.path)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}

impl Key {
    /// Of an object of a kind; the namespace is left out for kinds of the cluster.
    pub fn of(resource: &'static Resource, namespace: &str, name: &str) -> Key {
        Key { resource, path: resource.key(namespace, name).into() }
    }

    /// A key of the storage; `None` for what is no object.
    pub fn read(key: &Arc<str>) -> Option<Key> {
        resource(key).map(|resource| Key { resource, path: key.clone() })
    }

    /// The kind.
    pub fn resource(&self) -> &'static Resource {
        self.resource
    }

    /// Empty for kinds of the cluster.
    pub fn namespace(&self) -> &str {
        let mut parts = self.path.split('/').skip(4);
        match (parts.next(), parts.next()) {
            (Some(namespace), Some(_)) => namespace,
            _ => "",
        }
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it is of that kind.
    pub fn is(&self, resource: &Resource) -> bool {
        std::ptr::eq(self.resource, resource)
    }

    /// As the storage knows it.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// As the registry's verbs want it.
    pub fn target(&self) -> Target {
        Target {
            resource: self.resource(),
            namespace: self.namespace().to_string(),
            name: self.name().to_string(),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path.strip_prefix("/registry/").unwrap_or(&self.path))
    }
}

/// The stored form of the kind under `/registry/GROUP/PLURAL/…`.
fn resource(key: &str) -> Option<&'static Resource> {
    let mut parts = key.strip_prefix("/registry/")?.split('/');
    let group = match parts.next()? {
        "core" => "",
        group => group,
    };
    let plural = parts.next()?;
    RESOURCES.iter().find(|row| row.stored.is_none() && row.group == group && row.plural == plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(key: &str, expected: Option<(&str, &str, &str)>) {
        let key = Key::read(&Arc::from(key));
        let found = key.as_ref().map(|key| (key.resource().kind, key.namespace(), key.name()));
        assert_eq!(found, expected);
    }

    #[test]
    fn keys_name_their_objects() {
        check("/registry/core/pods/default/web", Some(("Pod", "default", "web")));
        check("/registry/core/nodes/board-1", Some(("Node", "", "board-1")));
        check("/registry/apps/deployments/shop/api", Some(("Deployment", "shop", "api")));
        check("/registry/rbac.authorization.k8s.io/clusterroles/a:b", Some(("ClusterRole", "", "a:b")));
        check("/registry/core/gadgets/default/web", None);
        check("/ranges/serviceips/10.96.0.1", None);
    }
}
