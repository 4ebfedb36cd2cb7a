//! What users ask for, change and take back; and whether they have it.

use super::board::{MISSING, create, list, patch, target};
use super::who;
use crate::controllers::kinds::{
    DAEMON_SETS, DEPLOYMENTS, ENDPOINT_SLICES, JOBS, NODES, PODS, REPLICA_SETS, SERVICES,
};
use crate::object::{self, at, items, text};
use crate::registry::Registry;
use crate::registry::options::DeleteOptions;
use crate::simulated::Random;
use coracle_api::status::Reason;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const NAMESPACE: &str = "default";
const DEPLOYMENTS_MAX: usize = 4;
const REPLICAS_MAX: usize = 6;

#[derive(Clone, Debug)]
struct Wanted {
    replicas: usize,
    image: String,
}

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    deployments: BTreeMap<String, Wanted>,
    jobs: BTreeMap<String, usize>,
    /// Whether every board is to have a pod of it, and of which image.
    on_each: Option<String>,
    made: usize,
}

impl Wishes {
    /// One more, or another; what that was.
    pub async fn change(&mut self, registry: &Registry, random: &mut Random) -> String {
        let name = (!self.deployments.is_empty()).then(|| {
            let index = random.below(self.deployments.len());
            self.deployments.keys().nth(index).cloned().unwrap_or_default()
        });
        match (random.below(9), name) {
            (0, Some(name)) => self.remove(registry, name).await,
            (1 | 2, Some(name)) => self.scale(registry, random, name).await,
            (3 | 4, Some(name)) => self.roll(registry, random, name).await,
            (5, _) => self.start_job(registry, random).await,
            (6, _) => delete_a_pod(registry, random).await,
            (7, _) => self.change_on_each(registry, random).await,
            _ if self.deployments.len() < DEPLOYMENTS_MAX => self.deploy(registry, random).await,
            _ => "nothing is wished for".into(),
        }
    }

    async fn deploy(&mut self, registry: &Registry, random: &mut Random) -> String {
        self.made += 1;
        let (name, replicas) = (format!("web-{}", self.made), random.below(REPLICAS_MAX));
        let image = "example.test/web:1".to_string();
        let labels = json!({"app": name});
        let strategy = match random.below(3) {
            0 => json!({"type": "Recreate"}),
            1 => json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
            _ => Value::Null,
        };
        let mut deployment = json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": image}]}},
            },
        });
        if !strategy.is_null() {
            deployment["spec"]["strategy"] = strategy;
        }
        create(registry, *DEPLOYMENTS, NAMESPACE, deployment).await;
        let service =
            json!({"metadata": {"name": name}, "spec": {"selector": labels, "ports": [{"port": 80}]}});
        create(registry, *SERVICES, NAMESPACE, service).await;
        let told = format!("deploy {name} × {replicas}");
        self.deployments.insert(name, Wanted { replicas, image });
        told
    }

    async fn scale(&mut self, registry: &Registry, random: &mut Random, name: String) -> String {
        let replicas = random.below(REPLICAS_MAX);
        patch(
            registry,
            &target(*DEPLOYMENTS, NAMESPACE, &name),
            None,
            json!({"spec": {"replicas": replicas}}),
        )
        .await;
        let told = format!("scale {name} to {replicas}");
        if let Some(wanted) = self.deployments.get_mut(&name) {
            wanted.replicas = replicas;
        }
        told
    }

    async fn roll(&mut self, registry: &Registry, random: &mut Random, name: String) -> String {
        let image = match random.below(4) {
            0 => MISSING.to_string(),
            version => format!("example.test/web:{version}"),
        };
        let spec = json!({"containers": [{"name": "main", "image": image}]});
        let template = json!({"spec": {"template": {"spec": spec}}});
        patch(registry, &target(*DEPLOYMENTS, NAMESPACE, &name), None, template).await;
        let told = format!("set image {name} {image}");
        if let Some(wanted) = self.deployments.get_mut(&name) {
            wanted.image = image;
        }
        told
    }

    async fn remove(&mut self, registry: &Registry, name: String) -> String {
        for resource in [*DEPLOYMENTS, *SERVICES] {
            let deleted =
                registry.delete(&who(), &target(resource, NAMESPACE, &name), &DeleteOptions::default()).await;
            deleted.expect("it is there");
        }
        self.deployments.remove(&name);
        format!("delete {name}")
    }

    async fn start_job(&mut self, registry: &Registry, random: &mut Random) -> String {
        self.made += 1;
        let (name, completions) = (format!("job-{}", self.made), 1 + random.below(4));
        let job = json!({
            "metadata": {"name": name},
            "spec": {
                "completions": completions, "parallelism": 1 + random.below(3), "backoffLimit": 1000,
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "example.test/job:1"}]}},
            },
        });
        create(registry, *JOBS, NAMESPACE, job).await;
        let told = format!("start {name} × {completions}");
        self.jobs.insert(name, completions);
        told
    }

    async fn change_on_each(&mut self, registry: &Registry, random: &mut Random) -> String {
        let of = target(*DAEMON_SETS, NAMESPACE, "each");
        let image = format!("example.test/each:{}", random.below(3));
        let spec = json!({"containers": [{"name": "main", "image": image}]});
        let labels = json!({"app": "each"});
        match &self.on_each {
            Some(_) if random.percent(30) => {
                registry.delete(&who(), &of, &DeleteOptions::default()).await.expect("it is there");
                self.on_each = None;
                "delete the daemon set".into()
            }
            Some(_) => {
                patch(registry, &of, None, json!({"spec": {"template": {"spec": spec}}})).await;
                self.on_each = Some(image.clone());
                format!("the daemon set runs {image}")
            }
            None => {
                let template = json!({"metadata": {"labels": labels}, "spec": spec});
                let set = json!({
                    "metadata": {"name": "each"},
                    "spec": {"selector": {"matchLabels": labels}, "template": template},
                });
                create(registry, *DAEMON_SETS, NAMESPACE, set).await;
                self.on_each = Some(image.clone());
                format!("a daemon set runs {image}")
            }
        }
    }

    /// Why not all is as it was asked for.
    pub async fn unmet(&self, registry: &Registry) -> Option<String> {
        let nodes = list(registry, *NODES).await;
        if let Some(node) = nodes.iter().find(|node| !items(node, &["spec", "taints"]).is_empty()) {
            return Some(format!("{} has taints", object::name(node)));
        }
        let pods = list(registry, *PODS).await;
        for pod in &pods {
            let node = text(pod, &["spec", "nodeName"]);
            if !node.is_empty() && !nodes.iter().any(|known| object::name(known) == node) {
                return Some(format!("{} is on {node}, which is not there", object::name(pod)));
            }
            if items(pod, &["metadata", "ownerReferences"]).is_empty() {
                return Some(format!("{} is nobody's", object::name(pod)));
            }
        }
        let (sets, slices) = (list(registry, *REPLICA_SETS).await, list(registry, *ENDPOINT_SLICES).await);
        let deployments = list(registry, *DEPLOYMENTS).await;
        let of = |object: &Value, app: &str| text(object, &["metadata", "labels", "app"]) == app;
        if let Some(pod) = pods.iter().chain(&sets).find(|object| {
            let app = text(object, &["metadata", "labels", "app"]);
            let wanted = self.deployments.contains_key(app) || app == "each" && self.on_each.is_some();
            !app.is_empty() && !wanted
        }) {
            return Some(format!("{} was deleted with its deployment", object::name(pod)));
        }
        for (name, wanted) in &self.deployments {
            let pods: Vec<&Value> = pods.iter().filter(|pod| of(pod, name)).collect();
            let Some(deployment) = deployments.iter().find(|of| object::name(of) == name) else {
                return Some(format!("{name} is gone"));
            };
            let status = |field: &str| at(deployment, &["status", field]).as_u64().unwrap_or(0) as usize;
            if at(deployment, &["status", "observedGeneration"])
                != at(deployment, &["metadata", "generation"])
            {
                return Some(format!("{name} was not observed"));
            }
            let image = |object: &Value, path: &[&str]| text(&items(object, path)[0], &["image"]).to_string();
            // What cannot run keeps what did, as far as its strategy allows; it is enough that it is tried.
            if wanted.image == MISSING {
                continue;
            }
            let as_wanted = |pod: &&&Value| {
                !object::is_terminating(pod)
                    && image(pod, &["spec", "containers"]) == wanted.image
                    && is_ready(pod)
            };
            let (good, all) = (pods.iter().filter(as_wanted).count(), pods.len());
            if (good, all) != (wanted.replicas, wanted.replicas) {
                return Some(format!("{name}: {good} of {all} pods are as wanted, {} are", wanted.replicas));
            }
            if status("availableReplicas") != wanted.replicas || status("updatedReplicas") != wanted.replicas
            {
                return Some(format!("{name} counts {}", at(deployment, &["status"])));
            }
            let sets = sets.iter().filter(|set| of(set, name));
            let scaled = sets.filter(|set| at(set, &["spec", "replicas"]).as_u64() != Some(0)).count();
            if scaled != usize::from(wanted.replicas > 0) {
                return Some(format!("{name} has {scaled} replica sets with pods"));
            }
            let mine = slices
                .iter()
                .filter(|slice| text(slice, &["metadata", "labels", "kubernetes.io/service-name"]) == name);
            let endpoints = mine.flat_map(|slice| items(slice, &["endpoints"]));
            let ready =
                endpoints.filter(|of| at(of, &["conditions", "ready"]).as_bool() == Some(true)).count();
            if ready != wanted.replicas {
                return Some(format!("{name} has {ready} endpoints"));
            }
        }
        if let Some(wanted) = &self.on_each {
            for node in &nodes {
                let pods = pods.iter().filter(|pod| of(pod, "each"));
                let here: Vec<&Value> =
                    pods.filter(|pod| text(pod, &["spec", "nodeName"]) == object::name(node)).collect();
                let good = here.iter().filter(|pod| {
                    text(&items(pod, &["spec", "containers"])[0], &["image"]) == wanted && is_ready(pod)
                });
                if (good.count(), here.len()) != (1, 1) {
                    return Some(format!("{} has {} pods of the daemon set", object::name(node), here.len()));
                }
            }
        }
        for job in list(registry, *JOBS).await {
            let wanted = self.jobs.get(object::name(&job)).copied().unwrap_or_default();
            let complete = items(&job, &["status", "conditions"])
                .iter()
                .any(|of| text(of, &["type"]) == "Complete" && text(of, &["status"]) == "True");
            let succeeded = at(&job, &["status", "succeeded"]).as_u64().unwrap_or(0) as usize;
            if !complete || succeeded != wanted {
                return Some(format!("{} of {wanted}: {}", object::name(&job), at(&job, &["status"])));
            }
        }
        None
    }
}

pub(super) async fn delete_a_pod(registry: &Registry, random: &mut Random) -> String {
    let pods = list(registry, *PODS).await;
    // A job's would count as lost work, and its number of tries is another test's.
    let pods: Vec<&Value> =
        pods.iter().filter(|pod| !text(pod, &["metadata", "labels", "app"]).is_empty()).collect();
    if pods.is_empty() {
        return "no pod is there to be deleted".into();
    }
    let pod = pods[random.below(pods.len())];
    let of = target(*PODS, NAMESPACE, object::name(pod));
    // By force it is gone at once, and nobody saw it going.
    let grace = random.percent(50).then_some(0);
    match registry.delete(&who(), &of, &DeleteOptions { grace, ..DeleteOptions::default() }).await {
        Err(error) if error.reason != Reason::NotFound => panic!("{error}"),
        _ => format!("delete pod {}", of.name),
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = items(pod, &["status", "conditions"]);
    conditions.iter().any(|of| text(of, &["type"]) == "Ready" && text(of, &["status"]) == "True")
}
