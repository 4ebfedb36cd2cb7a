//! Jobs with the real server and kubectl; boards are played.

use crate::boards::{ended, image, play, ready};
use crate::control::Control;
use crate::kubectl::Kubectl;
use crate::scheduling::board;
use serde_json::{Value, json};

/// Images say what becomes of their pods: `ok` and `broken` end, everything else runs on.
fn until(kubectl: &Kubectl<'_>, what: &str, so: impl Fn() -> bool) {
    let run = |pod: &Value| match image(pod) {
        "ok" => Some(ended(0)),
        "broken" => Some(ended(1)),
        _ => Some(ready()),
    };
    play(kubectl, what, run, so);
}

#[expect(clippy::needless_pass_by_value, reason = "written in place")]
fn job(name: &str, image: &str, more: Value) -> String {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"metadata": {"labels": {"app": name}}, "spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": image}],
        }}},
    });
    for (key, value) in more.as_object().expect("fields") {
        job["spec"][key] = value.clone();
    }
    job.to_string()
}

#[test]
fn jobs_end_well_or_say_why_not() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    kubectl.run(&["create", "-f", "-"], &board("a", "8").to_string()).expect("a node");
    let get = |what: &str, path: &str| kubectl.ok(&["get", what, "-o", &format!("jsonpath={{{path}}}")]);
    let is = |what: &str, path: &str, expected: &str| get(what, path) == expected;
    let pods_of = |name: &str, path: &str| {
        let selector = format!("batch.kubernetes.io/job-name={name}");
        kubectl.ok(&["get", "pods", "-l", &selector, "-o", &format!("jsonpath={{.items[*]{path}}}")])
    };
    let create = |job: &str| kubectl.run(&["create", "-f", "-"], job).expect("made");

    kubectl.ok(&["create", "job", "once", "--image=ok", "--", "true"]);
    until(&kubectl, "a success", || is("job/once", ".status.completionTime", "").eq(&false));
    kubectl.ok(&["wait", "--for=condition=complete", "job/once", "--timeout=30s"]);
    assert_eq!(get("job/once", ".status.succeeded"), "1");
    let conditions = get("job/once", ".status.conditions[*]['type','reason']");
    assert_eq!(conditions, "SuccessCriteriaMet Complete CompletionsReached CompletionsReached");
    assert_eq!(pods_of("once", ".metadata.finalizers"), "", "it is counted");
    assert!(pods_of("once", ".metadata.name").starts_with("once-"));
    let described = kubectl.ok(&["describe", "job", "once"]);
    for part in ["SuccessfulCreate", "Created pod: once-", "Completed", "Job completed", "1 Succeeded"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let listed = kubectl.ok(&["get", "jobs", "once", "--no-headers"]);
    assert_eq!(listed.split_whitespace().take(3).collect::<Vec<_>>(), ["once", "Complete", "1/1"]);

    create(&job("bad", "broken", json!({"backoffLimit": 1})));
    until(&kubectl, "two failures", || is("job/bad", ".status.failed", "2"));
    kubectl.ok(&["wait", "--for=condition=failed", "job/bad", "--timeout=30s"]);
    let described = kubectl.ok(&["describe", "job", "bad"]);
    let why = "Job has reached the specified backoff limit";
    assert!(described.contains("BackoffLimitExceeded") && described.contains(why), "{described}");

    create(&job("pieces", "ok", json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2})));
    until(&kubectl, "all pieces", || is("job/pieces", ".status.completedIndexes", "0-2"));
    kubectl.ok(&["wait", "--for=condition=complete", "job/pieces", "--timeout=30s"]);
    let mut hosts: Vec<String> =
        pods_of("pieces", ".spec.hostname").split_whitespace().map(str::to_string).collect();
    hosts.sort();
    assert_eq!(hosts, ["pieces-0", "pieces-1", "pieces-2"]);

    // Suspended: its pods go, and are no failures. Resumed: they come again.
    create(&job("long", "runs", json!({"parallelism": 2, "completions": 2})));
    until(&kubectl, "two that run", || is("job/long", ".status.ready", "2"));
    kubectl.ok(&["patch", "job", "long", "-p", r#"{"spec": {"suspend": true}}"#]);
    until(&kubectl, "none", || {
        pods_of("long", ".metadata.name").is_empty() && is("job/long", ".status.active", "")
    });
    assert_eq!(get("job/long", ".status.conditions[?(@.type=='Suspended')].status"), "True");
    assert_eq!(get("job/long", ".status.failed"), "");
    kubectl.ok(&["patch", "job", "long", "-p", r#"{"spec": {"suspend": false}}"#]);
    until(&kubectl, "two again", || is("job/long", ".status.ready", "2"));
    let described = kubectl.ok(&["describe", "job", "long"]);
    for part in ["Suspended", "Job suspended", "Resumed", "Job resumed", "SuccessfulDelete", "2 Active"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    // What somebody deletes is a failure, is counted, and gone.
    let lost = pods_of("long", ".metadata.name").split_whitespace().next().map(str::to_string);
    kubectl.ok(&["delete", "pod", &lost.expect("a pod"), "--wait=false"]);
    until(&kubectl, "a failure", || is("job/long", ".status.failed", "1"));
    kubectl.ok(&["delete", "job", "long"]);
    until(&kubectl, "nothing of it", || pods_of("long", ".metadata.name").is_empty());

    create(&job("brief", "ok", json!({"ttlSecondsAfterFinished": 0})));
    until(&kubectl, "no job", || kubectl.run(&["get", "job", "brief"], "").is_err());
    create(&job("endless", "runs", json!({"activeDeadlineSeconds": 1})));
    until(&kubectl, "too late", || {
        is("job/endless", ".status.conditions[?(@.type=='Failed')].reason", "DeadlineExceeded")
    });
    assert_eq!(pods_of("endless", ".metadata.name"), "");
    kubectl.ok(&["delete", "jobs", "--all", "--cascade=foreground"]);
    until(&kubectl, "nothing", || kubectl.ok(&["get", "jobs,pods", "-o", "name"]).is_empty());
}

#[test]
fn a_namespace_ends_with_a_job_in_it() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    kubectl.ok(&["create", "namespace", "shop"]);
    kubectl
        .run(&["-n", "shop", "create", "-f", "-"], &job("held", "runs", json!({"parallelism": 2})))
        .expect("made");
    kubectl.ok(&["-n", "shop", "create", "cronjob", "tick", "--image=runs", "--schedule=@every 1s"]);
    kubectl.ok(&["-n", "shop", "wait", "--for=jsonpath={.status.active}=2", "job/held", "--timeout=30s"]);
    // Pods that are not counted hold their namespace until their job is gone.
    kubectl.ok(&["delete", "namespace", "shop", "--timeout=60s"]);
}

#[test]
fn a_job_takes_only_what_is_nobodys() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    kubectl.run(&["create", "-f", "-"], &board("a", "8").to_string()).expect("a node");
    let pod = |name: &str, owners: Value| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "shared"}, "ownerReferences": owners},
            "spec": {"containers": [{"name": "c", "image": "runs"}], "restartPolicy": "Never"},
        });
        kubectl.run(&["create", "-f", "-"], &pod.to_string()).expect("made");
    };
    kubectl.ok(&["create", "configmap", "owner"]);
    let owner = kubectl.ok(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}"]);
    pod("orphan", json!([]));
    pod(
        "foreign",
        json!([
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": true},
        ]),
    );
    let by_hand = json!({
        "manualSelector": true, "selector": {"matchLabels": {"app": "shared"}}, "parallelism": 2,
        "completions": 2,
    });
    let made = job("shared", "runs", by_hand);
    kubectl.run(&["create", "-f", "-"], &made).expect("made");
    let get = |what: &str, path: &str| kubectl.ok(&["get", what, "-o", &format!("jsonpath={{{path}}}")]);
    until(&kubectl, "two that run", || get("job/shared", ".status.ready") == "2");
    let owner_of = |name: &str| get(&format!("pod/{name}"), ".metadata.ownerReferences[*].kind");
    assert_eq!((owner_of("orphan").as_str(), owner_of("foreign").as_str()), ("Job", "ConfigMap"));
    assert_eq!(get("pod/orphan", ".metadata.finalizers[0]"), "batch.kubernetes.io/job-tracking");
    assert_eq!(get("pods", ".items[*].metadata.name").split_whitespace().count(), 3);
    // It is let go when it matches no more, with nothing left on it.
    kubectl.ok(&["label", "pod", "orphan", "app-", "--overwrite"]);
    until(&kubectl, "it is nobody's", || owner_of("orphan").is_empty());
    assert_eq!(get("pod/orphan", ".metadata.finalizers"), "");
    // Orphaned by the deletion of its job.
    kubectl.ok(&["delete", "job", "shared", "--cascade=orphan"]);
    until(&kubectl, "none is held", || {
        get("pods", ".items[*].metadata.finalizers").is_empty()
            && get("pods", ".items[?(@.metadata.labels.app=='shared')].metadata.ownerReferences[*].kind")
                == "ConfigMap"
    });
}

#[test]
fn a_cron_job_starts_jobs_by_its_clock() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    kubectl.run(&["create", "-f", "-"], &board("a", "8").to_string()).expect("a node");
    let get = |what: &str, path: &str| kubectl.ok(&["get", what, "-o", &format!("jsonpath={{{path}}}")]);
    let refused = kubectl.run(&["create", "cronjob", "odd", "--image=ok", "--schedule=* * * * 7"], "");
    let why = "spec.schedule: Invalid value: \"* * * * 7\": end of range (7) above maximum (6): 7";
    assert!(refused.as_ref().is_err_and(|error| error.contains(why)), "{refused:?}");
    // Every second, so that nobody waits for a minute; the names are those of minutes still.
    kubectl.ok(&["create", "cronjob", "tick", "--image=ok", "--schedule=@every 1s", "--", "true"]);
    until(&kubectl, "a success", || !get("cronjob/tick", ".status.lastSuccessfulTime").is_empty());
    let job = get("jobs", ".items[0].metadata.name");
    let minutes = job.strip_prefix("tick-").and_then(|minutes| minutes.parse::<u64>().ok());
    assert!(minutes.is_some_and(|minutes| minutes > 29_000_000), "{job}");
    let annotation = ".metadata.annotations.batch\\.kubernetes\\.io/cronjob-scheduled-timestamp";
    assert!(get(&format!("job/{job}"), annotation).ends_with('Z'));
    kubectl.ok(&["patch", "cronjob", "tick", "-p", r#"{"spec": {"suspend": true}}"#]);
    until(&kubectl, "it is told of", || {
        kubectl.ok(&["describe", "cronjob", "tick"]).contains("Saw completed job: tick-")
    });
    let described = kubectl.ok(&["describe", "cronjob", "tick"]);
    for part in
        ["SuccessfulCreate", "Created job tick-", "SawCompletedJob", "condition: Complete", "Active Jobs:"]
    {
        assert!(described.contains(part), "{part}: {described}");
    }
    // By hand, while it is suspended.
    kubectl.ok(&["create", "job", "by-hand", "--from=cronjob/tick"]);
    kubectl.ok(&["patch", "cronjob", "tick", "-p", r#"{"spec": {"successfulJobsHistoryLimit": 0}}"#]);
    until(&kubectl, "none is kept", || kubectl.ok(&["get", "jobs,pods", "-o", "name"]).is_empty());
    // A job that never ends is not joined by another.
    let endless = r#"{"spec": {"suspend": false, "schedule": "* * * * *", "concurrencyPolicy": "Forbid"}}"#;
    kubectl.ok(&["patch", "cronjob", "tick", "-p", endless]);
    kubectl.ok(&["delete", "cronjob", "tick"]);
    until(&kubectl, "nothing", || kubectl.ok(&["get", "cronjobs,jobs,pods", "-o", "name"]).is_empty());
}
