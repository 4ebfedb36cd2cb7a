//! Starting what is due, in order; forgetting what is two attempts old.

use super::stop::SIGKILL;
use super::{Planner, Stage, next_delay};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::observed::{InstanceId, InstanceState};
use crate::spec::ContainerSpec;

impl Planner<'_> {
    pub(super) fn drive_containers(&mut self) {
        let spec = self.spec;
        // One init container at a time: the first that has not succeeded.
        for container in &spec.init_containers {
            if self.stage(container, true) != Stage::Ended {
                return self.drive(container, true);
            }
        }
        for container in &spec.containers {
            self.drive(container, false);
        }
    }

    fn drive(&mut self, container: &ContainerSpec, init: bool) {
        let name = container.name.as_str();
        let key = ActionKey::Container(name.into());
        let ordered = self.actions.iter().any(|action| action.key() == key);
        if ordered || self.in_flight(&key) || self.in_flight(&ActionKey::Sandbox) {
            return;
        }
        let known = self.of(name).cloned().unwrap_or_default();
        let attempt = match (self.stage(container, init), &known.current) {
            (Stage::Ended, _) => return,
            (Stage::Up, Some(current))
                if known.started.is_some() || self.seen.instances.contains_key(current) =>
            {
                return;
            }
            // Stage::Up here: ordered, and neither there nor failed. The agent stopped in between, and cannot know
            // whether the attempt ran without a trace, so its number is spent.
            (_, Some(current)) => current.attempt.saturating_add(1),
            (_, None) => 0,
        };
        let end = self.backoff_end(&known.backoff);
        if known.current.is_some() && !self.passed(end) {
            return;
        }
        // The registry of an `Always` image is asked first, if it has not been.
        if !self.present(&container.image) || self.asking(&container.image) {
            return;
        }
        if !self.history.asked.contains(name) {
            let message = format!("Container image \"{}\" already present on machine", container.image);
            self.history.asked.insert(name.into());
            self.event(EventType::Normal, "Pulled", message, Some((name, init)));
        }
        let now = self.stamp();
        let entry = self.entry(name);
        if entry.exit.is_some() {
            entry.restart_count = entry.restart_count.saturating_add(1);
            entry.last_exit = entry.exit.take();
            entry.backoff.delay = next_delay(entry.backoff.delay);
        }
        let instance = InstanceId { container: name.into(), attempt };
        entry.current = Some(instance.clone());
        entry.begun = Some(now);
        entry.started = None;
        entry.failed_start = None;
        entry.rerun = false;
        entry.stopping = None;
        self.history.probes.retain(|(container, _), _| container != name);
        self.order(Action::StartContainer { instance });
    }

    fn asking(&self, image: &str) -> bool {
        let key = ActionKey::Image(image.into());
        self.in_flight(&key) || self.actions.iter().any(|a| a.key() == key)
    }

    /// Kills what an ended container left running. With a pid namespace of its own the kernel has done that when its
    /// pid 1 ended; in a shared one the rest lives on, with its ports and locks, beside the next attempt.
    pub(super) fn sweep(&mut self) {
        if !self.spec.share_process_namespace && !self.spec.host_pid {
            return;
        }
        for (container, _) in self.containers() {
            let Some(known) = self.of(&container.name) else { continue };
            let Some(instance) = known.current.clone().filter(|i| known.swept != Some(i.attempt)) else {
                continue;
            };
            let ended = self
                .seen
                .instances
                .get(&instance)
                .is_some_and(|i| matches!(i.state, InstanceState::Exited(_)));
            let attempt = instance.attempt;
            if ended && self.order(Action::Signal { instance, signal: SIGKILL }) {
                self.entry(&container.name).swept = Some(attempt);
            }
        }
    }

    /// The attempt before the current one stays for `logs --previous`; older ones go.
    pub(super) fn remove_old(&mut self) {
        for (instance, seen) in &self.seen.instances {
            let current = self.of(&instance.container).and_then(|h| h.current.as_ref()).map(|c| c.attempt);
            let old = current.is_some_and(|current| instance.attempt.saturating_add(1) < current);
            if old && matches!(seen.state, InstanceState::Exited(_)) {
                self.order(Action::RemoveContainer { instance: instance.clone(), log: true });
            }
        }
    }
}
