//! `ps`: kubectl's `get pods`, over every namespace unless one is named.

use super::client::Client;
use super::pods::{all, created, names, not_found, since, status};
use super::table::Columns;
use super::{Output, table};
use anyhow::{Result, bail};
use clap::Args;
use hyper::Method;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Only these pods.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only this namespace; all of them by default.
    #[arg(short, long, conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// All namespaces, as by default.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only pods with these labels: app=web,tier!=test,beta,!old
    #[arg(short = 'l', long, value_parser = Selector::parse)]
    selector: Option<Selector>,
    /// Output format.
    #[arg(short, long)]
    output: Option<Output>,
    /// No line of column names.
    #[arg(long)]
    no_headers: bool,
    /// After listing, watch for changes.
    #[arg(short, long)]
    watch: bool,
}

/// An event of the watch.
#[derive(Deserialize)]
struct Change {
    #[serde(rename = "type")]
    kind: String,
    object: Pod,
}

pub(super) async fn ps(client: &Client, mut ps: Ps) -> Result<()> {
    ps.names = names(&ps.names)?;
    let pods: Vec<Pod> = all(client).await?.into_iter().filter(|pod| ps.wants(pod)).collect();
    let missing = |name: &&String| !pods.iter().any(|p| p.metadata.name.as_ref() == Some(name));
    let missing: Vec<&String> = ps.names.iter().filter(missing).collect();
    let mut columns = Columns::default();
    match ps.output {
        Some(Output::Json | Output::Yaml) if !ps.watch => {
            let value = match (ps.names.as_slice(), pods.as_slice()) {
                ([_], [one]) => serde_json::to_value(one)?,
                _ => serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": pods}),
            };
            ps.object(&value)?;
        }
        None | Some(Output::Wide) if pods.is_empty() => {
            if missing.is_empty() && !ps.watch {
                let place = ps.namespace.as_ref().map(|n| format!(" in {n} namespace.")).unwrap_or_default();
                writeln!(std::io::stderr(), "No resources found{place}")?;
            }
        }
        _ => ps.show(&mut columns, &pods)?,
    }
    if let [first, ..] = missing.as_slice() {
        for name in &missing[1..] {
            writeln!(std::io::stderr(), "{}", not_found(name))?;
        }
        return Err(not_found(first));
    }
    if ps.watch { ps.follow(client, columns, &pods).await } else { Ok(()) }
}

impl Ps {
    fn wants(&self, pod: &Pod) -> bool {
        let name = pod.metadata.name.as_ref();
        (self.names.is_empty() || self.names.iter().any(|n| name == Some(n)))
            && self.namespace.as_ref().is_none_or(|n| pod.metadata.namespace.as_deref() == Some(n))
            && self.selector.as_ref().is_none_or(|s| s.matches(pod.metadata.labels.as_ref()))
    }

    /// Every change after the list.
    async fn follow(&self, client: &Client, mut columns: Columns, listed: &[Pod]) -> Result<()> {
        let version = |pod: &Pod| (pod.metadata.uid.clone(), pod.metadata.resource_version.clone());
        let listed: Vec<_> = listed.iter().map(version).collect();
        client
            .lines(Method::GET, "/pods?watch=1", |line| {
                let Change { kind, object: pod } = serde_json::from_slice(line)?;
                // A watch begins with what is there: that has been shown.
                if self.wants(&pod) && !(kind == "ADDED" && listed.contains(&version(&pod))) {
                    self.show(&mut columns, std::slice::from_ref(&pod))?;
                }
                Ok(true)
            })
            .await
    }

    fn show(&self, columns: &mut Columns, pods: &[Pod]) -> Result<()> {
        match self.output {
            Some(Output::Json | Output::Yaml) => {
                pods.iter().try_for_each(|pod| self.object(&serde_json::to_value(pod)?))
            }
            Some(Output::Name) => {
                let line = |pod: &Pod| format!("pod/{}\n", pod.metadata.name.as_deref().unwrap_or_default());
                Ok(table::print(&pods.iter().map(line).collect::<String>())?)
            }
            _ => {
                let mut rows = Vec::new();
                if columns.is_new() && !self.no_headers {
                    rows.push(self.heading());
                }
                rows.extend(pods.iter().map(|pod| self.row(pod)));
                Ok(table::print(&columns.lines(&rows))?)
            }
        }
    }

    fn object(&self, value: &Value) -> Result<()> {
        let text = match self.output {
            Some(Output::Yaml) if self.watch => format!("---\n{}", serde_saphyr::to_string(value)?),
            Some(Output::Yaml) => serde_saphyr::to_string(value)?,
            _ => serde_json::to_string_pretty(value)? + "\n",
        };
        Ok(table::print(&text)?)
    }

    fn heading(&self) -> Vec<String> {
        let mut row = if self.namespace.is_none() { vec!["NAMESPACE"] } else { Vec::new() };
        row.extend(["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
        if self.output == Some(Output::Wide) {
            row.extend(["IP", "NODE", "NOMINATED NODE", "READINESS GATES"]);
        }
        row.into_iter().map(String::from).collect()
    }

    fn row(&self, pod: &Pod) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.clone()).unwrap_or_default();
        let total = pod.spec.as_ref().map_or(0, |s| s.containers.len());
        let ready = statuses.iter().filter(|s| s.ready).count();
        let mut row = if self.namespace.is_none() { vec![text(&pod.metadata.namespace)] } else { Vec::new() };
        row.extend([
            text(&pod.metadata.name),
            format!("{ready}/{total}"),
            status(pod),
            restarts(pod),
            created(pod).map_or_else(|| "<unknown>".into(), |at| table::age(since(at))),
        ]);
        if self.output == Some(Output::Wide) {
            let none = |value: Option<String>| value.filter(|v| !v.is_empty()).unwrap_or("<none>".into());
            row.push(none(pod.status.as_ref().and_then(|s| s.pod_ip.clone())));
            row.push(none(pod.spec.as_ref().and_then(|s| s.node_name.clone())));
            row.extend(["<none>".into(), "<none>".into()]);
        }
        row
    }
}

/// `3 (10s ago)`: how often, and since when not any more.
fn restarts(pod: &Pod) -> String {
    let status = pod.status.iter();
    let statuses: Vec<_> = status.flat_map(|s| s.container_statuses.iter().flatten()).collect();
    let count: i32 = statuses.iter().map(|s| s.restart_count).sum();
    let ends =
        statuses.iter().filter_map(|s| s.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    match ends.map(|t| t.0).max() {
        Some(last) if count > 0 => format!("{count} ({} ago)", table::age(since(last))),
        _ => count.to_string(),
    }
}

/// Equality-based label selectors: `a=b`, `a==b`, `a!=b`, `a`, `!a`, joined by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector(Vec<(String, Need)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Is(String),
    IsNot(String),
    There,
    Absent,
}

impl Selector {
    fn parse(text: &str) -> Result<Selector> {
        let requirement = |part: &str| {
            let part = part.trim();
            let (key, need) = if let Some((key, value)) = part.split_once("!=") {
                (key, Need::IsNot(value.trim().into()))
            } else if let Some((key, value)) = part.split_once('=') {
                (key, Need::Is(value.trim_start_matches('=').trim().into()))
            } else if let Some(key) = part.strip_prefix('!') {
                (key, Need::Absent)
            } else {
                (part, Need::There)
            };
            let key = key.trim();
            if key.is_empty() || key.contains(|c: char| c.is_whitespace() || "()=!".contains(c)) {
                bail!(
                    "unable to parse requirement {part:?}: such as app=web, tier!=test, beta or !old are known"
                );
            }
            Ok((key.to_string(), need))
        };
        text.split(',').map(requirement).collect::<Result<_>>().map(Selector)
    }

    fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.0.iter().all(|(key, need)| {
            let found = labels.and_then(|labels| labels.get(key));
            match need {
                Need::Is(value) => found == Some(value),
                Need::IsNot(value) => found != Some(value),
                Need::There => found.is_some(),
                Need::Absent => found.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_choose_as_the_api_servers_do() {
        let labels: BTreeMap<String, String> =
            [("app".into(), "web".into()), ("beta".into(), String::new())].into();
        let check = |text: &str, expected: Option<bool>| {
            let found = Selector::parse(text).ok().map(|s| s.matches(Some(&labels)));
            assert_eq!(found, expected, "{text}");
        };
        check("app=web", Some(true));
        check("app==web,beta", Some(true));
        check("app=web, tier!=test,!old", Some(true));
        check("app!=web", Some(false));
        check("beta=", Some(true));
        check("!beta", Some(false));
        check("", None);
        check("app in (web)", None);
        check("=x", None);
    }
}
