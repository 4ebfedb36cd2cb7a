//! What nodes may do (upstream's Node authorizer), object by object.
//!
//! A node reads what its pods need and itself; what it writes is judged once more by [`restrict`] when the content is known.
//! What is not told object by object follows the rules of the role `system:node`.

mod graph;
pub mod restrict;

pub use graph::{Graph, Needed, is_mirror, references};

use super::Identity;
use super::attributes::Attributes;
use super::rules::PolicyRule;
use coracle_api::field::quoted;
use coracle_api::selector::FieldSelector;

/// Where nodes keep their leases.
pub const LEASES: &str = "kube-node-lease";

/// The node that somebody is, if it is one; an empty name is one that says nothing.
pub fn of(who: &Identity) -> Option<&str> {
    let name = who.user.strip_prefix("system:node:")?;
    who.is_in("system:nodes").then_some(name)
}

/// Why not; often nothing.
type Refusal = String;

/// Whether a node may do something.
///
/// # Errors
/// Why not, in upstream's words.
pub fn decide(
    node: &str,
    asked: &Attributes<'_>,
    graph: &Graph,
    rules: &[PolicyRule],
) -> Result<(), Refusal> {
    if node.is_empty() {
        return Err(format!("unknown node for user {}", quoted("system:node:")));
    }
    if let Attributes::Resource { verb, group, resource, subresource, namespace, name, fields } = *asked {
        let on = Ask { node, verb, subresource, namespace, name, fields, graph };
        match (group, resource) {
            ("", "secrets") => return on.read(Needed::Secret),
            ("", "configmaps") => return on.read(Needed::ConfigMap),
            ("", "persistentvolumeclaims") if subresource == "status" => return on.claim_status(),
            ("", "persistentvolumeclaims") => return on.get(|| on.related(Needed::Claim)),
            ("", "persistentvolumes") => return on.get(|| on.volume()),
            ("", "serviceaccounts") => return on.token(),
            ("", "nodes") => return on.itself(),
            ("", "pods") => return on.pods(),
            ("coordination.k8s.io", "leases") => return on.lease(),
            ("storage.k8s.io", "csinodes") => return on.csi_node(),
            // Nothing is attached by this control plane.
            ("storage.k8s.io", "volumeattachments") => return Err(on.unrelated()),
            _ => {}
        }
    }
    if rules.iter().any(|rule| rule.allows(asked)) { Ok(()) } else { Err(String::new()) }
}

struct Ask<'a> {
    node: &'a str,
    verb: &'a str,
    subresource: &'a str,
    namespace: &'a str,
    name: &'a str,
    fields: Option<&'a FieldSelector>,
    graph: &'a Graph,
}

fn no(why: &str) -> Result<(), Refusal> {
    Err(why.into())
}

impl Ask<'_> {
    fn unrelated(&self) -> Refusal {
        format!("no relationship found between node '{}' and this object", self.node)
    }

    fn related(&self, what: Needed) -> Result<(), Refusal> {
        if self.name.is_empty() {
            return no("No Object name found");
        }
        if self.graph.needs(self.node, what, self.namespace, self.name) {
            return Ok(());
        }
        Err(self.unrelated())
    }

    fn volume(&self) -> Result<(), Refusal> {
        if self.graph.needs_volume(self.node, self.name) { Ok(()) } else { Err(self.unrelated()) }
    }

    /// Get, list and watch of one object.
    fn read(&self, what: Needed) -> Result<(), Refusal> {
        if !matches!(self.verb, "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !self.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if self.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(what)
    }

    fn get(&self, related: impl FnOnce() -> Result<(), Refusal>) -> Result<(), Refusal> {
        if self.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !self.subresource.is_empty() {
            return no("cannot get subresource");
        }
        related()
    }

    fn claim_status(&self) -> Result<(), Refusal> {
        if !matches!(self.verb, "update" | "patch") {
            return no("can only get/update/patch this type");
        }
        self.related(Needed::Claim)
    }

    fn token(&self) -> Result<(), Refusal> {
        if self.verb != "create" || self.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if self.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(Needed::ServiceAccount)
    }

    fn lease(&self) -> Result<(), Refusal> {
        if !matches!(self.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a node lease");
        }
        if self.namespace != LEASES {
            return Err(format!("can only access leases in the {} system namespace", quoted(LEASES)));
        }
        // The name of a new one is in its body.
        if self.verb != "create" && self.name != self.node {
            return no("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }

    fn csi_node(&self) -> Result<(), Refusal> {
        if !matches!(self.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no("can only get, create, update, patch, or delete a CSINode");
        }
        if !self.subresource.is_empty() {
            return no("cannot authorize CSINode subresources");
        }
        if self.verb != "create" && self.name != self.node {
            return no("can only access CSINode with the same name as the requesting node");
        }
        Ok(())
    }

    fn itself(&self) -> Result<(), Refusal> {
        let node = self.node;
        match (self.subresource, self.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            // It reads itself before it is there, too.
            ("", "get" | "list" | "watch") => match self.name {
                name if name == node => Ok(()),
                "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
                name => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
            },
            _ => no(""),
        }
    }

    fn pods(&self) -> Result<(), Refusal> {
        match (self.subresource, self.verb) {
            ("", "get") => self.related(Needed::Pod),
            ("", "list" | "watch") => {
                let own = self.fields.and_then(|fields| fields.exact("spec.nodeName"));
                if own == Some(self.node) {
                    return Ok(());
                }
                if !self.name.is_empty() {
                    return self.related(Needed::Pod);
                }
                no("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => no(""),
        }
    }
}

#[cfg(test)]
#[path = "node_test.rs"]
mod tests;
