//! Clients that nobody wrote for us: kube-rs, Python's `kubernetes`, and kubectl as old and as new as there is.

use anyhow::{Context, Result};
use coracle_tests::agent::deadline;
use coracle_tests::fleet::{Fleet, client};
use futures_util::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use serde_json::json;
use std::process::{Command, Stdio};

/// Runs this with a kube-rs client in the fleet's namespace.
fn with_kube(fleet: &Fleet, work: impl AsyncFnOnce(Client) -> Result<()> + Send) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(fleet.kubeconfig())?;
    fleet.block_on(async || {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        tokio::time::timeout(deadline(), work(client)).await.context("kube-rs waits for ever")?
    })
}

fn config_map(name: &str, value: &str) -> Result<ConfigMap> {
    let object = json!({"metadata": {"name": name, "labels": {"by": "kube"}}, "data": {"key": value}});
    Ok(serde_json::from_value(object)?)
}

#[test]
fn kube_rs_lists_watches_and_patches() {
    let fleet = Fleet::start(&[]).expect("a control plane");
    with_kube(&fleet, async |client| {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let labelled = ListParams::default().labels("by=kube");
        let empty = maps.list(&labelled).await?;
        assert_eq!(empty.items.len(), 0);
        let version = empty.metadata.resource_version.context("a version")?;
        let made = maps.create(&PostParams::default(), &config_map("one", "1")?).await?;
        let again = maps.create(&PostParams::default(), &config_map("one", "1")?).await;
        assert!(matches!(&again, Err(kube::Error::Api(status)) if status.is_already_exists()), "{again:?}");

        // Merge, strategic and server-side apply, with its conflict.
        let merge = Patch::Merge(json!({"data": {"key": null, "merged": "yes"}}));
        let merged = maps.patch("one", &PatchParams::default(), &merge).await?;
        assert_eq!(
            merged.data.context("data")?.into_iter().collect::<Vec<_>>(),
            [("merged".into(), "yes".into())]
        );
        let apply = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"merged": "no"}});
        let refused = maps.patch("one", &PatchParams::apply("other"), &Patch::Apply(&apply)).await;
        assert!(matches!(&refused, Err(kube::Error::Api(status)) if status.is_conflict()), "{refused:?}");
        let forced = maps.patch("one", &PatchParams::apply("other").force(), &Patch::Apply(&apply)).await?;
        assert_eq!(forced.data.context("data")?["merged"], "no");
        // A stale version is refused.
        let stale = maps.replace("one", &PostParams::default(), &made).await;
        assert!(matches!(&stale, Err(kube::Error::Api(status)) if status.is_conflict()), "{stale:?}");

        // Pages.
        for n in 0..5 {
            maps.create(&PostParams::default(), &config_map(&format!("page-{n}"), "x")?).await?;
        }
        let mut page = ListParams::default().labels("by=kube").limit(2);
        let mut names = Vec::new();
        loop {
            let list = maps.list(&page).await?;
            names.extend(list.items.into_iter().filter_map(|map| map.metadata.name));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
        assert_eq!(names, ["one", "page-0", "page-1", "page-2", "page-3", "page-4"]);

        // A watch from the version before all this tells it all.
        let mut events = Box::pin(
            maps.watch(&WatchParams::default().labels("by=kube").fields("metadata.name=one"), &version)
                .await?,
        );
        let mut told = Vec::new();
        while told.len() < 3 {
            match events.try_next().await?.context("the watch goes on")? {
                WatchEvent::Added(_) => told.push("added"),
                WatchEvent::Modified(_) => told.push("modified"),
                event => anyhow::bail!("{event:?}"),
            }
        }
        assert_eq!(told, ["added", "modified", "modified"]);

        // The watcher of its runtime, streaming the initial list.
        let config = watcher::Config::default().labels("by=kube").streaming_lists();
        let mut objects = Box::pin(watcher(maps.clone(), config).applied_objects());
        for name in ["one", "page-0", "page-1", "page-2", "page-3", "page-4"] {
            let object = objects.try_next().await?.context("an object")?;
            assert_eq!(object.metadata.name.as_deref(), Some(name));
        }
        maps.delete("one", &DeleteParams::default()).await?;
        let gone = maps.get_opt("one").await?;
        assert!(gone.is_none(), "{gone:?}");

        // A scale of a kind that has one.
        let deployments: Api<Deployment> = Api::namespaced(client, "default");
        let deployment = json!({
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": "example.test/web:1"}]},
                },
            },
        });
        deployments.create(&PostParams::default(), &serde_json::from_value(deployment)?).await?;
        let three = Patch::Merge(json!({"spec": {"replicas": 3}}));
        let scale = deployments.patch_scale("web", &PatchParams::default(), &three).await?;
        assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(3));
        Ok(())
    })
    .expect("kube-rs is served");
}

const PYTHON: &str = r#"
import sys
from kubernetes import client, config, watch

config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
version = core.list_namespaced_config_map("default").metadata.resource_version
body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="py"), data={"a": "1"})
core.create_namespaced_config_map("default", body)
patched = core.patch_namespaced_config_map("py", "default", {"data": {"b": "2"}})
assert patched.data == {"a": "1", "b": "2"}, patched.data
try:
    core.create_namespaced_config_map("default", body)
    raise SystemExit("a second one was created")
except client.ApiException as error:
    assert (error.status, error.reason) == (409, "Conflict"), error
told = []
stream = watch.Watch()
for event in stream.stream(core.list_namespaced_config_map, "default", resource_version=version,
                           field_selector="metadata.name=py", timeout_seconds=60):
    told.append(event["type"])
    if len(told) == 2:
        stream.stop()
assert told == ["ADDED", "MODIFIED"], told
apps = client.AppsV1Api()
labels = {"app": "py"}
apps.create_namespaced_deployment("default", client.V1Deployment(
    metadata=client.V1ObjectMeta(name="py"),
    spec=client.V1DeploymentSpec(
        replicas=2, selector=client.V1LabelSelector(match_labels=labels),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels=labels),
            spec=client.V1PodSpec(containers=[client.V1Container(name="main", image="example.test/web:1")])))))
scaled = apps.patch_namespaced_deployment_scale("py", "default", {"spec": {"replicas": 0}})
assert scaled.spec.replicas in (0, None), scaled
core.delete_namespaced_config_map("py", "default")
print("ok", client.VersionApi().get_code().git_version)
"#;

#[test]
fn the_python_client_lists_watches_and_patches() {
    let fleet = Fleet::start(&[]).expect("a control plane");
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON]).arg(fleet.kubeconfig());
    command.env("PYTHONPATH", client("python").expect("fetched")).env("PYTHONDONTWRITEBYTECODE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let ran = fleet.spawn(&mut command).expect("python3 starts").wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(text.starts_with("ok v1."), "{text}{}", String::from_utf8_lossy(&ran.stderr));
}

/// What people do with kubectl where no board is needed; answers by their beginnings, which all versions share.
fn tour(kubectl: &str) {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    fleet.use_kubectl(client(kubectl).expect("fetched"));
    let check = |arguments: &str, expected: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = fleet.kubectl_with(&arguments, MANIFEST).expect("kubectl starts");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains(expected), "{kubectl} {arguments:?}: {text}");
    };
    check("version", "Server Version: v");
    check("api-resources", "deployments");
    check("api-versions", "apps/v1");
    check("cluster-info", "is running at");
    check("explain deployment.spec.strategy", "rollingUpdate");
    check("apply -f -", "configmap/settings created");
    check("apply -f -", "configmap/settings unchanged");
    // By their exit codes: nothing differs, something does, it failed.
    let ends = |arguments: &str, code: i32, expected: &[&str]| {
        let words: Vec<&str> = arguments.split(' ').collect();
        let output = fleet.kubectl_with(&words, MANIFEST).expect("kubectl starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{kubectl} {arguments}: {output:?}");
        let found = |line: &&str| text.lines().any(|found| found == *line);
        assert!(expected.iter().all(found) && expected.is_empty() == text.is_empty(), "{kubectl}: {text}");
    };
    ends("diff -f -", 0, &[]);
    check("get configmap settings -o jsonpath={.data.colour}", "blue");
    check("get configmaps -o custom-columns=N:.metadata.name --no-headers", "settings");
    check("get all", "deployment.apps/web");
    check("get deployment web -o wide", "SELECTOR");
    check("get deployments -l app=web -o name", "deployment.apps/web");
    check("get configmaps --field-selector metadata.name=settings -o name", "configmap/settings");
    check("describe deployment web", "StrategyType:");
    check("label configmap settings tier=back", "configmap/settings labeled");
    check("annotate configmap settings note=x", "configmap/settings annotated");
    check("patch configmap settings -p {\"data\":{\"colour\":\"red\"}}", "configmap/settings patched");
    ends("diff -f -", 1, &["-  colour: red", "+  colour: blue"]);
    check(
        "patch configmap settings --type=json -p [{\"op\":\"remove\",\"path\":\"/data/colour\"}]",
        "patched",
    );
    check("replace -f -", "configmap/settings replaced");
    check("apply --server-side --force-conflicts -f -", "serverside-applied");
    check("scale deployment web --replicas=4", "scaled");
    check("get deployment web -o jsonpath={.spec.replicas}", "4");
    check("set image deployment/web web=example.test/web:2", "image updated");
    check("create namespace shop", "namespace/shop created");
    check("create secret generic s --from-literal=a=b -n shop", "secret/s created");
    check("create job j --image=example.test/web:1 -n shop", "job.batch/j created");
    check("create role r --verb=get --resource=pods -n shop", "role.rbac.authorization.k8s.io/r created");
    check("create rolebinding b --role=r --user=u -n shop", "created");
    check("create quota q --hard=pods=3 -n shop", "created");
    check("expose deployment web --port=80", "service/web exposed");
    check("get service web -o jsonpath={.spec.type}", "ClusterIP");
    check("autoscale deployment web --max=5", "autoscaled");
    check("get nodes", "No resources found");
    check("get pods nothing", "Error from server (NotFound): pods \"nothing\" not found");
    check("delete -f -", "deleted");
    // Old ones do not take it that there is nothing to wait for.
    let gone = i32::from(kubectl == "kubectl-old");
    ends("wait --for=delete configmap/settings --timeout=60s", gone, &[]);
    ends("get configmap settings", 1, &[]);
}

const MANIFEST: &str = r"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: 'example.test/web:1'}]
";

#[test]
fn kubectl_as_old_as_debians() {
    tour("kubectl-old");
}

#[test]
fn kubectl_as_new_as_pypis() {
    tour("kubectl-new");
}
