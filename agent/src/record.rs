//! What the agent keeps in the store: pods as they were given, the history of each, and the objects that they name.

use crate::request::Kind;
use coracle_pod::History;
use coracle_pod::objects::TokenRequest;
use coracle_runtime::image::Credential;
use coracle_store::Record;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A pod as somebody asked for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    /// Defaults and status left out: as written, with a uid.
    pub pod: Pod,
    /// Who asked.
    pub source: Source,
    /// Deletion was asked for, with this grace in seconds.
    pub deletion_grace_seconds: Option<i64>,
}

/// Where a pod or a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// A file of the manifest directory, by name: gone when the file is.
    Manifest(String),
    /// `coracle apply`.
    Apply,
    /// The API server: gone when the object there is.
    Api,
}

impl Record for PodRecord {
    const KIND: &'static str = "pod";
    /// 2: pods of the API server.
    const VERSION: u16 = 2;
    /// Desired state: what a rebuilt store starts from.
    const EXPORTED: bool = true;

    fn upgrade(version: u16, payload: &[u8]) -> Option<PodRecord> {
        (version == 1).then(|| serde_json::from_slice(payload).ok())?
    }
}

/// A `v1.ConfigMap` or `v1.Secret`, by kind, namespace and name.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ObjectRecord {
    /// `ConfigMap` or `Secret`.
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    /// A secret's `type`.
    #[serde(default, rename = "type")]
    pub type_: String,
    #[serde(default)]
    pub data: BTreeMap<String, ByteString>,
    #[serde(default)]
    pub binary_data: BTreeMap<String, ByteString>,
    #[serde(default)]
    pub immutable: bool,
    /// Who gave it.
    pub source: Source,
}

impl fmt::Debug for ObjectRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it holds stays out of logs.
        f.debug_struct("ObjectRecord")
            .field("kind", &self.kind)
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Record for ObjectRecord {
    const KIND: &'static str = "object";
    const VERSION: u16 = 1;
    /// As needed as the pods that are restored with it; store and export are for root alone.
    const EXPORTED: bool = true;
}

/// Registry credentials as agents before version 0.2 kept them: read once, and written as an [`ObjectRecord`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SecretRecord {
    pub namespace: String,
    pub name: String,
    pub credentials: Vec<Credential>,
    pub source: Source,
}

impl Record for SecretRecord {
    const KIND: &'static str = "secret";
    const VERSION: u16 = 1;
    const EXPORTED: bool = true;
}

/// The first token of each kind that the API server gave for a pod.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TokensRecord {
    pub tokens: Vec<TokenRecord>,
}

/// One token, and what was asked for.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    audience: String,
    expiration_seconds: u64,
    pub token: String,
}

impl TokenRecord {
    pub(crate) fn new(request: &TokenRequest, token: String) -> TokenRecord {
        let TokenRequest { audience, expiration_seconds } = request.clone();
        TokenRecord { audience, expiration_seconds, token }
    }

    pub(crate) fn request(&self) -> TokenRequest {
        TokenRequest { audience: self.audience.clone(), expiration_seconds: self.expiration_seconds }
    }
}

impl fmt::Debug for TokensRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token stays out of logs.
        f.debug_struct("TokensRecord").field("tokens", &self.tokens.len()).finish_non_exhaustive()
    }
}

impl Record for TokensRecord {
    const KIND: &'static str = "tokens";
    const VERSION: u16 = 1;
    /// Others are asked for.
    const EXPORTED: bool = false;
}

/// `coracle_pod::History`, whose durable part alone is serialized.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HistoryRecord(pub History);

impl Record for HistoryRecord {
    const KIND: &'static str = "history";
    const VERSION: u16 = 1;
    const EXPORTED: bool = false;
}
