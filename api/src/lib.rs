//! What both ends of the HTTP share: manifests, quantities, `Status` errors, stream channels.
//!
//! Pure: no IO, no clock. Types are the Kubernetes API's own (`k8s-openapi`).

pub mod manifest;
pub mod quantity;
pub mod secret;
