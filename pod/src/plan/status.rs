//! `v1.PodStatus` from history and facts, as the kubelet reports it.

use super::{Planner, Role, Stage, word};
use crate::ActionKey;
use crate::history::ContainerHistory;
use crate::observed::{Cause, Exit, ImageState, Reason, Sandbox, Stamp};
use crate::spec::{ContainerSpec, PullPolicy, QosClass};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Of a pod whose containers are ready, and whose gates are not.
const GATES: &str = "ReadinessGatesNotReady";

impl Planner<'_> {
    pub(super) fn status(&mut self) -> PodStatus {
        let spec = self.spec;
        let list = |containers: &[ContainerSpec], role: Role| -> Option<Vec<ContainerStatus>> {
            let statuses: Vec<_> = containers.iter().map(|c| self.container_status(c, role)).collect();
            // Of a pod that was rejected there is nothing to tell but why.
            let rejected = self.history.failed.is_some() && self.history.containers.is_empty();
            (!statuses.is_empty() && !rejected).then_some(statuses)
        };
        let init = list(&spec.init_containers, Role::Init);
        let regular = list(&spec.containers, Role::Main);
        let ephemeral = list(&spec.ephemeral_containers, Role::Ephemeral);
        let phase = self.phase();
        let ready = spec.containers.iter().all(|c| self.ready(c));
        let mut conditions = self.conditions(phase, ready);
        conditions.extend(self.resize_conditions());
        let ips: Vec<String> = match &self.seen.sandbox {
            Sandbox::Ready { ips, .. } if spec.host_network && ips.is_empty() => {
                self.seen.host_ips.iter().map(ToString::to_string).collect()
            }
            Sandbox::Ready { ips, .. } => ips.iter().map(ToString::to_string).collect(),
            Sandbox::Absent | Sandbox::Broken { .. } => Vec::new(),
        };
        let hosts: Vec<String> = self.seen.host_ips.iter().map(ToString::to_string).collect();
        let (reason, message) = self.history.failed.clone().unzip();
        let (reason, message) = (reason.filter(|r| !r.is_empty()), message.filter(|m| !m.is_empty()));
        // Only the API server counts generations.
        let observed_generation = (spec.generation > 0).then_some(spec.generation);
        PodStatus {
            phase: Some(phase.into()),
            conditions: Some(conditions),
            container_statuses: regular,
            init_container_statuses: init,
            ephemeral_container_statuses: ephemeral,
            start_time: self.history.first_seen.as_ref().map(time),
            pod_ip: ips.first().cloned(),
            pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
            host_ip: hosts.first().cloned(),
            host_ips: (!hosts.is_empty()).then(|| hosts.into_iter().map(|ip| HostIP { ip }).collect()),
            qos_class: Some(
                match spec.qos {
                    QosClass::Guaranteed => "Guaranteed",
                    QosClass::Burstable => "Burstable",
                    QosClass::BestEffort => "BestEffort",
                }
                .into(),
            ),
            reason,
            message,
            observed_generation,
            ..Default::default()
        }
    }

    fn phase(&self) -> &'static str {
        let ended_well =
            |c: &ContainerSpec| self.of(&c.name).and_then(|h| h.exit.as_ref()).is_some_and(|e| e.code == 0);
        if self.history.failed.is_some() || self.init_failed() {
            return "Failed";
        }
        if self.finished() {
            return if self.spec.containers.iter().all(ended_well) { "Succeeded" } else { "Failed" };
        }
        // Of a pod that is being deleted nothing is started again: once nothing runs any more, it has ended.
        let ended = |c: &ContainerSpec| self.of(&c.name).is_some_and(|h| h.exit.is_some());
        if self.spec.deletion.is_some() && self.spec.containers.iter().all(ended) {
            return if self.spec.containers.iter().all(ended_well) { "Succeeded" } else { "Failed" };
        }
        let begun = |c: &ContainerSpec| {
            self.of(&c.name).is_some_and(|h| h.started.is_some() || h.last_exit.is_some() || h.exit.is_some())
        };
        if self.init_done() && self.spec.containers.iter().all(begun) { "Running" } else { "Pending" }
    }

    fn conditions(&mut self, phase: &str, ready: bool) -> Vec<PodCondition> {
        let over = matches!(phase, "Succeeded" | "Failed");
        let sandbox = matches!(self.seen.sandbox, Sandbox::Ready { .. });
        let initialized = self.init_done();
        let why_not = match phase {
            "Succeeded" => "PodCompleted",
            "Failed" => "PodFailed",
            _ => "ContainersNotReady",
        };
        let gates = self.gates();
        let gated = ready && !over && !gates.is_empty();
        let list = [
            ("PodReadyToStartContainers", sandbox, None),
            ("Initialized", initialized, Some("ContainersNotInitialized")),
            ("Ready", ready && !over && gates.is_empty(), Some(if gated { GATES } else { why_not })),
            ("ContainersReady", ready && !over, Some(why_not)),
            ("PodScheduled", true, None),
        ];
        let now = self.now.wall;
        let unready: Vec<&str> =
            self.spec.containers.iter().filter(|c| !self.ready(c)).map(|c| c.name.as_str()).collect();
        let unready = format!("containers with unready status: [{}]", unready.join(" "));
        let incomplete: Vec<&str> = self
            .spec
            .init_containers
            .iter()
            .filter(|c| !self.succeeded(c))
            .map(|c| c.name.as_str())
            .collect();
        let incomplete = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        list.into_iter()
            .map(|(kind, holds, reason)| {
                let known =
                    self.history.transitions.get(kind).filter(|(held, _)| *held == holds).map(|(_, at)| *at);
                let at = known.unwrap_or(now);
                self.history.transitions.insert(kind.into(), (holds, at));
                let reason = reason.filter(|_| !holds);
                PodCondition {
                    type_: kind.into(),
                    status: if holds { "True" } else { "False" }.into(),
                    last_transition_time: Some(Time(at)),
                    message: match reason {
                        Some("ContainersNotReady") => Some(unready.clone()),
                        Some(GATES) => Some(gates.clone()),
                        Some("ContainersNotInitialized") => Some(incomplete.clone()),
                        _ => None,
                    },
                    reason: reason.map(Into::into),
                    observed_generation: (self.spec.generation > 0).then_some(self.spec.generation),
                    ..Default::default()
                }
            })
            .collect()
    }

    /// What keeps the pod from being ready beside its containers, in the kubelet's words; empty when nothing does.
    fn gates(&self) -> String {
        let unready = self.spec.readiness_gates.iter().filter_map(|gate| {
            match self.seen.foreign_conditions.get(gate).map(String::as_str) {
                Some("True") => None,
                Some(status) => {
                    Some(format!("the status of pod readiness gate {gate:?} is not \"True\", but {status}"))
                }
                None => {
                    Some(format!("corresponding condition of pod readiness gate {gate:?} does not exist."))
                }
            }
        });
        unready.collect::<Vec<_>>().join(", ")
    }

    fn container_status(&self, container: &ContainerSpec, role: Role) -> ContainerStatus {
        let known = self.of(&container.name).cloned().unwrap_or_default();
        let instance = known.current.as_ref().and_then(|id| self.seen.instances.get(id));
        // What runs a former image is told with that, until it is replaced.
        let former = known.image.clone().filter(|_| instance.is_some() && self.is_changed(container));
        let image_id = match self.seen.images.get(&container.image) {
            Some(ImageState::Present { id, repo_digest, .. }) if former.is_none() => {
                repo_digest.clone().unwrap_or_else(|| id.clone())
            }
            _ => instance.map(|i| i.image_id.clone()).unwrap_or_default(),
        };
        let (state, ended) = self.state(container, &known, role);
        let last = known.last_exit.as_ref().map(terminated);
        let ready = match role {
            Role::Init => self.succeeded(container),
            Role::Main => self.ready(container),
            Role::Ephemeral => false,
        };
        let (resources, allocated) = instance.map(|_| self.resources_status(container)).unzip();
        ContainerStatus {
            resources,
            allocated_resources: allocated.flatten(),
            name: container.name.clone(),
            image: former.unwrap_or_else(|| container.image.clone()),
            image_id,
            container_id: instance.map(|i| i.container_id.clone()),
            ready,
            started: match role {
                Role::Init => Some(self.running(&container.name).is_some()),
                Role::Main => Some(self.started(container)),
                // There is no probe that could tell.
                Role::Ephemeral => None,
            },
            restart_count: i32::try_from(known.restart_count).unwrap_or(i32::MAX),
            // While it waits to be started again, how it ended is its last state.
            last_state: ended.or(last).map(|t| ContainerState { terminated: Some(t), ..Default::default() }),
            state: Some(state),
            ..Default::default()
        }
    }

    /// The state, and how the last run ended if that is not the state itself.
    fn state(
        &self,
        container: &ContainerSpec,
        known: &ContainerHistory,
        role: Role,
    ) -> (ContainerState, Option<ContainerStateTerminated>) {
        if let Some((_, started)) = self.running(&container.name) {
            let running = ContainerStateRunning { started_at: Some(time(started)) };
            return (ContainerState { running: Some(running), ..Default::default() }, None);
        }
        let stage = self.stage(container, role);
        if let Some(exit) = &known.exit {
            let ended = terminated(exit);
            let at_rest = stage == Stage::Ended
                || self.spec.deletion.is_some()
                || (known.backoff.delay.is_zero() && self.lack_of(container).is_none());
            if at_rest || self.history.failed.is_some() {
                return (ContainerState { terminated: Some(ended), ..Default::default() }, None);
            }
            return (self.waiting(container, known, role), Some(ended));
        }
        (self.waiting(container, known, role), None)
    }

    /// Why its variables cannot be had, once it could be started otherwise.
    fn lack_of(&self, container: &ContainerSpec) -> Option<&String> {
        let due = self.of(&container.name).is_none_or(|h| self.backoff_end(&h.backoff) <= self.now.monotonic);
        let sandbox = matches!(self.seen.sandbox, Sandbox::Ready { .. });
        self.seen.unmet.containers.get(&container.name).filter(|_| due && sandbox)?.as_ref()
    }

    fn waiting(&self, container: &ContainerSpec, known: &ContainerHistory, role: Role) -> ContainerState {
        let (reason, message) = self.why_waiting(container, known, role);
        let waiting = ContainerStateWaiting { reason: Some(reason), message };
        ContainerState { waiting: Some(waiting), ..Default::default() }
    }

    fn why_waiting(
        &self,
        container: &ContainerSpec,
        known: &ContainerHistory,
        role: Role,
    ) -> (String, Option<String>) {
        let image = &container.image;
        if !self.present(image) {
            if container.pull_policy == PullPolicy::Never {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                return ("ErrImageNeverPull".into(), Some(message));
            }
            if let Some(failure) = self.seen.failures.get(&ActionKey::Image(image.clone())) {
                let first = self.history.pulls.get(image).is_none_or(|b| b.delay <= super::BACKOFF_FIRST);
                return match failure.reason {
                    Reason::InvalidImageName => ("InvalidImageName".into(), Some(failure.message.clone())),
                    _ if first => ("ErrImagePull".into(), Some(failure.message.clone())),
                    _ => {
                        let message = format!("Back-off pulling image \"{image}\": {}", failure.message);
                        ("ImagePullBackOff".into(), Some(message))
                    }
                };
            }
        }
        let blocked = role == Role::Main && !self.init_done() && !self.spec.init_containers.is_empty();
        if !blocked && let Some(message) = self.lack_of(container) {
            return ("CreateContainerConfigError".into(), Some(message.clone()));
        }
        // Said in its own words at first, as a pull that fails is.
        let crashes = known.exit.is_some() && known.backoff.delay > super::BACKOFF_FIRST;
        if let Some(failure) = known.failed_start.as_ref().filter(|_| !crashes) {
            return (word(failure.reason).into(), Some(failure.message.clone()));
        }
        if known.exit.is_some() && !known.backoff.delay.is_zero() {
            let seconds = known.backoff.delay.as_secs();
            let delay = if seconds < 60 {
                format!("{seconds}s")
            } else {
                format!("{}m{}s", seconds / 60, seconds % 60)
            };
            let crate::spec::PodSpec { name, namespace, uid, .. } = self.spec;
            let message = format!(
                "back-off {delay} restarting failed container={} pod={name}_{namespace}({})",
                container.name, uid.0
            );
            return ("CrashLoopBackOff".into(), Some(message));
        }
        (if blocked { "PodInitializing" } else { "ContainerCreating" }.into(), None)
    }
}

fn terminated(exit: &Exit) -> ContainerStateTerminated {
    let reason = match exit.cause {
        Cause::Lost => "ContainerStatusUnknown",
        Cause::OutOfMemory => "OOMKilled",
        Cause::NotStarted => "StartError",
        Cause::Process if exit.code == 0 => "Completed",
        Cause::Process => "Error",
    };
    ContainerStateTerminated {
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(reason.into()),
        message: (!exit.message.is_empty()).then(|| exit.message.clone()),
        started_at: exit.started.as_ref().map(time),
        finished_at: Some(time(&exit.finished)),
        ..Default::default()
    }
}

fn time(stamp: &Stamp) -> Time {
    Time(stamp.wall)
}
