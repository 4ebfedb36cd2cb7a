//! Resizes of a running pod: granted, carried out, told of.
//!
//! ```text
//!  asked for ─ infeasible, deferred ─► PodResizePending
//!      └ fits ─► allocated (durable) ─► containers that must restart end ─► Resize: cgroups ─► they start ─► done
//!                └──────────────────────── PodResizeInProgress ────────────────────────────────────────┘
//! ```

use super::{BACKOFF_FIRST, Planner, Role, Stage};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::history::Told;
use crate::observed::{InstanceId, Sandbox};
use crate::resize::{self, Verdict};
use crate::spec::{ContainerSpec, Resources};
use k8s_openapi::api::core::v1::{PodCondition, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::BTreeMap;

const PENDING: &str = "PodResizePending";
const IN_PROGRESS: &str = "PodResizeInProgress";

impl Planner<'_> {
    pub(super) fn learn_resize(&mut self) {
        if self.history.allocated.is_empty() {
            // New, or of an agent that knew no resize: what it asks for is what it has.
            self.history.allocated = resize::desired(self.spec);
        }
        if let Some(done) = self.seen.resized.clone() {
            for instance in &done.instances {
                let resources = done.allocation.get(&instance.container).copied();
                if let Some(known) = self.history.containers.get_mut(&instance.container)
                    && known.current.as_ref() == Some(instance)
                {
                    known.resources = resources.or(known.resources);
                }
            }
        }
        if self.spec.deletion.is_some() || self.history.failed.is_some() || self.finished() {
            return;
        }
        self.judge_resize();
        if self.history.resizing.is_some() && self.is_resized() {
            self.history.resizing = None;
            let message = format!("Pod resize completed: {}", resize::summary(self.spec, ""));
            self.event(EventType::Normal, "ResizeCompleted", message, None);
        }
    }

    fn judge_resize(&mut self) {
        match self.resize_verdict() {
            None => {
                self.history.told.remove(&Told::Resize);
            }
            Some(Verdict::Fits) => {
                self.history.told.remove(&Told::Resize);
                self.history.allocated = resize::desired(self.spec);
                self.history.resizing = Some(self.spec.generation);
                let message = format!("Pod resize started: {}", resize::summary(self.spec, ""));
                self.event(EventType::Normal, "ResizeStarted", message, None);
            }
            Some(Verdict::Deferred(why)) => self.tell_pending("ResizeDeferred", "Deferred", &why),
            Some(Verdict::Infeasible(why)) => self.tell_pending("ResizeInfeasible", "Infeasible", &why),
        }
    }

    /// Of what is not granted yet.
    fn resize_verdict(&self) -> Option<Verdict> {
        if !resize::is_wanted(self.spec, &self.history) {
            return None;
        }
        let capacity = self.seen.capacity?;
        Some(resize::judge(self.spec, &self.seen.load, &capacity))
    }

    fn tell_pending(&mut self, event: &'static str, reason: &str, why: &str) {
        if self.history.told.insert(Told::Resize, why.into()).as_deref() != Some(why) {
            let message = format!("Pod resize {reason}: {}", resize::summary(self.spec, why));
            self.event(EventType::Warning, event, message, None);
        }
    }

    /// What a container is granted.
    fn allocated(&self, container: &ContainerSpec) -> Resources {
        self.history.allocated.get(&container.name).copied().unwrap_or(container.resources)
    }

    /// With what the container runs, or ran.
    fn actual(&self, container: &ContainerSpec) -> Resources {
        self.of(&container.name).and_then(|h| h.resources).unwrap_or_else(|| self.allocated(container))
    }

    /// It runs with resources that only a new start can change.
    pub(super) fn is_outgrown(&self, container: &ContainerSpec) -> bool {
        let (before, after) = (self.actual(container), self.allocated(container));
        before != after && resize::restarts(container, &before, &after)
    }

    /// Orders what the cgroups need; before a container starts again, and after those have ended that must.
    pub(super) fn resize(&mut self) {
        if self.history.resizing.is_none() || self.cgroups_are_resized() {
            return;
        }
        let spec = self.spec;
        if spec.containers.iter().any(|c| self.is_outgrown(c) && self.running(&c.name).is_some()) {
            return;
        }
        let failed = self.seen.failures.get(&ActionKey::Resize);
        let due = failed.map_or(std::time::Duration::ZERO, |f| self.after(&f.at, BACKOFF_FIRST));
        if self.passed(due) {
            let running = spec.containers.iter().filter_map(|c| self.running(&c.name));
            let instances: Vec<InstanceId> = running.map(|(instance, _)| instance.clone()).collect();
            self.order(Action::Resize { instances });
        }
    }

    /// Whether the pod's cgroup is about to change, and what starts now would not fit into it yet.
    pub(super) fn is_resizing(&self) -> bool {
        self.in_flight(&ActionKey::Resize) || self.actions.iter().any(|a| a.key() == ActionKey::Resize)
    }

    fn cgroups_are_resized(&self) -> bool {
        self.seen.resized.as_ref().is_some_and(|done| done.allocation == self.history.allocated)
    }

    fn is_resized(&self) -> bool {
        let settled = |c: &ContainerSpec| {
            let starting = self.in_flight(&ActionKey::Container(c.name.clone()));
            let as_granted = self.actual(c) == self.allocated(c) && !starting;
            as_granted || self.stage(c, Role::Main) == Stage::Ended
        };
        let sandbox = matches!(self.seen.sandbox, Sandbox::Ready { .. });
        sandbox && self.cgroups_are_resized() && self.spec.containers.iter().all(settled)
    }

    /// `status.containerStatuses[].resources` and `allocatedResources`.
    pub(super) fn resources_status(
        &self,
        container: &ContainerSpec,
    ) -> (ResourceRequirements, Option<BTreeMap<String, Quantity>>) {
        let actual = resize::requirements(&self.actual(container));
        (actual, resize::requirements(&self.allocated(container)).requests)
    }

    pub(super) fn resize_conditions(&mut self) -> Vec<PodCondition> {
        let over = self.spec.deletion.is_some() || self.history.failed.is_some() || self.finished();
        let pending = match self.resize_verdict().filter(|_| !over) {
            Some(Verdict::Deferred(why)) => Some(("Deferred", why)),
            Some(Verdict::Infeasible(why)) => Some(("Infeasible", why)),
            Some(Verdict::Fits) | None => None,
        };
        let failed = self.seen.failures.get(&ActionKey::Resize).map(|failure| failure.message.clone());
        let resizing = self.history.resizing.filter(|_| !over);
        let in_progress = resizing.map(|generation| (failed.map(|why| ("Error", why)), generation));
        let list =
            [(PENDING, pending.map(|why| (Some(why), self.spec.generation))), (IN_PROGRESS, in_progress)];
        let mut conditions = Vec::new();
        for (kind, found) in list {
            let Some((why, generation)) = found else {
                self.history.transitions.remove(kind);
                continue;
            };
            let (_, at) = *self.history.transitions.entry(kind.into()).or_insert((true, self.now.wall));
            let (reason, message) = why.map(|(reason, message)| (reason.to_string(), message)).unzip();
            conditions.push(PodCondition {
                type_: kind.into(),
                status: "True".into(),
                last_transition_time: Some(Time(at)),
                observed_generation: (generation > 0).then_some(generation),
                reason,
                message,
                ..Default::default()
            });
        }
        conditions
    }
}
