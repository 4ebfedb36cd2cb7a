//! Which pod goes when the board runs out of memory. The kubelet's order (node-pressure eviction): first those that use
//! more than they asked for, of these the least important, of equals the one that exceeds its request most.
//!
//! Left out on purpose: when to ask. That is the agent's, which hears from the kernel.

use crate::spec::PodSpec;
use std::cmp::Reverse;

/// Pods of this priority and above keep the board itself working: `system-cluster-critical`.
const CRITICAL: i32 = 2_000_000_000;

/// A pod that may have to go.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub spec: &'a PodSpec,
    /// Its working set.
    pub memory_bytes: u64,
}

impl Candidate<'_> {
    fn request_bytes(&self) -> u64 {
        self.spec.resources.memory_request_bytes.unwrap_or(0)
    }
}

/// Whether it stays whatever it takes.
pub fn is_critical(spec: &PodSpec) -> bool {
    spec.priority >= CRITICAL
}

/// The index of the pod to evict, if any may be. Pure.
pub fn choose(candidates: &[Candidate<'_>]) -> Option<usize> {
    let open = candidates.iter().enumerate().filter(|(_, c)| !is_critical(c.spec));
    let rank = |c: &Candidate<'_>| {
        let request = c.request_bytes();
        let excess = i128::from(c.memory_bytes) - i128::from(request);
        (c.memory_bytes > request, Reverse(c.spec.priority), excess)
    };
    open.max_by_key(|(_, c)| rank(c)).map(|(index, _)| index)
}

/// The kubelet's message.
pub fn message(candidate: Candidate<'_>, available_bytes: u64, threshold_bytes: u64) -> String {
    format!(
        "The node was low on resource: memory. Threshold quantity: {threshold_bytes}, available: {}Ki. Pod was using {}Ki, request is {}.",
        available_bytes / 1024,
        candidate.memory_bytes / 1024,
        candidate.request_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(request: u64, priority: i32) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"p\", \"namespace\": \"default\", \"uid\": \"u\"}}, \"spec\": {{\"priority\": {priority}, \"containers\": [{{\"name\": \"c\", \"image\": \"i:1\", \"resources\": {{\"requests\": {{\"memory\": \"{request}\"}}}}}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid")
    }

    #[test]
    fn the_order_is_the_kubelets() {
        let check = |pods: &[(u64, i32, u64)], expected: Option<usize>| {
            let specs: Vec<PodSpec> =
                pods.iter().map(|(request, priority, _)| pod(*request, *priority)).collect();
            let candidates: Vec<_> = specs
                .iter()
                .zip(pods)
                .map(|(spec, (_, _, used))| Candidate { spec, memory_bytes: *used })
                .collect();
            assert_eq!(choose(&candidates), expected, "{pods:?}");
        };
        check(&[], None);
        check(&[(100, 0, 50), (100, 0, 150)], Some(1));
        // Who keeps within the request stays, however unimportant.
        check(&[(100, -10, 90), (100, 1000, 101)], Some(1));
        check(&[(100, 5, 300), (100, 1, 200)], Some(1));
        check(&[(100, 1, 300), (100, 1, 200)], Some(0));
        check(&[(1, 0, 1), (1, CRITICAL, 9999)], Some(0));
        check(&[(1, CRITICAL, 9999)], None);
    }
}
