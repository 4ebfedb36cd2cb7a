//! The control plane as its clients meet it: the real binary, over TLS.

mod answers;
mod api;
mod control;
#[path = "../storage/etcd.rs"]
mod etcd;
mod kubectl;
mod rbac;
mod who;
