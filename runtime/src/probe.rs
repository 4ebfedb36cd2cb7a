//! One run of a probe: exec, HTTP GET or TCP connect, with the kubelet's verdicts and wording.

mod http;

use crate::board::Board;
use crate::shim_client::ShimClient;
use coracle_pod::observed::{InstanceId, ProbeKind, Verdict};
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

/// Runs the probe once, within its own timeout.
pub async fn run(board: &Arc<Board>, target: &Target<'_>, kind: ProbeKind, shim: &ShimClient) -> Verdict {
    let container = target.container;
    let probe = match kind {
        ProbeKind::Startup => &container.startup,
        ProbeKind::Readiness => &container.readiness,
        ProbeKind::Liveness => &container.liveness,
    };
    let Some(probe) = probe else { return Verdict::Success };
    let own = || target.ips.first().map_or_else(|| "127.0.0.1".into(), ToString::to_string);
    match &probe.action {
        ProbeAction::Exec { command } => verdict(exec(board, target, command, probe.timeout, shim).await),
        ProbeAction::TcpSocket { host, port } => {
            let host = host.clone().unwrap_or_else(own);
            verdict(within(probe, connect(&host, *port)).await.and_then(|connected| connected).map(drop))
        }
        ProbeAction::HttpGet { https, host, port, path, headers } => {
            let host = host.clone().unwrap_or_else(own);
            let first = http::Place { https: *https, host, port: *port, path: path.clone() };
            let scheme = if *https { "https" } else { "http" };
            match within(probe, http::get(&first, headers)).await.unwrap_or_else(Verdict::Failure) {
                Verdict::Failure(e) if !e.contains("statuscode") => {
                    Verdict::Failure(format!("Get \"{scheme}://:{port}{path}\": {e}"))
                }
                verdict => verdict,
            }
        }
    }
}

fn verdict(result: Result<(), String>) -> Verdict {
    result.map_or_else(Verdict::Failure, |()| Verdict::Success)
}

async fn within<T>(probe: &Probe, work: impl Future<Output = T>) -> Result<T, String> {
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    tokio::time::timeout(probe.timeout, work).await.map_err(|_| late.into())
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))
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
