//! `coracle image`.

use super::client::{Client, encode};
use super::table;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hyper::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// List images.
    #[command(alias = "list")]
    Ls {
        /// Output format.
        #[arg(short, long)]
        output: Option<Format>,
    },
    /// Pull an image from its registry or mirrors.
    #[command(after_help = "Examples:\n  coracle image pull nginx:1.27")]
    Pull {
        /// Reference as pods write it.
        reference: String,
    },
    /// Import an OCI layout or archive, or a docker-archive.
    #[command(
        after_help = "Examples:\n  docker save web | gzip > web.tar.gz && coracle image import web.tar.gz"
    )]
    Import {
        /// Tar file, gzipped or not, or OCI layout directory.
        path: PathBuf,
    },
    /// Remove an image that no pod uses.
    Rm {
        /// Reference or id.
        reference: String,
    },
    /// Remove every image that no pod uses and that is not pinned.
    Prune,
}

/// `-o` of what is no Kubernetes object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

pub(super) async fn run(client: &Client, command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Ls { output } => list(client, output).await,
        ImageCommand::Pull { reference } => pull(client, &reference).await,
        ImageCommand::Import { path } => {
            let path = std::fs::canonicalize(&path).with_context(|| path.display().to_string())?;
            let text = path.to_str().context("the path is not UTF-8")?;
            let url = format!("/coracle/v1/images/import?path={}", encode(text));
            let answer = client.object(Method::POST, &url, Vec::new()).await?;
            for name in answer["items"].as_array().into_iter().flatten() {
                table::print(&format!("image/{} imported\n", name.as_str().unwrap_or_default()))?;
            }
            Ok(())
        }
        ImageCommand::Rm { reference } => {
            let url = format!("/coracle/v1/images?reference={}", encode(&reference));
            freed(&client.object(Method::DELETE, &url, Vec::new()).await?)
        }
        ImageCommand::Prune => {
            freed(&client.object(Method::POST, "/coracle/v1/images/prune", Vec::new()).await?)
        }
    }
}

async fn list(client: &Client, output: Option<Format>) -> Result<()> {
    let images = client.get("/coracle/v1/images").await?;
    match output {
        Some(Format::Json) => return Ok(table::print(&(serde_json::to_string_pretty(&images)? + "\n"))?),
        Some(Format::Yaml) => return Ok(table::print(&serde_saphyr::to_string(&images)?)?),
        None => {}
    }
    let mut rows = vec![["IMAGE", "IMAGE ID", "SIZE", "PINNED"].map(String::from).to_vec()];
    for image in images["items"].as_array().into_iter().flatten() {
        let id = image["id"].as_str().unwrap_or_default().trim_start_matches("sha256:");
        let size = table::bytes(image["sizeBytes"].as_u64().unwrap_or(0));
        let pinned = if image["pinned"] == true { "yes" } else { "" };
        let references: Vec<&str> =
            image["references"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for reference in if references.is_empty() { vec!["<none>"] } else { references } {
            rows.push(vec![reference.into(), id.chars().take(12).collect(), size.clone(), pinned.into()]);
        }
    }
    Ok(table::print(&table::columns(&rows))?)
}

async fn pull(client: &Client, reference: &str) -> Result<()> {
    let url = format!("/coracle/v1/images/pull?reference={}", encode(reference));
    let live = std::io::stderr().is_terminal();
    let mut layers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut outcome = None;
    client
        .lines(Method::POST, &url, |line| {
            let step: Value = serde_json::from_slice(line)?;
            if step.get("image").is_some() || step.get("error").is_some() {
                outcome = Some(step);
                return Ok(false);
            }
            let layer = step["layer"].as_str().unwrap_or_default().to_string();
            if step["state"] == "fetched" {
                let number = |key: &str| step[key].as_u64().unwrap_or(0);
                layers.insert(layer, (number("bytes"), number("total")));
                let (have, total) = layers.values().fold((0, 0), |sum, l| (sum.0 + l.0, sum.1 + l.1));
                if live {
                    write!(std::io::stderr(), "\r{} of {}   ", table::bytes(have), table::bytes(total))?;
                }
            }
            Ok(true)
        })
        .await?;
    if live && !layers.is_empty() {
        writeln!(std::io::stderr())?;
    }
    let outcome = outcome.context("the agent closed the connection")?;
    if let Some(error) = outcome["error"].as_str() {
        bail!("{error}");
    }
    Ok(table::print(&format!(
        "image/{reference} pulled ({})\n",
        outcome["image"]["id"].as_str().unwrap_or_default()
    ))?)
}

fn freed(answer: &Value) -> Result<()> {
    for name in answer["items"].as_array().into_iter().flatten() {
        table::print(&format!("image \"{}\" removed\n", name.as_str().unwrap_or_default()))?;
    }
    Ok(table::print(&format!("{} freed\n", table::bytes(answer["bytes"].as_u64().unwrap_or(0))))?)
}
