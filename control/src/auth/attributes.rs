//! What is asked for (`authorizer.Attributes`), and how a refusal says it.

use super::Identity;
use coracle_api::selector::FieldSelector;
use coracle_api::status::{Attempt, GroupResource, StatusError, refusal};

/// What is asked for. Empty strings for what is not said.
#[derive(Clone, Copy, Debug)]
pub enum Attributes<'a> {
    /// Objects.
    Resource {
        /// `get`, `list`, `impersonate`.
        verb: &'a str,
        /// Empty for the core group.
        group: &'a str,
        /// `pods`.
        resource: &'a str,
        /// `log`.
        subresource: &'a str,
        /// Of the objects; empty for all, and for what has none.
        namespace: &'a str,
        /// Of one object; also the one that a list's field selector names.
        name: &'a str,
        /// Of a list, a watch or a deletion of many.
        fields: Option<&'a FieldSelector>,
    },
    /// A path that is no object's.
    Path {
        /// The method, in lower case.
        verb: &'a str,
        /// Without its query.
        path: &'a str,
    },
}

impl<'a> Attributes<'a> {
    /// A verb on a kind, for those that are no requests: `escalate`, `bind`, `approve`.
    pub fn on(verb: &'a str, of: GroupResource<'a>, namespace: &'a str, name: &'a str) -> Attributes<'a> {
        Attributes::Resource {
            verb,
            group: of.group,
            resource: of.resource,
            subresource: "",
            namespace,
            name,
            fields: None,
        }
    }

    /// 403, worded as upstream.
    pub fn refused(&self, who: &Identity, reason: &str) -> StatusError {
        match *self {
            Attributes::Path { verb, path } => {
                let why = refusal(&who.user, &Attempt::Path { verb, path }, reason);
                StatusError::forbidden(GroupResource::default(), "", why)
            }
            Attributes::Resource { verb, group, resource, subresource, namespace, name, .. } => {
                let of = GroupResource { group, resource };
                let why = refusal(&who.user, &Attempt::Resource { verb, of, subresource, namespace }, reason);
                StatusError::forbidden(of, name, why)
            }
        }
    }
}
