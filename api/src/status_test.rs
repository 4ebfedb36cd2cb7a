//! Answers of a running upstream server (1.36), and constructors that it gave no occasion for.

use serde_json::{Value, json};

use super::*;
use crate::field::{Path, Problem};

const PODS: GroupResource<'_> = GroupResource { group: "", resource: "pods" };
const DEPLOYMENTS: GroupResource<'_> = GroupResource { group: "apps", resource: "deployments" };
const MAPS: GroupResource<'_> = GroupResource { group: "", resource: "configmaps" };
const POD: GroupKind<'_> = GroupKind { group: "", kind: "Pod" };

fn check(error: StatusError, expected: &Value) {
    let text = error.to_string();
    let found = serde_json::to_value(Status::from(error)).expect("a Status is JSON");
    assert_eq!(&found, expected);
    assert_eq!(Some(text.as_str()), expected["message"].as_str(), "the error reads as its message");
}

fn errors(list: Vec<(Path, Problem)>) -> Errors {
    let mut errors = Errors::default();
    for (path, problem) in list {
        errors.push(&path, problem);
    }
    errors
}

#[test]
fn upstreams_answers() {
    check(
        StatusError::not_found(PODS, "none"),
        &json!({"apiVersion":"v1","code":404,"details":{"kind":"pods","name":"none"},"kind":"Status",
            "message":"pods \"none\" not found","metadata":{},"reason":"NotFound","status":"Failure"}),
    );
    check(
        StatusError::generic(404, ""),
        &json!({"apiVersion":"v1","code":404,"details":{},"kind":"Status",
            "message":"the server could not find the requested resource","metadata":{},"reason":"NotFound",
            "status":"Failure"}),
    );
    let name = Path::new("metadata").child("name");
    check(
        StatusError::invalid(
            POD,
            "",
            &errors(vec![(name, Problem::Required("name or generateName is required".into()))]),
        ),
        &json!({"apiVersion":"v1","code":422,"details":{"causes":[{"field":"metadata.name",
            "message":"Required value: name or generateName is required","reason":"FieldValueRequired"}],
            "kind":"Pod"},"kind":"Status",
            "message":"Pod \"\" is invalid: metadata.name: Required value: name or generateName is required",
            "metadata":{},"reason":"Invalid","status":"Failure"}),
    );
    let labels = Path::new("spec").child("template").child("metadata").child("labels");
    check(
        StatusError::invalid(
            GroupKind { group: "apps", kind: "Deployment" },
            "d",
            &errors(vec![(
                labels,
                Problem::Invalid(json!({"app":"a"}), "`selector` does not match template `labels`".into()),
            )]),
        ),
        &json!({"apiVersion":"v1","code":422,"details":{"causes":[{"field":"spec.template.metadata.labels",
            "message":"Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
            "reason":"FieldValueInvalid"}],"group":"apps","kind":"Deployment","name":"d"},"kind":"Status",
            "message":"Deployment.apps \"d\" is invalid: spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
            "metadata":{},"reason":"Invalid","status":"Failure"}),
    );
    let port = |field: &str| Path::new("spec").child("ports").index(0).child(field);
    let range = || Problem::Invalid(0.into(), "must be between 1 and 65535, inclusive".into());
    check(
        StatusError::invalid(
            GroupKind { group: "", kind: "Service" },
            "s",
            &errors(vec![(port("port"), range()), (port("targetPort"), range())]),
        ),
        &json!({"apiVersion":"v1","code":422,"details":{"causes":[
            {"field":"spec.ports[0].port","message":"Invalid value: 0: must be between 1 and 65535, inclusive","reason":"FieldValueInvalid"},
            {"field":"spec.ports[0].targetPort","message":"Invalid value: 0: must be between 1 and 65535, inclusive","reason":"FieldValueInvalid"}],
            "kind":"Service","name":"s"},"kind":"Status",
            "message":"Service \"s\" is invalid: [spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]",
            "metadata":{},"reason":"Invalid","status":"Failure"}),
    );
    check(
        StatusError::unhandled("Pod", "v1", "Pod", "strict decoding error: unknown field \"spce\""),
        &json!({"apiVersion":"v1","code":400,"kind":"Status",
            "message":"Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spce\"",
            "metadata":{},"reason":"BadRequest","status":"Failure"}),
    );
    check(
        StatusError::unrecognized(
            "Pod",
            "couldn't get version/kind; json parse error: unexpected end of JSON input",
            b"{\"kind\":",
        ),
        &json!({"apiVersion":"v1","code":400,"kind":"Status",
            "message":"the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: unexpected end of JSON input ({\"kind\":)",
            "metadata":{},"reason":"BadRequest","status":"Failure"}),
    );
    check(
        StatusError::generic(405, ""),
        &json!({"apiVersion":"v1","code":405,"details":{},"kind":"Status",
            "message":"the server does not allow this method on the requested resource","metadata":{},
            "reason":"MethodNotAllowed","status":"Failure"}),
    );
    check(
        StatusError::unsupported_patch_type(),
        &json!({"apiVersion":"v1","code":415,"details":{},"kind":"Status","message":"415: Unsupported Media Type",
            "metadata":{},"reason":"UnsupportedMediaType","status":"Failure"}),
    );
    check(
        StatusError::generic(422, ""),
        &json!({"apiVersion":"v1","code":422,"details":{},"kind":"Status",
            "message":"the server rejected our request due to an error in our request","metadata":{},
            "reason":"Invalid","status":"Failure"}),
    );
    check(
        StatusError::stale(MAPS, "kube-root-ca.crt"),
        &json!({"apiVersion":"v1","code":409,"details":{"kind":"configmaps","name":"kube-root-ca.crt"},"kind":"Status",
            "message":"Operation cannot be fulfilled on configmaps \"kube-root-ca.crt\": the object has been modified; please apply your changes to the latest version and try again",
            "metadata":{},"reason":"Conflict","status":"Failure"}),
    );
    check(
        StatusError::not_acceptable(&["application/json", "application/yaml"]),
        &json!({"apiVersion":"v1","code":406,"details":{},"kind":"Status",
            "message":"406: Not Acceptable\n\nAvailable representations: application/json, application/yaml",
            "metadata":{},"reason":"NotAcceptable","status":"Failure"}),
    );
}

#[test]
fn messages_codes_and_reasons() {
    let check = |error: StatusError, code: u16, reason: Reason, message: &str| {
        assert_eq!((error.code, error.reason, error.message.as_str()), (code, reason, message));
    };
    check(
        StatusError::already_exists(DEPLOYMENTS, "d"),
        409,
        Reason::AlreadyExists,
        "deployments.apps \"d\" already exists",
    );
    check(
        StatusError::generate_name_conflict(PODS, "a-x", 1),
        409,
        Reason::AlreadyExists,
        "pods \"a-x\" already exists, the server was not able to generate a unique name for the object",
    );
    check(StatusError::apply_conflict(vec![], "m".into()), 409, Reason::Conflict, "m");
    check(StatusError::bad_request("b"), 400, Reason::BadRequest, "b");
    check(StatusError::unauthorized(), 401, Reason::Unauthorized, "Unauthorized");
    check(StatusError::forbidden(PODS, "x", "why"), 403, Reason::Forbidden, "pods \"x\" is forbidden: why");
    check(StatusError::forbidden(PODS, "", "why"), 403, Reason::Forbidden, "pods is forbidden: why");
    check(
        StatusError::forbidden(GroupResource::default(), "x", "why"),
        403,
        Reason::Forbidden,
        "forbidden: why",
    );
    check(
        StatusError::method_not_supported(PODS, "patch"),
        405,
        Reason::MethodNotAllowed,
        "patch is not supported on resources of kind \"pods\"",
    );
    check(
        StatusError::unsupported_media_type(&["application/json"]),
        415,
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: application/json",
    );
    check(StatusError::expired("old"), 410, Reason::Expired, "old");
    check(StatusError::gone("old"), 410, Reason::Gone, "old");
    check(
        StatusError::too_large("limit is 3145728"),
        413,
        Reason::RequestEntityTooLarge,
        "Request entity too large: limit is 3145728",
    );
    check(StatusError::too_many_requests("wait", 10), 429, Reason::TooManyRequests, "wait");
    check(StatusError::internal("boom"), 500, Reason::InternalError, "Internal error occurred: boom");
    check(
        StatusError::server_timeout(PODS, "POST", 0),
        500,
        Reason::ServerTimeout,
        "The POST operation against pods could not be completed at this time, please try again.",
    );
    check(StatusError::service_unavailable("down"), 503, Reason::ServiceUnavailable, "down");
    check(StatusError::timeout("slow", 0), 504, Reason::Timeout, "Timeout: slow");
    check(
        StatusError::generic(500, "x"),
        500,
        Reason::InternalError,
        "an error on the server (\"x\") has prevented the request from succeeding",
    );
    check(
        StatusError::generic(418, "x"),
        418,
        Reason::Unknown,
        "the server responded with the status code 418 but did not return more information",
    );
}

#[test]
fn a_retry_is_said_in_the_details() {
    let seconds = |error: StatusError| error.details.and_then(|d| d.retry_after_seconds);
    assert_eq!(seconds(StatusError::too_many_requests("wait", 10)), Some(10));
    assert_eq!(seconds(StatusError::timeout("slow", 0)), None);
}

#[test]
fn foreign_bytes_are_shown_bounded() {
    let shown = |body: &[u8]| StatusError::unrecognized("Pod", "why", body).message;
    assert!(shown(&[0xff, 0x00]).ends_with("(ff00)"));
    assert!(shown(&[]).ends_with("(<empty>)"));
    assert!(shown(&[b'{'; 1000]).ends_with(&format!("({} ...)", "{".repeat(30))));
}

#[test]
fn refusals_read_as_upstreams() {
    let on = |of, subresource, namespace| Attempt::Resource { verb: "get", of, subresource, namespace };
    let check = |attempt: Attempt<'_>, reason: &str, expected: &str| {
        assert_eq!(refusal("u", &attempt, reason), expected);
    };
    check(
        on(PODS, "", "default"),
        "",
        "User \"u\" cannot get resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    check(
        on(DEPLOYMENTS, "scale", ""),
        "why",
        "User \"u\" cannot get resource \"deployments/scale\" in API group \"apps\" at the cluster scope: why",
    );
    check(Attempt::Path { verb: "get", path: "/x" }, "", "User \"u\" cannot get path \"/x\"");
}
