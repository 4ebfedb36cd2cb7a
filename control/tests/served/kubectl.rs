//! The stock kubectl, as people use it.

use crate::control::Control;
use crate::etcd::Owned;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

struct Kubectl<'a>(&'a Control);

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg(format!("--server=https://{}", self.0.address))
            .arg(format!("--certificate-authority={}", self.0.ca().display()))
            .arg(format!("--token={}", self.0.token))
            .args(arguments)
            // Its cache of discovery must not be another server's.
            .env("HOME", &self.0.dir)
            .env_remove("KUBECONFIG");
        command
    }

    /// What it prints; `Err` with what it complains of.
    fn run(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts; it is in Debian's package kubernetes-client");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text").trim().to_string();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments, "").unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }
}

const MANIFEST: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {colour: blue}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  containers:
  - {name: web, image: "busybox:1.36", resources: {requests: {memory: 512Mi}}}
"#;

#[test]
fn kubectl_creates_reads_changes_watches_and_deletes() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);

    assert!(kubectl.ok(&["version"]).contains("Server Version: v1.35.0"));
    let resources = kubectl.ok(&["api-resources"]);
    for line in ["po                 v1", "deploy             apps/v1", "leases"] {
        assert!(resources.contains(line.split_whitespace().next().expect("a word")), "{resources}");
    }
    assert_eq!(
        kubectl.ok(&["get", "namespaces", "-o", "name"]),
        "namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system"
    );

    // Client-side apply: made, then unchanged, then configured.
    let apply = ["apply", "--validate=false", "-f", "-"];
    let made = kubectl.run(&apply, MANIFEST).expect("applies");
    assert_eq!(made, "namespace/shop created\nconfigmap/settings created\npod/web created");
    let again = kubectl.run(&apply, MANIFEST).expect("applies");
    assert_eq!(again, "namespace/shop unchanged\nconfigmap/settings unchanged\npod/web unchanged");
    let changed = kubectl.run(&apply, &MANIFEST.replace("blue", "green")).expect("applies");
    assert_eq!(changed, "namespace/shop unchanged\nconfigmap/settings configured\npod/web unchanged");
    let colour = kubectl.ok(&["-n", "shop", "get", "configmap", "settings", "-o", "jsonpath={.data.colour}"]);
    assert_eq!(colour, "green");
    let memory =
        "jsonpath={.spec.containers[0].resources.requests.memory} {.status.phase} {.spec.serviceAccountName}";
    assert_eq!(kubectl.ok(&["-n", "shop", "get", "pod", "web", "-o", memory]), "512Mi Pending default");

    // A watch sees what the next commands do.
    let mut watch = Owned(
        kubectl
            .command(&[
                "-n",
                "shop",
                "get",
                "pods",
                "--watch",
                "-o",
                "jsonpath={.metadata.name} {.metadata.labels}{\"\\n\"}",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts"),
    );
    let mut seen = BufReader::new(watch.0.stdout.take().expect("piped")).lines();
    let mut next = || seen.next().expect("an event").expect("text");
    assert_eq!(next(), r#"web {"app":"web"}"#);
    assert_eq!(kubectl.ok(&["-n", "shop", "label", "pod", "web", "tier=front"]), "pod/web labeled");
    assert_eq!(next(), r#"web {"app":"web","tier":"front"}"#);
    assert_eq!(kubectl.ok(&["-n", "shop", "annotate", "pod", "web", "note=x"]), "pod/web annotated");
    next();
    assert_eq!(kubectl.ok(&["-n", "shop", "get", "pods", "-l", "tier=front", "-o", "name"]), "pod/web");
    assert_eq!(kubectl.ok(&["-n", "shop", "get", "pods", "-l", "tier!=front", "-o", "name"]), "");
    assert_eq!(kubectl.ok(&["-n", "shop", "label", "pod", "web", "tier-"]), "pod/web unlabeled");
    assert_eq!(next(), r#"web {"app":"web"}"#);
    let refused = kubectl.run(&["-n", "shop", "label", "pod", "web", "app=b"], "").expect_err("refused");
    assert!(refused.contains("'app' already has a value (web)"), "{refused}");

    // Newer ones add the namespace.
    assert!(kubectl.ok(&["-n", "shop", "delete", "pod", "web"]).starts_with("pod \"web\" deleted"));
    next();
    let gone = kubectl.run(&["-n", "shop", "get", "pod", "web"], "").expect_err("gone");
    assert_eq!(gone, "Error from server (NotFound): pods \"web\" not found");
    let create = ["create", "--validate=false", "-f", "-"];
    let twice =
        kubectl.run(&create, "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}").expect_err("twice");
    assert!(
        twice.contains("(AlreadyExists)") && twice.contains("namespaces \"shop\" already exists"),
        "{twice}"
    );
    let kept = kubectl.run(&["delete", "namespace", "default"], "").expect_err("refused");
    assert!(
        kept.contains("namespaces \"default\" is forbidden: this namespace may not be deleted"),
        "{kept}"
    );
    assert_eq!(kubectl.ok(&["delete", "namespace", "shop", "--wait=false"]), "namespace \"shop\" deleted");
    assert_eq!(kubectl.ok(&["get", "namespace", "shop", "-o", "jsonpath={.status.phase}"]), "Terminating");
    let late = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late, namespace: shop}";
    let late = kubectl.run(&create, late).expect_err("too late");
    assert!(late.contains("because it is being terminated"), "{late}");
}
