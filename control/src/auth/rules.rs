//! `PolicyRule`: what it allows, what it covers, and how upstream's messages show it. Pure.

use super::attributes::Attributes;
use coracle_api::field::quoted;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What may be done (`rbac.authorization.k8s.io/v1` PolicyRule).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyRule {
    /// Empty only in rules about paths.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub resources: Vec<String>,
    /// Empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_none")]
    pub resource_names: Vec<String>,
    /// `/healthz`, `/apis/*`.
    #[serde(
        rename = "nonResourceURLs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_none"
    )]
    pub non_resource_urls: Vec<String>,
    /// `get`, `*`.
    #[serde(deserialize_with = "null_is_none")]
    pub verbs: Vec<String>,
}

/// Go writes empty lists as null.
fn null_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted)
}

fn has_or_all(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl PolicyRule {
    /// Whether it allows the request.
    pub fn allows(&self, asked: &Attributes<'_>) -> bool {
        match asked {
            Attributes::Resource { verb, group, resource, subresource, name, .. } => {
                has_or_all(&self.verbs, verb)
                    && has_or_all(&self.api_groups, group)
                    && self.resources.iter().any(|pattern| names(pattern, resource, subresource))
                    && (self.resource_names.is_empty() || has(&self.resource_names, name))
            }
            Attributes::Path { verb, path } => {
                has_or_all(&self.verbs, verb) && self.non_resource_urls.iter().any(|url| is_below(url, path))
            }
        }
    }

    /// How many [`PolicyRule::atoms`] there are.
    pub fn size(&self) -> usize {
        let of = |lists: [&[String]; 4]| lists.iter().map(|list| list.len()).fold(1, usize::saturating_mul);
        let names = if self.resource_names.is_empty() {
            &self.verbs[..self.verbs.len().min(1)]
        } else {
            &self.resource_names
        };
        let one = &self.verbs[..self.verbs.len().min(1)];
        of([&self.api_groups, &self.resources, &self.verbs, names]).saturating_add(of([
            &self.non_resource_urls,
            &self.verbs,
            one,
            one,
        ]))
    }

    /// One rule for each group, resource, verb and name that it allows.
    fn atoms(&self) -> Vec<PolicyRule> {
        let one = |text: &String| vec![text.clone()];
        let mut atoms = Vec::new();
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let atom = PolicyRule {
                        api_groups: one(group),
                        resources: one(resource),
                        verbs: one(verb),
                        ..PolicyRule::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                        continue;
                    }
                    for name in &self.resource_names {
                        atoms.push(PolicyRule { resource_names: one(name), ..atom.clone() });
                    }
                }
            }
        }
        for url in &self.non_resource_urls {
            for verb in &self.verbs {
                let (non_resource_urls, verbs) = (one(url), one(verb));
                atoms.push(PolicyRule { non_resource_urls, verbs, ..PolicyRule::default() });
            }
        }
        atoms
    }

    /// Whether it allows all that an atom does.
    fn covers(&self, atom: &PolicyRule) -> bool {
        let all = |own: &[String], wanted: &[String]| wanted.iter().all(|item| has(own, item));
        let resources = has(&self.resources, "*")
            || atom.resources.iter().all(|resource| {
                let any = resource.split_once('/').map(|(_, part)| format!("*/{part}"));
                has(&self.resources, resource) || any.is_some_and(|any| has(&self.resources, &any))
            });
        let names = match (self.resource_names.as_slice(), atom.resource_names.as_slice()) {
            ([], _) => true,
            (_, []) => false,
            (own, wanted) => all(own, wanted),
        };
        let urls = atom
            .non_resource_urls
            .iter()
            .all(|url| self.non_resource_urls.iter().any(|own| own == url || is_below(own, url)));
        (has(&self.verbs, "*") || all(&self.verbs, &atom.verbs))
            && (has(&self.api_groups, "*") || all(&self.api_groups, &atom.api_groups))
            && resources
            && names
            && urls
    }

    /// Everything, everywhere.
    pub fn everything() -> [PolicyRule; 2] {
        let any = || vec!["*".to_string()];
        [
            PolicyRule { api_groups: any(), resources: any(), verbs: any(), ..PolicyRule::default() },
            PolicyRule { non_resource_urls: any(), verbs: any(), ..PolicyRule::default() },
        ]
    }
}

/// Whether `pods/log`, `*/log` or `*` names the resource.
fn names(pattern: &str, resource: &str, subresource: &str) -> bool {
    match pattern.split_once('/') {
        _ if pattern == "*" => true,
        None => subresource.is_empty() && pattern == resource,
        Some((of, part)) => part == subresource && (of == "*" || of == resource),
    }
}

/// Whether `/apis/*` has the path.
fn is_below(pattern: &str, path: &str) -> bool {
    pattern == path || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

/// What of `wanted` none of `own` covers, as atoms.
pub fn uncovered(own: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let atoms = wanted.iter().flat_map(PolicyRule::atoms);
    atoms.filter(|atom| !own.iter().any(|rule| rule.covers(atom))).collect()
}

/// Upstream's description of what is missing: one line a resource, sorted.
pub fn describe(missing: Vec<PolicyRule>) -> String {
    let mut lines = BTreeSet::new();
    let mut simple: BTreeMap<(String, String), PolicyRule> = BTreeMap::new();
    for mut rule in missing {
        match (rule.api_groups.as_slice(), rule.resources.as_slice()) {
            ([group], [resource]) if rule.resource_names.is_empty() => {
                let key = (group.clone(), resource.clone());
                match simple.get_mut(&key) {
                    Some(known) => known.verbs.append(&mut rule.verbs),
                    None => {
                        simple.insert(key, rule);
                    }
                }
            }
            _ => {
                lines.insert(rule.to_string());
            }
        }
    }
    lines.extend(simple.into_values().map(|rule| rule.to_string()));
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

/// A list as Go's `%q` shows it.
pub fn quoted_list(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(" "))
}

/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.iter().filter(|(_, list)| !list.is_empty());
        let parts: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted_list(list))).collect();
        write!(f, "{{{}}}", parts.join(", "))
    }
}

#[cfg(test)]
#[path = "rules_test.rs"]
mod tests;
