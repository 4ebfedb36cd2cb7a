//! Variables of a container, and the fields and resources that variables and files may show.

use super::field::{Errors, Path};
use super::{names, resources};
use crate::objects::{ObjectKind, ObjectName};
use crate::spec::{EnvFrom, EnvSource, EnvValue, EnvVar, Resource, ResourceField};
use k8s_openapi::api::core::v1;
use std::num::NonZeroU64;

/// `fieldRef` paths without a key that a variable may take.
const VARIABLE_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Those that a file may take.
pub(crate) const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

pub(crate) fn env(errors: &mut Errors, path: &Path, wire: Option<&[v1::EnvVar]>) -> Vec<EnvVar> {
    let mut found = Vec::new();
    for (index, wire) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        names::env_name(errors, &path.child("name"), &wire.name);
        let literal = wire.value.clone().unwrap_or_default();
        names::no_nul(errors, &path.child("value"), &literal);
        let value = match &wire.value_from {
            None => EnvValue::Literal(literal),
            Some(source) => {
                let path = path.child("valueFrom");
                if !literal.is_empty() {
                    errors.invalid(&path, "", "may not be specified when `value` is not empty");
                }
                EnvValue::From(value_from(errors, &path, source))
            }
        };
        found.push(EnvVar { name: wire.name.clone(), value });
    }
    found
}

fn value_from(errors: &mut Errors, path: &Path, wire: &v1::EnvVarSource) -> EnvSource {
    let v1::EnvVarSource { config_map_key_ref, field_ref, file_key_ref, resource_field_ref, secret_key_ref } =
        wire;
    errors.unsupported(file_key_ref.is_some(), &path.child("fileKeyRef"));
    let given = [
        config_map_key_ref.is_some(),
        field_ref.is_some(),
        file_key_ref.is_some(),
        resource_field_ref.is_some(),
        secret_key_ref.is_some(),
    ];
    match given.into_iter().filter(|given| *given).count() {
        0 => {
            let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
            errors.invalid(path, "", detail);
        }
        1 => {}
        _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
    }
    let mut key_of = |kind: ObjectKind, at: &str, name: &str, key: &str, optional: Option<bool>| {
        let path = path.child(at);
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        if key.is_empty() {
            errors.required(&path.child("key"), "");
        } else {
            names::object_key(errors, &path.child("key"), key);
        }
        let object = ObjectName { kind, name: name.into() };
        EnvSource::Key { object, key: key.into(), optional: optional.unwrap_or(false) }
    };
    if let Some(wire) = config_map_key_ref {
        return key_of(ObjectKind::ConfigMap, "configMapKeyRef", &wire.name, &wire.key, wire.optional);
    }
    if let Some(wire) = secret_key_ref {
        return key_of(ObjectKind::Secret, "secretKeyRef", &wire.name, &wire.key, wire.optional);
    }
    if let Some(wire) = resource_field_ref {
        return EnvSource::Resource(resource_field(errors, &path.child("resourceFieldRef"), wire, false));
    }
    let field = field_ref.as_ref();
    EnvSource::Field(
        field.map_or_else(String::new, |wire| {
            field_path(errors, &path.child("fieldRef"), wire, &VARIABLE_FIELDS)
        }),
    )
}

pub(crate) fn env_from(errors: &mut Errors, path: &Path, wire: Option<&[v1::EnvFromSource]>) -> Vec<EnvFrom> {
    let mut found = Vec::new();
    for (index, wire) in wire.into_iter().flatten().enumerate() {
        let path = path.index(index);
        let v1::EnvFromSource { config_map_ref, prefix, secret_ref } = wire;
        let prefix = prefix.clone().unwrap_or_default();
        if !prefix.is_empty() {
            names::env_name(errors, &path.child("prefix"), &prefix);
        }
        let (kind, at, name, optional) = match (config_map_ref, secret_ref) {
            (Some(_), Some(_)) => {
                errors.invalid(&path, "", "may not have more than one field specified at a time");
                continue;
            }
            (Some(wire), None) => (ObjectKind::ConfigMap, "configMapRef", &wire.name, wire.optional),
            (None, Some(wire)) => (ObjectKind::Secret, "secretRef", &wire.name, wire.optional),
            (None, None) => {
                errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`");
                continue;
            }
        };
        if name.is_empty() {
            errors.required(&path.child(at).child("name"), "");
        }
        let object = ObjectName { kind, name: name.clone() };
        found.push(EnvFrom { prefix, object, optional: optional.unwrap_or(false) });
    }
    found
}

/// `validateObjectFieldSelector`.
pub(crate) fn field_path(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::ObjectFieldSelector,
    allowed: &[&'static str],
) -> String {
    errors.one_of(&path.child("apiVersion"), wire.api_version.as_deref(), (), &[("v1", ())]);
    let keyed = ["metadata.labels['", "metadata.annotations['"].iter().any(|prefix| {
        wire.field_path.strip_prefix(prefix).is_some_and(|rest| rest.len() > 2 && rest.ends_with("']"))
    });
    let path = path.child("fieldPath");
    if wire.field_path.is_empty() {
        errors.required(&path, "");
    } else if !keyed {
        let table: Vec<(&'static str, ())> = allowed.iter().map(|name| (*name, ())).collect();
        errors.one_of(&path, Some(&wire.field_path), (), &table);
    }
    wire.field_path.clone()
}

/// `validateContainerResourceFieldSelector`; `named`: it must say whose.
pub(crate) fn resource_field(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::ResourceFieldSelector,
    named: bool,
) -> ResourceField {
    let container = wire.container_name.clone().filter(|name| !name.is_empty());
    let resource_path = path.child("resource");
    let mut resource = Resource::CpuLimit;
    if named && container.is_none() {
        errors.required(&path.child("containerName"), "");
    } else if wire.resource.is_empty() {
        errors.required(&resource_path, "");
    } else {
        let table = [
            ("limits.cpu", Resource::CpuLimit),
            ("limits.ephemeral-storage", Resource::EphemeralStorageLimit),
            ("limits.memory", Resource::MemoryLimit),
            ("requests.cpu", Resource::CpuRequest),
            ("requests.ephemeral-storage", Resource::EphemeralStorageRequest),
            ("requests.memory", Resource::MemoryRequest),
        ];
        resource = errors.one_of(&resource_path, Some(&wire.resource), resource, &table);
    }
    let divisor = divisor(errors, &path.child("divisor"), wire, resource);
    ResourceField { container, resource, divisor }
}

/// In thousandths for CPU, in bytes for the others; 1 of what is shown when not set.
fn divisor(
    errors: &mut Errors,
    path: &Path,
    wire: &v1::ResourceFieldSelector,
    resource: Resource,
) -> NonZeroU64 {
    const BYTES: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let (is_cpu, allowed, what) = match resource {
        Resource::CpuLimit | Resource::CpuRequest => (true, "1m, 1", "cpu"),
        Resource::MemoryLimit | Resource::MemoryRequest => (false, BYTES, "memory"),
        Resource::EphemeralStorageLimit | Resource::EphemeralStorageRequest => {
            (false, BYTES, "local ephemeral storage")
        }
    };
    let default = if is_cpu { NonZeroU64::new(1000).expect("not zero") } else { NonZeroU64::MIN };
    let Some(quantity) = wire.divisor.as_ref().and_then(|divisor| resources::quantity(errors, path, divisor))
    else {
        return default;
    };
    if quantity.is_zero() {
        return default;
    }
    let written = quantity.to_string();
    if !allowed.split(", ").any(|known| known == written) {
        let listed = if is_cpu { "1m and 1" } else { allowed };
        let detail = format!("only divisor's values {listed} are supported with the {what} resource");
        errors.invalid(path, &wire.resource, detail);
        return default;
    }
    let amount = if is_cpu { quantity.millis() } else { quantity.bytes() };
    u64::try_from(amount).ok().and_then(NonZeroU64::new).unwrap_or(default)
}
