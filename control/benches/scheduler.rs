//! Pods that the scheduler's pure core places in a second, on a fleet of a thousand boards that fills up. Part of `make bench`:
//! adds its figure to the JSON object of the other benches.

use coracle_control::scheduler::{Fleet, Node, Pod, place};
use serde_json::{Map, Value, json};
use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

const NODES: u64 = 1000;
const PODS: u64 = 10_000;

fn main() {
    // Cargo adds words of its own.
    let out = std::env::args().find(|word| word.ends_with(".json")).expect("usage: scheduler FILE.json");
    let mut fleet = Fleet::default();
    for n in 0..NODES {
        fleet.set_node(Node::read(&json!({
            "metadata": {"name": format!("board-{n}"), "labels": {
                "kubernetes.io/hostname": format!("board-{n}"), "topology.kubernetes.io/zone": format!("zone-{}", n % 8),
            }},
            "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}},
        })));
    }
    let start = Instant::now();
    for n in 0..PODS {
        let mut pod = pod(n);
        let placed = place(&mut fleet, &Pod::read(&pod), n).expect("there is room for all");
        pod["spec"]["nodeName"] = json!(&*placed);
        fleet.set_pod(&Arc::new(Pod::read(&pod)));
    }
    black_box(&fleet);
    let per_second = PODS as f64 / start.elapsed().as_secs_f64();
    let mut figures: Map<String, Value> = std::fs::read(&out)
        .map_or_else(|_| Map::new(), |text| serde_json::from_slice(&text).expect("figures"));
    let name = "scheduler_pods_per_second_1000_nodes";
    writeln!(std::io::stdout(), "{name:<36} {per_second:.0}").expect("somebody reads");
    figures.insert(name.into(), json!(per_second.round()));
    let text = serde_json::to_string_pretty(&figures).expect("JSON is written");
    std::fs::write(&out, text + "\n").expect("the figures are written");
}

/// One of a hundred deployments; a third of them spread over zones, a third of them tolerate and prefer.
fn pod(n: u64) -> Value {
    let app = format!("app-{}", n % 100);
    let mut pod = json!({
        "metadata": {"name": format!("pod-{n}"), "namespace": "default", "uid": format!("{n}"), "labels": {"app": app}},
        "spec": {"containers": [
            {"name": "main", "image": "app:1", "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}},
        ]},
    });
    match n % 3 {
        0 => {
            pod["spec"]["topologySpreadConstraints"] = json!([{
                "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": app}},
            }]);
        }
        1 => {
            pod["spec"]["tolerations"] = json!([{"key": "site", "operator": "Exists"}]);
            pod["spec"]["affinity"] = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 10, "preference": {"matchExpressions": [
                    {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["zone-1", "zone-2"]},
                ]}},
            ]}});
        }
        _ => {}
    }
    pod
}
