//! Facts into history: what started, what ended, what was lost, what failed.

use super::{BACKOFF_FORGIVEN, Planner, Role, next_delay, word};
use crate::ActionKey;
use crate::action::EventType;
use crate::fit;
use crate::observed::{Cause, Exit, Failure, InstanceState, Reason, Sandbox};
use crate::spec::{ContainerSpec, PodSpec, RestartPolicy};

/// The kubelet's message for a container that is gone without a trace.
const LOST: &str = "The container could not be located when the pod was terminated";
/// `status.reason` of a pod that had to go.
pub(super) const EVICTED: &str = "Evicted";
/// The exit code of a container whose program never ran, as containerd gives it.
const NOT_STARTED_CODE: i32 = 128;

impl Planner<'_> {
    pub(super) fn learn(&mut self) {
        let now = self.stamp();
        if self.history.first_seen.is_none() {
            self.history.first_seen = Some(now.clone());
            self.admit();
        }
        if self.spec.deletion.is_some() {
            self.history.deletion_seen.get_or_insert(now);
        }
        for (container, role) in self.containers() {
            self.learn_container(container, role);
        }
        self.learn_sandbox();
        self.learn_deadline();
        self.learn_eviction();
        self.learn_end();
        self.learn_resize();
    }

    fn learn_container(&mut self, container: &ContainerSpec, role: Role) {
        let name = container.name.as_str();
        let Some(known) = self.of(name) else { return };
        let Some(current) = known.current.clone() else { return };
        if known.exit.is_some() || known.failed_start.is_some() {
            return;
        }
        let told = Some((name, role));
        match self.seen.instances.get(&current).map(|i| &i.state) {
            Some(InstanceState::Running { started }) => {
                if known.started.is_none() {
                    self.entry(name).started = Some(started.clone());
                    self.tell_of_start(name, told);
                }
            }
            Some(InstanceState::Exited(exit)) => {
                if known.started.is_none() {
                    self.tell_of_start(name, told);
                }
                self.ended(container, role, exit.clone());
            }
            Some(InstanceState::Created) => {}
            None => self.learn_missing(container, role),
        }
    }

    fn tell_of_start(&mut self, name: &str, container: Option<(&str, Role)>) {
        self.event(EventType::Normal, "Created", format!("Created container: {name}"), container);
        self.event(EventType::Normal, "Started", format!("Started container {name}"), container);
    }

    /// Ordered to start, and not there.
    fn learn_missing(&mut self, container: &ContainerSpec, role: Role) {
        let name = container.name.as_str();
        let key = ActionKey::Container(name.into());
        if self.in_flight(&key) || self.in_flight(&ActionKey::Sandbox) {
            return;
        }
        let known = self.entry(name).clone();
        let begun = known.begun.as_ref();
        let of_this_attempt =
            |f: &&Failure| begun.is_none_or(|b| f.at.boot == b.boot && f.at.monotonic >= b.monotonic);
        if let Some(failure) = self.seen.failures.get(&key).filter(of_this_attempt).cloned() {
            let message = format!("Error: {}", failure.message);
            self.event(EventType::Warning, "Failed", message, Some((name, role)));
            let entry = self.entry(name);
            entry.failed_start = Some(failure.clone());
            if failure.reason == Reason::RunContainerError {
                // It was made and did not start: an end like any other, so the restart policy has its say.
                let Failure { message, at, .. } = failure;
                let cause = Cause::NotStarted;
                let exit = Exit {
                    code: NOT_STARTED_CODE,
                    signal: None,
                    cause,
                    started: None,
                    finished: at,
                    message,
                };
                return self.ended(container, role, exit);
            }
            entry.backoff.from = Some(failure.at);
            entry.backoff.delay = next_delay(entry.backoff.delay);
            entry.stopping = None;
        } else if let Some(started) = known.started {
            let finished = self.stamp();
            let (cause, started, message) = (Cause::Lost, Some(started), LOST.into());
            self.ended(container, role, Exit { code: 137, signal: None, cause, started, finished, message });
        }
        // Otherwise the agent stopped between commit and start: the next attempt is ordered.
    }

    fn ended(&mut self, container: &ContainerSpec, role: Role, exit: Exit) {
        let name = container.name.as_str();
        let goes_on = self.spec.deletion.is_none() && self.history.failed.is_none();
        let allowed = self.spec.restart_policy != RestartPolicy::Never;
        let by_policy = self.restarts(&exit, role);
        let changed = role == Role::Main && self.is_outdated(container);
        let entry = self.entry(name);
        // The kubelet's shouldRestartOnFailure: what a probe ended has failed, however politely it then ended. What was
        // ended for another image begins anew whatever the policy is, and without its predecessor's delays.
        let for_change = changed && entry.stopping.is_some();
        entry.rerun = for_change || allowed && entry.stopping.as_ref().is_some_and(|s| s.for_restart);
        let again = goes_on && (by_policy || entry.rerun);
        let started = exit.started.as_ref().or(entry.started.as_ref());
        let ran = started
            .filter(|s| s.boot == exit.finished.boot)
            .map(|s| exit.finished.monotonic.saturating_sub(s.monotonic));
        if ran.is_some_and(|ran| ran >= BACKOFF_FORGIVEN) || exit.cause == Cause::Lost || changed {
            entry.backoff.delay = std::time::Duration::ZERO;
        }
        entry.backoff.from = Some(exit.finished.clone());
        entry.started = entry.started.take().or_else(|| exit.started.clone());
        entry.exit = Some(exit);
        entry.stopping = None;
        let waits = again && !entry.backoff.delay.is_zero();
        self.history.probes.retain(|(container, _), _| container != name);
        if waits {
            let PodSpec { name: pod, namespace, uid, .. } = self.spec;
            let message =
                format!("Back-off restarting failed container {name} in pod {pod}_{namespace}({})", uid.0);
            self.event(EventType::Warning, "BackOff", message, Some((name, role)));
        }
    }

    fn learn_sandbox(&mut self) {
        match self.seen.failures.get(&ActionKey::Sandbox) {
            Some(failure) if !self.in_flight(&ActionKey::Sandbox) => {
                let known = self.history.sandbox.from.as_ref();
                if known
                    .is_none_or(|from| from.boot != failure.at.boot || from.monotonic < failure.at.monotonic)
                {
                    let failure = failure.clone();
                    let delay = next_delay(self.history.sandbox.delay);
                    self.history.sandbox = crate::history::Backoff { delay, from: Some(failure.at) };
                    let reason = word(failure.reason);
                    let message = match reason {
                        "FailedCreatePodSandBox" => {
                            format!("Failed to create pod sandbox: {}", failure.message)
                        }
                        _ => failure.message,
                    };
                    self.event(EventType::Warning, reason, message, None);
                }
            }
            // What failed is being tried again: wait for how that ends.
            Some(_) => {}
            None => {
                if matches!(self.seen.sandbox, Sandbox::Ready { .. }) {
                    self.history.sandbox = Default::default();
                }
            }
        }
        if matches!(self.seen.sandbox, Sandbox::Broken { .. }) {
            self.learn_broken();
        }
    }

    /// Said once per broken sandbox: its moment is kept as the back-off's.
    fn learn_broken(&mut self) {
        if self.history.sandbox.from.is_none() && self.spec.deletion.is_none() {
            let now = self.stamp();
            self.history.sandbox.from = Some(now);
            let message = "Pod sandbox changed, it will be killed and re-created.".to_string();
            self.event(EventType::Normal, "SandboxChanged", message, None);
        }
    }

    /// Once, when the pod comes: the kubelet rejects for good what has no room then, and keeps what had.
    fn admit(&mut self) {
        let Some(capacity) = self.seen.capacity.filter(|_| self.spec.deletion.is_none()) else { return };
        if let Err(shortage) = fit::check(self.spec, &self.seen.load, &capacity) {
            let why = shortage.to_string();
            self.history.failed = Some((shortage.reason().into(), format!("Pod was rejected: {why}")));
            self.event(EventType::Warning, shortage.reason(), why, None);
        }
    }

    fn learn_eviction(&mut self) {
        let Some(message) = self.seen.eviction.clone() else { return };
        if self.history.failed.is_some() || self.spec.deletion.is_some() || self.finished() {
            return;
        }
        self.history.failed = Some((EVICTED.into(), message.clone()));
        self.event(EventType::Warning, EVICTED, message, None);
    }

    /// A terminal phase is terminal, whoever set it: a controller that gave the node up, an eviction by taint.
    fn learn_end(&mut self) {
        let Some(end) = self.seen.ended_elsewhere.clone() else { return };
        if self.history.failed.is_none() && self.spec.deletion.is_none() && !self.finished() {
            self.history.failed = Some(end);
        }
    }

    fn learn_deadline(&mut self) {
        let (Some(deadline), Some(first_seen)) = (self.spec.active_deadline, self.history.first_seen.clone())
        else {
            return;
        };
        if self.history.failed.is_some() || self.spec.deletion.is_some() || self.finished() {
            return;
        }
        // Of another boot only wall time is left, as a hint: a clock that went back just waits again.
        let at = if first_seen.boot == self.now.boot {
            first_seen.monotonic.saturating_add(deadline)
        } else {
            let since = self.now.wall.duration_since(first_seen.wall);
            let elapsed = std::time::Duration::try_from(since).unwrap_or_default();
            self.now.monotonic.saturating_add(deadline.saturating_sub(elapsed))
        };
        if self.passed(at) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.history.failed = Some(("DeadlineExceeded".into(), message.into()));
            self.event(EventType::Normal, "DeadlineExceeded", message.into(), None);
        }
    }
}
