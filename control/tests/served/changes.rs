//! How people change what is there with kubectl: in an editor, by pruning, after a look at the difference.

use crate::control::Control;
use crate::kubectl::Kubectl;
use std::process::{Output, Stdio};

/// Everything of it, whether it succeeds or not.
fn output(kubectl: &Kubectl<'_>, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> Output {
    let path = kubectl.0.dir.join("input.yaml");
    std::fs::write(&path, input).expect("written");
    let mut command = kubectl.command(arguments);
    command.stdin(std::fs::File::open(path).expect("there")).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What an editor gives up is kept by kubectl: here, where it is taken away.
    command.env("TMPDIR", &kubectl.0.dir).envs(environment.iter().copied());
    command.output().expect("kubectl starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 0
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'web:1'}]}
";

#[test]
fn an_editor_changes_an_object_and_is_told_what_is_wrong() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    kubectl.run(&["create", "-f", "-"], DEPLOYMENT).expect("made");
    // What the editor is shown, and what it makes of it: kubectl opens it again when the server refuses.
    let edit = |change: &str, arguments: &[&str]| {
        let script = control.dir.join("editor");
        let seen = control.dir.join("seen.yaml");
        let lines = format!("#!/bin/sh\ncp \"$1\" '{}'\nsed -i '{change}' \"$1\"\n", seen.display());
        std::fs::write(&script, lines).expect("written");
        let editor = format!("sh {}", script.display());
        let arguments = [&["edit", "deployment", "web"], arguments].concat();
        let ended = output(&kubectl, &arguments, "", &[("KUBE_EDITOR", &editor)]);
        let seen = std::fs::read_to_string(seen).expect("an editor was opened");
        (ended.status.code(), text(&[ended.stdout, ended.stderr].concat()), seen)
    };
    let image = || {
        let path = "jsonpath={.spec.template.spec.containers[0].image} {.metadata.generation}";
        kubectl.ok(&["get", "deployment", "web", "-o", path])
    };

    let (code, said, seen) = edit("s/image: web:1/image: web:2/", &[]);
    assert_eq!((code, said.as_str()), (Some(0), "deployment.apps/web edited"));
    assert!(seen.contains("kind: Deployment") && seen.contains("image: web:1"), "{seen}");
    assert_eq!(image(), "web:2 2");

    let (code, said, _) = edit("s/nothing/else/", &[]);
    assert_eq!((code, said.as_str()), (Some(0), "Edit cancelled, no changes made."));

    let (code, said, seen) = edit("s/replicas: 0/replicas: -1/", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("deployments.apps \"web\" is invalid"), "{said}");
    let why = "# * spec.replicas: Invalid value: -1: must be greater than or equal to 0";
    assert!(seen.contains(why), "{seen}");
    assert_eq!(image(), "web:2 2");

    // By its status' own path.
    let (code, said, _) = edit("s/^status:.*/status:\\n  collisionCount: 7/", &["--subresource=status"]);
    assert_eq!((code, said.as_str()), (Some(0), "deployment.apps/web edited"));
    let counted = kubectl.ok(&["get", "deployment", "web", "-o", "jsonpath={.status.collisionCount}"]);
    assert_eq!(counted, "7");
}

fn config_maps(names: &[&str], colour: &str) -> String {
    let one = |name: &&str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{app: shop}}}}\ndata: {{colour: {colour}}}\n"
        )
    };
    names.iter().map(one).collect::<Vec<_>>().join("---\n")
}

#[test]
fn a_pruning_apply_deletes_what_it_made_and_no_longer_names() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: s, labels: {app: shop}}\n";
    kubectl.run(&["apply", "-f", "-"], &(config_maps(&["a", "b"], "red") + secret)).expect("applied");
    // Selected, but not made by apply; and made by apply, but not selected.
    kubectl.run(&["create", "-f", "-"], &config_maps(&["created"], "red")).expect("made");
    let other = config_maps(&["other"], "red").replace("app: shop", "app: other");
    kubectl.run(&["apply", "-f", "-"], &other).expect("applied");

    let prune = ["apply", "--prune", "-l", "app=shop", "--prune-allowlist=core/v1/ConfigMap", "-f", "-"];
    let dry = [&prune[..], &["--dry-run=server"]].concat();
    assert_eq!(
        kubectl.run(&dry, &config_maps(&["a"], "red")).expect("applied"),
        "configmap/a unchanged (server dry run)\nconfigmap/b pruned (server dry run)"
    );
    let names = || kubectl.ok(&["get", "configmaps,secrets", "-l", "app", "-o", "name"]);
    let all = "configmap/a\nconfigmap/b\nconfigmap/created\nconfigmap/other\nsecret/s";
    assert_eq!(names(), all);
    assert_eq!(
        kubectl.run(&prune, &config_maps(&["a"], "red")).expect("applied"),
        "configmap/a unchanged\nconfigmap/b pruned"
    );
    assert_eq!(names(), all.replace("configmap/b\n", ""), "the secret's kind was not allowed");
}

#[test]
fn a_diff_shows_what_an_apply_would_change_and_changes_nothing() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let red = config_maps(&["a", "b"], "red");
    kubectl.run(&["apply", "-f", "-"], &red).expect("applied");
    let version = || {
        kubectl.ok(&["get", "configmaps", "a", "b", "-o", "jsonpath={.items[*].metadata.resourceVersion}"])
    };
    let before = version();
    for mode in ["--server-side=false", "--server-side"] {
        let diff = |manifest: &str| {
            let arguments = ["diff", mode, "--force-conflicts", "-f", "-"];
            let arguments = if mode == "--server-side" { &arguments[..] } else { &["diff", "-f", "-"] };
            let ended = output(&kubectl, arguments, manifest, &[]);
            (ended.status.code(), text(&ended.stdout), text(&ended.stderr))
        };
        if mode == "--server-side=false" {
            assert_eq!(diff(&red), (Some(0), String::new(), String::new()), "{mode}");
        }
        let changed = config_maps(&["a", "b"], "red").replacen("red", "blue", 1)
            + "---\n"
            + &config_maps(&["new"], "x");
        let (code, shown, error) = diff(&changed);
        assert_eq!(code, Some(1), "{mode}: {shown}{error}");
        for line in ["-  colour: red", "+  colour: blue", "+  name: new"] {
            assert!(shown.lines().any(|shown| shown == line), "{mode}: {line}: {shown}");
        }
        assert_eq!(shown.matches("diff -u").count(), 2, "{mode}: b is equal: {shown}");
    }
    assert_eq!(version(), before);
    let absent = kubectl.run(&["get", "configmap", "new"], "").expect_err("it was not made");
    assert!(absent.contains("NotFound"), "{absent}");
    // A refusal is neither equal nor different.
    let wrong = output(&kubectl, &["diff", "-f", "-"], &red.replace("name: b", "name: B"), &[]);
    assert!(wrong.status.code() > Some(1), "{wrong:?}");
}

#[test]
fn kubectl_waits_until_an_object_is_gone() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let held = config_maps(&["held"], "red").replace("{name:", "{finalizers: [example.com/hold], name:");
    kubectl.run(&["create", "-f", "-"], &held).expect("made");
    let wait = ["wait", "--for=delete", "configmap/held"];
    let refused = kubectl.run(&[&wait[..], &["--timeout=1s"]].concat(), "").expect_err("it is there");
    assert!(refused.contains("timed out waiting for the condition on configmaps/held"), "{refused}");

    kubectl.ok(&["delete", "configmap", "held", "--wait=false"]);
    let refused = kubectl.run(&[&wait[..], &["--timeout=1s"]].concat(), "").expect_err("it is held");
    assert!(refused.contains("timed out"), "{refused}");
    let mut waiting = kubectl
        .command(&[&wait[..], &["--timeout=60s"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    assert!(waiting.try_wait().expect("asked").is_none(), "it waits");
    kubectl.ok(&["patch", "configmap", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    let ended = waiting.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{ended:?}");
    // Met, or gone before it looked: that is its haste.
    let said = text(&ended.stdout);
    assert!(["configmap/held condition met", ""].contains(&said.as_str()), "{said}");
    kubectl.ok(&[&wait[..], &["--timeout=1s"]].concat());
}
