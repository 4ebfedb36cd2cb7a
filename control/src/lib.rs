//! The control plane: what serves the Kubernetes API to boards and kubectl.

pub mod storage;
