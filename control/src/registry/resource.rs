//! What the registry knows of a kind: a row of one table, with plain functions where kinds differ.

use coracle_api::field::Errors;
use coracle_api::schema::{self, Form};
use coracle_api::status::{GroupKind, GroupResource};
use serde_json::Value;

/// What may be done with the objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    /// All eight.
    All,
    /// get and list: what is computed, and stored nowhere.
    ReadOnly,
    /// All but deletecollection: namespaces.
    NoDeleteCollection,
    /// Create alone, which answers and stores nothing: reviews.
    Create,
}

impl Verbs {
    /// In the order of discovery.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Verbs::All => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
            Verbs::ReadOnly => &["get", "list"],
            Verbs::Create => &["create"],
            Verbs::NoDeleteCollection => &["create", "delete", "get", "list", "patch", "update", "watch"],
        }
    }
}

/// A part of an object with a path of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Behind the object's name in the path.
    pub name: &'static str,
    /// Which code serves it.
    pub what: Part,
    /// Its verbs, in the order of discovery.
    pub verbs: &'static [&'static str],
    /// Kind, and its group and version where they are not the object's.
    pub kind: &'static str,
    /// Group and version of the kind, when another's.
    pub of: Option<(&'static str, &'static str)>,
}

/// What a subresource's request reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `status`; what is not status stays as it was.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// The conditions that approve or deny a CertificateSigningRequest.
    Approval,
    /// `spec.nodeName` of a pod, once.
    Binding,
    /// The deletion of a pod, if its disruption budget allows it.
    Eviction,
    /// `resources` of a pod's containers.
    Resize,
    /// `spec.ephemeralContainers` of a pod.
    EphemeralContainers,
    /// `spec.replicas`, as a Scale.
    Scale,
    /// A new token of a service account.
    Token,
    /// Nothing that is stored: a stream to where the object runs.
    Connect,
}

const UPDATE: &[&str] = &["get", "patch", "update"];

/// `/status`.
pub const fn status(kind: &'static str) -> Subresource {
    Subresource { name: "status", what: Part::Status, verbs: UPDATE, kind, of: None }
}

/// `/scale`.
pub const SCALE: Subresource = Subresource {
    name: "scale",
    what: Part::Scale,
    verbs: UPDATE,
    kind: "Scale",
    of: Some(("autoscaling", "v1")),
};

/// `/exec`, `/log`, `/proxy`: a stream.
pub const fn connect(name: &'static str, verbs: &'static [&'static str], kind: &'static str) -> Subresource {
    Subresource { name, what: Part::Connect, verbs, kind, of: None }
}

/// The verbs of a proxy.
pub const PROXIED: &[&str] = &["create", "delete", "get", "patch", "update"];

/// Another subresource of the same kind.
pub const fn part(name: &'static str, what: Part, kind: &'static str) -> Subresource {
    Subresource { name, what, verbs: UPDATE, kind, of: None }
}

/// A kind.
#[derive(Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// On the objects.
    pub verbs: Verbs,
    /// On parts of them.
    pub subresources: &'static [Subresource],
    /// Whether `metadata.generation` counts changes of what is not metadata or status.
    pub generation: bool,
    /// Fields that a field selector may name, besides name and namespace.
    pub selectable: &'static [&'static str],
    /// What a name looks like.
    pub name: Name,
    /// Whether a new object brings its status along: nodes do.
    pub status_on_create: bool,
    /// Whether a deletion answers with the object rather than a `Status`.
    pub returns_deleted: bool,
    /// Defaults, as upstream's `SetDefaults_*`; idempotent.
    pub default: fn(&mut Value),
    /// On creation, once the system's metadata is set.
    pub prepare_create: fn(&mut Value),
    /// On update: the new object, and the old one.
    pub prepare_update: fn(&mut Value, &Value),
    /// What is wrong with the object, besides its metadata.
    pub validate: fn(&Value, &mut Errors),
    /// What of an update is forbidden: the new object, and the old one.
    pub validate_update: fn(&Value, &Value, &mut Errors),
    /// Group and plural under which it is stored, and the functions from and to that form.
    pub stored: Option<Stored>,
}

/// A version that is stored as another one.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Group, version and kind of the stored form.
    pub group: &'static str,
    /// Its version.
    pub version: &'static str,
    /// To the stored form.
    pub to: fn(&mut Value),
    /// From it.
    pub from: fn(&mut Value),
}

/// What names look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// RFC 1123 subdomain.
    Subdomain,
    /// RFC 1123 label.
    Label,
    /// RFC 1035 label.
    ServiceLabel,
    /// Anything that fits between two slashes.
    PathSegment,
}

fn nothing(_: &mut Value) {}
fn nothing_old(_: &mut Value, _: &Value) {}
fn no_errors(_: &Value, _: &mut Errors) {}
fn no_update_errors(_: &Value, _: &Value, _: &mut Errors) {}

/// A kind without anything special, in namespaces.
pub const fn namespaced(
    (group, version): (&'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: Verbs::All,
        subresources: &[],
        generation: false,
        selectable: &[],
        name: Name::Subdomain,
        status_on_create: false,
        returns_deleted: false,
        default: nothing,
        prepare_create: nothing,
        prepare_update: nothing_old,
        validate: no_errors,
        validate_update: no_update_errors,
        stored: None,
    }
}

/// The same for the whole cluster.
pub const fn cluster(
    group_version: (&'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
) -> Resource {
    Resource { namespaced: false, ..namespaced(group_version, kind, plural, singular) }
}

impl Resource {
    /// `deployments.apps`, as errors say it.
    pub fn group_resource(&self) -> GroupResource<'static> {
        GroupResource { group: self.group, resource: self.plural }
    }

    /// `Deployment.apps`.
    pub fn group_kind(&self) -> GroupKind<'static> {
        GroupKind { group: self.group, kind: self.kind }
    }

    /// What its objects are made of.
    pub fn form(&self) -> &'static Form {
        schema::kind(&self.api_version(), self.kind).expect("a test looks up every kind of the table")
    }

    /// `apps/v1`, or `v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|subresource| subresource.name == name)
    }

    /// Whether status is written through a path of its own.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Where its objects are stored; with a namespace, those in it. Ends in a slash.
    pub fn prefix(&self, namespace: &str) -> String {
        let group = self.stored.map_or(self.group, |stored| stored.group);
        let group = if group.is_empty() { "core" } else { group };
        let plural = self.plural;
        if namespace.is_empty() {
            format!("/registry/{group}/{plural}/")
        } else {
            format!("/registry/{group}/{plural}/{namespace}/")
        }
    }

    /// Where one object is stored.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(if self.namespaced { namespace } else { "" }))
    }
}

/// `group/version`, or the version alone for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}
