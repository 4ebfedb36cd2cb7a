//! Who a caller is by a token, and whether a caller may use the kubelet's API: the API server is asked, as the kubelet's
//! webhook modes do. Of a token its digest is remembered, never the token.

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
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer holds, as the kubelet's.
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
/// How long a token is believed without being asked for, as the kubelet's.
const KNOWN: Duration = Duration::from_secs(120);
/// Answers that are kept, of each kind.
const CACHED_MAX: usize = 256;
/// Of a token; those of service accounts have about 1000.
const TOKEN_BYTES_MAX: usize = 16 << 10;
const PATH: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const TOKENS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

type Question = (Caller, &'static str, &'static str);

/// Its SHA-256.
type Token = [u8; 32];

/// Asks, and remembers.
pub(super) struct Reviewer {
    client: Client,
    node: String,
    answers: Mutex<BTreeMap<Question, (Instant, bool)>>,
    tokens: Mutex<BTreeMap<Token, (Instant, Arc<Caller>)>>,
}

impl Reviewer {
    pub(super) fn new(client: Client, node: String) -> Reviewer {
        Reviewer { client, node, answers: Mutex::default(), tokens: Mutex::default() }
    }

    /// Who has this token.
    ///
    /// # Errors
    /// 401 for nobody; 500 while the API server does not say.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Arc<Caller>, Refusal> {
        let nobody = || Refusal { code: 401, reason: "Unauthorized", message: "Unauthorized".into() };
        if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
            return Err(nobody());
        }
        let digest: Token = Sha256::digest(token.as_bytes()).into();
        let known = locked(&self.tokens).get(&digest).cloned();
        if let Some((until, caller)) = known
            && until > Instant::now()
        {
            return Ok(caller);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let reviewed: Value = self.client.create(TOKENS, &review).await.map_err(|error| {
            tracing::debug!(%error, "nobody says whose a token is");
            let message = "Authentication error: the API server does not answer".into();
            Refusal { code: 500, reason: "InternalError", message }
        })?;
        let status = &reviewed["status"];
        let user = status["user"]["username"].as_str().unwrap_or_default();
        if status["authenticated"] != true || user.is_empty() {
            return Err(nobody());
        }
        let groups = status["user"]["groups"].as_array().into_iter().flatten();
        let groups = groups.filter_map(|group| group.as_str().map(String::from)).collect();
        let caller = Caller { user: user.into(), groups };
        let caller = Arc::new(caller);
        keep(&mut locked(&self.tokens), digest, (Instant::now() + KNOWN, caller.clone()));
        Ok(caller)
    }

    /// # Errors
    /// 403, in the kubelet's words; 500 while the API server does not say.
    pub(super) async fn review(&self, caller: &Caller, request: &Parts) -> Result<(), Refusal> {
        let (verb, subresource) = attributes(request);
        let question = (caller.clone(), verb, subresource);
        let known = locked(&self.answers).get(&question).copied();
        let allowed = match known {
            Some((until, allowed)) if until > Instant::now() => allowed,
            _ => {
                let allowed = self.ask(caller, verb, subresource).await?;
                let until = Instant::now() + if allowed { ALLOWED } else { DENIED };
                keep(&mut locked(&self.answers), question, (until, allowed));
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
}

fn keep<K: Ord, V>(answers: &mut BTreeMap<K, V>, question: K, answer: V) {
    if answers.len() >= CACHED_MAX {
        answers.clear();
    }
    answers.insert(question, answer);
}

fn locked<T>(answers: &Mutex<T>) -> MutexGuard<'_, T> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verb and subresource of nodes. What enters a pod is `create`, whatever its method.
fn attributes(request: &Parts) -> (&'static str, &'static str) {
    let path = request.uri.path();
    if kubelet::enters(path, request.headers.contains_key(UPGRADE)) {
        ("create", "proxy")
    } else {
        (verb(&request.method), subresource(path))
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
