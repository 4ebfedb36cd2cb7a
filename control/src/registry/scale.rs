//! `/scale`: the replicas of whatever has them, in one shape (`autoscaling/v1` Scale).

use super::options::WriteOptions;
use super::{Registry, Resource, Target, Written, write};
use crate::auth::Identity;
use crate::object;
use coracle_api::decode::{self, Document};
use coracle_api::field::{Errors, Path};
use coracle_api::patch::{self, PatchType};
use coracle_api::schema::{self, Form};
use coracle_api::selector::LabelSelector;
use coracle_api::status::{GroupKind, StatusError};
use serde_json::{Value, json};

const API_VERSION: &str = "autoscaling/v1";
const KIND: GroupKind<'static> = GroupKind { group: "autoscaling", kind: "Scale" };

/// What a request makes of the Scale that is there.
pub enum Rescale {
    /// Another one.
    Replace(Document),
    /// A patched one.
    Patch(PatchType, Document),
}

fn form() -> &'static Form {
    schema::kind(API_VERSION, KIND.kind).expect("the schema has Scale")
}

/// The Scale of an object.
fn of(object: &Value) -> Value {
    let metadata = |key: &str| object::at(object, &["metadata", key]).clone();
    let number = |path: &[&str]| object::at(object, path).as_i64().unwrap_or_default();
    // A replication controller's is a map.
    let selector = match object::at(object, &["spec", "selector"]) {
        map if map.get("matchLabels").is_some() || map.get("matchExpressions").is_some() => {
            LabelSelector::from_value(map).ok()
        }
        map => LabelSelector::from_value(&json!({"matchLabels": map})).ok(),
    };
    let mut scale = json!({
        "apiVersion": API_VERSION,
        "kind": KIND.kind,
        "metadata": {
            "name": metadata("name"),
            "namespace": metadata("namespace"),
            "uid": metadata("uid"),
            "resourceVersion": metadata("resourceVersion"),
            "creationTimestamp": metadata("creationTimestamp"),
        },
        "spec": {},
        "status": {"replicas": number(&["status", "replicas"])},
    });
    let replicas = number(&["spec", "replicas"]);
    if replicas != 0 {
        object::fields(object::child(&mut scale, "spec")).insert("replicas".into(), replicas.into());
    }
    if let Some(selector) = selector {
        let status = object::fields(object::child(&mut scale, "status"));
        status.insert("selector".into(), selector.to_string().into());
    }
    scale
}

/// Checks a Scale that was sent or patched; how many replicas it asks for.
fn asked(target: &Target, scale: Value) -> Result<(Value, i64), StatusError> {
    let wrong = |error: decode::TypeError| StatusError::unhandled(KIND.kind, "v1", KIND.kind, error);
    let scale = decode::object(form(), scale).map_err(wrong)?.value;
    let replicas = object::at(&scale, &["spec", "replicas"]).as_i64().unwrap_or_default();
    if replicas < 0 {
        let mut errors = Errors::default();
        let path = Path::new("spec").child("replicas");
        errors.invalid(&path, replicas, "must be greater than or equal to 0");
        return Err(StatusError::invalid(KIND, &target.name, &errors));
    }
    Ok((scale, replicas))
}

impl Registry {
    /// The Scale of an object.
    ///
    /// # Errors
    /// 404.
    pub async fn scale(&self, target: &Target) -> Result<Value, StatusError> {
        Ok(of(&self.get(target).await?))
    }

    /// Sets the replicas of an object.
    ///
    /// # Errors
    /// 404, 409, 422.
    pub async fn rescale(
        &self,
        who: &Identity,
        target: &Target,
        how: &Rescale,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        let resource: &'static Resource = target.resource;
        let produce = |old: &Value| {
            let scale = match how {
                Rescale::Replace(document) => document.value.clone(),
                Rescale::Patch(PatchType::Json, document) => patch::json(of(old), &document.value)?,
                Rescale::Patch(PatchType::StrategicMerge, document) => {
                    patch::strategic(form(), of(old), document.value.clone())?
                }
                Rescale::Patch(PatchType::Merge, document) => {
                    let mut scale = of(old);
                    patch::merge(&mut scale, document.value.clone());
                    scale
                }
                Rescale::Patch(PatchType::Apply, _) => return Err(StatusError::unsupported_patch_type()),
            };
            let (scale, replicas) = asked(target, scale)?;
            let mut new = old.clone();
            object::fields(object::child(&mut new, "spec")).insert("replicas".into(), replicas.into());
            // Of the sender's metadata only what it expects the object to be.
            for key in ["uid", "resourceVersion"] {
                object::set_meta(&mut new, key, object::at(&scale, &["metadata", key]).clone());
            }
            Ok((new, Vec::new()))
        };
        let part = resource.subresource("scale");
        let written = self.rewrite(who, target, part, options, write::Owners::ByChange, &produce).await?;
        Ok(Written { object: of(&written.object), warnings: written.warnings })
    }
}
