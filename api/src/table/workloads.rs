//! The rows of what makes pods, scales them and guards them.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use super::cell::{
    NONE, UNKNOWN, UNSET, containers, deleted, first, int, is_true, labels, list, made, name, or, plain,
    selector, text,
};

pub(super) fn pod_template(object: &Value) -> Vec<Value> {
    let template = &object["template"];
    let [names, images] = containers(&template["spec"]);
    vec![name(object), names, images, labels(&template["metadata"]["labels"]).into()]
}

pub(super) fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    counted(object, now, labels(&object["spec"]["selector"]))
}

pub(super) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    counted(object, now, selector(&object["spec"]["selector"]))
}

fn counted(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        int(&spec["replicas"]).into(),
        int(&status["replicas"]).into(),
        int(&status["readyReplicas"]).into(),
        made(object, now),
        names,
        images,
        selector.into(),
    ]
}

pub(super) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"])).into(),
        int(&status["updatedReplicas"]).into(),
        int(&status["availableReplicas"]).into(),
        made(object, now),
        names,
        images,
        selector(&spec["selector"]).into(),
    ]
}

pub(super) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let pod = &spec["template"]["spec"];
    let [names, images] = containers(pod);
    vec![
        name(object),
        int(&status["desiredNumberScheduled"]).into(),
        int(&status["currentNumberScheduled"]).into(),
        int(&status["numberReady"]).into(),
        int(&status["updatedNumberScheduled"]).into(),
        int(&status["numberAvailable"]).into(),
        labels(&pod["nodeSelector"]).into(),
        made(object, now),
        names,
        images,
        selector(&spec["selector"]).into(),
    ]
}

pub(super) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    let ready = format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"]));
    vec![name(object), ready.into(), made(object, now), names, images]
}

pub(super) fn controller_revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = list(&object["metadata"]["ownerReferences"]).iter().find(|o| o["controller"] == true);
    let owner = owner.map_or_else(
        || NONE.to_owned(),
        |owner| {
            let group = text(&owner["apiVersion"]).rsplit_once('/').map(|(group, _)| format!(".{group}"));
            let kind = text(&owner["kind"]).to_lowercase();
            format!("{kind}{}/{}", group.unwrap_or_default(), text(&owner["name"]))
        },
    );
    vec![name(object), owner.into(), int(&object["revision"]).into(), made(object, now)]
}

pub(super) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let done = int(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), int(&spec["parallelism"])) {
        (Some(completions), _) => format!("{done}/{completions}"),
        (None, parallelism @ 2..) => format!("{done}/1 of {parallelism}"),
        (None, _) => format!("{done}/1"),
    };
    let took = age::time(&status["startTime"])
        .map(|started| age::between(started, age::time(&status["completionTime"]).unwrap_or(now)));
    let is = |kind| is_true(&status["conditions"], kind);
    let state = match () {
        () if is("Complete") => "Complete",
        () if is("Failed") => "Failed",
        () if deleted(object) => "Terminating",
        () if is("Suspended") => "Suspended",
        () if is("FailureTarget") => "FailureTarget",
        () if is("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    };
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        state.into(),
        completions.into(),
        took.unwrap_or_default().into(),
        made(object, now),
        names,
        images,
        selector(&spec["selector"]).into(),
    ]
}

pub(super) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let last = match &status["lastScheduleTime"] {
        Value::Null => NONE.to_owned(),
        time => age::since(time, now),
    };
    let suspended = match spec["suspend"].as_bool() {
        None => UNSET,
        Some(true) => "True",
        Some(false) => "False",
    };
    let job = &spec["jobTemplate"]["spec"];
    let [names, images] = containers(&job["template"]["spec"]);
    vec![
        name(object),
        text(&spec["schedule"]).into(),
        or(&spec["timeZone"], NONE).into(),
        suspended.into(),
        list(&status["active"]).len().into(),
        last.into(),
        made(object, now),
        names,
        images,
        selector(&job["selector"]).into(),
    ]
}

pub(super) fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    let least = spec["minReplicas"].as_i64().map_or_else(|| UNSET.to_owned(), |n| n.to_string());
    vec![
        name(object),
        format!("{}/{}", text(&target["kind"]), text(&target["name"])).into(),
        targets(spec, status).into(),
        least.into(),
        int(&spec["maxReplicas"]).into(),
        int(&status["currentReplicas"]).into(),
        made(object, now),
    ]
}

/// What an autoscaler aims at, and where it is.
fn targets(spec: &Value, status: &Value) -> String {
    let percent = |value: &Value| value.as_i64().map(|n| format!("{n}%"));
    // autoscaling/v1 has this one target in the spec itself.
    if let Some(target) = percent(&spec["targetCPUUtilizationPercentage"]) {
        let current = percent(&status["currentCPUUtilizationPercentage"]);
        return format!("cpu: {}/{target}", current.as_deref().unwrap_or(UNKNOWN));
    }
    let metrics = list(&spec["metrics"]);
    let shown: Vec<_> = metrics
        .iter()
        .enumerate()
        .map(|(index, metric)| target(metric, &status["currentMetrics"][index]))
        .collect();
    if shown.is_empty() { NONE.to_owned() } else { first(&shown, 2, ", ") }
}

fn target(metric: &Value, status: &Value) -> String {
    let field = match text(&metric["type"]) {
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let (metric, target, current) = (&metric[field], &metric[field]["target"], &status[field]["current"]);
    let known = |name: &str| Some(plain(&current[name])).filter(|text| !text.is_empty());
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| UNKNOWN.to_owned());
    let average = !target["averageValue"].is_null();
    let value = if average || field == "pods" { "averageValue" } else { "value" };
    match field {
        "resource" | "containerResource" if !average => {
            let percent = |value: &Value| value.as_i64().map(|n| format!("{n}%"));
            let aim = percent(&target["averageUtilization"]).unwrap_or_else(|| "<auto>".to_owned());
            let current = or_unknown(percent(&current["averageUtilization"]));
            format!("{}: {current}/{aim}", text(&metric["name"]))
        }
        "resource" | "containerResource" => {
            format!("{}: {}/{}", text(&metric["name"]), or_unknown(known(value)), plain(&target[value]))
        }
        "external" | "object" if average => {
            format!("{}/{} (avg)", or_unknown(known(value)), plain(&target[value]))
        }
        _ => format!("{}/{}", or_unknown(known(value)), plain(&target[value])),
    }
}

pub(super) fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let bound = |name: &str| match &spec[name] {
        Value::Null => Value::from("N/A"),
        value => plain(value).into(),
    };
    vec![
        name(object),
        bound("minAvailable"),
        bound("maxUnavailable"),
        int(&status["disruptionsAllowed"]).into(),
        made(object, now),
    ]
}
