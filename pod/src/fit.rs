//! Whether a board has room for one more pod: the kubelet's admission (`lifecycle/predicate.go`, the scheduler's
//! `NodeResourcesFit`). What counts is what pods ask for, not what they use.
//!
//! Left out on purpose: making room by ending others for a critical pod, and ephemeral storage, which is not counted.

use crate::observed::Capacity;
use crate::spec::PodSpec;

/// What pods that were admitted and have not finished ask for together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub pods: u64,
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

impl Load {
    /// Sums stop at the largest number: nothing fits beside that.
    pub fn of<'a>(admitted: impl IntoIterator<Item = &'a PodSpec>) -> Load {
        admitted.into_iter().fold(Load::default(), |sum, pod| {
            let one = Load::one(pod);
            Load {
                pods: sum.pods.saturating_add(one.pods),
                cpu_millis: sum.cpu_millis.saturating_add(one.cpu_millis),
                memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
            }
        })
    }

    fn one(pod: &PodSpec) -> Load {
        Load {
            pods: 1,
            cpu_millis: pod.resources.cpu_request_millis.unwrap_or(0),
            memory_bytes: pod.resources.memory_request_bytes.unwrap_or(0),
        }
    }
}

/// What there is too little of; its text is the kubelet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
)]
pub struct Shortage {
    resource: &'static str,
    requested: u64,
    used: u64,
    capacity: u64,
}

impl Shortage {
    /// `status.reason`.
    pub fn reason(&self) -> &'static str {
        match self.resource {
            "pods" => "OutOfpods",
            "cpu" => "OutOfcpu",
            _ => "OutOfmemory",
        }
    }
}

/// Whether `pod` has room beside `used`. Who asks for none of something is not refused for want of it. Pure.
///
/// # Errors
/// The first [`Shortage`], in the kubelet's order.
pub fn check(pod: &PodSpec, used: &Load, capacity: &Capacity) -> Result<(), Shortage> {
    let one = Load::one(pod);
    let resources = [
        ("pods", one.pods, used.pods, capacity.pods),
        ("cpu", one.cpu_millis, used.cpu_millis, capacity.cpu_millis),
        ("memory", one.memory_bytes, used.memory_bytes, capacity.memory_bytes),
    ];
    for (resource, requested, used, capacity) in resources {
        if requested > 0 && requested > capacity.saturating_sub(used) {
            return Err(Shortage { resource, requested, used, capacity });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(requests: &str) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"p\", \"uid\": \"u\"}}, \"spec\": {{\"containers\": [{{\"name\": \"c\", \"image\": \"i:1\", \"resources\": {{\"requests\": {{{requests}}}}}}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid")
    }

    #[test]
    fn a_pod_fits_beside_what_others_ask_for() {
        let check = |others: &[&str], one: &str, expected: Option<(&str, u64, u64)>| {
            let capacity = Capacity { pods: 3, cpu_millis: 4000, memory_bytes: 1024 };
            let others: Vec<PodSpec> = others.iter().map(|text| pod(text)).collect();
            let found = check(&pod(one), &Load::of(&others), &capacity).err();
            let found = found.map(|short| (short.reason(), short.requested, short.used));
            assert_eq!(found, expected, "{one} beside {others:?}");
        };
        let (two, three) = (r#""cpu": "2""#, r#""cpu": "3""#);
        check(&[], two, None);
        check(&[two], two, None);
        check(&[two, r#""cpu": "1m""#], two, Some(("OutOfcpu", 2000, 2001)));
        check(&[three], two, Some(("OutOfcpu", 2000, 3000)));
        check(&[three], "", None);
        check(&[r#""cpu": "5""#], "", None);
        check(&["", ""], r#""cpu": "4", "memory": "1024""#, None);
        check(&["", "", ""], "", Some(("OutOfpods", 1, 3)));
        check(&["", "", ""], r#""cpu": "5""#, Some(("OutOfpods", 1, 3)));
        check(&[r#""memory": "1000""#], r#""memory": "25""#, Some(("OutOfmemory", 25, 1000)));
        check(&[r#""memory": "1000""#], r#""memory": "24", "cpu": "5""#, Some(("OutOfcpu", 5000, 0)));
        check(
            &[r#""memory": "1Ei""#, r#""memory": "7Ei""#],
            r#""memory": "1""#,
            Some(("OutOfmemory", 1, 8 << 60)),
        );
    }
}
