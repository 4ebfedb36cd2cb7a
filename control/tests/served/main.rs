//! The control plane as its clients meet it: the real binary, over TLS.

mod accounts;
mod answers;
mod api;
mod attacks;
mod autoscale;
mod boards;
mod changes;
mod control;
mod discovery;
mod dry;
mod endpoints;
mod enroll;
#[path = "../storage/etcd.rs"]
mod etcd;
mod events;
mod eviction;
mod jobs;
mod kinds;
mod kinds_table;
mod kubectl;
mod leader;
mod lifecycle;
mod node;
mod ownership;
mod quota;
mod rbac;
mod reviews;
mod rollout;
mod scheduling;
mod sets;
mod shapes;
mod streams;
mod tls;
mod who;
