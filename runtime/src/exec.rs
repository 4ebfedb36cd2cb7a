//! A process in a running container: from the container's own OCI document to the helper's order.

use crate::board::Board;
use crate::layout::instance_name;
use crate::oci;
use crate::rt::exec::{EXEC_FAILED, ExecProcess, start_ticks};
use crate::rt::{DROP_CAPABILITIES, FILTER};
use crate::shim_client::{Execed, ShimClient};
use coracle_pod::observed::InstanceId;
use coracle_pod::spec::PodSpec;
use coracle_shim::wire::Phase;
use oci_spec::runtime::Spec;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// Bytes kept of what a probe prints: the kubelet's bound.
const OUTPUT_BYTES_MAX: u64 = 10 * 1024;

/// What a finished command printed, and its exit code; `None` when it was killed for taking too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// 0–255; 128 + signal.
    pub code: Option<i32>,
    /// Standard output and error together, cut to a bound.
    pub text: String,
}

/// A process that was not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The command is not there (127), or cannot be run (126): a shell's exit codes for it.
    #[error("{message}")]
    Command {
        /// 126 or 127.
        code: i32,
        /// One line.
        message: String,
    },
    /// Anything else: the container does not run, its shim does not answer. One line.
    #[error("{0}")]
    Other(String),
}

impl StartError {
    /// From the helper's words for it.
    fn of(message: String) -> StartError {
        match message.strip_prefix(EXEC_FAILED) {
            None => StartError::Other(message),
            Some(why) => {
                let missing = ["no such file or directory", "not found in $PATH"];
                let code = if missing.iter().any(|end| why.ends_with(end)) { 127 } else { 126 };
                StartError::Command { code, message }
            }
        }
    }
}

impl From<String> for StartError {
    fn from(message: String) -> StartError {
        StartError::Other(message)
    }
}

/// Starts `command` in an instance, with its identity, filter, capabilities and cgroups.
///
/// # Errors
/// The container does not run, or the command does not exist in it.
pub async fn start(
    board: &Arc<Board>,
    pod: &PodSpec,
    instance: &InstanceId,
    command: &[String],
    shim: &ShimClient,
    stdio: Option<[OwnedFd; 3]>,
) -> Result<Execed, StartError> {
    let name = instance_name(instance);
    let states = shim.state().await.map_err(|e| e.to_string())?;
    let running = states.into_iter().find(|s| s.instance == name).map(|s| s.phase);
    let Some(Phase::Running(running)) = running else {
        return Err(format!("container not found or not running (\"{}\")", instance.container).into());
    };
    let bundle = board.settings().layout.bundle(&pod.uid, instance);
    let spec = Spec::load(bundle.join("config.json")).map_err(|e| format!("the container's bundle: {e}"))?;
    let filter = bundle.join(FILTER);
    let mut order = process(&spec, command, stdio.is_none())
        .ok_or_else(|| "the container's bundle has no process".to_string())?;
    order.pid = running.pid;
    order.pid_start_ticks =
        if running.start_ticks == 0 { start_ticks(running.pid).unwrap_or(0) } else { running.start_ticks };
    order.seccomp = filter.exists().then_some(filter);
    order.cgroup_procs = board.tree().instance_procs(&pod.uid, pod.qos, instance);
    let file =
        in_memory(&serde_json::to_vec(&order).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    shim.exec(&name, file.into(), stdio).await.map_err(|e| StartError::of(e.to_string()))
}

/// Runs `command` to its end, or kills it after `timeout`.
pub async fn output(
    board: &Arc<Board>,
    pod: &PodSpec,
    instance: &InstanceId,
    command: &[String],
    shim: &ShimClient,
    timeout: Duration,
) -> Result<Output, String> {
    let text = |e: std::io::Error| e.to_string();
    let (read, write) = std::io::pipe().map_err(text)?;
    let null = File::open("/dev/null").map_err(text)?;
    let both = write.try_clone().map_err(text)?;
    let stdio = [null.into(), write.into(), both.into()];
    let execed = start(board, pod, instance, command, shim, Some(stdio)).await.map_err(|e| e.to_string())?;
    let reader = tokio::net::unix::pipe::Receiver::from_owned_fd(read.into()).map_err(text)?;
    let mut bytes = Vec::new();
    let mut limited = reader.take(OUTPUT_BYTES_MAX);
    let exec = execed.exec;
    let run = async {
        // What it prints beyond the bound is not read: the command then blocks, and the timeout ends it.
        let (_, code) = tokio::join!(limited.read_to_end(&mut bytes), execed.exit);
        code.map_err(|_| "the pod's shim has ended".to_string())
    };
    let code = match tokio::time::timeout(timeout, run).await {
        Ok(code) => Some(code?),
        Err(_) => {
            if let Err(error) = shim.signal_exec(exec, libc::SIGKILL).await {
                tracing::debug!(%error, "a command that took too long had already ended");
            }
            None
        }
    };
    Ok(Output { code, text: String::from_utf8_lossy(&bytes).into_owned() })
}

/// The order for the helper, as far as the container's document tells.
fn process(spec: &Spec, command: &[String], terminal: bool) -> Option<ExecProcess> {
    let own = spec.process().as_ref()?;
    let dropped =
        spec.annotations().as_ref().and_then(|a| a.get(DROP_CAPABILITIES)).cloned().unwrap_or_default();
    let dropped: Vec<&str> = dropped.split(',').filter_map(|c| c.strip_prefix("CAP_")).collect();
    let held = own.capabilities().as_ref().and_then(|c| c.bounding().clone()).unwrap_or_default();
    let names: Vec<String> = held.iter().map(|c| format!("{c}")).collect();
    let names: Vec<&str> =
        names.iter().map(|n| n.strip_prefix("CAP_").unwrap_or(n)).filter(|n| !dropped.contains(n)).collect();
    let mut env = own.env().clone().unwrap_or_default();
    if terminal && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    Some(ExecProcess {
        pid: 0,
        pid_start_ticks: 0,
        args: command.to_vec(),
        env,
        cwd: own.cwd().to_string_lossy().into_owned(),
        uid: own.user().uid(),
        gid: own.user().gid(),
        groups: own.user().additional_gids().clone().unwrap_or_default(),
        capabilities: oci::capability_mask(&names),
        no_new_privs: own.no_new_privileges().unwrap_or(false),
        seccomp: None,
        cgroup_procs: Vec::new(),
    })
}

fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"exec", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_has_a_shells_exit_code() {
        let check = |message: &str, expected: Option<i32>| {
            let found = match StartError::of(message.into()) {
                StartError::Command { code, .. } => Some(code),
                StartError::Other(_) => None,
            };
            assert_eq!(found, expected, "{message}");
        };
        check("exec: \"/no\": stat /no: no such file or directory", Some(127));
        check("exec: \"no\": executable file not found in $PATH", Some(127));
        check("exec: \"/etc\": stat /etc: is a directory", Some(126));
        check("exec: \"/bad\": Exec format error", Some(126));
        check("cannot exec in a stopped container", None);
    }
}
