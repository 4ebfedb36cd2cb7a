//! `apply` and `delete`.

use super::client::{Client, encode};
use super::table;
use anyhow::{Context, Result, bail};
use coracle_api::manifest;
use hyper::Method;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) async fn apply(client: &Client, files: &[PathBuf]) -> Result<()> {
    for file in files {
        let body = read(file)?;
        let answer = client
            .object(Method::POST, "/coracle/v1/apply", body)
            .await
            .with_context(|| format!("{}", file.display()))?;
        let items = answer["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            bail!("no objects passed to apply: {} holds no pod", file.display());
        }
        for item in items {
            let word = |key: &str| item[key].as_str().unwrap_or_default().to_string();
            table::print(&format!("pod/{} {}\n", word("name"), word("outcome")))?;
        }
    }
    Ok(())
}

pub(super) async fn delete(
    client: &Client,
    names: &[String],
    files: &[PathBuf],
    namespace: &str,
    grace: Option<i64>,
    wait: bool,
) -> Result<()> {
    let bare = |name: &String| name.strip_prefix("pod/").unwrap_or(name).to_string();
    let mut targets: Vec<(String, String)> = names.iter().map(|n| (namespace.to_string(), bare(n))).collect();
    for file in files {
        for pod in manifest::pods(&read(file)?).with_context(|| format!("{}", file.display()))? {
            let namespace = pod.metadata.namespace.unwrap_or_else(|| "default".into());
            targets.push((namespace, pod.metadata.name.unwrap_or_default()));
        }
    }
    let mut uids = Vec::new();
    for (namespace, name) in &targets {
        let query = grace.map(|g| format!("?gracePeriodSeconds={g}")).unwrap_or_default();
        let path = format!("/api/v1/namespaces/{}/pods/{}{query}", encode(namespace), encode(name));
        let pod = client.object(Method::DELETE, &path, Vec::new()).await?;
        table::print(&format!("pod \"{name}\" deleted\n"))?;
        uids.extend(pod["metadata"]["uid"].as_str().map(String::from));
    }
    if wait { gone(client, uids).await } else { Ok(()) }
}

/// Follows the watch until none of `uids` is there any more.
async fn gone(client: &Client, mut uids: Vec<String>) -> Result<()> {
    // Gone already is not seen by a watch: compare with the list first.
    let list = client.get("/pods").await?;
    let listed: Vec<&str> = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| p["metadata"]["uid"].as_str())
        .collect();
    uids.retain(|uid| listed.contains(&uid.as_str()));
    if uids.is_empty() {
        return Ok(());
    }
    let mut first: Option<Vec<String>> = Some(Vec::new());
    client
        .lines(Method::GET, "/pods?watch=1", |line| {
            let change: serde_json::Value = serde_json::from_slice(line)?;
            let uid = change["object"]["metadata"]["uid"].as_str().unwrap_or_default();
            match change["type"].as_str() {
                Some("DELETED") => uids.retain(|u| u != uid),
                Some("ADDED") => first.iter_mut().for_each(|seen| seen.push(uid.into())),
                // The initial burst of ADDED is over: what was not in it went between list and watch.
                _ => {
                    if let Some(seen) = first.take() {
                        uids.retain(|u| seen.contains(u));
                    }
                }
            }
            Ok(!uids.is_empty())
        })
        .await
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bound = manifest::MANIFEST_BYTES_MAX as u64 + 1;
    let mut text = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(bound).read_to_end(&mut text)?;
    } else {
        let open = std::fs::File::open(file)
            .with_context(|| format!("the path {:?} cannot be read", file.display().to_string()))?;
        open.take(bound).read_to_end(&mut text)?;
    }
    Ok(text)
}
