//! `describe`: one pod in full, laid out as kubectl does.

use super::PodNames;
use super::client::Client;
use super::pods::{all, names, not_found, since, status};
use super::table;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Event, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

pub(super) async fn describe(client: &Client, pods: &PodNames) -> Result<()> {
    let wanted = names(&pods.names)?;
    let known = all(client).await?;
    let events: Vec<Event> = client.items("/events").await?;
    let mine = |p: &&Pod| p.metadata.namespace.as_deref() == Some(&pods.namespace);
    let mut chosen = Vec::new();
    if wanted.is_empty() {
        chosen.extend(known.iter().filter(mine));
    }
    for name in &wanted {
        let found = known.iter().filter(mine).find(|p| p.metadata.name.as_ref() == Some(name));
        chosen.push(found.ok_or_else(|| not_found(name))?);
    }
    for (number, pod) in chosen.into_iter().enumerate() {
        let mut out = if number > 0 { "\n\n".to_string() } else { String::new() };
        render(&mut out, pod, &events).context("format the description")?;
        table::print(&out)?;
    }
    Ok(())
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

/// RFC 1123 with a zone, as kubectl writes times.
fn time(at: jiff::Timestamp) -> String {
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}

/// `NAME:` and values below each other, in kubectl's column.
fn field(out: &mut String, name: &str, values: &[String]) -> fmt::Result {
    let none = ["<none>".to_string()];
    let values = if values.is_empty() { &none } else { values };
    for (number, value) in values.iter().enumerate() {
        let label = if number == 0 { format!("{name}:") } else { String::new() };
        writeln!(out, "{label:<16}  {value}")?;
    }
    Ok(())
}

fn pairs(map: Option<&BTreeMap<String, String>>) -> Vec<String> {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v}")).collect()
}

fn render(out: &mut String, pod: &Pod, events: &[Event]) -> fmt::Result {
    let (spec, status) = (pod.spec.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
    let one = |value: String| [value];
    field(out, "Name", &one(text(&pod.metadata.name)))?;
    field(out, "Namespace", &one(text(&pod.metadata.namespace)))?;
    field(out, "UID", &one(text(&pod.metadata.uid)))?;
    let host = status.host_ip.filter(|ip| !ip.is_empty()).map(|ip| format!("/{ip}")).unwrap_or_default();
    field(out, "Node", &one(text(&spec.node_name) + &host))?;
    let start = status.start_time.as_ref().map(|t| time(t.0));
    field(out, "Start Time", &one(start.unwrap_or_else(|| "<unknown>".into())))?;
    field(out, "Labels", &pairs(pod.metadata.labels.as_ref()))?;
    let annotations = pod.metadata.annotations.as_ref();
    let annotations: Vec<String> =
        annotations.into_iter().flatten().map(|(k, v)| format!("{k}: {v}")).collect();
    field(out, "Annotations", &annotations)?;
    if let Some(deleted) = &pod.metadata.deletion_timestamp {
        let ago = table::age(since(deleted.0));
        field(out, "Status", &one(format!("Terminating (lasts {ago})")))?;
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
        field(out, "Termination Grace Period", &one(format!("{grace}s")))?;
    } else {
        field(out, "Status", &one(self::status(pod)))?;
    }
    for (label, value) in [("Reason", &status.reason), ("Message", &status.message)] {
        if let Some(value) = value {
            field(out, label, &one(value.clone()))?;
        }
    }
    field(out, "IP", &one(text(&status.pod_ip)))?;
    let ips: Vec<String> = status.pod_ips.iter().flatten().map(|ip| format!("  IP:  {}", ip.ip)).collect();
    writeln!(out, "IPs:{}", if ips.is_empty() { "  <none>" } else { "" })?;
    ips.iter().try_for_each(|ip| writeln!(out, "{ip}"))?;
    let inits = spec.init_containers.unwrap_or_default();
    for (title, containers, statuses) in [
        ("Init Containers", &inits, &status.init_container_statuses),
        ("Containers", &spec.containers, &status.container_statuses),
    ] {
        if !containers.is_empty() {
            writeln!(out, "{title}:")?;
        }
        for container in containers {
            let known = statuses.iter().flatten().find(|s| s.name == container.name);
            describe_container(out, container, known)?;
        }
    }
    writeln!(out, "Conditions:\n  Type                        Status")?;
    for condition in status.conditions.iter().flatten() {
        writeln!(out, "  {:<27} {}", condition.type_, condition.status)?;
    }
    let volumes = spec.volumes.unwrap_or_default();
    writeln!(out, "Volumes:{}", if volumes.is_empty() { "          <none>" } else { "" })?;
    volumes.iter().try_for_each(|volume| describe_volume(out, volume))?;
    field(out, "QoS Class", &one(text(&status.qos_class)))?;
    describe_events(out, pod, events)
}

fn describe_container(
    out: &mut String,
    container: &Container,
    known: Option<&ContainerStatus>,
) -> fmt::Result {
    writeln!(out, "  {}:", container.name)?;
    let mut line = |label: &str, value: &str| writeln!(out, "    {:<15} {value}", format!("{label}:"));
    if let Some(known) = known {
        line("Container ID", &text(&known.container_id))?;
    }
    line("Image", &text(&container.image))?;
    if let Some(known) = known {
        line("Image ID", &known.image_id)?;
    }
    let list = |values: Vec<String>| if values.is_empty() { "<none>".into() } else { values.join(", ") };
    let ports = || container.ports.iter().flatten();
    let named =
        |port: i32, protocol: &Option<String>| format!("{port}/{}", protocol.as_deref().unwrap_or("TCP"));
    line("Port", &list(ports().map(|p| named(p.container_port, &p.protocol)).collect()))?;
    line("Host Port", &list(ports().map(|p| named(p.host_port.unwrap_or(0), &p.protocol)).collect()))?;
    for (label, words) in [("Command", &container.command), ("Args", &container.args)] {
        if let Some(words) = words {
            writeln!(out, "    {label}:")?;
            words.iter().try_for_each(|word| writeln!(out, "      {}", word.replace('\n', "\n      ")))?;
        }
    }
    if let Some(known) = known {
        describe_state(out, known)?;
    }
    let resources = container.resources.clone().unwrap_or_default();
    for (label, map) in [("Limits", resources.limits), ("Requests", resources.requests)] {
        describe_quantities(out, label, map.as_ref())?;
    }
    let environment: Vec<String> = container
        .env
        .iter()
        .flatten()
        .map(|e| format!("      {}:  {}", e.name, e.value.as_deref().unwrap_or_default()))
        .collect();
    describe_list(out, "Environment", &environment)?;
    let mounts: Vec<String> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| {
            let mode = if m.read_only == Some(true) { "ro" } else { "rw" };
            let path = m.sub_path.as_ref().map(|p| format!(",path=\"{p}\"")).unwrap_or_default();
            format!("      {} from {} ({mode}{path})", m.mount_path, m.name)
        })
        .collect();
    describe_list(out, "Mounts", &mounts)
}

fn describe_list(out: &mut String, label: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return writeln!(out, "    {:<15} <none>", format!("{label}:"));
    }
    writeln!(out, "    {label}:")?;
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn describe_quantities(
    out: &mut String,
    label: &str,
    map: Option<&BTreeMap<String, Quantity>>,
) -> fmt::Result {
    let Some(map) = map.filter(|map| !map.is_empty()) else { return Ok(()) };
    writeln!(out, "    {label}:")?;
    map.iter()
        .try_for_each(|(name, quantity)| writeln!(out, "      {:<11} {}", format!("{name}:"), quantity.0))
}

fn describe_state(out: &mut String, known: &ContainerStatus) -> fmt::Result {
    for (title, state) in [("State:", &known.state), ("Last State:", &known.last_state)] {
        let Some(ContainerState { running, terminated, waiting }) = state else { continue };
        let word = match (running, waiting, terminated) {
            (Some(_), ..) => "Running",
            (_, Some(_), _) => "Waiting",
            (.., Some(_)) => "Terminated",
            _ => continue,
        };
        writeln!(out, "    {title:<15} {word}")?;
        let mut line = |label: &str, value: &str| writeln!(out, "      {:<13} {value}", format!("{label}:"));
        if let Some(at) = running.as_ref().and_then(|running| running.started_at.as_ref()) {
            line("Started", &time(at.0))?;
        }
        if let Some(waiting) = waiting {
            line("Reason", &text(&waiting.reason))?;
            if let Some(message) = &waiting.message {
                line("Message", message)?;
            }
        }
        if let Some(ended) = terminated {
            line("Reason", &text(&ended.reason))?;
            if let Some(message) = ended.message.as_ref().filter(|m| !m.is_empty()) {
                line("Message", message)?;
            }
            line("Exit Code", &ended.exit_code.to_string())?;
            for (label, at) in [("Started", &ended.started_at), ("Finished", &ended.finished_at)] {
                if let Some(at) = at {
                    line(label, &time(at.0))?;
                }
            }
        }
    }
    writeln!(out, "    {:<15} {}", "Ready:", if known.ready { "True" } else { "False" })?;
    writeln!(out, "    {:<15} {}", "Restart Count:", known.restart_count)
}

/// The volume's type is the one field of it that is set besides its name.
fn describe_volume(out: &mut String, volume: &Volume) -> fmt::Result {
    writeln!(out, "  {}:", volume.name)?;
    let value = serde_json::to_value(volume).unwrap_or_default();
    let source = value.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
    let Some((kind, settings)) = source else { return Ok(()) };
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect::<String>())
            .unwrap_or_default()
    };
    writeln!(out, "    {:<11} {}", "Type:", capital(kind))?;
    for (key, value) in settings.as_object().into_iter().flatten() {
        let shown = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        writeln!(out, "    {:<11} {shown}", format!("{}:", capital(key)))?;
    }
    Ok(())
}

fn describe_events(out: &mut String, pod: &Pod, events: &[Event]) -> fmt::Result {
    let mine: Vec<&Event> = events.iter().filter(|e| e.involved_object.uid == pod.metadata.uid).collect();
    if mine.is_empty() {
        return field(out, "Events", &[]);
    }
    let mut rows = vec![["  Type", "Reason", "Age", "From", "Message"].map(String::from).to_vec()];
    rows.push(["  ----", "------", "----", "----", "-------"].map(String::from).to_vec());
    for event in mine {
        let ago = |at: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            at.as_ref().map_or_else(|| "<unknown>".into(), |t| table::age(since(t.0)))
        };
        let age = match event.count.filter(|n| *n > 1) {
            Some(count) => {
                format!("{} (x{count} over {})", ago(&event.last_timestamp), ago(&event.first_timestamp))
            }
            None => ago(&event.last_timestamp),
        };
        let from = event.source.as_ref().and_then(|s| s.component.clone()).unwrap_or_default();
        rows.push(vec![
            format!("  {}", text(&event.type_)),
            text(&event.reason),
            age,
            from,
            text(&event.message),
        ]);
    }
    write!(out, "Events:\n{}", table::columns(&rows))
}
