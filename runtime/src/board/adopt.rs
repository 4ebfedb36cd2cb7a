//! Finding again what exists: a pod's sandbox, shim and instances, and how those ended.

use super::{Board, Ready, names_in};
use crate::container::About;
use crate::layout::{instance_name, parse_instance};
use crate::shim_client::{ShimClient, ShimEvent};
use coracle_pod::observed::{Cause, Exit, Instance, InstanceId, InstanceState, Sandbox};
use coracle_pod::spec::PodSpec;
use coracle_shim::record::ExitReport;
use coracle_shim::wire::Phase;
use std::collections::BTreeMap;
use std::fs;
use tokio::sync::mpsc;

/// What is found of a pod.
#[derive(Debug)]
pub struct Adopted {
    /// The sandbox as it is.
    pub sandbox: Sandbox,
    /// Every instance that the shim or a record knows.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Anything of it on the board.
    pub residue: bool,
    /// Its shim, if that answers.
    pub shim: Option<(ShimClient, mpsc::Receiver<ShimEvent>)>,
}

impl Board {
    /// Finds again what exists of a pod: its sandbox, its shim, its instances. Changes nothing.
    pub async fn adopt(&self, pod: &PodSpec) -> Adopted {
        let layout = &self.settings.layout;
        let uid = &pod.uid;
        let residue = self.residues().contains(uid);
        let mut instances = self.recorded_exits(pod);
        let run = layout.pod_run(uid);
        let ready: Option<Ready> =
            fs::read(run.join("ready")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let broken = |why: String| Sandbox::Broken { why };
        let Some(ready) = ready else {
            let half = run.exists() || !self.tree.is_clear_of(uid);
            let sandbox = if half { broken("the sandbox is not whole".into()) } else { Sandbox::Absent };
            return Adopted { sandbox, instances, residue, shim: None };
        };
        let (client, events) = match ShimClient::connect(&layout.shim_socket(uid)).await {
            Ok(connection) => connection,
            Err(error) => {
                let sandbox = broken(format!("the pod's shim does not answer: {error}"));
                return Adopted { sandbox, instances, residue, shim: None };
            }
        };
        match client.state().await {
            Ok(states) => {
                for status in states {
                    let Some(id) = parse_instance(&status.instance) else { continue };
                    let state = match &status.phase {
                        Phase::Starting => InstanceState::Created,
                        Phase::Running(run) => {
                            InstanceState::Running { started: self.stamp_of(&run.started, &self.boot.0) }
                        }
                        Phase::Exited { report, .. } => InstanceState::Exited(self.exit(pod, &id, report)),
                    };
                    let About { container_id, image_id, .. } = self.about(uid, &id);
                    instances.insert(id, Instance { state, container_id, image_id });
                }
                let sandbox = Sandbox::Ready { ips: ready.ips, since: ready.since };
                Adopted { sandbox, instances, residue, shim: Some((client, events)) }
            }
            Err(error) => {
                let sandbox = broken(format!("the pod's shim does not tell its state: {error}"));
                Adopted { sandbox, instances, residue, shim: None }
            }
        }
    }

    /// What the shims of a pod, dead ones too, have written down.
    fn recorded_exits(&self, pod: &PodSpec) -> BTreeMap<InstanceId, Instance> {
        let uid = &pod.uid;
        let dir = self.settings.layout.pod_data(uid).join("exits");
        let mut found = BTreeMap::new();
        for id in names_in(&dir).iter().filter_map(|name| parse_instance(name)) {
            match ExitReport::read(&self.settings.layout.exit_record(uid, &id)) {
                Ok(Some(report)) => {
                    let About { container_id, image_id, .. } = self.about(uid, &id);
                    let state = InstanceState::Exited(self.exit(pod, &id, &report));
                    found.insert(id, Instance { state, container_id, image_id });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(uid = uid.0, instance = instance_name(&id), %error, "exit record left out")
                }
            }
        }
        found
    }

    /// An exit report as the core sees it, with the message that the container's policy asks for. Blocking, briefly.
    pub fn exit(&self, pod: &PodSpec, instance: &InstanceId, report: &ExitReport) -> Exit {
        let mut all = pod.all_containers();
        let from_logs = all.any(|c| c.name == instance.container && c.termination_message_from_logs);
        let message = if from_logs && report.code != 0 && report.message.is_empty() {
            self.last_log_lines(pod, instance)
        } else {
            report.message.clone()
        };
        Exit {
            code: report.code,
            signal: report.signal,
            cause: if report.oom_killed { Cause::OutOfMemory } else { Cause::Process },
            started: Some(self.stamp_of(&report.started, &report.boot_id)),
            finished: self.stamp_of(&report.finished, &report.boot_id),
            message,
        }
    }

    /// The last lines of an instance's log, for `terminationMessagePolicy: FallbackToLogsOnError`: 80 lines and 2048
    /// bytes at most, as the kubelet takes. Blocking, briefly.
    fn last_log_lines(&self, pod: &PodSpec, instance: &InstanceId) -> String {
        const LINES: u64 = 80;
        const BYTES: usize = 2048;
        let dir = self.settings.layout.logs_of(pod).join(&instance.container);
        // A container that wrote nothing has no log.
        let mut text = crate::log::last_lines(&dir, instance.attempt, LINES).unwrap_or_default();
        while text.len() > BYTES {
            text.remove(0);
        }
        text
    }
}
