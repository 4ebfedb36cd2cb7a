//! What a write may say, given who writes: upstream's admission plugins that look at the sender.
//!
//! NodeRestriction (a node writes itself and its pods' status), CertificateApproval and CertificateSigning (who approves and
//! signs for which signer), CertificateSubjectRestriction, and the refusal to give what one does not have by roles and
//! bindings. All are judged on what is to be stored, so that no way of writing goes around them.

use super::{Part, Registry, Resource, Subresource, Target, load, refused};
use crate::auth::node::{self, restrict};
use crate::auth::{Attributes, Identity, RoleKind};
use crate::kinds;
use crate::object;
use coracle_api::field::quoted;
use coracle_api::status::{GroupResource, StatusError};
use serde_json::Value;

const SIGNERS: GroupResource<'static> = GroupResource { group: "certificates.k8s.io", resource: "signers" };

/// `x is forbidden: why`.
fn forbid(target: &Target, name: &str, judged: Result<(), String>) -> Result<(), StatusError> {
    judged.map_err(|why| StatusError::forbidden(target.resource.group_resource(), name, why))
}

impl Registry {
    /// Judges a new object.
    pub(super) async fn judge_create(
        &self,
        who: &Identity,
        target: &Target,
        new: &Value,
    ) -> Result<(), StatusError> {
        if let Some(kind) = role_kind(target.resource) {
            self.authorizer.admit_grant(who, kind, new, None)?;
        }
        let Some(node) = node::of(who) else { return Ok(()) };
        known(target, who, node)?;
        let name = object::name(new);
        let judged = match kind_of(target.resource) {
            "Pod" => {
                let found = self.stored("nodes", "", node).await?;
                restrict::create_pod(node, new, found.as_ref().map(object::uid))
            }
            "Node" => restrict::create_node(node, new),
            "Lease" => restrict::lease(node, &target.namespace, name),
            _ => Ok(()),
        };
        forbid(target, name, judged)
    }

    /// Judges a change of an object, or of a part of it, as it is to be stored.
    pub(super) fn judge_update(
        &self,
        who: &Identity,
        target: &Target,
        part: Option<&Subresource>,
        (new, old): (&Value, &Value),
    ) -> Result<(), StatusError> {
        if let (Some(kind), None) = (role_kind(target.resource), part) {
            self.authorizer.admit_grant(who, kind, new, Some(old))?;
        }
        if target.resource.kind == "CertificateSigningRequest" {
            self.judge_certificate(who, target, part, (new, old))?;
        }
        let Some(node) = node::of(who) else { return Ok(()) };
        known(target, who, node)?;
        let part = part.map_or("", |part| part.name);
        let judged = match kind_of(target.resource) {
            "Pod" => restrict::update_pod(node, part, new, old),
            "Node" => restrict::update_node(node, new, old),
            "Lease" => restrict::lease(node, &target.namespace, &target.name),
            "PersistentVolumeClaim" => restrict::update_claim(node, part, new, old),
            _ => Ok(()),
        };
        forbid(target, &target.name, judged)
    }

    /// Judges a deletion.
    pub(super) fn judge_delete(
        &self,
        who: &Identity,
        target: &Target,
        old: &Value,
    ) -> Result<(), StatusError> {
        kinds::admit_delete(target.resource, &target.name)?;
        let Some(node) = node::of(who) else { return Ok(()) };
        known(target, who, node)?;
        let judged = match kind_of(target.resource) {
            "Pod" => restrict::delete_pod(node, old),
            "Node" => restrict::own_node(node, &target.name),
            "Lease" => restrict::lease(node, &target.namespace, &target.name),
            "PersistentVolumeClaim" => Err("may only update PVC status".into()),
            _ => Ok(()),
        };
        forbid(target, &target.name, judged)
    }

    /// Judges the eviction of a pod.
    ///
    /// # Errors
    /// 403 for a node whose pod it is not.
    pub fn judge_eviction(&self, who: &Identity, target: &Target, pod: &Value) -> Result<(), StatusError> {
        let Some(node) = node::of(who) else { return Ok(()) };
        forbid(target, &target.name, restrict::evict_pod(node, pod))
    }

    /// Whoever approves, denies or signs may do so for the signer.
    fn judge_certificate(
        &self,
        who: &Identity,
        target: &Target,
        part: Option<&Subresource>,
        (new, old): (&Value, &Value),
    ) -> Result<(), StatusError> {
        let differs = |path: &[&str]| object::at(new, path) != object::at(old, path);
        let verb = match part.map(|part| part.what) {
            Some(Part::Approval) => "approve",
            Some(Part::Status)
                if differs(&["status", "certificate"]) || differs(&["status", "conditions"]) =>
            {
                "sign"
            }
            _ => return Ok(()),
        };
        let signer = object::text(old, &["spec", "signerName"]);
        let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
        let may = |name: &str| self.authorizer.decide(who, &Attributes::on(verb, SIGNERS, "", name)).allowed;
        if may(signer) || domain.is_some_and(|domain| may(&domain)) {
            return Ok(());
        }
        let why = format!("user not permitted to {verb} requests with signerName {}", quoted(signer));
        forbid(target, &target.name, Err(why))
    }

    /// An object of the core group, if there is one.
    pub(crate) async fn stored(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, StatusError> {
        let resource = kinds::find("", "v1", plural).expect("a kind of the table");
        let entry = self.storage.get(&resource.key(namespace, name)).await.map_err(refused)?;
        entry.map(|entry| load(resource, &entry)).transpose()
    }
}

/// Who says that they are a node says which.
fn known(target: &Target, who: &Identity, node: &str) -> Result<(), StatusError> {
    let why = || format!("could not determine node from user {}", quoted(&who.user));
    forbid(target, &target.name, if node.is_empty() { Err(why()) } else { Ok(()) })
}

/// The kind, of those that nodes are restricted in.
fn kind_of(resource: &Resource) -> &'static str {
    match resource.group {
        "" | "coordination.k8s.io" => resource.kind,
        _ => "",
    }
}

/// Which kind of RBAC it is.
fn role_kind(resource: &Resource) -> Option<RoleKind> {
    if resource.group != "rbac.authorization.k8s.io" {
        return None;
    }
    Some(match resource.kind {
        "Role" => RoleKind::Role,
        "ClusterRole" => RoleKind::ClusterRole,
        "RoleBinding" => RoleKind::RoleBinding,
        _ => RoleKind::ClusterRoleBinding,
    })
}
