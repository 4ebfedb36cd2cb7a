//! What users ask for, change and take back; and whether they have it.

use super::board::{MISSING, create, list, patch, target};
use super::ordered::{self, Ordered};
use super::timed::{self, Timed};
use super::who;
use crate::controllers::kinds::{
    AUTOSCALERS, DAEMON_SETS, DEPLOYMENTS, ENDPOINT_SLICES, JOBS, NODES, PODS, REPLICA_SETS, SERVICES,
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
    /// What an autoscaler keeps the replicas within. Boards give no figures here, so that it does nothing else.
    within: Option<(usize, usize)>,
}

impl Wanted {
    /// Nobody scales what is asked to have none.
    fn replicas(&self) -> usize {
        match self.within {
            Some((least, most)) if self.replicas > 0 => self.replicas.clamp(least, most),
            _ => self.replicas,
        }
    }
}

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    deployments: BTreeMap<String, Wanted>,
    jobs: BTreeMap<String, usize>,
    /// Whether every board is to have a pod of it, and of which image.
    on_each: Option<String>,
    ordered: Ordered,
    timed: Timed,
    made: usize,
}

impl Wishes {
    /// One more, or another; what that was.
    pub async fn change(&mut self, registry: &Registry, random: &mut Random) -> String {
        let name = (!self.deployments.is_empty()).then(|| {
            let index = random.below(self.deployments.len());
            self.deployments.keys().nth(index).cloned().unwrap_or_default()
        });
        match (random.below(13), name) {
            (0, Some(name)) => self.remove(registry, name).await,
            (1 | 2, Some(name)) => self.scale(registry, random, name).await,
            (3 | 4, Some(name)) => self.roll(registry, random, name).await,
            (5, _) => self.start_job(registry, random).await,
            (6, _) => delete_a_pod(registry, random).await,
            (7, _) => self.change_on_each(registry, random).await,
            (8 | 9, _) => self.ordered.change(registry, random).await,
            (10, _) => self.timed.change(registry, random).await,
            (11, Some(name)) => self.autoscale(registry, random, name).await,
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
        self.deployments.insert(name, Wanted { replicas, image, within: None });
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

    /// By figures that nobody gives: what is left of it are its bounds.
    async fn autoscale(&mut self, registry: &Registry, random: &mut Random, name: String) -> String {
        let Some(wanted) = self.deployments.get_mut(&name) else { return "nothing is scaled".into() };
        let of = target(*AUTOSCALERS, NAMESPACE, &name);
        // It has scaled by now, or has not: which of them cannot be told when it goes.
        if let Some((least, most)) = wanted.within.filter(|_| random.percent(30)) {
            wanted.replicas = wanted.replicas();
            let replicas = wanted.replicas;
            wanted.within = None;
            registry.delete(&who(), &of, &DeleteOptions::default()).await.expect("it is there");
            let spec = json!({"spec": {"replicas": replicas}});
            patch(registry, &target(*DEPLOYMENTS, NAMESPACE, &name), None, spec).await;
            return format!("{name} is no longer kept within {least} and {most}");
        }
        let least = 1 + random.below(REPLICAS_MAX);
        let most = least + random.below(3);
        let bounds = json!({"minReplicas": least, "maxReplicas": most});
        if wanted.within.is_some() {
            // What it was scaled to within the old bounds counts from now on.
            wanted.replicas = wanted.replicas();
            let replicas = json!({"spec": {"replicas": wanted.replicas}});
            patch(registry, &target(*DEPLOYMENTS, NAMESPACE, &name), None, replicas).await;
            patch(registry, &of, None, json!({"spec": bounds})).await;
        } else {
            let metric = json!({"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50},
            }});
            let reference = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name});
            let mut spec = bounds;
            object::fields(&mut spec).insert("scaleTargetRef".into(), reference);
            object::fields(&mut spec).insert("metrics".into(), json!([metric]));
            create(registry, *AUTOSCALERS, NAMESPACE, json!({"metadata": {"name": name}, "spec": spec}))
                .await;
        }
        wanted.within = Some((least, most));
        format!("{name} is kept within {least} and {most}")
    }

    /// The faults stop: from now on nothing is asked for by the time alone.
    pub async fn settle(&self, registry: &Registry) {
        self.timed.suspend(registry).await;
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
        if self.deployments.remove(&name).is_some_and(|wanted| wanted.within.is_some()) {
            let of = target(*AUTOSCALERS, NAMESPACE, &name);
            registry.delete(&who(), &of, &DeleteOptions::default()).await.expect("it is there");
        }
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
            let wanted = self.deployments.contains_key(app)
                || app == "each" && self.on_each.is_some()
                || app == ordered::NAME && self.ordered.is_wanted();
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
            let replicas = wanted.replicas();
            if (good, all) != (replicas, replicas) {
                return Some(format!("{name}: {good} of {all} pods are as wanted, {replicas} are"));
            }
            if status("availableReplicas") != replicas || status("updatedReplicas") != replicas {
                return Some(format!("{name} counts {}", at(deployment, &["status"])));
            }
            let sets = sets.iter().filter(|set| of(set, name));
            let scaled = sets.filter(|set| at(set, &["spec", "replicas"]).as_u64() != Some(0)).count();
            if scaled != usize::from(replicas > 0) {
                return Some(format!("{name} has {scaled} replica sets with pods"));
            }
            let mine = slices
                .iter()
                .filter(|slice| text(slice, &["metadata", "labels", "kubernetes.io/service-name"]) == name);
            let endpoints = mine.flat_map(|slice| items(slice, &["endpoints"]));
            let ready =
                endpoints.filter(|of| at(of, &["conditions", "ready"]).as_bool() == Some(true)).count();
            if ready != replicas {
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
        if let Some(why) = self.ordered.unmet(&pods, is_ready) {
            return Some(why);
        }
        let jobs = list(registry, *JOBS).await;
        if let Some(why) = self.timed.unmet(registry, &jobs).await {
            return Some(why);
        }
        for job in jobs.iter().filter(|job| !timed::is_of_it(job)) {
            let wanted = self.jobs.get(object::name(job)).copied().unwrap_or_default();
            let complete = items(job, &["status", "conditions"])
                .iter()
                .any(|of| text(of, &["type"]) == "Complete" && text(of, &["status"]) == "True");
            let succeeded = at(job, &["status", "succeeded"]).as_u64().unwrap_or(0) as usize;
            if !complete || succeeded != wanted {
                return Some(format!("{} of {wanted}: {}", object::name(job), at(job, &["status"])));
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
