//! `metrics.k8s.io/v1beta1`: what `kubectl top` asks. See [`crate::usage`].

use super::{Context, path::ResourcePath};
use crate::kinds;
use crate::object::{self, text};
use crate::registry::options::{At, ListOptions, Query};
use crate::registry::selector::Selector;
use crate::registry::{Target, Verbs};
use coracle_api::status::{GroupResource, StatusError};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) const GROUP: &str = "metrics.k8s.io";
pub(super) const VERSION: &str = "v1beta1";

/// Whether the path is ours.
pub(super) fn is_ours(of: &ResourcePath) -> bool {
    of.group == GROUP && of.version == VERSION
}

/// Answers get and list.
pub(super) async fn serve(
    context: &Arc<Context>,
    of: &ResourcePath,
    verb: &str,
    query: &Query,
) -> Result<Value, StatusError> {
    let missing = || StatusError::generic(404, "");
    let of_nodes = match of.plural.as_str() {
        "nodes" if of.namespace.is_empty() => true,
        "pods" => false,
        _ => return Err(missing()),
    };
    if !of.subresource.is_empty() {
        return Err(missing());
    }
    if !Verbs::ReadOnly.names().contains(&verb) {
        return Err(StatusError::generic(405, ""));
    }
    let resource = kinds::find("", "v1", &of.plural).ok_or_else(missing)?;
    let target = Target { resource, namespace: of.namespace.clone(), name: of.name.clone() };
    let objects = if verb == "get" {
        vec![context.registry.get(&target).await?]
    } else {
        list(context, &target, query).await?
    };
    let nodes = nodes(context, of_nodes, &objects).await?;
    let figures = context.boards.figures(nodes).await;
    let mut items = Vec::with_capacity(objects.len());
    for object in &objects {
        let node = if of_nodes { object::name(object) } else { text(object, &["spec", "nodeName"]) };
        let Some(figures) = figures.get(node) else { continue };
        items.extend(if of_nodes { figures.node(object) } else { figures.pod(object) });
    }
    if verb == "get" {
        let group = GroupResource { group: GROUP, resource: resource.plural };
        let name = if of_nodes { of.name.clone() } else { format!("{}/{}", of.namespace, of.name) };
        return items.pop().ok_or_else(|| StatusError::not_found(group, &name));
    }
    let kind = if of_nodes { "NodeMetricsList" } else { "PodMetricsList" };
    Ok(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind, "metadata": {}, "items": items,
    }))
}

async fn list(context: &Context, target: &Target, query: &Query) -> Result<Vec<Value>, StatusError> {
    let selector = Selector::parse(target.resource, query.get("labelSelector"), query.get("fieldSelector"))?;
    let options = ListOptions { selector, limit: 0, after: None, at: At::Now };
    Ok(context.registry.list(target, &options).await?.items)
}

/// The nodes that are to be asked.
async fn nodes(context: &Context, of_nodes: bool, objects: &[Value]) -> Result<Vec<Value>, StatusError> {
    if of_nodes && objects.len() == 1 {
        return Ok(objects.to_vec());
    }
    let resource = kinds::find("", "v1", "nodes").expect("nodes are in the table");
    let target = Target { resource, namespace: String::new(), name: String::new() };
    let mut all = list(context, &target, &Query::default()).await?;
    context.boards.keep(&all);
    let wanted = |node: &Value| {
        let name = object::name(node);
        objects.iter().any(|object| {
            if of_nodes { object::name(object) == name } else { text(object, &["spec", "nodeName"]) == name }
        })
    };
    all.retain(wanted);
    Ok(all)
}
