//! What every namespace has: its service account `default`, and the authority's certificate in `kube-root-ca.crt` (upstream's
//! serviceaccount and root-ca-cert-publisher controllers).
//!
//! They are made with the namespace; this brings them back when somebody deletes or changes them, and brings them up to date
//! when the authority is another one.

use super::Identity;
use crate::kinds;
use crate::object;
use crate::registry::options::{ListOptions, Query, Start, WatchOptions, WriteOptions};
use crate::registry::{ROOT_CA, Registry, Target, WatchEvent};
use coracle_api::decode::Document;
use coracle_api::patch::PatchType;
use coracle_api::status::StatusError;
use serde_json::json;
use std::time::Duration;

/// Between two attempts, when the storage refuses.
const RETRY: Duration = Duration::from_secs(1);

/// Follows one kind of what namespaces have.
pub(super) async fn keep(registry: Registry, plural: &'static str, name: &'static str) {
    loop {
        if let Err(error) = round(&registry, plural, name).await {
            tracing::warn!(kind = plural, %error, "namespaces may lack what they should have");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// All namespaces once, then every change until the watch ends.
async fn round(registry: &Registry, plural: &str, name: &str) -> Result<(), StatusError> {
    let namespaces = kind("namespaces");
    let options = ListOptions::parse(namespaces.resource, &Query::default())?;
    let listed = registry.list(&namespaces, &options).await?;
    for namespace in &listed.items {
        furnish(registry, object::name(namespace)).await?;
    }
    let kept = kind(plural);
    let query = Query::parse(&format!("fieldSelector=metadata.name%3D{name}"));
    let mut options = WatchOptions::parse(kept.resource, &query)?;
    options.start = Start::After(listed.revision);
    let mut watch = registry.watch(&kept, options).await?;
    while let Some(event) = watch.next().await {
        match event {
            WatchEvent::Modified(found) | WatchEvent::Deleted(found) => {
                furnish(registry, object::namespace(&found)).await?;
            }
            WatchEvent::Added(_) | WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(_) => break,
        }
    }
    Ok(())
}

async fn furnish(registry: &Registry, namespace: &str) -> Result<(), StatusError> {
    let found = registry.stored("namespaces", "", namespace).await?;
    // What goes is not furnished any more.
    if found.is_none_or(|found| object::is_terminating(&found)) {
        return Ok(());
    }
    registry.furnish(namespace).await?;
    let data = json!({"ca.crt": registry.root_ca()});
    let found = registry.stored("configmaps", namespace, ROOT_CA).await?;
    if found.is_none_or(|found| object::at(&found, &["data"]) == &data) {
        return Ok(());
    }
    // Somebody wrote into it, or the authority is another one now.
    let target = Target { namespace: namespace.into(), name: ROOT_CA.into(), ..kind("configmaps") };
    let patch = json!([{"op": "add", "path": "/data", "value": data}]);
    let patch = (PatchType::Json, Document { value: patch, duplicates: Vec::new() });
    let options = WriteOptions { manager: "root-ca-cert-publisher".into(), ..WriteOptions::default() };
    match registry.patch(&Identity::apiserver(), &target, None, patch, &options).await {
        // It was deleted meanwhile, and the watch tells of that.
        Err(error) if error.code == 404 => Ok(()),
        written => written.map(|_| ()),
    }
}

fn kind(plural: &str) -> Target {
    let resource = kinds::find("", "v1", plural).expect("a kind of the table");
    Target { resource, namespace: String::new(), name: String::new() }
}
