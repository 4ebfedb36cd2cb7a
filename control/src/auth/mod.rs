//! Who asks, and what they may.
//!
//! ```text
//! client certificate (verified by TLS) ─► CN, O…  ┐
//! Authorization: Bearer TOKEN ─► the token file   ├─► Identity ─► act_as ─► authorize(attributes) ─► registry verb
//! neither ─► system:anonymous                     ┘                              ▲                     └─► admission
//!                              roles, bindings, pods, volumes ─► feed ─► Authorizer (in memory)
//! ```
//! Invariants: a credential that is wrong is 401, never anonymous; anonymous gets health and version only; tokens are kept
//! and compared as digests; every write of the registry names who writes; nobody gives what they do not have.

mod accounts;
mod aggregate;
mod attributes;
mod authn;
mod authz;
mod feed;
mod identity;
mod impersonate;
pub(crate) mod node;
mod policy;
mod roles;
mod rules;
pub mod tokens;

pub use attributes::Attributes;
pub use authn::{Authenticator, TokenFileError};
pub use authz::{Authorizer, Decision};
pub use feed::Feed;
pub use identity::{Identity, MASTERS};
pub use roles::Kind as RoleKind;
pub use rules::PolicyRule;

pub(crate) use authn::Peer;
pub(crate) use impersonate::act_as;

use crate::registry::Registry;
use coracle_api::status::StatusError;

/// Makes the roles that every cluster has, and follows roles and bindings until the answer is dropped.
///
/// # Errors
/// The storage's.
pub async fn start(registry: &Registry) -> Result<Feed, StatusError> {
    policy::reconcile(registry).await?;
    aggregate::settle(registry).await?;
    feed::follow(registry).await
}
