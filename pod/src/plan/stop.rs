//! The way down: SIGTERM, grace, SIGKILL; then the sandbox; then, if the pod was deleted, everything.

use super::facts::EVICTED;
use super::{KILL_AGAIN, Planner, Role};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::history::Stopping;
use crate::observed::{InstanceId, InstanceState, Sandbox};
use std::time::Duration;

pub(super) const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// The board lacks what the pod takes (kubelet: `immediateEvictionGracePeriodSeconds`).
const EVICTION_GRACE: Duration = Duration::from_secs(1);

impl Planner<'_> {
    /// `true` once nothing of a deleted pod is left.
    pub(super) fn go_down(&mut self) -> bool {
        let grace = self.spec.deletion.map_or(self.spec.termination_grace, |d| d.grace);
        let grace = if self.is_evicted() { grace.min(EVICTION_GRACE) } else { grace };
        for (container, role) in self.containers() {
            let name = container.name.as_str();
            self.stop(name, role, grace, &format!("Stopping container {name}"));
        }
        self.continue_stopping();
        let lives = |state: &InstanceState| !matches!(state, InstanceState::Exited(_));
        let busy = self.seen.instances.values().any(|i| lives(&i.state))
            || self
                .seen
                .in_flight
                .iter()
                .any(|key| matches!(key, ActionKey::Container(_) | ActionKey::Sandbox));
        match &self.seen.sandbox {
            Sandbox::Ready { .. } if busy => return false,
            Sandbox::Ready { .. } | Sandbox::Broken { .. } => self.replace_sandbox(),
            Sandbox::Absent if self.spec.deletion.is_none() => {}
            Sandbox::Absent => {
                let pulling = self.seen.in_flight.iter().any(|key| matches!(key, ActionKey::Image(_)));
                if self.in_flight(&ActionKey::Sandbox) {
                    return false;
                }
                if !self.seen.residue && self.seen.instances.is_empty() {
                    // A pull goes on for whoever else wants the image; it needs nothing of this pod.
                    debug_assert!(!pulling || self.seen.instances.is_empty(), "a pull holds no instance");
                    return true;
                }
                let end = self.backoff_end(&self.history.sandbox.clone());
                if self.passed(end) {
                    self.order(Action::RemovePod);
                }
            }
        }
        false
    }

    fn is_evicted(&self) -> bool {
        self.history.failed.as_ref().is_some_and(|(reason, _)| reason == EVICTED)
    }

    /// Begins to stop a running container; a second call may shorten its grace.
    pub(super) fn stop(&mut self, name: &str, role: Role, grace: Duration, why: &str) {
        let Some((instance, _)) = self.running(name) else { return };
        let instance = instance.clone();
        let now = self.stamp();
        let entry = self.entry(name);
        match &mut entry.stopping {
            Some(stopping) if stopping.instance == instance => stopping.grace = stopping.grace.min(grace),
            _ => {
                entry.stopping = Some(Stopping {
                    instance,
                    since: now,
                    grace,
                    why: why.into(),
                    for_restart: false,
                    sent: None,
                });
                self.event(EventType::Normal, "Killing", why.into(), Some((name, role)));
            }
        }
    }

    /// Sends what is due to everything that is being stopped.
    pub(super) fn continue_stopping(&mut self) {
        for (container, _) in self.containers() {
            let name = container.name.as_str();
            let Some(stopping) = self.of(name).and_then(|h| h.stopping.clone()) else { continue };
            if self.running(name).is_none() || self.in_flight(&ActionKey::Container(name.into())) {
                continue;
            }
            let deadline = self.after(&stopping.since, stopping.grace);
            let instance = stopping.instance.clone();
            if self.passed(deadline) {
                let again = deadline.saturating_add(KILL_AGAIN);
                if stopping.sent != Some(SIGKILL) || self.passed(again) {
                    self.send(instance, SIGKILL);
                }
            } else if stopping.sent.is_none() {
                self.send(instance, SIGTERM);
            }
        }
    }

    fn send(&mut self, instance: InstanceId, signal: i32) {
        let container = instance.container.clone();
        if self.order(Action::Signal { instance, signal })
            && let Some(stopping) = &mut self.entry(&container).stopping
        {
            stopping.sent = Some(signal);
        }
    }
}
