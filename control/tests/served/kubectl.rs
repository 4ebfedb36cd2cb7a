//! The stock kubectl, as people use it.

use crate::control::Control;
use crate::etcd::Owned;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

pub struct Kubectl<'a>(pub &'a Control);

impl Kubectl<'_> {
    pub fn command(&self, arguments: &[&str]) -> Command {
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
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<String, String> {
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

    pub fn ok(&self, arguments: &[&str]) -> String {
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
    let apply = ["apply", "-f", "-"];
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

    // The scheduler has had its word: there is no node.
    let told = "--for=condition=PodScheduled=False";
    kubectl.ok(&["-n", "shop", "wait", told, "pod/web", "--timeout=30s"]);

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
    let create = ["create", "-f", "-"];
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
    // Something holds it.
    let hold = r#"{"metadata": {"finalizers": ["example.com/hold"]}}"#;
    let patch = ["-n", "shop", "patch", "configmap", "settings", "--type=merge", "-p"];
    kubectl.ok(&[&patch[..], &[hold]].concat());
    assert_eq!(kubectl.ok(&["delete", "namespace", "shop", "--wait=false"]), "namespace \"shop\" deleted");
    assert_eq!(kubectl.ok(&["get", "namespace", "shop", "-o", "jsonpath={.status.phase}"]), "Terminating");
    let late = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late, namespace: shop}";
    let late = kubectl.run(&create, late).expect_err("too late");
    assert!(late.contains("because it is being terminated"), "{late}");
    let told = "--for=condition=NamespaceFinalizersRemaining";
    kubectl.ok(&["wait", told, "namespace/shop", "--timeout=30s"]);
    let why = "jsonpath={.status.conditions[?(@.type==\"NamespaceFinalizersRemaining\")].message}";
    assert_eq!(
        kubectl.ok(&["get", "namespace", "shop", "-o", why]),
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    );
    kubectl.ok(&[&patch[..], &[r#"{"metadata": {"finalizers": null}}"#]].concat());
    kubectl.ok(&["wait", "--for=delete", "namespace/shop", "--timeout=30s"]);
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  replicas: 2
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec:
      containers:
      - {name: main, image: "api:1"}
      - {name: side, image: "side:1"}
"#;

#[test]
fn kubectl_posts_protobuf_applies_both_ways_scales_and_prints_tables() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let table = |arguments: &[&str]| -> Vec<Vec<String>> {
        let lines = kubectl.ok(arguments);
        lines.lines().map(|line| line.split_whitespace().map(String::from).collect()).collect()
    };

    // Typed creations are protobuf.
    for (arguments, said) in [
        (&["create", "deployment", "web", "--image=nginx"][..], "deployment.apps/web created"),
        (&["create", "configmap", "cm", "--from-literal=a=b"], "configmap/cm created"),
        (&["create", "secret", "generic", "s", "--from-literal=a=b"], "secret/s created"),
        (&["create", "serviceaccount", "bob"], "serviceaccount/bob created"),
        (&["create", "cronjob", "cj", "--image=i", "--schedule=*/5 * * * *"], "cronjob.batch/cj created"),
        (&["expose", "deployment", "web", "--port=80"], "service/web exposed"),
        (
            &["autoscale", "deployment", "web", "--max=3", "--cpu-percent=50"],
            "horizontalpodautoscaler.autoscaling/web autoscaled",
        ),
        (&["set", "image", "deployment/web", "nginx=nginx:1.25"], "deployment.apps/web image updated"),
        (&["scale", "deployment", "web", "--replicas=3"], "deployment.apps/web scaled"),
        (&["run", "p", "--image=busybox"], "pod/p created"),
    ] {
        assert_eq!(kubectl.ok(arguments), said, "{arguments:?}");
    }
    let rows = table(&["get", "deployments"]);
    assert_eq!(rows[0], ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    // No board makes any of them ready; whether the pods are there yet is the controller's haste.
    assert_eq!((rows[1][..2].concat(), rows[1][3].as_str()), ("web0/3".into(), "0"));
    let rows = table(&["get", "pods", "-o", "wide"]);
    assert_eq!(rows[0][..7], ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]);
    assert_eq!(rows[1][..3], ["p", "0/1", "Pending"]);
    let image = "jsonpath={.spec.template.spec.containers[0].image} {.spec.replicas} {.metadata.generation}";
    assert_eq!(kubectl.ok(&["get", "deployment", "web", "-o", image]), "nginx:1.25 3 3");
    assert!(kubectl.ok(&["describe", "pod", "p"]).contains("kube-api-access-"));

    // Client-side apply merges lists by their keys.
    let apply = ["apply", "-f", "-"];
    assert_eq!(kubectl.run(&apply, DEPLOYMENT).expect("applies"), "deployment.apps/api created");
    let newer = DEPLOYMENT.replace("side:1", "side:2");
    assert_eq!(kubectl.run(&apply, &newer).expect("applies"), "deployment.apps/api configured");
    assert_eq!(kubectl.run(&apply, &newer).expect("applies"), "deployment.apps/api unchanged");
    let images = "jsonpath={.spec.template.spec.containers[*].image}";
    assert_eq!(kubectl.ok(&["get", "deployment", "api", "-o", images]), "api:1 side:2");
    let misspelt = kubectl.run(&apply, &DEPLOYMENT.replace("replicas", "replicaz")).expect_err("strict");
    assert!(misspelt.contains("unknown field \"spec.replicaz\""), "{misspelt}");

    assert!(kubectl.ok(&["explain", "deployment.spec.strategy"]).contains("rollingUpdate"));

    // Server-side apply owns what it says; what somebody else owns is a conflict.
    let server = |manager: &'static str, more: &'static [&'static str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments: Vec<String> = ["apply", "--server-side", "-f", "-"].map(String::from).into();
        arguments.push(manager);
        arguments.extend(more.iter().map(ToString::to_string));
        arguments
    };
    let config = |colour: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: demo}}\ndata: {{colour: {colour}}}\n")
    };
    let run = |arguments: &[String], input: &str| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        kubectl.run(&arguments, input)
    };
    assert_eq!(
        run(&server("one", &[]), &config("red")).expect("applies"),
        "configmap/demo serverside-applied"
    );
    let conflict = run(&server("two", &[]), &config("blue")).expect_err("a conflict");
    assert!(
        conflict.contains("Apply failed with 1 conflict: conflict with \"one\": .data.colour"),
        "{conflict}"
    );
    let forced = run(&server("two", &["--force-conflicts"]), &config("blue")).expect("applies");
    assert_eq!(forced, "configmap/demo serverside-applied");
    let colour =
        ["get", "configmap", "demo", "-o", "jsonpath={.data.colour} {.metadata.managedFields[*].manager}"];
    assert!(kubectl.ok(&[&colour[..], &["--show-managed-fields"]].concat()).starts_with("blue "));
}
