//! `coracle-control token`: what a board joins with.
//!
//! A token is made here and printed once; the server is told its digest only.

use super::client::{Client, Cluster};
use super::{Running, print};
use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use coracle_control::enroll::policy::is_node_name;
use coracle_control::enroll::token::{self, Presented, Token};
use coracle_control::pki;
use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
pub(super) const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print the one line that lets boards join with it.
    #[command(
        after_help = "Examples:\n  coracle-control token create\n  coracle-control token create --ttl 1h --uses 10 --labels site=harbour\n  coracle-control token create --node pi-7     # for a board that takes the place of pi-7"
    )]
    Create(Create),
    /// List the tokens, without their secrets.
    List {
        #[command(flatten)]
        running: Running,
    },
    /// Make tokens worthless, by id. Boards that joined with them stay.
    Revoke {
        /// The part of the token before the dot.
        #[arg(required = true)]
        id: Vec<String>,
        #[command(flatten)]
        running: Running,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// How long it lets boards in: 30m, 24h, 7d; 0 = until it is revoked.
    #[arg(long, default_value = "24h", value_parser = duration)]
    ttl: SignedDuration,
    /// How many boards may join with it; 0 = as many as come.
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// Labels of the Nodes that it makes: KEY=VALUE,…
    #[arg(long, default_value = "", value_parser = labels)]
    labels: String,
    /// The name of the one Node that it is for. That may exist: the board then takes its place.
    #[arg(long, value_parser = node)]
    node: Option<String>,
    /// For whoever lists it.
    #[arg(long, default_value = "")]
    description: String,
    /// The URL that boards reach the control plane by; what `serve` advertises by default.
    #[arg(long)]
    server: Option<String>,
    #[command(flatten)]
    running: Running,
}

fn labels(text: &str) -> Result<String, String> {
    token::parse_labels(text).map(|_| text.to_string())
}

fn node(name: &str) -> Result<String, String> {
    is_node_name(name)
        .then(|| name.to_string())
        .ok_or_else(|| "not the name of a node: a-z, 0-9, - and .".into())
}

pub(super) fn duration(text: &str) -> Result<SignedDuration, String> {
    let wrong = || "a number and s, m, h or d, such as 24h".to_string();
    if text == "0" {
        return Ok(SignedDuration::ZERO);
    }
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let seconds = match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let seconds = seconds.and_then(|unit| number.checked_mul(unit)).ok_or_else(wrong)?;
    // Ten years are for ever, and no clock overflows.
    (1..=315_360_000).contains(&seconds).then(|| SignedDuration::from_secs(seconds)).ok_or_else(wrong)
}

pub async fn run(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(create) => {
            let mut client = create.running.connect().await?;
            make(&mut client, &create).await
        }
        TokenCommand::List { running } => list(&mut running.connect().await?).await,
        TokenCommand::Revoke { id, running } => {
            let mut client = running.connect().await?;
            for id in id {
                // Somebody may paste the whole of it.
                let id = id.split('.').next().unwrap_or_default();
                if id.is_empty() || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
                    bail!("{id:?} is not the id of a token");
                }
                let path = format!("{SECRETS}/{}{id}", token::NAME_PREFIX);
                client.ask(Method::DELETE, &path, None).await?;
                print(&format!("token {id} revoked\n"))?;
            }
            Ok(())
        }
    }
}

async fn make(client: &mut Client, create: &Create) -> anyhow::Result<()> {
    let line = mint(client, create).await?;
    Ok(print(&format!("coracle join {} --token {} --ca-hash {}\n", line.server, line.token, line.ca_hash))?)
}

/// What a board joins with.
pub(super) struct JoinLine {
    pub(super) server: String,
    pub(super) token: String,
    pub(super) ca_hash: String,
}

/// For one board of that name, which joins at once.
pub(super) async fn mint_for(client: &mut Client, node: &str) -> anyhow::Result<JoinLine> {
    let create = Create {
        ttl: SignedDuration::from_mins(10),
        uses: 1,
        labels: String::new(),
        node: Some(node.into()),
        description: "coracle-control local".into(),
        server: None,
        running: Running { data_dir: None, kubeconfig: None },
    };
    mint(client, &create).await
}

async fn mint(client: &mut Client, create: &Create) -> anyhow::Result<JoinLine> {
    let info = client.ask(Method::GET, CLUSTER_INFO, None).await?;
    let info = info
        .pointer("/data/kubeconfig")
        .and_then(Value::as_str)
        .context("the control plane does not say where it is")?;
    let cluster = Cluster::only(info)?;
    let hash = pki::key_hash(&cluster.authority()?)?;
    let server = create.server.as_deref().unwrap_or(&cluster.server);
    let (id, secret) = (random::<6>()?, random::<16>()?);
    let whole = format!("{id}.{secret}");
    let digest = Presented::parse(&whole).context("a token is of that form")?.digest();
    let mut data = Map::new();
    let mut put = |key: &str, value: String| {
        if !value.is_empty() {
            data.insert(key.into(), STANDARD.encode(value).into());
        }
    };
    put("token-id", id.clone());
    put(token::DIGEST, digest);
    put("usage-bootstrap-authentication", "true".into());
    put("description", create.description.clone());
    put(token::LABELS, create.labels.clone());
    put(token::NODE, create.node.clone().unwrap_or_default());
    if create.uses > 0 {
        put(token::USES, create.uses.to_string());
    }
    if !create.ttl.is_zero() {
        let end = Timestamp::now().checked_add(create.ttl)?;
        put("expiration", Timestamp::from_second(end.as_second())?.to_string());
    }
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": format!("{}{id}", token::NAME_PREFIX)},
        "type": token::TYPE,
        "data": data,
    });
    client.ask(Method::POST, SECRETS, Some(&secret)).await?;
    Ok(JoinLine { server: server.into(), token: whole, ca_hash: hash })
}

async fn list(client: &mut Client) -> anyhow::Result<()> {
    let path = format!("{SECRETS}?fieldSelector=type%3D{}", token::TYPE.replace('/', "%2F"));
    let list = client.ask(Method::GET, &path, None).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let mut rows = vec![["ID", "EXPIRES", "USES LEFT", "NODE", "LABELS", "DESCRIPTION"].map(String::from)];
    for item in &items {
        // Not that of another type: a server may not know the selector.
        let Some(token) = Token::of(item) else { continue };
        let description =
            STANDARD.decode(item.pointer("/data/description").and_then(Value::as_str).unwrap_or_default());
        let description = String::from_utf8(description.unwrap_or_default()).unwrap_or_default();
        let labels: Vec<String> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let shown = |text: String| if text.is_empty() { "<none>".to_string() } else { text };
        rows.push([
            token.id.clone(),
            token.expires().map_or("<never>".into(), |end| end.to_string()),
            token.uses_left.map_or("<any>".into(), |left| left.to_string()),
            shown(token.node.clone().unwrap_or_default()),
            shown(labels.join(",")),
            shown(description.chars().filter(|c| !c.is_control()).collect()),
        ]);
    }
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    Ok(print(&text)?)
}

/// Of 36 characters, each as likely as any other.
fn random<const N: usize>() -> anyhow::Result<String> {
    let mut text = String::with_capacity(N);
    let mut byte = [0];
    while text.len() < N {
        SystemRandom::new()
            .fill(&mut byte)
            .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
        // 252 is the largest multiple of 36: what is above would make some likelier.
        if byte[0] < 252 {
            text.push(char::from(ALPHABET[usize::from(byte[0] % 36)]));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_a_number_and_a_unit() {
        let check = |text: &str, expected: Option<i64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), expected, "{text:?}");
        };
        check("24h", Some(86_400));
        check("90s", Some(90));
        check("7d", Some(604_800));
        check("0", Some(0));
        check("0h", None);
        check("-1h", None);
        check("", None);
        check("h", None);
        check("1y", None);
        check("1µ", None);
        check("9223372036854775807d", None);
    }
}
