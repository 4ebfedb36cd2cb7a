//! Registry credentials that were given as `v1.Secret`, and what of them a pod's pulls may use.
//!
//! Wherever a secret comes from, it gets here as a [`RegistrySecret`] with its [`Source`] and is kept as a
//! [`SecretRecord`]; a pull gets [`Credential`]s and knows nothing of secrets. A change works from the next pull on.
//! Nothing here shows what a secret holds: not in refusals, events or logs.

use super::Engine;
use crate::record::{SecretRecord, Source};
use crate::request::{Kind, Outcome, Refusal};
use coracle_api::secret::{DockerFormat, RegistrySecret};
use coracle_pod::{Event, EventType, PodSpec};
use coracle_runtime::image::{Credential, docker_cfg, docker_config};
use std::collections::{BTreeMap, BTreeSet};

/// Secrets that a board keeps.
const SECRETS_MAX: usize = 256;
/// Bytes of one as it is written. In the store's JSON a byte takes six at most, and a record 1.5 MiB.
const SECRET_BYTES_MAX: usize = 128 * 1024;

/// Namespace and name.
pub(super) type Key = (String, String);

/// What is known, as it is stored.
#[derive(Debug, Default)]
pub(super) struct Secrets(BTreeMap<Key, SecretRecord>);

impl Secrets {
    /// As read from the store.
    pub(super) fn of(records: impl IntoIterator<Item = SecretRecord>) -> Secrets {
        Secrets(records.into_iter().map(|r| ((r.namespace.clone(), r.name.clone()), r)).collect())
    }

    /// What a pull for this pod may use, in the order of its `imagePullSecrets`; and the kubelet's warning when some
    /// of those are not there: the pull goes on without them.
    pub(super) fn for_pull(&self, pod: &PodSpec) -> (Vec<Credential>, Option<Event>) {
        let (mut credentials, mut missing) = (Vec::new(), Vec::new());
        for name in &pod.image_pull_secrets {
            match self.0.get(&(pod.namespace.clone(), name.clone())) {
                Some(record) => credentials.extend(record.credentials.iter().cloned()),
                None => missing.push(name.as_str()),
            }
        }
        let warning = (!missing.is_empty()).then(|| Event {
            kind: EventType::Warning,
            reason: "FailedToRetrieveImagePullSecret",
            message: format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            ),
            field_path: None,
        });
        (credentials, warning)
    }
}

/// A secret as it will be stored, or why it is not one.
pub(super) fn admit(secret: &RegistrySecret, source: &Source) -> Result<SecretRecord, Refusal> {
    let invalid = |message: String| Refusal::invalid(Kind::Secret, &secret.name, &message);
    let names = coracle_pod::admission::object_names(&secret.namespace, &secret.name);
    if let Some(error) = names.first() {
        return Err(invalid(error.to_string()));
    }
    let key = secret.format.key();
    if secret.text.is_empty() {
        return Err(invalid(format!("data[{key}]: Required value")));
    }
    if secret.text.len() > SECRET_BYTES_MAX {
        return Err(invalid(format!("data[{key}]: Too long: may not be more than {SECRET_BYTES_MAX} bytes")));
    }
    let credentials = match secret.format {
        DockerFormat::ConfigJson => docker_config(&secret.text),
        DockerFormat::Cfg => docker_cfg(&secret.text),
    };
    let credentials = credentials.map_err(|error| {
        invalid(format!("data[{key}]: Invalid value: \"<secret contents redacted>\": {error}"))
    })?;
    let (namespace, name) = (secret.namespace.clone(), secret.name.clone());
    Ok(SecretRecord { namespace, name, credentials, source: source.clone() })
}

impl Engine {
    pub(super) fn place_secret(&mut self, record: SecretRecord) -> Result<Outcome, Refusal> {
        let key = (record.namespace.clone(), record.name.clone());
        let known = self.secrets.0.get(&key);
        let outcome = match known {
            Some(known) if known.source != record.source => {
                let (namespace, name) = &key;
                return Err(Refusal::conflict(Kind::Secret, namespace, name, &known.source));
            }
            Some(known) if *known == record => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Configured,
            None if self.secrets.0.len() >= SECRETS_MAX => {
                let message = format!("this board keeps {SECRETS_MAX} secrets at most");
                return Err(Refusal { code: 403, reason: "Forbidden", message });
            }
            None => Outcome::Created,
        };
        self.batch.put(&row(&key), &record);
        self.secrets.0.insert(key, record);
        Ok(outcome)
    }

    pub(super) fn delete_secret(&mut self, namespace: &str, name: &str) -> Result<(), Refusal> {
        let key = (namespace.to_string(), name.to_string());
        match self.secrets.0.get(&key).map(|record| &record.source) {
            None => Err(Refusal::not_found(Kind::Secret, name)),
            Some(Source::Manifest(file)) => Err(Refusal::owned(Kind::Secret, namespace, name, file)),
            Some(Source::Api) => Err(Refusal::of_the_api(Kind::Secret, namespace, name)),
            Some(Source::Apply) => {
                self.forget_secret(&key);
                Ok(())
            }
        }
    }

    /// Removes secrets whose manifest file is readable and no longer has them.
    pub(super) fn remove_orphaned_secrets(
        &mut self,
        wanted: &BTreeSet<(String, Key)>,
        unreadable: &BTreeSet<String>,
    ) {
        let orphaned = |(key, record): (&Key, &SecretRecord)| match &record.source {
            Source::Manifest(file) => {
                let gone = !unreadable.contains(file) && !wanted.contains(&(file.clone(), key.clone()));
                gone.then(|| key.clone())
            }
            Source::Apply | Source::Api => None,
        };
        let orphaned: Vec<Key> = self.secrets.0.iter().filter_map(orphaned).collect();
        for key in orphaned {
            self.forget_secret(&key);
        }
    }

    fn forget_secret(&mut self, key: &Key) {
        self.batch.delete::<SecretRecord>(&row(key));
        self.secrets.0.remove(key);
    }
}

/// In the store. Neither part can hold a slash.
fn row((namespace, name): &Key) -> String {
    format!("{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_is_none_is_refused_and_not_shown() {
        let check = |name: &str, format, text: &str, expected: &str| {
            let secret =
                RegistrySecret { namespace: "default".into(), name: name.into(), format, text: text.into() };
            let refused = admit(&secret, &Source::Apply).expect_err(expected).message;
            assert_eq!(refused, format!("Secret {name:?} is invalid: {expected}"));
            assert!(!refused.contains("hunter2"), "{refused}");
        };
        let (config, cfg) = (DockerFormat::ConfigJson, DockerFormat::Cfg);
        let redacted = |key: &str, why: &str| {
            format!("data[{key}]: Invalid value: \"<secret contents redacted>\": {why}")
        };
        check("reg", config, "", "data[.dockerconfigjson]: Required value");
        check("reg", cfg, "", "data[.dockercfg]: Required value");
        let long = format!("data[.dockercfg]: Too long: may not be more than {SECRET_BYTES_MAX} bytes");
        check("reg", cfg, &"x".repeat(SECRET_BYTES_MAX + 1), &long);
        let shape = redacted(".dockerconfigjson", "not Docker's JSON of registries (line 1, column 9)");
        check("reg", config, "\"hunter2\"", &shape);
        let auth = redacted(".dockercfg", "the auth of r.example is not base64 of user:password");
        check("reg", cfg, r#"{"r.example": {"auth": "hunter2"}}"#, &auth);
        check("", cfg, "{}", "metadata.name: Required value: name or generateName is required");
    }
}
