//! The kubelet's HTTP paths: on a Unix socket that root alone may open, and for the cluster in its tunnel and on the
//! kubelet's port.
//!
//! ```text
//! GET  /healthz  /metrics  /pods[?watch=1]  /events  /stats/summary
//! GET  /containerLogs/NS/POD/CONTAINER?follow&previous&tailLines&sinceSeconds&timestamps&limitBytes
//! GET|POST /exec/NS/POD/CONTAINER  /attach/NS/POD/CONTAINER  WebSocket, v5.channel.k8s.io or v4; SPDY/3.1
//! GET|POST /portForward/NS/POD                               SPDY/3.1, also within a WebSocket
//! GET  /coracle/v1/connect/NS/POD/PORT                       upgrade to the bytes of a connection to the pod
//! POST /coracle/v1/apply                                     manifests
//! DELETE /api/v1/namespaces/NS/pods/POD?gracePeriodSeconds
//! DELETE /api/v1/namespaces/NS/secrets/SECRET, …/configmaps/CONFIGMAP
//! GET|POST|DELETE /coracle/v1/images…
//! ```
//! What the kubelet has no word for is under `/coracle/v1`. The cluster is not let in to what changes the board: what
//! runs here it decides by its pods ([`Door`]). Every body and every connection count is bounded;
//! errors are `v1.Status` objects.

mod images;
mod logs;
pub(crate) mod port;
mod review;
mod stats;
mod streams;

use crate::engine::Message;
use crate::request::{Change, Refusal, Request};
use bytes::Bytes;
use coracle_api::{manifest, percent};
use coracle_pod::objects::ObjectKind;
use coracle_runtime::board::Board;
use futures_util::StreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Connections served at once; others wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
/// From the start of a connection, or the end of an answer, to the next request's head.
const HEAD: Duration = Duration::from_secs(60);

pub(crate) type Body = BoxBody<Bytes, io::Error>;
pub(crate) type Response = hyper::Response<Body>;

/// What a request handler may use.
#[derive(Clone)]
pub(crate) struct Context {
    pub board: Arc<Board>,
    pub engine: mpsc::Sender<Message>,
    pub started: std::time::Instant,
}

/// By which way a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The Unix socket: root, with everything.
    Socket,
    /// The API server: what a kubelet serves. Errors are plain text, as a kubelet's.
    Cluster,
}

impl Door {
    fn admits(self, path: &[&str]) -> bool {
        match self {
            Door::Socket => true,
            Door::Cluster => matches!(
                path,
                ["healthz" | "metrics" | "pods"]
                    | ["stats", "summary"]
                    | ["containerLogs" | "exec" | "attach", _, _, _]
                    | ["portForward", _, _]
                    | ["coracle", "v1", "connect", _, _, _]
            ),
        }
    }
}

/// Listens at `path`, for root only from the first moment on: the socket gets its name once it has its mode. One that
/// a dead agent left is replaced (the lock says that it is dead).
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let aside = path.with_extension("new");
    match std::fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&aside)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&aside, path)?;
    Ok(listener)
}

/// Serves for ever.
pub(crate) async fn serve(listener: UnixListener, context: Context) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                continue;
            }
        };
        let context = context.clone();
        tokio::spawn(async move {
            talk(stream, &context, Door::Socket).await;
            drop(slot);
        });
    }
}

/// Serves one connection to its end.
pub(crate) async fn talk(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    context: &Context,
    door: Door,
) {
    let service = hyper::service::service_fn(|request| {
        let context = context.clone();
        async move {
            let answered = route(&context, door, request).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|refusal| match door {
                Door::Socket => refused(&refusal),
                Door::Cluster => refused_as_kubelet(&refusal),
            }))
        }
    });
    let io = hyper_util::rt::TokioIo::new(io);
    let connection = timed().serve_connection(io, service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended badly");
    }
}

fn timed() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEAD);
    builder
}

async fn route(
    context: &Context,
    door: Door,
    request: hyper::Request<Incoming>,
) -> Result<Response, Refusal> {
    let mut path = decoded(request.uri().path())?;
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    if !door.admits(&parts) {
        return Err(not_found());
    }
    if let (Door::Cluster, Some(at)) = (door, pod_in(&parts)) {
        let (namespace, name) = (path[at - 1].clone(), path[at].clone());
        path[at] = context.ask(|answer| Request::LocalName { namespace, name, answer }).await??;
    }
    let parts: Vec<&str> = path.iter().map(String::as_str).collect();
    let query = Query::of(&request);
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"]) => Ok(text("ok")),
        (&Method::GET, ["metrics"]) => stats::metrics(context).await,
        (&Method::GET, ["stats", "summary"]) => stats::summary(context).await,
        (&Method::GET, ["pods"]) if query.flag("watch") => watch(context).await,
        (&Method::GET, ["pods"]) => {
            let pods = context.ask(Request::Pods).await?;
            Ok(object(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items(&pods)})))
        }
        (&Method::GET, ["events"]) => {
            let events = context.ask(Request::Events).await?;
            Ok(object(&json!({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": events})))
        }
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            logs::serve(context, namespace, pod, container, &query).await
        }
        (&Method::GET | &Method::POST, ["exec", namespace, pod, container]) => {
            streams::exec(context, namespace, pod, container, &query, request).await
        }
        (&Method::GET | &Method::POST, ["attach", namespace, pod, container]) => {
            streams::attach(context, namespace, pod, container, &query, request).await
        }
        (&Method::GET | &Method::POST, ["portForward", namespace, pod]) => {
            streams::port_forward::serve(context, namespace, pod, request).await
        }
        (&Method::GET, ["coracle", "v1", "connect", namespace, pod, port]) => {
            streams::port_forward::connect(context, namespace, pod, port, request).await
        }
        (&Method::POST, ["coracle", "v1", "apply"]) => apply(context, request).await,
        (&Method::DELETE, ["api", "v1", "namespaces", namespace, "pods", name]) => {
            let grace_seconds = query.number("gracePeriodSeconds")?;
            let (namespace, name) = ((*namespace).to_string(), (*name).to_string());
            let (answer, heard) = oneshot::channel();
            context.send(Request::Delete { namespace, name, grace_seconds, answer }).await?;
            let pod = heard.await.map_err(|_| ended())??;
            Ok(object(&pod_value(&pod)))
        }
        (
            &Method::DELETE,
            ["api", "v1", "namespaces", namespace, resource @ ("configmaps" | "secrets"), name],
        ) => {
            let kind = if *resource == "secrets" { ObjectKind::Secret } else { ObjectKind::ConfigMap };
            let (namespace, name) = ((*namespace).to_string(), (*name).to_string());
            let (answer, heard) = oneshot::channel();
            context.send(Request::DeleteObject { kind, namespace, name: name.clone(), answer }).await?;
            heard.await.map_err(|_| ended())??;
            Ok(object(&json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name, "kind": resource},
            })))
        }
        (_, ["coracle", "v1", "images", rest @ ..]) => {
            images::serve(context, rest, &query, request.method()).await
        }
        (
            _,
            ["healthz" | "metrics" | "pods" | "events"]
            | ["stats", "summary"]
            | ["containerLogs" | "exec" | "attach", _, _, _]
            | ["portForward", _, _]
            | ["coracle", "v1", "apply"]
            | ["coracle", "v1", "connect", _, _, _]
            | ["api", "v1", "namespaces", _, "pods" | "configmaps" | "secrets", _],
        ) => Err(Refusal::method_not_allowed()),
        (_, _) => Err(not_found()),
    }
}

fn not_found() -> Refusal {
    let message = "the server could not find the requested resource".into();
    Refusal { code: 404, reason: "NotFound", message }
}

/// Which part of a path names a pod; the one before it is its namespace.
fn pod_in(path: &[&str]) -> Option<usize> {
    match path {
        ["containerLogs" | "exec" | "attach", _, _, _] | ["portForward", _, _] => Some(2),
        ["coracle", "v1", "connect", _, _, _] => Some(4),
        _ => None,
    }
}

/// The components of a path, percent-decoded each: a name that holds a slash stays one name, which nothing has.
fn decoded(path: &str) -> Result<Vec<String>, Refusal> {
    // As the control plane reads it, which has judged it.
    let decode = |part: &str| {
        percent::decoded(part)
            .ok_or_else(|| Refusal::bad_request(format!("malformed path component {part:?}")))
    };
    path.split('/').filter(|part| !part.is_empty()).map(decode).collect()
}

async fn apply(context: &Context, request: hyper::Request<Incoming>) -> Result<Response, Refusal> {
    let too_large = |message| Refusal { code: 413, reason: "RequestEntityTooLarge", message };
    // Refused before it is sent, if its length is told.
    if request.body().size_hint().lower() > manifest::MANIFEST_BYTES_MAX as u64 {
        return Err(too_large(manifest::ManifestError::TooLarge.to_string()));
    }
    let body = Limited::new(request.into_body(), manifest::MANIFEST_BYTES_MAX).collect().await;
    let body = body.map_err(|e| too_large(e.to_string()))?;
    let objects = manifest::objects(&body.to_bytes()).map_err(|e| Refusal::bad_request(e.to_string()))?;
    let (answer, heard) = oneshot::channel();
    context.send(Request::Apply { objects, answer }).await?;
    let applied = heard.await.map_err(|_| ended())??;
    let items: Vec<Value> = applied
        .iter()
        .map(|a| json!({"kind": a.kind.word(), "namespace": a.namespace, "name": a.name, "outcome": a.outcome.word()}))
        .collect();
    Ok(object(&json!({"items": items})))
}

/// One JSON object a line, as the Kubernetes API watches.
async fn watch(context: &Context) -> Result<Response, Refusal> {
    let changes = context.ask(Request::Watch).await?;
    let lines = receiver_stream(changes).map(|change: Change| {
        let line = json!({"type": change.kind.word(), "object": pod_value(&change.pod)});
        Ok(Frame::data(Bytes::from(format!("{line}\n"))))
    });
    Ok(streaming(StreamBody::new(lines), "application/json"))
}

fn items(pods: &[Pod]) -> Vec<Value> {
    let mut sorted: Vec<&Pod> = pods.iter().collect();
    sorted.sort_by_key(|p| (p.metadata.namespace.clone(), p.metadata.name.clone()));
    sorted.into_iter().map(pod_value).collect()
}

fn pod_value(pod: &Pod) -> Value {
    // k8s-openapi writes kind and apiVersion itself.
    serde_json::to_value(pod).expect("a pod serializes")
}

impl Context {
    /// Asks the engine a question that it cannot refuse.
    pub(crate) async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Refusal> {
        let (answer, heard) = oneshot::channel();
        self.send(question(answer)).await?;
        heard.await.map_err(|_| ended())
    }

    pub(crate) async fn send(&self, request: Request) -> Result<(), Refusal> {
        self.engine.send(Message::Request(request)).await.map_err(|_| ended())
    }
}

fn ended() -> Refusal {
    Refusal::unavailable("the agent is stopping".into())
}

/// The query string, decoded.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn of<B>(request: &hyper::Request<B>) -> Query {
        let text = request.uri().query().unwrap_or_default();
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| matches!(v, "" | "1" | "true"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>, Refusal> {
        let parse =
            |v: &str| v.parse().map_err(|_| Refusal::bad_request(format!("{key}={v:?} is not a number")));
        self.get(key).map(parse).transpose()
    }
}

pub(crate) fn text(body: impl Into<Bytes>) -> Response {
    let body = Full::new(body.into()).map_err(|never: Infallible| -> io::Error { match never {} }).boxed();
    typed(body, "text/plain; charset=utf-8")
}

pub(crate) fn object(value: &Value) -> Response {
    let body = Full::new(value.to_string().into());
    typed(body.map_err(|never: Infallible| -> io::Error { match never {} }).boxed(), "application/json")
}

pub(crate) fn streaming<S>(body: StreamBody<S>, content_type: &'static str) -> Response
where
    S: futures_util::Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync + 'static,
{
    typed(BodyExt::boxed(body), content_type)
}

pub(crate) fn typed(body: Body, content_type: &'static str) -> Response {
    let mut response = hyper::Response::new(body);
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
    response
}

/// A bounded channel as a stream.
pub(crate) fn receiver_stream<T>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// The API server makes a `v1.Status` of it.
fn refused_as_kubelet(refusal: &Refusal) -> Response {
    let mut response = text(refusal.message.clone());
    *response.status_mut() = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// A `v1.Status`.
pub(crate) fn refused(refusal: &Refusal) -> Response {
    let mut response = object(&json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": refusal.message, "reason": refusal.reason, "code": refusal.code,
    }));
    *response.status_mut() = StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
