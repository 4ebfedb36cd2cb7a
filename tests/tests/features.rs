//! What a pod may ask for, on a real board: each setting as the container sees it, each end as the kubelet tells it.

use coracle_tests::agent::Board;
use coracle_tests::image::Image;
use coracle_tests::manifest::{SLEEP, ended, first, pod, running, waiting};
use serde_json::Value;
use std::path::{Path, PathBuf};

const NEVER: &str = "  restartPolicy: Never\n";

#[test]
fn settings_are_what_the_container_gets() {
    let board = Board::start("").expect("a board");
    let profiles = board.root().join("seccomp");
    std::fs::create_dir_all(&profiles).expect("made");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(profiles.join("no-mkdir.json"), profile).expect("written");
    let host = board.root().join("host/made");
    let on_host = format!(
        "  volumes: [{{name: v, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]\n",
        host.display()
    );
    let empty = "  volumes: [{name: v, emptyDir: {}}]\n";
    let at = |path: &str, more: &str| format!("    volumeMounts: [{{name: v, mountPath: {path}{more}}}]\n");
    // Name, what goes into the spec, what into the container, the script, and what it must say.
    let cases: Vec<(&str, String, String, &str, &[&str])> = vec![
        (
            "env",
            String::new(),
            "    args: ['$(A)$$(A)$(NONE)']\n    env: [{name: A, value: one}, {name: B, value: '$(A) $$(A) $(NONE) $(C)'}, {name: C, value: late}]\n".into(),
            r#"echo "$B|$0""#,
            &["one $(A) $(NONE) $(C)|one$(A)$(NONE)\n"],
        ),
        (
            "groups",
            format!("{empty}  securityContext: {{runAsUser: 1000, runAsGroup: 3000, supplementalGroups: [4000], fsGroup: 5000}}\n"),
            "    volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /s, subPath: deep/er}]\n".into(),
            "id; touch /v/x /s/y; stat -c '%g %a' /v /s /s/y",
            &["uid=1000(boat) gid=3000 groups=3000,4000,5000\n", "5000 2777\n5000 2777\n5000 644\n"],
        ),
        (
            "plain",
            "  securityContext: {runAsUser: 4242}\n".into(),
            String::new(),
            "id; grep -E 'CapEff|CapBnd|Seccomp:' /proc/self/status; echo $HOME",
            &["uid=4242 gid=0(root) groups=0(root)\n", "CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n/\n"],
        ),
        (
            "names",
            "  hostname: h\n  subdomain: sub\n  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.9], searches: [fleet], options: [{name: ndots, value: '1'}]}\n".into(),
            String::new(),
            "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; echo $HOSTNAME",
            &["h\nh\n# Kubernetes-managed hosts file.\n", "\th.sub.default.svc.cluster.local\th\n", "nameserver 192.0.2.9\nsearch fleet\noptions ndots:1\nh\n"],
        ),
        (
            "fqdn",
            "  hostname: h\n  subdomain: sub\n  setHostnameAsFQDN: true\n".into(),
            String::new(),
            "hostname",
            &["h.sub.default.svc.cluster.local\n"],
        ),
        (
            "host",
            "  hostNetwork: true\n".into(),
            String::new(),
            r#"[ "$(hostname)" = "$HOSTNAME" ] && [ "$HOSTNAME" = "$(cat /etc/hostname)" ] && echo one name"#,
            &["one name\n"],
        ),
        (
            "localhost",
            String::new(),
            "    securityContext: {seccompProfile: {type: Localhost, localhostProfile: no-mkdir.json}}\n".into(),
            "mkdir /x; touch /y && echo touched",
            &["mkdir: can't create directory '/x': Operation not permitted\n", "touched\n"],
        ),
        (
            "memory",
            "  volumes: [{name: v, emptyDir: {medium: Memory}}, {name: w, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]\n".into(),
            "    volumeMounts: [{name: v, mountPath: /v}, {name: w, mountPath: /w}]\n    resources: {limits: {memory: 30Mi}}\n".into(),
            "df -k /v /w | awk '{print $2}'; head -c 2000000 /dev/zero > /w/x; stat -c %s /w/x",
            &["30720\n1024\n", "\n1048576\n"],
        ),
        ("read-only", on_host, at("/v", ", readOnly: true"), "touch /v/x", &["touch: /v/x: Read-only file system\n"]),
        ("covered", empty.into(), at("/etc", ""), "cat /etc/hosts", &["# Kubernetes-managed hosts file.\n"]),
        (
            "sysctl",
            "  securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '77'}]}\n".into(),
            String::new(),
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            &["77\n"],
        ),
    ];
    for (name, spec, own, script, _) in &cases {
        board.apply(&(pod(name, script, &format!("{NEVER}{spec}")) + own)).expect(name);
    }
    for (name, _, _, _, expected) in &cases {
        board.wait(name, "ended", ended).expect(name);
        let said = board.run(&["logs", name]).expect("logs");
        for part in *expected {
            assert!(said.contains(part), "{name}: {part:?} is not in\n{said}");
        }
    }
    assert!(host.is_dir(), "DirectoryOrCreate creates");
}

#[test]
fn every_end_has_the_kubelets_reason() {
    let board = Board::start("").expect("a board");
    let with = |name: &str, script: &str, spec: &str| pod(name, script, &format!("{NEVER}{spec}"));
    let garbage = "  volumes: [{name: v, emptyDir: {}}]\n  initContainers: [{name: a, image: 'example.test/busybox:1', command: [sh, -c, 'head -c 9999 /dev/urandom > /v/x; chmod +x /v/x'], volumeMounts: [{name: v, mountPath: /v}]}]\n";
    let command = |name: &str, spec: &str, path: &str| {
        with(name, "true", spec).replace("[sh, -c, \"true\"]", &format!("[{path}]"))
    };
    // Name, text, phase, reason, exit code, and what the message holds.
    let cases = [
        (
            "deaf",
            with("deaf", "trap '' TERM; while :; do sleep 1; done", "  activeDeadlineSeconds: 1\n"),
            "Error",
            137,
            "",
        ),
        (
            "polite",
            with(
                "polite",
                "trap 'exit 7' INT; trap 'exit 8' TERM; while :; do sleep 1; done",
                "  activeDeadlineSeconds: 1\n",
            )
            .replace("example.test/busybox:1", "example.test/polite:1"),
            "Error",
            7,
            "",
        ),
        (
            "missing",
            command("missing", "", "/no/such"),
            "StartError",
            128,
            "exec: \"/no/such\": stat /no/such: no such file or directory",
        ),
        ("denied", command("denied", "", "/etc/passwd"), "StartError", 128, "permission denied"),
        (
            "foreign",
            command("foreign", garbage, "/v/x") + "    volumeMounts: [{name: v, mountPath: /v}]\n",
            "StartError",
            128,
            "Exec format error",
        ),
        (
            "wordy",
            with("wordy", "head -c 5000000 /dev/zero | tr '\\0' x > /dev/termination-log; exit 3", ""),
            "Error",
            3,
            "xxxxxxxx",
        ),
        (
            "logged",
            with("logged", "echo the reason; exit 4", "")
                + "    terminationMessagePolicy: FallbackToLogsOnError\n",
            "Error",
            4,
            "the reason",
        ),
        ("silent", with("silent", "exit 5", ""), "Error", 5, ""),
    ];
    let mut polite = Image::busybox("example.test/polite:1").expect("built");
    polite.config["StopSignal"] = "SIGINT".into();
    board.import(&polite).expect("imported");
    for (name, text, ..) in &cases {
        board.apply(text).expect(name);
    }
    let asks = with("asks", "true", "") + "    resources: {requests: {memory: 1Ei}}\n";
    board.apply(&asks).expect("applied");
    for (name, _, reason, code, part) in &cases {
        let seen = board
            .wait(name, "ended", |p| ended(p) && first(p)["state"]["terminated"].is_object())
            .expect(name);
        let end = &first(&seen)["state"]["terminated"];
        assert_eq!(
            (end["reason"].as_str(), end["exitCode"].as_i64()),
            (Some(*reason), Some(*code)),
            "{name}: {seen:#}"
        );
        let message = end["message"].as_str().unwrap_or_default();
        assert!(
            message.contains(part) && message.len() <= 4096 && message.lines().count() <= 1,
            "{name}: {message}"
        );
        let ready =
            seen["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
        assert_eq!(ready.map(|c| &c["reason"]), Some(&Value::from("PodFailed")), "{name}");
        if *name == "deaf" {
            assert_eq!(seen["status"]["reason"], "DeadlineExceeded");
        }
    }
    assert_eq!(board.run(&["logs", "silent"]).expect("it wrote nothing, and that is no error"), "");
    let seen = board.wait("asks", "rejected", ended).expect("is rejected");
    assert_eq!(seen["status"]["reason"], "OutOfmemory", "{seen:#}");
    assert!(board.run(&["ps"]).expect("lists").contains("OutOfmemory"));

    let refused = |name: &str, text: &str, reason: &str| {
        board.apply(text).expect(name);
        board.wait(name, reason, |p| waiting(p) == reason).expect(name);
    };
    refused(
        "invalid",
        &with("invalid", "true", "").replace("example.test/busybox:1", "'Bad:NAME:x'"),
        "InvalidImageName",
    );
    let root = with("root", "true", "") + "    securityContext: {runAsNonRoot: true, runAsUser: 0}\n";
    refused("root", &root, "CreateContainerConfigError");
    let place = "  volumes: [{name: v, emptyDir: {}}]\n";
    refused(
        "place",
        &(with("place", "true", place) + "    volumeMounts: [{name: v, mountPath: /proc/}]\n"),
        "CreateContainerError",
    );
    let kind = "  volumes: [{name: v, hostPath: {path: /etc/passwd, type: Directory}}]\n";
    board.apply(&with("kind", "true", kind)).expect("applied");
    let until = std::time::Instant::now() + coracle_tests::agent::deadline();
    while !board
        .run(&["describe", "kind"])
        .expect("describes")
        .contains("hostPath type check failed: /etc/passwd is not a directory")
    {
        assert!(std::time::Instant::now() < until, "FailedMount is not told");
    }
}

/// A cgroup's file, on v2 or on the controller's own v1 hierarchy.
fn cgroup_file(board: &Board, below: &str, [controller, v1]: [&str; 2], v2: &str) -> String {
    let top = Path::new("/sys/fs/cgroup");
    let roots = [(top.join(controller), v1), (top.to_path_buf(), v2)];
    let names = [board.name().to_string(), format!("{}.slice", board.name())];
    let found: Option<PathBuf> = roots.iter().find_map(|(root, file)| {
        let paths = names.iter().map(|name| root.join(name).join(below).join(file));
        paths.into_iter().find(|path| path.exists())
    });
    let path = found.unwrap_or_else(|| panic!("no {v1} or {v2} at {below}"));
    std::fs::read_to_string(path).expect("readable").trim().into()
}

#[test]
fn requests_and_limits_reach_the_cgroups_and_a_fork_bomb_stays_in_its_pod() {
    let board = Board::start("pod_pids_max = 64").expect("a board");
    let second = "  - name: second\n    image: example.test/busybox:1\n    command: [sh, -c, \"exec sleep 1000\"]\n    resources: {limits: {cpu: 250m, memory: 16Mi}}\n";
    let classes = [
        ("kubepods/pod", "guaranteed", "    resources: {limits: {cpu: 500m, memory: 32Mi}}\n", second),
        (
            "kubepods/burstable/pod",
            "burstable",
            "    resources: {requests: {cpu: 100m}, limits: {memory: 32Mi}}\n",
            "",
        ),
        ("kubepods/besteffort/pod", "besteffort", "", ""),
    ];
    let mut paths = Vec::new();
    for (prefix, name, resources, second) in classes {
        board.apply(&(pod(name, SLEEP, "") + resources + second)).expect("applied");
        let seen = board.wait(name, "running", running).expect("runs");
        paths.push(format!("{prefix}{}", seen["metadata"]["uid"].as_str().expect("a uid")));
    }
    let read = |path: &str, v1, v2| cgroup_file(&board, path, v1, v2);
    let memory = |path: &str| read(path, ["memory", "memory.limit_in_bytes"], "memory.max");
    let quota = |path: &str| read(path, ["cpu", "cpu.cfs_quota_us"], "cpu.max");
    let pids = |path: &str| read(path, ["pids", "pids.max"], "pids.max");
    let [guaranteed, burstable, best] = paths.try_into().expect("three");
    let main = |path: &str| format!("{path}/main.0");
    assert_eq!(
        [memory(&main(&guaranteed)), memory(&guaranteed)],
        [(32 << 20).to_string(), (48 << 20).to_string()]
    );
    let starts =
        |text: String, with: &str| assert!(text.starts_with(with), "{text} does not start with {with}");
    starts(quota(&main(&guaranteed)), "50000");
    starts(quota(&guaranteed), "75000");
    assert_eq!(memory(&main(&burstable)), (32 << 20).to_string());
    assert_eq!(memory(&burstable), (32 << 20).to_string());
    for path in [&guaranteed, &burstable, &best] {
        assert_eq!([pids(path), pids(&main(path))], ["64", "64"], "{path}");
    }
    // cpu.shares of 102 and 2 are cpu.weight of 4 and 1: the kubelet's arithmetic.
    let shares = |path: &str| read(path, ["cpu", "cpu.shares"], "cpu.weight");
    assert!(["102", "4"].contains(&shares(&main(&burstable)).as_str()), "{}", shares(&main(&burstable)));
    assert!(["2", "1"].contains(&shares(&main(&best)).as_str()), "{}", shares(&main(&best)));

    board.apply(&pod("bomb", "f() { f | f & }; echo lit; f; sleep 1000", "")).expect("applied");
    board.wait("bomb", "running", running).expect("runs");
    assert!(
        board.run(&["exec", "besteffort", "--", "echo", "alive"]).expect("others run on").contains("alive")
    );
    board.run(&["delete", "bomb", "--grace-period=0"]).expect("deleted");
    board.wait_gone("bomb").expect("goes away whole");
}
