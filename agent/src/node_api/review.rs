//! Whether a caller may use the kubelet's API: the API server is asked, as the kubelet's webhook mode does.

use super::port::Caller;
use crate::cluster::client::Client;
use crate::request::Refusal;
use coracle_api::kubelet;
use hyper::Method;
use hyper::header::UPGRADE;
use hyper::http::request::Parts;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer holds, as the kubelet's.
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
/// Answers that are kept.
const CACHED_MAX: usize = 256;
const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

type Question = (Caller, &'static str, &'static str);

/// Asks, and remembers.
pub(super) struct Reviewer {
    client: Client,
    node: String,
    answers: Mutex<BTreeMap<Question, (Instant, bool)>>,
}

impl Reviewer {
    pub(super) fn new(client: Client, node: String) -> Reviewer {
        Reviewer { client, node, answers: Mutex::default() }
    }

    /// # Errors
    /// 403, in the kubelet's words; 500 while the API server does not say.
    pub(super) async fn review(&self, caller: &Caller, request: &Parts) -> Result<(), Refusal> {
        let (verb, subresource) = attributes(request);
        let question = (caller.clone(), verb, subresource);
        let known = self.answers().get(&question).copied();
        let allowed = match known {
            Some((until, allowed)) if until > Instant::now() => allowed,
            _ => {
                let allowed = self.ask(caller, verb, subresource).await?;
                self.keep(question, allowed);
                allowed
            }
        };
        if allowed {
            return Ok(());
        }
        let user = &caller.user;
        let message =
            format!("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])");
        Err(Refusal { code: 403, reason: "Forbidden", message })
    }

    async fn ask(&self, caller: &Caller, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.user.clone()),
                groups: Some(caller.groups.iter().cloned().chain(["system:authenticated".into()]).collect()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviewed: Result<SubjectAccessReview, _> = self.client.create(PATH, &review).await;
        match reviewed {
            Ok(review) => Ok(matches!(review.status, Some(SubjectAccessReviewStatus { allowed: true, .. }))),
            Err(error) => {
                tracing::debug!(%error, user = caller.user, "nobody says whether a caller is allowed");
                let message = "Authorization error: the API server does not answer".into();
                Err(Refusal { code: 500, reason: "InternalError", message })
            }
        }
    }

    fn keep(&self, question: Question, allowed: bool) {
        let mut answers = self.answers();
        if answers.len() >= CACHED_MAX {
            answers.clear();
        }
        let until = Instant::now() + if allowed { ALLOWED } else { DENIED };
        answers.insert(question, (until, allowed));
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<Question, (Instant, bool)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Verb and subresource of nodes. What enters a pod is `create`, whatever its method.
fn attributes(request: &Parts) -> (&'static str, &'static str) {
    let path = request.uri.path();
    match kubelet::enters(path, request.headers.contains_key(UPGRADE)) {
        true => ("create", "proxy"),
        false => (verb(&request.method), subresource(path)),
    }
}

/// The API's verb for a method.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresource of nodes that a path belongs to; what is not looking on is `proxy`.
fn subresource(path: &str) -> &'static str {
    match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        _ => "proxy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_belong_to_subresources_of_the_node() {
        let check = |path: &str, expected: &str| assert_eq!(subresource(path), expected, "{path}");
        check("/stats/summary", "stats");
        check("/metrics/resource", "metrics");
        check("//metrics", "metrics");
        check("/logs/", "log");
        check("/metricsx", "proxy");
        check("/exec/a/b/c", "proxy");
        check("/", "proxy");
        assert_eq!((verb(&Method::GET), verb(&Method::POST)), ("get", "create"));
    }

    #[test]
    fn who_looks_on_enters_no_pod() {
        let check = |method: Method, path: &str, upgrade: bool, expected: (&str, &str)| {
            let mut request = hyper::Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = path.parse().expect("a path");
            if upgrade {
                request.headers_mut().insert(UPGRADE, hyper::header::HeaderValue::from_static("websocket"));
            }
            assert_eq!(attributes(&request.into_parts().0), expected, "{path}");
        };
        check(Method::GET, "/containerLogs/d/p/c", false, ("get", "proxy"));
        check(Method::GET, "/metrics", false, ("get", "metrics"));
        check(Method::GET, "/exec/d/p/c?command=id", true, ("create", "proxy"));
        check(Method::GET, "/%65xec/d/p/c", false, ("create", "proxy"));
        check(Method::GET, "/metrics", true, ("create", "proxy"));
        check(Method::GET, "/coracle/v1/connect/d/p/80", true, ("create", "proxy"));
    }
}
