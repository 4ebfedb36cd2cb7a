//! What is wrong with workloads, in upstream's words.

use super::*;

type Validate = fn(&Value, &mut Errors);

#[track_caller]
fn check(validate: Validate, spec: Value, expected: &[&str]) {
    let mut object = json!({"metadata": {"name": "x"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {
            "restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}],
        }},
    }});
    coracle_api::patch::merge(&mut object["spec"], spec);
    default_template(&mut object["spec"]["template"]);
    let mut errors = Errors::default();
    validate(&object, &mut errors);
    let found: Vec<String> = errors.list().iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{object}");
}

#[test]
fn jobs() {
    let job = |spec: Value, expected: &[&str]| {
        let mut all = json!({"template": {"spec": {"restartPolicy": "Never"}}});
        coracle_api::patch::merge(&mut all, spec);
        check(validate_job, all, expected);
    };
    job(json!({}), &[]);
    job(
        json!({"completionMode": "Indexed"}),
        &["spec.completions: Required value: when completion mode is Indexed"],
    );
    job(json!({"completionMode": "Indexed", "completions": 1, "backoffLimitPerIndex": 1}), &[]);
    job(
        json!({"completionMode": "Indexed", "completions": 1, "maxFailedIndexes": 1}),
        &["spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"],
    );
    job(
        json!({"backoffLimitPerIndex": 1}),
        &["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"],
    );
    job(
        json!({"podFailurePolicy": {"rules": []}, "template": {"spec": {"restartPolicy": "OnFailure"}}}),
        &[
            "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified",
        ],
    );
}

#[test]
fn an_indexed_job_grows_with_its_parallelism() {
    let check = |mode: &str, completions: i64, parallelism: i64, expected: &[&str]| {
        let job = |completions: i64, parallelism: i64| json!({"spec": {"completionMode": mode, "completions": completions, "parallelism": parallelism}});
        let mut errors = Errors::default();
        update_job(&job(completions, parallelism), &job(2, 2), &mut errors);
        let found: Vec<String> = errors.list().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    };
    check("Indexed", 3, 3, &[]);
    check("Indexed", 2, 3, &[]);
    check(
        "Indexed",
        3,
        2,
        &["spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"],
    );
    check("NonIndexed", 3, 3, &["spec.completions: Invalid value: 3: field is immutable"]);
}

#[test]
fn a_limit_for_each_index_replaces_the_one_for_all() {
    let limit = |spec: Value| {
        let mut job = json!({"spec": spec});
        default_job(&mut job);
        job["spec"]["backoffLimit"].as_i64()
    };
    assert_eq!(limit(json!({})), Some(6));
    assert_eq!(limit(json!({"backoffLimitPerIndex": 1})), Some(i64::from(i32::MAX)));
}

#[test]
fn sets() {
    let daemons = |surge: Value, fewer: Value, expected: &[&str]| {
        let rolling = json!({"maxSurge": surge, "maxUnavailable": fewer});
        let spec = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
        check(validate_daemon_set, spec, expected);
    };
    daemons(json!(0), json!(1), &[]);
    daemons(json!("10%"), json!(0), &[]);
    let rolling = "spec.updateStrategy.rollingUpdate";
    daemons(
        json!(0),
        json!("0%"),
        &[&format!("{rolling}.maxUnavailable: Required value: cannot be 0 when maxSurge is 0")],
    );
    daemons(
        json!(1),
        json!(1),
        &[&format!("{rolling}.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero")],
    );
    let members = |rolling: Value, expected: &[&str]| {
        let spec = json!({
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        });
        check(validate_stateful_set, spec, expected);
    };
    members(json!({"partition": 0, "maxUnavailable": "10%"}), &[]);
    members(
        json!({"partition": 0, "maxUnavailable": 0}),
        &[&format!("{rolling}.maxUnavailable: Invalid value: 0: cannot be 0")],
    );
    members(
        json!({"partition": -1}),
        &[&format!("{rolling}.partition: Invalid value: -1: must be greater than or equal to 0")],
    );
}

#[test]
fn cron_jobs() {
    let cron = |schedule: &str, zone: Value, expected: &[&str]| {
        let template = json!({"spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}],
        }}}});
        let mut cron = json!({"metadata": {"name": "x"}, "spec": {
            "schedule": schedule, "timeZone": zone, "jobTemplate": template,
        }});
        default_cron_job(&mut cron);
        let mut errors = Errors::default();
        validate_cron_job(&cron, &mut errors);
        validate_new_cron_job(&cron, &mut errors);
        let found: Vec<String> = errors.list().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{schedule} {zone}");
    };
    cron("*/5 * * * *", Value::Null, &[]);
    cron("@hourly", json!("Europe/Berlin"), &[]);
    cron("", Value::Null, &["spec.schedule: Required value"]);
    cron(
        "* * * *",
        Value::Null,
        &["spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]"],
    );
    cron(
        "* * * * *",
        json!("Moon/Base"),
        &["spec.timeZone: Invalid value: \"Moon/Base\": unknown time zone Moon/Base"],
    );
    cron(
        "* * * * *",
        json!("local"),
        &[
            "spec.timeZone: Invalid value: \"local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ],
    );
    cron(
        "TZ=UTC * * * * *",
        Value::Null,
        &[
            "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ],
    );
    cron(
        "TZ=UTC * * * * *",
        json!("UTC"),
        &[
            "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use both timeZone field and TZ or CRON_TZ in schedule",
        ],
    );
}
