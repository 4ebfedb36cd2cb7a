//! `GET pods/NAME/log`.

use super::{Asked, Response, kubelet, locate};
use crate::http::body;
use crate::registry::options::Query;
use coracle_api::field::{Errors, Path};
use coracle_api::status::{GroupKind, StatusError};
use form_urlencoded::Serializer;
use hyper::StatusCode;
use hyper::header::{self, HeaderValue};

const STREAMS: [&str; 3] = ["All", "Stderr", "Stdout"];

pub(super) async fn serve(asked: Asked) -> Result<Response, StatusError> {
    let Asked { context, who, of, query, .. } = asked;
    let options = options(&of.name, &query)?;
    let pod = locate::object(&context, "pods", &of.namespace, &of.name).await?;
    let container = locate::container(&pod, query.get("container"))?;
    let Some(node) = locate::node(&context, &pod).await? else {
        // Upstream's answer for a pod that is nowhere.
        let mut response = hyper::Response::new(body::whole(""));
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    };
    let path = format!("/containerLogs/{}/{}/{container}?{options}", of.namespace, of.name);
    let answer = kubelet::send(kubelet::dial(&context, &who, &node).await?, kubelet::get(&path)?).await?;
    if !answer.status().is_success() {
        return Err(kubelet::refusal(answer).await);
    }
    let mut response = hyper::Response::new(kubelet::passed(answer.into_body()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// The `PodLogOptions` of a query, checked, as the kubelet's query.
fn options(name: &str, query: &Query) -> Result<String, StatusError> {
    let mut errors = Errors::default();
    let mut options = Serializer::new(String::new());
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            options.append_pair(flag, "true");
        }
    }
    let at_least = [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ];
    let has = |key: &str| !query.get(key).is_empty();
    let two_starts = has("sinceSeconds") && has("sinceTime");
    for (key, least, otherwise) in at_least {
        let Some(number) = query.number(key)? else { continue };
        if number < least && !(two_starts && key == "sinceSeconds") {
            errors.invalid(&Path::new(key), number, otherwise);
        }
        options.append_pair(key, &number.to_string());
    }
    if two_starts {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.forbidden(&Path::new(""), why);
    }
    let since = query.get("sinceTime");
    if !since.is_empty() {
        let time: jiff::Timestamp = since.parse().map_err(|_| {
            StatusError::bad_request(format!(
                "parsing time {0} as \"2006-01-02T15:04:05Z07:00\": cannot parse {0} as \"2006\"",
                coracle_api::field::quoted(since)
            ))
        })?;
        options.append_pair("sinceTime", &time.to_string());
    }
    let stream = query.get("stream");
    if !stream.is_empty() {
        if !STREAMS.contains(&stream) {
            errors.not_supported(&Path::new("stream"), stream, &STREAMS);
        } else if stream != "All" && has("tailLines") {
            let why = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.forbidden(&Path::new(""), why);
        }
        options.append_pair("stream", stream);
    }
    let kind = GroupKind { group: "", kind: "PodLogOptions" };
    errors.into_result().map_err(|errors| StatusError::invalid(kind, name, &errors))?;
    Ok(options.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_and_passed_on() {
        let check = |query: &str, expected: Result<&str, &str>| {
            let found = options("p", &Query::parse(query)).map_err(|error| error.message);
            assert_eq!(found, expected.map(String::from).map_err(String::from), "{query}");
        };
        check("", Ok(""));
        check("follow=true&previous=false&timestamps=1&container=x", Ok("follow=true&timestamps=true"));
        check("tailLines=0&limitBytes=10&sinceSeconds=5", Ok("tailLines=0&limitBytes=10&sinceSeconds=5"));
        check("sinceTime=2024-05-06T07:08:09Z", Ok("sinceTime=2024-05-06T07%3A08%3A09Z"));
        let invalid = "PodLogOptions \"p\" is invalid: ";
        check(
            "tailLines=-1",
            Err(&format!("{invalid}tailLines: Invalid value: -1: must be greater than or equal to 0")),
        );
        check("limitBytes=0", Err(&format!("{invalid}limitBytes: Invalid value: 0: must be greater than 0")));
        check("tailLines=many", Err("strconv.ParseInt: parsing \"many\": invalid syntax"));
        check(
            "stream=Stdin",
            Err(&format!(
                "{invalid}stream: Unsupported value: \"Stdin\": supported values: \"All\", \"Stderr\", \"Stdout\""
            )),
        );
    }
}
