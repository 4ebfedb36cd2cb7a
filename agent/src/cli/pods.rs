//! Pods as the command line names them, and how their state is told: shared by the verbs.

use super::client::Client;
use crate::request::Kind;
use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use std::io::Write;

/// Names as kubectl takes them: `web`, `pod/web`, and with the type in a word of its own, `pods web`.
pub(super) fn names(words: &[String]) -> Result<Vec<String>> {
    let is_type = |word: &str| matches!(word, "pod" | "pods" | "po");
    let words = match words.split_first() {
        Some((first, rest)) if is_type(first) => rest,
        _ => words,
    };
    let bare = |word: &String| match word.split_once('/') {
        None => Ok(word.clone()),
        Some((kind, name)) if is_type(kind) => Ok(name.to_string()),
        Some((kind, _)) => {
            bail!("the server doesn't have a resource type \"{kind}\": a standalone board has pods")
        }
    };
    words.iter().map(bare).collect()
}

/// Kinds and names of things that can be deleted: as [`names`], also `secret pins` and `configmap/crew`.
pub(super) fn deletable(words: &[String]) -> Result<Vec<(Kind, String)>> {
    let kind_of = |word: &str| match word {
        "pod" | "pods" | "po" => Some(Kind::Pod),
        "configmap" | "configmaps" | "cm" => Some(Kind::ConfigMap),
        "secret" | "secrets" => Some(Kind::Secret),
        _ => None,
    };
    let (kind, words) = match words.split_first() {
        // A lone word is a pod's name, whatever it is: `delete secret` says which pod, as it always has.
        Some((first, rest)) if !rest.is_empty() && kind_of(first).is_some() => (kind_of(first), rest),
        _ => (None, words),
    };
    let typed = |word: &String| match word.split_once('/') {
        None => Ok((kind.unwrap_or(Kind::Pod), word.clone())),
        Some(_) if kind.is_some() => {
            bail!(
                "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form"
            )
        }
        Some((word, name)) => match kind_of(word) {
            Some(kind) => Ok((kind, name.to_string())),
            None => bail!(
                "the server doesn't have a resource type \"{word}\": a standalone board has pods, configmaps and secrets"
            ),
        },
    };
    words.iter().map(typed).collect()
}

/// The one name that a verb takes, and the words after it.
pub(super) fn one_name(words: &[String]) -> Result<(String, &[String])> {
    let typed = usize::from(words.len() > 1 && matches!(words[0].as_str(), "pod" | "pods" | "po"));
    let Some((first, rest)) = words[typed..].split_first() else { bail!("a pod's name is required") };
    let name = names(std::slice::from_ref(first))?.pop();
    Ok((name.unwrap_or_else(|| first.clone()), rest))
}

pub(super) async fn all(client: &Client) -> Result<Vec<Pod>> {
    client.items("/pods").await
}

pub(super) async fn one(client: &Client, namespace: &str, name: &str) -> Result<Pod> {
    let named = |p: &Pod| {
        p.metadata.name.as_deref() == Some(name) && p.metadata.namespace.as_deref() == Some(namespace)
    };
    let found = all(client).await?.into_iter().find(named);
    found.ok_or_else(|| not_found(name))
}

pub(super) fn not_found(name: &str) -> anyhow::Error {
    super::client::ServerError { reason: "NotFound".into(), message: format!("pods \"{name}\" not found") }
        .into()
}

/// The container that is meant when none is named: the annotated one, else the first; which one is said when there
/// are others, in kubectl's words.
pub(super) fn default_container(pod: &Pod) -> Result<String> {
    const ANNOTATION: &str = "kubectl.kubernetes.io/default-container";
    let spec = pod.spec.as_ref();
    let names: Vec<&str> = spec.into_iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
    let inits: Vec<String> = spec
        .and_then(|s| s.init_containers.as_ref())
        .into_iter()
        .flatten()
        .map(|c| format!("{} (init)", c.name))
        .collect();
    let annotated = pod.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION));
    if let Some(name) = annotated.filter(|name| names.contains(&name.as_str())) {
        return Ok(name.clone());
    }
    let Some(first) = names.first() else { bail!("the pod has no container") };
    if names.len() + inits.len() > 1 {
        let others: Vec<String> = names.iter().map(ToString::to_string).chain(inits).collect();
        writeln!(std::io::stderr(), "Defaulted container \"{first}\" out of: {}", others.join(", "))?;
    }
    Ok((*first).to_string())
}

pub(super) fn created(pod: &Pod) -> Option<jiff::Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// Seconds from `at` to now.
pub(super) fn since(at: jiff::Timestamp) -> i64 {
    jiff::Timestamp::now().as_second() - at.as_second()
}

/// The STATUS column: pkg/printers/internalversion, `printPod`.
pub(super) fn status(pod: &Pod) -> String {
    let empty = Default::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let mut reason = status.reason.clone().or_else(|| status.phase.clone()).unwrap_or_default();
    let mut initializing = false;
    let inits = status.init_container_statuses.iter().flatten();
    let total = pod.spec.as_ref().and_then(|s| s.init_containers.as_ref()).map_or(0, Vec::len);
    for (index, init) in inits.enumerate() {
        let state = init.state.clone().unwrap_or_default();
        match (&state.terminated, &state.waiting) {
            (Some(ended), _) if ended.exit_code == 0 => continue,
            (Some(ended), _) => {
                reason =
                    format!("Init:{}", ended_reason(ended.reason.as_deref(), ended.signal, ended.exit_code))
            }
            (None, Some(waiting))
                if waiting.reason.as_deref().is_some_and(|r| !r.is_empty() && r != "PodInitializing") =>
            {
                reason = format!("Init:{}", waiting.reason.clone().unwrap_or_default());
            }
            _ => reason = format!("Init:{index}/{total}"),
        }
        initializing = true;
        break;
    }
    if !initializing {
        let mut running = false;
        for container in status.container_statuses.iter().flatten().rev() {
            let state = container.state.clone().unwrap_or_default();
            if let Some(waiting) =
                state.waiting.filter(|w| w.reason.as_deref().is_some_and(|r| !r.is_empty()))
            {
                reason = waiting.reason.unwrap_or_default();
            } else if let Some(ended) = state.terminated {
                reason = ended_reason(ended.reason.as_deref(), ended.signal, ended.exit_code);
            } else if container.ready && state.running.is_some() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if pod.metadata.deletion_timestamp.is_some() {
        reason = "Terminating".into();
    }
    reason
}

fn ended_reason(reason: Option<&str>, signal: Option<i32>, code: i32) -> String {
    match (reason, signal) {
        (Some(reason), _) if !reason.is_empty() => reason.into(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_kubectl_takes_them() {
        let check = |words: &[&str], expected: Result<&[&str], &str>| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            match (names(&words), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, _) => panic!("{words:?}: {found:?}"),
            }
        };
        check(&[], Ok(&[]));
        check(&["pods"], Ok(&[]));
        check(&["web", "db"], Ok(&["web", "db"]));
        check(&["pod", "web", "db"], Ok(&["web", "db"]));
        check(&["po/web", "pods/db"], Ok(&["web", "db"]));
        check(&["deploy/web"], Err("resource type \"deploy\""));
        let delete = |words: &[&str], expected: Result<&[(Kind, &str)], &str>| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            match (deletable(&words), expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<_> = found.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
                    assert_eq!(found, expected);
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, _) => panic!("{words:?}: {found:?}"),
            }
        };
        delete(&["web", "db"], Ok(&[(Kind::Pod, "web"), (Kind::Pod, "db")]));
        delete(&["secret", "pins", "keys"], Ok(&[(Kind::Secret, "pins"), (Kind::Secret, "keys")]));
        delete(&["cm/crew", "pod/web"], Ok(&[(Kind::ConfigMap, "crew"), (Kind::Pod, "web")]));
        delete(&["secret"], Ok(&[(Kind::Pod, "secret")]));
        delete(&["secret", "secret/a"], Err("no need to specify a resource type"));
        delete(&["deploy/web"], Err("resource type \"deploy\""));
        let one = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            one_name(&words).map(|(name, rest)| (name, rest.to_vec())).expect("a name")
        };
        assert_eq!(one(&["web"]), ("web".into(), vec![]));
        assert_eq!(one(&["pod/web", "side"]), ("web".into(), vec!["side".into()]));
        assert_eq!(one(&["pods", "web"]), ("web".into(), vec![]));
        assert_eq!(one(&["pods"]), ("pods".into(), vec![]));
    }
}
