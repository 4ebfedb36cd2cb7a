//! `v1.Secret` with registry credentials: the one kind of secret that a board keeps for itself, and as much of it.

use k8s_openapi::api::core::v1::Secret;
use std::fmt;

/// In which form the credentials are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DockerFormat {
    /// `kubernetes.io/dockerconfigjson`: a whole `config.json`.
    ConfigJson,
    /// `kubernetes.io/dockercfg`: only what `config.json` has under `auths`.
    Cfg,
}

impl DockerFormat {
    /// By `type`; `None` for secrets of other kinds.
    pub fn of_type(name: &str) -> Option<DockerFormat> {
        match name {
            "kubernetes.io/dockerconfigjson" => Some(DockerFormat::ConfigJson),
            "kubernetes.io/dockercfg" => Some(DockerFormat::Cfg),
            _ => None,
        }
    }

    /// The key of `data` under which they are.
    pub fn key(self) -> &'static str {
        match self {
            DockerFormat::ConfigJson => ".dockerconfigjson",
            DockerFormat::Cfg => ".dockercfg",
        }
    }
}

/// A secret of registry credentials as it was written; they are not looked at yet.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistrySecret {
    /// `default` when none is given.
    pub namespace: String,
    /// May be empty, or no name at all.
    pub name: String,
    /// How to read `text`.
    pub format: DockerFormat,
    /// What is under [`DockerFormat::key`]; empty when nothing is.
    pub text: Vec<u8>,
}

impl fmt::Debug for RegistrySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds stays out of logs.
        f.debug_struct("RegistrySecret")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A secret of a type that a standalone board has no use for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "secret {name:?} has type {kind:?}: a standalone board takes kubernetes.io/dockerconfigjson and \
     kubernetes.io/dockercfg, for imagePullSecrets"
)]
pub struct OtherType {
    /// Of the secret.
    pub name: String,
    /// Its type; `Opaque` when none is given, as the API server has it.
    pub kind: String,
}

impl RegistrySecret {
    /// `stringData` wins over `data`, as with the API server. Pure.
    ///
    /// # Errors
    /// [`OtherType`].
    pub fn from_api(secret: Secret) -> Result<RegistrySecret, OtherType> {
        let name = secret.metadata.name.unwrap_or_default();
        let kind = secret.type_.filter(|kind| !kind.is_empty()).unwrap_or_else(|| "Opaque".into());
        let Some(format) = DockerFormat::of_type(&kind) else { return Err(OtherType { name, kind }) };
        let plain = secret.string_data.and_then(|mut data| data.remove(format.key())).map(String::into_bytes);
        let encoded = || secret.data.and_then(|mut data| data.remove(format.key())).map(|bytes| bytes.0);
        let namespace = secret.metadata.namespace.filter(|namespace| !namespace.is_empty());
        Ok(RegistrySecret {
            namespace: namespace.unwrap_or_else(|| "default".into()),
            name,
            format,
            text: plain.or_else(encoded).unwrap_or_default(),
        })
    }
}
