//! coracle.service and coracle.slice: what systemd does to the agent, and what it leaves alone; cgroup v2's files.

use coracle_tests::vm::Machine;
use coracle_tests::vm::kit::{Kit, container, counter, identity, name, wait, wait_running};

const PODS: [&str; 2] = ["a", "b"];

fn agent(machine: &mut Machine) -> String {
    machine.sh("systemctl show -P MainPID coracle").expect("a pid")
}

#[test]
fn stop_restart_crash_and_hang_of_the_agent_leave_every_pod_running() {
    let kit = Kit::new().expect("packages and a machine");
    let mut machine = kit.installed().expect("a machine");
    machine
        .sh("systemd-analyze verify --man=no coracle.service coracle.slice 2>&1 | grep -i coracle && exit 1 || true")
        .expect("no complaint");
    machine
        .sh(&format!("coracle apply -f - <<'YAML'\n{}---\n{}\nYAML", counter("a"), counter("b")))
        .expect("applied");
    let before = identity(&wait_running(&mut machine, &PODS).expect("run"));
    // A watchdog that this test can wait for. A stopped process cannot be aborted, only killed.
    machine
        .sh("mkdir -p /run/systemd/system/coracle.service.d && printf '[Service]\\nWatchdogSec=8\\nTimeoutAbortSec=1\\n' > /run/systemd/system/coracle.service.d/quick.conf && systemctl daemon-reload")
        .expect("configured");
    for (what, script) in [
        ("restart", "systemctl restart coracle"),
        (
            "stop and start",
            "systemctl stop coracle; [ $(cat $(find /sys/fs/cgroup/coracle.slice/kubepods -name cgroup.procs) | wc -l) -ge 2 ] && systemctl start coracle",
        ),
        ("crash", "kill -9 $(systemctl show -P MainPID coracle)"),
        ("hang", "kill -STOP $(systemctl show -P MainPID coracle)"),
    ] {
        let old = agent(&mut machine);
        machine.sh(script).expect(what);
        machine
            .until("a new agent", &format!("n=$(systemctl show -P MainPID coracle); [ $n != 0 ] && [ $n != {} ] && systemctl is-active -q coracle", old.trim()))
            .expect(what);
        let after = identity(&wait_running(&mut machine, &PODS).expect(what));
        assert_eq!(after, before, "{what}");
    }
    let outside = machine
        .sh("systemctl show -P ControlGroup coracle; find /sys/fs/cgroup/coracle.slice/shims -mindepth 1 -type d | wc -l; cat /sys/fs/cgroup/coracle.slice/coracle.service/cgroup.procs | wc -l")
        .expect("counted");
    assert_eq!(outside.split_whitespace().collect::<Vec<_>>(), ["/coracle.slice/coracle.service", "2", "1"]);
    // Structured: the pod is a field, not prose.
    let uid = machine
        .sh("coracle ps a -o json | grep -o '\"uid\": \"[^\"]*' | cut -d'\"' -f4 | head -1")
        .expect("a uid");
    let journal = machine
        .sh(&format!("journalctl -b -u coracle -o json | grep -c '\"[A-Z_]*UID\":\"{}\"'", uid.trim()));
    assert!(journal.is_ok(), "{}", machine.sh("journalctl -b -u coracle -o json -n 5").expect("a journal"));
}

#[test]
fn cgroup_files_hold_what_the_pods_ask_for() {
    let kit = Kit::new().expect("packages and a machine");
    let mut machine = kit.installed().expect("a machine");
    let pod = |name: &str, resources: &str| {
        counter(name).replace("command:", &format!("resources: {resources}, command:"))
    };
    let all = [
        pod("best", "{}"),
        pod("burst", "{requests: {memory: 20Mi, cpu: 100m}, limits: {memory: 60Mi, cpu: 500m}}"),
        pod("guard", "{limits: {memory: 30Mi, cpu: 200m}}"),
    ];
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{}\nYAML", all.join("---\n"))).expect("applied");
    let pods = wait_running(&mut machine, &["best", "burst", "guard"]).expect("run");
    let uid = |wanted: &str| {
        pods.iter().find(|p| name(p) == wanted).expect("there")["metadata"]["uid"].as_str().expect("a uid")
    };
    let top = "/sys/fs/cgroup/coracle.slice/kubepods";
    let [best, burst, guard] = [("best", "besteffort/"), ("burst", "burstable/"), ("guard", "")]
        .map(|(name, class)| format!("{top}/{class}pod{}", uid(name)));
    let mib = |n: u64| (n << 20).to_string();
    let high = (20 << 20) + (40 << 20) / 100 * 90;
    for (file, value) in [
        (format!("{burst}/memory.max"), mib(60)),
        (format!("{burst}/memory.low"), mib(20)),
        (format!("{burst}/cpu.max"), "50000 100000".into()),
        (format!("{burst}/main.0/memory.max"), mib(60)),
        // In whole pages.
        (format!("{burst}/main.0/memory.high"), (high / 4096 * 4096).to_string()),
        (format!("{burst}/main.0/memory.oom.group"), "1".into()),
        (format!("{burst}/main.0/cpu.max"), "50000 100000".into()),
        (format!("{guard}/memory.min"), mib(30)),
        (format!("{guard}/main.0/memory.min"), mib(30)),
        (format!("{guard}/io.weight"), "default 200".into()),
        (format!("{best}/memory.max"), "max".into()),
        (format!("{best}/pids.max"), "4096".into()),
        (format!("{best}/io.weight"), "default 10".into()),
        (format!("{top}/besteffort/cpu.weight"), "1".into()),
        (format!("{top}/memory.min"), mib(30)),
        (format!("{top}/memory.low"), mib(20)),
        (format!("{top}/burstable/memory.low"), mib(20)),
    ] {
        // io.weight needs a kernel with a policy for it.
        let found = machine.run(&format!("cat {file}")).expect("read");
        if found.status != 0 && file.ends_with("io.weight") {
            continue;
        }
        assert_eq!(found.text.trim(), value, "{file}");
    }
    let top = machine.sh("coracle top").expect("usage");
    assert!(["best", "burst", "guard"].iter().all(|pod| top.contains(pod)), "{top}");
}

#[test]
fn under_memory_pressure_the_pod_that_exceeds_its_request_is_evicted() {
    let kit = Kit::new().expect("packages and a machine");
    let mut machine = kit.installed().expect("a machine");
    // More than the machine has: whether tasks wait for memory decides alone.
    machine
        .sh("echo 'eviction_memory_available_bytes = 4294967296' >> /etc/coracle/config.toml && coracle config check && systemctl restart coracle")
        .expect("configured");
    // 60 MiB, over and over: above what it is throttled from, and below what it would be killed for.
    let hog = "apiVersion: v1\nkind: Pod\nmetadata: {name: hog}\nspec:\n  terminationGracePeriodSeconds: 1\n  volumes: [{name: m, emptyDir: {medium: Memory}}]\n  containers:\n  - name: main\n    image: example.test/busybox:1\n    imagePullPolicy: IfNotPresent\n    volumeMounts: [{name: m, mountPath: /m}]\n    resources: {requests: {memory: 5Mi}, limits: {memory: 64Mi}}\n    command: [sh, -c, 'n=0; while :; do dd if=/dev/zero of=/m/$n bs=64k count=1 2>/dev/null; n=$(((n+1)%960)); done']\n";
    let modest = counter("modest").replace("command:", "resources: {requests: {memory: 40Mi}}, command:");
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{modest}\nYAML")).expect("applied");
    wait_running(&mut machine, &["modest"]).expect("runs");
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{hog}\nYAML")).expect("applied");
    let pods = wait(&mut machine, "hog is evicted", |pods| {
        pods.iter().any(|p| name(p) == "hog" && p["status"]["reason"] == "Evicted")
    })
    .expect("evicted");
    let hog = pods.iter().find(|p| name(p) == "hog").expect("there");
    assert_eq!(hog["status"]["phase"], "Failed", "{hog}");
    let message = hog["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("The node was low on resource: memory."), "{message}");
    let modest = pods.iter().find(|p| name(p) == "modest").expect("there");
    assert_eq!(
        (&modest["status"]["phase"], &container(modest)["restartCount"]),
        (&"Running".into(), &0.into())
    );
}
