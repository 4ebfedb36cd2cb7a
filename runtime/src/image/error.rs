//! What can go wrong with an image, and the kubelet's word for it.

use super::digest::Digest;
use super::unpack::UnpackError;
use coracle_pod::observed::Reason;
use std::io;
use std::path::{Path, PathBuf};

/// An image that cannot be had, kept or freed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("invalid image name {reference:?}: {why}")]
    InvalidReference { reference: String, why: &'static str },
    #[error("image {reference} not found: {registry} has no such repository or tag{also}")]
    NotFound { reference: String, registry: String, also: Also },
    #[error(
        "access to image {reference} denied by {registry} ({message}): the repository does not exist, or needs \
         other credentials (imagePullSecrets or a credential file){also}"
    )]
    Unauthorized { reference: String, registry: String, message: String, also: Also },
    #[error("registry {registry} unavailable for image {reference}: {message}{also}")]
    Unavailable { reference: String, registry: String, message: String, also: Also },
    #[error("registry {registry} refused image {reference}: {message}{also}")]
    Refused { reference: String, registry: String, message: String, also: Also },
    #[error("no matching manifest for {wanted} in image {reference}: it offers {offered}")]
    WrongPlatform { reference: String, wanted: String, offered: String },
    #[error("image {reference} is damaged: {what} should be {expected}, but its content is {found}")]
    DigestMismatch { reference: String, what: String, expected: Digest, found: Digest },
    #[error("image {reference} is not usable: {why}")]
    Malformed { reference: String, why: String },
    #[error("layer {layer} of image {reference} refused: {source}")]
    Layer {
        reference: String,
        layer: Digest,
        #[source]
        source: UnpackError,
    },
    #[error("no space left on the disk of {}: free some, or remove images with `coracle image prune`", .path.display())]
    NoSpace { path: PathBuf },
    #[error("{}: not an image archive: {why}", .path.display())]
    NotAnArchive { path: PathBuf, why: String },
    #[error("credential file {}: {why}", .path.display())]
    Credentials { path: PathBuf, why: String },
    #[error("registry setting {setting:?}: {why}")]
    Setting { setting: String, why: &'static str },
    #[error(
        "no CA certificates on this machine, so https registries cannot be trusted: install ca-certificates ({why})"
    )]
    NoCertificates { why: String },
    #[error("image store {} is in use by another process", .0.display())]
    Locked(PathBuf),
    #[error("image {reference} is in use by a pod: delete the pod first")]
    InUse { reference: String },
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What mirrors answered before the last registry did; empty when there was none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Also(pub Vec<String>);

impl std::fmt::Display for Also {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "; mirror {line}"))
    }
}

impl ImageError {
    /// The reason of the waiting container (kubelet, `pkg/kubelet/images`).
    pub fn reason(&self) -> Reason {
        match self {
            ImageError::InvalidReference { .. } => Reason::InvalidImageName,
            ImageError::Unavailable { .. } => Reason::RegistryUnavailable,
            _ => Reason::ErrImagePull,
        }
    }

    /// An error of the disk at `path`; a full disk has its own clear line.
    pub(super) fn io(path: &Path, source: io::Error) -> ImageError {
        if is_full(&source) {
            return ImageError::NoSpace { path: path.into() };
        }
        ImageError::Io { path: path.into(), source }
    }

    /// An error met while unpacking `layer` below `path`.
    pub(super) fn layer(reference: &str, layer: Digest, path: &Path, source: UnpackError) -> ImageError {
        if source.is_full() {
            return ImageError::NoSpace { path: path.into() };
        }
        ImageError::Layer { reference: reference.into(), layer, source }
    }
}

/// Whether the disk, or the quota on it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
