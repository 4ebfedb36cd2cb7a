//! What both ends of the HTTP share: manifests, quantities, `Status` errors, selectors, patches, tables.
//!
//! Pure: no IO, no clock. Types are the Kubernetes API's own (`k8s-openapi`); objects of any kind are JSON values,
//! and what is known of their fields comes from `schema`.

pub mod apply;
pub mod decode;
pub mod field;
pub mod kubelet;
pub mod manifest;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod percent;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod secret;
pub mod selector;
pub mod spdy;
pub mod status;
pub mod table;
pub mod tunnel;
