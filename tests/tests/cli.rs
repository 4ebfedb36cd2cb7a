//! The command line as somebody meets it who comes from kubectl: its verbs, words, columns and exit codes.

use coracle_tests::agent::Board;

const PODS: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  initContainers:
  - {name: init, image: 'example.test/busybox:1', command: [echo, init ran]}
  containers:
  - {name: main, image: 'example.test/busybox:1', command: [sh, -c, 'echo one; echo two; sleep 1000']}
  - {name: side, image: 'example.test/busybox:1', command: [sh, -c, 'echo beside; sleep 1000']}
---
apiVersion: v1
kind: Pod
metadata: {name: job}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: 'example.test/busybox:1', command: [sh, -c, 'exit 3']}
";

/// Exit code, standard output and standard error.
fn run(board: &Board, line: &str) -> (Option<i32>, String, String) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = board.coracle(&words).expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn check(board: &Board, line: &str, code: i32, out: &str, err: &str) {
    let (found, stdout, stderr) = run(board, line);
    assert_eq!(found, Some(code), "{line}: {stdout}{stderr}");
    // Ages pass while the test runs.
    let columns =
        stdout.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let columns = columns.join("\n");
    assert!(if out.is_empty() { columns.is_empty() } else { columns.contains(out) }, "{line}: {stdout}");
    assert!(if err.is_empty() { stderr.is_empty() } else { stderr.contains(err) }, "{line}: {stderr}");
}

#[test]
fn verbs_words_and_exit_codes_are_kubectls() {
    let board = Board::start("node_name = \"tub\"").expect("a board");
    let file = board.root().join("pods.yaml");
    std::fs::create_dir(board.root().join("dir")).expect("made");
    std::fs::write(&file, PODS).expect("written");
    std::fs::copy(&file, board.root().join("dir/pods.yaml")).expect("copied");
    let root = board.root().display().to_string();
    let check =
        |line: &str, code, out: &str, err: &str| check(&board, &line.replace("ROOT", &root), code, out, err);
    check("ps", 0, "", "No resources found");
    check("ps -n crew", 0, "", "No resources found in crew namespace.");
    check("apply -f ROOT/dir", 0, "pod/web created\npod/job created", "");
    check("apply -f ROOT/pods.yaml", 0, "pod/web unchanged\npod/job unchanged", "");
    check("apply -f ROOT/none", 1, "", "error: the path");
    check("apply -f ROOT/manifests", 1, "", "recognized file extensions");
    check("apply -f -", 1, "", "no objects passed to apply");
    board.wait("web", "running", |pod| pod["status"]["phase"] == "Running").expect("runs");
    board.wait("job", "over", |pod| pod["status"]["phase"] == "Failed").expect("ends");

    check("get pods", 0, "NAMESPACE NAME READY STATUS RESTARTS AGE\ndefault job 0/1 Error 0", "");
    check("ps web -n default", 0, "NAME READY STATUS RESTARTS AGE\nweb 2/2 Running 0", "");
    check("ps -o wide", 0, "AGE IP NODE NOMINATED NODE READINESS GATES\n", "");
    check("ps web -o wide --no-headers", 0, " tub <none> <none>", "");
    check("ps -l app=web,!old -o name", 0, "pod/web", "");
    check("ps -l app!=web -o name", 0, "pod/job", "");
    check("ps pod/web job -o name", 0, "pod/job\npod/web", "");
    check("ps web none", 1, "default web", "Error from server (NotFound): pods \"none\" not found");
    check("ps deploy/web", 1, "", "resource type \"deploy\"");
    check("ps web -o json", 0, "\"kind\": \"Pod\"", "");
    check("ps -o yaml", 0, "kind: List", "");
    check("describe pod web", 0, "Node: tub", "");
    check("describe web", 0, "Type Reason Age From Message\n---- ------", "");
    check("describe none", 1, "", "Error from server (NotFound): pods \"none\" not found");

    check("logs web", 0, "one\ntwo", "Defaulted container \"main\" out of: main, side, init (init)");
    check("logs web side", 0, "beside", "");
    check("logs web -c main --tail=1 --limit-bytes=2", 0, "tw", "");
    check("logs pod/web --all-containers --prefix", 0, "[pod/web/init] init ran\n[pod/web/main] one", "");
    check("logs web main --since=1.5h --tail=1", 0, "two", "");
    check("logs web main --since-time=2999-01-01T00:00:00Z", 0, "", "");
    check(
        "logs web -c none",
        1,
        "",
        "Error from server (BadRequest): container none is not valid for pod web",
    );
    check(
        "logs web main --previous",
        1,
        "",
        "previous terminated container \"main\" in pod \"web\" not found",
    );

    check("exec web -c main -- sh -c true", 0, "", "");
    check("exec web -c main -- none", 127, "", "executable file not found in $PATH");
    check("exec web -c main -- /etc", 126, "", "is a directory");
    check("exec web date", 1, "", "Use exec [POD] -- [COMMAND] instead");
    check("exec web -c none -- date", 1, "", "container none is not valid for pod web");
    check("exec job -- date", 1, "", "completed pod; current phase is Failed");
    check("top pod web", 0, "NAMESPACE NAME CPU(cores) MEMORY(bytes)\ndefault web", "");

    check("image ls -o json", 0, "\"references\"", "");
    check("image rm example.test/busybox:1", 1, "", "is in use by a pod");
    check("image import ROOT/pods.yaml", 1, "", "not an image archive");
    check("image pull 127.0.0.1:9/x", 1, "", "unavailable");
    check("delete none job nothing --now", 1, "pod \"job\" deleted", "pods \"none\" not found\n");
    check("delete none --ignore-not-found", 0, "", "");
    check("delete pod/web --grace-period=0 --force --wait=true", 0, "pod \"web\" deleted", "");
    check("ps", 0, "", "No resources found");
    check("config check --config ROOT/none", 3, "", "error: ");
    check("sail", 2, "", "unrecognized subcommand");
    for (shell, word) in
        [("bash", "complete -F"), ("zsh", "#compdef coracle"), ("fish", "complete -c coracle")]
    {
        check(&format!("completion {shell}"), 0, word, "");
    }
}

/// Lines of a command that goes on by itself; it is ended when this is dropped.
struct Following(std::process::Child, std::io::Lines<std::io::BufReader<std::process::ChildStdout>>);

impl Following {
    fn start(board: &Board, arguments: &[&str]) -> Following {
        use std::io::BufRead;
        let mut command = std::process::Command::new(coracle_tests::agent::binary("coracle").expect("built"));
        command.arg("--root").arg(board.root()).args(arguments);
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("starts");
        let lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        Following(child, lines)
    }

    /// Reads on to the line that is wanted.
    fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.1.by_ref().map(|line| line.expect("text")).find(|line| wanted(line));
        found.expect("it goes on")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("ends");
    }
}

#[test]
fn what_follows_shows_what_happens_next() {
    let board = Board::start("").expect("a board");
    let script = "echo first; until test -e /go; do sleep 0.1; done; echo second; exec sleep 1000";
    let text = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, image: 'example.test/busybox:1', command: [sh, -c, '{script}']}}\n"
        )
    };
    board.apply(&text("one")).expect("applied");
    board.wait("one", "running", coracle_tests::manifest::running).expect("runs");
    let mut pods = Following::start(&board, &["ps", "-w"]);
    pods.until(|line| line.contains(" one ") && line.contains("Running"));
    let mut log = Following::start(&board, &["logs", "-f", "--timestamps", "one"]);
    let stamped = |line: &str, word: &str| {
        let (stamp, said) = line.split_once(' ').unwrap_or_default();
        // RFC 3339 with nanoseconds, in UTC.
        let digits = stamp.split_once('.').map_or("", |(_, rest)| rest);
        said == word && stamp.starts_with("20") && digits.len() == 10 && stamp.ends_with('Z')
    };
    log.until(|line| stamped(line, "first"));
    board.run(&["exec", "one", "--", "touch", "/go"]).expect("touched");
    log.until(|line| stamped(line, "second"));
    board.apply(&text("two")).expect("applied");
    pods.until(|line| line.contains(" two ") && line.contains("Running"));
    board.run(&["delete", "two"]).expect("deleted");
    pods.until(|line| line.contains(" two ") && line.contains("Terminating"));

    let version = board.run(&["version"]).expect("says");
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let refused = board.coracle(&["image", "rm", "example.test/busybox:1"]).expect("runs");
    assert!(!refused.status.success(), "a pod uses it");
    board.run(&["image", "rm", "example.test/web:1"]).expect("removed");
    assert!(!board.run(&["image", "ls"]).expect("lists").contains("example.test/web"));
}

#[test]
fn without_an_agent_it_is_said_what_to_do() {
    let board = Board::prepare("").expect("a board");
    let (code, out, err) = run(&board, "ps");
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(1), "", 1), "{err}");
    assert!(err.starts_with("error: cannot reach the agent at") && err.contains("coracle agent"), "{err}");
}
