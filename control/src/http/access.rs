//! Whether a request may go on: what it asks for, as authorizers see it.

use super::path::ResourcePath;
use crate::auth::{Attributes, Authorizer, Identity};
use crate::registry::options::Query;
use coracle_api::selector::FieldSelector;
use coracle_api::status::StatusError;

/// What is done by a GET, and is no reading.
const ENTERED: &[&str] = &["exec", "attach", "portforward"];

/// Lets a request on objects go on; `enters` when it is a proxied one that enters a pod.
///
/// # Errors
/// 403.
pub(super) fn admit(
    authorizer: &Authorizer,
    who: &Identity,
    verb: &str,
    of: &ResourcePath,
    query: &Query,
    enters: bool,
) -> Result<(), StatusError> {
    let many = matches!(verb, "list" | "watch" | "deletecollection");
    // A selector that cannot be read grants nothing, and is told of later.
    let fields = many.then(|| FieldSelector::parse(query.get("fieldSelector"), |_| true).ok()).flatten();
    let mut name = of.name.as_str();
    if name.is_empty() && matches!(verb, "list" | "watch") {
        name = fields.as_ref().and_then(|fields| fields.exact("metadata.name")).unwrap_or_default();
    }
    // Who may read a namespace's things may be allowed to read the namespace.
    let of_namespaces = of.group.is_empty() && of.plural == "namespaces";
    let namespace = if of_namespaces { of.name.as_str() } else { of.namespace.as_str() };
    let asked = |verb| Attributes::Resource {
        verb,
        group: &of.group,
        resource: &of.plural,
        subresource: &of.subresource,
        namespace,
        name,
        fields: fields.as_ref(),
    };
    authorizer.authorize(who, &asked(verb))?;
    // A WebSocket begins with a GET; whoever only reads pods must not enter them.
    if verb == "get" && of.plural == "pods" && ENTERED.contains(&of.subresource.as_str()) {
        authorizer.authorize(who, &asked("create"))?;
    }
    // Nor must whoever only looks at nodes enter the pods there (see `coracle_api::kubelet`).
    if enters && verb != "create" {
        authorizer.authorize(who, &asked("create"))?;
    }
    Ok(())
}
