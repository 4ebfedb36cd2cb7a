//! Pulling what is about to be started, with back-off.

use super::{Planner, Role, Stage, next_delay};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::history::Backoff;
use crate::observed::ImageState;
use crate::spec::{ContainerSpec, PullPolicy};

impl Planner<'_> {
    pub(super) fn pull_images(&mut self) {
        for (container, role) in self.containers() {
            // Pulls run ahead of the init containers that come before: a slow link is used while they work.
            let wanted = matches!(self.stage(container, role), Stage::Waiting | Stage::Again | Stage::Up);
            if wanted {
                self.pull(container, role);
            }
        }
    }

    fn pull(&mut self, container: &ContainerSpec, role: Role) {
        let image = &container.image;
        let key = ActionKey::Image(image.clone());
        if self.in_flight(&key) || self.actions.iter().any(|a| a.key() == key) {
            return;
        }
        self.learn_pull(container, role);
        let present = self.present(image);
        let asks = container.pull_policy == PullPolicy::Always
            && (self.of(&container.name).is_none_or(|h| h.current.is_none()) || self.is_changed(container))
            && !self.was_asked(container);
        let wanted = match container.pull_policy {
            PullPolicy::Never => false,
            PullPolicy::IfNotPresent => !present,
            PullPolicy::Always => !present || asks,
        };
        if !wanted {
            return;
        }
        let backoff = self.history.pulls.get(image).cloned().unwrap_or_default();
        let end = self.backoff_end(&backoff);
        if (present && asks) || self.passed(end) {
            if self.history.pulling.insert(image.clone()) {
                let name = (container.name.as_str(), role);
                self.event(EventType::Normal, "Pulling", format!("Pulling image \"{image}\""), Some(name));
            }
            self.history.asked.insert((container.name.clone(), image.clone()));
            self.order(Action::PullImage { image: image.clone(), always: asks });
        }
    }

    /// A pull that ended since: well or badly.
    fn learn_pull(&mut self, container: &ContainerSpec, role: Role) {
        let image = &container.image;
        let name = Some((container.name.as_str(), role));
        let failure = self.seen.failures.get(&ActionKey::Image(image.clone())).cloned();
        match failure {
            Some(failure) => {
                let known = self.history.pulls.get(image).and_then(|b| b.from.clone());
                if known.is_some_and(|k| k.boot == failure.at.boot && k.monotonic >= failure.at.monotonic) {
                    return;
                }
                self.history.pulling.remove(image);
                let delay = next_delay(self.history.pulls.get(image).map(|b| b.delay).unwrap_or_default());
                self.history.pulls.insert(image.clone(), Backoff { delay, from: Some(failure.at) });
                let message = format!("Failed to pull image \"{image}\": {}", failure.message);
                self.event(EventType::Warning, "Failed", message, name);
                if !self.present(image) {
                    self.event(
                        EventType::Normal,
                        "BackOff",
                        format!("Back-off pulling image \"{image}\""),
                        name,
                    );
                }
            }
            None if self.present(image) => {
                self.history.pulls.remove(image);
                if self.history.pulling.remove(image) {
                    self.event(
                        EventType::Normal,
                        "Pulled",
                        format!("Successfully pulled image \"{image}\""),
                        name,
                    );
                }
            }
            None => {}
        }
    }

    pub(super) fn was_asked(&self, container: &ContainerSpec) -> bool {
        self.history.asked.iter().any(|(name, image)| *name == container.name && *image == container.image)
    }

    pub(super) fn present(&self, image: &str) -> bool {
        matches!(self.seen.images.get(image), Some(ImageState::Present { .. }))
    }
}
