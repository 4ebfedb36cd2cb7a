//! Tables: what the core decides in the situations that users meet.

mod model;

use coracle_pod::action::Action;
use coracle_pod::fit::Load;
use coracle_pod::observed::{Capacity, InstanceState, ProbeKey, ProbeKind, Reason, Sandbox, Verdict};
use model::{Model, pod};
use std::time::Duration;

const ONE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\nspec:\n  containers: [{name: web, image: 'a:1', imagePullPolicy: IfNotPresent}]\n";

fn with(policy: &str) -> String {
    ONE.replace("  containers:", &format!("  restartPolicy: {policy}\n  containers:"))
}

/// Plans and obeys until nothing is asked any more.
fn settle(model: &mut Model) -> coracle_pod::Plan {
    for _ in 0..100 {
        let plan = model.plan();
        if plan.actions.is_empty() {
            return plan;
        }
        plan.actions.iter().for_each(|action| model.obey(action));
    }
    panic!("the plan does not settle");
}

fn waiting(plan: &coracle_pod::Plan) -> (String, String) {
    let statuses = plan.status.container_statuses.clone().expect("statuses");
    let waiting = statuses[0].state.clone().and_then(|s| s.waiting).expect("waiting");
    (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
}

#[test]
fn a_pod_comes_up_in_order() {
    let mut model = Model::new(pod(ONE));
    let first = model.plan();
    let kinds: Vec<bool> =
        first.actions.iter().map(|a| matches!(a, Action::PullImage { .. } | Action::CreateSandbox)).collect();
    assert_eq!(kinds, [true, true], "the pull runs beside the sandbox: {:?}", first.actions);
    let plan = settle(&mut model);
    assert_eq!(plan.status.phase.as_deref(), Some("Running"));
    let conditions = plan.status.conditions.expect("conditions");
    assert!(conditions.iter().all(|c| c.status == "True"), "{conditions:?}");
}

#[test]
fn crashes_back_off_as_the_kubelets_do() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    for expected in [0, 10, 20, 40, 80, 160, 300, 300] {
        let running = model.running().pop().expect("runs");
        model.exit(&running, 1);
        let plan = model.plan();
        if expected == 0 {
            assert!(
                matches!(plan.actions.as_slice(), [Action::StartContainer { .. }]),
                "at once: {:?}",
                plan.actions
            );
            plan.actions.iter().for_each(|action| model.obey(action));
            continue;
        }
        let (reason, _) = waiting(&plan);
        assert_eq!(reason, "CrashLoopBackOff");
        let wake = plan.wake.expect("a wake") - model.now.monotonic;
        assert_eq!(wake, Duration::from_secs(expected));
        model.pass(wake);
        settle(&mut model);
    }
    model.pass(Duration::from_secs(600));
    let running = model.running().pop().expect("runs");
    model.exit(&running, 1);
    let plan = model.plan();
    assert!(
        plan.actions.iter().any(|a| matches!(a, Action::StartContainer { .. })),
        "ten good minutes are forgiven"
    );
}

#[test]
fn restart_policies_decide_phase_and_restart() {
    let check = |policy: &str, code: i32, phase: &str| {
        let mut model = Model::new(pod(&with(policy)));
        settle(&mut model);
        let running = model.running().pop().expect("runs");
        model.exit(&running, code);
        let plan = settle(&mut model);
        assert_eq!(plan.status.phase.as_deref(), Some(phase), "{policy} {code}");
        if phase != "Running" {
            assert_eq!(model.observed.sandbox, Sandbox::Absent, "a finished pod keeps no network");
        }
    };
    check("Always", 0, "Running");
    check("Always", 1, "Running");
    check("OnFailure", 0, "Succeeded");
    check("OnFailure", 1, "Running");
    check("Never", 0, "Succeeded");
    check("Never", 1, "Failed");
}

/// Guards against a SIGTERM that history had as sent while the removal of an old attempt took its place: the
/// container then got nothing but SIGKILL.
#[test]
fn a_signal_and_the_removal_of_an_old_attempt_do_not_share_a_plan() {
    let probed = ONE.replace(
        "imagePullPolicy: IfNotPresent",
        "imagePullPolicy: IfNotPresent, livenessProbe: {tcpSocket: {port: 1}, failureThreshold: 1}",
    );
    let mut model = Model::new(pod(&probed));
    settle(&mut model);
    let first = model.running().pop().expect("runs");
    model.exit(&first, 1);
    settle(&mut model);
    let second = model.running().pop().expect("runs");
    model.exit(&second, 1);
    model.pass(Duration::from_secs(10));
    let plan = model.plan();
    // The third attempt is up before the first one's removal was tried, and fails its probe at once.
    let starts = |a: &&Action| matches!(a, Action::StartContainer { .. });
    plan.actions.iter().filter(starts).for_each(|action| model.obey(action));
    let third = model.running().pop().expect("runs");
    assert!(model.observed.instances.contains_key(&first), "not removed yet");
    model.probed(ProbeKey { instance: third.clone(), kind: ProbeKind::Liveness }, false);
    let plan = model.plan();
    assert!(
        matches!(plan.actions.as_slice(), [Action::Signal { signal: 15, instance }] if *instance == third),
        "{:?}",
        plan.actions
    );
    plan.actions.iter().for_each(|action| model.obey(action));
    model.exit(&third, 143);
    settle(&mut model);
    assert!(!model.observed.instances.contains_key(&first), "removed in its turn");
}

#[test]
fn deletion_asks_kindly_then_kills_then_removes() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    model.spec.deletion = Some(coracle_pod::spec::Deletion { grace: Duration::from_secs(30) });
    let plan = model.plan();
    assert!(matches!(plan.actions.as_slice(), [Action::Signal { signal: 15, .. }]), "{:?}", plan.actions);
    assert_eq!(plan.events[0].reason, "Killing");
    plan.actions.iter().for_each(|action| model.obey(action));
    let plan = model.plan();
    assert!(plan.actions.is_empty(), "it has its grace: {:?}", plan.actions);
    model.pass(plan.wake.expect("a wake") - model.now.monotonic);
    let plan = model.plan();
    assert!(matches!(plan.actions.as_slice(), [Action::Signal { signal: 9, .. }]), "{:?}", plan.actions);
    plan.actions.iter().for_each(|action| model.obey(action));
    let plan = settle(&mut model);
    assert!(plan.gone);
}

#[test]
fn init_containers_run_one_by_one_and_their_failure_is_final_with_never() {
    let text = with("Never").replace("  containers:", "  initContainers: [{name: a, image: 'a:1', imagePullPolicy: IfNotPresent}, {name: b, image: 'a:1', imagePullPolicy: IfNotPresent}]\n  containers:");
    let mut model = Model::new(pod(&text));
    settle(&mut model);
    assert_eq!(model.running().iter().map(|i| i.container.as_str()).collect::<Vec<_>>(), ["a"]);
    let a = model.running().pop().expect("runs");
    model.exit(&a, 0);
    settle(&mut model);
    assert_eq!(model.running().iter().map(|i| i.container.as_str()).collect::<Vec<_>>(), ["b"]);
    let b = model.running().pop().expect("runs");
    model.exit(&b, 1);
    assert_eq!(settle(&mut model).status.phase.as_deref(), Some("Failed"));
}

#[test]
fn failures_have_the_kubelets_words() {
    let mut model = Model::new(pod(ONE));
    let plan = model.plan();
    let pull = plan.actions.iter().find(|a| matches!(a, Action::PullImage { .. })).expect("a pull").clone();
    model.fail(&pull, Reason::ErrImagePull);
    let plan = model.plan();
    assert_eq!(waiting(&plan).0, "ErrImagePull");
    assert!(plan.events.iter().any(|e| e.reason == "BackOff"));
    model.pass(Duration::from_secs(10));
    let plan = model.plan();
    assert!(plan.actions.contains(&pull), "tried again after ten seconds: {:?}", plan.actions);
    model.fail(&pull, Reason::ErrImagePull);
    let plan = model.plan();
    assert_eq!(waiting(&plan).0, "ImagePullBackOff");

    let (mut model, start) = about_to_start(ONE);
    model.fail(&start, Reason::CreateContainerConfigError);
    let plan = model.plan();
    assert_eq!(waiting(&plan), ("CreateContainerConfigError".into(), "it failed".into()));
    assert!(plan.actions.is_empty());
    model.pass(Duration::from_secs(10));
    let plan = model.plan();
    assert!(
        matches!(plan.actions.as_slice(), [Action::StartContainer { instance }] if instance.attempt == 1)
    );
}

/// A pod whose image is here and whose sandbox is up, and the first start that its plan orders.
fn about_to_start(text: &str) -> (Model, Action) {
    let mut model = Model::new(pod(text));
    model.image("a:1");
    let plan = model.plan();
    plan.actions.iter().for_each(|action| model.obey(action));
    let start = model.plan().actions.first().expect("a start").clone();
    (model, start)
}

fn terminated(plan: &coracle_pod::Plan) -> (i32, String) {
    let status = plan.status.container_statuses.clone().expect("statuses").remove(0);
    let ended = [status.state, status.last_state].into_iter().flatten().find_map(|s| s.terminated);
    let ended = ended.expect("an end");
    (ended.exit_code, ended.reason.unwrap_or_default())
}

/// Guards against a job with a mistyped command that was started anew for ever under `restartPolicy: Never`.
#[test]
fn a_program_that_does_not_start_is_an_end_that_the_policy_judges() {
    let (mut model, start) = about_to_start(&with("Never"));
    model.fail(&start, Reason::RunContainerError);
    let plan = settle(&mut model);
    assert_eq!(plan.status.phase.as_deref(), Some("Failed"));
    assert_eq!(terminated(&plan), (128, "StartError".into()));

    let (mut model, start) = about_to_start(&with("Always"));
    model.fail(&start, Reason::RunContainerError);
    let again = model.plan();
    assert!(
        matches!(again.actions.as_slice(), [Action::StartContainer { .. }]),
        "at once: {:?}",
        again.actions
    );
    for (seconds, word) in [(10, "RunContainerError"), (20, "CrashLoopBackOff"), (40, "CrashLoopBackOff")] {
        let attempt = seconds / 10;
        model.observed.failures.clear();
        model.pass(Duration::from_millis(1));
        model.fail(&start, Reason::RunContainerError);
        let plan = model.plan();
        assert_eq!(waiting(&plan).0, word);
        assert_eq!(terminated(&plan), (128, "StartError".into()));
        assert!(plan.events.iter().any(|e| e.reason == "BackOff"), "{:?}", plan.events);
        let wake = plan.wake.expect("a wake") - model.now.monotonic;
        assert_eq!(wake, Duration::from_secs(seconds), "attempt {attempt}");
        model.pass(wake);
        let plan = model.plan();
        assert!(matches!(plan.actions.as_slice(), [Action::StartContainer { .. }]), "{:?}", plan.actions);
    }
}

#[test]
fn a_crash_loop_is_told_once_a_crash() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    let first = model.running().pop().expect("runs");
    model.exit(&first, 1);
    let plan = model.plan();
    assert!(plan.events.iter().all(|e| e.reason != "BackOff"), "the first restart does not wait");
    plan.actions.iter().for_each(|action| model.obey(action));
    let second = model.running().pop().expect("runs");
    model.exit(&second, 1);
    let plan = model.plan();
    let told: Vec<_> = plan.events.iter().filter(|e| e.reason == "BackOff").collect();
    assert_eq!(told.len(), 1, "{:?}", plan.events);
    assert_eq!(told[0].message, "Back-off restarting failed container web in pod web_default(0b9a)");
    assert_eq!(told[0].field_path.as_deref(), Some("spec.containers{web}"));
}

const WITH_INIT: &str =
    "  initContainers: [{name: a, image: 'a:1', imagePullPolicy: IfNotPresent}]\n  containers:";

#[test]
fn a_failed_init_container_runs_again_unless_the_policy_is_never() {
    for policy in ["Always", "OnFailure"] {
        let mut model = Model::new(pod(&with(policy).replace("  containers:", WITH_INIT)));
        settle(&mut model);
        for expected in [0, 10, 20] {
            let running = model.running().pop().expect("runs");
            assert_eq!(running.container, "a", "{policy}");
            model.exit(&running, 1);
            let plan = model.plan();
            assert_eq!(plan.status.phase.as_deref(), Some("Pending"), "{policy}");
            let conditions = plan.status.conditions.clone().expect("conditions");
            let initialized = conditions.iter().find(|c| c.type_ == "Initialized").expect("it is there");
            assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [a]"));
            plan.actions.iter().for_each(|action| model.obey(action));
            if expected > 0 {
                let wake = plan.wake.expect("a wake") - model.now.monotonic;
                assert_eq!(wake, Duration::from_secs(expected), "{policy}");
                model.pass(wake);
                settle(&mut model);
            }
        }
        let running = model.running().pop().expect("runs");
        model.exit(&running, 0);
        assert_eq!(settle(&mut model).status.phase.as_deref(), Some("Running"), "{policy}");
    }
}

/// Guards against a pod that came back after a reboot without what its init container had put into a tmpfs volume.
#[test]
fn init_containers_run_again_in_a_new_sandbox() {
    let mut model = Model::new(pod(&with("Always").replace("  containers:", WITH_INIT)));
    settle(&mut model);
    let init = model.running().pop().expect("runs");
    model.exit(&init, 0);
    settle(&mut model);
    assert_eq!(model.running()[0].container, "web");
    model.reboot();
    let plan = settle(&mut model);
    let running = model.running().pop().expect("runs");
    assert_eq!((running.container.as_str(), running.attempt), ("a", 1));
    assert_eq!(plan.status.phase.as_deref(), Some("Pending"));
    model.exit(&running, 0);
    let plan = settle(&mut model);
    assert_eq!((model.running()[0].container.as_str(), model.running()[0].attempt), ("web", 1));
    let init = &plan.status.init_container_statuses.expect("statuses")[0];
    assert_eq!((init.restart_count, init.ready), (1, true));
}

/// Guards against a server of a crashed attempt that kept its port while the next attempt could not get it.
#[test]
fn what_a_container_leaves_in_a_shared_pid_namespace_is_killed_before_the_next_attempt() {
    let shared = ONE.replace("  containers:", "  shareProcessNamespace: true\n  containers:");
    for (text, kills) in [(ONE, false), (&shared, true)] {
        let mut model = Model::new(pod(text));
        settle(&mut model);
        let first = model.running().pop().expect("runs");
        model.exit(&first, 1);
        let plan = model.plan();
        let killed =
            matches!(plan.actions.as_slice(), [Action::Signal { instance, signal: 9 }] if *instance == first);
        assert_eq!(killed, kills, "{:?}", plan.actions);
        plan.actions.iter().for_each(|action| model.obey(action));
        settle(&mut model);
        assert_eq!(model.running()[0].attempt, 1);
    }
}

#[test]
fn a_startup_probe_holds_the_others_back() {
    let text = ONE.replace(
        "imagePullPolicy: IfNotPresent",
        "imagePullPolicy: IfNotPresent, startupProbe: {tcpSocket: {port: 1}, failureThreshold: 3, periodSeconds: 1, terminationGracePeriodSeconds: 7}, livenessProbe: {tcpSocket: {port: 1}, failureThreshold: 1}, readinessProbe: {tcpSocket: {port: 1}}",
    );
    let probes = |plan: &coracle_pod::Plan| -> Vec<ProbeKind> {
        let kind = |a: &Action| if let Action::Probe { key } = a { Some(key.kind) } else { None };
        plan.actions.iter().filter_map(kind).collect()
    };
    let up = || {
        let (mut model, start) = about_to_start(&text);
        model.obey(&start);
        model
    };
    let mut model = up();
    let instance = model.running().pop().expect("runs");
    let key = |kind| ProbeKey { instance: instance.clone(), kind };
    let plan = model.plan();
    assert_eq!(probes(&plan), [ProbeKind::Startup]);
    let status = &plan.status.container_statuses.clone().expect("statuses")[0];
    assert_eq!((status.started, status.ready), (Some(false), false));
    model.probed(key(ProbeKind::Startup), true);
    let plan = model.plan();
    assert_eq!(
        probes(&plan),
        [ProbeKind::Readiness, ProbeKind::Liveness],
        "at once, and no more startup probes"
    );
    assert_eq!(plan.status.container_statuses.clone().expect("statuses")[0].started, Some(true));

    // One that never succeeds ends the container, with the probe's own grace.
    let mut model = up();
    for failures in 1..=3 {
        let plan = model.plan();
        assert_eq!(probes(&plan), [ProbeKind::Startup], "after {} failures", failures - 1);
        model.probed(key(ProbeKind::Startup), false);
        model.pass(Duration::from_secs(1));
    }
    let plan = model.plan();
    assert!(matches!(plan.actions.as_slice(), [Action::Signal { signal: 15, .. }]), "{:?}", plan.actions);
    assert_eq!(plan.wake, Some(model.now.monotonic + Duration::from_secs(7)));
}

#[test]
fn a_probe_that_warns_has_succeeded_and_says_so_once() {
    let text = ONE.replace(
        "imagePullPolicy: IfNotPresent",
        "imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}",
    );
    let (mut model, start) = about_to_start(&text);
    model.obey(&start);
    let key = ProbeKey { instance: model.running().pop().expect("runs"), kind: ProbeKind::Readiness };
    let mut check = |verdict: Verdict, ready: bool, warnings: &[&str]| {
        model.plan();
        model.judged(key.clone(), verdict.clone());
        model.pass(Duration::from_secs(1));
        let plan = model.plan();
        let told = plan.events.iter().filter(|e| e.reason == "ProbeWarning").map(|e| e.message.as_str());
        assert_eq!(told.collect::<Vec<_>>(), warnings, "{verdict:?}");
        assert_eq!(plan.status.container_statuses.expect("statuses")[0].ready, ready, "{verdict:?}");
    };
    let warning = |text: &str| Verdict::Warning(text.into());
    check(warning("a"), true, &["Readiness probe warning: a"]);
    check(warning("a"), true, &[]);
    check(warning("b"), true, &["Readiness probe warning: b"]);
    check(Verdict::Success, true, &[]);
    check(warning("b"), true, &["Readiness probe warning: b"]);
    for ready in [true, true, false] {
        check(Verdict::Failure("no".into()), ready, &[]);
    }
    check(warning("b"), true, &["Readiness probe warning: b"]);
}

/// Guards against a job that its liveness probe ended, that left with code 0 as servers do, and so had succeeded.
#[test]
fn what_a_probe_ended_is_started_again_whatever_its_code() {
    let probed = |policy: &str| {
        with(policy).replace(
            "imagePullPolicy: IfNotPresent",
            "imagePullPolicy: IfNotPresent, livenessProbe: {tcpSocket: {port: 1}, failureThreshold: 1}",
        )
    };
    for (policy, phase) in [("Always", "Running"), ("OnFailure", "Running"), ("Never", "Succeeded")] {
        let mut model = Model::new(pod(&probed(policy)));
        settle(&mut model);
        let first = model.running().pop().expect("runs");
        model.probed(ProbeKey { instance: first.clone(), kind: ProbeKind::Liveness }, false);
        model.plan();
        model.exit(&first, 0);
        let plan = settle(&mut model);
        assert_eq!(plan.status.phase.as_deref(), Some(phase), "{policy}");
        // The next time is in back-off, as after any crash.
        let Some(second) = model.running().pop() else { continue };
        model.probed(ProbeKey { instance: second.clone(), kind: ProbeKind::Liveness }, false);
        model.plan();
        model.exit(&second, 0);
        let plan = model.plan();
        assert_eq!(waiting(&plan).0, "CrashLoopBackOff", "{policy}");
        assert_eq!(plan.wake, Some(model.now.monotonic + Duration::from_secs(10)));
    }
}

#[test]
fn a_pod_that_asks_for_more_than_the_board_has_is_rejected() {
    let check = |resources: &str, expected: Option<&str>| {
        let text =
            ONE.replace("IfNotPresent", &format!("IfNotPresent, resources: {{requests: {resources}}}"));
        let mut model = Model::new(pod(&text));
        model.observed.capacity = Some(Capacity { pods: 2, cpu_millis: 4000, memory_bytes: 1 << 30 });
        let plan = settle(&mut model);
        assert_eq!(plan.status.reason.as_deref(), expected, "{resources}");
        let phase = if expected.is_some() { "Failed" } else { "Running" };
        assert_eq!(plan.status.phase.as_deref(), Some(phase));
        assert_eq!(model.running().is_empty(), expected.is_some());
    };
    check("{cpu: 4, memory: 1Gi}", None);
    check("{memory: 1025Mi}", Some("OutOfmemory"));
    check("{cpu: 4001m}", Some("OutOfcpu"));
    check("{memory: 1Ei}", Some("OutOfmemory"));
}

/// Who has been admitted stays, whatever comes after: only the newcomer is rejected.
#[test]
fn a_pod_is_admitted_once_and_beside_the_others() {
    let full = Load { pods: 1, cpu_millis: 3999, memory_bytes: 0 };
    let check = |before: Load, after: Load, expected: Option<&str>| {
        let text = ONE.replace("IfNotPresent", "IfNotPresent, resources: {requests: {cpu: 2m}}");
        let mut model = Model::new(pod(&text));
        model.observed.capacity = Some(Capacity { pods: 2, cpu_millis: 4000, memory_bytes: 1 << 30 });
        model.observed.load = before;
        model.plan();
        model.observed.load = after;
        let plan = settle(&mut model);
        assert_eq!(plan.status.reason.as_deref(), expected, "{before:?}, then {after:?}");
    };
    check(Load::default(), full, None);
    check(full, Load::default(), Some("OutOfcpu"));
    check(Load { pods: 2, ..Load::default() }, Load::default(), Some("OutOfpods"));
}

#[test]
fn an_always_image_is_asked_for_but_started_without_its_registry() {
    let mut model = Model::new(pod(&ONE.replace("IfNotPresent", "Always")));
    model.image("a:1");
    let plan = model.plan();
    let pull = plan
        .actions
        .iter()
        .find(|a| matches!(a, Action::PullImage { always: true, .. }))
        .expect("asked")
        .clone();
    model.fail(&pull, Reason::RegistryUnavailable);
    settle(&mut model);
    assert_eq!(model.running().len(), 1, "offline is normal");
}

#[test]
fn a_reboot_restarts_what_ran() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    model.reboot();
    let plan = settle(&mut model);
    let status = &plan.status.container_statuses.expect("statuses")[0];
    assert_eq!(status.restart_count, 1);
    let last = status.last_state.clone().and_then(|s| s.terminated).expect("how it ended");
    assert_eq!((last.exit_code, last.finished_at.is_some()), (137, true));
    assert!(model.observed.instances.values().any(|i| matches!(i.state, InstanceState::Running { .. })));
}

#[test]
fn a_deadline_fails_the_pod() {
    let mut model =
        Model::new(pod(&ONE.replace("  containers:", "  activeDeadlineSeconds: 60\n  containers:")));
    let plan = settle(&mut model);
    model.pass(plan.wake.expect("a wake") - model.now.monotonic);
    let plan = model.plan();
    assert_eq!(plan.status.phase.as_deref(), Some("Failed"));
    assert_eq!(plan.status.reason.as_deref(), Some("DeadlineExceeded"));
}

/// The pod [`ONE`] with these requests of cpu, and this policy for it.
fn sized(cpu: &str, policy: &str) -> coracle_pod::PodSpec {
    let more = format!(
        ", resources: {{requests: {{cpu: {cpu}}}}}, resizePolicy: [{{resourceName: cpu, restartPolicy: {policy}}}]}}]"
    );
    pod(&ONE.replace("}]\n", &format!("{more}\n")))
}

fn resize_conditions(plan: &coracle_pod::Plan) -> Vec<(String, String, String)> {
    let conditions = plan.status.conditions.iter().flatten();
    let text = Option::unwrap_or_default;
    conditions
        .filter(|c| c.type_.starts_with("PodResize"))
        .map(|c| (c.type_.clone(), text(c.reason.clone()), text(c.message.clone())))
        .collect()
}

/// What the first container is said to run with, and what it is granted.
fn cpu(plan: &coracle_pod::Plan) -> (String, String) {
    let status = &plan.status.container_statuses.as_ref().expect("statuses")[0];
    let requests = status.resources.clone().and_then(|r| r.requests).expect("requests");
    let allocated = status.allocated_resources.clone().expect("allocated");
    (requests["cpu"].0.clone(), allocated["cpu"].0.clone())
}

fn sized_model(policy: &str) -> Model {
    let mut model = Model::new(sized("500m", policy));
    model.observed.capacity = Some(Capacity { pods: 9, cpu_millis: 4000, memory_bytes: 1 << 30 });
    let plan = settle(&mut model);
    assert_eq!((cpu(&plan), resize_conditions(&plan)), (("500m".into(), "500m".into()), vec![]));
    model
}

#[test]
fn a_resize_goes_to_the_cgroups_and_starts_nothing_anew() {
    let mut model = sized_model("NotRequired");
    model.spec = sized("1500m", "NotRequired");
    let plan = model.plan();
    assert!(
        matches!(plan.actions.as_slice(), [Action::Resize { instances }] if instances.len() == 1),
        "{plan:?}"
    );
    assert_eq!(cpu(&plan), ("500m".into(), "1500m".into()));
    let in_progress = |reason: &str, message: &str| {
        vec![("PodResizeInProgress".to_string(), reason.to_string(), message.to_string())]
    };
    assert_eq!(resize_conditions(&plan), in_progress("", ""));
    assert_eq!(plan.events[0].reason, "ResizeStarted");
    // The kernel refuses: told, and tried again in a while.
    model.fail(&plan.actions[0], Reason::FailedResize);
    let plan = model.plan();
    assert_eq!((plan.actions.len(), resize_conditions(&plan).len()), (0, 1));
    assert_eq!(resize_conditions(&plan)[0].1, "Error");
    // Whoever was killed in between does it once more.
    model.pass(plan.wake.expect("later") - model.now.monotonic);
    model.restart_agent();
    let plan = settle(&mut model);
    assert_eq!(resize_conditions(&plan), []);
    assert_eq!(cpu(&plan), ("1500m".into(), "1500m".into()));
    assert_eq!(model.starts.values().sum::<u32>(), 1);
}

#[test]
fn a_container_whose_policy_says_so_ends_before_its_cgroup_changes() {
    let mut model = sized_model("RestartContainer");
    model.spec = sized("250m", "RestartContainer");
    let plan = model.plan();
    assert!(matches!(plan.actions.as_slice(), [Action::Signal { signal: 15, .. }]), "{plan:?}");
    assert!(plan.events.iter().any(|e| e.message == "Container web resize requires restart"), "{plan:?}");
    let running = model.running().pop().expect("runs");
    model.observed.in_flight.clear();
    model.exit(&running, 0);
    let plan = model.plan();
    assert!(
        matches!(plan.actions.as_slice(), [Action::Resize { instances }] if instances.is_empty()),
        "{plan:?}"
    );
    let plan = settle(&mut model);
    assert_eq!((cpu(&plan), resize_conditions(&plan)), (("250m".into(), "250m".into()), vec![]));
    let status = &plan.status.container_statuses.as_ref().expect("statuses")[0];
    assert_eq!((status.restart_count, model.running().len()), (1, 1));
    // It was ended for this: the next crash is the first.
    assert!(model.history.containers["web"].backoff.delay.is_zero());
}

#[test]
fn what_is_not_granted_waits_and_may_be_taken_back() {
    let mut model = sized_model("NotRequired");
    let check = |model: &mut Model, wanted: &str, others: u64, expected: Option<(&str, &str)>| {
        model.spec = sized(wanted, "NotRequired");
        model.observed.load = Load { pods: 1, cpu_millis: others, memory_bytes: 0 };
        let plan = settle(model);
        let found = resize_conditions(&plan);
        let found = found.first().map(|(_, reason, message)| (reason.as_str(), message.as_str()));
        assert_eq!(found, expected, "{wanted} beside {others}");
        cpu(&plan).0
    };
    let deferred = "Node didn't have enough resource: cpu, requested: 2000, used: 2500, capacity: 4000";
    assert_eq!(check(&mut model, "2", 2500, Some(("Deferred", deferred))), "500m");
    let never = "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000";
    assert_eq!(check(&mut model, "5", 0, Some(("Infeasible", never))), "500m");
    assert_eq!(check(&mut model, "500m", 9000, None), "500m");
    assert_eq!(check(&mut model, "2", 2000, None), "2");
    // What was granted before a reboot is granted.
    model.reboot();
    let plan = settle(&mut model);
    assert_eq!((cpu(&plan).0, resize_conditions(&plan)), ("2".into(), vec![]));
}
