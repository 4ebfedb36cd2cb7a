//! `coracle-control kubeconfig`: for people and programs that are no boards.
//!
//! The certificate is signed here, by the authority in the data directory: whoever can read that key can be anybody
//! already. What the user may do, roles and bindings say.

use super::client::Cluster;
use super::{Running, print, token};
use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use coracle_control::pki::{self, Authority, Leaf};
use hyper::Method;
use jiff::SignedDuration;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

#[derive(Debug, Subcommand)]
pub enum KubeconfigCommand {
    /// Make a kubeconfig with a certificate of its own.
    #[command(
        after_help = "Examples:\n  coracle-control kubeconfig create --user ada --group harbour > ada.conf\n  coracle-control kubeconfig create --user ci --expires 90d --output ci.conf\n\nThen, to say what they may:\n  kubectl create rolebinding ada --clusterrole edit --user ada -n NAMESPACE"
    )]
    Create(Create),
}

#[derive(Debug, Args)]
pub struct Create {
    /// Who it is for.
    #[arg(long)]
    user: String,
    /// A group that the user is in; may be repeated. system:masters may do everything.
    #[arg(long = "group")]
    groups: Vec<String>,
    /// How long it is good for: 12h, 90d. It cannot be taken back before.
    #[arg(long, default_value = "365d", value_parser = token::duration)]
    expires: SignedDuration,
    /// The URL that it reaches the control plane by; what `serve` advertises by default.
    #[arg(long)]
    server: Option<String>,
    /// A file for it, readable by its owner only, instead of standard output.
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    running: Running,
}

pub async fn run(command: KubeconfigCommand) -> anyhow::Result<()> {
    let KubeconfigCommand::Create(create) = command;
    for name in create.groups.iter().chain([&create.user]) {
        if name.is_empty() || name.chars().any(char::is_control) {
            bail!("{name:?} is no name");
        }
    }
    ensure!(!create.expires.is_zero(), "a certificate ends some day: --expires 365d");
    let dir = create.running.data_dir().join("pki");
    let key_file = dir.join("ca.key");
    // Opening would make another one.
    ensure!(
        key_file.exists(),
        "{} is not there: say --data-dir, on the machine of `serve`",
        key_file.display()
    );
    let authority = Authority::open(&dir, "ca", "coracle")?;
    let server = match &create.server {
        Some(server) => server.clone(),
        None => {
            advertised(&create.running).await.context("say --server, as the control plane does not answer")?
        }
    };
    let key = pki::new_key()?;
    let (usages, extended) =
        pki::usages(["digital signature", "client auth"]).map_err(|usage| anyhow::anyhow!("{usage}"))?;
    let now = SystemTime::now();
    let lifetime = Duration::try_from(create.expires).context("a time to come")?;
    let certificate = authority.sign(Leaf {
        subject: pki::subject(&create.user, &create.groups)?,
        key: pki::public_key(&key)?,
        names: Vec::new(),
        usages,
        extended,
        // For clocks that are behind.
        not_before: now - Duration::from_secs(300),
        not_after: now + lifetime,
    })?;
    let certificate = pki::pem("CERTIFICATE", &certificate)?;
    let key = pki::pem("PRIVATE KEY", key.secret_pkcs8_der())?;
    let config = kubeconfig(&server, authority.pem(), &create.user, &certificate, &key);
    let text = serde_saphyr::to_string(&config)?;
    match &create.output {
        Some(path) => Ok(pki::write(path, text.as_bytes(), 0o600)?),
        None => Ok(print(&text)?),
    }
}

async fn advertised(running: &Running) -> anyhow::Result<String> {
    let mut client = running.connect().await?;
    let info = client.ask(Method::GET, token::CLUSTER_INFO, None).await?;
    let info = info.pointer("/data/kubeconfig").and_then(Value::as_str);
    Ok(Cluster::only(info.context("the control plane does not say where it is")?)?.server)
}

fn kubeconfig(server: &str, ca: &str, user: &str, certificate: &str, key: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "coracle",
            "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca)},
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": STANDARD.encode(certificate),
                "client-key-data": STANDARD.encode(key),
            },
        }],
        "contexts": [{"name": "coracle", "context": {"cluster": "coracle", "user": user}}],
        "current-context": "coracle",
    })
}
