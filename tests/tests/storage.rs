//! What pods may write to the board's disk: measured, and who takes more has to go.

use coracle_tests::agent::Board;
use coracle_tests::manifest::{SLEEP, ended, pod, running};
use serde_json::Value;

fn reason(seen: &Value) -> (&str, &str, &str) {
    let text = |field: &str| seen["status"][field].as_str().unwrap_or_default();
    (text("phase"), text("reason"), text("message"))
}

#[test]
fn pods_that_write_more_than_they_may_are_evicted() {
    let board = Board::start("").expect("a board");
    let volume = |limit: &str| {
        format!("  terminationGracePeriodSeconds: 600\n  volumes: [{{name: v, emptyDir: {{{limit}}}}}]\n")
    };
    let in_volume = |name: &str, script: &str, limit: &str| {
        let text = pod(name, script, &volume(limit)).replacen("  terminationGracePeriodSeconds: 1\n", "", 1);
        text + "    volumeMounts: [{name: v, mountPath: /v}]\n"
    };
    let limited = |name: &str, script: &str, limit: &str| {
        pod(name, script, "") + &format!("    resources: {{limits: {{ephemeral-storage: {limit}}}}}\n")
    };
    // It writes where the sum is not looked for at first: deep, by many names, and never ends by itself.
    let write = "trap '' TERM; mkdir -p /v/a/b/c; dd if=/dev/zero of=/v/a/b/c/x bs=1M count=3 2>/dev/null; while :; do sleep 1; done";
    let layer = "dd if=/dev/zero of=/x bs=1M count=3 2>/dev/null; while :; do sleep 1; done";
    let logs = "i=0; while [ $i -lt 40000 ]; do echo a line that is written to the log of its container $i; i=$((i + 1)); done; while :; do sleep 1; done";
    let modest = "dd if=/dev/zero of=/v/x bs=1M count=1 2>/dev/null; ln /v/x /v/y; ln /v/x /v/z; trap 'exit 0' TERM; while :; do sleep 1; done";
    let all = [
        in_volume("volume", write, "sizeLimit: 2Mi"),
        in_volume("modest", modest, "sizeLimit: 2Mi"),
        in_volume("free", write, ""),
        in_volume("sum", write, "") + "    resources: {limits: {ephemeral-storage: 2Mi}}\n",
        limited("layer", layer, "2M"),
        limited("logs", logs, "2Mi"),
        limited("quiet", SLEEP, "2Mi"),
    ];
    board.apply(&all.join("---\n")).expect("applied");
    let sum = "Pod ephemeral local storage usage exceeds the total limit of containers";
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"v\" exceeds the limit \"2Mi\". ".to_string()),
        ("sum", format!("{sum} 2Mi. ")),
        // With one container its limit is the pod's, which is looked at first.
        ("layer", format!("{sum} 2M. ")),
        ("logs", format!("{sum} 2Mi. ")),
    ] {
        let seen = board.wait(name, "evicted", ended).expect("evicted");
        assert_eq!(reason(&seen), ("Failed", "Evicted", message.as_str()), "{seen:#}");
    }
    // Long before its own grace is over.
    let gone = |seen: &Value| seen["status"]["containerStatuses"][0]["state"]["terminated"].is_object();
    board.wait("volume", "ended", gone).expect("ended");
    for name in ["modest", "free", "quiet"] {
        let seen = board.wait(name, "running", running).expect("stays");
        assert_eq!(reason(&seen).1, "", "{seen:#}");
    }
    let events = board.get_text("/events").expect("events");
    assert!(events.contains("\"reason\":\"Evicted\""), "{events}");
    // A tree that no program can name has no end, and its pod goes away like any other.
    let chain = "i=0; while [ $i -lt 1500 ]; do mkdir d; cd d || exit 1; i=$((i + 1)); done";
    let deep = format!(
        "mkdir /v/x /v/y; cd /v/y; {chain}; cd /v/x; {chain}; mv /v/y .; trap 'exit 0' TERM; while :; do sleep 1; done"
    );
    board.apply(&in_volume("deep", &deep, "sizeLimit: 1Gi")).expect("applied");
    let seen = board.wait("deep", "evicted", ended).expect("evicted");
    assert_eq!(reason(&seen).1, "Evicted", "{seen:#}");
    for name in ["deep", "volume", "modest", "free", "sum", "layer", "logs", "quiet"] {
        board.run(&["delete", "pod", name, "--grace-period", "1"]).expect("deleted");
    }
    for name in ["deep", "volume", "modest"] {
        board.wait_gone(name).expect("gone");
    }
}
