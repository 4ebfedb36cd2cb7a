//! The agent as a client of the Kubernetes API: coracle-control's, or an upstream kube-apiserver's.
//!
//! Everything here goes through [`client`], with the credentials of `DIR/cluster/kubeconfig` or of the file that the
//! configuration names. Without either the board stands alone, and nothing of this module runs. No private endpoint is
//! used, and no request is needed for what runs already to go on running.

pub(crate) mod access;
pub(crate) mod backoff;
pub(crate) mod client;
pub(crate) mod kubeconfig;
pub(crate) mod watch;
