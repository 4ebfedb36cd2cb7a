//! What the types of the Kubernetes API are made of: fields, forms, merge strategies, protobuf numbers.
//!
//! Read once, on first use, from `schema/kubernetes.schema`, which `schema/make.py` makes from Kubernetes' own
//! definitions and describes. Strict decoding, strategic merge patch, server-side apply and protobuf walk it. What is
//! in the table is right by construction: a malformed line is a programmer's error, and the tests read every one.
//!
//! Left out: defaults and validation, which the kinds have, and types of groups that the control plane does not serve.

use std::collections::BTreeMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("../schema/kubernetes.schema");

/// A value that has no fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// Any JSON.
    Raw,
    /// `metav1.FieldsV1`.
    Fields,
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// The patch's list takes its place.
    Replace,
    /// A set of scalars: the patch's are added.
    Scalars,
    /// A list of maps, paired by this key.
    Key(&'static str),
}

/// How server-side apply treats a list (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    Atomic,
    Set,
    /// Items are known by these keys.
    Map(Vec<&'static str>),
}

/// What stands in a field, a list or a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    Scalar(Scalar),
    Object {
        /// See [`Form::fields`].
        of: usize,
        /// To server-side apply a scalar (`x-kubernetes-map-type`).
        atomic: bool,
        /// A strategic merge patch may name the fields to keep.
        retain_keys: bool,
    },
    /// Keys are strings.
    Map {
        of: Box<Form>,
        atomic: bool,
    },
    List {
        of: Box<Form>,
        merge: Merge,
        retain_keys: bool,
        topology: Topology,
        /// In protobuf the list is a message of its own.
        wrapped: bool,
    },
}

/// A field of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// As in JSON.
    pub name: &'static str,
    /// protobuf's number, and before it that of the message that JSON has inline, or 0. Absent from protobuf: `None`.
    pub number: Option<(u32, u32)>,
    pub form: Form,
    /// Whether zero counts as set.
    pub pointer: bool,
    pub required: bool,
    /// Whether Go leaves the empty value out of JSON.
    pub omit_empty: bool,
    /// Whether Go leaves a struct of zeros out of JSON.
    pub omit_zero: bool,
    /// Of the key of an associative list.
    pub default: Option<&'static str>,
}

/// A type: `core.v1.PodSpec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub name: &'static str,
    pub atomic: bool,
    /// In the order of the Go struct.
    pub fields: Vec<Field>,
}

impl Type {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// `PodSpec`.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// As Go prints it: `v1.PodSpec`.
    pub fn name_in_go(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(_, name)| name)
    }
}

impl Form {
    /// The type, where the form is an object.
    pub fn object(&self) -> Option<&'static Type> {
        match self {
            Form::Object { of, .. } => schema().types.get(*of),
            _ => None,
        }
    }

    /// The form of the child by that name; of an object whose type does not know it, or of a scalar, `None`.
    pub fn child(&self, name: &str) -> Option<&Form> {
        match self {
            Form::Object { .. } => self.object()?.field(name).map(|field| &field.form),
            Form::Map { of, .. } => Some(of),
            _ => None,
        }
    }

    /// The form of a list's items.
    pub fn item(&self) -> Option<&Form> {
        match self {
            Form::List { of, .. } => Some(of),
            _ => None,
        }
    }
}

struct Schema {
    types: Vec<Type>,
    /// By `apps/v1/Deployment`.
    kinds: BTreeMap<&'static str, Form>,
}

/// The form of a kind's objects, if it is known. `api_version` is `v1`, `apps/v1`, …. `DeleteOptions` is known in each.
pub fn kind(api_version: &str, kind: &str) -> Option<&'static Form> {
    let api_version = if kind == "DeleteOptions" { "v1" } else { api_version };
    schema().kinds.get(format!("{api_version}/{kind}").as_str())
}

/// Every known kind, as `apps/v1/Deployment`.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    schema().kinds.keys().copied()
}

/// Every type.
pub fn types() -> &'static [Type] {
    &schema().types
}

fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(read)
}

fn read() -> Schema {
    let lines = || TABLE.lines().filter(|line| !line.starts_with('#'));
    let heads = lines().filter(|line| !line.starts_with(' '));
    let head = |line: &'static str| line.split(' ').next().unwrap_or(line);
    let atomic = |line: &str| line.ends_with(" atomic");
    let index: BTreeMap<_, _> =
        heads.enumerate().map(|(at, line)| (head(line), (at, atomic(line)))).collect();
    let (mut types, mut kinds): (Vec<Type>, _) = (Vec::new(), BTreeMap::new());
    for line in lines() {
        if line.starts_with(' ') {
            let last = types.last_mut().expect("a field stands below its type");
            last.fields.push(field(line, &index));
            continue;
        }
        for name in line.split(' ').filter_map(|word| word.strip_prefix('=')) {
            kinds.insert(name, Form::Object { of: types.len(), atomic: false, retain_keys: false });
        }
        types.push(Type { name: head(line), atomic: atomic(line), fields: Vec::new() });
    }
    Schema { types, kinds }
}

type Index = BTreeMap<&'static str, (usize, bool)>;

fn field(line: &'static str, index: &Index) -> Field {
    let mut words = line.split_ascii_whitespace();
    let mut word = || words.next().expect("name, number and form");
    let (name, number, form) = (word(), word(), word());
    let flags: Vec<_> = words.collect();
    let has = |flag: &str| flags.contains(&flag);
    let said = |prefix: &str| flags.iter().find_map(|flag| flag.strip_prefix(prefix));
    let number = match number.split_once('.') {
        _ if number == "-" => None,
        Some((outer, inner)) => Some((decimal(outer), decimal(inner))),
        None => Some((0, decimal(number))),
    };
    let mut found = self::form(form.trim_start_matches('*'), index);
    match &mut found {
        Form::Object { atomic, retain_keys, .. } => {
            *atomic |= has("map:atomic");
            *retain_keys = has("retain");
        }
        Form::Map { atomic, .. } => *atomic = has("map:atomic"),
        Form::List { merge, retain_keys, topology, .. } => {
            *merge = match said("merge:") {
                Some(key) => Merge::Key(key),
                None if has("merge") => Merge::Scalars,
                None => Merge::Replace,
            };
            *retain_keys = has("retain");
            *topology = match said("list:map:") {
                Some(keys) => Topology::Map(keys.split(',').collect()),
                None if has("list:set") => Topology::Set,
                None => Topology::Atomic,
            };
        }
        Form::Scalar(_) => {}
    }
    Field {
        name,
        number,
        form: found,
        pointer: form.starts_with('*'),
        required: has("!"),
        omit_empty: has("o"),
        omit_zero: has("z"),
        default: said("default:"),
    }
}

fn decimal(text: &str) -> u32 {
    text.parse().expect("a number of the table")
}

fn form(text: &'static str, index: &Index) -> Form {
    let list = |of: Form, wrapped| Form::List {
        of: Box::new(of),
        merge: Merge::Replace,
        retain_keys: false,
        topology: Topology::Atomic,
        wrapped,
    };
    if let Some(of) = text.strip_prefix("[]") {
        return list(form(of, index), false);
    }
    if let Some(of) = text.strip_prefix("{}") {
        return Form::Map { of: Box::new(form(of, index)), atomic: false };
    }
    Form::Scalar(match text {
        "string" => Scalar::String,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "double" => Scalar::Double,
        "bytes" => Scalar::Bytes,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "quantity" => Scalar::Quantity,
        "intorstring" => Scalar::IntOrString,
        "raw" => Scalar::Raw,
        "fields" => Scalar::Fields,
        "strings" => return list(Form::Scalar(Scalar::String), true),
        name => {
            let (of, atomic) = *index.get(name).expect("a type of the table");
            return Form::Object { of, atomic, retain_keys: false };
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::kind as kind_of;

    /// The field at a path of a kind; `[]` steps into a list.
    fn at(kind: &'static str, path: &str) -> &'static Field {
        let (version, name) = kind.rsplit_once('/').expect("version/Kind");
        let mut form = kind_of(version, name).expect("a known kind");
        let mut found = None;
        for step in path.split('.') {
            while let Form::List { of, .. } = form {
                form = of;
            }
            let field = form.object().expect("an object").field(step).expect("a known field");
            (found, form) = (Some(field), &field.form);
        }
        found.expect("a path")
    }

    #[test]
    fn the_table_says_what_upstream_says() {
        let list = |kind, path: &str| match &at(kind, path).form {
            Form::List { merge, topology, .. } => (*merge, topology.clone()),
            other => panic!("{path} is {other:?}"),
        };
        let check = |kind, path: &str, merge, topology: Topology| {
            assert_eq!(list(kind, path), (merge, topology), "{path}");
        };
        check("v1/Pod", "spec.containers", Merge::Key("name"), Topology::Map(vec!["name"]));
        check("v1/Pod", "spec.tolerations", Merge::Replace, Topology::Atomic);
        check(
            "v1/Pod",
            "spec.containers.ports",
            Merge::Key("containerPort"),
            Topology::Map(vec!["containerPort", "protocol"]),
        );
        check("v1/Service", "spec.ports", Merge::Key("port"), Topology::Map(vec!["port", "protocol"]));
        check("v1/ConfigMap", "metadata.finalizers", Merge::Scalars, Topology::Set);
        check("apps/v1/Deployment", "status.conditions", Merge::Key("type"), Topology::Map(vec!["type"]));
        assert_eq!(at("v1/Pod", "spec.containers.ports.protocol").default, Some("TCP"));
        assert_eq!(at("v1/Pod", "spec.volumes.configMap.name").number, Some((1, 1)));
        assert_eq!(at("v1/Pod", "spec.volumes.emptyDir").number, Some((2, 2)));
        assert!(at("apps/v1/Deployment", "spec.replicas").pointer);
        assert!(at("v1/Pod", "spec.containers").required && !at("v1/Pod", "spec.volumes").required);
        assert!(matches!(at("v1/Pod", "spec.nodeSelector").form, Form::Map { atomic: true, .. }));
        assert!(matches!(at("apps/v1/Deployment", "spec.selector").form, Form::Object { atomic: true, .. }));
        assert!(matches!(
            at("apps/v1/Deployment", "spec.strategy").form,
            Form::Object { retain_keys: true, .. }
        ));
    }

    #[test]
    fn every_kind_of_the_control_plane_is_known() {
        for name in [
            "v1/Namespace",
            "v1/Node",
            "v1/Pod",
            "v1/Service",
            "v1/Endpoints",
            "v1/ConfigMap",
            "v1/Secret",
            "v1/ServiceAccount",
            "v1/Event",
            "events.k8s.io/v1/Event",
            "discovery.k8s.io/v1/EndpointSlice",
            "v1/PersistentVolume",
            "v1/PersistentVolumeClaim",
            "coordination.k8s.io/v1/Lease",
            "v1/Binding",
            "apps/v1/Deployment",
            "apps/v1/ReplicaSet",
            "apps/v1/DaemonSet",
            "apps/v1/StatefulSet",
            "apps/v1/ControllerRevision",
            "batch/v1/Job",
            "batch/v1/CronJob",
            "v1/ReplicationController",
            "autoscaling/v1/HorizontalPodAutoscaler",
            "autoscaling/v2/HorizontalPodAutoscaler",
            "autoscaling/v1/Scale",
            "policy/v1/PodDisruptionBudget",
            "policy/v1/Eviction",
            "scheduling.k8s.io/v1/PriorityClass",
            "v1/ResourceQuota",
            "v1/LimitRange",
            "rbac.authorization.k8s.io/v1/Role",
            "rbac.authorization.k8s.io/v1/ClusterRoleBinding",
            "certificates.k8s.io/v1/CertificateSigningRequest",
            "authentication.k8s.io/v1/TokenReview",
            "authentication.k8s.io/v1/TokenRequest",
            "authentication.k8s.io/v1/SelfSubjectReview",
            "authorization.k8s.io/v1/SelfSubjectAccessReview",
            "authorization.k8s.io/v1/SubjectAccessReview",
            "authorization.k8s.io/v1/SelfSubjectRulesReview",
            "networking.k8s.io/v1/NetworkPolicy",
            "networking.k8s.io/v1/Ingress",
            "storage.k8s.io/v1/StorageClass",
            "v1/DeleteOptions",
            "v1/Status",
        ] {
            let (version, kind) = name.rsplit_once('/').expect("version/Kind");
            assert!(kind_of(version, kind).is_some(), "{name}");
        }
        assert!(kind_of("v1", "Widget").is_none());
        assert!(kinds().count() > 80 && types().len() > 400);
    }

    #[test]
    fn numbers_are_unique_in_a_type() {
        for of in types() {
            let mut numbers: Vec<_> = of.fields.iter().filter_map(|f| f.number).collect();
            numbers.sort_unstable();
            let count = numbers.len();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{}", of.name);
        }
    }
}
