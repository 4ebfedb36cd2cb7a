//! The control plane as its clients meet it: the real binary, over TLS.

mod answers;
mod api;
mod control;
mod enroll;
#[path = "../storage/etcd.rs"]
mod etcd;
mod kubectl;
mod node;
mod rbac;
mod who;
