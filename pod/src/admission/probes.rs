//! Probes: exactly one handler, thresholds, and defaults as `SetDefaults_Probe` sets them.

use super::field::{Errors, Path, Problem, Shown};
use super::names;
use crate::spec::{ContainerPort, Probe, ProbeAction, Protocol};
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;

const PERIOD_SECONDS: i32 = 10;
const TIMEOUT_SECONDS: i32 = 1;
const SUCCESS_THRESHOLD: i32 = 1;
const FAILURE_THRESHOLD: i32 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Liveness,
    Readiness,
    Startup,
}

pub(crate) fn probe(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&v1::Probe>,
    ports: &[ContainerPort],
    purpose: Purpose,
) -> Option<Probe> {
    let v1::Probe {
        exec,
        failure_threshold,
        grpc,
        http_get,
        initial_delay_seconds,
        period_seconds,
        success_threshold,
        tcp_socket,
        termination_grace_period_seconds,
        timeout_seconds,
    } = wire?;

    errors.unsupported(grpc.is_some(), &path.child("grpc"));
    let mut actions = Vec::new();
    let mut handler = |errors: &mut Errors, name: &str, action: Option<ProbeAction>| {
        if let Some(action) = action {
            if !actions.is_empty() {
                errors.forbidden(&path.child(name), "may not specify more than 1 handler type");
            }
            actions.push(action);
        }
    };
    let action = exec.as_ref().map(|exec| exec_action(errors, &path.child("exec"), exec));
    handler(errors, "exec", action);
    let action = http_get.as_ref().map(|get| http_action(errors, &path.child("httpGet"), get, ports));
    handler(errors, "httpGet", action);
    let action = tcp_socket.as_ref().map(|tcp| tcp_action(errors, &path.child("tcpSocket"), tcp, ports));
    handler(errors, "tcpSocket", action);
    if actions.is_empty() && grpc.is_none() {
        errors.required(path, "must specify a handler type");
    }

    // The API server's defaulting: zero is "not set" for all but the delay.
    let mut number = |name: &str, value: Option<i32>, default: i32| {
        let value = value.filter(|value| *value != 0).unwrap_or(default);
        errors.in_range::<u32>(&path.child(name), value.into(), 0, i64::MAX).unwrap_or_default()
    };
    let initial_delay = number("initialDelaySeconds", *initial_delay_seconds, 0);
    let timeout = number("timeoutSeconds", *timeout_seconds, TIMEOUT_SECONDS);
    let period = number("periodSeconds", *period_seconds, PERIOD_SECONDS);
    let successes = number("successThreshold", *success_threshold, SUCCESS_THRESHOLD);
    let failures = number("failureThreshold", *failure_threshold, FAILURE_THRESHOLD);
    if purpose != Purpose::Readiness && successes > 1 {
        errors.invalid(&path.child("successThreshold"), &i64::from(successes), "must be 1");
    }
    let grace_path = path.child("terminationGracePeriodSeconds");
    let termination_grace = termination_grace_period_seconds.and_then(|seconds| {
        if purpose == Purpose::Readiness {
            errors.invalid(&grace_path, &seconds, "must not be set for readinessProbes");
            None
        } else {
            errors.in_range::<u64>(&grace_path, seconds, 1, i64::MAX).map(Duration::from_secs)
        }
    });
    Some(Probe {
        action: actions.into_iter().next()?,
        initial_delay: Duration::from_secs(initial_delay.into()),
        timeout: Duration::from_secs(timeout.into()),
        period: Duration::from_secs(period.into()),
        success_threshold: successes,
        failure_threshold: failures,
        termination_grace,
    })
}

fn exec_action(errors: &mut Errors, path: &Path, wire: &v1::ExecAction) -> ProbeAction {
    let command = wire.command.clone().unwrap_or_default();
    let path = path.child("command");
    if command.is_empty() {
        errors.required(&path, "");
    }
    for (index, word) in command.iter().enumerate() {
        names::no_nul(errors, &path.index(index), word);
    }
    ProbeAction::Exec { command }
}

fn http_action(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::HTTPGetAction,
    ports: &[ContainerPort],
) -> ProbeAction {
    let schemes = [("HTTP", false), ("HTTPS", true)];
    let https = errors.one_of(&path.child("scheme"), wire.scheme.as_deref(), false, &schemes);
    let mut headers = Vec::new();
    for (index, header) in wire.http_headers.iter().flatten().enumerate() {
        let name_path = path.child("httpHeaders").index(index).child("name");
        if !is_header_name(&header.name) {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
            errors.invalid(&name_path, &header.name, detail);
        }
        if header.value.contains(['\r', '\n', '\0']) {
            let path = path.child("httpHeaders").index(index).child("value");
            errors.invalid(&path, &header.value, "must not contain a line break or a NUL character");
        }
        headers.push((header.name.clone(), header.value.clone()));
    }
    let target = wire.path.clone().filter(|target| !target.is_empty()).unwrap_or_else(|| "/".to_owned());
    if target.contains(|c: char| c.is_ascii_control() || c == ' ') {
        errors.invalid(&path.child("path"), &target, "must not contain a space or a control character");
    }
    let target = if target.starts_with('/') { target } else { format!("/{target}") };
    ProbeAction::HttpGet {
        https,
        host: host(errors, &path.child("host"), wire.host.as_deref()),
        port: port(errors, &path.child("port"), &wire.port, ports),
        path: target,
        headers,
    }
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn tcp_action(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::TCPSocketAction,
    ports: &[ContainerPort],
) -> ProbeAction {
    ProbeAction::TcpSocket {
        host: host(errors, &path.child("host"), wire.host.as_deref()),
        port: port(errors, &path.child("port"), &wire.port, ports),
    }
}

fn host(errors: &mut Errors, path: &Path, wire: Option<&str>) -> Option<String> {
    let host = wire.filter(|host| !host.is_empty())?;
    if host.contains(|c: char| c.is_ascii_control() || c == ' ' || c == '/') {
        errors.invalid(path, host, "must be an IP address or a host name");
    }
    Some(host.to_owned())
}

/// The port's number; a name is looked up among the container's TCP ports.
fn port(errors: &mut Errors, path: &Path, wire: &IntOrString, ports: &[ContainerPort]) -> u16 {
    match wire {
        IntOrString::Int(number) => errors.in_range(path, (*number).into(), 1, 65535).unwrap_or_default(),
        IntOrString::String(name) => {
            let named =
                |port: &&ContainerPort| port.name.as_ref() == Some(name) && port.protocol == Protocol::Tcp;
            // The kubelet also takes a number written as a string.
            let number = ports
                .iter()
                .find(named)
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok().filter(|number| *number > 0));
            number.unwrap_or_else(|| {
                errors.push(path, Problem::NotFound(name.shown()));
                0
            })
        }
    }
}
