//! Roles and bindings as the authorizer keeps them: by subject, so that a request looks at what its sender has and at
//! nothing else. Pure.
//!
//! ```text
//! subject ─► namespace of the binding (none: everywhere) ─► binding ─► role ─► rules
//! ```
//! Invariant: a role that is not there allows nothing, and says so once a request fails for lack of it.

use super::Identity;
use super::attributes::Attributes;
use super::impersonate::service_account_user;
use super::rules::PolicyRule;
use crate::object;
use coracle_api::field::quoted;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Which of the four kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a namespace.
    Role,
    /// Of the cluster.
    ClusterRole,
    /// In a namespace.
    RoleBinding,
    /// Everywhere.
    ClusterRoleBinding,
}

/// Users, with service accounts under their user names, and groups.
#[derive(Clone, Debug)]
enum Subject {
    User(String),
    Group(String),
}

/// What a binding gives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    role: RoleRef,
    /// As reasons show the subject.
    shown: String,
}

/// Which role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRef {
    /// `ClusterRole` or `Role`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl RoleRef {
    /// `roleRef` of a binding.
    pub fn of(binding: &Value) -> RoleRef {
        let text = |key: &str| object::text(binding, &["roleRef", key]).to_string();
        RoleRef { kind: text("kind"), name: text("name") }
    }
}

/// The bindings that a subject has, by namespace.
type Places = HashMap<String, BTreeMap<String, Grant>>;

type Named<T> = HashMap<String, HashMap<String, T>>;

/// All of them. The empty namespace is the cluster.
#[derive(Debug, Default)]
pub struct Roles {
    rules: Named<Arc<[PolicyRule]>>,
    users: HashMap<String, Places>,
    groups: HashMap<String, Places>,
    /// Of each binding, to take it back.
    subjects: Named<Vec<Subject>>,
}

/// `rules` of a role.
pub fn rules_of(role: &Value) -> Vec<PolicyRule> {
    let rules = object::items(role, &["rules"]).iter();
    // What is stored has been validated; a rule that cannot be read allows nothing.
    rules.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
}

impl Roles {
    /// An object as it is now.
    pub fn put(&mut self, kind: Kind, object: &Value) {
        let (namespace, name) = (object::namespace(object), object::name(object));
        match kind {
            Kind::Role | Kind::ClusterRole => {
                let rules = self.rules.entry(namespace.into()).or_default();
                rules.insert(name.into(), rules_of(object).into());
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => self.bind(namespace, name, object),
        }
    }

    /// An object that is gone.
    pub fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        match kind {
            Kind::Role | Kind::ClusterRole => {
                if let Some(rules) = self.rules.get_mut(namespace) {
                    rules.remove(name);
                }
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => self.unbind(namespace, name),
        }
    }

    /// All objects of a kind as they are now.
    pub fn replace(&mut self, kind: Kind, objects: &[Value]) {
        let of_cluster = matches!(kind, Kind::ClusterRole | Kind::ClusterRoleBinding);
        match kind {
            Kind::Role | Kind::ClusterRole => {
                self.rules.retain(|namespace, _| namespace.is_empty() != of_cluster);
            }
            Kind::RoleBinding | Kind::ClusterRoleBinding => {
                let known: Vec<(String, String)> = self
                    .subjects
                    .iter()
                    .filter(|(namespace, _)| namespace.is_empty() == of_cluster)
                    .flat_map(|(namespace, names)| names.keys().map(|name| (namespace.clone(), name.clone())))
                    .collect();
                for (namespace, name) in known {
                    self.unbind(&namespace, &name);
                }
            }
        }
        for object in objects {
            self.put(kind, object);
        }
    }

    fn bind(&mut self, namespace: &str, name: &str, binding: &Value) {
        self.unbind(namespace, name);
        let role = RoleRef::of(binding);
        let mut subjects = Vec::new();
        for subject in object::items(binding, &["subjects"]) {
            let text = |key: &str| object::text(subject, &[key]);
            let (kind, of) = (text("kind"), text("name"));
            let shown = |name: &str| format!("{kind} {}", quoted(name));
            let (subject, shown) = match kind {
                "User" => (Subject::User(of.into()), shown(of)),
                "Group" => (Subject::Group(of.into()), shown(of)),
                "ServiceAccount" => {
                    let home = if text("namespace").is_empty() { namespace } else { text("namespace") };
                    if home.is_empty() {
                        continue;
                    }
                    (Subject::User(service_account_user(home, of)), shown(&format!("{of}/{home}")))
                }
                _ => continue,
            };
            let (all, subject_name) = self.holding(&subject);
            let grants = all.entry(subject_name).or_default().entry(namespace.into()).or_default();
            grants.insert(name.into(), Grant { role: role.clone(), shown });
            subjects.push(subject);
        }
        self.subjects.entry(namespace.into()).or_default().insert(name.into(), subjects);
    }

    fn unbind(&mut self, namespace: &str, name: &str) {
        let subjects = self.subjects.get_mut(namespace).and_then(|names| names.remove(name));
        for subject in subjects.into_iter().flatten() {
            let (all, subject_name) = self.holding(&subject);
            let Some(places) = all.get_mut(&subject_name) else { continue };
            if let Some(bindings) = places.get_mut(namespace) {
                bindings.remove(name);
                if bindings.is_empty() {
                    places.remove(namespace);
                }
            }
            if places.is_empty() {
                all.remove(&subject_name);
            }
        }
    }

    fn holding(&mut self, subject: &Subject) -> (&mut HashMap<String, Places>, String) {
        match subject {
            Subject::User(name) => (&mut self.users, name.clone()),
            Subject::Group(name) => (&mut self.groups, name.clone()),
        }
    }

    /// The rules that a reference of a binding stands for.
    ///
    /// # Errors
    /// What is not there, in upstream's words.
    pub fn referenced(&self, role: &RoleRef, namespace: &str) -> Result<&Arc<[PolicyRule]>, String> {
        let (place, plural) = match role.kind.as_str() {
            "Role" => (namespace, "role"),
            _ => ("", "clusterrole"),
        };
        // Without a namespace there are no Roles: what is kept there are ClusterRoles.
        let known = role.kind != "Role" || !namespace.is_empty();
        let found = self.rules.get(place).filter(|_| known).and_then(|rules| rules.get(&role.name));
        let missing = || format!("{plural}.rbac.authorization.k8s.io {} not found", quoted(&role.name));
        found.ok_or_else(missing)
    }

    /// Every rule that somebody has in a namespace, or everywhere when it is empty.
    fn visit<'a>(
        &'a self,
        who: &Identity,
        namespace: &'a str,
        mut see: impl FnMut(Source<'a>, Result<&'a [PolicyRule], String>) -> ControlFlow<()>,
    ) {
        let groups = who.groups.iter().filter_map(|group| self.groups.get(group));
        let subjects: Vec<&Places> = self.users.get(&who.user).into_iter().chain(groups).collect();
        let places = if namespace.is_empty() { &[""][..] } else { &["", namespace] };
        for place in places.iter().copied() {
            for bindings in subjects.iter().filter_map(|places| places.get(place)) {
                for (binding, grant) in bindings {
                    let source = Source { namespace: place, binding, grant };
                    let rules = self.referenced(&grant.role, place).map(|rules| &**rules);
                    if see(source, rules).is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether somebody may do something; with the reason, either way.
    pub fn decide(&self, who: &Identity, asked: &Attributes<'_>) -> Result<String, String> {
        let namespace = match asked {
            Attributes::Resource { namespace, .. } => namespace,
            Attributes::Path { .. } => "",
        };
        let (mut allowed, mut lacking) = (None, Vec::new());
        self.visit(who, namespace, |source, rules| match rules {
            Ok(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                allowed = Some(source.reason());
                ControlFlow::Break(())
            }
            Ok(_) => ControlFlow::Continue(()),
            Err(why) => {
                lacking.push(why);
                ControlFlow::Continue(())
            }
        });
        lacking.dedup();
        allowed.ok_or_else(|| match lacking.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// All rules that somebody has in a namespace, or everywhere when it is empty; and what is missing.
    pub fn rules_for(&self, who: &Identity, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let (mut found, mut lacking) = (Vec::new(), Vec::new());
        self.visit(who, namespace, |_, rules| {
            match rules {
                Ok(rules) => found.extend_from_slice(rules),
                Err(why) => lacking.push(why),
            }
            ControlFlow::Continue(())
        });
        lacking.dedup();
        (found, lacking)
    }
}

/// Whence a rule.
struct Source<'a> {
    namespace: &'a str,
    binding: &'a str,
    grant: &'a Grant,
}

impl Source<'_> {
    fn reason(&self) -> String {
        let (kind, binding) = match self.namespace {
            "" => ("ClusterRoleBinding", self.binding.to_string()),
            namespace => ("RoleBinding", format!("{}/{namespace}", self.binding)),
        };
        let RoleRef { kind: role, name } = &self.grant.role;
        format!(
            "RBAC: allowed by {kind} {} of {role} {} to {}",
            quoted(&binding),
            quoted(name),
            self.grant.shown
        )
    }
}
