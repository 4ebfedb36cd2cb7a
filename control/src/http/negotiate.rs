//! What the client sends and what it can read: media types, both ways.
//!
//! Protobuf is read and not written: whoever asks for it first gets what it accepts next, which is JSON.

use crate::object;
use crate::registry::Resource;
use coracle_api::decode::{self, Document, SyntaxError};
use coracle_api::patch::PatchType;
use coracle_api::protobuf;
use coracle_api::status::StatusError;
use coracle_api::table::{self, IncludeObject, partial};
use serde_json::{Value, json};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Media ranges of one header that are looked at.
const RANGES_MAX: usize = 32;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Yaml,
}

/// What of an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Whole,
    /// `PartialObjectMetadata`, or a list of it.
    MetadataOnly,
    /// `Table`: what kubectl prints.
    Table,
    /// `APIGroupDiscoveryList`.
    Discovery,
}

/// What the client is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    pub format: Format,
    pub shape: Shape,
}

impl Accepted {
    pub const JSON: Accepted = Accepted { format: Format::Json, shape: Shape::Whole };

    pub fn content_type(self) -> &'static str {
        match (self.format, self.shape) {
            (Format::Json, Shape::Discovery) => {
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            }
            (Format::Json, _) => JSON,
            (Format::Yaml, _) => YAML,
        }
    }
}

/// The first of the client's choices, by weight and then by order, that can be served.
///
/// # Errors
/// 406.
pub(super) fn accept(header: &str, discovery: bool) -> Result<Accepted, StatusError> {
    if header.trim().is_empty() {
        return Ok(Accepted::JSON);
    }
    let mut ranges: Vec<(u32, Range<'_>)> = header.split(',').take(RANGES_MAX).map(range).collect();
    // Stable: equal weights stay in the client's order.
    ranges.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    ranges.iter().find_map(|(weight, range)| range.served(discovery).filter(|_| *weight > 0)).ok_or_else(
        || {
            let watch = [JSON, PROTOBUF].map(|media_type| format!("{media_type};stream=watch"));
            StatusError::not_acceptable(&[JSON, YAML, PROTOBUF, &watch[0], &watch[1]])
        },
    )
}

struct Range<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

/// A media range with its weight in thousandths.
fn range(text: &str) -> (u32, Range<'_>) {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let mut weight = 1000;
    let mut parameters = Vec::new();
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "q" => weight = thousandths(value),
            _ => parameters.push((key, value)),
        }
    }
    (weight, Range { media_type, parameters })
}

/// RFC 9110: `1`, `0.5`; anything else is nothing.
fn thousandths(text: &str) -> u32 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction: String = fraction.chars().chain("000".chars()).take(3).collect();
    match (whole.parse::<u32>(), fraction.parse::<u32>()) {
        (Ok(whole), Ok(fraction)) => (whole * 1000 + fraction).min(1000),
        _ => 0,
    }
}

impl Range<'_> {
    fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    fn served(&self, discovery: bool) -> Option<Accepted> {
        let format = match self.media_type {
            "*/*" | "application/*" | JSON => Format::Json,
            YAML => Format::Yaml,
            _ => return None,
        };
        let of = (self.parameter("as"), self.parameter("g"), self.parameter("v"));
        let shape = match of {
            ("", _, _) => Shape::Whole,
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") if discovery => Shape::Discovery,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") if !discovery => {
                Shape::MetadataOnly
            }
            ("Table", "meta.k8s.io", "v1") if !discovery => Shape::Table,
            _ => return None,
        };
        Some(Accepted { format, shape })
    }
}

/// How objects are shown to this client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub shape: Shape,
    /// Whose objects they are.
    pub resource: &'static Resource,
    /// What of them stands in a Table.
    pub include: IncludeObject,
    /// Whether a Table tells its columns: a watch tells them once.
    pub headed: bool,
}

impl Shown {
    /// The object, or the list, in the shape that was asked for.
    pub fn of(self, object: Value) -> Value {
        let items = object.get("items").and_then(Value::as_array);
        let metadata = object::at(&object, &["metadata"]);
        match (self.shape, items) {
            _ if object::text(&object, &["kind"]) == "Status" => object,
            (Shape::Whole | Shape::Discovery, _) => object,
            (Shape::MetadataOnly, None) => partial(&object),
            (Shape::MetadataOnly, Some(items)) => json!({
                "apiVersion": "meta.k8s.io/v1",
                "kind": "PartialObjectMetadataList",
                "metadata": metadata,
                "items": items.iter().map(partial).collect::<Vec<_>>(),
            }),
            (Shape::Table, items) => {
                let group_version = self.resource.api_version();
                let of = table::Resource { group_version: &group_version, name: self.resource.plural };
                let own = json!({"resourceVersion": object::at(metadata, &["resourceVersion"])});
                let (metadata, rows) = match items {
                    Some(items) => (metadata, items.as_slice()),
                    None => (&own, std::slice::from_ref(&object)),
                };
                table::table(of, metadata, rows, self.include, self.headed, jiff::Timestamp::now())
            }
        }
    }
}

/// The text of an answer.
pub(super) fn written(object: &Value, format: Format) -> Result<String, StatusError> {
    match format {
        Format::Json => Ok(format!("{object}\n")),
        Format::Yaml => serde_saphyr::to_string(object).map_err(StatusError::internal),
    }
}

/// The media type of a body, without parameters.
pub(super) fn media_type(header: &str) -> &str {
    header.split(';').next().unwrap_or_default().trim()
}

/// A body as it was sent; `kind` is what it should be, for the error.
///
/// # Errors
/// 400 for what is none, 413, 415 for a type that is not read.
pub(super) fn read(media_type: &str, body: &[u8], kind: &str) -> Result<Document, StatusError> {
    let read = match media_type {
        "" | JSON | "*/*" => decode::json(body),
        YAML | "application/x-yaml" | "text/yaml" => decode::yaml(body),
        PROTOBUF => {
            let value = protobuf::decode(body);
            let value = value.map_err(|error| StatusError::unrecognized(kind, error, body))?;
            return Ok(Document { value, duplicates: Vec::new() });
        }
        _ => return Err(StatusError::unsupported_media_type(&[JSON, YAML, PROTOBUF])),
    };
    read.map_err(|error| unreadable(kind, &error, body))
}

/// A patch as it was sent: JSON, and YAML for an apply.
///
/// # Errors
/// 400, 413.
pub(super) fn read_patch(how: PatchType, body: &[u8], kind: &str) -> Result<Document, StatusError> {
    let read = if how == PatchType::Apply { decode::yaml(body) } else { decode::json(body) };
    read.map_err(|error| match error {
        SyntaxError::TooLarge => StatusError::too_large(error),
        error if how == PatchType::Apply => unreadable(kind, &error, body),
        error => StatusError::bad_request(error.to_string()),
    })
}

fn unreadable(kind: &str, error: &SyntaxError, body: &[u8]) -> StatusError {
    match error {
        SyntaxError::TooLarge => StatusError::too_large(error),
        error => StatusError::unrecognized(
            kind,
            format!("couldn't get version/kind; json parse error: {error}"),
            body,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_what_is_accepted_is_served() {
        let check = |header: &str, expected: Option<(Format, Shape)>| {
            let found = accept(header, false).ok().map(|accepted| (accepted.format, accepted.shape));
            assert_eq!(found, expected, "{header}");
        };
        let json = Some((Format::Json, Shape::Whole));
        check("", json);
        check("application/json, */*", json);
        check("application/vnd.kubernetes.protobuf,application/json", json);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Format::Json, Shape::Table)),
        );
        check("application/json;as=Table;v=v2;g=meta.k8s.io,application/json", json);
        check("application/json;q=0.5, application/yaml", Some((Format::Yaml, Shape::Whole)));
        check(
            "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            Some((Format::Json, Shape::MetadataOnly)),
        );
        check("application/xml", None);
        check("application/json;q=0", None);
        let discovery =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(accept(discovery, true).expect("served").shape, Shape::Discovery);
    }
}
