//! Starting what is due, in order; forgetting what is two attempts old.

use super::stop::SIGKILL;
use super::{Planner, Role, Stage, next_delay};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::history::Backoff;
use crate::observed::{InstanceId, InstanceState};
use crate::spec::ContainerSpec;

impl Planner<'_> {
    pub(super) fn drive_containers(&mut self) {
        let spec = self.spec;
        // As the kubelet has it before all others, so that also a pod that does not come up can be looked into.
        for container in &spec.ephemeral_containers {
            self.drive(container, Role::Ephemeral);
        }
        // One init container at a time: the first that has not succeeded.
        for container in &spec.init_containers {
            if self.stage(container, Role::Init) != Stage::Ended {
                return self.drive(container, Role::Init);
            }
        }
        for container in &spec.containers {
            self.drive(container, Role::Main);
        }
    }

    /// Runs another image than the pod now asks for: the one field of a container that the API lets be changed.
    pub(super) fn is_changed(&self, container: &ContainerSpec) -> bool {
        self.of(&container.name).and_then(|h| h.image.as_ref()).is_some_and(|image| *image != container.image)
    }

    /// Runs by what holds no longer.
    pub(super) fn is_outdated(&self, container: &ContainerSpec) -> bool {
        self.is_changed(container) || self.is_outgrown(container)
    }

    /// Stops what runs a former image, or has to end for other resources; it is started again when it has ended.
    pub(super) fn replace_changed(&mut self) {
        let spec = self.spec;
        for container in &spec.containers {
            let name = container.name.as_str();
            let stopping = self.of(name).is_some_and(|h| h.stopping.is_some());
            if self.is_outdated(container) && self.running(name).is_some() && !stopping {
                let why = if self.is_changed(container) {
                    format!("Container {name} definition changed, will be restarted")
                } else {
                    format!("Container {name} resize requires restart")
                };
                self.stop(name, Role::Main, spec.termination_grace, &why);
            }
        }
    }

    fn drive(&mut self, container: &ContainerSpec, role: Role) {
        let name = container.name.as_str();
        let key = ActionKey::Container(name.into());
        let ordered = self.actions.iter().any(|action| action.key() == key);
        if ordered || self.in_flight(&key) || self.in_flight(&ActionKey::Sandbox) {
            return;
        }
        let known = self.of(name).cloned().unwrap_or_default();
        let attempt = match (self.stage(container, role), &known.current) {
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
        // Another image has crashed nobody yet.
        if known.current.is_some() && !self.is_outdated(container) && !self.passed(end) {
            return;
        }
        if self.is_resizing() {
            return;
        }
        // The registry of an `Always` image is asked first, if it has not been.
        if !self.present(&container.image) || self.asking(&container.image) {
            return;
        }
        if !self.was_asked(container) {
            let message = format!("Container image \"{}\" already present on machine", container.image);
            self.history.asked.insert((name.into(), container.image.clone()));
            self.event(EventType::Normal, "Pulled", message, Some((name, role)));
        }
        if self.lacks_variables(name, role) {
            return;
        }
        let now = self.stamp();
        let changed = self.is_outdated(container);
        let resources = self.history.allocated.get(name).copied();
        let entry = self.entry(name);
        if changed {
            entry.backoff = Backoff::default();
        }
        if entry.exit.is_some() {
            entry.restart_count = entry.restart_count.saturating_add(1);
            entry.last_exit = entry.exit.take();
            if !changed {
                entry.backoff.delay = next_delay(entry.backoff.delay);
            }
        }
        entry.image = Some(container.image.clone());
        entry.resources = resources;
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
