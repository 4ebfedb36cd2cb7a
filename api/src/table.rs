//! Tables: what `kubectl get` prints, made by the server (`meta.k8s.io/v1` Table).
//!
//! Columns and cells are upstream's (`pkg/printers/internalversion`), for each resource that has its own; any other
//! gets its name and when it was made. Objects are taken as they are stored: a missing or misshapen field makes an
//! empty cell, never an error. Time is a parameter.

mod age;
mod cell;
mod cluster;
mod network;
mod pods;
mod workloads;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use age::human_duration;

const COLUMNS: &str = include_str!("table/columns.txt");

/// What stands in `rows[].object`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    /// `PartialObjectMetadata`.
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    /// The query parameter `includeObject`; `None` for what is none.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        Some(match text {
            "" | "Metadata" => IncludeObject::Metadata,
            "None" => IncludeObject::None,
            "Object" => IncludeObject::Object,
            _ => return None,
        })
    }
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name`, or empty.
    pub format: &'static str,
    /// 1 shows with `-o wide` only.
    pub priority: u8,
}

/// A resource as tables know it: `v1/pods`, `apps/v1/deployments`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// `v1`, `apps/v1`.
    pub group_version: &'a str,
    /// Plural.
    pub name: &'a str,
}

/// The columns of a resource.
pub fn columns(of: Resource<'_>) -> Vec<Column> {
    let key = format!("{}/{}", of.group_version, of.name);
    let line = COLUMNS.lines().find_map(|line| line.strip_prefix(key.as_str())?.strip_prefix('|'));
    line.unwrap_or("Name*|Created At@").split('|').map(column).collect()
}

fn column(text: &'static str) -> Column {
    let mark = |c| text.ends_with(c);
    let kind = match () {
        () if mark('#') => "integer",
        () if mark('?') => "boolean",
        () if mark('@') => "date",
        () => "string",
    };
    let name = text.trim_end_matches(['#', '?', '@', '+', '*']);
    let marks = &text[name.len()..];
    Column {
        name,
        kind,
        format: if marks.contains('*') { "name" } else { "" },
        priority: u8::from(marks.contains('+')),
    }
}

/// A table of objects. `metadata` is the list's (`resourceVersion`, `continue`), `headed` whether the columns are told:
/// a watch tells them once.
pub fn table<'a>(
    of: Resource<'_>,
    metadata: &Value,
    objects: impl IntoIterator<Item = &'a Value>,
    include: IncludeObject,
    headed: bool,
    now: Timestamp,
) -> Value {
    let definition = |c: Column| json!({"name": c.name, "type": c.kind, "format": c.format, "description": "", "priority": c.priority});
    let columns: Vec<_> = if headed { columns(of).into_iter().map(definition).collect() } else { Vec::new() };
    let rows: Vec<_> = objects.into_iter().map(|object| row(of, object, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn row(of: Resource<'_>, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".to_owned(), Value::Array(cells(of, object, now)));
    if let ("v1", "pods") = (of.group_version, of.name)
        && let Some((reason, message)) = pods::completion(object)
    {
        let condition = json!({"type": "Completed", "status": "True", "reason": reason, "message": message});
        row.insert("conditions".to_owned(), json!([condition]));
    }
    let shown = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(object),
        IncludeObject::Object => object.clone(),
    };
    row.insert("object".to_owned(), shown);
    Value::Object(row)
}

/// The cells of an object, one a column.
pub fn cells(of: Resource<'_>, object: &Value, now: Timestamp) -> Vec<Value> {
    match (of.group_version, of.name) {
        ("v1", "pods") => pods::pod(object, now),
        ("v1", "podtemplates") => workloads::pod_template(object),
        ("v1", "replicationcontrollers") => workloads::replication_controller(object, now),
        ("apps/v1", "deployments") => workloads::deployment(object, now),
        ("apps/v1", "replicasets") => workloads::replica_set(object, now),
        ("apps/v1", "daemonsets") => workloads::daemon_set(object, now),
        ("apps/v1", "statefulsets") => workloads::stateful_set(object, now),
        ("apps/v1", "controllerrevisions") => workloads::controller_revision(object, now),
        ("batch/v1", "jobs") => workloads::job(object, now),
        ("batch/v1", "cronjobs") => workloads::cron_job(object, now),
        ("autoscaling/v1" | "autoscaling/v2", "horizontalpodautoscalers") => {
            workloads::autoscaler(object, now)
        }
        ("policy/v1", "poddisruptionbudgets") => workloads::disruption_budget(object, now),
        ("v1", "services") => network::service(object, now),
        ("v1", "endpoints") => network::endpoints(object, now),
        ("discovery.k8s.io/v1", "endpointslices") => network::endpoint_slice(object, now),
        ("networking.k8s.io/v1", "networkpolicies") => network::network_policy(object, now),
        ("networking.k8s.io/v1", "ingresses") => network::ingress(object, now),
        ("networking.k8s.io/v1", "ingressclasses") => network::ingress_class(object, now),
        ("v1", "nodes") => cluster::node(object, now),
        ("v1" | "events.k8s.io/v1", "events") => cluster::event(object, now),
        ("v1", "namespaces") => cluster::namespace(object, now),
        ("v1", "configmaps") => cluster::config_map(object, now),
        ("v1", "secrets") => cluster::secret(object, now),
        ("v1", "serviceaccounts") => cluster::named(object, now),
        ("v1", "persistentvolumes") => cluster::volume(object, now),
        ("v1", "persistentvolumeclaims") => cluster::claim(object, now),
        ("v1", "resourcequotas") => cluster::quota(object, now),
        ("v1", "componentstatuses") => cluster::component(object),
        ("coordination.k8s.io/v1", "leases") => cluster::lease(object, now),
        ("certificates.k8s.io/v1", "certificatesigningrequests") => cluster::signing_request(object, now),
        ("rbac.authorization.k8s.io/v1", "rolebindings" | "clusterrolebindings") => {
            cluster::role_binding(object, now)
        }
        ("scheduling.k8s.io/v1", "priorityclasses") => cluster::priority_class(object, now),
        ("storage.k8s.io/v1", "storageclasses") => cluster::storage_class(object, now),
        ("node.k8s.io/v1", "runtimeclasses") => cluster::runtime_class(object, now),
        // Roles and limit ranges, too.
        _ => vec![cell::name(object), cell::text(&object["metadata"]["creationTimestamp"]).into()],
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
