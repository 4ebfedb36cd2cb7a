//! `logs`: what containers wrote, as it is.

use super::client::{Client, encode};
use super::pods::{default_container, one, one_name};
use anyhow::{Context, Result, bail};
use clap::Args;
use hyper::Method;
use std::io::Write;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Pod, and a container of it.
    #[arg(required = true, num_args = 1..=3, value_names = ["NAME", "CONTAINER"])]
    words: Vec<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Container; the pod's first by default.
    #[arg(short, long, conflicts_with = "all_containers")]
    container: Option<String>,
    /// One after the other, every container's.
    #[arg(long, conflicts_with = "follow")]
    all_containers: bool,
    /// Go on as the log grows.
    #[arg(short, long)]
    follow: bool,
    /// The instance before the current one.
    #[arg(short, long)]
    previous: bool,
    /// Pod and container before each line.
    #[arg(long)]
    prefix: bool,
    /// Only the last N lines.
    #[arg(long, allow_negative_numbers = true, default_value = "-1")]
    tail: i64,
    /// Only lines of this age at most: 5s, 2m, 3h.
    #[arg(long, conflicts_with = "since_time")]
    since: Option<String>,
    /// Only lines after this time: 2006-01-02T15:04:05Z
    #[arg(long)]
    since_time: Option<String>,
    /// Bytes at most.
    #[arg(long)]
    limit_bytes: Option<u64>,
    /// A timestamp before each line.
    #[arg(long)]
    timestamps: bool,
}

pub(super) async fn logs(client: &Client, flags: &Logs) -> Result<()> {
    let (name, rest) = one_name(&flags.words)?;
    let containers = match (rest, &flags.container) {
        ([_, ..], Some(_)) => bail!("only one of -c or an inline [CONTAINER] arg is allowed"),
        ([_, _, ..], _) => bail!("expected a pod and at most one container"),
        ([container], None) => vec![container.clone()],
        ([], Some(container)) => vec![container.clone()],
        ([], None) => {
            let pod = one(client, &flags.namespace, &name).await?;
            if flags.all_containers {
                let spec = pod.spec.unwrap_or_default();
                let inits = spec.init_containers.unwrap_or_default();
                let ephemeral = spec.ephemeral_containers.unwrap_or_default();
                let names = inits.into_iter().chain(spec.containers).map(|c| c.name);
                names.chain(ephemeral.into_iter().map(|c| c.name)).collect()
            } else {
                vec![default_container(&pod)?]
            }
        }
    };
    let query = query(flags)?;
    let (namespace, pod) = (encode(&flags.namespace), encode(&name));
    for container in containers {
        let path = format!("/containerLogs/{namespace}/{pod}/{}?{query}", encode(&container));
        if flags.prefix {
            let prefix = format!("[pod/{name}/{container}] ");
            let show = |line: &[u8]| {
                write([prefix.as_bytes(), line].concat().as_slice())?;
                Ok(true)
            };
            client.lines(Method::GET, &path, show).await?;
        } else {
            // As they come: a line may be long, and need not end.
            client.chunks(Method::GET, &path, write).await?;
        }
    }
    Ok(())
}

fn write(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(bytes).and_then(|()| out.flush())?)
}

fn query(flags: &Logs) -> Result<String> {
    let mut query = Vec::new();
    for (flag, on) in
        [("follow", flags.follow), ("previous", flags.previous), ("timestamps", flags.timestamps)]
    {
        query.extend(on.then(|| format!("{flag}=true")));
    }
    query.extend((flags.tail >= 0).then(|| format!("tailLines={}", flags.tail)));
    if let Some(since) = &flags.since {
        query.push(format!("sinceSeconds={}", duration(since)?.as_secs().max(1)));
    }
    query.extend(flags.since_time.as_ref().map(|time| format!("sinceTime={}", encode(time))));
    query.extend(flags.limit_bytes.map(|bytes| format!("limitBytes={bytes}")));
    Ok(query.join("&"))
}

/// Go's durations as far as people write them: `90s`, `1h30m`, `1.5h`, `500ms`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?} is not a duration such as 5s, 2m or 3h");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => bail!(wrong()),
        };
        total += number.parse::<f64>().with_context(wrong)? * seconds;
        rest = tail;
    }
    // 292 years, where Go's end too.
    if text.is_empty() || total > 9.2e9 { bail!(wrong()) } else { Ok(Duration::from_secs_f64(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), expected, "{text}");
        };
        check("5s", Some(5));
        check("1h30m", Some(5400));
        check("1.5h", Some(5400));
        check("2500ms", Some(2));
        check("", None);
        check("5", None);
        check("5d", None);
        check("s", None);
        check("1.2.3s", None);
        check("99999999999999999999h", None);
    }
}
