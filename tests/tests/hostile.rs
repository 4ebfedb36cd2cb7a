//! Images, manifests and containers that mean harm: what they reach for stays out of their reach.

use coracle_tests::agent::Board;
use coracle_tests::image::{Compression, Image};
use coracle_tests::manifest::{SLEEP, ended, first, pod, running, waiting};
use coracle_tests::tree::{self, Tree};
use serde_json::json;

const NEVER: &str = "  restartPolicy: Never\n";

/// Imports busybox with another layer and another configuration.
fn import(board: &Board, reference: &str, above: Tree, config: &serde_json::Value) {
    let layers = vec![(tree::busybox().expect("busybox"), Compression::None), (above, Compression::None)];
    let mut whole = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
    whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
    board.import(&Image::new(reference, layers, whole)).expect("imported");
}

#[test]
fn an_image_reaches_nothing_outside_its_root() {
    let board = Board::start("").expect("a board");
    // Where the image's links point: nothing may appear there.
    let outside = tempfile::tempdir().expect("a directory");
    let canary = outside.path().display().to_string();
    let links = Tree::new()
        .symlink("etc/hosts", &format!("{canary}/hosts"))
        .symlink("etc/resolv.conf", &format!("../../../../../../../../../..{canary}/resolv.conf"))
        .symlink("mnt", &canary)
        .symlink("words", &format!("/../../..{canary}"));
    import(&board, "example.test/links:1", links, &json!({"WorkingDir": "/mnt/work"}));
    // setresuid(2) takes this for "leave it as it is", and runAsNonRoot for a user that is not root.
    import(&board, "example.test/nobody:1", Tree::new(), &json!({"User": "4294967295"}));
    let use_image = |text: String, image: &str| text.replace("example.test/busybox:1", image);
    let volume = format!("{NEVER}  volumes: [{{name: v, emptyDir: {{}}}}]\n");
    let script = "cat /etc/hosts /etc/resolv.conf; echo words > /words/out; echo > /mnt/deep/x; pwd -P";
    let text = pod("links", script, &volume)
        + "    workingDir: /\n    terminationMessagePath: /words/out\n    volumeMounts: [{name: v, mountPath: /mnt/deep}]\n";
    board.apply(&use_image(text, "example.test/links:1")).expect("applied");
    let seen = board.wait("links", "ended", ended).expect("runs to its end");
    assert_eq!(first(&seen)["state"]["terminated"]["message"], "words\n", "{seen:#}");
    let said = board.run(&["logs", "links"]).expect("logs");
    assert!(said.starts_with("# Kubernetes-managed hosts file.") && said.ends_with("/\n"), "{said}");
    assert_eq!(std::fs::read_dir(outside.path()).expect("lists").count(), 0, "something was made outside");

    let text = pod("nobody", "id", &format!("{NEVER}  securityContext: {{runAsNonRoot: true}}\n"));
    board.apply(&use_image(text, "example.test/nobody:1")).expect("applied");
    board.wait("nobody", "refused", |p| waiting(p) == "CreateContainerConfigError").expect("is refused");

    // A working directory that is an open descriptor of whoever makes the container (CVE-2024-21626).
    let mut text = pod("inside", "ls /proc/self/cwd/..", NEVER) + "    workingDir: /proc/self/fd/3\n";
    for number in 4..12 {
        text += &format!(
            "  - name: c{number}\n    image: example.test/busybox:1\n    command: [ls, ..]\n    workingDir: /proc/self/fd/{number}\n"
        );
    }
    board.apply(&text).expect("applied");
    let seen = board.wait("inside", "ended", ended).expect("ends");
    for status in seen["status"]["containerStatuses"].as_array().expect("statuses") {
        assert_eq!(status["state"]["terminated"]["reason"], "StartError", "{status:#}");
    }
    // What `/proc/self/exe` of a starting container leads to (CVE-2019-5736).
    let helper = board.root().join("run/rt/coracle");
    let mounted = nix::sys::statvfs::statvfs(&helper).expect("is there");
    assert!(
        mounted.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
        "the helper's program is writable"
    );
}

#[test]
fn a_container_reaches_neither_the_board_nor_its_next_attempt() {
    let board = Board::start("").expect("a board");
    // Pid 1 of a shared namespace is ours; with SYS_PTRACE the container may do to it what it likes.
    let look = "ls -A /proc/1/root/ | wc -l; grep -E 'CapPrm|CapBnd|NoNewPrivs' /proc/1/status; ls -l /proc/1/ns/net /proc/self/ns/net | sed 's/.*-> //' | uniq | wc -l; cat /proc/1/root/etc/passwd";
    let shared = format!("{NEVER}  shareProcessNamespace: true\n");
    let text = pod("tracer", look, &shared) + "    securityContext: {capabilities: {add: [SYS_PTRACE]}}\n";
    board.apply(&text).expect("applied");
    board.wait("tracer", "ended", ended).expect("ends");
    let said = board.run(&["logs", "tracer"]).expect("logs");
    let empty = "0000000000000000";
    let expected = format!("0\nCapPrm:\t{empty}\nCapBnd:\t{empty}\nNoNewPrivs:\t1\n1\n");
    assert!(said.contains(&expected) && said.contains("can't open '/proc/1/root/etc/passwd'"), "{said}");

    // A link that one container plants in a volume leads the next one's subPath nowhere (CVE-2021-25741).
    for (name, target) in [("absolute", "/"), ("climbing", "../../../../../../../../etc")] {
        let planted = format!(
            "{NEVER}  volumes: [{{name: v, emptyDir: {{}}}}]\n  initContainers: [{{name: a, image: 'example.test/busybox:1', command: [ln, -s, {target}, /v/link], volumeMounts: [{{name: v, mountPath: /v}}]}}]\n"
        );
        let text =
            pod(name, "ls /s", &planted) + "    volumeMounts: [{name: v, mountPath: /s, subPath: link}]\n";
        board.apply(&text).expect("applied");
        board.wait(name, "refused", |p| waiting(p) == "CreateContainerConfigError").expect("is refused");
    }

    // What a container leaves behind in a pid namespace that it shares is gone before it is started again.
    let leave = "pidof sleep | wc -w; sleep 4243 & exit 1";
    let peer = "  - name: peer\n    image: example.test/busybox:1\n    command: [tail, -f, /dev/null]\n";
    board.apply(&(pod("leaver", leave, "  shareProcessNamespace: true\n") + peer)).expect("applied");
    board.wait("leaver", "backing off", |p| waiting(p) == "CrashLoopBackOff").expect("crashes twice");
    assert_eq!(
        board.run(&["logs", "leaver", "-c", "main"]).expect("logs"),
        "0\n",
        "the second attempt is alone"
    );

    // Neither its own limits nor, with the host's network, the cgroups of the whole board are its to write; and the
    // files that we make for it hold no more than they need to.
    let write = "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $d/escape 2>/dev/null && echo wrote to $d; done; awk '$2 ~ \"^/sys/\" && $2 !~ \"^/sys/fs/cgroup\" && $4 !~ \"^ro\"' /proc/mounts; ls /sys/class/net | wc -l; head -c 9000000 /dev/zero > /etc/hosts; [ $(stat -c %s /etc/hosts) -le 1048576 ] && echo bounded";
    for (name, spec) in [("own", ""), ("hosts", "  hostNetwork: true\n")] {
        board.apply(&pod(name, write, &format!("{NEVER}{spec}"))).expect("applied");
        board.wait(name, "ended", ended).expect("ends");
        let said = board.run(&["logs", name]).expect("logs");
        assert!(
            !said.contains("wrote") && !said.contains("rw,") && said.contains("bounded\n"),
            "{name}: {said}"
        );
    }

    // None of it harmed a neighbour.
    board.apply(&pod("neighbour", SLEEP, "")).expect("applied");
    board.wait("neighbour", "running", running).expect("runs");
}
