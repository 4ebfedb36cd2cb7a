//! Pods on a real board: real agent, shim, helper, namespaces, cgroups, network.

use coracle_tests::agent::Board;
use coracle_tests::census::everything_below;
use coracle_tests::manifest::{SLEEP, condition, ended, first, pod, restarts, running};

#[test]
fn a_manifest_becomes_a_running_pod_and_its_removal_leaves_nothing() {
    let board = Board::start("").expect("a board");
    let before = board.census().expect("counted");
    board.manifest("web.yaml", WEB).expect("written");
    let seen = board.wait("web", "running", running).expect("runs");
    let ip = seen["status"]["podIP"].as_str().expect("an address").to_string();
    assert!(board.http(&format!("{ip}:80")).expect("answers").contains("a coracle carries a crew"));
    assert!(board.http("127.0.0.1:8080").expect("hostPort answers").contains("a coracle carries a crew"));
    // Shared network and UTS namespaces, own files and processes.
    assert!(
        board
            .run(&["exec", "web", "-c", "side", "--", "wget", "-qO-", "127.0.0.1:80"])
            .expect("shared network")
            .contains("crew")
    );
    assert_eq!(board.run(&["exec", "web", "-c", "side", "--", "hostname"]).expect("runs").trim(), "web");
    assert!(
        board.run(&["exec", "web", "-c", "web", "--", "cat", "/srv/www/old.html"]).is_err(),
        "a whiteout hides"
    );
    assert_eq!(
        board.run(&["exec", "web", "-c", "web", "--", "ls", "/srv/opaque"]).expect("runs").trim(),
        "above"
    );
    assert_eq!(
        board.run(&["exec", "web", "-c", "side", "--", "cat", "/shared/from-init"]).expect("runs").trim(),
        "init was here"
    );
    assert_eq!(
        board.run(&["exec", "web", "-c", "side", "--", "sh", "-c", "echo $GREETING"]).expect("runs").trim(),
        "ahoy web"
    );
    let status =
        board.coracle(&["exec", "web", "-c", "side", "--", "sh", "-c", "exit 7"]).expect("runs").status;
    assert_eq!(status.code(), Some(7), "the command's exit code is coracle's own");
    let listed = board.run(&["ps", "-o", "wide"]).expect("lists");
    assert!(
        listed.starts_with("NAMESPACE   NAME") && listed.contains("2/2") && listed.contains(&ip),
        "{listed}"
    );
    let described = board.run(&["describe", "web"]).expect("describes");
    for part in
        ["Init Containers:", "Started container side", "QoS Class:        Burstable", "Restart Count:  0"]
    {
        assert!(described.contains(part), "{part} is not in {described}");
    }
    board.remove_manifest("web.yaml").expect("removed");
    board.wait_gone("web").expect("goes away");
    assert_eq!(board.census().expect("counted"), before);
}

/// Guards against a pod that was taken down because its file got another name.
#[test]
fn a_pod_stays_when_its_manifest_is_renamed() {
    let board = Board::start("").expect("a board");
    board.manifest("old.yaml", &pod("stay", SLEEP, "")).expect("written");
    let before = board.wait("stay", "running", running).expect("runs");
    let dir = board.root().join("manifests");
    std::fs::rename(dir.join("old.yaml"), dir.join("new.yaml")).expect("renamed");
    // Each is an event after that one, and so is read with it or later.
    for name in ["other", "third"] {
        board.manifest(&format!("{name}.yaml"), &pod(name, SLEEP, "")).expect("written");
        board.wait(name, "running", running).expect("runs");
    }
    let after = board.wait("stay", "running", running).expect("runs on");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert!(after["metadata"]["deletionTimestamp"].is_null() && restarts(&after) == 0, "{after:#}");
    board.remove_manifest("new.yaml").expect("removed");
    board.wait_gone("stay").expect("goes with its file");
}

/// As RFC 3339 has it, in whole seconds, as statuses are.
fn now() -> String {
    let date =
        std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().expect("date runs");
    String::from_utf8(date.stdout).expect("text").trim().into()
}

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  terminationGracePeriodSeconds: 1
  volumes:
  - name: shared
    emptyDir: {}
  initContainers:
  - name: prepare
    image: example.test/busybox:1
    command: [sh, -c, "echo init was here > /shared/from-init"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: web
    image: example.test/web:1
    resources: {limits: {memory: 64Mi, cpu: 500m}, requests: {memory: 32Mi, cpu: 100m}}
    ports: [{containerPort: 80, hostPort: 8080}]
    startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
  - name: side
    image: example.test/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1; done"]
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: GREETING, value: ahoy $(POD)}]
    volumeMounts: [{name: shared, mountPath: /shared, readOnly: true}]
"#;

#[test]
fn containers_outlive_a_killed_agent_and_are_adopted() {
    let mut board = Board::start("").expect("a board");
    board.apply(&pod("stay", SLEEP, "")).expect("applied");
    let count = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); usleep 1000; done; exit 3";
    let quit = pod("quit", count, "  restartPolicy: Never\n");
    board.apply(&(quit + "    terminationMessagePolicy: FallbackToLogsOnError\n")).expect("applied");
    let before = board.wait("stay", "running", running).expect("runs");
    let quit = board.wait("quit", "running", running).expect("runs");
    let pid = |board: &Board| {
        board.run(&["exec", "stay", "--", "sh", "-c", "cut -d' ' -f22 /proc/1/stat"]).expect("runs")
    };
    let started = pid(&board);
    board.kill_agent().expect("killed");
    // It ends while there is no agent: all that is left of its end is the shim's record.
    let record =
        board.root().join("pods").join(quit["metadata"]["uid"].as_str().expect("a uid")).join("exits/main.0");
    let until = std::time::Instant::now() + coracle_tests::agent::deadline();
    while !record.exists() {
        assert!(std::time::Instant::now() < until, "the shim writes no record");
        std::thread::yield_now();
    }
    let back = now();
    board.start_agent().expect("starts again");
    let quit = board.wait("quit", "failed", ended).expect("known");
    let terminated = &first(&quit)["state"]["terminated"];
    assert_eq!(terminated["exitCode"], 3);
    assert!(terminated["message"].as_str().is_some_and(|m| m.ends_with("line 399\n")), "{terminated:#}");
    assert!(terminated["finishedAt"].as_str().is_some_and(|at| at <= back.as_str()), "{terminated:#}");
    let expected: String = (0..400).map(|n| format!("line {n}\n")).collect();
    assert_eq!(board.run(&["logs", "quit"]).expect("logs"), expected, "no line is lost");
    let after = board.wait("stay", "running", running).expect("runs on");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    assert_eq!(restarts(&after), 0);
    assert_eq!(pid(&board), started, "the very same process");
    board.stop_agent().expect("stops cleanly");
    board.start_agent().expect("starts again");
    assert_eq!(pid(&board), started, "a stop of the agent stops no pod either");
    board.run(&["delete", "stay", "quit"]).expect("deleted");
}

/// Its only pod's.
fn shim_of(board: &Board) -> nix::unistd::Pid {
    let shim = std::fs::read_dir("/proc").expect("lists").filter_map(Result::ok).find_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let ours = text.contains("coracle-shim") && text.contains(&board.root().display().to_string());
        ours.then(|| entry.file_name().to_string_lossy().parse::<i32>().ok())?
    });
    nix::unistd::Pid::from_raw(shim.expect("a shim"))
}

#[test]
fn a_killed_shim_takes_its_containers_with_it_and_they_are_restarted() {
    let board = Board::start("").expect("a board");
    board.apply(&pod("boat", SLEEP, "")).expect("applied");
    board.wait("boat", "running", running).expect("runs");
    let shim = shim_of(&board);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).expect("killed");
    let again = board.wait("boat", "restarted", |p| running(p) && restarts(p) == 1).expect("comes back");
    let last = &again["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137);
    board.run(&["delete", "boat"]).expect("deleted");
    assert_eq!(board.census().expect("counted").processes, 0, "no orphan");
}

/// With nobody there to clean up after it.
#[test]
fn a_shim_that_is_killed_takes_its_containers_with_it() {
    let mut board = Board::start("").expect("a board");
    board.apply(&pod("boat", SLEEP, "")).expect("applied");
    board.wait("boat", "running", running).expect("runs");
    let inside = board.census().expect("counted").processes;
    assert!(inside > 0, "a container runs");
    let shim = shim_of(&board);
    board.kill_agent().expect("killed");
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).expect("killed");
    let until = std::time::Instant::now() + coracle_tests::agent::deadline();
    while board.census().expect("counted").processes > 0 {
        assert!(std::time::Instant::now() < until, "orphans");
    }
    board.start_agent().expect("starts again");
    board.wait("boat", "restarted", |p| running(p) && restarts(p) == 1).expect("comes back");
}

#[test]
fn a_board_without_a_network_comes_back_after_a_power_cut() {
    let mut board = Board::start("").expect("a board");
    board.apply(&pod("boat", SLEEP, "")).expect("applied");
    board.manifest("m.yaml", &pod("crew", SLEEP, "")).expect("written");
    // What an init container put into memory is gone as well, so it is to do it again.
    let init = "  volumes: [{name: m, emptyDir: {medium: Memory}}]\n  initContainers: [{name: prepare, image: 'example.test/busybox:1', command: [touch, /m/ready], volumeMounts: [{name: m, mountPath: /m}]}]\n";
    let needs = pod("needs", &format!("test -e /m/ready || exit 1; {SLEEP}"), init)
        + "    volumeMounts: [{name: m, mountPath: /m}]\n";
    board.apply(&needs).expect("applied");
    for name in ["boat", "crew", "needs"] {
        board.wait(name, "running", running).expect("runs");
    }
    board.power_cycle().expect("off");
    board.start_agent().expect("on");
    for name in ["boat", "crew", "needs"] {
        let back = board.wait(name, "running again", |p| running(p) && restarts(p) == 1).expect("comes back");
        let last = &back["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 137, "{back:#}");
    }
}

#[test]
fn exits_reasons_and_restarts_follow_the_policy() {
    let board = Board::start("").expect("a board");
    let check = |name: &str, script: &str, more: &str, phase: &str, reason: &str, code: i64| {
        board.apply(&pod(name, script, more)).expect("applied");
        let seen = board.wait(name, phase, |p| p["status"]["phase"] == phase).expect("ends");
        let ended = &seen["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (ended["reason"].as_str(), ended["exitCode"].as_i64()),
            (Some(reason), Some(code)),
            "{seen:#}"
        );
    };
    check("fine", "exit 0", "  restartPolicy: Never\n", "Succeeded", "Completed", 0);
    check("bad", "exit 3", "  restartPolicy: Never\n", "Failed", "Error", 3);
    board.apply(&pod("crash", "echo attempt; exit 1", "")).expect("applied");
    let crashed = board
        .wait("crash", "in CrashLoopBackOff", |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .expect("crashes");
    let message =
        crashed["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().expect("a message");
    assert!(
        message.starts_with("back-off 10s restarting failed container=main pod=crash_default("),
        "{message}"
    );
    assert_eq!(restarts(&crashed), 1, "the first restart is at once");
    assert!(board.run(&["logs", "crash", "--previous"]).expect("previous").contains("attempt"));
    assert!(board.run(&["ps"]).expect("lists").contains("CrashLoopBackOff"));
    let described = board.run(&["describe", "crash"]).expect("describes");
    assert!(
        described.contains("Back-off restarting failed container main in pod crash_default("),
        "{described}"
    );
}

#[test]
fn limits_hold_and_an_oom_kill_is_told() {
    let board = Board::start("").expect("a board");
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: hog}\nspec:\n  restartPolicy: Never\n  containers:\n  - name: main\n    image: example.test/busybox:1\n    command: [sh, -c, 'x=$(head -c 200000000 /dev/zero | tr \"\\\\0\" x); echo survived']\n    resources: {limits: {memory: 20Mi}}\n";
    board.apply(text).expect("applied");
    let seen = board.wait("hog", "ended", |p| p["status"]["phase"] == "Failed").expect("is killed");
    assert_eq!(
        seen["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "OOMKilled",
        "{seen:#}"
    );
}

/// Usage of pods wherever there are cgroups; pressure of the machine where the kernel accounts for it, of pods on v2.
#[test]
fn usage_and_pressure_are_told() {
    let board = Board::start("").expect("a board");
    board.apply(&pod("busy", "echo up; while :; do :; done", "")).expect("applied");
    board.wait("busy", "running", running).expect("runs");
    let summary = board.get("/stats/summary").expect("a summary");
    let busy = &summary["pods"][0];
    assert_eq!(busy["podRef"]["name"], "busy", "{summary}");
    for (resource, figure) in [("cpu", "usageCoreNanoSeconds"), ("memory", "workingSetBytes")] {
        for of in [busy, &busy["containers"][0], &summary["node"]] {
            assert!(of[resource][figure].as_u64().is_some_and(|n| n > 0), "{resource}: {summary}");
        }
    }
    assert_eq!(busy["containers"][0]["name"], "main", "{summary}");
    assert!(busy["containers"][0]["startTime"].is_string(), "{summary}");
    let told = |of: &serde_json::Value| {
        of["memory"]["psi"]["some"]["total"].is_u64() && of["io"]["psi"]["full"]["avg300"].is_f64()
    };
    let kept = std::path::Path::new("/proc/pressure/memory").exists();
    assert_eq!(told(&summary["node"]), kept, "{summary}");
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(told(busy), kept && v2, "{summary}");
}

#[test]
fn security_settings_are_what_the_container_gets() {
    let board = Board::start("").expect("a board");
    let status = "grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:|^Uid|SigBlk' /proc/self/status; id; touch /x 2>&1; cat /dev/mem 2>&1 | head -c1; sleep 1000";
    let check = |name: &str, security: &str, expected: &[&str], absent: &[&str]| {
        let text = pod(name, status, "") + &format!("    securityContext: {security}\n");
        board.apply(&text).expect("applied");
        board.wait(name, "running", running).expect("runs");
        let said =
            board.run(&["exec", name, "--", "sh", "-c", &status.replace("; sleep 1000", "")]).expect("runs");
        let own = board.run(&["logs", name]).expect("logs");
        for text in [&said, &own] {
            for part in expected {
                assert!(text.contains(part), "{name}: {part} is not in\n{text}");
            }
            for part in absent {
                assert!(!text.contains(part), "{name}: {part} is in\n{text}");
            }
        }
        board.run(&["delete", name, "--grace-period=0"]).expect("deleted");
    };
    check(
        "plain",
        "{}",
        &[
            "Seccomp:\t2",
            "NoNewPrivs:\t0",
            "CapBnd:\t00000000a80425fb",
            "uid=0(root)",
            "SigBlk:\t0000000000000000",
        ],
        &["touch:"],
    );
    check(
        "locked",
        "{runAsUser: 1000, runAsGroup: 1000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}",
        &[
            "Seccomp:\t2",
            "NoNewPrivs:\t1",
            "CapBnd:\t0000000000000000",
            "uid=1000(boat)",
            "touch: /x: Read-only file system",
        ],
        &[],
    );
    check(
        "loose",
        "{seccompProfile: {type: Unconfined}, capabilities: {add: [NET_ADMIN]}}",
        &["Seccomp:\t0", "CapBnd:\t00000000a80435fb"],
        &[],
    );
}

/// On cgroup v2 nothing but our own BPF program stands between a container and the host's devices (youki#230).
#[test]
fn only_a_privileged_container_opens_the_devices_of_the_host() {
    let board = Board::start("").expect("a board");
    board.apply(&pod("plain", SLEEP, "")).expect("applied");
    let privileged = pod("privileged", SLEEP, "") + "    securityContext: {privileged: true}\n";
    board.apply(&privileged).expect("applied");
    for name in ["plain", "privileged"] {
        board.wait(name, "running", running).expect("runs");
    }
    // Opening the kernel's log for writing asks for no capability: what refuses it is the device rule.
    let open = "mknod /tmp/kmsg c 1 11 && : > /tmp/kmsg";
    let said = board.coracle(&["exec", "plain", "--", "sh", "-c", open]).expect("ran");
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("Operation not permitted"), "{said}");
    let memory = "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem";
    assert!(!board.coracle(&["exec", "plain", "--", "sh", "-c", memory]).expect("ran").status.success());
    board
        .run(&["exec", "plain", "--", "sh", "-c", "echo > /dev/null && head -c 1 /dev/urandom"])
        .expect("allowed");
    board.run(&["exec", "privileged", "--", "sh", "-c", open]).expect("a privileged one may");
}

#[test]
fn bad_input_is_one_clear_line_and_harms_no_other_pod() {
    let board = Board::start("").expect("a board");
    board.apply(&pod("good", SLEEP, "")).expect("applied");
    let refused = |text: &str, part: &str| {
        let error = board.apply(text).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    };
    refused("nonsense: [", "error parsing manifest");
    refused(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: b, imagee: c}]}",
        "unknown field",
    );
    refused(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}",
        "spec.containers: Required value",
    );
    refused(&pod("x", "true", "").replace("image:", "resources: {limits: {memory: lots}}\n    image:"), "");
    refused(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}",
        "no matches for kind \"Deployment\"",
    );
    board.manifest("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [").expect("written");
    let until = std::time::Instant::now() + coracle_tests::agent::deadline();
    while !board.get_text("/events").expect("events").contains("broken.yaml: error parsing manifest") {
        assert!(std::time::Instant::now() < until, "a broken manifest has no event: {}", board.log());
    }
    let waiting = |name: &str, text: &str, reason: &str| {
        board.apply(text).expect("applied");
        let seen = board.wait(name, reason, |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
        });
        let seen = seen.expect("is told");
        seen["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default()
            .to_string()
    };
    let never = pod("never", "true", "").replace("busybox:1\n", "missing:1\n    imagePullPolicy: Never\n");
    assert!(waiting("never", &never, "ErrImageNeverPull").contains("not present"));
    let missing = pod("missing", "true", "").replace("example.test/busybox:1", "127.0.0.1:1/missing:1");
    assert!(waiting("missing", &missing, "ErrImagePull").contains("127.0.0.1:1"));
    let command = pod("command", "true", "").replace("[sh, -c, \"true\"]", "[/no/such/program]");
    assert!(waiting("command", &command, "RunContainerError").contains("no such file or directory"));
    let user = pod("user", "true", "") + "    securityContext: {runAsNonRoot: true}\n";
    assert!(waiting("user", &user, "CreateContainerConfigError").contains("runAsNonRoot"));
    let good = board.wait("good", "running", running).expect("unharmed");
    assert_eq!(restarts(&good), 0);
    board.run(&["delete", "never", "missing", "command", "user", "good"]).expect("deleted");
    let left = board.census().expect("counted");
    assert!(
        left.mounts.is_empty() && left.cgroups.is_empty() && left.pods.is_empty() && left.leases.is_empty(),
        "{left:#?}"
    );
}

#[test]
fn liveness_restarts_and_readiness_gates() {
    let board = Board::start("").expect("a board");
    let text = pod("sick", "touch /ok; sleep 1000", "")
        + "    livenessProbe: {exec: {command: [test, -e, /ok]}, periodSeconds: 1, failureThreshold: 1}\n    readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}\n";
    board.apply(&text).expect("applied");
    board
        .wait("sick", "running, not ready", |p| p["status"]["phase"] == "Running" && !condition(p, "Ready"))
        .expect("runs");
    board.run(&["exec", "sick", "--", "touch", "/ready"]).expect("runs");
    board.wait("sick", "ready", running).expect("gets ready");
    board.run(&["exec", "sick", "--", "rm", "/ok"]).expect("runs");
    board
        .wait("sick", "restarted", |p| restarts(p) == 1 && p["status"]["phase"] == "Running")
        .expect("is restarted");
    let described = board.run(&["describe", "sick"]).expect("describes");
    assert!(
        described.contains("Liveness probe failed")
            && described.contains("failed liveness probe, will be restarted"),
        "{described}"
    );
}

#[test]
fn host_namespaces_and_a_shared_pid_namespace() {
    let board = Board::start("").expect("a board");
    board
        .apply(&pod(
            "host",
            "hostname > /dev/termination-log; readlink /proc/self/ns/net; sleep 1000",
            "  hostNetwork: true\n  hostPID: true\n",
        ))
        .expect("applied");
    board.wait("host", "running", running).expect("runs");
    let netns =
        std::fs::read_link(format!("/proc/{}/ns/net", board.agent_pid().expect("runs"))).expect("a link");
    assert_eq!(board.run(&["logs", "host"]).expect("logs").trim(), netns.display().to_string());
    let inside = |pod: &str, container: &str, what: &str| -> String {
        let link = format!("/proc/self/ns/{what}");
        board.run(&["exec", pod, "-c", container, "--", "readlink", &link]).expect("runs").trim().into()
    };
    let hosts = |what: &str| {
        std::fs::read_link(format!("/proc/self/ns/{what}")).expect("a link").display().to_string()
    };
    assert_eq!(inside("host", "main", "pid"), hosts("pid"));
    let text = pod("shared", SLEEP, "  shareProcessNamespace: true\n")
        + "  - name: peer\n    image: example.test/busybox:1\n    command: [sh, -c, \"exec sleep 4242\"]\n";
    board.apply(&text).expect("applied");
    board.wait("shared", "running", running).expect("runs");
    let seen = board.run(&["exec", "shared", "-c", "main", "--", "ps"]).expect("runs");
    assert!(seen.contains("sleep 4242"), "{seen}");
    for what in ["ipc", "uts", "net", "pid"] {
        let (one, other) = (inside("shared", "main", what), inside("shared", "peer", what));
        assert!(one == other && one != hosts(what), "{what}: {one} {other}");
    }
    board.run(&["delete", "host", "shared", "--grace-period=0"]).expect("deleted");
}

#[test]
fn a_full_disk_is_told_and_harms_no_running_pod() {
    let mut board = Board::prepare("").expect("a board");
    let new = tempfile::tempdir().expect("a directory");
    let archive = new.path().join("new.tar");
    let image = coracle_tests::image::Image::laden("example.test/new:1", 1 << 20).expect("built");
    image.write_oci_archive(&archive).expect("written");
    board.limit_disk(24 << 20).expect("a small disk");
    board.start_agent().expect("starts");
    board.apply(&pod("good", SLEEP, "")).expect("applied");
    board.wait("good", "running", running).expect("runs");
    board.fill_disk().expect("filled");
    let full = board.apply(&pod("late", SLEEP, "")).expect_err("nothing can be stored").to_string();
    assert!(full.contains("No space left on device") || full.contains("not stored"), "{full}");
    let events = board.get_text("/events").expect("events");
    assert!(events.contains("StoreWriteFailed") && events.contains("pods run on"), "{events}");
    let images = || everything_below(&board.root().join("images"));
    let before = images();
    let import = board.coracle(&["image", "import", archive.to_str().expect("UTF-8")]).expect("runs");
    let said = String::from_utf8_lossy(&import.stderr).into_owned();
    assert!(!import.status.success() && said.to_lowercase().contains("no space left"), "{said}");
    assert_eq!(images(), before, "nothing half-made stays: {said}");
    assert!(board.run(&["exec", "good", "--", "echo", "alive"]).expect("runs on").contains("alive"));
    board.free_disk().expect("freed");
    // The next commit tries the disk again.
    let until = std::time::Instant::now() + coracle_tests::agent::deadline();
    while board.apply(&pod("late", SLEEP, "")).is_err() {
        assert!(std::time::Instant::now() < until, "the store does not recover: {}", board.log());
    }
    board.wait("late", "running", running).expect("runs");
}

#[test]
fn a_read_only_disk_is_told_and_harms_no_running_pod() {
    let mut board = Board::prepare("").expect("a board");
    board.own_ext4(96 << 20).expect("a disk of its own");
    board.start_agent().expect("starts");
    board.apply(&pod("good", SLEEP, "")).expect("applied");
    board.wait("good", "running", running).expect("runs");
    board.fail_disk().expect("failed");
    let refused = board.apply(&pod("late", SLEEP, "")).expect_err("nothing can be stored").to_string();
    assert!(refused.contains("Read-only file system") && refused.lines().count() == 1, "{refused}");
    // Guards against "unchanged" for what was never stored.
    let again = board.apply(&pod("late", SLEEP, "")).expect_err("nothing is stored yet").to_string();
    assert!(again.contains("Read-only file system"), "{again}");
    assert!(board.run(&["exec", "good", "--", "echo", "alive"]).expect("runs on").contains("alive"));
    assert!(board.run(&["ps"]).expect("lists").contains("good"));
    board.kill_agent().expect("killed");
    let ended = board.start_agent().expect_err("nothing can be stored").to_string();
    assert!(ended.contains("Read-only file system"), "{ended}");
}

#[test]
fn a_host_port_that_is_taken_is_told() {
    let board = Board::start("").expect("a board");
    let text = |name: &str, port: u16| {
        pod(name, SLEEP, "") + &format!("    ports: [{{containerPort: 80, hostPort: {port}}}]\n")
    };
    let told = |name: &str, part: &str| {
        let until = std::time::Instant::now() + coracle_tests::agent::deadline();
        loop {
            let described = board.run(&["describe", name]).expect("describes");
            if described.contains("FailedCreatePodSandBox") && described.contains(part) {
                return;
            }
            assert!(std::time::Instant::now() < until, "{part} is not in {described}");
        }
    };
    board.apply(&text("first", 8080)).expect("applied");
    board.wait("first", "running", running).expect("runs");
    board.apply(&text("second", 8080)).expect("applied");
    told("second", "hostPort 8080/TCP is already used by pod");
    let netns = board.netns().expect("a namespace");
    let listener =
        coracle_tests::agent::in_namespace(netns, || std::net::TcpListener::bind("127.0.0.1:8022"));
    let listener = listener.expect("entered").expect("listens");
    board.apply(&text("third", 8022)).expect("applied");
    told("third", "hostPort 8022/TCP is already in use by a program of this host");
    drop(listener);
    board.run(&["delete", "first", "--grace-period=0"]).expect("deleted");
    // Both come up by themselves once their ports are free.
    for name in ["second", "third"] {
        board.wait(name, "running", running).expect("runs");
    }
}

#[test]
fn a_terminal_is_as_large_as_the_users_and_ends_with_its_command() {
    use nix::poll::{PollFd, PollFlags, poll};
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    let board = Board::start("").expect("a board");
    board.apply(&pod("boat", SLEEP, "")).expect("applied");
    board.wait("boat", "running", running).expect("runs");
    let script = r#"tty; until [ "$(stty size)" = "33 99" ]; do :; done; echo size is $(stty size); read line; echo got $line; exit 5"#;
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = nix::pty::openpty(Some(&size), None).expect("a terminal");
    let slave = || std::process::Stdio::from(terminal.slave.try_clone().expect("copied"));
    let mut exec = std::process::Command::new(coracle_tests::agent::binary("coracle").expect("built"))
        .arg("--root")
        .arg(board.root())
        .args(["exec", "-it", "boat", "--", "sh", "-c", script])
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .expect("started");
    drop(terminal.slave);
    let mut master = std::fs::File::from(terminal.master);
    let mut said = String::new();
    let mut until = |text: &str, answer: &[u8]| {
        let mut chunk = [0; 1024];
        while !said.contains(text) {
            let mut ready = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
            let milliseconds =
                u16::try_from(coracle_tests::agent::deadline().as_millis()).unwrap_or(u16::MAX);
            assert_ne!(poll(&mut ready, milliseconds), Ok(0), "{text} does not come after {said:?}");
            let length = master.read(&mut chunk).expect("the terminal is open");
            said += &String::from_utf8_lossy(&chunk[..length]);
        }
        master.write_all(answer).expect("typed");
    };
    // The size comes in a message of its own, after the start.
    until("size is 33 99", b"ahoy\r");
    until("got ahoy", b"");
    assert_eq!(exec.wait().expect("ends").code(), Some(5), "{said}");
    assert!(said.contains("/dev/"), "{said}");
}
