//! ConfigMaps, Secrets and the downward API on a real board: as volumes, as variables, while they change, and missing.

use coracle_tests::agent::{Board, deadline};
use coracle_tests::manifest::{SLEEP, ended, first, pod, running, waiting};
use std::time::Instant;

fn config_map(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{{data}}}\n")
}

fn secret(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{{data}}}\n")
}

fn exec(board: &Board, name: &str, script: &str) -> String {
    board.run(&["exec", name, "--", "sh", "-c", script]).expect("runs")
}

/// Until a script in the pod prints this.
fn wait_for(board: &Board, name: &str, script: &str, expected: &str) {
    let until = Instant::now() + deadline();
    loop {
        let said = exec(board, name, script);
        if said == expected {
            return;
        }
        assert!(Instant::now() < until, "{script}: {said:?} and not {expected:?}");
        std::thread::yield_now();
    }
}

fn wait_for_event(board: &Board, part: &str) {
    let until = Instant::now() + deadline();
    loop {
        let events = board.get_text("/events").expect("events");
        if events.contains(part) {
            return;
        }
        assert!(Instant::now() < until, "{part} is not in {events}");
        std::thread::yield_now();
    }
}

const VOLUMES: &str = r#"  securityContext: {fsGroup: 2000}
  volumes:
  - {name: config, configMap: {name: crew, defaultMode: 0640, items: [{key: mate, path: deep/mate}, {key: cook, path: cook, mode: 0400}]}}
  - {name: hidden, secret: {secretName: keys}}
  - {name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}]}}
  - name: all
    projected:
      sources:
      - {configMap: {name: crew}}
      - {secret: {name: keys, items: [{key: pin, path: keys/pin}]}}
      - {configMap: {name: none, optional: true}}
"#;
const MOUNTS: &str = r#"    resources: {limits: {cpu: 250m, memory: 32Mi}}
    volumeMounts: [{name: config, mountPath: /config}, {name: hidden, mountPath: /hidden}, {name: self, mountPath: /self}, {name: all, mountPath: /all}, {name: config, mountPath: /cook, subPath: cook}]
    envFrom: [{configMapRef: {name: crew}}, {prefix: KEY_, secretRef: {name: keys}}]
    env:
    - {name: MATE, valueFrom: {configMapKeyRef: {name: crew, key: mate}}}
    - {name: BOTH, value: $(MATE)/$(KEY_pin)/$(cook)}
    - {name: NONE, valueFrom: {secretKeyRef: {name: none, key: pin, optional: true}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: NODE_MEMORY, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage, divisor: 1Mi}}}
"#;

#[test]
fn volumes_and_variables_hold_what_objects_say_and_volumes_follow_them() {
    let mut board = Board::start("").expect("a board");
    let before = board.census().expect("counted");
    let objects =
        format!("{}---\n{}", config_map("crew", "mate: ann, cook: bob"), secret("keys", "pin: hunter2"));
    let manifest =
        pod("web", SLEEP, VOLUMES).replace("{name: web}", "{name: web, labels: {app: boat}}") + MOUNTS;
    let said = board.apply(&format!("{manifest}---\n{objects}")).expect("applied");
    assert_eq!(said, "pod/web created\nconfigmap/crew created\nsecret/keys created\n");
    board.wait("web", "running", running).expect("runs");
    let check = |script: &str, expected: &str| assert_eq!(exec(&board, "web", script), expected, "{script}");
    check(
        "cat /config/deep/mate /config/cook /hidden/pin /all/mate /all/keys/pin; cat /self/*",
        "annbobhunter2annhunter2250app=\"boat\"",
    );
    check("stat -Lc '%a %g' /config/deep/mate /config/cook /hidden/pin", "640 2000\n440 2000\n644 2000\n");
    check(
        "echo $MATE $BOTH $mate $KEY_pin ${NONE-unset} $CPU; [ $NODE_MEMORY -gt 0 ] && echo disk",
        "ann ann/hunter2/bob ann hunter2 unset 250\ndisk\n",
    );
    check(
        "for d in config hidden self all; do touch /$d/x 2>/dev/null && echo written; done; readlink /config/cook",
        "..data/cook\n",
    );
    // Nothing of a secret lies on the disk.
    let on_disk = std::process::Command::new("grep")
        .args(["-rlx", "hunter2"])
        .arg(board.root().join("pods"))
        .args(["--exclude-dir=volumes"])
        .output()
        .expect("grep");
    assert!(on_disk.stdout.is_empty(), "{on_disk:?}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
    let own = board.root().join("pods");
    assert_eq!(
        mounts
            .lines()
            .filter(|l| l.contains(own.to_str().expect("UTF-8")) && l.contains(" - tmpfs "))
            .count(),
        4
    );

    board.apply(&config_map("crew", "mate: eve, cook: bill, boy: tim")).expect("applied");
    wait_for(&board, "web", "cat /config/deep/mate /all/boy /all/mate", "evetimeve");
    let check = |script: &str, expected: &str| assert_eq!(exec(&board, "web", script), expected, "{script}");
    check("cat /cook; echo $MATE", "bobann\n");
    // One that goes stays in the volumes that have it, as with the kubelet.
    board.run(&["delete", "configmap", "crew"]).expect("deleted");
    wait_for_event(
        &board,
        "MountVolume.SetUp failed for volume \\\"config\\\" : configmap \\\"crew\\\" not found",
    );
    assert_eq!(exec(&board, "web", "cat /all/mate"), "eve");

    // What changed while there was no agent.
    let file = board.root().join("manifests/crew.yaml");
    board.kill_agent().expect("killed");
    std::fs::write(file, config_map("crew", "mate: zoe, cook: bill")).expect("written");
    board.start_agent().expect("starts again");
    wait_for(&board, "web", "cat /config/deep/mate; ls /all", "zoecook\nkeys\nmate\n");
    board.run(&["delete", "web"]).expect("deleted");
    board.wait_gone("web").expect("goes away");
    assert_eq!(board.census().expect("counted"), before);
}

#[test]
fn a_pod_waits_for_what_it_names_with_the_kubelets_words() {
    let board = Board::start("").expect("a board");
    let volume = "  volumes: [{name: v, secret: {secretName: late, items: [{key: pin, path: pin}]}}]\n";
    let mounted = pod("mounted", "cat /v/pin", &format!("  restartPolicy: Never\n{volume}"))
        + "    volumeMounts: [{name: v, mountPath: /v}]\n";
    board.apply(&mounted).expect("applied");
    wait_for_event(&board, "MountVolume.SetUp failed for volume \\\"v\\\" : secret \\\"late\\\" not found");
    board.wait("mounted", "creating", |pod| waiting(pod) == "ContainerCreating").expect("waits");
    board.apply(&secret("late", "other: x")).expect("applied");
    wait_for_event(
        &board,
        "MountVolume.SetUp failed for volume \\\"v\\\" : references non-existent secret key: pin",
    );
    let begun = Instant::now();
    board.apply(&secret("late", "pin: '1234'")).expect("applied");
    board.wait("mounted", "ended", ended).expect("ends");
    assert!(begun.elapsed() < deadline() / 2, "at once, and after no back-off");
    assert_eq!(board.run(&["logs", "mounted"]).expect("logs"), "1234");

    let variable = |key: &str| {
        pod("named", "echo $V", "  restartPolicy: Never\n")
            + &format!("    env: [{{name: V, valueFrom: {{configMapKeyRef: {{name: late, key: {key}}}}}}}]\n")
    };
    board.apply(&variable("pin")).expect("applied");
    let why = |expected: &'static str| {
        move |pod: &serde_json::Value| {
            waiting(pod) == "CreateContainerConfigError"
                && first(pod)["state"]["waiting"]["message"] == expected
        }
    };
    board.wait("named", "configmap missing", why("configmap \"late\" not found")).expect("waits");
    wait_for_event(&board, "Error: configmap \\\"late\\\" not found");
    board.apply(&config_map("late", "other: x")).expect("applied");
    let missing = "couldn't find key pin in ConfigMap default/late";
    board.wait("named", "key missing", why(missing)).expect("waits");
    board.apply(&config_map("late", "pin: '99'")).expect("applied");
    board.wait("named", "ended", ended).expect("ends");
    assert_eq!(board.run(&["logs", "named"]).expect("logs"), "99\n");
}

#[test]
fn hostile_objects_and_volumes_are_refused() {
    let board = Board::start("").expect("a board");
    let check = |manifest: &str, expected: &str| {
        let refused = board.apply(manifest).expect_err(expected).to_string();
        assert!(refused.contains(expected), "{refused}");
    };
    check(&config_map("m", "'../../etc/cron.d/x': hunter"), "data[../../etc/cron.d/x]: Invalid value");
    check(
        &secret("s", "..data: hunter2"),
        "data[..data]: Invalid value: \"..data\": must not start with '..'",
    );
    check(
        &config_map("m", &format!("k: {}", "x".repeat((1 << 20) + 1))),
        "Too long: may not be more than 1048576 bytes",
    );
    let volume = |source: &str| pod("p", SLEEP, &format!("  volumes: [{{name: v, {source}}}]\n"));
    let item = |path: &str| volume(&format!("configMap: {{name: m, items: [{{key: k, path: '{path}'}}]}}"));
    check(
        &item("../x"),
        "spec.volumes[0].configMap.items[0].path: Invalid value: \"../x\": must not contain '..'",
    );
    check(&item("/etc/x"), "must be a relative path");
    check(&item("..data/x"), "must not start with '..'");
    check(
        &volume("configMap: {name: m, defaultMode: 07777}"),
        "must be a number between 0 and 0777 (octal), both inclusive",
    );
    check(
        &volume("projected: {sources: [{clusterTrustBundle: {path: x}}]}"),
        "clusterTrustBundle: Forbidden: not supported",
    );
    check(
        &volume("projected: {sources: [{serviceAccountToken: {path: x}}]}"),
        "serviceAccountToken needs an API server",
    );
    let immutable = config_map("fixed", "k: one") + "immutable: true\n";
    board.apply(&immutable).expect("applied");
    check(&immutable.replace("one", "two"), "data: Forbidden: field is immutable when `immutable` is set");
    assert_eq!(board.run(&["delete", "configmap/fixed"]).expect("deleted"), "configmap \"fixed\" deleted\n");
    // A record as large as upstream allows is kept, and comes back.
    let large = config_map("large", &format!("k: {}", "x".repeat(1 << 20)));
    assert_eq!(board.apply(&large).expect("applied"), "configmap/large created\n");
}

#[test]
fn an_ephemeral_container_looks_into_a_running_pod_once() {
    let board = Board::start("").expect("a board");
    let look = "  ephemeralContainers:\n  - {name: look, image: 'example.test/busybox:1', command: [sh, -c, 'hostname; exit 3']}\n";
    board.apply(&pod("web", SLEEP, look)).expect("applied");
    let state = |pod: &serde_json::Value| pod["status"]["ephemeralContainerStatuses"][0]["state"].clone();
    let over = |pod: &serde_json::Value| running(pod) && !state(pod)["terminated"].is_null();
    let seen = board.wait("web", "looked into", over).expect("ends");
    assert_eq!(state(&seen)["terminated"]["exitCode"], 3, "{:#}", state(&seen));
    assert_eq!(board.run(&["logs", "web", "-c", "look"]).expect("logs"), "web\n");
    board.run(&["delete", "web"]).expect("deleted");
    board.wait_gone("web").expect("goes away");
}
