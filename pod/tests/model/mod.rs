//! A model of a board, for tables and simulation: obeys actions, keeps facts, has a clock.

use coracle_pod::action::{Action, Plan};
use coracle_pod::observed::{
    BootId, Cause, Exit, Failure, ImageState, Instance, InstanceId, InstanceState, Now, ProbeResult, Reason,
    Resized, Sandbox, Stamp, Verdict,
};
use coracle_pod::{ActionKey, History, Observed, PodSpec};
use std::collections::BTreeMap;
use std::time::Duration;

/// A pod on a modelled board.
pub struct Model {
    pub spec: PodSpec,
    pub observed: Observed,
    pub history: History,
    pub now: Now,
    /// How many times each instance was started: more than once is a failure.
    pub starts: BTreeMap<InstanceId, u32>,
    boots: u32,
    sequence: u64,
}

pub fn pod(yaml: &str) -> PodSpec {
    let objects = coracle_api::manifest::objects(yaml.as_bytes()).expect("a manifest");
    let Some(coracle_api::manifest::Object::Pod(mut pod)) = objects.into_iter().next() else {
        panic!("one pod")
    };
    pod.metadata.uid = Some("0b9a".into());
    PodSpec::from_api(&pod).expect("a valid pod")
}

impl Model {
    pub fn new(spec: PodSpec) -> Model {
        let wall = "2026-01-01T00:00:00Z".parse().expect("a time");
        let now = Now { monotonic: Duration::from_secs(100), boot: BootId("boot-0".into()), wall };
        Model {
            spec,
            observed: Observed::default(),
            history: History::default(),
            now,
            starts: BTreeMap::new(),
            boots: 0,
            sequence: 0,
        }
    }

    pub fn stamp(&self) -> Stamp {
        Stamp { boot: self.now.boot.clone(), monotonic: self.now.monotonic, wall: self.now.wall }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += jiff::SignedDuration::try_from(time).expect("short");
    }

    pub fn image(&mut self, name: &str) {
        let state = ImageState::Present { id: "sha256:1".into(), repo_digest: None, user: String::new() };
        self.observed.images.insert(name.into(), state);
    }

    /// Plans, checks that planning again asks for nothing new, and takes the history over.
    pub fn plan(&mut self) -> Plan {
        let plan = coracle_pod::plan(&self.spec, &self.observed, &self.history, &self.now);
        let mut keys: Vec<ActionKey> = plan.actions.iter().map(Action::key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), plan.actions.len(), "one action for one object: {:?}", plan.actions);
        let mut observed = self.observed.clone();
        observed.in_flight.extend(plan.actions.iter().map(Action::key));
        let again = coracle_pod::plan(&self.spec, &observed, &plan.history, &self.now);
        assert!(again.history.durable_eq(&plan.history), "history settles at once");
        assert!(again.events.is_empty(), "nothing is told twice: {:?}", again.events);
        assert_eq!(again.status, plan.status);
        if let Some(wake) = plan.wake {
            assert!(wake > self.now.monotonic, "the wake lies in the future");
        }
        self.history = plan.history.clone();
        plan
    }

    /// Carries an action out, well.
    pub fn obey(&mut self, action: &Action) {
        let key = action.key();
        self.observed.in_flight.remove(&key);
        self.observed.failures.remove(&key);
        match action {
            Action::PullImage { image, .. } => self.image(image),
            Action::CreateSandbox => {
                assert_eq!(self.observed.sandbox, Sandbox::Absent, "a sandbox is made where there is none");
                self.observed.sandbox =
                    Sandbox::Ready { ips: vec!["10.88.0.2".parse().expect("ip")], since: self.stamp() };
                self.observed.residue = true;
            }
            Action::UpdateVolumes => self.observed.volumes_behind = false,
            Action::Resize { instances } => {
                let (allocation, instances) = (self.history.allocated.clone(), instances.clone());
                self.observed.resized = Some(Resized { allocation, instances });
            }
            Action::StartContainer { instance } => self.start(instance),
            Action::Signal { instance, signal } => {
                if *signal == 9 {
                    self.exit(instance, 137);
                }
            }
            Action::RemoveContainer { instance, .. } => {
                let seen = self.observed.instances.remove(instance).map(|i| i.state);
                assert!(
                    matches!(seen, None | Some(InstanceState::Exited(_))),
                    "only what has ended is removed"
                );
            }
            Action::Probe { key } => self.probed(key.clone(), true),
            Action::StopSandbox => {
                let running: Vec<InstanceId> = self.running();
                running.iter().for_each(|id| self.exit(id, 137));
                self.observed.sandbox = Sandbox::Absent;
            }
            Action::RemovePod => {
                assert!(self.running().is_empty(), "nothing runs when the pod is removed");
                self.observed.instances.clear();
                self.observed.residue = false;
            }
        }
    }

    fn start(&mut self, instance: &InstanceId) {
        assert!(matches!(self.observed.sandbox, Sandbox::Ready { .. }), "no start without a sandbox");
        let container = self
            .spec
            .all_containers()
            .find(|c| c.name == instance.container)
            .expect("a container of the pod");
        assert!(self.observed.images.contains_key(&container.image), "no start without its image");
        assert!(
            self.running().iter().all(|r| r.container != instance.container),
            "never two of one container"
        );
        let position = self.spec.init_containers.iter().position(|c| c.name == instance.container);
        let ephemeral = self.spec.ephemeral_containers.iter().any(|c| c.name == instance.container);
        let before = position.unwrap_or(if ephemeral { 0 } else { self.spec.init_containers.len() });
        for init in &self.spec.init_containers[..before] {
            let known = self.history.containers.get(&init.name).filter(|h| !h.rerun);
            assert!(
                known.and_then(|h| h.exit.as_ref()).is_some_and(|e| e.code == 0),
                "{} starts before init container {}",
                instance.container,
                init.name
            );
        }
        *self.starts.entry(instance.clone()).or_default() += 1;
        assert_eq!(self.starts[instance], 1, "attempt {instance:?} is never repeated");
        self.observed.instances.insert(
            instance.clone(),
            Instance {
                state: InstanceState::Running { started: self.stamp() },
                container_id: "coracle://1".into(),
                image_id: "sha256:1".into(),
            },
        );
    }

    pub fn running(&self) -> Vec<InstanceId> {
        let runs = |i: &Instance| matches!(i.state, InstanceState::Running { .. });
        self.observed.instances.iter().filter(|(_, i)| runs(i)).map(|(id, _)| id.clone()).collect()
    }

    pub fn exit(&mut self, instance: &InstanceId, code: i32) {
        let finished = self.stamp();
        let Some(seen) = self.observed.instances.get_mut(instance) else { return };
        if let InstanceState::Running { started } = &seen.state {
            let started = Some(started.clone());
            seen.state = InstanceState::Exited(Exit {
                code,
                signal: None,
                cause: Cause::Process,
                started,
                finished,
                message: String::new(),
            });
        }
    }

    pub fn probed(&mut self, key: coracle_pod::observed::ProbeKey, ok: bool) {
        self.judged(key, if ok { Verdict::Success } else { Verdict::Failure("no".into()) });
    }

    pub fn judged(&mut self, key: coracle_pod::observed::ProbeKey, verdict: Verdict) {
        self.sequence += 1;
        let result = ProbeResult { verdict, at: self.stamp(), sequence: self.sequence };
        self.observed.in_flight.remove(&ActionKey::Probe(key.clone()));
        self.observed.probes.insert(key, result);
    }

    pub fn fail(&mut self, action: &Action, reason: Reason) {
        let key = action.key();
        self.observed.in_flight.remove(&key);
        let failure = Failure { reason, message: "it failed".into(), at: self.stamp() };
        self.observed.failures.insert(key, failure);
    }

    /// The agent starts anew: what it kept in memory is gone, what the board holds is not.
    pub fn restart_agent(&mut self) {
        self.observed.in_flight.clear();
        self.observed.failures.clear();
        self.observed.probes.clear();
        self.history = forgetful(&self.history);
    }

    /// Everything that ran is gone without a word.
    pub fn reboot(&mut self) {
        self.boots += 1;
        self.now.boot = BootId(format!("boot-{}", self.boots));
        self.now.monotonic = Duration::from_secs(10);
        self.observed.sandbox = Sandbox::Absent;
        self.observed.instances.retain(|_, i| matches!(i.state, InstanceState::Exited(_)));
        self.restart_agent();
    }
}

/// What a store gives back of a history.
pub fn forgetful(history: &History) -> History {
    let mut lost = history.clone();
    lost.probes.clear();
    lost.pulling.clear();
    lost.asked.clear();
    lost.told.clear();
    for container in lost.containers.values_mut() {
        container.swept = None;
        if let Some(stopping) = &mut container.stopping {
            stopping.sent = None;
        }
    }
    lost
}
