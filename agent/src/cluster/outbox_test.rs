use super::*;

fn pod(uid: &str, version: u64, phase: &str) -> Pod {
    let pod = json!({
        "metadata": {"namespace": "default", "name": "web", "uid": uid, "resourceVersion": version.to_string()},
        "spec": {"containers": [{"name": "a"}]},
        "status": {"phase": phase},
    });
    serde_json::from_value(pod).expect("a pod")
}

fn report(uid: &str, phase: &str, source: Source, gone: bool) -> Report {
    Report { pod: pod(uid, 0, phase), source, gone }
}

struct Lab {
    outbox: Outbox,
    now: Instant,
}

impl Lab {
    fn new() -> Lab {
        Lab { outbox: Outbox::new("board-1".into()), now: Instant::now() }
    }

    /// The one step that is due, in short.
    fn step(&mut self) -> Option<String> {
        let mut steps = self.outbox.steps(4, self.now);
        assert!(steps.len() < 2, "{steps:?}");
        steps.pop().map(|(_, step)| match step {
            Step::PatchStatus { path, patch } => format!("{path} {}", patch["status"]),
            Step::Delete { path, options } => format!("delete {path} {}", options["preconditions"]["uid"]),
            Step::CreateMirror { path, pod } => {
                let meta = pod.metadata;
                let annotations = meta.annotations.expect("annotated");
                let owner = &meta.owner_references.expect("owned")[0];
                format!(
                    "create {path} {} of {} by {}",
                    meta.name.expect("named"),
                    annotations[MIRROR],
                    owner.uid
                )
            }
        })
    }

    fn report(&mut self, report: Report) {
        self.outbox.report(report, self.now);
    }
}

const STATUS: &str = "/api/v1/namespaces/default/pods/web/status";

#[test]
fn a_status_is_told_once_and_what_came_meanwhile_together() {
    let mut lab = Lab::new();
    lab.report(report("u", "Running", Source::Api, false));
    assert_eq!(lab.step(), None, "nobody knows yet what the API has");
    lab.outbox.all(&[pod("u", 1, "Pending")]);
    assert_eq!(lab.step().as_deref(), Some(&*format!("{STATUS} {{\"phase\":\"Running\"}}")));
    lab.report(report("u", "Pending", Source::Api, false));
    lab.report(report("u", "Succeeded", Source::Api, false));
    assert_eq!(lab.step(), None, "one at a time");
    lab.outbox.changed(&pod("u", 2, "Running"));
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step().as_deref(), Some(&*format!("{STATUS} {{\"phase\":\"Succeeded\"}}")));
    lab.outbox.changed(&pod("u", 3, "Succeeded"));
    lab.outbox.changed(&pod("u", 2, "Running"));
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step(), None, "what the watch tells late is no news");
    assert_eq!(lab.outbox.next_due(), None);
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_not_asked_for_again() {
    let mut lab = Lab::new();
    lab.outbox.all(&[pod("u", 1, "Pending")]);
    lab.report(report("u", "Running", Source::Api, false));
    assert!(lab.step().is_some());
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step(), None, "the server has its own idea of it");
    lab.outbox.changed(&pod("u", 5, "Pending"));
    assert!(lab.step().is_some(), "somebody changed it since");
}

#[test]
fn a_status_that_the_server_takes_otherwise_does_not_keep_a_pod_that_is_gone() {
    let mut lab = Lab::new();
    lab.outbox.all(&[pod("u", 1, "Running")]);
    lab.report(report("u", "Succeeded", Source::Api, true));
    assert!(lab.step().is_some_and(|step| step.starts_with(STATUS)));
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step().as_deref(), Some("delete /api/v1/namespaces/default/pods/web \"u\""));
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step(), None, "a finalizer holds it");
}

#[test]
fn a_failure_waits_and_many_changes_are_slowed_down() {
    let mut lab = Lab::new();
    lab.outbox.all(&[pod("u", 1, "Pending")]);
    lab.report(report("u", "Running", Source::Api, false));
    assert!(lab.step().is_some());
    lab.outbox.done("u", false, lab.now);
    assert_eq!(lab.step(), None);
    let due = lab.outbox.next_due().expect("tried again");
    lab.now = due;
    for version in 2..22 {
        let (is, was) = if version % 2 == 0 { ("Running", "Pending") } else { ("Pending", "Running") };
        lab.report(report("u", is, Source::Api, false));
        lab.outbox.changed(&pod("u", version, was));
        assert!(lab.step().is_some(), "{version}");
        lab.outbox.changed(&pod("u", version, is));
        lab.outbox.done("u", true, lab.now);
    }
    lab.outbox.changed(&pod("u", 30, "Unknown"));
    assert!(lab.step().is_some());
    lab.outbox.done("u", true, lab.now);
    lab.outbox.changed(&pod("u", 31, "Unknown"));
    assert_eq!(lab.step(), None);
    assert!(lab.outbox.next_due().is_some_and(|at| at > lab.now && at < lab.now + Duration::from_secs(2)));
}

#[test]
fn what_is_gone_here_is_deleted_there_after_its_last_word() {
    let mut lab = Lab::new();
    lab.outbox.all(&[pod("u", 1, "Running")]);
    lab.report(report("u", "Succeeded", Source::Api, true));
    assert_eq!(lab.step().as_deref(), Some(&*format!("{STATUS} {{\"phase\":\"Succeeded\"}}")));
    lab.outbox.changed(&pod("u", 2, "Succeeded"));
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step().as_deref(), Some("delete /api/v1/namespaces/default/pods/web \"u\""));
    lab.outbox.vanished("u");
    lab.outbox.done("u", true, lab.now);
    assert_eq!(lab.step(), None);
    assert!(lab.outbox.outgoing.is_empty(), "nothing is kept of it");
}

#[test]
fn a_pod_of_the_board_has_one_mirror_pod() {
    let mut lab = Lab::new();
    let manifest = || Source::Manifest("web.yaml".into());
    lab.outbox.all(&[]);
    lab.report(report("l", "Running", manifest(), false));
    assert_eq!(lab.step(), None, "the Node is not there yet");
    lab.outbox.node("n".into());
    let create = "create /api/v1/namespaces/default/pods web-board-1 of l by n";
    assert_eq!(lab.step().as_deref(), Some(create));
    let mirror = |uid: &str, of: &str, version| {
        let mut pod = pod(uid, version, "Pending");
        pod.metadata.name = Some("web-board-1".into());
        pod.metadata.annotations = Some([(MIRROR.to_string(), of.to_string())].into());
        pod
    };
    lab.outbox.changed(&mirror("m", "l", 7));
    lab.outbox.done("l", true, lab.now);
    let status = "/api/v1/namespaces/default/pods/web-board-1/status {\"phase\":\"Running\"}";
    assert_eq!(lab.step().as_deref(), Some(status));
    lab.outbox.done("l", true, lab.now);
    // Somebody deletes the image: it is made anew.
    let mut deleting = mirror("m", "l", 8);
    deleting.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    lab.outbox.changed(&deleting);
    assert_eq!(lab.step().as_deref(), Some("delete /api/v1/namespaces/default/pods/web-board-1 \"m\""));
    lab.outbox.vanished("l");
    lab.outbox.done("l", true, lab.now);
    assert_eq!(lab.step().as_deref(), Some(create));
    // The manifest was changed: another pod, another image.
    lab.outbox.changed(&mirror("m2", "before", 9));
    lab.outbox.done("l", true, lab.now);
    assert_eq!(lab.step().as_deref(), Some("delete /api/v1/namespaces/default/pods/web-board-1 \"m2\""));
    lab.outbox.deleted(&mirror("m2", "before", 10));
    lab.outbox.done("l", true, lab.now);
    assert_eq!(lab.step().as_deref(), Some(create));
    lab.outbox.done("l", true, lab.now);
    // A pod of that name that is no mirror pod is somebody else's.
    let mut other = mirror("o", "l", 11);
    other.metadata.annotations = None;
    lab.outbox.changed(&other);
    lab.report(report("l", "Failed", manifest(), false));
    assert_eq!(lab.step(), None);
    lab.report(report("l", "Failed", manifest(), true));
    assert_eq!(lab.step(), None);
    assert!(lab.outbox.outgoing.is_empty(), "nothing is kept of it");
}
