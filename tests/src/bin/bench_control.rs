//! The control plane's part of `make bench`: adds its figures to the JSON object that [`bench`] wrote, and prints them.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coracle_tests::agent::{binary, in_namespace};
use coracle_tests::api::{self, Access};
use coracle_tests::figures::{self, Figures, median, milliseconds, pss_kib, rounded};
use coracle_tests::fleet::{Fleet, new_netns};
use hyper::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

/// Requests whose median is told.
const CREATES: usize = 300;
/// How long reading is counted, and on how many connections at once.
const GET_TIME: Duration = Duration::from_secs(5);
const GET_CONNECTIONS: usize = 16;
/// Watches at once, and changes that each of them must see.
const WATCHERS: usize = 1000;
const CHANGES: usize = 20;
/// Boards, and pods on them whose median is told.
const BOARDS: usize = 3;
const ROUNDS: usize = 20;
/// Clusters of one command whose median is told.
const LOCAL_STARTS: usize = 5;
/// No event is later than this.
const LATE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let out = std::env::args().nth(1).context("usage: bench_control FILE.json")?;
    let mut ours = Figures::new();
    let mut fleet = Fleet::start(&[])?;
    let mut ready = Vec::new();
    for _ in 0..10 {
        fleet.kill_control()?;
        let start = Instant::now();
        fleet.start_control()?;
        ready.push(milliseconds(start));
    }
    ours.insert("control_ready_ms_median".into(), json!(median(ready)));
    let creates = api::run(&fleet, creates)?;
    ours.insert("api_create_pod_ms_median".into(), json!(median(creates)));
    let gets = api::run(&fleet, gets)?;
    ours.insert("api_get_per_second".into(), json!(gets));
    let (lost, slowest) = api::run(&fleet, watches)?;
    ours.insert("api_watch_1000_lost".into(), json!(lost));
    ours.insert("api_watch_1000_ms_max".into(), json!(rounded(slowest)));
    // A new one: the objects of the figures above are no part of these.
    drop(fleet);
    with_boards(&mut ours)?;
    ours.insert("local_start_to_ready_ms".into(), json!(median(local()?)));
    figures::add(&out, ours)
}

/// `coracle-control local start` on a machine that has none, until kubectl sees the node ready.
fn local() -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..LOCAL_STARTS {
        let (dir, netns) = (tempfile::Builder::new().prefix("col").tempdir()?, new_netns()?);
        let kubeconfig = dir.path().join("config");
        let run = |command: &mut Command| -> Result<String> {
            command.env("KUBECONFIG", &kubeconfig).env("HOME", dir.path());
            let output = in_namespace(&netns, || command.output())??;
            ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8(output.stdout)?)
        };
        let local = |verb: &str| -> Result<String> {
            let root = dir.path().join("c");
            run(Command::new(binary("coracle-control")?).args(["local", verb, "--root"]).arg(root))
        };
        let start = Instant::now();
        local("start")?;
        let nodes = run(Command::new("kubectl").args(["get", "nodes", "--no-headers"]))?;
        times.push(milliseconds(start));
        local("delete")?;
        ensure!(nodes.split_whitespace().nth(1) == Some("Ready"), "{nodes}");
    }
    Ok(times)
}

/// Three boards with their real agents: what the control plane costs, and how long a pod takes from its POST.
fn with_boards(figures: &mut Figures) -> Result<()> {
    let mut fleet = Fleet::start(&[])?;
    let mut boards = Vec::new();
    for _ in 0..BOARDS {
        boards.push(fleet.joined_board("")?);
    }
    fleet.wait(&["node", "--all", "--for=condition=Ready"])?;
    let one = api::run(&fleet, async |access| {
        let mut times = Vec::new();
        for round in 0..=ROUNDS {
            let took = start_pods(&access, &format!("one-{round}"), 1).await?;
            // The first one finds the board cold.
            if round > 0 {
                times.push(took);
            }
        }
        Ok(times)
    })?;
    figures.insert("post_to_running_ms_median".into(), json!(median(one)));
    let ten = api::run(&fleet, async |access| start_pods(&access, "ten", 10).await)?;
    figures.insert("post_to_running_10_ms_max".into(), json!(rounded(ten)));
    figures.insert("deployment_30_available_ms".into(), json!(rounded(deployment(&fleet, 30)?)));
    deployment(&fleet, 4)?;
    figures.insert("rolling_update_4_ms".into(), json!(rounded(rolling_update(&fleet)?)));
    let pid = fleet.control_pid().context("the control plane runs")?;
    figures.insert("control_pss_kib_3_boards".into(), json!(pss_kib(pid)?));
    Ok(())
}

/// A deployment of so many replicas, from kubectl's start to the last one available. Its pods are ready at once.
fn deployment(fleet: &Fleet, replicas: usize) -> Result<f64> {
    let script = "trap exit TERM; sleep 100000 & wait";
    let manifest = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("many-{replicas}")},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"of": format!("{replicas}")}},
            // One at a time.
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": {"of": format!("{replicas}")}},
                "spec": {"containers": [
                    {"name": "main", "image": "example.test/busybox:1", "command": ["sh", "-c", script]},
                ]},
            },
        },
    });
    let start = Instant::now();
    fleet.apply(&manifest.to_string())?;
    let available = format!("--for=jsonpath={{.status.availableReplicas}}={replicas}");
    fleet.wait(&[&format!("deployment/many-{replicas}"), &available])?;
    Ok(milliseconds(start))
}

/// From kubectl's start to the end of the rollout.
fn rolling_update(fleet: &Fleet) -> Result<f64> {
    let start = Instant::now();
    fleet.kubectl(&["set", "env", "deployment/many-4", "TIDE=high"])?;
    fleet.kubectl(&["rollout", "status", "deployment/many-4", "--timeout=5m"])?;
    Ok(milliseconds(start))
}

/// Posts pods at once; milliseconds until a watcher has seen the last of them running. They are gone afterwards.
async fn start_pods(access: &Access, name: &str, count: usize) -> Result<f64> {
    let path = "/api/v1/namespaces/default/pods";
    let mut connection = access.connect().await?;
    let list: Value = serde_json::from_slice(&connection.ask(Method::GET, path, Bytes::new()).await?)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a version")?.to_string();
    let mut lines =
        access.connect().await?.watch(&format!("{path}?watch=1&resourceVersion={version}")).await?;
    let start = Instant::now();
    for n in 0..count {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{name}-{n}")},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "main", "image": "example.test/busybox:1", "command": ["sleep", "1000"],
                    "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi", "cpu": "500m"}},
                }],
            },
        });
        connection.ask(Method::POST, path, pod.to_string().into()).await?;
    }
    let mut running = BTreeSet::new();
    let mut gone = 0;
    let mut took = 0.0;
    while gone < count {
        let line = tokio::time::timeout(LATE, lines.next()).await.context("no event")??;
        let event: Value = serde_json::from_slice(&line.context("the watch ended")?)?;
        let pod = &event["object"];
        let name = pod["metadata"]["name"].as_str().context("a name")?.to_string();
        if event["type"] == "DELETED" {
            gone += 1;
        } else if pod["status"]["phase"] == "Running" && running.insert(name) && running.len() == count {
            took = milliseconds(start);
            for name in &running {
                connection.ask(Method::DELETE, &format!("{path}/{name}"), Bytes::new()).await?;
            }
        }
    }
    Ok(took)
}

fn pod(name: &str) -> Bytes {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {
            // Nobody schedules it: what is measured is the write alone.
            "schedulerName": "nobody",
            "containers": [{"name": "main", "image": "example.test/web:1"}],
        },
    });
    pod.to_string().into()
}

/// One after another, each durable when it is answered.
async fn creates(access: Access) -> Result<Vec<f64>> {
    let mut connection = access.connect().await?;
    let mut times = Vec::new();
    for n in 0..CREATES {
        let start = Instant::now();
        connection.ask(Method::POST, "/api/v1/namespaces/default/pods", pod(&format!("bench-{n}"))).await?;
        times.push(milliseconds(start));
    }
    Ok(times)
}

/// Reads of one object a second.
async fn gets(access: Access) -> Result<u64> {
    let until = Instant::now() + GET_TIME;
    let mut readers = Vec::new();
    for _ in 0..GET_CONNECTIONS {
        let mut connection = access.connect().await?;
        readers.push(tokio::spawn(async move {
            let mut count = 0;
            while Instant::now() < until {
                let path = "/api/v1/namespaces/default/pods/bench-0";
                connection.ask(Method::GET, path, Bytes::new()).await?;
                count += 1;
            }
            anyhow::Ok(count)
        }));
    }
    let mut count: u64 = 0;
    for reader in readers {
        count += reader.await??;
    }
    Ok(count / GET_TIME.as_secs())
}

/// Many watches of one collection: how many events did not come, and how long the last took from its request.
async fn watches(access: Access) -> Result<(usize, f64)> {
    let mut connection = access.connect().await?;
    let path = "/api/v1/namespaces/default/configmaps";
    let list: Value = serde_json::from_slice(&connection.ask(Method::GET, path, Bytes::new()).await?)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a version")?.to_string();
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let path = format!("{path}?watch=1&resourceVersion={version}&timeoutSeconds=300");
        let mut lines = access.connect().await?.watch(&path).await?;
        watchers.push(tokio::spawn(async move {
            let read = async {
                let mut times = Vec::new();
                while times.len() < CHANGES {
                    let line = lines.next().await?.context("the watch ended")?;
                    ensure!(line.starts_with(b"{\"type\":\"ADDED\""), "{}", String::from_utf8_lossy(&line));
                    times.push(Instant::now());
                }
                anyhow::Ok(times)
            };
            tokio::time::timeout(LATE, read).await.map_or(Ok(Vec::new()), |times| times)
        }));
    }
    let mut sent = Vec::new();
    for n in 0..CHANGES {
        sent.push(Instant::now());
        let map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("watched-{n}")}});
        connection.ask(Method::POST, path, map.to_string().into()).await?;
    }
    let (mut lost, mut slowest) = (0, Duration::ZERO);
    for watcher in watchers {
        let times = watcher.await??;
        lost += CHANGES - times.len();
        for (start, end) in sent.iter().zip(times) {
            slowest = slowest.max(end.duration_since(*start));
        }
    }
    Ok((lost, slowest.as_secs_f64() * 1e3))
}
