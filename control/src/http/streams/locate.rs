//! From names to objects: which pod, which container of it, which node it is on.

use crate::http::Context;
use crate::kinds;
use crate::object::{items, name, text};
use crate::registry::Target;
use coracle_api::status::StatusError;
use serde_json::Value;

pub(super) async fn object(
    context: &Context,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Value, StatusError> {
    let resource = kinds::find("", "v1", plural).ok_or_else(|| StatusError::generic(404, ""))?;
    context.registry.get(&Target { resource, namespace: namespace.into(), name: name.into() }).await
}

/// The node that a pod is on; `None` while it is on none.
///
/// # Errors
/// A node that is not there any more.
pub(super) async fn node(context: &Context, pod: &Value) -> Result<Option<Value>, StatusError> {
    match text(pod, &["spec", "nodeName"]) {
        "" => Ok(None),
        node => object(context, "nodes", "", node).await.map(Some),
    }
}

/// The node that a pod must be on.
///
/// # Errors
/// 400 while it is on none.
pub(super) async fn host(context: &Context, pod: &Value) -> Result<Value, StatusError> {
    node(context, pod)
        .await?
        .ok_or_else(|| StatusError::bad_request(format!("pod {} does not have a host assigned", name(pod))))
}

/// The container that a request means: the one that it names, or the only one.
///
/// # Errors
/// 400, worded as upstream.
pub(super) fn container<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, StatusError> {
    let named = |list: &str| -> Vec<&'a str> {
        items(pod, &["spec", list]).iter().map(|container| text(container, &["name"])).collect()
    };
    let pod_name = name(pod);
    let [containers, init, ephemeral] = ["containers", "initContainers", "ephemeralContainers"].map(named);
    if !asked.is_empty() {
        let known = [&containers, &init, &ephemeral].into_iter().flatten().any(|name| *name == asked);
        let wrong = || format!("container {asked} is not valid for pod {pod_name}");
        return known.then_some(asked).ok_or_else(|| StatusError::bad_request(wrong()));
    }
    if let [only] = containers[..] {
        return Ok(only);
    }
    let mut message = format!("a container name must be specified for pod {pod_name}");
    if !containers.is_empty() {
        message += &format!(", choose one of: [{}]", containers.join(" "));
        for (list, what) in [(init, "init"), (ephemeral, "ephemeral")] {
            if !list.is_empty() {
                message += &format!(" or one of the {what} containers: [{}]", list.join(" "));
            }
        }
    }
    Err(StatusError::bad_request(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_named_or_the_only_one() {
        let check = |spec: Value, asked: &str, expected: Result<&str, &str>| {
            let pod = json!({"metadata": {"name": "p"}, "spec": spec});
            let found = container(&pod, asked);
            assert_eq!(found.map_err(|error| error.message), expected.map_err(String::from), "{pod} {asked}");
        };
        let named = |names: &[&str]| -> Value { names.iter().map(|name| json!({"name": name})).collect() };
        let one = json!({"containers": named(&["a"]), "initContainers": named(&["i"])});
        check(one.clone(), "", Ok("a"));
        check(one.clone(), "i", Ok("i"));
        check(one, "b", Err("container b is not valid for pod p"));
        let two = json!({"containers": named(&["a", "b"])});
        check(two.clone(), "b", Ok("b"));
        check(two, "", Err("a container name must be specified for pod p, choose one of: [a b]"));
        let all = json!({"containers": named(&["a", "b"]), "initContainers": named(&["i", "j"]),
            "ephemeralContainers": named(&["e"])});
        check(all.clone(), "e", Ok("e"));
        let message = "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i j] or one of the ephemeral containers: [e]";
        check(all, "", Err(message));
        check(json!({}), "", Err("a container name must be specified for pod p"));
    }
}
