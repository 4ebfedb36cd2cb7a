//! The files of a volume that the board writes: from ConfigMaps, Secrets, fields, resources and tokens.
//!
//! Follows `MakePayload` and `collectData` of `pkg/volume/{configmap,secret,downwardapi,projected}`. Paths were checked at
//! admission, and so were the keys of objects: nothing here can name a file outside the volume.

use crate::downward::{self, PodFacts};
use crate::objects::{Lack, ObjectName, Objects, ValueError};
use crate::spec::{
    ContainerSpec, DownwardValue, KeyToPath, PodSpec, Projected, Projection, Volume, VolumeSource,
};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes of all files of one volume: they are kept in memory. Upstream bounds each object (1 MiB) and not their sum.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// A token's own mode where it is given to somebody: its owner reads it, and the `fsGroup`.
const TOKEN_MODE: u32 = 0o600;

/// Files by path below the volume.
pub type Payload = BTreeMap<String, File>;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Root when `None`.
    pub owner: Option<u32>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds stays out of logs.
        write!(f, "{} bytes, mode {:o}, owner {:?}", self.data.len(), self.mode, self.owner)
    }
}

/// The files of every volume that the board writes, by the volume's name; or why they cannot be had.
pub fn payloads(
    pod: &PodSpec,
    objects: &Objects,
    facts: &PodFacts,
) -> BTreeMap<String, Result<Payload, ValueError>> {
    let projected = pod.volumes.iter().filter_map(|volume| match volume {
        Volume { name, source: VolumeSource::Projected(projected) } => Some((name, projected)),
        _ => None,
    });
    projected.map(|(name, projected)| (name.clone(), payload(pod, projected, objects, facts))).collect()
}

/// The files of one volume.
///
/// # Errors
/// The first value that cannot be had; [`ValueError::NotYet`] when any is not known yet.
pub fn payload(
    pod: &PodSpec,
    volume: &Projected,
    objects: &Objects,
    facts: &PodFacts,
) -> Result<Payload, ValueError> {
    let mut files = Payload::new();
    let mut room = PAYLOAD_BYTES_MAX;
    let mut add = |path: &str, data: &[u8], mode: u32, owner: Option<u32>| {
        room = room.checked_sub(data.len()).ok_or(ValueError::TooLarge(PAYLOAD_BYTES_MAX))?;
        files.insert(path.into(), File { data: data.to_vec(), mode, owner });
        Ok::<(), ValueError>(())
    };
    let owner = user_of_all(pod);
    for source in &volume.sources {
        match source {
            Projection::Object { object, items, optional } => {
                let Some(keyed) = objects.find(object, *optional)? else { continue };
                let all = || keyed.data.iter().chain(&keyed.binary_data);
                match items {
                    None => {
                        for (key, value) in all() {
                            add(key, value, volume.default_mode, None)?;
                        }
                    }
                    Some(items) => {
                        for KeyToPath { key, path, mode } in items {
                            match all().find(|(known, _)| *known == key) {
                                Some((_, value)) => {
                                    add(path, value, mode.unwrap_or(volume.default_mode), None)?
                                }
                                None if *optional => {}
                                None => return Err(missing_item(object, key)),
                            }
                        }
                    }
                }
            }
            Projection::DownwardApi { items } => {
                for item in items {
                    let value = match &item.value {
                        DownwardValue::Field(path) => downward::field(pod, facts, path)
                            .ok_or_else(|| ValueError::Field(path.clone()))?,
                        DownwardValue::Resource(field) => {
                            downward::resource(pod, None, field, &facts.allocatable)?
                        }
                    };
                    add(&item.path, value.as_bytes(), item.mode.unwrap_or(volume.default_mode), None)?;
                }
            }
            Projection::ServiceAccountToken { request, path } => {
                let token = match objects.tokens.get(request) {
                    Some(Ok(token)) => token,
                    Some(Err(Lack::Failed(why))) => return Err(ValueError::Failed(why.clone())),
                    Some(Err(Lack::NotFound)) => {
                        let name = &pod.service_account_name;
                        let why = format!("failed to fetch token: serviceaccounts {name:?} not found");
                        return Err(ValueError::Failed(why));
                    }
                    Some(Err(Lack::NotYet)) | None => return Err(ValueError::NotYet),
                };
                // Readable for the one user that all containers run as, or for the group; else as the volume has it.
                let given = owner.is_some() || pod.security.fs_group.is_some();
                let mode = if given { TOKEN_MODE } else { volume.default_mode };
                add(path, token.as_bytes(), mode, owner)?;
            }
        }
    }
    Ok(files)
}

fn missing_item(object: &ObjectName, key: &str) -> ValueError {
    ValueError::Item { object: object.kind, key: key.into() }
}

/// The user that every container runs as, when the pod says so (`FsUserFrom`).
fn user_of_all(pod: &PodSpec) -> Option<u32> {
    let user = |container: &ContainerSpec| container.security.run_as_user.or(pod.security.run_as_user);
    let mut users = pod.all_containers().map(user);
    let first = users.next().flatten()?;
    users.all(|user| user == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Keyed, ObjectKind, TokenRequest};
    use std::sync::Arc;

    fn pod(security: &str, volume: &str) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"p\", \"uid\": \"u\", \"labels\": {{\"a\": \"1\"}}}}, \"spec\": {{\"securityContext\": {security}, \"volumes\": [{{\"name\": \"v\", {volume}}}], \"containers\": [{{\"name\": \"c\", \"image\": \"i:1\"}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("valid")
    }

    fn objects() -> Objects {
        let name = |kind, name: &str| ObjectName { kind, name: name.into() };
        let value = |key: &str, value: &str| [(key.to_string(), value.as_bytes().to_vec())].into();
        let map = Keyed { data: value("a", "one"), binary_data: value("b", "two") };
        let secret = Keyed { data: value("a", "deep"), ..Keyed::default() };
        let token = |seconds| TokenRequest { audience: String::new(), expiration_seconds: seconds };
        Objects {
            keyed: [
                (name(ObjectKind::ConfigMap, "m"), Ok(Arc::new(map))),
                (name(ObjectKind::Secret, "s"), Ok(Arc::new(secret))),
                (name(ObjectKind::ConfigMap, "none"), Err(Lack::NotFound)),
            ]
            .into(),
            tokens: [
                (token(3607), Ok("jwt".into())),
                (token(700), Err(Lack::Failed("failed to fetch token: forbidden".into()))),
            ]
            .into(),
        }
    }

    /// Path, content, mode, owner.
    type Written<'a> = (&'a str, &'a str, u32, Option<u32>);

    #[test]
    fn volumes_hold_what_the_kubelet_would_write() {
        let check = |security: &str, volume: &str, expected: Result<&[Written<'_>], &str>| {
            let pod = pod(security, volume);
            let mut found = payloads(&pod, &objects(), &PodFacts::default());
            let found = found.remove("v").expect("the volume is one of files");
            let found = found.map_err(|e| e.to_string()).map(|files| {
                files
                    .into_iter()
                    .map(|(path, file)| {
                        let text = String::from_utf8(file.data).expect("text");
                        (path, text, file.mode, file.owner)
                    })
                    .collect::<Vec<_>>()
            });
            let expected = expected.map_err(String::from).map(|files| {
                files
                    .iter()
                    .map(|(path, text, mode, owner)| ((*path).into(), (*text).into(), *mode, *owner))
                    .collect::<Vec<_>>()
            });
            assert_eq!(found, expected, "{volume}");
        };
        let plain = "{}";
        check(
            plain,
            r#""configMap": {"name": "m"}"#,
            Ok(&[("a", "one", 0o644, None), ("b", "two", 0o644, None)]),
        );
        check(
            plain,
            r#""configMap": {"name": "m", "defaultMode": 256, "items": [{"key": "b", "path": "x/y"}, {"key": "a", "path": "z", "mode": 511}]}"#,
            Ok(&[("x/y", "two", 0o400, None), ("z", "one", 0o777, None)]),
        );
        check(
            plain,
            r#""configMap": {"name": "m", "items": [{"key": "c", "path": "c"}]}"#,
            Err("configmap references non-existent config key: c"),
        );
        check(
            plain,
            r#""configMap": {"name": "m", "optional": true, "items": [{"key": "c", "path": "c"}]}"#,
            Ok(&[]),
        );
        check(plain, r#""configMap": {"name": "none"}"#, Err(r#"configmap "none" not found"#));
        check(plain, r#""configMap": {"name": "none", "optional": true}"#, Ok(&[]));
        check(plain, r#""secret": {"secretName": "unheard", "optional": true}"#, Err("not known yet"));
        check(
            plain,
            r#""secret": {"secretName": "s", "items": [{"key": "c", "path": "c"}]}"#,
            Err("references non-existent secret key: c"),
        );
        let downward = r#""downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}, {"path": "cpu", "mode": 256, "resourceFieldRef": {"containerName": "c", "resource": "requests.cpu"}}]}"#;
        check(plain, downward, Ok(&[("cpu", "0", 0o400, None), ("labels", "a=\"1\"", 0o644, None)]));
        // Of two at one path the later one.
        let all = r#""projected": {"sources": [{"configMap": {"name": "m"}}, {"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}"#;
        let files = |mode, owner| {
            [("a", "deep", 0o644, None), ("b", "two", 0o644, None), ("token", "jwt", mode, owner)]
        };
        check(plain, all, Ok(&files(0o644, None)));
        check(r#"{"runAsUser": 1000}"#, all, Ok(&files(0o600, Some(1000))));
        check(r#"{"fsGroup": 2000}"#, all, Ok(&files(0o600, None)));
        check(
            plain,
            r#""projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 700}}]}"#,
            Err("failed to fetch token: forbidden"),
        );
    }
}
