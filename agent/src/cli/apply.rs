//! `apply` and `delete`.

use super::client::{Client, ServerError, encode};
use super::pods::{all, deletable};
use super::table;
use crate::request::Kind;
use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_api::manifest::{self, Object};
use hyper::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Pod names; with a type before them, as in `secret NAME` and `configmap/NAME`, others.
    #[arg(value_name = "NAME", required_unless_present_any = ["filename", "all"])]
    names: Vec<String>,
    /// Manifest file of pods, configmaps and secrets, directory of them, or - for standard input.
    #[arg(short, long)]
    filename: Vec<PathBuf>,
    /// Every pod of the namespace that `coracle apply` made.
    #[arg(long, conflicts_with_all = ["names", "filename"])]
    all: bool,
    /// Namespace of the names.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Seconds before SIGKILL; the pod's own by default.
    #[arg(long, allow_negative_numbers = true)]
    grace_period: Option<i64>,
    /// As --grace-period=1.
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// As --grace-period=0, unless another is given.
    #[arg(long)]
    force: bool,
    /// A pod that is not there is no error.
    #[arg(long)]
    ignore_not_found: bool,
    /// Return once the pod is gone, or at once.
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    wait: bool,
    /// As --wait=false.
    #[arg(long, hide = true)]
    no_wait: bool,
}

pub(super) async fn apply(client: &Client, places: &[PathBuf]) -> Result<()> {
    let mut failed = None;
    for file in files(places)? {
        let applied = apply_file(client, &file).await;
        // One file that is wrong does not keep the others from being applied.
        if let Err(error) = applied
            && let Some(earlier) = failed.replace(error)
        {
            writeln!(std::io::stderr(), "{earlier:#}")?;
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn apply_file(client: &Client, file: &Path) -> Result<()> {
    let body = read(file)?;
    let answer = match client.object(Method::POST, "/coracle/v1/apply", body).await {
        Ok(answer) => answer,
        Err(error) => {
            let refused = error.downcast::<ServerError>()?;
            let message = match refused.reason.as_str() {
                "Invalid" => refused.message,
                _ => format!("error when applying {:?}: {}", file.display().to_string(), refused.message),
            };
            return Err(ServerError { reason: refused.reason, message }.into());
        }
    };
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    if items.is_empty() {
        bail!("no objects passed to apply: {} holds no pod, no configmap and no secret", file.display());
    }
    for item in items {
        let word = |key: &str| item[key].as_str().unwrap_or_default().to_string();
        table::print(&format!("{}/{} {}\n", word("kind"), word("name"), word("outcome")))?;
    }
    Ok(())
}

pub(super) async fn delete(client: &Client, delete: &Delete) -> Result<()> {
    let named = deletable(&delete.names)?.into_iter();
    let mut targets: Vec<(Kind, String, String)> =
        named.map(|(kind, name)| (kind, delete.namespace.clone(), name)).collect();
    for file in files(&delete.filename)? {
        for object in manifest::objects(&read(&file)?).with_context(|| format!("{}", file.display()))? {
            targets.push(match object {
                Object::Pod(pod) => target(Kind::Pod, pod.metadata),
                Object::ConfigMap(map) => target(Kind::ConfigMap, map.metadata),
                Object::Secret(secret) => target(Kind::Secret, secret.0.metadata),
            });
        }
    }
    if delete.all {
        for pod in all(client).await? {
            let annotations = pod.metadata.annotations.unwrap_or_default();
            let applied =
                annotations.get("kubernetes.io/config.source").is_some_and(|source| source == "api");
            if applied && pod.metadata.namespace.as_deref() == Some(&delete.namespace) {
                targets.push((Kind::Pod, delete.namespace.clone(), pod.metadata.name.unwrap_or_default()));
            }
        }
        if targets.is_empty() {
            writeln!(std::io::stderr(), "No resources found")?;
        }
    }
    let grace = match delete.grace_period {
        _ if delete.now => Some(1),
        None if delete.force => Some(0),
        // kubectl's word for the pod's own.
        Some(negative) if negative < 0 => None,
        given => given,
    };
    let (mut uids, mut failed) = (Vec::new(), None);
    for (kind, namespace, name) in &targets {
        let grace = grace.filter(|_| *kind == Kind::Pod);
        let query = grace.map(|g| format!("?gracePeriodSeconds={g}")).unwrap_or_default();
        let (place, resource) = (encode(namespace), kind.resource());
        let path = format!("/api/v1/namespaces/{place}/{resource}/{}{query}", encode(name));
        match client.object(Method::DELETE, &path, Vec::new()).await {
            Ok(deleted) => {
                table::print(&format!("{} \"{name}\" deleted\n", kind.word()))?;
                // A secret is gone at once and shows no uid.
                uids.extend(deleted["metadata"]["uid"].as_str().map(String::from));
            }
            Err(error) => {
                let refused = error.downcast::<ServerError>()?;
                if !(delete.ignore_not_found && refused.reason == "NotFound")
                    && let Some(earlier) = failed.replace(refused)
                {
                    writeln!(std::io::stderr(), "{earlier}")?;
                }
            }
        }
    }
    if delete.wait && !delete.no_wait {
        gone(client, uids).await?;
    }
    failed.map_or(Ok(()), |refused| Err(refused.into()))
}

fn target(kind: Kind, meta: ObjectMeta) -> (Kind, String, String) {
    let namespace = meta.namespace.filter(|namespace| !namespace.is_empty());
    (kind, namespace.unwrap_or_else(|| "default".into()), meta.name.unwrap_or_default())
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

/// The files that are meant: a directory stands for the manifests in it, by name.
fn files(places: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for place in places {
        if !place.is_dir() {
            files.push(place.clone());
            continue;
        }
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(place).with_context(|| format!("{}", place.display()))? {
            let path = entry?.path();
            let known = path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|k| end == *k));
            if known && path.is_file() {
                found.insert(path);
            }
        }
        if found.is_empty() {
            bail!("error reading [{}]: recognized file extensions are [.json .yaml .yml]", place.display());
        }
        files.extend(found);
    }
    Ok(files)
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
