//! `coracle join` and `coracle leave`.
//!
//! Joining is one request: the board makes a key, finds the authority in the handshake (see `pin`), sends what it wants to be
//! called, and has its certificate with the answer. What it has then becomes true with the last file, the kubeconfig; a
//! running agent sees that and starts anew as a node of the cluster, its pods running on. Ended at any point and done
//! again it goes on: the key is kept until it has a certificate or a no.

use super::access::{Access, AccessError, Trust};
use super::client::{Client, ClientError};
use super::clock::Clock;
use super::credentials::{Credentials, PENDING};
use super::pin::{Pin, Pinned};
use super::signing::{self, SigningError};
use anyhow::{Context, Result, bail};
use coracle_api::status::Reason;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What `coracle join` was told.
#[derive(Debug, clap::Args)]
pub(crate) struct Join {
    /// URL of the control plane: https://HOST:PORT.
    server: String,
    /// ID.SECRET, as `coracle-control token create` prints it.
    #[arg(long, env = "CORACLE_TOKEN", hide_env_values = true)]
    token: String,
    /// sha256:… of the public key of the control plane's authority.
    #[arg(long)]
    ca_hash: Pin,
    /// Name of the node; node_name of the configuration, or the hostname, by default.
    #[arg(long)]
    node_name: Option<String>,
    /// Configuration file; /etc/coracle/config.toml if that exists.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Labels of the node: KEY=VALUE,…
    #[arg(long, value_parser = labels, default_value = "")]
    labels: Labels,
    /// Seconds to wait for the approval, where that is not given at once.
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

#[derive(Clone, Debug)]
struct Labels(BTreeMap<String, String>);

fn labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() && !pair.chars().any(char::is_control) => {
            Ok((key.to_string(), value.to_string()))
        }
        _ => Err(format!("{pair:?} is not KEY=VALUE")),
    });
    pairs.collect::<Result<_, _>>().map(Labels)
}

/// Joins, or says that the board has joined already. `default_name` is the node's name where none is given.
pub(crate) async fn join(credentials: &Credentials, join: &Join, default_name: &str) -> Result<String> {
    let server = join.server.trim_end_matches('/');
    credentials.make_dir()?;
    let _lock = lock(credentials)?;
    if let Some(node) = credentials.node_name() {
        return already(credentials, server, &node);
    }
    let node = join.node_name.as_deref().unwrap_or(default_name);
    let pinned = Pinned::new(join.ca_hash.clone());
    let clock = Arc::new(Clock::of(&[], &[]));
    let access = Access::new(server, Trust::Verifier(pinned.clone()), None, Some(&join.token), clock)?;
    let client = Client::with(access);
    let key = credentials.key(PENDING)?;
    let patience = Duration::from_secs(join.timeout);
    let signed = signing::sign(&client, signing::CLIENT, &key, node, &[], patience).await;
    let certificate = match signed {
        Ok(certificate) => certificate,
        Err(error) => {
            // Who was told no comes with another key the next time; whoever got no answer is the same board.
            if is_final(&error) {
                credentials.forget(PENDING)?;
            }
            return Err(told(error, server));
        }
    };
    let authority = pinned.authority().context("the control plane's authority is not known")?;
    let authority = pem(&authority);
    credentials.join(server, &authority, &certificate, &key, &join.labels.0)?;
    Ok(format!("joined {server} as node {node}"))
}

fn already(credentials: &Credentials, server: &str, node: &str) -> Result<String> {
    let config = super::kubeconfig::Kubeconfig::read(&credentials.kubeconfig())?;
    if config.server == server {
        return Ok(format!("node {node} belongs to {server} already"));
    }
    bail!("node {node} belongs to {}: first coracle leave", config.server)
}

/// Leaves: the agent stands alone again. The Node stays, for an administrator to delete.
pub(crate) fn leave(credentials: &Credentials) -> Result<String> {
    let Some(node) = credentials.node_name() else {
        // What an interrupted one has left.
        if credentials.dir().exists() {
            credentials.leave()?;
        }
        return Ok("this board belongs to no cluster".into());
    };
    let _lock = lock(credentials)?;
    credentials.leave()?;
    Ok(format!("node {node} has left its cluster; to forget it there: kubectl delete node {node}"))
}

/// One at a time.
fn lock(credentials: &Credentials) -> Result<File> {
    let file = File::open(credentials.dir())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another coracle join or leave is at work"),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn is_final(error: &SigningError) -> bool {
    match error {
        SigningError::Denied(_) => true,
        SigningError::Client(error) => error.reason() == Some(Reason::Unauthorized),
        _ => false,
    }
}

/// The control plane said no: asked again in the same words, it says the same. One clear line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

fn told(error: SigningError, server: &str) -> anyhow::Error {
    match &error {
        SigningError::Denied(_) => Refused(error.to_string()).into(),
        SigningError::Client(ClientError::Status(status)) if status.reason == Reason::Unauthorized => {
            let why = format!(
                "{server} does not take the token: it is wrong, over, used up or revoked; make another one with coracle-control token create"
            );
            Refused(why).into()
        }
        SigningError::Client(ClientError::Access(AccessError::Connect { source, .. }))
            if source.to_string().contains("UnknownIssuer") =>
        {
            let why = format!(
                "{server} is not the control plane that the line is for: its authority has another hash than --ca-hash"
            );
            Refused(why).into()
        }
        _ => error.into(),
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned());
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.collect::<Vec<_>>().join("\n")
    )
}
