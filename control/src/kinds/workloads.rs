//! Workloads: deployments, replica sets, stateful sets, daemon sets, jobs, cron jobs, and their templates.

use super::pod::{immutable, not_negative, one_of, validate_template};
use super::podspec::default_template;
use super::schedule::{self, Schedule};
use crate::object::{self, at, child, default, fields, text};
use coracle_api::field::{Errors, Path};
use coracle_api::selector::{self, LabelSelector};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

pub(super) fn default_deployment(object: &mut Value) {
    let spec = child(object, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    default(strategy, "type", "RollingUpdate");
    if text(strategy, &["type"]) == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        default(rolling, "maxSurge", "25%");
        default(rolling, "maxUnavailable", "25%");
    }
    default_template(child(spec, "template"));
}

pub(super) fn default_replica_set(object: &mut Value) {
    let spec = child(object, "spec");
    default(spec, "replicas", 1);
    default_template(child(spec, "template"));
}

pub(super) fn default_stateful_set(object: &mut Value) {
    let spec = child(object, "spec");
    default(spec, "replicas", 1);
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "podManagementPolicy", "OrderedReady");
    let update = child(spec, "updateStrategy");
    default(update, "type", "RollingUpdate");
    if text(update, &["type"]) == "RollingUpdate" {
        default(child(update, "rollingUpdate"), "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    default(retention, "whenDeleted", "Retain");
    default(retention, "whenScaled", "Retain");
    for claim in object::items_mut(spec, "volumeClaimTemplates") {
        default(child(claim, "spec"), "volumeMode", "Filesystem");
        fields(claim).insert("status".into(), json!({"phase": "Pending"}));
        default(claim, "apiVersion", "v1");
        default(claim, "kind", "PersistentVolumeClaim");
    }
    default_template(child(spec, "template"));
}

pub(super) fn default_daemon_set(object: &mut Value) {
    let spec = child(object, "spec");
    default(spec, "revisionHistoryLimit", 10);
    let update = child(spec, "updateStrategy");
    default(update, "type", "RollingUpdate");
    if text(update, &["type"]) == "RollingUpdate" {
        let rolling = child(update, "rollingUpdate");
        default(rolling, "maxUnavailable", 1);
        default(rolling, "maxSurge", 0);
    }
    default_template(child(spec, "template"));
}

pub(super) fn default_job(object: &mut Value) {
    let spec = child(object, "spec");
    // With neither, one pod that succeeds is a success.
    if at(spec, &["completions"]).is_null() && at(spec, &["parallelism"]).is_null() {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    // With a limit for each index, that one decides.
    let each = at(spec, &["backoffLimitPerIndex"]).is_number();
    default(spec, "backoffLimit", if each { i32::MAX } else { 6 });
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    let replacement =
        if at(spec, &["podFailurePolicy"]).is_object() { "Failed" } else { "TerminatingOrFailed" };
    default(spec, "podReplacementPolicy", replacement);
    default_template(child(spec, "template"));
}

pub(super) fn default_cron_job(object: &mut Value) {
    let spec = child(object, "spec");
    default(spec, "concurrencyPolicy", "Allow");
    default(spec, "suspend", false);
    default(spec, "successfulJobsHistoryLimit", 3);
    default(spec, "failedJobsHistoryLimit", 1);
    let template = child(spec, "jobTemplate");
    child(template, "metadata");
    default_template(child(child(template, "spec"), "template"));
}

pub(super) fn default_replication_controller(object: &mut Value) {
    let spec = child(object, "spec");
    default(spec, "replicas", 1);
    default_template(child(spec, "template"));
    let labels = at(spec, &["template", "metadata", "labels"]).clone();
    if labels.is_object() {
        default(spec, "selector", labels);
    }
}

pub(super) fn default_pod_template(object: &mut Value) {
    default_template(child(object, "template"));
}

pub(super) fn empty_status(object: &mut Value) {
    fields(object).insert("status".into(), json!({}));
}

pub(super) fn zero_replicas(object: &mut Value) {
    fields(object).insert("status".into(), json!({"replicas": 0}));
}

pub(super) fn prepare_stateful_set(object: &mut Value) {
    fields(object).insert("status".into(), json!({"replicas": 0, "availableReplicas": 0}));
}

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) fn prepare_daemon_set(object: &mut Value) {
    let annotations = child(child(object, "metadata"), "annotations");
    fields(annotations).insert(TEMPLATE_GENERATION.into(), "1".into());
    let status = json!({
        "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
    });
    fields(object).insert("status".into(), status);
}

pub(super) fn update_daemon_set(new: &mut Value, old: &Value) {
    let of = |object: &Value| {
        text(object, &["metadata", "annotations", TEMPLATE_GENERATION]).parse::<i64>().unwrap_or_default()
    };
    let changed = at(new, &["spec", "template"]) != at(old, &["spec", "template"]);
    let generation = of(old) + i64::from(changed);
    let annotations = child(child(new, "metadata"), "annotations");
    fields(annotations).insert(TEMPLATE_GENERATION.into(), generation.to_string().into());
}

/// A job selects its pods by its own uid, unless its owner selects by hand.
pub(super) fn prepare_job(object: &mut Value) {
    empty_status(object);
    if at(object, &["spec", "manualSelector"]).as_bool() == Some(true) {
        return;
    }
    let (uid, name) = (object::uid(object).to_string(), object::name(object).to_string());
    let labels = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("job-name", &name),
    ];
    let spec = child(object, "spec");
    let template = child(child(child(spec, "template"), "metadata"), "labels");
    for (key, value) in labels {
        fields(template).insert(key.into(), value.as_str().into());
    }
    let selector = child(child(spec, "selector"), "matchLabels");
    fields(selector).insert("batch.kubernetes.io/controller-uid".into(), uid.as_str().into());
    // A job without labels of its own has its template's.
    if at(object, &["metadata", "labels"]).is_null() {
        let labels = at(object, &["spec", "template", "metadata", "labels"]).clone();
        object::set_meta(object, "labels", labels);
    }
}

pub(super) fn validate_deployment(object: &Value, errors: &mut Errors) {
    let (spec, path) = (at(object, &["spec"]), Path::new("spec"));
    not_negative(spec, "replicas", &path, errors);
    selected_template(spec, "deployment", &["Always"], &path, errors);
    not_negative(spec, "minReadySeconds", &path, errors);
    not_negative(spec, "revisionHistoryLimit", &path, errors);
    one_of(at(spec, &["strategy"]), "type", &["Recreate", "RollingUpdate"], &path.child("strategy"), errors);
    if text(spec, &["strategy", "type"]) == "Recreate" && at(spec, &["strategy", "rollingUpdate"]).is_object()
    {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        errors.forbidden(&path.child("strategy").child("rollingUpdate"), why);
    }
    let number = |key: &str| at(spec, &[key]).as_i64();
    not_negative(spec, "progressDeadlineSeconds", &path, errors);
    match (number("progressDeadlineSeconds"), number("minReadySeconds").unwrap_or_default()) {
        (Some(deadline), ready) if deadline <= ready => {
            errors.invalid(
                &path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            );
        }
        _ => {}
    }
}

pub(super) fn validate_replica_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (at(object, &["spec"]), Path::new("spec"));
    not_negative(spec, "replicas", &path, errors);
    not_negative(spec, "minReadySeconds", &path, errors);
    selected_template(spec, "deployment", &["Always"], &path, errors);
}

pub(super) fn validate_stateful_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (at(object, &["spec"]), Path::new("spec"));
    one_of(spec, "podManagementPolicy", &["OrderedReady", "Parallel"], &path, errors);
    let update = path.child("updateStrategy");
    one_of(at(spec, &["updateStrategy"]), "type", &["OnDelete", "RollingUpdate"], &update, errors);
    not_negative(spec, "replicas", &path, errors);
    not_negative(spec, "minReadySeconds", &path, errors);
    not_negative(at(spec, &["ordinals"]), "start", &path.child("ordinals"), errors);
    let rolling = at(spec, &["updateStrategy", "rollingUpdate"]);
    let update = update.child("rollingUpdate");
    not_negative(rolling, "partition", &update, errors);
    if !at(rolling, &["maxUnavailable"]).is_null() && amount(rolling, "maxUnavailable") == 0 {
        errors.invalid(
            &update.child("maxUnavailable"),
            at(rolling, &["maxUnavailable"]).clone(),
            "cannot be 0",
        );
    }
    selected_template(spec, "statefulset", &["Always"], &path, errors);
}

pub(super) fn validate_daemon_set(object: &Value, errors: &mut Errors) {
    let (spec, path) = (at(object, &["spec"]), Path::new("spec"));
    selected_template(spec, "daemonset", &["Always"], &path, errors);
    not_negative(spec, "minReadySeconds", &path, errors);
    let update = path.child("updateStrategy");
    one_of(at(spec, &["updateStrategy"]), "type", &["OnDelete", "RollingUpdate"], &update, errors);
    not_negative(spec, "revisionHistoryLimit", &path, errors);
    let rolling = at(spec, &["updateStrategy", "rollingUpdate"]);
    if rolling.is_object() {
        let update = update.child("rollingUpdate");
        match (amount(rolling, "maxUnavailable"), amount(rolling, "maxSurge")) {
            (0, 0) => errors.required(&update.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
            (0, _) | (_, 0) => {}
            _ => {
                let why = "may not be set when maxUnavailable is non-zero";
                errors.invalid(&update.child("maxSurge"), at(rolling, &["maxSurge"]).clone(), why);
            }
        }
    }
}

/// The number of an IntOrString, of a percentage or not.
fn amount(object: &Value, key: &str) -> i64 {
    match at(object, &[key]) {
        Value::String(percent) => percent.trim_end_matches('%').parse().unwrap_or_default(),
        number => number.as_i64().unwrap_or_default(),
    }
}

pub(super) fn validate_job(object: &Value, errors: &mut Errors) {
    validate_job_spec(at(object, &["spec"]), &Path::new("spec"), errors);
}

fn validate_job_spec(spec: &Value, path: &Path, errors: &mut Errors) {
    for key in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
    {
        not_negative(spec, key, path, errors);
    }
    one_of(spec, "completionMode", &["Indexed", "NonIndexed"], path, errors);
    validate_indexes(spec, path, errors);
    let template = path.child("template");
    let restart = text(spec, &["template", "spec", "restartPolicy"]);
    if at(spec, &["podFailurePolicy"]).is_object() && restart != "Never" {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.invalid(&template.child("spec").child("restartPolicy"), restart, why);
    }
    validate_template(at(spec, &["template"]), &template, errors);
    match text(spec, &["template", "spec", "restartPolicy"]) {
        "OnFailure" | "Never" => {}
        "Always" => errors.required(
            &template.child("spec").child("restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ),
        other => errors.not_supported(
            &template.child("spec").child("restartPolicy"),
            other,
            &["OnFailure", "Never"],
        ),
    }
}

/// What only an indexed job may have, and what it must have.
fn validate_indexes(spec: &Value, path: &Path, errors: &mut Errors) {
    const PARALLELISM_MAX: i64 = 100_000;
    let number = |key: &str| at(spec, &[key]).as_i64();
    not_negative(spec, "backoffLimitPerIndex", path, errors);
    not_negative(spec, "maxFailedIndexes", path, errors);
    if text(spec, &["completionMode"]) == "Indexed" {
        if number("completions").is_none() {
            errors.required(&path.child("completions"), "when completion mode is Indexed");
        }
        if let Some(most) = number("parallelism").filter(|number| *number > PARALLELISM_MAX) {
            let why =
                format!("must be less than or equal to {PARALLELISM_MAX} when completion mode is Indexed");
            errors.invalid(&path.child("parallelism"), most, why);
        }
        if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
            errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
        }
        return;
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        let value = at(spec, &[key]);
        if !value.is_null() {
            errors.invalid(&path.child(key), value.clone(), "requires indexed completion mode");
        }
    }
}

pub(super) fn validate_cron_job(object: &Value, errors: &mut Errors) {
    let (spec, path) = (at(object, &["spec"]), Path::new("spec"));
    // The job's name gets a suffix of eleven.
    if object::name(object).len() > 52 {
        let path = Path::new("metadata").child("name");
        errors.invalid(&path, object::name(object), "must be no more than 52 characters");
    }
    validate_job_spec(at(spec, &["jobTemplate", "spec"]), &path.child("jobTemplate").child("spec"), errors);
    validate_schedule(spec, &path, errors);
    not_negative(spec, "startingDeadlineSeconds", &path, errors);
    match text(spec, &["concurrencyPolicy"]) {
        "" => errors.required(&path.child("concurrencyPolicy"), ""),
        _ => one_of(spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &path, errors),
    }
    not_negative(spec, "successfulJobsHistoryLimit", &path, errors);
    not_negative(spec, "failedJobsHistoryLimit", &path, errors);
}

fn validate_schedule(spec: &Value, path: &Path, errors: &mut Errors) {
    let (schedule, zone) = (text(spec, &["schedule"]), at(spec, &["timeZone"]));
    if schedule.is_empty() {
        errors.required(&path.child("schedule"), "");
    } else if let Err(why) = Schedule::read(schedule, &TimeZone::UTC) {
        errors.invalid(&path.child("schedule"), schedule, why);
    } else if schedule.contains("TZ") && !zone.is_null() {
        let why = "cannot use both timeZone field and TZ or CRON_TZ in schedule";
        errors.invalid(&path.child("schedule"), schedule, why);
    }
    let Some(zone) = zone.as_str() else { return };
    let path = path.child("timeZone");
    if zone.is_empty() {
        errors.invalid(&path, zone, "timeZone must be nil or non-empty string");
    } else if zone.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(&path, zone, why);
    } else if let Err(why) = schedule::zone(zone) {
        errors.invalid(&path, zone, why);
    }
}

/// What only a new cron job must not have.
pub(super) fn validate_new_cron_job(object: &Value, errors: &mut Errors) {
    let spec = at(object, &["spec"]);
    if text(spec, &["schedule"]).contains("TZ") && at(spec, &["timeZone"]).is_null() {
        let path = Path::new("spec").child("schedule");
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid(&path, text(spec, &["schedule"]), why);
    }
}

/// A selector, and a template that it selects.
fn selected_template(spec: &Value, of: &str, restarts: &[&str], path: &Path, errors: &mut Errors) {
    let selector = at(spec, &["selector"]);
    let labels = at(spec, &["template", "metadata", "labels"]);
    let template = path.child("template");
    if selector.is_null() {
        errors.required(&path.child("selector"), "");
    } else if selector.as_object().is_some_and(serde_json::Map::is_empty) {
        errors.invalid(&path.child("selector"), json!({}), format!("empty selector is invalid for {of}"));
    } else {
        selector::validate(selector, &path.child("selector"), errors);
        // One that is malformed has been told of.
        if LabelSelector::from_value(selector).is_ok_and(|selector| !selector.matches_labels(labels)) {
            let labels = if labels.is_null() { json!("null") } else { labels.clone() };
            let why = "`selector` does not match template `labels`";
            errors.invalid(&template.child("metadata").child("labels"), labels, why);
        }
    }
    validate_template(at(spec, &["template"]), &template, errors);
    let restart = text(spec, &["template", "spec", "restartPolicy"]);
    if !restarts.contains(&restart) {
        errors.not_supported(&template.child("spec").child("restartPolicy"), restart, restarts);
    }
}

pub(super) fn keep_selector(new: &Value, old: &Value, errors: &mut Errors) {
    immutable(new, old, &["spec", "selector"], errors);
}

pub(super) fn update_job(new: &Value, old: &Value, errors: &mut Errors) {
    let number = |key: &str| at(new, &["spec", key]).as_i64();
    let completions = at(new, &["spec", "completions"]);
    if text(new, &["spec", "completionMode"]) != "Indexed" {
        immutable(new, old, &["spec", "completions"], errors);
    } else if completions != at(old, &["spec", "completions"])
        && number("completions") != number("parallelism")
    {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.invalid(&Path::new("spec").child("completions"), completions.clone(), why);
    }
    for key in ["selector", "template", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
        // A suspended job's template may still be given a place.
        let suspended = at(old, &["spec", "suspend"]).as_bool() == Some(true);
        if !(key == "template" && suspended) {
            immutable(new, old, &["spec", key], errors);
        }
    }
}

pub(super) fn update_stateful_set(new: &Value, old: &Value, errors: &mut Errors) {
    const MUTABLE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |object: &Value| {
        let mut spec = at(object, &["spec"]).clone();
        for key in MUTABLE {
            object::remove(&mut spec, key);
        }
        spec
    };
    if rest(new) != rest(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.forbidden(&Path::new("spec"), why);
    }
}

#[cfg(test)]
#[path = "workloads_test.rs"]
mod tests;
