//! Whether somebody may do something.
//!
//! Left out until the kinds of RBAC decide: roles. Now `system:masters` may do everything, others look around in
//! discovery.

use super::identity::{AUTHENTICATED, Identity, MASTERS};
use coracle_api::status::{Attempt, GroupResource, StatusError, refusal};

/// Of who is anybody.
const OPEN_PATHS: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Of who is known; below these paths too.
const DISCOVERY_PATHS: &[&str] = &["/api", "/apis", "/openapi", "/version"];

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attributes<'a> {
    /// Objects.
    Resource {
        verb: &'a str,
        group: &'a str,
        plural: &'a str,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
    },
    /// A path.
    Path { method: &'a str, path: &'a str },
}

/// Whether they may.
///
/// # Errors
/// 403, worded as upstream.
pub(crate) fn authorize(identity: &Identity, attributes: &Attributes<'_>) -> Result<(), StatusError> {
    if identity.is_in(MASTERS) {
        return Ok(());
    }
    match *attributes {
        Attributes::Path { path, .. } => {
            let below = |roots: &[&str]| {
                let rests = roots.iter().filter_map(|root| path.strip_prefix(root));
                rests.into_iter().any(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if below(OPEN_PATHS) || (identity.is_in(AUTHENTICATED) && below(DISCOVERY_PATHS)) {
                return Ok(());
            }
        }
        Attributes::Resource { .. } => {}
    }
    Err(match *attributes {
        Attributes::Path { method, path } => {
            let verb = method.to_lowercase();
            let why = refusal(&identity.user, &Attempt::Path { verb: &verb, path }, "");
            StatusError::forbidden(GroupResource::default(), "", why)
        }
        Attributes::Resource { verb, group, plural, subresource, namespace, name } => {
            let of = GroupResource { group, resource: plural };
            let why = refusal(&identity.user, &Attempt::Resource { verb, of, subresource, namespace }, "");
            StatusError::forbidden(of, name, why)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_known_reads_health_and_nothing_else() {
        let check = |identity: &Identity, attributes: Attributes<'_>, expected: Result<(), &str>| {
            let found = authorize(identity, &attributes).map_err(|error| error.message);
            assert_eq!(found, expected.map_err(String::from), "{attributes:?}");
        };
        let anonymous = Identity::anonymous();
        let user = Identity::known("u", []);
        let path = |path: &'static str| Attributes::Path { method: "GET", path };
        check(&anonymous, path("/healthz"), Ok(()));
        check(&anonymous, path("/readyz/ping"), Ok(()));
        check(&anonymous, path("/api"), Err("forbidden: User \"system:anonymous\" cannot get path \"/api\""));
        check(&user, path("/apis/apps/v1"), Ok(()));
        check(&user, path("/metrics"), Err("forbidden: User \"u\" cannot get path \"/metrics\""));
        let create = Attributes::Resource {
            verb: "create",
            group: "apps",
            plural: "deployments",
            subresource: "",
            namespace: "default",
            name: "",
        };
        let why = "deployments.apps is forbidden: User \"u\" cannot create resource \"deployments\" in API group \"apps\" in the namespace \"default\"";
        check(&user, create, Err(why));
        check(&Identity::known("a", [MASTERS.to_string()]), create, Ok(()));
    }
}
