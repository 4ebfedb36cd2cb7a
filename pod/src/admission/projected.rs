//! Volumes that the board writes: `configMap`, `secret`, `downwardAPI`, `projected`.

use super::environment::{FILE_FIELDS, field_path, resource_field};
use super::field::{Errors, Path};
use super::names;
use crate::objects::{ObjectKind, ObjectName, TokenRequest};
use crate::spec::{DownwardFile, DownwardValue, KeyToPath, Projected, Projection};
use k8s_openapi::api::core::v1;
use std::collections::BTreeSet;

/// `*VolumeSourceDefaultMode`.
const MODE: u32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;

pub(crate) fn config_map(errors: &mut Errors, path: &Path, wire: &v1::ConfigMapVolumeSource) -> Projected {
    let default_mode = mode(errors, &path.child("defaultMode"), wire.default_mode).unwrap_or(MODE);
    if wire.name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    let source =
        object(errors, path, ObjectKind::ConfigMap, &wire.name, wire.items.as_deref(), wire.optional);
    Projected { sources: vec![source], default_mode }
}

pub(crate) fn secret(errors: &mut Errors, path: &Path, wire: &v1::SecretVolumeSource) -> Projected {
    let default_mode = mode(errors, &path.child("defaultMode"), wire.default_mode).unwrap_or(MODE);
    let name = wire.secret_name.clone().unwrap_or_default();
    if name.is_empty() {
        errors.required(&path.child("secretName"), "");
    }
    let source = object(errors, path, ObjectKind::Secret, &name, wire.items.as_deref(), wire.optional);
    Projected { sources: vec![source], default_mode }
}

pub(crate) fn downward_api(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::DownwardAPIVolumeSource,
) -> Projected {
    let default_mode = mode(errors, &path.child("defaultMode"), wire.default_mode).unwrap_or(MODE);
    let items = downward_items(errors, path, wire.items.as_deref());
    Projected { sources: vec![Projection::DownwardApi { items }], default_mode }
}

pub(crate) fn all(errors: &mut Errors, path: &Path, wire: &v1::ProjectedVolumeSource) -> Projected {
    let default_mode = mode(errors, &path.child("defaultMode"), wire.default_mode).unwrap_or(MODE);
    let mut sources = Vec::new();
    let mut paths = BTreeSet::new();
    for (index, wire) in wire.sources.iter().flatten().enumerate() {
        let at = path.child("sources").index(index);
        // Spelt out: a source that a new version of the API brings does not compile until it is honoured or refused.
        let v1::VolumeProjection {
            cluster_trust_bundle,
            config_map,
            downward_api,
            pod_certificate,
            secret,
            service_account_token,
        } = wire;
        errors.unsupported(cluster_trust_bundle.is_some(), &at.child("clusterTrustBundle"));
        errors.unsupported(pod_certificate.is_some(), &at.child("podCertificate"));
        let mut of_this = Vec::new();
        if let Some(wire) = secret {
            let at = at.child("secret");
            if wire.name.is_empty() {
                errors.required(&at.child("name"), "");
            }
            let items = wire.items.as_deref();
            of_this.push((
                at.clone(),
                object(errors, &at, ObjectKind::Secret, &wire.name, items, wire.optional),
            ));
        }
        if let Some(wire) = config_map {
            let at = at.child("configMap");
            if wire.name.is_empty() {
                errors.required(&at.child("name"), "");
            }
            let items = wire.items.as_deref();
            let found = object(errors, &at, ObjectKind::ConfigMap, &wire.name, items, wire.optional);
            of_this.push((at, found));
        }
        if let Some(wire) = downward_api {
            let at = at.child("downwardAPI");
            let items = downward_items(errors, &at, wire.items.as_deref());
            of_this.push((at, Projection::DownwardApi { items }));
        }
        if let Some(wire) = service_account_token {
            let at = at.child("serviceAccountToken");
            let found = token(errors, &at, wire);
            of_this.push((at, found));
        }
        for (number, (at, source)) in of_this.into_iter().enumerate() {
            if number > 0 {
                errors.forbidden(&at, "may not specify more than 1 volume type");
            }
            for one in paths_of(&source) {
                if !one.is_empty() && !paths.insert(one.clone()) {
                    errors.invalid(path, &one, "conflicting duplicate paths");
                }
            }
            sources.push(source);
        }
    }
    Projected { sources, default_mode }
}

/// Those that are written out; keys of a whole object are known only later.
fn paths_of(source: &Projection) -> Vec<String> {
    match source {
        Projection::Object { items, .. } => items.iter().flatten().map(|item| item.path.clone()).collect(),
        Projection::DownwardApi { items } => items.iter().map(|item| item.path.clone()).collect(),
        Projection::ServiceAccountToken { path, .. } => vec![path.clone()],
    }
}

fn object(
    errors: &mut Errors,
    path: &Path,
    kind: ObjectKind,
    name: &str,
    items: Option<&[v1::KeyToPath]>,
    optional: Option<bool>,
) -> Projection {
    let items_path = path.child("items");
    let mut found = Vec::new();
    for (index, wire) in items.into_iter().flatten().enumerate() {
        let path = items_path.index(index);
        if wire.key.is_empty() {
            errors.required(&path.child("key"), "");
        }
        if wire.path.is_empty() {
            errors.required(&path.child("path"), "");
        }
        names::in_volume(errors, &path.child("path"), &wire.path);
        let mode = mode(errors, &path.child("mode"), wire.mode);
        found.push(KeyToPath { key: wire.key.clone(), path: wire.path.clone(), mode });
    }
    Projection::Object {
        object: ObjectName { kind, name: name.into() },
        items: (!found.is_empty()).then_some(found),
        optional: optional.unwrap_or(false),
    }
}

fn downward_items(
    errors: &mut Errors,
    path: &Path,
    wire: Option<&[v1::DownwardAPIVolumeFile]>,
) -> Vec<DownwardFile> {
    let mut found = Vec::new();
    // Upstream names the list and not its items here.
    for wire in wire.into_iter().flatten() {
        if wire.path.is_empty() {
            errors.required(&path.child("path"), "");
        }
        names::in_volume(errors, &path.child("path"), &wire.path);
        let value = match (&wire.field_ref, &wire.resource_field_ref) {
            (Some(field), other) => {
                if other.is_some() {
                    let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                    errors.invalid(path, "resource", detail);
                }
                DownwardValue::Field(field_path(errors, &path.child("fieldRef"), field, &FILE_FIELDS))
            }
            (None, Some(resource)) => {
                let path = path.child("resourceFieldRef");
                DownwardValue::Resource(resource_field(errors, &path, resource, true))
            }
            (None, None) => {
                errors.required(path, "one of fieldRef and resourceFieldRef is required");
                continue;
            }
        };
        let mode = mode(errors, &path.child("mode"), wire.mode);
        found.push(DownwardFile { path: wire.path.clone(), value, mode });
    }
    found
}

fn token(errors: &mut Errors, path: &Path, wire: &v1::ServiceAccountTokenProjection) -> Projection {
    let seconds = wire.expiration_seconds.unwrap_or(TOKEN_SECONDS);
    let seconds_path = path.child("expirationSeconds");
    if seconds < TOKEN_SECONDS_MIN {
        errors.invalid(&seconds_path, &seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > TOKEN_SECONDS_MAX {
        errors.invalid(&seconds_path, &seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if wire.path.is_empty() {
        errors.required(&path.child("path"), "");
    }
    names::in_volume(errors, &path.child("path"), &wire.path);
    Projection::ServiceAccountToken {
        request: TokenRequest {
            audience: wire.audience.clone().unwrap_or_default(),
            expiration_seconds: u64::try_from(seconds).unwrap_or(0),
        },
        path: wire.path.clone(),
    }
}

fn mode(errors: &mut Errors, path: &Path, wire: Option<i32>) -> Option<u32> {
    let wire = wire?;
    let mode = u32::try_from(wire).ok().filter(|mode| *mode <= 0o777);
    if mode.is_none() {
        errors.invalid(path, &wire, "must be a number between 0 and 0777 (octal), both inclusive");
    }
    mode
}
