//! Who somebody is (`user.Info`), and the names that the system itself gives.

use std::collections::BTreeMap;

/// Whoever is in it may do everything.
pub const MASTERS: &str = "system:masters";
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
pub(crate) const ANONYMOUS: &str = "system:anonymous";

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `system:node:a`, `admin`.
    pub user: String,
    /// What tells this one from another of the same name; often empty.
    pub uid: String,
    /// With those that everybody of its kind is in.
    pub groups: Vec<String>,
    /// What else the credential says, as `authentication.kubernetes.io/credential-id`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// Somebody with a credential.
    pub fn known(user: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Identity {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        Identity { user: user.into(), groups, ..Identity::default() }
    }

    /// Somebody without one.
    pub fn anonymous() -> Identity {
        Identity { user: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Identity::default() }
    }

    /// The API server itself, for what a cluster has from its start and for what it keeps true by itself.
    pub fn apiserver() -> Identity {
        Identity::known("system:apiserver", [MASTERS.to_string()])
    }

    /// A part of the control plane that writes through the registry in this process: `system:kube-scheduler`,
    /// `system:serviceaccount:kube-system:generic-garbage-collector`. It is this process, so it may do everything.
    pub fn component(user: &str) -> Identity {
        Identity::known(user, [MASTERS.to_string()])
    }

    /// Whether it is in the group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
