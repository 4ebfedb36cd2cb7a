//! `top`: what pods use.

use super::client::Client;
use super::pods::{names, not_found};
use super::table;
use anyhow::Result;
use clap::Args;
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Only these pods.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only this namespace; all of them by default.
    #[arg(short, long)]
    namespace: Option<String>,
}

pub(super) async fn top(client: &Client, top: &Top) -> Result<()> {
    /// Between the two readings that a rate needs.
    const WINDOW: Duration = Duration::from_secs(1);
    let wanted = names(&top.names)?;
    let first = client.get("/stats/summary").await?;
    tokio::time::sleep(WINDOW).await;
    let second = client.get("/stats/summary").await?;
    let used = |list: &Value, uid: &str| {
        let pods = list["pods"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .find(|p| p["podRef"]["uid"] == uid)
            .and_then(|p| p["cpu"]["usageCoreNanoSeconds"].as_u64())
    };
    let mut rows = vec![["NAMESPACE", "NAME", "CPU(cores)", "MEMORY(bytes)"].map(String::from).to_vec()];
    for pod in second["pods"].as_array().into_iter().flatten() {
        let text = |key: &str| pod["podRef"][key].as_str().unwrap_or_default().to_string();
        let (name, namespace, uid) = (text("name"), text("namespace"), text("uid"));
        if !(wanted.is_empty() || wanted.contains(&name))
            || top.namespace.as_ref().is_some_and(|n| *n != namespace)
        {
            continue;
        }
        let spent = used(&second, &uid).zip(used(&first, &uid)).map_or(0, |(b, a)| b.saturating_sub(a));
        let millis = u128::from(spent) / WINDOW.as_micros();
        let memory = pod["memory"]["workingSetBytes"].as_u64().unwrap_or(0) >> 20;
        rows.push(vec![namespace, name, format!("{millis}m"), format!("{memory}Mi")]);
    }
    if let Some(missing) = wanted.iter().find(|name| !rows.iter().any(|row| row[1] == **name)) {
        return Err(not_found(missing));
    }
    if rows.len() == 1 {
        return Ok(writeln!(std::io::stderr(), "No resources found")?);
    }
    rows[1..].sort();
    Ok(table::print(&table::columns(&rows))?)
}
