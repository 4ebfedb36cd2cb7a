//! The kinds that controllers look at, found once in the table.

use crate::kinds::{RESOURCES, find};
use crate::registry::Resource;
use std::sync::LazyLock;

/// A kind, by its group, version and plural.
pub type Kind = LazyLock<&'static Resource>;

macro_rules! kinds {
    ($($name:ident = $group:literal / $version:literal / $plural:literal;)*) => {
        $(
            #[doc = concat!("`", $plural, "`")]
            pub static $name: Kind =
                LazyLock::new(|| find($group, $version, $plural).expect("a test looks up every kind here"));
        )*

        #[cfg(test)]
        static ALL: &[&Kind] = &[$(&$name),*];
    };
}

kinds! {
    CONFIG_MAPS = "" / "v1" / "configmaps";
    ENDPOINTS = "" / "v1" / "endpoints";
    EVENTS = "" / "v1" / "events";
    NAMESPACES = "" / "v1" / "namespaces";
    NODES = "" / "v1" / "nodes";
    CLAIMS = "" / "v1" / "persistentvolumeclaims";
    VOLUMES = "" / "v1" / "persistentvolumes";
    PODS = "" / "v1" / "pods";
    QUOTAS = "" / "v1" / "resourcequotas";
    SECRETS = "" / "v1" / "secrets";
    ACCOUNTS = "" / "v1" / "serviceaccounts";
    SERVICES = "" / "v1" / "services";
    REPLICATION_CONTROLLERS = "" / "v1" / "replicationcontrollers";
    CONTROLLER_REVISIONS = "apps" / "v1" / "controllerrevisions";
    DAEMON_SETS = "apps" / "v1" / "daemonsets";
    DEPLOYMENTS = "apps" / "v1" / "deployments";
    REPLICA_SETS = "apps" / "v1" / "replicasets";
    STATEFUL_SETS = "apps" / "v1" / "statefulsets";
    AUTOSCALERS = "autoscaling" / "v2" / "horizontalpodautoscalers";
    CRON_JOBS = "batch" / "v1" / "cronjobs";
    JOBS = "batch" / "v1" / "jobs";
    LEASES = "coordination.k8s.io" / "v1" / "leases";
    ENDPOINT_SLICES = "discovery.k8s.io" / "v1" / "endpointslices";
    BUDGETS = "policy" / "v1" / "poddisruptionbudgets";
    STORAGE_CLASSES = "storage.k8s.io" / "v1" / "storageclasses";
    PRIORITY_CLASSES = "scheduling.k8s.io" / "v1" / "priorityclasses";
}

/// The kind of an owner: by its group, whatever the version, as references outlive versions.
pub fn of_reference(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    RESOURCES.iter().find(|row| row.stored.is_none() && row.group == group && row.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_here_is_served() {
        for kind in ALL {
            assert!(kind.stored.is_none(), "{}", kind.kind);
        }
    }
}
