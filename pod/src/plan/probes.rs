//! Probes: when they run, what their results mean. Follows the kubelet's prober (pkg/kubelet/prober/worker.go).

use super::{Planner, Role};
use crate::ActionKey;
use crate::action::{Action, EventType};
use crate::history::ProbeHistory;
use crate::observed::{ProbeKey, ProbeKind, Verdict};
use crate::spec::{ContainerSpec, Probe};

impl Planner<'_> {
    pub(super) fn probe(&mut self) {
        let spec = self.spec;
        for container in &spec.containers {
            let name = container.name.as_str();
            if self.running(name).is_none() {
                continue;
            }
            for kind in [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness] {
                let Some(probe) = probe_of(container, kind) else { continue };
                self.learn_probe(container, kind, probe);
                let gated = kind != ProbeKind::Startup && !self.started(container);
                let over = kind == ProbeKind::Startup && self.passing(name, kind);
                let stopping = self.of(name).is_some_and(|h| h.stopping.is_some());
                if !gated && !over && !stopping {
                    self.run_when_due(container, kind, probe);
                }
            }
        }
    }

    /// Whether the startup probe has succeeded, or there is none: `status.started`.
    pub(super) fn started(&self, container: &ContainerSpec) -> bool {
        self.running(&container.name).is_some()
            && (container.startup.is_none() || self.passing(&container.name, ProbeKind::Startup))
    }

    /// `status.ready`.
    pub(super) fn ready(&self, container: &ContainerSpec) -> bool {
        let stopping = self.of(&container.name).is_some_and(|h| h.stopping.is_some());
        self.started(container)
            && !stopping
            && (container.readiness.is_none() || self.passing(&container.name, ProbeKind::Readiness))
    }

    fn passing(&self, name: &str, kind: ProbeKind) -> bool {
        self.history.probes.get(&(name.into(), kind)).is_some_and(|p| p.passing)
    }

    fn counters(&mut self, name: &str, kind: ProbeKind, attempt: u32) -> &mut ProbeHistory {
        let counters = self.history.probes.entry((name.into(), kind)).or_default();
        if counters.attempt != attempt {
            *counters = ProbeHistory { attempt, ..Default::default() };
        }
        counters
    }

    fn learn_probe(&mut self, container: &ContainerSpec, kind: ProbeKind, probe: &Probe) {
        let name = container.name.as_str();
        let Some(instance) = self.running(name).map(|(i, _)| i.clone()) else { return };
        let attempt = instance.attempt;
        let Some(result) = self.seen.probes.get(&ProbeKey { instance, kind }).cloned() else { return };
        let counters = self.counters(name, kind, attempt);
        if result.sequence <= counters.last_sequence {
            return;
        }
        counters.last_sequence = result.sequence;
        let title = match kind {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        };
        let why = match result.verdict {
            Verdict::Failure(why) => why,
            Verdict::Success => {
                counters.succeeded(probe);
                counters.warned = None;
                return;
            }
            Verdict::Warning(why) => {
                counters.succeeded(probe);
                // The kubelet says it each time; once is enough for what stays so, and for the log on flash.
                if counters.warned.replace(why.clone()).as_ref() != Some(&why) {
                    let message = format!("{title} probe warning: {why}");
                    self.event(EventType::Warning, "ProbeWarning", message, Some((name, Role::Main)));
                }
                return;
            }
        };
        counters.warned = None;
        counters.successes = 0;
        counters.failures = counters.failures.saturating_add(1);
        let beyond = counters.failures >= probe.failure_threshold;
        if beyond && kind == ProbeKind::Readiness {
            counters.passing = false;
        }
        let message = format!("{title} probe failed: {why}");
        self.event(EventType::Warning, "Unhealthy", message, Some((name, Role::Main)));
        if beyond && kind != ProbeKind::Readiness {
            let what = title.to_lowercase();
            let why = format!("Container {name} failed {what} probe, will be restarted");
            let grace = probe.termination_grace.unwrap_or(self.spec.termination_grace);
            self.stop(name, Role::Main, grace, &why);
            if let Some(stopping) = &mut self.entry(name).stopping {
                stopping.for_restart = true;
            }
        }
    }

    fn run_when_due(&mut self, container: &ContainerSpec, kind: ProbeKind, probe: &Probe) {
        let name = container.name.as_str();
        let Some((instance, started)) = self.running(name).map(|(i, s)| (i.clone(), s.clone())) else {
            return;
        };
        let key = ProbeKey { instance: instance.clone(), kind };
        if self.in_flight(&ActionKey::Probe(key.clone())) {
            return;
        }
        let first = self.after(&started, probe.initial_delay);
        let last = self.counters(name, kind, instance.attempt).last_run;
        let due = last.map_or(first, |last| last.saturating_add(probe.period));
        if self.passed(due) && self.order(Action::Probe { key }) {
            let now = self.now.monotonic;
            self.counters(name, kind, instance.attempt).last_run = Some(now);
        }
    }
}

impl ProbeHistory {
    fn succeeded(&mut self, probe: &Probe) {
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        self.passing |= self.successes >= probe.success_threshold;
    }
}

fn probe_of(container: &ContainerSpec, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.startup.as_ref(),
        ProbeKind::Readiness => container.readiness.as_ref(),
        ProbeKind::Liveness => container.liveness.as_ref(),
    }
}
