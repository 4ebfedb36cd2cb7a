//! What events of `events.k8s.io` must say. Those of the core group that have an `eventTime` are of the same making; the
//! others may be as loose as they ever were.

use crate::object::{self, at, text};
use coracle_api::field::{Errors, Path};
use coracle_api::names::qualified_name;
use serde_json::Value;

/// Of who reports, what was done and why.
const WORD_BYTES_MAX: usize = 128;
const NOTE_BYTES_MAX: usize = 1024;

/// Of both groups; each has its own name for the controller.
pub(super) fn validate_timed(event: &Value, errors: &mut Errors) {
    if at(event, &["eventTime"]).is_null() {
        return;
    }
    let core = text(event, &["apiVersion"]) == "v1";
    let (controller, note) =
        if core { ("reportingComponent", "message") } else { ("reportingController", "note") };
    let path = Path::new(controller);
    // The core group checks the namespace of all of its events.
    let lost = text(event, &["regarding", "namespace"]).is_empty();
    if !core && lost && !matches!(object::namespace(event), "default" | "kube-system") {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, "", "does not match event.namespace");
    }
    let named = text(event, &[controller]);
    if named.is_empty() {
        errors.required(&path, "");
    }
    for why in qualified_name(named) {
        errors.invalid(&path, named, why);
    }
    for key in ["reportingInstance", "action", "reason"] {
        let word = text(event, &[key]);
        if word.is_empty() {
            errors.required(&Path::new(key), "");
        }
        if word.len() > WORD_BYTES_MAX {
            errors.invalid(&Path::new(key), "", format!("can have at most {WORD_BYTES_MAX} characters"));
        }
    }
    if text(event, &[note]).len() > NOTE_BYTES_MAX {
        errors.invalid(&Path::new("message"), "", format!("can have at most {NOTE_BYTES_MAX} characters"));
    }
}

/// Of a new one of `events.k8s.io`: fields that only the core group fills are named as that does.
pub(super) fn validate_new(event: &Value, errors: &mut Errors) {
    if !at(event, &["series"]).is_null() {
        if at(event, &["series", "count"]).as_i64().unwrap_or_default() < 2 {
            errors.invalid(&Path::new("series.count"), "", "should be at least 2");
        }
        if at(event, &["series", "lastObservedTime"]).is_null() {
            errors.required(&Path::new("series.lastObservedTime"), "");
        }
    }
    if at(event, &["eventTime"]).is_null() {
        errors.required(&Path::new("eventTime"), "");
    }
    let kind = text(event, &["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    let source = at(event, &["deprecatedSource"]);
    let count = at(event, &["deprecatedCount"]).as_i64().unwrap_or_default();
    for (key, is_set) in [
        ("firstTimestamp", !at(event, &["deprecatedFirstTimestamp"]).is_null()),
        ("lastTimestamp", !at(event, &["deprecatedLastTimestamp"]).is_null()),
        ("count", count != 0),
        ("source", !text(source, &["component"]).is_empty() || !text(source, &["host"]).is_empty()),
    ] {
        if is_set {
            errors.invalid(&Path::new(key), "", "needs to be unset");
        }
    }
}
