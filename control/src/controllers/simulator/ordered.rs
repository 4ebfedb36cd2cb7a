//! A stateful set that users ask for, change and take back: its pods have numbers, and come one after the other.

use super::board::{create, patch, target};
use super::who;
use crate::controllers::kinds::STATEFUL_SETS;
use crate::object::{self, items, text};
use crate::registry::Registry;
use crate::registry::options::DeleteOptions;
use crate::simulated::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const NAMESPACE: &str = "default";
/// Its name, and the label `app` of its pods.
pub(super) const NAME: &str = "crew";
const REPLICAS_MAX: usize = 5;

/// What is asked for; nothing where there is no set.
#[derive(Debug, Default)]
pub(super) struct Ordered(Option<(usize, String)>);

impl Ordered {
    /// Whether there is one.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Another number, another image, or none any more; what that was.
    pub async fn change(&mut self, registry: &Registry, random: &mut Random) -> String {
        let of = target(*STATEFUL_SETS, NAMESPACE, NAME);
        let (replicas, image) =
            (random.below(REPLICAS_MAX), format!("example.test/crew:{}", random.below(3)));
        let told = format!("{NAME} of {replicas}, {image}");
        let spec = json!({"containers": [{"name": "main", "image": image}]});
        match &self.0 {
            Some(_) if random.percent(20) => {
                registry.delete(&who(), &of, &DeleteOptions::default()).await.expect("it is there");
                self.0 = None;
                return format!("delete {NAME}");
            }
            Some(_) => {
                let spec = json!({"replicas": replicas, "template": {"spec": spec}});
                patch(registry, &of, None, json!({"spec": spec})).await;
            }
            None => {
                let labels = json!({"app": NAME});
                let management = ["OrderedReady", "Parallel"][random.below(2)];
                let set = json!({
                    "metadata": {"name": NAME},
                    "spec": {
                        "serviceName": NAME, "replicas": replicas, "podManagementPolicy": management,
                        "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": spec},
                    },
                });
                create(registry, *STATEFUL_SETS, NAMESPACE, set).await;
            }
        }
        self.0 = Some((replicas, image));
        told
    }

    /// Why it is not as it was asked for, of all pods.
    pub fn unmet(&self, pods: &[Value], is_ready: fn(&Value) -> bool) -> Option<String> {
        let (replicas, image) = self.0.as_ref()?;
        let here = pods.iter().filter(|pod| text(pod, &["metadata", "labels", "app"]) == NAME);
        let here: BTreeMap<&str, &Value> = here.map(|pod| (object::name(pod), pod)).collect();
        let wanted: Vec<String> = (0..*replicas).map(|number| format!("{NAME}-{number}")).collect();
        if !here.keys().eq(wanted.iter()) {
            return Some(format!("{NAME} has {:?}, wanted are {replicas}", here.keys()));
        }
        let as_wanted = |pod: &Value| {
            text(&items(pod, &["spec", "containers"])[0], &["image"]) == image
                && is_ready(pod)
                && !object::is_terminating(pod)
        };
        let bad = here.iter().find(|(_, pod)| !as_wanted(pod));
        bad.map(|(name, _)| format!("{name} is not ready with {image}"))
    }
}
