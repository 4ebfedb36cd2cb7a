//! Tables: what the core decides in the situations that users meet.

mod model;

use coracle_pod::action::Action;
use coracle_pod::observed::{InstanceState, ProbeKey, ProbeKind, Reason, Sandbox};
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

    let mut model = Model::new(pod(ONE));
    model.image("a:1");
    let plan = model.plan();
    plan.actions.iter().for_each(|action| model.obey(action));
    let plan = model.plan();
    let start = plan.actions.first().expect("a start").clone();
    model.fail(&start, Reason::RunContainerError);
    let plan = model.plan();
    assert_eq!(waiting(&plan), ("RunContainerError".into(), "it failed".into()));
    assert!(plan.actions.is_empty());
    model.pass(Duration::from_secs(10));
    let plan = model.plan();
    assert!(
        matches!(plan.actions.as_slice(), [Action::StartContainer { instance }] if instance.attempt == 1)
    );
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
