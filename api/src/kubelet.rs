//! What both ends know of the kubelet's API: which requests look on, and which enter a pod.
//!
//! Upstream asks for the verb of the method, and a WebSocket begins with a GET: whoever may `get` `nodes/proxy`, as monitoring
//! often may, runs what they like in every pod of the node. Here what enters a pod is `create`, whatever its method.

use crate::percent;

/// Paths whose requests run something in a pod, or speak to it: the kubelet's, old and new, and ours.
const ENTERING: [&str; 6] = ["exec", "attach", "run", "portForward", "cri", "coracle"];

/// Whether a request enters a pod: by its path, or because it is an upgrade, which nothing that looks on needs. A path that
/// somebody else might read in another way enters as well.
pub fn enters(path: &str, is_upgrade: bool) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty()).map(percent::decoded);
    let odd = |part: &str| part == "." || part == ".." || part.contains('/');
    is_upgrade
        || match parts.next() {
            None => false,
            Some(None) => true,
            Some(Some(first)) => {
                odd(&first)
                    || ENTERING.iter().any(|entering| first.eq_ignore_ascii_case(entering))
                    || parts.any(|part| part.is_none_or(|part| odd(&part)))
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_enters_a_pod_is_known_in_every_spelling() {
        let check = |path: &str, expected: bool| assert_eq!(enters(path, false), expected, "{path}");
        for path in
            ["/exec/d/p/c?command=id", "/attach/d/p/c", "/run/d/p/c", "/portForward/d/p", "/cri/exec/t"]
        {
            check(path, true);
        }
        check("/coracle/v1/connect/d/p/80", true);
        for path in ["//exec/d/p/c", "exec/d/p/c", "/%65xec/d/p/c", "/Exec/d/p/c", "/portforward/d/p"] {
            check(path, true);
        }
        for path in
            ["/./exec/d/p/c", "/pods/../exec/d/p/c", "/%2e%2e/exec", "/pods%2Fexec", "/%zz", "/pods/%ff"]
        {
            check(path, true);
        }
        for path in
            ["", "/", "/healthz", "/pods", "/metrics", "/stats/summary", "/containerLogs/d/p/c", "/execs"]
        {
            check(path, false);
        }
        assert!(enters("/containerLogs/d/p/c", true) && enters("/", true));
    }
}
