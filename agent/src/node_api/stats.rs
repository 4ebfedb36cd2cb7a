//! `/metrics` (Prometheus text, the kubelet's names) and `/stats/summary` (the kubelet's JSON, for `coracle top`).

use super::{Context, Response, object, text, typed};
use crate::request::{Refusal, Request};
use coracle_pod::PodSpec;
use coracle_runtime::cgroup::{Pressure, Stall, Usage, pressure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

pub(super) async fn metrics(context: &Context) -> Result<Response, Refusal> {
    let pods = context.ask(Request::Pods).await?;
    let mut out = String::new();
    let mut family = |kind: &str, name: &str, help: &str, lines: &[(String, f64)]| {
        write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("a String takes any text");
        for (labels, value) in lines {
            writeln!(out, "{name}{labels} {value}").expect("a String takes any text");
        }
    };
    let running = pods.iter().filter(|p| phase(p) == "Running").count();
    let containers: usize = pods.iter().map(|p| statuses(p).filter(|runs| *runs).count()).sum();
    family(
        "gauge",
        "kubelet_running_pods",
        "Number of pods that have a running pod sandbox",
        &[(String::new(), running as f64)],
    );
    family(
        "gauge",
        "kubelet_running_containers",
        "Number of containers currently running",
        &[("{container_state=\"running\"}".into(), containers as f64)],
    );
    let (mut cpu, mut memory) = (Vec::new(), Vec::new());
    for pod in &pods {
        let Ok(spec) = PodSpec::from_api(pod) else { continue };
        let Some(usage) = context.board.tree().usage(&context.board.tree().pod_path(&spec.uid, spec.qos))
        else {
            continue;
        };
        let labels = format!("{{namespace=\"{}\",pod=\"{}\"}}", spec.namespace, spec.name);
        cpu.push((labels.clone(), usage.cpu_nanoseconds as f64 / 1e9));
        memory.push((labels, usage.working_set_bytes as f64));
    }
    family(
        "counter",
        "pod_cpu_usage_seconds_total",
        "Cumulative cpu time consumed by the pod in core-seconds",
        &cpu,
    );
    family("gauge", "pod_memory_working_set_bytes", "Current working set of the pod in bytes", &memory);
    let last = context.board.last_start().as_secs_f64();
    family(
        "gauge",
        "coracle_container_start_seconds",
        "From order to running program, of the last container started",
        &[("{quantile=\"last\"}".into(), last)],
    );
    let up = context.started.elapsed().as_secs_f64();
    family(
        "gauge",
        "coracle_agent_uptime_seconds",
        "Seconds since the agent started",
        &[(String::new(), up)],
    );
    let body = text(out).into_body();
    Ok(typed(body, "text/plain; version=0.0.4; charset=utf-8"))
}

pub(super) async fn summary(context: &Context) -> Result<Response, Refusal> {
    let tree = context.board.tree();
    let now = context.board.now().wall.to_string();
    let mut list: Vec<Value> = Vec::new();
    for pod in context.ask(Request::Pods).await? {
        let Ok(spec) = PodSpec::from_api(&pod) else { continue };
        let path = tree.pod_path(&spec.uid, spec.qos);
        let Some(usage) = tree.usage(&path) else { continue };
        let running = started(&pod);
        let containers = tree.container_usage(&path).into_iter().filter_map(|(name, usage)| {
            let mut container = figures(&now, usage);
            container["startTime"] = json!(running.get(name.as_str())?);
            container["name"] = name.into();
            Some(container)
        });
        let mut shown = figures(&now, usage);
        shown["containers"] = containers.collect();
        shown["podRef"] = json!({"name": spec.name, "namespace": spec.namespace, "uid": spec.uid.0});
        shown["startTime"] = json!(pod.status.as_ref().and_then(|status| status.start_time.as_ref()));
        add_pressure(&mut shown, &now, |resource| tree.pressure(&path, resource));
        list.push(shown);
    }
    let mut node = tree.machine_usage().map_or_else(|| json!({}), |usage| figures(&now, usage));
    if let Some(used) = node["memory"]["workingSetBytes"].as_u64() {
        let all = context.board.capacity().memory_bytes;
        node["memory"]["availableBytes"] = all.saturating_sub(used).into();
    }
    node["nodeName"] = context.board.settings().node_name.clone().into();
    add_pressure(&mut node, &now, |resource| pressure(&Path::new("/proc/pressure").join(resource)));
    Ok(object(&json!({"node": node, "pods": list})))
}

/// The figures of `stats/v1alpha1` that do not need two samples.
fn figures(now: &str, usage: Usage) -> Value {
    json!({
        "cpu": {"time": now, "usageCoreNanoSeconds": usage.cpu_nanoseconds},
        "memory": {
            "time": now, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes,
        },
    })
}

/// Since when each container runs; those that do not run use nothing.
fn started(pod: &Pod) -> BTreeMap<&str, Option<&Time>> {
    let status = pod.status.iter();
    let lists = status
        .flat_map(|s| [&s.init_container_statuses, &s.container_statuses, &s.ephemeral_container_statuses]);
    let running = lists.flatten().flatten().filter_map(|container| {
        let running = container.state.as_ref()?.running.as_ref()?;
        Some((container.name.as_str(), running.started_at.as_ref()))
    });
    running.collect()
}

/// `psi` beside each resource's figures, as the kubelet's summary has it (KEP-4205); nothing where the kernel keeps none.
fn add_pressure(figures: &mut Value, now: &str, of: impl Fn(&str) -> Option<Pressure>) {
    let stall = |s: Stall| json!({"total": s.total_microseconds, "avg10": s.avg10, "avg60": s.avg60, "avg300": s.avg300});
    for resource in ["cpu", "memory", "io"] {
        let Some(found) = of(resource) else { continue };
        figures[resource]["time"] = now.into();
        figures[resource]["psi"] = json!({"some": stall(found.some), "full": stall(found.full)});
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether each container runs.
fn statuses(pod: &Pod) -> impl Iterator<Item = bool> {
    let list = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    list.map(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
}
