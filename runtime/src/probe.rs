//! One run of a probe: exec, HTTP GET or TCP connect, with the kubelet's verdicts and wording.

mod http;

use crate::board::Board;
use crate::shim_client::ShimClient;
use coracle_pod::observed::{InstanceId, ProbeKind};
use coracle_pod::spec::{ContainerSpec, PodSpec, Probe, ProbeAction};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// What is probed.
#[derive(Debug)]
pub struct Target<'a> {
    /// The pod.
    pub pod: &'a PodSpec,
    /// The container.
    pub container: &'a ContainerSpec,
    /// Its running instance.
    pub instance: &'a InstanceId,
    /// The pod's addresses.
    pub ips: &'a [IpAddr],
}

/// Runs the probe once, within its own timeout: the verdict, and a message for the event when it failed.
pub async fn run(
    board: &Arc<Board>,
    target: &Target<'_>,
    kind: ProbeKind,
    shim: &ShimClient,
) -> (bool, String) {
    let container = target.container;
    let probe = match kind {
        ProbeKind::Startup => &container.startup,
        ProbeKind::Readiness => &container.readiness,
        ProbeKind::Liveness => &container.liveness,
    };
    let Some(probe) = probe else { return (true, String::new()) };
    let verdict = match &probe.action {
        ProbeAction::Exec { command } => exec(board, target, command, probe.timeout, shim).await,
        ProbeAction::TcpSocket { host, port } => {
            within(probe, connect(host.as_deref(), *port, target.ips)).await.map(|_| ())
        }
        ProbeAction::HttpGet { https, host, port, path, headers } => {
            let request = http::get(*https, host.as_deref(), *port, path, headers, target.ips);
            let scheme = if *https { "https" } else { "http" };
            within(probe, request).await.map_err(|e| match e.contains("statuscode") {
                true => e,
                false => format!("Get \"{scheme}://:{port}{path}\": {e}"),
            })
        }
    };
    match verdict {
        Ok(()) => (true, String::new()),
        Err(message) => (false, message),
    }
}

async fn within<T>(probe: &Probe, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(probe.timeout, work).await {
        Ok(result) => result,
        Err(_) => Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into()),
    }
}

async fn connect(host: Option<&str>, port: u16, ips: &[IpAddr]) -> Result<TcpStream, String> {
    let own = ips.first().map_or_else(|| "127.0.0.1".into(), ToString::to_string);
    let host = host.map_or(own, String::from);
    TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))
}

async fn exec(
    board: &Arc<Board>,
    target: &Target<'_>,
    command: &[String],
    timeout: Duration,
    shim: &ShimClient,
) -> Result<(), String> {
    let output = crate::exec::output(board, target.pod, target.instance, command, shim, timeout).await?;
    match output.code {
        Some(0) => Ok(()),
        Some(_) => Err(output.text),
        None => Err(format!("command timed out: {command:?} timed out after {}s", timeout.as_secs())),
    }
}
