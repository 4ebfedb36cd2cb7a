//! `ps`, `describe`, `logs`, `top`: what kubectl would print.

use super::client::{Client, encode};
use super::{Output, PodName, table};
use anyhow::{Context, Result, bail};
use hyper::Method;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Pod};
use serde_json::Value;
use std::fmt::Write;
use std::time::Duration;

fn heading(wide: bool) -> Vec<String> {
    let mut row = vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if wide {
        row.extend(["IP", "IMAGES"]);
    }
    row.into_iter().map(String::from).collect()
}

pub(super) async fn ps(
    client: &Client,
    name: Option<String>,
    namespace: Option<String>,
    output: Option<Output>,
    watch: bool,
) -> Result<()> {
    let wanted = |pod: &Pod| {
        name.as_ref()
            .is_none_or(|n| pod.metadata.name.as_deref() == Some(n.strip_prefix("pod/").unwrap_or(n)))
            && namespace.as_ref().is_none_or(|n| pod.metadata.namespace.as_deref() == Some(n))
    };
    let wide = output == Some(Output::Wide);
    if watch {
        let mut first = true;
        return client
            .lines(Method::GET, "/pods?watch=1", |line| {
                let change: Value = serde_json::from_slice(line)?;
                let pod: Pod = serde_json::from_value(change["object"].clone())?;
                if !wanted(&pod) {
                    return Ok(true);
                }
                let mut rows = if first { vec![heading(wide)] } else { Vec::new() };
                first = false;
                rows.push(row(&pod, wide));
                table::print(&table::columns(&rows))?;
                Ok(true)
            })
            .await;
    }
    let list = client.get("/pods").await?;
    let pods: Vec<Pod> = serde_json::from_value(list["items"].clone())?;
    let pods: Vec<Pod> = pods.into_iter().filter(wanted).collect();
    if let (Some(name), true) = (&name, pods.is_empty()) {
        bail!("Error from server (NotFound): pods \"{name}\" not found");
    }
    match output {
        Some(Output::Json | Output::Yaml) => {
            let value = match (&name, pods.as_slice()) {
                (Some(_), [one]) => serde_json::to_value(one)?,
                _ => serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": pods}),
            };
            let text = match output {
                Some(Output::Yaml) => serde_saphyr::to_string(&value)?,
                _ => serde_json::to_string_pretty(&value)? + "\n",
            };
            table::print(&text)?;
        }
        Some(Output::Name) => {
            for pod in &pods {
                table::print(&format!("pod/{}\n", pod.metadata.name.as_deref().unwrap_or_default()))?;
            }
        }
        _ if pods.is_empty() => table::print("No resources found\n")?,
        _ => {
            let mut rows = vec![heading(wide)];
            rows.extend(pods.iter().map(|pod| row(pod, wide)));
            table::print(&table::columns(&rows))?;
        }
    }
    Ok(())
}

fn row(pod: &Pod, wide: bool) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.clone()).unwrap_or_default();
    let total = pod.spec.as_ref().map_or(0, |s| s.containers.len());
    let ready = statuses.iter().filter(|s| s.ready).count();
    let restarts: i32 = statuses.iter().map(|s| s.restart_count).sum();
    let mut row = vec![
        text(&pod.metadata.namespace),
        text(&pod.metadata.name),
        format!("{ready}/{total}"),
        status(pod),
        restarts.to_string(),
        created(pod).map_or_else(|| "<unknown>".into(), |at| table::age(since(at))),
    ];
    if wide {
        let ip = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
        row.push(ip.filter(|ip| !ip.is_empty()).unwrap_or_else(|| "<none>".into()));
        let images = pod.spec.iter().flat_map(|s| &s.containers).filter_map(|c| c.image.clone());
        row.push(images.collect::<Vec<_>>().join(","));
    }
    row
}

fn created(pod: &Pod) -> Option<jiff::Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn since(at: jiff::Timestamp) -> i64 {
    jiff::Timestamp::now().as_second() - at.as_second()
}

/// The STATUS column: pkg/printers/internalversion, `printPod`.
fn status(pod: &Pod) -> String {
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

async fn one(client: &Client, name: &PodName) -> Result<Pod> {
    let list = client.get("/pods").await?;
    let pods: Vec<Pod> = serde_json::from_value(list["items"].clone())?;
    let found = pods.into_iter().find(|p| {
        p.metadata.name.as_deref() == Some(name.bare())
            && p.metadata.namespace.as_deref() == Some(&name.namespace)
    });
    found.with_context(|| format!("Error from server (NotFound): pods \"{}\" not found", name.bare()))
}

pub(super) async fn describe(client: &Client, name: &PodName) -> Result<()> {
    let pod = one(client, name).await?;
    let events: Vec<Event> = serde_json::from_value(client.get("/events").await?["items"].clone())?;
    let mut out = String::new();
    render(&mut out, &pod, &events).context("format the description")?;
    Ok(table::print(&out)?)
}

fn render(out: &mut String, pod: &Pod, events: &[Event]) -> std::fmt::Result {
    let empty = Default::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let map = |map: &Option<std::collections::BTreeMap<String, String>>| {
        let lines: Vec<String> = map.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
        if lines.is_empty() { "<none>".into() } else { lines.join("\n                  ") }
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    writeln!(out, "Name:             {}", text(&pod.metadata.name))?;
    writeln!(out, "Namespace:        {}", text(&pod.metadata.namespace))?;
    writeln!(out, "UID:              {}", text(&pod.metadata.uid))?;
    let start = status.start_time.as_ref().map(|t| t.0.to_string());
    writeln!(out, "Start Time:       {}", start.unwrap_or_else(|| "<unknown>".into()))?;
    writeln!(out, "Labels:           {}", map(&pod.metadata.labels))?;
    writeln!(out, "Annotations:      {}", map(&pod.metadata.annotations))?;
    writeln!(out, "Status:           {}", self::status(pod))?;
    for (label, value) in [("Reason:  ", &status.reason), ("Message: ", &status.message)] {
        if let Some(value) = value {
            writeln!(out, "{label}         {value}")?;
        }
    }
    writeln!(out, "IP:               {}", text(&status.pod_ip))?;
    let spec = pod.spec.clone().unwrap_or_default();
    let inits = spec.init_containers.clone().unwrap_or_default();
    for (title, containers, statuses) in [
        ("Init Containers", &inits, &status.init_container_statuses),
        ("Containers", &spec.containers, &status.container_statuses),
    ] {
        if containers.is_empty() {
            continue;
        }
        writeln!(out, "{title}:")?;
        for container in containers {
            writeln!(out, "  {}:", container.name)?;
            let known = statuses.iter().flatten().find(|s| s.name == container.name);
            if let Some(known) = known {
                writeln!(out, "    Container ID:   {}", text(&known.container_id))?;
            }
            writeln!(out, "    Image:          {}", text(&container.image))?;
            if let Some(known) = known {
                writeln!(out, "    Image ID:       {}", known.image_id)?;
                describe_state(out, known)?;
            }
        }
    }
    writeln!(out, "Conditions:\n  Type                        Status")?;
    for condition in status.conditions.iter().flatten() {
        writeln!(out, "  {:<27} {}", condition.type_, condition.status)?;
    }
    writeln!(out, "QoS Class:        {}", text(&status.qos_class))?;
    let mine: Vec<&Event> = events.iter().filter(|e| e.involved_object.uid == pod.metadata.uid).collect();
    if mine.is_empty() {
        return writeln!(out, "Events:           <none>");
    }
    let mut rows = vec![["  Type", "Reason", "Age", "From", "Message"].map(String::from).to_vec()];
    for event in mine {
        let age = event.last_timestamp.as_ref().map_or_else(String::new, |t| table::age(since(t.0)));
        let count = event.count.filter(|n| *n > 1).map_or_else(String::new, |n| format!(" (x{n})"));
        let from = event.source.as_ref().and_then(|s| s.component.clone()).unwrap_or_default();
        let message = text(&event.message);
        rows.push(vec![
            format!("  {}", text(&event.type_)),
            text(&event.reason),
            age + &count,
            from,
            message,
        ]);
    }
    write!(out, "Events:\n{}", table::columns(&rows))
}

fn describe_state(out: &mut String, known: &ContainerStatus) -> std::fmt::Result {
    for (title, state) in [("State:      ", &known.state), ("Last State: ", &known.last_state)] {
        let Some(ContainerState { running, terminated, waiting }) = state else { continue };
        if let Some(running) = running {
            writeln!(out, "    {title}    Running")?;
            if let Some(at) = &running.started_at {
                writeln!(out, "      Started:      {}", at.0)?;
            }
        }
        if let Some(waiting) = waiting {
            writeln!(
                out,
                "    {title}    Waiting\n      Reason:       {}",
                waiting.reason.clone().unwrap_or_default()
            )?;
            if let Some(message) = &waiting.message {
                writeln!(out, "      Message:      {message}")?;
            }
        }
        if let Some(ended) = terminated {
            writeln!(
                out,
                "    {title}    Terminated\n      Reason:       {}",
                ended.reason.clone().unwrap_or_default()
            )?;
            if let Some(message) = ended.message.as_ref().filter(|m| !m.is_empty()) {
                writeln!(out, "      Message:      {message}")?;
            }
            writeln!(out, "      Exit Code:    {}", ended.exit_code)?;
        }
    }
    writeln!(out, "    Ready:          {}", if known.ready { "True" } else { "False" })?;
    writeln!(out, "    Restart Count:  {}", known.restart_count)
}

/// Flags of `logs`.
pub(super) struct LogFlags {
    pub container: Option<String>,
    pub follow: bool,
    pub previous: bool,
    pub tail: i64,
    pub since: Option<String>,
    pub timestamps: bool,
}

pub(super) async fn logs(client: &Client, name: &PodName, flags: &LogFlags) -> Result<()> {
    let container = match &flags.container {
        Some(container) => container.clone(),
        None => {
            let pod = one(client, name).await?;
            let first = pod.spec.and_then(|s| s.containers.into_iter().next()).map(|c| c.name);
            first.context("the pod has no container")?
        }
    };
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
    let (namespace, pod) = (encode(&name.namespace), encode(name.bare()));
    let path = format!("/containerLogs/{namespace}/{pod}/{}?{}", encode(&container), query.join("&"));
    client
        .lines(Method::GET, &path, |line| {
            use std::io::Write as _;
            let mut out = std::io::stdout().lock();
            out.write_all(line).and_then(|()| out.flush())?;
            Ok(true)
        })
        .await
}

/// Go's durations as far as people write them: `90s`, `1h30m`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?} is not a duration such as 5s, 2m or 3h");
    let (mut total, mut number) = (0_u64, String::new());
    for character in text.chars() {
        if character.is_ascii_digit() {
            number.push(character);
            continue;
        }
        let unit = match character {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => bail!(wrong()),
        };
        let count: u64 = number.parse().with_context(wrong)?;
        total = count.checked_mul(unit).and_then(|s| total.checked_add(s)).with_context(wrong)?;
        number.clear();
    }
    if number.is_empty() && !text.is_empty() { Ok(Duration::from_secs(total)) } else { bail!(wrong()) }
}

pub(super) async fn top(client: &Client) -> Result<()> {
    /// Between the two readings that a rate needs.
    const WINDOW: Duration = Duration::from_secs(1);
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
        let uid = text("uid");
        let spent = used(&second, &uid).zip(used(&first, &uid)).map_or(0, |(b, a)| b.saturating_sub(a));
        let millis = u128::from(spent) / WINDOW.as_micros();
        let memory = pod["memory"]["workingSetBytes"].as_u64().unwrap_or(0) >> 20;
        rows.push(vec![text("namespace"), text("name"), format!("{millis}m"), format!("{memory}Mi")]);
    }
    if rows.len() == 1 {
        return Ok(table::print("No resources found\n")?);
    }
    Ok(table::print(&table::columns(&rows))?)
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
        check("", None);
        check("5", None);
        check("5d", None);
        check("s", None);
        check("99999999999999999999h", None);
    }
}
