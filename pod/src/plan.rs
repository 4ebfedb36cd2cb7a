//! What to do next with one pod: a pure function of what is wanted, seen and remembered.
//!
//! ```text
//!            ┌──────────── broken, or its shim died ───────────┐
//!            ▼                                                 │
//!  Absent ─► CreateSandbox ─► Ready ─► init containers in order ─► containers ─► running, probed
//!    ▲                                       │                        │
//!    │                                       └─ failed for good ──────┴─ all ended for good
//!    └───────── StopSandbox ◄── SIGTERM, grace, SIGKILL ◄── deleted ──┘
//! ```
//! Level-triggered: the same input gives the same plan, and a plan whose history is taken over and whose actions are
//! in flight asks for nothing new. Order of work: facts into history ([`facts`]), then either the way down ([`stop`])
//! or the way up ([`containers`], [`images`], [`probes`], held up by [`unmet`]), then the status ([`status`]).
//!
//! Where it leaves the kubelet's way on purpose: `imagePullPolicy: Always` asks the registry before a container's
//! first start only, and starts from the image that is here when the registry cannot be reached, since a board
//! without a network must come back after a reboot.

mod containers;
mod facts;
mod images;
mod probes;
mod resize;
mod status;
mod stop;
mod unmet;

use crate::ActionKey;
use crate::action::{Action, Event, EventType, Plan};
use crate::history::{Backoff, ContainerHistory, History};
use crate::observed::{Exit, InstanceId, InstanceState, Now, Observed, Reason, Sandbox, Stamp};
use crate::spec::{ContainerSpec, PodSpec, RestartPolicy};
use std::time::Duration;

/// First delay of every back-off (kubelet: `backOffPeriod`, `containerBackOffPeriod`).
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// No delay is longer (kubelet: `MaxContainerBackOff`).
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran so long is forgiven its crashes.
pub(crate) const BACKOFF_FORGIVEN: Duration = Duration::from_secs(600);
/// A SIGKILL that did not help is sent again after this.
pub(crate) const KILL_AGAIN: Duration = Duration::from_secs(5);

/// Decides. Pure and total.
pub fn plan(spec: &PodSpec, observed: &Observed, history: &History, now: &Now) -> Plan {
    let mut planner = Planner {
        spec,
        seen: observed,
        now,
        history: history.clone(),
        actions: Vec::new(),
        events: Vec::new(),
        wake: None,
    };
    planner.learn();
    let gone = planner.act();
    let status = planner.status();
    let Planner { history, actions, events, wake, .. } = planner;
    Plan { actions, history, status, events, wake, gone }
}

struct Planner<'a> {
    spec: &'a PodSpec,
    seen: &'a Observed,
    now: &'a Now,
    history: History,
    actions: Vec<Action>,
    events: Vec<Event>,
    wake: Option<Duration>,
}

/// In which list of the pod a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Init,
    Main,
    Ephemeral,
}

/// How far a container is, from its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not started yet, or its start failed.
    Waiting,
    /// Ordered to start, or running.
    Up,
    /// Ended, and to be started again.
    Again,
    /// Ended for good.
    Ended,
}

impl<'a> Planner<'a> {
    /// The way up or the way down; `true` when the pod is gone.
    fn act(&mut self) -> bool {
        if self.spec.deletion.is_some() || self.history.failed.is_some() || self.finished() {
            return self.go_down();
        }
        match &self.seen.sandbox {
            Sandbox::Broken { .. } => self.replace_sandbox(),
            Sandbox::Absent => {
                self.pull_images();
                self.create_sandbox();
            }
            Sandbox::Ready { .. } => {
                self.pull_images();
                self.sweep();
                self.update_volumes();
                self.replace_changed();
                self.resize();
                self.drive_containers();
                self.probe();
                self.continue_stopping();
                self.remove_old();
            }
        }
        false
    }

    fn create_sandbox(&mut self) {
        if self.in_flight(&ActionKey::Sandbox) || self.lacks_volumes() {
            return;
        }
        let until = self.backoff_end(&self.history.sandbox.clone());
        if !self.passed(until) || !self.order(Action::CreateSandbox) {
            return;
        }
        // What they prepared may have gone with the sandbox before: shared memory, the network, tmpfs volumes.
        for container in &self.spec.init_containers {
            if let Some(known) = self.history.containers.get_mut(&container.name) {
                known.rerun = known.exit.is_some();
            }
        }
    }

    fn replace_sandbox(&mut self) {
        if self.in_flight(&ActionKey::Sandbox) {
            return;
        }
        let until = self.backoff_end(&self.history.sandbox.clone());
        if self.passed(until) {
            self.order(Action::StopSandbox);
        }
    }

    // ---- what holds ----

    fn containers(&self) -> impl Iterator<Item = (&'a ContainerSpec, Role)> + use<'a> {
        let spec = self.spec;
        let init = spec.init_containers.iter().map(|c| (c, Role::Init));
        let ephemeral = spec.ephemeral_containers.iter().map(|c| (c, Role::Ephemeral));
        init.chain(spec.containers.iter().map(|c| (c, Role::Main))).chain(ephemeral)
    }

    fn of(&self, name: &str) -> Option<&ContainerHistory> {
        self.history.containers.get(name)
    }

    fn entry(&mut self, name: &str) -> &mut ContainerHistory {
        self.history.containers.entry(name.into()).or_default()
    }

    fn stage(&self, container: &ContainerSpec, role: Role) -> Stage {
        let Some(known) = self.of(&container.name) else { return Stage::Waiting };
        match (&known.current, &known.exit) {
            (None, _) => Stage::Waiting,
            (Some(_), Some(exit)) if known.rerun || self.restarts(exit, role) => Stage::Again,
            (Some(_), Some(_)) => Stage::Ended,
            (Some(_), None) if known.failed_start.is_some() => Stage::Waiting,
            (Some(_), None) => Stage::Up,
        }
    }

    /// Init containers run until they succeed: `Always` means `OnFailure` to them. Ephemeral ones run once.
    fn restarts(&self, exit: &Exit, role: Role) -> bool {
        match (self.spec.restart_policy, role) {
            (_, Role::Ephemeral) | (RestartPolicy::Never, _) => false,
            (RestartPolicy::OnFailure, _) | (RestartPolicy::Always, Role::Init) => exit.code != 0,
            (RestartPolicy::Always, Role::Main) => true,
        }
    }

    fn init_done(&self) -> bool {
        self.spec.init_containers.iter().all(|container| self.succeeded(container))
    }

    /// Whether an init container has done its work, in the sandbox that is there now.
    fn succeeded(&self, init: &ContainerSpec) -> bool {
        self.of(&init.name).is_some_and(|h| !h.rerun && h.exit.as_ref().is_some_and(|e| e.code == 0))
    }

    fn init_failed(&self) -> bool {
        let failed =
            |c: &ContainerSpec| self.of(&c.name).and_then(|h| h.exit.as_ref()).is_some_and(|e| e.code != 0);
        self.spec.restart_policy == RestartPolicy::Never && self.spec.init_containers.iter().any(failed)
    }

    /// Nothing of this pod will ever run again.
    fn finished(&self) -> bool {
        let ended = |c: &ContainerSpec| self.stage(c, Role::Main) == Stage::Ended;
        self.init_failed() || (self.init_done() && self.spec.containers.iter().all(ended))
    }

    fn running(&self, name: &str) -> Option<(&InstanceId, &Stamp)> {
        let current = self.of(name)?.current.as_ref()?;
        match &self.seen.instances.get(current)?.state {
            InstanceState::Running { started } => Some((current, started)),
            InstanceState::Created | InstanceState::Exited(_) => None,
        }
    }

    fn in_flight(&self, key: &ActionKey) -> bool {
        self.seen.in_flight.contains(key)
    }

    /// Adds an action, unless its object has one under way or in this plan already: whoever executes the plan skips
    /// the second, so history may claim only what this returned `true` for.
    fn order(&mut self, action: Action) -> bool {
        let key = action.key();
        let free = !self.in_flight(&key) && !self.actions.iter().any(|other| other.key() == key);
        if free {
            self.actions.push(action);
        }
        free
    }

    // ---- time ----

    fn stamp(&self) -> Stamp {
        Stamp { boot: self.now.boot.clone(), monotonic: self.now.monotonic, wall: self.now.wall }
    }

    /// The moment `delay` after `from`; of another boot it has passed.
    fn after(&self, from: &Stamp, delay: Duration) -> Duration {
        if from.boot == self.now.boot { from.monotonic.saturating_add(delay) } else { Duration::ZERO }
    }

    fn backoff_end(&self, backoff: &Backoff) -> Duration {
        backoff.from.as_ref().map_or(Duration::ZERO, |from| self.after(from, backoff.delay))
    }

    /// Whether `at` has come; otherwise asks to be called again then.
    fn passed(&mut self, at: Duration) -> bool {
        if at <= self.now.monotonic {
            return true;
        }
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        false
    }

    // ---- events ----

    fn event(
        &mut self,
        kind: EventType,
        reason: &'static str,
        message: String,
        container: Option<(&str, Role)>,
    ) {
        let field_path = container.map(|(name, role)| {
            let list = match role {
                Role::Init => "initContainers",
                Role::Main => "containers",
                Role::Ephemeral => "ephemeralContainers",
            };
            format!("spec.{list}{{{name}}}")
        });
        self.events.push(Event { kind, reason, message, field_path });
    }
}

/// Ten seconds, doubling, up to five minutes.
fn next_delay(delay: Duration) -> Duration {
    if delay.is_zero() { BACKOFF_FIRST } else { (delay * 2).min(BACKOFF_MAX) }
}

/// The kubelet's word, as `waiting.reason` has it.
fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::ErrImagePull => "ErrImagePull",
        Reason::ErrImageNeverPull => "ErrImageNeverPull",
        Reason::InvalidImageName => "InvalidImageName",
        Reason::RegistryUnavailable => "RegistryUnavailable",
        Reason::CreateContainerConfigError => "CreateContainerConfigError",
        Reason::CreateContainerError => "CreateContainerError",
        Reason::RunContainerError => "RunContainerError",
        Reason::FailedCreatePodSandBox => "FailedCreatePodSandBox",
        Reason::FailedMount => "FailedMount",
        Reason::FailedKillPod => "FailedKillPod",
        Reason::FailedResize => "Error",
    }
}
