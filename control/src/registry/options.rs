//! What a request's query and `DeleteOptions` say, read strictly and worded as upstream.

use super::selector::Selector;
use super::{GRACE_SECONDS_MAX, Resource};
use crate::object;
use crate::storage::Revision;
use coracle_api::decode::FieldValidation;
use coracle_api::field::{Errors, Path, Problem, quoted};
use coracle_api::status::{GroupKind, StatusError};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a watch lasts when nobody says; upstream takes 30 to 60 minutes.
const WATCH_DEFAULT: Duration = Duration::from_secs(45 * 60);
/// Of a field manager's name, as upstream.
const MANAGER_BYTES_MAX: usize = 128;
const WATCH_MAX: Duration = Duration::from_secs(24 * 3600);

/// The query of a request, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`.
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter; empty when there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `true` and `1`, as Go reads booleans in queries: there but empty is true as well.
    pub fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .is_some_and(|(_, value)| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A number, as Go reads one.
    ///
    /// # Errors
    /// 400.
    pub fn number(&self, name: &str) -> Result<Option<i64>, StatusError> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                StatusError::bad_request(format!(
                    "strconv.ParseInt: parsing {}: invalid syntax",
                    quoted(text)
                ))
            }),
        }
    }
}

/// Of a create, an update or a patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Everything but the writing.
    pub dry_run: bool,
    /// Of unknown fields.
    pub validation: FieldValidation,
    /// Who owns the fields that it writes.
    pub manager: String,
    /// An apply takes what others own.
    pub force: bool,
}

impl WriteOptions {
    /// Reads the query; `kind` is that of the options in errors: `CreateOptions`. Without a `fieldManager` the first
    /// word of the user agent is the manager, except for an apply (`applies`), which must name one.
    ///
    /// # Errors
    /// 422 for values that do not exist.
    pub fn parse(query: &Query, kind: &str, agent: &str, applies: bool) -> Result<WriteOptions, StatusError> {
        let mut errors = Errors::default();
        let dry_run = dry_run(query.get("dryRun"), &mut errors);
        let asked = query.get("fieldValidation");
        let validation = FieldValidation::parse(asked).unwrap_or_else(|| {
            errors.not_supported(&Path::new("fieldValidation"), asked, &["", "Ignore", "Strict", "Warn"]);
            FieldValidation::Strict
        });
        let (path, named) = (Path::new("fieldManager"), query.get("fieldManager"));
        if named.len() > MANAGER_BYTES_MAX {
            errors.push(&path, Problem::TooLong(MANAGER_BYTES_MAX));
        } else if named.chars().any(char::is_control) {
            errors.invalid(&path, named, "should only contain printable characters");
        }
        let force = query.flag("force");
        if applies && named.is_empty() {
            errors.required(&path, "is required for apply patch");
        } else if !applies && !query.get("force").is_empty() {
            errors.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
        }
        finish(errors, kind)?;
        let agent = agent.split('/').next().unwrap_or_default();
        let manager =
            if named.is_empty() { agent.chars().take(MANAGER_BYTES_MAX).collect() } else { named.into() };
        Ok(WriteOptions { dry_run, validation, manager, force })
    }
}

fn dry_run(text: &str, errors: &mut Errors) -> bool {
    match text {
        "" => false,
        "All" => true,
        other => {
            errors.not_supported(&Path::new("dryRun"), json!([other]), &["All"]);
            true
        }
    }
}

fn finish(errors: Errors, kind: &str) -> Result<(), StatusError> {
    let group_kind = GroupKind { group: "meta.k8s.io", kind };
    errors.into_result().map_err(|errors| StatusError::invalid(group_kind, "", &errors))
}

/// Which of the versions a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The latest.
    Now,
    /// This one or a later one.
    NotOlderThan(Revision),
    /// This one.
    Exact(Revision),
}

/// Of a list.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// Which objects.
    pub selector: Selector,
    /// At most so many; 0 is all.
    pub limit: usize,
    /// Where the last list ended.
    pub after: Option<Continue>,
    /// As of when.
    pub at: At,
}

/// What a continue token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continue {
    /// Of the first page.
    pub revision: Revision,
    /// Behind the prefix.
    pub key: String,
}

impl Continue {
    /// The token, opaque to clients.
    pub fn token(&self) -> String {
        use base64::Engine;
        let token = serde_json::json!({"v": "meta.k8s.io/v1", "rv": self.revision.0, "start": self.key});
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn parse(token: &str) -> Option<Continue> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).ok()?;
        let token: Value = serde_json::from_slice(&bytes).ok()?;
        let revision = token.get("rv")?.as_u64()?;
        Some(Continue { revision: Revision(revision), key: object::text(&token, &["start"]).to_string() })
    }
}

fn revision(text: &str) -> Result<Option<Revision>, StatusError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(|number| Some(Revision(number))).map_err(|_| {
            let mut errors = Errors::default();
            errors.invalid(
                &Path::new("resourceVersion"),
                text,
                format!("strconv.ParseUint: parsing {}: invalid syntax", quoted(text)),
            );
            StatusError::invalid(GroupKind { group: "meta.k8s.io", kind: "ListOptions" }, "", &errors)
        }),
    }
}

impl ListOptions {
    /// Reads the query of a list.
    ///
    /// # Errors
    /// 400 and 422.
    pub fn parse(resource: &Resource, query: &Query) -> Result<ListOptions, StatusError> {
        let limit = query.number("limit")?.unwrap_or_default();
        let selector = Selector::parse(resource, query.get("labelSelector"), query.get("fieldSelector"))?;
        let (version, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
        let after = match query.get("continue") {
            "" => None,
            token => {
                if !matches!(version, "" | "0") {
                    return Err(StatusError::bad_request(
                        "specifying resource version is not allowed when using continue",
                    ));
                }
                let token = Continue::parse(token).ok_or_else(|| {
                    StatusError::bad_request("continue key is not valid: it is not of this server")
                })?;
                Some(token)
            }
        };
        let asked = revision(version)?;
        let mut errors = Errors::default();
        let path = Path::new("resourceVersionMatch");
        let at = match (matching, asked) {
            ("", None) => At::Now,
            ("", Some(Revision(0))) | ("NotOlderThan", Some(Revision(0))) => At::Now,
            ("", Some(revision)) if limit > 0 => At::Exact(revision),
            ("" | "NotOlderThan", Some(revision)) => At::NotOlderThan(revision),
            ("Exact", Some(Revision(0))) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                errors.forbidden(&path, why);
                At::Now
            }
            ("Exact", Some(revision)) => At::Exact(revision),
            (_, None) => {
                errors
                    .forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided");
                At::Now
            }
            (other, Some(_)) => {
                errors.not_supported(&path, other, &["Exact", "NotOlderThan", ""]);
                At::Now
            }
        };
        finish(errors, "ListOptions")?;
        Ok(ListOptions { selector, limit: usize::try_from(limit).unwrap_or_default(), after, at })
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is there, as additions.
    Now,
    /// With what is there, and a bookmark that says where that ends.
    InitialEvents,
    /// With the next change.
    Next,
    /// Behind this version.
    After(Revision),
}

/// Of a watch.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// Which objects.
    pub selector: Selector,
    /// Where.
    pub start: Start,
    /// Whether the client wants to know how far it is.
    pub bookmarks: bool,
    /// When it ends by itself.
    pub timeout: Duration,
}

impl WatchOptions {
    /// Reads the query of a watch.
    ///
    /// # Errors
    /// 400 and 422.
    pub fn parse(resource: &Resource, query: &Query) -> Result<WatchOptions, StatusError> {
        let selector = Selector::parse(resource, query.get("labelSelector"), query.get("fieldSelector"))?;
        let seconds = query.number("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
        let timeout = seconds.filter(|seconds| *seconds > 0).map_or(WATCH_DEFAULT, Duration::from_secs);
        let asked = revision(query.get("resourceVersion"))?;
        let matching = query.get("resourceVersionMatch");
        let mut errors = Errors::default();
        let initial = match query.get("sendInitialEvents") {
            "" => None,
            _ => Some(query.flag("sendInitialEvents")),
        };
        match (initial, matching) {
            (None, "") | (Some(_), "NotOlderThan") => {}
            (None, _) => errors.forbidden(
                &Path::new("resourceVersionMatch"),
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            (Some(_), "") => errors.forbidden(
                &Path::new("resourceVersionMatch"),
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (Some(_), other) => {
                errors.not_supported(&Path::new("resourceVersionMatch"), other, &["NotOlderThan"]);
            }
        }
        finish(errors, "ListOptions")?;
        let start = match (initial, asked) {
            (Some(true), _) => Start::InitialEvents,
            (Some(false), None | Some(Revision(0))) => Start::Next,
            (None, None | Some(Revision(0))) => Start::Now,
            (_, Some(revision)) => Start::After(revision),
        };
        Ok(WatchOptions {
            selector,
            start,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout: timeout.min(WATCH_MAX),
        })
    }
}

/// What becomes of the objects that an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They follow when it is gone.
    Background,
    /// It stays until they are gone.
    Foreground,
    /// They stay.
    Orphan,
}

/// Of a delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds that a pod has.
    pub grace: Option<i64>,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// … and this version.
    pub resource_version: Option<String>,
    /// Of what it owns; `None` when nothing is said.
    pub propagation: Option<Propagation>,
    /// Everything but the deleting.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the query, and the body that goes before it.
    ///
    /// # Errors
    /// 400 and 422.
    pub fn parse(query: &Query, body: &Value) -> Result<DeleteOptions, StatusError> {
        let mut errors = Errors::default();
        let grace = match object::at(body, &["gracePeriodSeconds"]).as_i64() {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        };
        let said = |key: &str| match object::text(body, &[key]) {
            "" => query.get(key).to_string(),
            said => said.to_string(),
        };
        let orphan = object::at(body, &["orphanDependents"]).as_bool();
        let orphan =
            orphan.or((!query.get("orphanDependents").is_empty()).then(|| query.flag("orphanDependents")));
        let propagation = match (said("propagationPolicy").as_str(), orphan) {
            ("", None) => None,
            ("", Some(true)) | ("Orphan", _) => Some(Propagation::Orphan),
            ("", Some(false)) | ("Background", _) => Some(Propagation::Background),
            ("Foreground", _) => Some(Propagation::Foreground),
            (other, _) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                errors.not_supported(&Path::new("propagationPolicy"), other, &known);
                None
            }
        };
        let dry = match object::items(body, &["dryRun"]) {
            [] => query.get("dryRun"),
            [first, ..] => first.as_str().unwrap_or_default(),
        };
        let dry_run = dry_run(dry, &mut errors);
        finish(errors, "DeleteOptions")?;
        let precondition = |key: &str| {
            let text = object::text(body, &["preconditions", key]);
            (!text.is_empty()).then(|| text.to_string())
        };
        Ok(DeleteOptions {
            // Negative is upstream's word for "now, but let it finish": one second.
            grace: grace.map(|seconds| if seconds < 0 { 1 } else { seconds.min(GRACE_SECONDS_MAX) }),
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            propagation,
            dry_run,
        })
    }
}
