//! What a request's path and method ask for (`RequestInfo`).

use crate::registry::options::Query;
use coracle_api::percent;
use hyper::Method;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/api`, `/apis`: all groups.
    Groups { core: bool },
    /// `/apis/GROUP`.
    Group { group: String },
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    Version { group: String, version: String },
    /// Objects.
    Resource(ResourcePath),
    /// Anything else.
    Other,
}

/// `…/namespaces/NS/PLURAL/NAME/SUBRESOURCE`, with empty strings for what is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub plural: String,
    pub name: String,
    pub subresource: String,
    /// The old `/watch/` prefix.
    pub watch: bool,
}

/// Reads a path; `None` for one that is no valid percent-encoded text.
pub(super) fn route(path: &str) -> Option<Route> {
    let mut parts = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        parts.push(percent::decoded(part)?);
    }
    let mut parts = parts.into_iter();
    let (group, version) = match parts.next().as_deref() {
        Some("api") => match parts.next() {
            None => return Some(Route::Groups { core: true }),
            Some(version) => (String::new(), version),
        },
        Some("apis") => match (parts.next(), parts.next()) {
            (None, _) => return Some(Route::Groups { core: false }),
            (Some(group), None) => return Some(Route::Group { group }),
            (Some(group), Some(version)) => (group, version),
        },
        _ => return Some(Route::Other),
    };
    let mut rest: Vec<String> = parts.collect();
    let watch = rest.first().is_some_and(|part| part == "watch");
    if watch {
        rest.remove(0);
    }
    let mut path = ResourcePath { group, version, watch, ..ResourcePath::default() };
    match rest.len() {
        0 => return Some(Route::Version { group: path.group, version: path.version }),
        // `/namespaces/NS`, `/namespaces/NS/status`: the namespace itself.
        3.. if rest[0] == "namespaces"
            && !(rest.len() == 3 && matches!(&*rest[2], "status" | "finalize")) =>
        {
            path.namespace = rest[1].clone();
            rest.drain(..2);
        }
        _ => {}
    }
    let mut rest = rest.into_iter();
    path.plural = rest.next().unwrap_or_default();
    path.name = rest.next().unwrap_or_default();
    // What follows a subresource (a proxied path) belongs to it.
    path.subresource = rest.next().unwrap_or_default();
    Some(Route::Resource(path))
}

/// The verb of a request on objects; `None` for a method that has none.
pub(super) fn verb(method: &Method, path: &ResourcePath, query: &Query) -> Option<&'static str> {
    let one = !path.name.is_empty();
    Some(match *method {
        Method::GET | Method::HEAD if path.watch || (query.flag("watch") && path.subresource.is_empty()) => {
            "watch"
        }
        Method::GET | Method::HEAD if one => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if one => "delete",
        Method::DELETE => "deletecollection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_what_they_name() {
        let check = |path: &str, expected: [&str; 6]| {
            let Some(Route::Resource(found)) = route(path) else { panic!("{path}") };
            let found = [
                &*found.group,
                &*found.version,
                &*found.namespace,
                &*found.plural,
                &*found.name,
                &*found.subresource,
            ];
            assert_eq!(found, expected, "{path}");
        };
        check("/api/v1/pods", ["", "v1", "", "pods", "", ""]);
        check("/api/v1/namespaces", ["", "v1", "", "namespaces", "", ""]);
        check("/api/v1/namespaces/a", ["", "v1", "", "namespaces", "a", ""]);
        check("/api/v1/namespaces/a/status", ["", "v1", "", "namespaces", "a", "status"]);
        check("/api/v1/namespaces/a/pods", ["", "v1", "a", "pods", "", ""]);
        check("/api/v1/namespaces/a/pods/p/log", ["", "v1", "a", "pods", "p", "log"]);
        check("/api/v1/watch/namespaces/a/pods", ["", "v1", "a", "pods", "", ""]);
        check("/apis/apps/v1/namespaces/a/deployments/d/", ["apps", "v1", "a", "deployments", "d", ""]);
        check(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            ["rbac.authorization.k8s.io", "v1", "", "clusterroles", "system:node", ""],
        );
        assert_eq!(route("/api"), Some(Route::Groups { core: true }));
        assert_eq!(route("/apis/"), Some(Route::Groups { core: false }));
        assert_eq!(route("/apis/apps"), Some(Route::Group { group: "apps".into() }));
        let version = Route::Version { group: String::new(), version: "v1".into() };
        assert_eq!(route("/api/v1"), Some(version));
        assert_eq!(route("/healthz"), Some(Route::Other));
        assert_eq!(route("/api/v1/pods/%zz"), None);
    }
}
