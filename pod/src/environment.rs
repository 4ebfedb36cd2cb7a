//! A container's own variables: literal, from fields, resources, ConfigMaps and Secrets, with `$(VAR)` expanded.
//!
//! Follows `makeEnvironmentVariables` of `pkg/kubelet/kubelet_pods.go`: first `envFrom` in its order, then `env` in its
//! order, where a later variable replaces an earlier one, and an expansion sees those before it.

use crate::downward::{self, PodFacts};
use crate::objects::{Objects, ValueError};
use crate::spec::{ContainerSpec, EnvSource, EnvValue, PodSpec};
use std::collections::BTreeMap;

/// One string of an argument or environment list, its end included: the kernel's `MAX_ARG_STRLEN`, execve(2).
pub const STRING_BYTES_MAX: usize = 128 * 1024;
/// Both lists together: the kernel takes no more, whatever the limit of the stack is, execve(2). Eight variables that
/// name each other ten times over are a hundred gigabytes, so nothing is built that it would refuse.
pub const STRINGS_BYTES_MAX: usize = 6 << 20;

/// Name and value.
pub type Variable = (String, String);

/// The container's variables in order, and the same by name for `$(VAR)` in `command` and `args`.
///
/// # Errors
/// The first value that cannot be had; [`ValueError::NotYet`] when that may change by waiting.
pub fn variables(
    pod: &PodSpec,
    container: &ContainerSpec,
    objects: &Objects,
    facts: &PodFacts,
) -> Result<(Vec<Variable>, BTreeMap<String, String>), ValueError> {
    let (mut ordered, mut known) = (Vec::new(), BTreeMap::new());
    let mut room = STRINGS_BYTES_MAX;
    let mut add = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        take(&mut room, Some(value.clone()))
            .ok_or_else(|| ValueError::TooLong(format!("environment variable {name}")))?;
        if known.insert(name.clone(), value.clone()).is_some() {
            ordered.retain(|(other, _)| *other != name);
        }
        ordered.push((name, value));
        Ok::<(), ValueError>(())
    };
    for source in &container.env_from {
        let Some(keyed) = objects.find(&source.object, source.optional)? else { continue };
        for (key, value) in &keyed.data {
            let name = format!("{}{key}", source.prefix);
            let value = text(&name, value)?;
            add(&mut known, name, value)?;
        }
    }
    for variable in &container.env {
        let name = &variable.name;
        let value = match &variable.value {
            EnvValue::Literal(text) => Some(
                expand(text, &known)
                    .ok_or_else(|| ValueError::TooLong(format!("environment variable {name}")))?,
            ),
            EnvValue::From(source) => of_source(pod, container, objects, facts, name, source)?,
        };
        if let Some(value) = value {
            add(&mut known, name.clone(), value)?;
        }
    }
    Ok((ordered, known))
}

fn of_source(
    pod: &PodSpec,
    container: &ContainerSpec,
    objects: &Objects,
    facts: &PodFacts,
    name: &str,
    source: &EnvSource,
) -> Result<Option<String>, ValueError> {
    match source {
        EnvSource::Field(path) => {
            let value = downward::field(pod, facts, path);
            value.map(Some).ok_or_else(|| ValueError::Field(path.clone()))
        }
        EnvSource::Resource(field) => {
            downward::resource(pod, Some(container), field, &facts.allocatable).map(Some)
        }
        EnvSource::Key { object, key, optional } => {
            let Some(keyed) = objects.find(object, *optional)? else { return Ok(None) };
            match keyed.data.get(key) {
                Some(value) => text(name, value).map(Some),
                None if *optional => Ok(None),
                None => Err(ValueError::Key {
                    object: object.clone(),
                    namespace: pod.namespace.clone(),
                    key: key.clone(),
                }),
            }
        }
    }
}

fn text(name: &str, value: &[u8]) -> Result<String, ValueError> {
    let text = std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'));
    text.map(String::from).ok_or_else(|| ValueError::NotText(name.into()))
}

/// `text` if there is room for it, which then is smaller.
pub fn take(room: &mut usize, text: Option<String>) -> Option<String> {
    let text = text.filter(|text| text.len() < STRING_BYTES_MAX)?;
    *room = room.checked_sub(text.len() + 1)?;
    Some(text)
}

/// `$(VAR)` by the variables before it, `$$` for a dollar; an unknown name stays as written. `None` when the result is
/// longer than any process can be given. Kubernetes: third_party/forked/golang/expansion.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        if out.len() + at >= STRING_BYTES_MAX {
            return None;
        }
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[at..at + name.len() + 3]),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    Some(out).filter(|out| out.len() < STRING_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Keyed, Lack, ObjectKind, ObjectName};
    use std::sync::Arc;

    fn container(more: &str) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"p\", \"namespace\": \"sea\", \"uid\": \"u\"}}, \"spec\": {{\"containers\": [{{\"name\": \"c\", \"image\": \"i:1\", {more}}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid")
    }

    #[test]
    fn objects_become_variables_as_with_the_kubelet() {
        let name = |kind, name: &str| ObjectName { kind, name: name.into() };
        let keyed = |pairs: &[(&str, &[u8])]| {
            let data = pairs.iter().map(|(key, value)| ((*key).to_string(), value.to_vec())).collect();
            Ok(Arc::new(Keyed { data, ..Keyed::default() }))
        };
        let objects = Objects {
            keyed: [
                (name(ObjectKind::ConfigMap, "crew"), keyed(&[("mate", b"ann"), ("cook", b"bob")])),
                (name(ObjectKind::Secret, "crew"), keyed(&[("mate", b"eve"), ("raw", &[0xff])])),
                (name(ObjectKind::ConfigMap, "none"), Err(Lack::NotFound)),
                (name(ObjectKind::Secret, "none"), Err(Lack::NotFound)),
                (name(ObjectKind::Secret, "late"), Err(Lack::Failed("failed to sync secret cache".into()))),
            ]
            .into(),
            ..Objects::default()
        };
        let check = |more: &str, expected: Result<&[&str], &str>| {
            let pod = container(more);
            let found = variables(&pod, &pod.containers[0], &objects, &PodFacts::default());
            let found = found.map(|(ordered, _)| {
                ordered.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
            });
            let expected = expected
                .map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map_err(String::from);
            assert_eq!(found.map_err(|e| e.to_string()), expected, "{more}");
        };
        let map = |name: &str, more: &str| format!(r#"{{"configMapRef": {{"name": "{name}"{more}}}}}"#);
        let key = |kind: &str, name: &str, key: &str, more: &str| {
            format!(
                r#"{{"name": "V", "valueFrom": {{"{kind}KeyRef": {{"name": "{name}", "key": "{key}"{more}}}}}}}"#
            )
        };
        let from = |list: &str| format!(r#""envFrom": [{list}]"#);
        let env = |list: &str| format!(r#""env": [{list}]"#);
        let optional = r#", "optional": true"#;
        check(&from(&map("crew", "")), Ok(&["cook=bob", "mate=ann"]));
        let prefixed = r#"{"prefix": "P_", "configMapRef": {"name": "crew"}}"#;
        check(&from(prefixed), Ok(&["P_cook=bob", "P_mate=ann"]));
        // The later source wins, and `env` over all of them; an expansion sees what came before.
        let both = format!(
            "{}, {}",
            from(&map("crew", "")),
            env(r#"{"name": "mate", "value": "$(mate)!"}, {"name": "last", "value": "$(mate) $(cook)"}"#)
        );
        check(&both, Ok(&["cook=bob", "mate=ann!", "last=ann! bob"]));
        check(&from(&map("none", "")), Err(r#"configmap "none" not found"#));
        check(&from(&map("none", optional)), Ok(&[]));
        check(&from(&map("unheard", optional)), Err("not known yet"));
        check(&from(r#"{"secretRef": {"name": "late"}}"#), Err("failed to sync secret cache"));
        check(
            &from(r#"{"secretRef": {"name": "crew"}}"#),
            Err("the value of environment variable raw is not a text without NUL characters"),
        );
        check(&env(&key("configMap", "crew", "mate", "")), Ok(&["V=ann"]));
        check(&env(&key("secret", "crew", "mate", "")), Ok(&["V=eve"]));
        check(&env(&key("secret", "none", "mate", "")), Err(r#"secret "none" not found"#));
        check(&env(&key("secret", "none", "mate", optional)), Ok(&[]));
        check(&env(&key("configMap", "crew", "boy", "")), Err("couldn't find key boy in ConfigMap sea/crew"));
        check(&env(&key("secret", "crew", "boy", "")), Err("couldn't find key boy in Secret sea/crew"));
        check(&env(&key("configMap", "crew", "boy", optional)), Ok(&[]));
    }

    #[test]
    fn variables_expand_as_in_kubernetes() {
        let known: BTreeMap<String, String> =
            [("A".into(), "1".into()), ("B_C".into(), "x$(A)".into())].into();
        let check = |text: &str, expected: &str| {
            assert_eq!(expand(text, &known).as_deref(), Some(expected), "{text}")
        };
        check("", "");
        check("$(A)", "1");
        check("a$(A)b$(B_C)", "a1bx$(A)");
        check("$$(A)", "$(A)");
        check("$$$(A)", "$1");
        check("$(MISSING)", "$(MISSING)");
        check("$(A", "$(A");
        check("$", "$");
        check("$A $(A)$", "$A 1$");
        check("ü$(A)ß", "ü1ß");
    }

    /// Guards against an agent that built strings of a hundred gigabytes, was killed for it, and began anew.
    #[test]
    fn variables_that_multiply_are_refused_before_they_are_built() {
        let variable = |name: char, value: &str| format!("{{\"name\": \"{name}\", \"value\": \"{value}\"}}");
        let check = |own: &[String], expected: Option<&str>| {
            let container = format!(
                "{{\"name\": \"web\", \"image\": \"i:1\", \"command\": [\"x\"], \"env\": [{}]}}",
                own.join(", ")
            );
            let text = format!(
                "{{\"metadata\": {{\"name\": \"web\", \"uid\": \"u\"}}, \"spec\": {{\"containers\": [{container}]}}}}"
            );
            let pod = PodSpec::from_api(&serde_json::from_str(&text).expect("valid")).expect("valid");
            let found =
                variables(&pod, &pod.containers[0], &Objects::default(), &PodFacts::default()).map(drop);
            assert_eq!(found.map_err(|e| e.to_string()).err().as_deref().map(|e| &e[..22]), expected);
        };
        let mut bomb = vec![variable('A', &"x".repeat(1000))];
        bomb.extend(
            ('B'..='I').zip('A'..).map(|(name, inner)| variable(name, &format!("$({inner})").repeat(10))),
        );
        check(&bomb[..3], None);
        check(&bomb, Some("environment variable D"));
        // Each is short enough, and all of them are not.
        let mut many = vec![variable('A', &"x".repeat(100_000))];
        many.extend(('B'..='Z').chain('a'..='z').chain('A'..='Z').map(|name| variable(name, "$(A)")));
        check(&many[..50], None);
        check(&many, Some("environment variable K"));
    }
}
