//! How many replicas a metric asks for (upstream's `ReplicaCalculator`). Pure.
//!
//! ```text
//! pods ─► ended or ending: left out
//!      ─► pending, or not yet steady: unready ─┐ count as idle when the others want more
//!      ─► without figures: missing ────────────┤ count as idle when more, as full when fewer are wanted
//!      └► ready ─► usage : target = ratio ─► within tolerance? as it is : ⌈ratio · pods⌉
//! ```

use crate::object::{at, is_terminating, items, name, text};
use crate::usage::PodUsage;
use coracle_api::quantity::Quantity;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// In which a starting pod's cpu says little.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// A readiness that was written so early was never anything else.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// Ratios so near to 1 change nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Below 1.
    pub down: f64,
    /// Above 1.
    pub up: f64,
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        1.0 - self.down <= ratio && ratio <= 1.0 + self.up
    }
}

/// What a metric aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Percent of what pods request.
    Utilization(i64),
    /// Thousandths, per pod.
    Average(i64),
}

/// Of which resource, and of which container of each pod; of all when `None`.
#[derive(Clone, Copy, Debug)]
pub struct Of<'a> {
    /// `cpu` or `memory`.
    pub resource: &'a str,
    /// Its name.
    pub container: Option<&'a str>,
}

/// What a metric comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What it asks for.
    pub replicas: i64,
    /// Percent, where that is what is aimed at.
    pub utilization: Option<i64>,
    /// Thousandths, per pod.
    pub average_millis: i64,
}

/// The figures of a pod, of the resource that is looked at.
#[derive(Clone, Copy, Debug)]
struct Figure {
    millis: i64,
    at: Timestamp,
    window: Duration,
}

/// By pod name.
type Figures<'a> = BTreeMap<&'a str, Figure>;

/// How many replicas a resource's usage asks for; or why that is not known, in upstream's words.
pub fn propose(
    current: i64,
    pods: &[Arc<Value>],
    used: &BTreeMap<String, PodUsage>,
    of: Of<'_>,
    target: Target,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Proposal, String> {
    let resource = of.resource;
    let mut figures = figures(pods, used, of)
        .map_err(|why| format!("unable to get metrics for resource {resource}: {why}"))?;
    if pods.is_empty() {
        let no = if matches!(target, Target::Utilization(_)) { "No" } else { "no" };
        return Err(format!("{no} pods returned by selector while calculating replica count"));
    }
    let groups = Groups::of(pods, &figures, resource, now);
    figures.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if figures.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let requests = match target {
        Target::Utilization(_) => requests(pods, of)?,
        Target::Average(_) => BTreeMap::new(),
    };
    let (ratio, mut proposal) = rate(&figures, &requests, target)?;
    let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        proposal.replicas = if tolerance.holds(ratio) { current } else { ceil(ratio, groups.ready) };
        return Ok(proposal);
    }
    let mut assume = |names: &BTreeSet<&'_ str>, millis: &dyn Fn(&str) -> i64| {
        for name in pods.iter().map(|pod| name(pod)).filter(|name| names.contains(name)) {
            figures.insert(name, Figure { millis: millis(name), at: now, window: Duration::ZERO });
        }
    };
    if ratio < 1.0 {
        let full = |name: &str| match target {
            Target::Utilization(percent) => {
                let request = requests.get(name).copied().unwrap_or_default();
                request.saturating_mul(percent.max(100)) / 100
            }
            Target::Average(millis) => millis,
        };
        assume(&groups.missing, &full);
    } else if ratio > 1.0 || matches!(target, Target::Average(_)) {
        assume(&groups.missing, &|_| 0);
    }
    if up_with_unready {
        assume(&groups.unready, &|_| 0);
    }
    let (again, _) = rate(&figures, &requests, target)?;
    let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
    let replicas = ceil(again, figures.len());
    let wrong = (again < 1.0 && replicas > current) || (again > 1.0 && replicas < current);
    proposal.replicas = if tolerance.holds(again) || turned || wrong { current } else { replicas };
    Ok(proposal)
}

fn ceil(ratio: f64, count: usize) -> i64 {
    let product = ratio * f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    // Replicas are 32 bits wide: beyond that nothing is asked for.
    product.ceil().clamp(0.0, f64::from(i32::MAX)) as i64
}

/// The figures of a resource, of pods that have them whole.
fn figures<'a>(
    pods: &'a [Arc<Value>],
    used: &BTreeMap<String, PodUsage>,
    of: Of<'_>,
) -> Result<Figures<'a>, String> {
    let mut found = Figures::new();
    for pod in pods {
        let Some(usage) = used.get(name(pod)) else { continue };
        let millis = |container: &crate::usage::Rate| match of.resource {
            "cpu" => i64::try_from(container.nano_cores.div_ceil(1_000_000)).ok(),
            "memory" => i64::try_from(container.memory_bytes).ok()?.checked_mul(1000),
            _ => None,
        };
        let mut containers = usage.containers.iter();
        let millis = match of.container {
            None => containers.try_fold(0_i64, |sum, (_, rate)| Some(sum.saturating_add(millis(rate)?))),
            Some(wanted) => {
                let rate = containers.find(|(name, _)| name == wanted);
                let missing = || {
                    let (namespace, name) = (crate::object::namespace(pod), name(pod));
                    format!("container {wanted} not present in metrics for pod {namespace}/{name}")
                };
                millis(&rate.ok_or_else(missing)?.1)
            }
        };
        if let Some(millis) = millis {
            found.insert(name(pod), Figure { millis, at: usage.at, window: usage.window });
        }
    }
    if found.is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    Ok(found)
}

#[derive(Debug, Default)]
struct Groups<'a> {
    ready: usize,
    unready: BTreeSet<&'a str>,
    missing: BTreeSet<&'a str>,
    ignored: BTreeSet<&'a str>,
}

impl<'a> Groups<'a> {
    fn of(pods: &'a [Arc<Value>], figures: &Figures<'_>, resource: &str, now: Timestamp) -> Groups<'a> {
        let mut groups = Groups::default();
        for pod in pods {
            let phase = text(pod, &["status", "phase"]);
            let figure = figures.get(name(pod));
            if is_terminating(pod) || phase == "Failed" {
                groups.ignored.insert(name(pod));
            } else if matches!(phase, "Pending" | "") {
                groups.unready.insert(name(pod));
            } else if let Some(figure) = figure {
                if resource == "cpu" && !is_steady(pod, *figure, now) {
                    groups.unready.insert(name(pod));
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.insert(name(pod));
            }
        }
        groups
    }
}

/// Whether a pod's cpu tells how busy it is, rather than how it starts.
fn is_steady(pod: &Value, figure: Figure, now: Timestamp) -> bool {
    let mut conditions = items(pod, &["status", "conditions"]).iter();
    let ready = conditions.find(|told| text(told, &["type"]) == "Ready");
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let (Some(ready), Some(started)) = (ready, time(text(pod, &["status", "startTime"]))) else {
        return false;
    };
    let since = time(text(ready, &["lastTransitionTime"])).unwrap_or(Timestamp::UNIX_EPOCH);
    let unready = text(ready, &["status"]) == "False";
    let after = |from: Timestamp, wait: Duration| from.saturating_add(wait).unwrap_or(Timestamp::MAX);
    if after(started, CPU_INITIALIZATION) > now {
        !unready && figure.at >= after(since, figure.window)
    } else {
        !(unready && after(started, INITIAL_READINESS) > since)
    }
}

/// Thousandths that each pod requests.
fn requests<'a>(pods: &'a [Arc<Value>], of: Of<'_>) -> Result<BTreeMap<&'a str, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in pods {
        let amount = |of_what: &Value| {
            let text = at(of_what, &["resources", "requests", of.resource]).as_str()?;
            Some(text.parse::<Quantity>().ok()?.millis())
        };
        if let (None, Some(whole)) = (of.container, amount(at(pod, &["spec"]))) {
            requests.insert(name(pod), whole);
            continue;
        }
        let sidecars = items(pod, &["spec", "initContainers"]).iter();
        let sidecars = sidecars.filter(|container| text(container, &["restartPolicy"]) == "Always");
        let mut sum = 0_i64;
        for container in items(pod, &["spec", "containers"]).iter().chain(sidecars) {
            let called = text(container, &["name"]);
            if of.container.is_some_and(|wanted| wanted != called) {
                continue;
            }
            let request = amount(container).ok_or_else(|| {
                let (resource, pod) = (of.resource, name(pod));
                format!("missing request for {resource} in container {called} of Pod {pod}")
            })?;
            sum = sum.saturating_add(request);
        }
        requests.insert(name(pod), sum);
    }
    Ok(requests)
}

/// How usage is to the target.
fn rate(
    figures: &Figures<'_>,
    requests: &BTreeMap<&str, i64>,
    target: Target,
) -> Result<(f64, Proposal), String> {
    let count = i64::try_from(figures.len()).unwrap_or(i64::MAX).max(1);
    let total = |figures: &mut dyn Iterator<Item = i64>| figures.fold(0_i64, i64::saturating_add);
    match target {
        Target::Average(wanted) => {
            let average = total(&mut figures.values().map(|figure| figure.millis)) / count;
            let proposal = Proposal { replicas: 0, utilization: None, average_millis: average };
            Ok((average as f64 / wanted.max(1) as f64, proposal))
        }
        Target::Utilization(wanted) => {
            let known = || figures.iter().filter_map(|(name, figure)| Some((figure, *requests.get(name)?)));
            let used = total(&mut known().map(|(figure, _)| figure.millis));
            let requested = total(&mut known().map(|(_, request)| request));
            if requested == 0 {
                return Err("no metrics returned matched known pods".into());
            }
            let utilization = used.saturating_mul(100) / requested;
            let entries = i64::try_from(known().count()).unwrap_or(i64::MAX).max(1);
            let proposal =
                Proposal { replicas: 0, utilization: Some(utilization), average_millis: used / entries };
            Ok((utilization as f64 / wanted.max(1) as f64, proposal))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Rate;
    use serde_json::json;

    const NOW: &str = "2026-01-01T01:00:00Z";
    const EXACT: Tolerance = Tolerance { down: 0.1, up: 0.1 };
    const CPU: Of<'static> = Of { resource: "cpu", container: None };

    /// How a pod is: what it uses, in thousandths; ready, unless said otherwise.
    #[derive(Clone, Copy)]
    enum Is {
        Using(u64),
        Missing,
        Pending,
        Starting(u64),
        Failed(u64),
    }
    use Is::{Failed, Missing, Pending, Starting, Using};

    fn world(pods: &[Is]) -> (Vec<Arc<Value>>, BTreeMap<String, PodUsage>) {
        let mut used = BTreeMap::new();
        let mut all = Vec::new();
        for (index, is) in pods.iter().enumerate() {
            let name = format!("p{index}");
            let (phase, started, millis) = match is {
                Using(millis) => ("Running", "2026-01-01T00:00:00Z", Some(millis)),
                Missing => ("Running", "2026-01-01T00:00:00Z", None),
                Pending => ("Pending", "", None),
                Starting(millis) => ("Running", NOW, Some(millis)),
                Failed(millis) => ("Failed", "2026-01-01T00:00:00Z", Some(millis)),
            };
            let ready = if started == NOW { "False" } else { "True" };
            all.push(Arc::new(json!({
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Ki"}}}]},
                "status": {
                    "phase": phase,
                    "startTime": started,
                    "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": started}],
                },
            })));
            if let Some(millis) = millis {
                let rate = Rate { nano_cores: millis * 1_000_000, memory_bytes: *millis };
                let at = NOW.parse().expect("a time");
                let window = Duration::from_secs(15);
                used.insert(name, PodUsage { at, window, containers: vec![("c".into(), rate)] });
            }
        }
        (all, used)
    }

    #[track_caller]
    fn check(pods: &[Is], target: Target, expected: Result<(i64, Option<i64>), &str>) {
        let (all, used) = world(pods);
        let current = i64::try_from(pods.len()).expect("few");
        let now = NOW.parse().expect("a time");
        let found = propose(current, &all, &used, CPU, target, EXACT, now);
        let found = found.as_ref().map(|found| (found.replicas, found.utilization)).map_err(String::as_str);
        assert_eq!(found, expected);
    }

    #[test]
    fn utilization_asks_for_replicas() {
        let half = Target::Utilization(50);
        check(&[Using(500), Using(500)], half, Ok((2, Some(50))));
        check(&[Using(540), Using(540)], half, Ok((2, Some(54))));
        check(&[Using(1000), Using(800)], half, Ok((4, Some(90))));
        check(&[Using(100), Using(100), Using(100)], half, Ok((1, Some(10))));
        check(&[Using(0), Using(0)], half, Ok((0, Some(0))));
        // Of ended ones nothing is counted.
        check(&[Using(1000), Failed(9000)], half, Ok((2, Some(100))));
        // Unready ones dampen the way up, and do not matter on the way down.
        check(&[Using(1000), Starting(900)], half, Ok((2, Some(100))));
        check(&[Using(1000), Using(1000), Pending], half, Ok((4, Some(100))));
        check(&[Using(100), Using(100), Pending], half, Ok((1, Some(10))));
        // Missing ones count as full on the way down, as idle on the way up.
        check(&[Using(100), Missing], half, Ok((2, Some(10))));
        check(&[Using(100), Using(100), Using(100), Using(100), Missing], half, Ok((3, Some(10))));
        check(&[Using(900), Using(900), Missing], half, Ok((4, Some(90))));
        check(&[Using(600), Missing], half, Ok((2, Some(60))));
        let none = "unable to get metrics for resource cpu: no metrics returned from resource metrics API";
        check(&[Missing, Pending], half, Err(none));
        check(&[], half, Err(none));
        check(
            &[Starting(900)],
            half,
            Err("did not receive metrics for targeted pods (pods might be unready)"),
        );
    }

    #[test]
    fn averages_ask_for_replicas() {
        let target = Target::Average(200);
        check(&[Using(200), Using(210)], target, Ok((2, None)));
        check(&[Using(600), Using(200)], target, Ok((4, None)));
        check(&[Using(50), Using(50), Using(50)], target, Ok((1, None)));
        check(&[Using(50), Missing, Missing], target, Ok((3, None)));
        check(&[Using(800), Pending], target, Ok((4, None)));
    }

    #[test]
    fn a_container_alone_is_looked_at() {
        let (pods, used) = world(&[Using(500)]);
        let now = NOW.parse().expect("a time");
        let of = |resource, container| {
            let of = Of { resource, container: Some(container) };
            propose(1, &pods, &used, of, Target::Utilization(25), EXACT, now)
        };
        assert_eq!(of("cpu", "c").map(|found| found.replicas), Ok(2));
        assert_eq!(
            of("cpu", "other"),
            Err("unable to get metrics for resource cpu: container other not present in metrics for pod default/p0".into())
        );
        // 500 bytes of the 1024 that are requested.
        let memory = of("memory", "c").expect("figures");
        assert_eq!((memory.utilization, memory.average_millis, memory.replicas), (Some(48), 500_000, 2));
    }

    #[test]
    fn what_is_not_requested_has_no_utilization() {
        let (mut pods, used) = world(&[Using(500)]);
        let pod = Arc::make_mut(&mut pods[0]);
        pod["spec"]["containers"][0]["resources"] = json!({});
        let now = NOW.parse().expect("a time");
        let found = propose(1, &pods, &used, CPU, Target::Utilization(50), EXACT, now);
        assert_eq!(found, Err("missing request for cpu in container c of Pod p0".into()));
    }
}
