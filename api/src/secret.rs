//! `v1.Secret`: kept out of logs, and in which form one holds registry credentials.

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

/// A Secret whose values stay out of logs.
#[derive(Clone, PartialEq)]
pub struct SecretObject(pub Box<Secret>);

impl fmt::Debug for SecretObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meta = &self.0.metadata;
        f.debug_struct("Secret")
            .field("namespace", &meta.namespace)
            .field("name", &meta.name)
            .finish_non_exhaustive()
    }
}
