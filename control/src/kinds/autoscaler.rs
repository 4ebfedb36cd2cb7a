//! Autoscalers: `autoscaling/v2`, and `v1`, which has one metric and a name of its own for it.

use crate::object::{self, at, child, default, fields, items, text};
use coracle_api::field::{Errors, Path};
use serde_json::{Value, json};

pub(super) fn default_autoscaler(autoscaler: &mut Value) {
    let spec = child(autoscaler, "spec");
    default(spec, "minReplicas", 1);
    let utilization = json!([{
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
    }]);
    default(spec, "metrics", utilization);
    if spec.get("behavior").is_some_and(Value::is_object) {
        default_behavior(child(spec, "behavior"));
    }
}

/// One rule said, both are defaulted.
fn default_behavior(behavior: &mut Value) {
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let up = child(behavior, "scaleUp");
    default(up, "stabilizationWindowSeconds", 0);
    default(up, "selectPolicy", "Max");
    default(up, "policies", json!([pods, percent]));
    let down = child(behavior, "scaleDown");
    default(down, "selectPolicy", "Max");
    default(down, "policies", json!([percent]));
}

pub(super) fn prepare_autoscaler(autoscaler: &mut Value) {
    let status = json!({"currentMetrics": null, "desiredReplicas": 0});
    fields(autoscaler).insert("status".into(), status);
}

pub(super) fn validate_autoscaler(autoscaler: &Value, errors: &mut Errors) {
    let (spec, path) = (at(autoscaler, &["spec"]), Path::new("spec"));
    let (min, max) =
        (at(spec, &["minReplicas"]).as_i64(), at(spec, &["maxReplicas"]).as_i64().unwrap_or_default());
    if min.is_some_and(|min| min < 1) {
        errors.invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1");
    }
    if max < 1 {
        errors.invalid(&path.child("maxReplicas"), max, "must be greater than 0");
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(&path.child("maxReplicas"), max, "must be greater than or equal to `minReplicas`");
    }
    for key in ["kind", "name"] {
        if text(spec, &["scaleTargetRef", key]).is_empty() {
            errors.required(&path.child("scaleTargetRef").child(key), "");
        }
    }
    for (index, metric) in items(spec, &["metrics"]).iter().enumerate() {
        validate_metric(metric, &path.child("metrics").index(index), errors);
    }
    for rule in ["scaleUp", "scaleDown"] {
        let found = at(spec, &["behavior", rule]);
        if found.is_object() {
            validate_rule(found, &path.child("behavior").child(rule), errors);
        }
    }
}

fn validate_metric(metric: &Value, path: &Path, errors: &mut Errors) {
    let field = match text(metric, &["type"]) {
        "" => return errors.required(&path.child("type"), "must specify a metric source type"),
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => {
            let types = ["ContainerResource", "External", "Object", "Pods", "Resource"];
            return super::pod::one_of(metric, "type", &types, path, errors);
        }
    };
    let (source, path) = (at(metric, &[field]), path.child(field));
    if !source.is_object() {
        return errors.required(&path, "must populate information for the given metric source");
    }
    if text(source, &["name"]).is_empty() {
        errors.required(&path.child("name"), "must specify a resource name");
    }
    if field == "containerResource" && text(source, &["container"]).is_empty() {
        errors.required(&path.child("container"), "must specify a container");
    }
    let (target, path) = (at(source, &["target"]), path.child("target"));
    match text(target, &["type"]) {
        "" => errors.required(&path.child("type"), "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        other => {
            errors.invalid(&path.child("type"), other, "must be either Utilization, Value, or AverageValue");
        }
    }
    let percent = at(target, &["averageUtilization"]);
    if percent.as_i64().is_some_and(|percent| percent < 1) {
        errors.invalid(&path.child("averageUtilization"), percent.clone(), "must be greater than 0");
    }
    match (percent.is_null(), at(target, &["averageValue"]).is_null()) {
        (true, true) => {
            let why = "must set either a target raw value or a target utilization";
            errors.required(&path.child("averageUtilization"), why);
        }
        (false, false) => {
            let why = "may not set both a target raw value and a target utilization";
            errors.forbidden(&path.child("averageValue"), why);
        }
        _ => {}
    }
}

fn validate_rule(rule: &Value, path: &Path, errors: &mut Errors) {
    let window = at(rule, &["stabilizationWindowSeconds"]);
    match window.as_i64() {
        Some(seconds) if seconds < 0 => {
            let path = path.child("stabilizationWindowSeconds");
            errors.invalid(&path, seconds, "must be greater than or equal to zero");
        }
        Some(seconds) if seconds > 3600 => {
            let path = path.child("stabilizationWindowSeconds");
            errors.invalid(&path, seconds, "must be less than or equal to 3600");
        }
        _ => {}
    }
    super::pod::one_of(rule, "selectPolicy", &["Disabled", "Max", "Min"], path, errors);
    let path = path.child("policies");
    if items(rule, &["policies"]).is_empty() {
        errors.required(&path, "must specify at least one Policy");
    }
    for (index, policy) in items(rule, &["policies"]).iter().enumerate() {
        let path = path.index(index);
        super::pod::one_of(policy, "type", &["Percent", "Pods"], &path, errors);
        let number = |key: &str| at(policy, &[key]).as_i64().unwrap_or_default();
        for key in ["value", "periodSeconds"] {
            if number(key) <= 0 {
                errors.invalid(&path.child(key), number(key), "must be greater than zero");
            }
        }
        if number("periodSeconds") > 1800 {
            let seconds = number("periodSeconds");
            errors.invalid(&path.child("periodSeconds"), seconds, "must be less than or equal to 1800");
        }
    }
}

/// What v1 has no field for is in annotations, as upstream's.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

fn is_cpu_utilization(metric: &Value) -> bool {
    text(metric, &["type"]) == "Resource"
        && text(metric, &["resource", "name"]) == "cpu"
        && at(metric, &["resource", "target", "averageUtilization"]).is_number()
}

/// Takes an annotation that holds JSON; what is none says nothing.
fn taken(object: &mut Value, key: &str) -> Value {
    let metadata = child(object, "metadata");
    let taken = metadata.get_mut("annotations").and_then(|all| object::remove(all, key));
    if metadata.get("annotations").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
        object::remove(metadata, "annotations");
    }
    let text = taken.as_ref().and_then(Value::as_str).unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    let annotations = child(child(object, "metadata"), "annotations");
    fields(annotations).insert(key.into(), value.to_string().into());
}

/// Of a resource's metric: v1 has `targetAverageUtilization` where v2 has `target.averageUtilization`, and so on.
fn metric_to_v2(mut metric: Value) -> Value {
    for key in ["resource", "containerResource"] {
        let Some(source) = metric.get_mut(key) else { continue };
        let (percent, value) = (
            object::remove(source, "targetAverageUtilization"),
            object::remove(source, "targetAverageValue"),
        );
        source["target"] = match (percent, value) {
            (Some(percent), _) => json!({"type": "Utilization", "averageUtilization": percent}),
            (None, Some(value)) => json!({"type": "AverageValue", "averageValue": value}),
            (None, None) => json!({}),
        };
    }
    metric
}

fn metric_from_v2(metric: Value) -> Value {
    let names = [("averageUtilization", "targetAverageUtilization"), ("averageValue", "targetAverageValue")];
    flat(metric, "target", names)
}

/// What lies in `part` in v2 lies beside it in v1, under other names.
fn flat(mut metric: Value, part: &str, names: [(&str, &str); 2]) -> Value {
    for key in ["resource", "containerResource"] {
        let Some(source) = metric.get_mut(key) else { continue };
        let figures = object::remove(source, part).unwrap_or_default();
        for (from, to) in names {
            if let Some(value) = figures.get(from) {
                source[to] = value.clone();
            }
        }
    }
    metric
}

fn current_to_v2(mut metric: Value) -> Value {
    for key in ["resource", "containerResource"] {
        let Some(source) = metric.get_mut(key) else { continue };
        let mut current = json!({});
        for (from, to) in
            [("currentAverageUtilization", "averageUtilization"), ("currentAverageValue", "averageValue")]
        {
            if let Some(value) = object::remove(source, from) {
                current[to] = value;
            }
        }
        source["current"] = current;
    }
    metric
}

fn current_from_v2(metric: Value) -> Value {
    let names =
        [("averageUtilization", "currentAverageUtilization"), ("averageValue", "currentAverageValue")];
    flat(metric, "current", names)
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// autoscaling/v1 has one metric, by a name of its own.
pub(super) fn autoscaler_to_v2(object: &mut Value) {
    let mut metrics: Vec<Value> = list(taken(object, METRICS)).into_iter().map(metric_to_v2).collect();
    let behavior = taken(object, BEHAVIOR);
    let (conditions, current) = (taken(object, CONDITIONS), list(taken(object, CURRENT)));
    let spec = child(object, "spec");
    if let Some(percent) = object::remove(spec, "targetCPUUtilizationPercentage") {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        fields(spec).insert("metrics".into(), metrics.into());
    }
    if behavior.is_object() {
        fields(spec).insert("behavior".into(), behavior);
    }
    default_autoscaler(object);
    let status = child(object, "status");
    default(status, "desiredReplicas", 0);
    let mut shown: Vec<Value> = current.into_iter().map(current_to_v2).collect();
    if let Some(percent) = object::remove(status, "currentCPUUtilizationPercentage")
        && !shown.iter().any(|metric| text(metric, &["resource", "name"]) == "cpu")
    {
        let current = json!({"averageUtilization": percent});
        shown.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
    }
    let fields = fields(status);
    if conditions.is_array() {
        fields.insert("conditions".into(), conditions);
    }
    fields.insert("currentMetrics".into(), if shown.is_empty() { Value::Null } else { shown.into() });
}

pub(super) fn autoscaler_from_v2(object: &mut Value) {
    let spec = child(object, "spec");
    let mut metrics = list(object::remove(spec, "metrics").unwrap_or_default());
    if let Some(index) = metrics.iter().position(is_cpu_utilization) {
        let cpu = metrics.remove(index);
        let percent = at(&cpu, &["resource", "target", "averageUtilization"]).clone();
        fields(spec).insert("targetCPUUtilizationPercentage".into(), percent);
    }
    let behavior = object::remove(spec, "behavior");
    let status = child(object, "status");
    let current = list(object::remove(status, "currentMetrics").unwrap_or_default());
    let conditions = object::remove(status, "conditions");
    default(status, "currentReplicas", 0);
    default(status, "desiredReplicas", 0);
    let cpu = current.iter().find(|metric| text(metric, &["resource", "name"]) == "cpu");
    let percent = cpu.map_or(&Value::Null, |cpu| at(cpu, &["resource", "current", "averageUtilization"]));
    if percent.is_number() {
        fields(status).insert("currentCPUUtilizationPercentage".into(), percent.clone());
    }
    if !metrics.is_empty() {
        let metrics: Vec<Value> = metrics.into_iter().map(metric_from_v2).collect();
        annotate(object, METRICS, &metrics.into());
    }
    if !current.is_empty() {
        let current: Vec<Value> = current.into_iter().map(current_from_v2).collect();
        annotate(object, CURRENT, &current.into());
    }
    for (key, value) in [(BEHAVIOR, behavior), (CONDITIONS, conditions)] {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            annotate(object, key, &value);
        }
    }
}

pub(super) fn default_autoscaler_v1(object: &mut Value) {
    let other = text(object, &["metadata", "annotations", METRICS]).len() > 2;
    let spec = child(object, "spec");
    default(spec, "minReplicas", 1);
    if !other {
        default(spec, "targetCPUUtilizationPercentage", 80);
    }
}

pub(super) fn prepare_autoscaler_v1(object: &mut Value) {
    fields(object).insert("status".into(), json!({"currentReplicas": 0, "desiredReplicas": 0}));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_version_loses_nothing() {
        let check = |metrics: Value, shown: Value, others: usize| {
            let v2 = json!({
                "metadata": {"name": "a"},
                "spec": {
                    "minReplicas": 1, "maxReplicas": 2, "metrics": metrics,
                    "behavior": {"scaleDown": {"selectPolicy": "Disabled", "policies": [{"type": "Pods"}]}},
                },
                "status": {
                    "currentReplicas": 1,
                    "desiredReplicas": 1,
                    "conditions": [{"type": "AbleToScale", "status": "True"}],
                    "currentMetrics": [
                        {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "3m"}}},
                    ],
                },
            });
            let mut object = v2.clone();
            autoscaler_from_v2(&mut object);
            assert_eq!(
                object["spec"].get("targetCPUUtilizationPercentage").cloned().unwrap_or_default(),
                shown
            );
            assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 7);
            let annotation = text(&object, &["metadata", "annotations", METRICS]);
            let left: Vec<Value> = serde_json::from_str(annotation).unwrap_or_default();
            assert_eq!(left.len(), others);
            for key in ["metrics", "behavior"] {
                assert_eq!(object["spec"].get(key), None);
            }
            autoscaler_to_v2(&mut object);
            let mut expected = v2;
            default_behavior(&mut expected["spec"]["behavior"]);
            assert_eq!(object, expected);
        };
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
        let container = json!({"type": "ContainerResource", "containerResource": {
            "name": "cpu", "container": "c", "target": {"type": "Utilization", "averageUtilization": 5},
        }});
        check(json!([cpu]), 50.into(), 0);
        check(json!([cpu, memory, container]), 50.into(), 2);
        check(json!([memory]), Value::Null, 1);
    }
}
