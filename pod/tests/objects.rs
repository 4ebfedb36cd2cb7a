//! Tables: what waits for objects, what follows them, and what the API may change in a pod that runs.

mod model;

use coracle_pod::Plan;
use coracle_pod::action::Action;
use coracle_pod::observed::Reason;
use k8s_openapi::api::core::v1::ContainerStatus;
use model::{Model, pod};
use std::time::Duration;

const ONE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: default}\nspec:\n  containers: [{name: web, image: 'a:1', imagePullPolicy: IfNotPresent}]\n";
const DEBUG: &str = "  ephemeralContainers: [{name: look, image: 'a:1', targetContainerName: web}]\n";

fn settle(model: &mut Model) -> Plan {
    for _ in 0..100 {
        let plan = model.plan();
        if plan.actions.is_empty() {
            return plan;
        }
        plan.actions.iter().for_each(|action| model.obey(action));
    }
    panic!("the plan does not settle");
}

fn waiting(status: &ContainerStatus) -> (String, String) {
    let waiting = status.state.clone().and_then(|s| s.waiting).expect("waiting");
    (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default())
}

fn first(plan: &Plan) -> ContainerStatus {
    plan.status.container_statuses.clone().expect("statuses").remove(0)
}

fn told(plan: &Plan) -> Vec<(&'static str, String)> {
    plan.events.iter().map(|event| (event.reason, event.message.clone())).collect()
}

#[test]
fn a_volume_without_its_object_holds_the_sandbox_until_it_comes() {
    let mut model = Model::new(pod(ONE));
    model.image("a:1");
    model.observed.unmet.volumes.insert("v".into(), None);
    let plan = model.plan();
    assert!(plan.actions.is_empty() && plan.events.is_empty(), "nobody has answered: {plan:?}");
    let why = "configmap \"x\" not found".to_string();
    model.observed.unmet.volumes.insert("v".into(), Some(why));
    let plan = model.plan();
    let expected = "MountVolume.SetUp failed for volume \"v\" : configmap \"x\" not found";
    assert_eq!(told(&plan), [("FailedMount", expected.to_string())]);
    assert!(plan.actions.is_empty() && plan.wake.is_none(), "{plan:?}");
    assert_eq!(waiting(&first(&plan)), ("ContainerCreating".into(), String::new()));
    model.pass(Duration::from_secs(3600));
    assert!(model.plan().events.is_empty(), "said once");
    model.observed.unmet.volumes.clear();
    let plan = model.plan();
    assert_eq!(plan.actions, [Action::CreateSandbox], "at once");
}

#[test]
fn a_container_without_its_variables_waits_as_with_the_kubelet() {
    let mut model = Model::new(pod(ONE));
    model.image("a:1");
    let why = "couldn't find key k in ConfigMap default/x".to_string();
    model.observed.unmet.containers.insert("web".into(), Some(why.clone()));
    let sandbox = model.plan();
    assert_eq!(sandbox.actions, [Action::CreateSandbox], "a volume is not concerned");
    model.obey(&Action::CreateSandbox);
    let plan = model.plan();
    assert!(plan.actions.is_empty(), "{plan:?}");
    assert_eq!(waiting(&first(&plan)), ("CreateContainerConfigError".into(), why.clone()));
    assert!(told(&plan).contains(&("Failed", format!("Error: {why}"))), "{:?}", told(&plan));
    model.observed.unmet.containers.clear();
    let plan = settle(&mut model);
    assert_eq!(plan.status.phase.as_deref(), Some("Running"));
    // What runs is not disturbed by an object that goes; what is to be started again waits.
    model.observed.unmet.containers.insert("web".into(), Some(why.clone()));
    assert!(model.plan().actions.is_empty());
    let running = model.running().pop().expect("runs");
    model.exit(&running, 1);
    let plan = model.plan();
    assert!(plan.actions.is_empty(), "{plan:?}");
    assert_eq!(waiting(&first(&plan)), ("CreateContainerConfigError".into(), why));
}

#[test]
fn volumes_follow_their_objects_and_keep_what_is_gone() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    model.observed.volumes_behind = true;
    let plan = model.plan();
    assert_eq!(plan.actions, [Action::UpdateVolumes]);
    model.fail(&Action::UpdateVolumes, Reason::FailedMount);
    let plan = model.plan();
    assert_eq!(told(&plan), [("FailedMount", "it failed".into())]);
    assert!(plan.actions.is_empty() && plan.wake.is_some(), "later: {plan:?}");
    model.pass(Duration::from_secs(10));
    assert_eq!(model.plan().actions, [Action::UpdateVolumes]);
    model.obey(&Action::UpdateVolumes);
    assert!(model.plan().actions.is_empty());
    model.observed.volumes_behind = true;
    model.observed.unmet.volumes.insert("v".into(), Some("secret \"x\" not found".into()));
    let plan = model.plan();
    assert!(plan.actions.is_empty(), "{plan:?}");
    assert_eq!(plan.events.len(), 1);
}

#[test]
fn readiness_gates_hold_the_pod_back_and_nothing_else() {
    let mut model = Model::new(pod(&ONE.replace(
        "  containers:",
        "  readinessGates: [{conditionType: example.test/afloat}]\n  containers:",
    )));
    let check = |model: &mut Model, expected: Result<(), &str>| {
        let plan = settle(model);
        let conditions = plan.status.conditions.clone().expect("conditions");
        let of = |kind: &str| conditions.iter().find(|c| c.type_ == kind).expect("told").clone();
        assert_eq!(of("ContainersReady").status, "True");
        let ready = of("Ready");
        match expected {
            Ok(()) => assert_eq!((ready.status.as_str(), ready.message), ("True", None)),
            Err(message) => {
                assert_eq!(ready.status, "False");
                assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
                assert_eq!(ready.message.as_deref(), Some(message));
            }
        }
    };
    let gate = "pod readiness gate \"example.test/afloat\"";
    check(&mut model, Err(&format!("corresponding condition of {gate} does not exist.")));
    model.observed.foreign_conditions.insert("example.test/afloat".into(), "False".into());
    check(&mut model, Err(&format!("the status of {gate} is not \"True\", but False")));
    model.observed.foreign_conditions.insert("example.test/afloat".into(), "True".into());
    check(&mut model, Ok(()));
}

#[test]
fn an_ephemeral_container_comes_to_a_running_pod_and_is_never_started_again() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    model.spec = pod(&format!("{ONE}{DEBUG}"));
    let plan = settle(&mut model);
    let of = |plan: &Plan| plan.status.ephemeral_container_statuses.clone().expect("statuses").remove(0);
    let status = of(&plan);
    assert!(status.state.and_then(|s| s.running).is_some() && !status.ready);
    assert_eq!(plan.status.phase.as_deref(), Some("Running"));
    let field = "spec.ephemeralContainers{look}";
    model.exit(&coracle_pod::observed::InstanceId { container: "look".into(), attempt: 0 }, 1);
    let plan = model.plan();
    assert!(plan.actions.is_empty(), "restartPolicy Always is not for it: {plan:?}");
    assert_eq!(of(&plan).state.and_then(|s| s.terminated).map(|t| t.exit_code), Some(1));
    assert_eq!(plan.status.phase.as_deref(), Some("Running"), "and its end is nothing to the pod");
    assert!(plan.events.iter().all(|e| e.field_path.as_deref() != Some(field)), "no back-off");
    model.reboot();
    let plan = settle(&mut model);
    assert_eq!(of(&plan).state.and_then(|s| s.terminated).map(|t| t.exit_code), Some(1));
    assert_eq!(model.running().len(), 1, "the pod comes back, and what looked into it does not");
    // A pod whose init container hangs can be looked into.
    let stuck = "  initContainers: [{name: stuck, image: 'a:1'}]\n";
    let mut model = Model::new(pod(&format!("{ONE}{stuck}{DEBUG}")));
    model.image("a:1");
    settle(&mut model);
    let mut running: Vec<String> = model.running().into_iter().map(|i| i.container).collect();
    running.sort();
    assert_eq!(running, ["look", "stuck"]);
}

#[test]
fn another_image_replaces_the_container_whatever_its_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let text = ONE.replace("  containers:", &format!("  restartPolicy: {policy}\n  containers:"));
        let mut model = Model::new(pod(&text));
        settle(&mut model);
        model.spec = pod(&text.replace("a:1", "a:2"));
        let plan = model.plan();
        let killing = ("Killing", "Container web definition changed, will be restarted".to_string());
        assert!(told(&plan).contains(&killing), "{policy}: {plan:?}");
        let status = first(&plan);
        assert_eq!((status.image.as_str(), status.restart_count), ("a:1", 0), "what still runs");
        plan.actions.iter().for_each(|action| model.obey(action));
        let running = model.running().pop().expect("on its way out");
        model.exit(&running, 0);
        let plan = settle(&mut model);
        let status = first(&plan);
        assert_eq!((status.image.as_str(), status.restart_count), ("a:2", 1), "{policy}");
        assert!(status.state.and_then(|s| s.running).is_some(), "{policy}");
        assert!(model.plan().actions.is_empty());
    }
    // One that crashes is not held back by what its former image did.
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    for _ in 0..2 {
        model.pass(Duration::from_secs(300));
        let running = settle(&mut model);
        drop(running);
        let id = model.running().pop().expect("runs");
        model.exit(&id, 1);
    }
    assert!(model.plan().actions.is_empty(), "backs off");
    model.spec = pod(&ONE.replace("a:1", "a:2"));
    model.image("a:2");
    let plan = model.plan();
    assert!(matches!(plan.actions.as_slice(), [Action::StartContainer { .. }]), "{:?}", plan.actions);
}

#[test]
fn a_deadline_that_is_set_later_counts_from_the_pods_start() {
    let mut model = Model::new(pod(ONE));
    settle(&mut model);
    model.pass(Duration::from_secs(100));
    model.spec = pod(&ONE.replace("  containers:", "  activeDeadlineSeconds: 60\n  containers:"));
    let plan = model.plan();
    assert_eq!(plan.status.reason.as_deref(), Some("DeadlineExceeded"));
}
