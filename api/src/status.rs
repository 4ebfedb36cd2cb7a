//! Errors of the API: `v1.Status` with upstream's reasons, codes, messages and details.
//!
//! Follows `k8s.io/apimachinery/pkg/api/errors`: clients branch on `reason` and `code`, users read the message, so
//! both are kept to the letter. What is not here: how an error is put on the wire (content types, `Retry-After`).

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status, StatusCause, StatusDetails};

use crate::field::{Errors, quoted};

/// What a stale update is refused with.
pub const STALE: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// `metav1.StatusReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

impl Reason {
    /// As in `Status.reason`; the unknown is the empty string.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Unknown => "",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Invalid => "Invalid",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::Timeout => "Timeout",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::BadRequest => "BadRequest",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::InternalError => "InternalError",
            Reason::Expired => "Expired",
            Reason::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    /// The reason of this name; what nobody knows is [`Reason::Unknown`].
    pub fn of(name: &str) -> Reason {
        use Reason::*;
        const ALL: &[Reason] = &[
            Unauthorized,
            Forbidden,
            NotFound,
            AlreadyExists,
            Conflict,
            Gone,
            Invalid,
            ServerTimeout,
            Timeout,
            TooManyRequests,
            BadRequest,
            MethodNotAllowed,
            NotAcceptable,
            RequestEntityTooLarge,
            UnsupportedMediaType,
            InternalError,
            Expired,
            ServiceUnavailable,
        ];
        ALL.iter().copied().find(|reason| reason.name() == name).unwrap_or(Unknown)
    }

    /// The HTTP status that goes with it.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::Unknown | Reason::ServerTimeout | Reason::InternalError => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }
}

/// A resource of a group: `deployments.apps`, `pods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupResource<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    /// Plural, lower case.
    pub resource: &'a str,
}

/// A kind of a group: `Deployment.apps`, `Pod`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupKind<'a> {
    /// Empty for the core group.
    pub group: &'a str,
    pub kind: &'a str,
}

impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        qualified(f, self.resource, self.group)
    }
}

impl fmt::Display for GroupKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        qualified(f, self.kind, self.group)
    }
}

fn qualified(f: &mut fmt::Formatter<'_>, name: &str, group: &str) -> fmt::Result {
    if group.is_empty() { f.write_str(name) } else { write!(f, "{name}.{group}") }
}

/// What a request was refused with. Its text is the `message`; [`Status`] is made of it by `From`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct StatusError {
    pub reason: Reason,
    /// HTTP status.
    pub code: u16,
    pub message: String,
    /// `Some(empty)` is written as `{}`, as upstream does for errors made from a bare HTTP status.
    pub details: Option<Box<StatusDetails>>,
}

impl StatusError {
    fn new(reason: Reason, message: String) -> StatusError {
        StatusError { reason, code: reason.code(), message, details: None }
    }

    fn about(reason: Reason, of: GroupResource<'_>, name: &str, message: String) -> StatusError {
        StatusError::new(reason, message).with(StatusDetails {
            group: filled(of.group),
            kind: filled(of.resource),
            name: filled(name),
            ..StatusDetails::default()
        })
    }

    fn with(mut self, details: StatusDetails) -> StatusError {
        self.details = Some(Box::new(details));
        self
    }

    fn retry_after(mut self, seconds: i32) -> StatusError {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds).filter(|s| *s != 0);
        self
    }

    /// 404: `pods "x" not found`.
    pub fn not_found(of: GroupResource<'_>, name: &str) -> StatusError {
        StatusError::about(Reason::NotFound, of, name, format!("{of} {} not found", quoted(name)))
    }

    /// 409: `pods "x" already exists`.
    pub fn already_exists(of: GroupResource<'_>, name: &str) -> StatusError {
        StatusError::about(Reason::AlreadyExists, of, name, format!("{of} {} already exists", quoted(name)))
    }

    /// 409: no free name was found from `generateName`.
    pub fn generate_name_conflict(of: GroupResource<'_>, name: &str, retry_seconds: i32) -> StatusError {
        let message = format!(
            "{of} {} already exists, the server was not able to generate a unique name for the object",
            quoted(name)
        );
        StatusError::about(Reason::AlreadyExists, of, name, message).retry_after(retry_seconds)
    }

    /// 409: the update's `resourceVersion` is not the stored one.
    pub fn stale(of: GroupResource<'_>, name: &str) -> StatusError {
        StatusError::conflict(of, name, STALE)
    }

    /// 409: `Operation cannot be fulfilled on pods "x": why`.
    pub fn conflict(of: GroupResource<'_>, name: &str, why: impl fmt::Display) -> StatusError {
        let message = format!("Operation cannot be fulfilled on {of} {}: {why}", quoted(name));
        StatusError::about(Reason::Conflict, of, name, message)
    }

    /// 409 of a server-side apply: one cause a field.
    pub fn apply_conflict(causes: Vec<StatusCause>, message: String) -> StatusError {
        StatusError::new(Reason::Conflict, message)
            .with(StatusDetails { causes: Some(causes), ..StatusDetails::default() })
    }

    /// 422: `Pod "x" is invalid: …`, one cause a field.
    pub fn invalid(of: GroupKind<'_>, name: &str, errors: &Errors) -> StatusError {
        let causes: Vec<_> = errors
            .list()
            .iter()
            .map(|e| StatusCause {
                reason: Some(e.problem.reason().to_owned()),
                message: Some(e.problem.to_string()),
                field: Some(e.path.to_string()),
            })
            .collect();
        let mut message = format!("{of} {} is invalid", quoted(name));
        if !causes.is_empty() {
            message += &format!(": {errors}");
        }
        StatusError::new(Reason::Invalid, message).with(StatusDetails {
            group: filled(of.group),
            kind: filled(of.kind),
            name: filled(name),
            causes: Some(causes).filter(|c| !c.is_empty()),
            ..StatusDetails::default()
        })
    }

    /// 400, with no details.
    pub fn bad_request(message: impl Into<String>) -> StatusError {
        StatusError::new(Reason::BadRequest, message.into())
    }

    /// 400: a body that cannot become the kind of the resource: `Pod in version "v1" cannot be handled as a Pod: why`.
    pub fn unhandled(kind: &str, version: &str, wanted: &str, why: impl fmt::Display) -> StatusError {
        let version = quoted(version);
        StatusError::bad_request(format!(
            "{kind} in version {version} cannot be handled as a {wanted}: {why}"
        ))
    }

    /// 400: a body that says nothing: `the object provided is unrecognized (must be of type Pod): why (bytes)`.
    /// Upstream shows the first 30 bytes, in hexadecimal unless they look like JSON.
    pub fn unrecognized(wanted: &str, why: impl fmt::Display, body: &[u8]) -> StatusError {
        let head = &body[..body.len().min(30)];
        let more = if body.len() > head.len() { " ..." } else { "" };
        let shown = match head.first() {
            None => "<empty>".to_owned(),
            Some(b'{') => String::from_utf8_lossy(head).into_owned(),
            Some(_) => head.iter().map(|b| format!("{b:02x}")).collect(),
        };
        StatusError::bad_request(format!(
            "the object provided is unrecognized (must be of type {wanted}): {why} ({shown}{more})"
        ))
    }

    /// 401.
    pub fn unauthorized() -> StatusError {
        StatusError::new(Reason::Unauthorized, "Unauthorized".to_owned())
    }

    /// 403: `pods "x" is forbidden: why`; without a name or a resource those words are left out.
    pub fn forbidden(of: GroupResource<'_>, name: &str, why: impl fmt::Display) -> StatusError {
        let message = match (of.resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{of} is forbidden: {why}"),
            _ => format!("{of} {} is forbidden: {why}", quoted(name)),
        };
        StatusError::about(Reason::Forbidden, of, name, message)
    }

    /// 405: the resource has no such verb.
    pub fn method_not_supported(of: GroupResource<'_>, verb: &str) -> StatusError {
        let message = format!("{verb} is not supported on resources of kind {}", quoted(&of.to_string()));
        StatusError::about(Reason::MethodNotAllowed, of, "", message)
    }

    /// 406: `available` are the media types that the server can answer with.
    pub fn not_acceptable(available: &[&str]) -> StatusError {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", available.join(", "));
        StatusError::generic(406, &message)
    }

    /// 415 for a body of a type that the server does not read; `accepted` are those that it does.
    pub fn unsupported_media_type(accepted: &[&str]) -> StatusError {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        StatusError::new(Reason::UnsupportedMediaType, message)
    }

    /// 410: a continue token or a version from before the last compaction.
    pub fn expired(message: impl Into<String>) -> StatusError {
        StatusError::new(Reason::Expired, message.into())
    }

    /// 410 of a watch that starts before the last compaction.
    pub fn gone(message: impl Into<String>) -> StatusError {
        StatusError::new(Reason::Gone, message.into())
    }

    /// 413.
    pub fn too_large(why: impl fmt::Display) -> StatusError {
        StatusError::new(Reason::RequestEntityTooLarge, format!("Request entity too large: {why}"))
    }

    /// 429. Eviction answers with it when a disruption budget forbids.
    pub fn too_many_requests(message: impl Into<String>, retry_seconds: i32) -> StatusError {
        StatusError::new(Reason::TooManyRequests, message.into()).retry_after(retry_seconds)
    }

    /// The same with a cause, `details.causes`.
    #[must_use]
    pub fn because(mut self, reason: &str, message: impl Into<String>) -> StatusError {
        let cause = StatusCause { reason: Some(reason.into()), message: Some(message.into()), field: None };
        let details = self.details.get_or_insert_default();
        details.causes.get_or_insert_default().push(cause);
        self
    }

    /// 500: `Internal error occurred: why`.
    pub fn internal(why: impl fmt::Display) -> StatusError {
        let cause = StatusCause { message: Some(why.to_string()), ..StatusCause::default() };
        StatusError::new(Reason::InternalError, format!("Internal error occurred: {why}"))
            .with(StatusDetails { causes: Some(vec![cause]), ..StatusDetails::default() })
    }

    /// 500: try the operation again.
    pub fn server_timeout(of: GroupResource<'_>, operation: &str, retry_seconds: i32) -> StatusError {
        let message = format!(
            "The {operation} operation against {of} could not be completed at this time, please try again."
        );
        StatusError::about(Reason::ServerTimeout, of, operation, message).retry_after(retry_seconds)
    }

    /// 503.
    pub fn service_unavailable(message: impl Into<String>) -> StatusError {
        StatusError::new(Reason::ServiceUnavailable, message.into())
    }

    /// 504: what was asked may still happen.
    pub fn timeout(message: impl fmt::Display, retry_seconds: i32) -> StatusError {
        StatusError::new(Reason::Timeout, format!("Timeout: {message}")).retry_after(retry_seconds)
    }

    /// What upstream makes of a bare HTTP status: an unknown path, a method that a path does not have, a patch whose
    /// test failed (422). `message` is used where the status has no sentence of its own.
    pub fn generic(code: u16, message: &str) -> StatusError {
        let (reason, message) = match code {
            400 => (Reason::BadRequest, "the server rejected our request for an unknown reason"),
            401 => (Reason::Unauthorized, "the server has asked for the client to provide credentials"),
            403 => (Reason::Forbidden, message),
            404 => (Reason::NotFound, "the server could not find the requested resource"),
            405 => {
                (Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
            }
            406 => (Reason::NotAcceptable, message),
            409 => (Reason::Conflict, "the server reported a conflict"),
            415 => (Reason::UnsupportedMediaType, message),
            422 => (Reason::Invalid, "the server rejected our request due to an error in our request"),
            429 => (
                Reason::TooManyRequests,
                "the server has received too many requests and has asked us to try again later",
            ),
            503 => (Reason::ServiceUnavailable, "the server is currently unable to handle the request"),
            504 => (
                Reason::Timeout,
                "the server was unable to return a response in the time allotted, but may still be processing the request",
            ),
            500.. => (Reason::InternalError, message),
            _ => (Reason::Unknown, message),
        };
        let message = match reason {
            Reason::InternalError => {
                format!(
                    "an error on the server ({}) has prevented the request from succeeding",
                    quoted(message)
                )
            }
            Reason::Unknown => format!(
                "the server responded with the status code {code} but did not return more information"
            ),
            _ => message.to_owned(),
        };
        StatusError { reason, code, message, details: Some(Box::default()) }
    }

    /// 415 of a patch: the resource has no patch of that type.
    pub fn unsupported_patch_type() -> StatusError {
        StatusError::generic(415, "415: Unsupported Media Type")
    }
}

impl StatusError {
    /// What a server answered with, as its client reads it: the body's words where it is a `Status`, else those that
    /// belong to the HTTP status.
    pub fn answered(code: u16, body: &[u8]) -> StatusError {
        let status =
            serde_json::from_slice::<Status>(body).ok().filter(|s| s.status.as_deref() == Some("Failure"));
        match status {
            Some(status) => StatusError::from(status),
            None => StatusError::generic(code, &String::from_utf8_lossy(&body[..body.len().min(200)])),
        }
    }
}

impl From<Status> for StatusError {
    fn from(status: Status) -> StatusError {
        let reason = Reason::of(status.reason.as_deref().unwrap_or_default());
        StatusError {
            reason,
            code: status.code.and_then(|code| u16::try_from(code).ok()).unwrap_or(reason.code()),
            message: status.message.unwrap_or_default(),
            details: status.details.map(Box::new),
        }
    }
}

impl From<StatusError> for Status {
    fn from(error: StatusError) -> Status {
        Status {
            code: Some(error.code.into()),
            details: error.details.map(|d| *d),
            message: filled(&error.message),
            metadata: ListMeta::default(),
            reason: filled(error.reason.name()),
            status: Some("Failure".to_owned()),
        }
    }
}

/// Who wants what: what an authorizer's refusal is worded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<'a> {
    /// On an object or a collection. Empty strings for what does not apply.
    Resource { verb: &'a str, of: GroupResource<'a>, subresource: &'a str, namespace: &'a str },
    /// On a path that is no resource.
    Path { verb: &'a str, path: &'a str },
}

/// `User "x" cannot list resource "pods" in API group "" in the namespace "default"`, and the authorizer's reason.
pub fn refusal(user: &str, attempt: &Attempt<'_>, reason: &str) -> String {
    let user = quoted(user);
    let mut text = match attempt {
        Attempt::Path { verb, path } => format!("User {user} cannot {verb} path {}", quoted(path)),
        Attempt::Resource { verb, of, subresource, namespace } => {
            let resource = match *subresource {
                "" => of.resource.to_owned(),
                sub => format!("{}/{sub}", of.resource),
            };
            let place = match *namespace {
                "" => "at the cluster scope".to_owned(),
                ns => format!("in the namespace {}", quoted(ns)),
            };
            let (resource, group) = (quoted(&resource), quoted(of.group));
            format!("User {user} cannot {verb} resource {resource} in API group {group} {place}")
        }
    };
    if !reason.is_empty() {
        text += &format!(": {reason}");
    }
    text
}

fn filled(text: &str) -> Option<String> {
    if text.is_empty() { None } else { Some(text.to_owned()) }
}

#[cfg(test)]
#[path = "status_test.rs"]
mod tests;
