//! A seeded simulator: one seed decides the pod, the order of events and every fault; faults then stop, and the pod
//! must come to rest where its policy says.
//!
//! Faults: actions that fail, containers that exit, probes that fail, a shim that dies, an agent that crashes before
//! a history is committed, after it, and after each action, reboots, and resizes. The model asserts at each step that no
//! attempt is repeated, that no container runs twice, and that nothing starts out of order. `CORACLE_SIM_SEEDS` sets how many seeds
//! run; a failure names its seed.

mod model;

use coracle_pod::PodSpec;
use coracle_pod::action::Action;
use coracle_pod::observed::{Capacity, Reason, Sandbox};
use coracle_pod::spec::{Deletion, RestartPolicy};
use model::{Model, pod};
use std::time::Duration;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn some_pod(random: &mut Random) -> String {
    let policy = ["Always", "OnFailure", "Never"][random.below(3) as usize];
    let pull = ["IfNotPresent", "Always"][random.below(2) as usize];
    let container =
        |name: &str, probes: &str| format!("{{name: {name}, image: 'i:1', imagePullPolicy: {pull}{probes}}}");
    let mut text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: default}}\nspec:\n  restartPolicy: {policy}\n  terminationGracePeriodSeconds: 5\n"
    );
    if random.chance(20) {
        text += "  shareProcessNamespace: true\n";
    }
    if random.chance(50) {
        let inits: Vec<String> =
            (0..1 + random.below(2)).map(|n| container(&format!("init{n}"), "")).collect();
        text += &format!("  initContainers: [{}]\n", inits.join(", "));
    }
    let probe =
        |kind: &str| format!(", {kind}: {{tcpSocket: {{port: 1}}, periodSeconds: 2, failureThreshold: 2}}");
    let containers: Vec<String> = (0..1 + random.below(3))
        .map(|n| {
            let probes: String = ["startupProbe", "livenessProbe", "readinessProbe"]
                .into_iter()
                .filter(|_| random.chance(30))
                .map(probe)
                .collect();
            container(&format!("c{n}"), &probes)
        })
        .collect();
    text + &format!("  containers: [{}]\n", containers.join(", "))
}

/// One step: plan, commit, act; with faults, things go wrong anywhere in between.
fn step(model: &mut Model, random: &mut Random, faults: bool) {
    let committed = model.history.clone();
    let plan = model.plan();
    if faults && random.chance(3) {
        // Before the commit: the plan never happened.
        model.history = committed;
        return model.restart_agent();
    }
    if faults && random.chance(3) {
        // After the commit, before any action.
        return model.restart_agent();
    }
    let asleep = plan.actions.is_empty();
    for action in &plan.actions {
        assert!(!model.observed.in_flight.contains(&action.key()), "{action:?} is in flight already");
        if faults && random.chance(10) {
            let reason = match action {
                Action::PullImage { .. } => Reason::ErrImagePull,
                Action::StartContainer { .. } => Reason::RunContainerError,
                Action::Probe { key } => {
                    model.probed(key.clone(), false);
                    continue;
                }
                Action::CreateSandbox => Reason::FailedCreatePodSandBox,
                _ => Reason::FailedKillPod,
            };
            // A start that failed is an attempt that is spent.
            model.fail(action, reason);
        } else if faults && random.chance(10) {
            model.observed.in_flight.insert(action.key());
        } else {
            model.obey(action);
        }
        if faults && random.chance(2) {
            return model.restart_agent();
        }
    }
    // What was in flight ends some time.
    if !faults || random.chance(50) {
        model.observed.in_flight.clear();
    }
    if asleep {
        let until = plan.wake.unwrap_or(model.now.monotonic + Duration::from_secs(1));
        model.pass(until - model.now.monotonic);
    } else {
        model.pass(Duration::from_millis(50));
    }
}

fn mischief(model: &mut Model, random: &mut Random) {
    if random.chance(10)
        && let Some(instance) = model.running().into_iter().next()
    {
        let code = [0, 1, 137][random.below(3) as usize];
        model.exit(&instance, code);
    }
    if random.chance(2) {
        let broken = matches!(model.observed.sandbox, Sandbox::Ready { .. });
        if broken {
            let running = model.running();
            running.iter().for_each(|instance| drop(model.observed.instances.remove(instance)));
            model.observed.sandbox = Sandbox::Broken { why: "its shim ended".into() };
        }
    }
    if random.chance(1) {
        model.reboot();
    }
    if random.chance(2) {
        resize(&mut model.spec, random);
    }
    if random.chance(1) {
        model.spec.deletion = Some(Deletion { grace: Duration::from_secs(random.below(10)) });
    }
}

/// Asks for other resources: some that there are, some that there are not.
fn resize(spec: &mut PodSpec, random: &mut Random) {
    for container in &mut spec.containers {
        container.resources.cpu_request_millis = Some(100 * (1 + random.below(15)));
        container.restart_on_resize.cpu = random.chance(50);
    }
    let requests = spec.containers.iter().filter_map(|c| c.resources.cpu_request_millis);
    spec.resources.cpu_request_millis = Some(requests.sum());
}

/// Without faults: at rest within a bounded number of steps.
fn converge(model: &mut Model, random: &mut Random) {
    for _ in 0..3000 {
        let plan = coracle_pod::plan(&model.spec, &model.observed, &model.history, &model.now);
        if plan.gone {
            assert!(model.running().is_empty() && !model.observed.residue);
            return;
        }
        let phase = plan.status.phase.as_deref().unwrap_or_default().to_string();
        // Up, or ended for good while others run on.
        let settled = plan
            .status
            .container_statuses
            .iter()
            .flatten()
            .all(|c| c.ready || c.state.as_ref().is_some_and(|s| s.terminated.is_some()));
        if model.spec.deletion.is_none()
            && phase == "Running"
            && settled
            && plan.actions.is_empty()
            && plan.history.resizing.is_none()
        {
            return;
        }
        if model.spec.deletion.is_none()
            && matches!(phase.as_str(), "Succeeded" | "Failed")
            && model.observed.sandbox == Sandbox::Absent
        {
            assert!(
                model.spec.restart_policy != RestartPolicy::Always || phase == "Failed",
                "Always never succeeds"
            );
            assert!(model.running().is_empty());
            return;
        }
        // Init containers do their work; the others run.
        for instance in model.running() {
            if instance.container.starts_with("init") {
                model.exit(&instance, 0);
            }
        }
        step(model, random, false);
    }
    panic!("does not come to rest: {:#?}\n{:#?}", model.observed, model.history);
}

#[test]
fn pods_come_to_rest_whatever_happens_before() {
    let seeds = std::env::var("CORACLE_SIM_SEEDS").map_or(3000, |n| n.parse().expect("a number of seeds"));
    for seed in 0..seeds {
        let run = || {
            let mut random = Random(seed);
            let mut model = Model::new(pod(&some_pod(&mut random)));
            model.observed.capacity = Some(Capacity { pods: 9, cpu_millis: 1000, memory_bytes: 1 << 30 });
            let mut restarts = 0;
            for _ in 0..random.below(150) {
                mischief(&mut model, &mut random);
                step(&mut model, &mut random, true);
                let sum: u32 = model.history.containers.values().map(|c| c.restart_count).sum();
                assert!(sum >= restarts, "restart counts never fall");
                restarts = sum;
                let plan = coracle_pod::plan(&model.spec, &model.observed, &model.history, &model.now);
                if plan.gone {
                    return;
                }
            }
            converge(&mut model, &mut random);
            model.spec.deletion = Some(Deletion { grace: Duration::from_secs(3) });
            converge(&mut model, &mut random);
        };
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
