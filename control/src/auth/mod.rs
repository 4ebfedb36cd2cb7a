//! Who asks, and what they may.
//!
//! ```text
//! client certificate (verified by TLS) ─► CN, O…  ┐
//! Authorization: Bearer TOKEN ─► the token file   ├─► Identity ─► authorize(identity, attributes) ─► registry verb
//! neither ─► system:anonymous                     ┘
//! ```
//! Invariants: a credential that is wrong is 401, never anonymous; anonymous gets health and version only; tokens are kept
//! and compared as digests; every write of the registry names who writes.

mod authn;
mod authz;
mod identity;

pub use authn::{Authenticator, TokenFileError};
pub use identity::{Identity, MASTERS};

pub(crate) use authn::Peer;
pub(crate) use authz::{Attributes, authorize};
