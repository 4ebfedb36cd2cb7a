//! The admission plugin LimitRanger: what a namespace's `LimitRange`s give to pods that say nothing, and refuse to those that say
//! too much. The decision is pure.

use super::{Registry, Target, load, refused};
use crate::kinds;
use crate::object::{self, at, child, fields, items, text};
use crate::storage::ListQuery;
use coracle_api::quantity::Quantity;
use coracle_api::status::StatusError;
use serde_json::Value;

/// Where it says what it set.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

impl Registry {
    /// Gives a new pod the defaults of its namespace, and holds it to the bounds.
    pub(super) async fn admit_limits(&self, target: &Target, pod: &mut Value) -> Result<(), StatusError> {
        let ranges = kinds::find("", "v1", "limitranges").expect("limit ranges are in the table");
        let query = ListQuery { prefix: ranges.prefix(&target.namespace), ..ListQuery::default() };
        let page = self.storage.list(&query).await.map_err(refused)?;
        for entry in &page.entries {
            let range = load(ranges, entry)?;
            let limits = items(&range, &["spec", "limits"]);
            default(pod, limits);
            let problems = problems(pod, limits);
            let why = match &problems[..] {
                [] => continue,
                [only] => only.clone(),
                several => format!("[{}]", several.join(", ")),
            };
            return Err(StatusError::forbidden(target.resource.group_resource(), object::name(pod), why));
        }
        Ok(())
    }
}

fn of_type<'a>(limits: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    limits.iter().filter(move |limit| text(limit, &["type"]) == kind)
}

/// Sets what containers do not say.
fn default(pod: &mut Value, limits: &[Value]) {
    let mut said = Vec::new();
    let spec = child(pod, "spec");
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in object::items_mut(spec, list) {
            let name = text(container, &["name"]).to_string();
            for (from, to, word) in
                [("defaultRequest", "requests", "request"), ("default", "limits", "limit")]
            {
                let mut set = Vec::new();
                for limit in of_type(limits, "Container") {
                    for (resource, amount) in at(limit, &[from]).as_object().into_iter().flatten() {
                        let amounts = fields(child(child(container, "resources"), to));
                        if !amounts.contains_key(resource) {
                            amounts.insert(resource.clone(), amount.clone());
                            set.push(resource.clone());
                        }
                    }
                }
                if !set.is_empty() {
                    set.sort();
                    said.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let annotations = child(child(pod, "metadata"), "annotations");
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        fields(annotations).insert(ANNOTATION.into(), text.into());
    }
}

fn amount(value: &Value) -> Option<Quantity> {
    value.as_str()?.parse().ok()
}

/// What is out of bounds.
fn problems(pod: &Value, limits: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    let lists = ["containers", "initContainers"];
    let containers = lists.into_iter().flat_map(|list| items(pod, &["spec", list]));
    for container in containers {
        for limit in of_type(limits, "Container") {
            let resources = at(container, &["resources"]);
            let of = |kind: &str, name: &str| amount(at(resources, &[kind, name]));
            bounds(limit, "Container", &of, &mut problems);
        }
    }
    for limit in of_type(limits, "Pod") {
        // All its containers together, of which init containers run one by one before.
        let of = |kind: &str, name: &str| {
            let of_list = |list: &str| -> Option<Vec<i64>> {
                let containers = items(pod, &["spec", list]).iter();
                containers
                    .map(|container| amount(at(container, &["resources", kind, name])).map(|a| a.millis()))
                    .collect()
            };
            let sum: i64 = of_list("containers")?.into_iter().fold(0, i64::saturating_add);
            let largest = of_list("initContainers").into_iter().flatten().max().unwrap_or_default();
            format!("{}m", sum.max(largest)).parse().ok()
        };
        bounds(limit, "Pod", &of, &mut problems);
    }
    problems
}

fn bounds(
    limit: &Value,
    kind: &str,
    of: &dyn Fn(&str, &str) -> Option<Quantity>,
    problems: &mut Vec<String>,
) {
    let each = |key: &str| at(limit, &[key]).as_object().cloned().unwrap_or_default();
    for (name, least) in each("min") {
        let Some(bound) = amount(&least) else { continue };
        let least = least.as_str().unwrap_or_default();
        match (of("requests", &name), of("limits", &name)) {
            (None, _) => {
                problems
                    .push(format!("minimum {name} usage per {kind} is {least}.  No request is specified"));
            }
            (Some(request), _) if request < bound => {
                problems
                    .push(format!("minimum {name} usage per {kind} is {least}, but request is {request}"));
            }
            (_, Some(limit)) if limit < bound => {
                problems.push(format!("minimum {name} usage per {kind} is {least}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, most) in each("max") {
        let Some(bound) = amount(&most) else { continue };
        let most = most.as_str().unwrap_or_default();
        match (of("limits", &name), of("requests", &name)) {
            (None, _) => {
                problems.push(format!("maximum {name} usage per {kind} is {most}.  No limit is specified"));
            }
            (Some(limit), _) if limit > bound => {
                problems.push(format!("maximum {name} usage per {kind} is {most}, but limit is {limit}"));
            }
            (_, Some(request)) if request > bound => {
                problems.push(format!("maximum {name} usage per {kind} is {most}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, ratio) in each("maxLimitRequestRatio") {
        let (Some(most), said) = (amount(&ratio), ratio.as_str().unwrap_or_default()) else { continue };
        match (of("requests", &name), of("limits", &name)) {
            (Some(request), Some(limit)) if request.millis() > 0 => {
                // Thousandths of thousandths fit: both are 64 bits.
                let found = i128::from(limit.millis()) * 1000 / i128::from(request.millis());
                if found > i128::from(most.millis()) {
                    let shown = format!("{}.{:03}000", found / 1000, found % 1000);
                    problems.push(format!(
                        "{name} max limit to request ratio per {kind} is {said}, but provided ratio is {shown}"
                    ));
                }
            }
            _ => problems.push(format!(
                "{name} max limit to request ratio per {kind} is {said}, but no request is specified or request is 0"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_said_is_given_and_what_is_too_much_is_refused() {
        let check = |limit: Value, resources: Value, expected: Result<Value, &str>| {
            let mut pod = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
            let limits = [limit];
            default(&mut pod, &limits);
            let problems = problems(&pod, &limits).join(", ");
            match expected {
                Ok(resources) => assert_eq!(
                    (&pod["spec"]["containers"][0]["resources"], problems.as_str()),
                    (&resources, "")
                ),
                Err(why) => assert_eq!(problems, why),
            }
        };
        let defaults =
            json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"}});
        let given = json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}});
        check(defaults.clone(), json!({}), Ok(given));
        let own = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}});
        check(defaults, own.clone(), Ok(own.clone()));
        let bound = |key: &str, cpu: &str| json!({"type": "Container", key: {"cpu": cpu}});
        check(bound("max", "200m"), own.clone(), Ok(own.clone()));
        check(
            bound("max", "150m"),
            own.clone(),
            Err("maximum cpu usage per Container is 150m, but limit is 200m"),
        );
        check(
            bound("max", "150m"),
            json!({}),
            Err("maximum cpu usage per Container is 150m.  No limit is specified"),
        );
        check(
            bound("min", "150m"),
            own.clone(),
            Err("minimum cpu usage per Container is 150m, but request is 100m"),
        );
        check(
            bound("min", "1"),
            json!({}),
            Err("minimum cpu usage per Container is 1.  No request is specified"),
        );
        check(bound("maxLimitRequestRatio", "2"), own.clone(), Ok(own.clone()));
        check(
            bound("maxLimitRequestRatio", "1500m"),
            own.clone(),
            Err("cpu max limit to request ratio per Container is 1500m, but provided ratio is 2.000000"),
        );
        let of_pod = json!({"type": "Pod", "max": {"cpu": "150m"}});
        check(of_pod, own, Err("maximum cpu usage per Pod is 150m, but limit is 200m"));
    }
}
