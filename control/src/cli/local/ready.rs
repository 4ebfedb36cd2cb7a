//! Waiting for what was started: by what it says itself (sd_notify(3)), by watches of the API, and by its end.

use super::place::Place;
use crate::cli::client::{Client, Events};
use anyhow::{Context, Result, bail};
use hyper::Method;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixDatagram;
use tokio::process::Child;

/// For all of it. What is well takes a hundredth of it; a machine that swaps may take some of it.
pub const PATIENCE: Duration = Duration::from_secs(120);
const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
/// Of a log that is read for its last line.
const TAIL_BYTES_MAX: i64 = 4 << 10;

/// Where what was started says that it is ready.
pub struct Notified {
    socket: UnixDatagram,
    pub path: PathBuf,
}

impl Notified {
    pub fn bind(place: &Place) -> Result<Notified> {
        let path = place.notify();
        remove(&path)?;
        let socket = UnixDatagram::bind(&path).with_context(|| path.display().to_string())?;
        Ok(Notified { socket, path })
    }

    /// Until `READY=1` has come, or the process has ended: then why, by its log.
    pub async fn ready(&self, child: &mut Child, what: &str, log: &Path) -> Result<()> {
        let said = async {
            let mut bytes = [0; 4096];
            loop {
                let length = self.socket.recv(&mut bytes).await?;
                if bytes[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return std::io::Result::Ok(());
                }
            }
        };
        tokio::select! {
            said = said => Ok(said?),
            ended = child.wait() => bail!("{what} ended ({}): {}", ended?, last_line(log)),
            () = tokio::time::sleep(PATIENCE) => bail!("{what} is not ready; see {}", log.display()),
        }
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, "a socket stays");
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// The last line of a log, without what colours and times there are before the words.
pub fn last_line(log: &Path) -> String {
    let mut text = Vec::new();
    let read = fs::File::open(log).and_then(|mut file| {
        let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length.min(TAIL_BYTES_MAX)))?;
        file.read_to_end(&mut text)
    });
    let text = String::from_utf8_lossy(&text).into_owned();
    match (read, text.lines().rfind(|line| !line.trim().is_empty())) {
        (Err(error), _) => format!("{}: {error}", log.display()),
        (_, None) => format!("{} is empty", log.display()),
        (_, Some(line)) => line.trim_start_matches("error: ").to_string(),
    }
}

/// What the API knows of each node: whether it is ready, and when it last gave a sign of life.
#[derive(Clone, Debug, Default)]
pub struct Nodes(BTreeMap<String, Node>);

#[derive(Clone, Debug, Default)]
struct Node {
    ready: bool,
    renewed: Option<String>,
}

impl Nodes {
    /// As it is now.
    pub async fn now(client: &mut Client) -> Result<Nodes> {
        let mut nodes = Nodes::default();
        for path in [NODES, LEASES] {
            let list = client.ask(Method::GET, path, None).await?;
            list["items"].as_array().into_iter().flatten().for_each(|object| nodes.see(path, object));
        }
        Ok(nodes)
    }

    fn see(&mut self, path: &str, object: &Value) {
        let Some(name) = object.pointer("/metadata/name").and_then(Value::as_str) else { return };
        let node = self.0.entry(name.into()).or_default();
        if path == LEASES {
            node.renewed = object.pointer("/spec/renewTime").and_then(Value::as_str).map(String::from);
        } else {
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let is_ready = |of: &Value| of["type"] == "Ready" && of["status"] == "True";
            node.ready = conditions.is_some_and(|list| list.iter().any(is_ready));
        }
    }

    /// Whether a node is ready, and not only since it was so before: it has given a sign of life since.
    fn is_back(&self, name: &str, before: &Nodes) -> bool {
        let renewed = |nodes: &Nodes| nodes.0.get(name).and_then(|node| node.renewed.clone());
        self.0.get(name).is_some_and(|node| node.ready)
            && renewed(self).is_some()
            && renewed(self) != renewed(before)
    }
}

/// A watch that begins with everything.
async fn watch(kubeconfig: &Path, path: &str) -> Result<Events> {
    Client::connect(kubeconfig).await?.watch(&format!("{path}?watch=1")).await
}

/// Until each of the nodes is ready anew, telling of each; or one of the agents has ended.
pub async fn nodes(
    kubeconfig: &Path,
    before: &Nodes,
    mut missing: Vec<String>,
    agents: &mut [(String, PathBuf, Child)],
    mut tell: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let mut nodes = Nodes::default();
    let (mut objects, mut leases) = (watch(kubeconfig, NODES).await?, watch(kubeconfig, LEASES).await?);
    let end = tokio::time::sleep(PATIENCE);
    tokio::pin!(end);
    while !missing.is_empty() {
        let ended = std::future::poll_fn(|context| {
            for (name, log, agent) in agents.iter_mut() {
                let wait = std::pin::pin!(agent.wait());
                if let std::task::Poll::Ready(status) = wait.poll(context) {
                    return std::task::Poll::Ready((name.clone(), log.clone(), status));
                }
            }
            std::task::Poll::Pending
        });
        let (path, event) = tokio::select! {
            event = objects.next() => (NODES, event?),
            event = leases.next() => (LEASES, event?),
            (name, log, status) = ended => {
                bail!("the agent of {name} ended ({}): {}", status?, last_line(&log))
            }
            () = &mut end => bail!("not ready: {}", missing.join(", ")),
        };
        nodes.see(path, &event["object"]);
        let (back, rest): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|name| nodes.is_back(name, before));
        back.iter().try_for_each(|name| tell(name))?;
        missing = rest;
    }
    Ok(())
}
