//! Whether somebody may do something: what is known of roles, and who judges in which order.
//!
//! ```text
//! system:masters ─► yes
//! a node ─► its pods and what they need ─► yes
//! everybody ─► roles and bindings ─► yes, or no with the reasons
//! ```
//! The state follows the registry (`feed`), so that a request costs look-ups in memory and never a list.

use super::attributes::Attributes;
use super::identity::{Identity, MASTERS};
use super::node::{self, Graph};
use super::roles::{Kind, RoleRef, Roles};
use super::rules::{PolicyRule, describe, quoted_list, uncovered};
use crate::object;
use coracle_api::field::quoted;
use coracle_api::status::{GroupResource, StatusError};
use serde_json::Value;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

const RBAC: &str = "rbac.authorization.k8s.io";
/// Combinations that one role may allow of whoever does not have everything: each is checked.
const GRANT_MAX: usize = 10_000;

/// What is known of who may do what. Cheap to clone; every clone is the same.
#[derive(Clone, Debug)]
pub struct Authorizer(Arc<State>);

#[derive(Debug)]
struct State {
    roles: RwLock<Roles>,
    graph: RwLock<Graph>,
    node_rules: Vec<PolicyRule>,
}

impl Default for Authorizer {
    fn default() -> Authorizer {
        Authorizer(Arc::new(State {
            roles: RwLock::default(),
            graph: RwLock::default(),
            node_rules: super::policy::node_rules(),
        }))
    }
}

/// Whether, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether they may.
    pub allowed: bool,
    /// Why, or why not; often nothing for a no.
    pub reason: String,
}

impl Authorizer {
    fn read(&self) -> RwLockReadGuard<'_, Roles> {
        // Every change is whole before it can panic.
        self.0.roles.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn roles_mut(&self) -> RwLockWriteGuard<'_, Roles> {
        self.0.roles.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn graph_mut(&self) -> RwLockWriteGuard<'_, Graph> {
        self.0.graph.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody may do something.
    pub fn decide(&self, who: &Identity, asked: &Attributes<'_>) -> Decision {
        if who.is_in(MASTERS) {
            return Decision { allowed: true, reason: String::new() };
        }
        let mut reasons = Vec::new();
        if let Some(node) = node::of(who) {
            let graph = self.0.graph.read().unwrap_or_else(PoisonError::into_inner);
            match node::decide(node, asked, &graph, &self.0.node_rules) {
                Ok(()) => return Decision { allowed: true, reason: String::new() },
                Err(reason) => reasons.push(reason),
            }
        }
        match self.read().decide(who, asked) {
            Ok(reason) => return Decision { allowed: true, reason },
            Err(reason) => reasons.push(reason),
        }
        reasons.retain(|reason| !reason.is_empty());
        Decision { allowed: false, reason: reasons.join("\n") }
    }

    /// Lets somebody do something.
    ///
    /// # Errors
    /// 403, worded as upstream.
    pub fn authorize(&self, who: &Identity, asked: &Attributes<'_>) -> Result<(), StatusError> {
        let decision = self.decide(who, asked);
        if decision.allowed { Ok(()) } else { Err(asked.refused(who, &decision.reason)) }
    }

    /// All that somebody may do in a namespace, or everywhere when it is empty; and what is missing to tell.
    pub fn rules_for(&self, who: &Identity, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        self.read().rules_for(who, namespace)
    }

    /// Nobody gives, by a role or a binding, what they do not have, unless they may `escalate` or `bind` it. `old` is what an
    /// update replaces.
    ///
    /// # Errors
    /// 403, worded as upstream.
    pub fn admit_grant(
        &self,
        who: &Identity,
        kind: Kind,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), StatusError> {
        if who.is_in(MASTERS) || old.is_some_and(|old| only_collects(object, old)) {
            return Ok(());
        }
        let resource = match kind {
            Kind::Role => "roles",
            Kind::ClusterRole => "clusterroles",
            Kind::RoleBinding => "rolebindings",
            Kind::ClusterRoleBinding => "clusterrolebindings",
        };
        let of = |resource| GroupResource { group: RBAC, resource };
        let (namespace, name) = (object::namespace(object), object::name(object));
        let forbidden = |why: &str| Err(StatusError::forbidden(of(resource), name, why));
        let rules = match kind {
            Kind::Role | Kind::ClusterRole => {
                if self.decide(who, &Attributes::on("escalate", of(resource), namespace, name)).allowed {
                    return Ok(());
                }
                super::roles::rules_of(object)
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let role = RoleRef::of(object);
                let bound = of(if role.kind == "Role" { "roles" } else { "clusterroles" });
                if self.decide(who, &Attributes::on("bind", bound, namespace, &role.name)).allowed {
                    return Ok(());
                }
                match self.read().referenced(&role, namespace) {
                    Ok(rules) => rules.to_vec(),
                    Err(_) => return Err(StatusError::not_found(bound, &role.name)),
                }
            }
        };
        let size: usize = rules.iter().map(PolicyRule::size).fold(0, usize::saturating_add);
        if size > GRANT_MAX {
            return forbidden(&format!(
                "its rules allow {size} combinations of group, resource, verb and name, of which {GRANT_MAX} are checked at most: use \"*\" or several roles"
            ));
        }
        let (own, lacking) = self.rules_for(who, namespace);
        let missing = uncovered(&own, &rules);
        if !missing.is_empty() {
            let (user, groups) = (quoted(&who.user), quoted_list(&who.groups));
            let missing = describe(missing);
            let mut why = format!(
                "user {user} (groups={groups}) is attempting to grant RBAC permissions not currently held:\n{missing}"
            );
            if !lacking.is_empty() {
                why += &format!("; resolution errors: [{}]", lacking.join(", "));
            }
            return forbidden(&why);
        }
        // It may gather anything, or have gathered it.
        let gathers = |role: &Value| object::at(role, &["aggregationRule"]).is_object();
        let aggregates = kind == Kind::ClusterRole && (gathers(object) || old.is_some_and(gathers));
        if aggregates && !uncovered(&own, &PolicyRule::everything()).is_empty() {
            return forbidden("must have cluster-admin privileges to use the aggregationRule");
        }
        Ok(())
    }
}

/// Whether an update changes nothing but what the garbage collector must: owners and finalizers.
fn only_collects(new: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        for key in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "generation"] {
            object::set_meta(&mut object, key, Value::Null);
        }
        object
    };
    new != old && bare(new) == bare(old)
}
