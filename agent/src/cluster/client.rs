//! Requests to the API: JSON both ways, errors as the `Status` that the server answered with.
//!
//! ```text
//!  request ─► credentials (read anew when their files changed) ─► idle connection, or a new one ─► answer
//! ```
//! Invariants: every answer is bounded in bytes and in time; a request is sent at most once, unless nothing of it was
//! written; no lock is held while anything is waited for. HTTP/1.1: one request at a time on a connection, a few
//! connections kept. Retries are the callers' business: they know what is still worth asking.

use super::access::{Access, AccessError};
use super::kubeconfig::{FileIdentity, Kubeconfig};
use super::watch::Watch;
use bytes::Bytes;
use coracle_api::patch::PatchType;
use coracle_api::status::{Reason, StatusError};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use rustls::time_provider::TimeProvider;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A request that is answered whole.
const REQUEST: Duration = Duration::from_secs(30);
/// Of an answer. A page of a list is at most [`PAGE`] objects of 1.5 MiB, and hardly ever more than a few KiB each.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Objects of one page.
const PAGE: usize = 100;
/// Pages of one list: what has more is not meant for a board.
const PAGES_MAX: usize = 100;
/// Connections that wait for the next request.
const IDLE_MAX: usize = 4;
const JSON: &str = "application/json";

/// A request that did not do what it was to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No connection.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// It broke. Whether the server has done what was asked is open.
    #[error("the connection to the API server broke: {0}")]
    Broken(#[source] hyper::Error),
    /// No answer in time. Whether the server has done what was asked is open.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// More than is read.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// Not what was asked for.
    #[error("the answer is not what was asked for: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A path that is none.
    #[error("{0:?} cannot be asked for")]
    Request(String),
    /// The server said no.
    #[error(transparent)]
    Status(#[from] StatusError),
}

impl ClientError {
    /// What the server said, if it did.
    pub(crate) fn reason(&self) -> Option<Reason> {
        match self {
            ClientError::Status(status) => Some(status.reason),
            _ => None,
        }
    }

    /// 404.
    pub(crate) fn is_not_found(&self) -> bool {
        self.reason() == Some(Reason::NotFound)
    }
}

/// See the module. A clone is the same client.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

struct Inner {
    origin: Origin,
    state: Mutex<State>,
}

enum Origin {
    /// Read anew when it, or a file that it names, changes.
    Kubeconfig(PathBuf, Arc<dyn TimeProvider>),
    Given(Arc<Access>),
}

#[derive(Default)]
struct State {
    read: Option<(Vec<FileIdentity>, Arc<Access>)>,
    idle: Vec<SendRequest<Full<Bytes>>>,
}

/// One page of a list.
#[derive(serde::Deserialize)]
struct Page<T> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

impl Client {
    /// With the credentials of a kubeconfig, which need not be there yet.
    pub(crate) fn of_kubeconfig(path: PathBuf, clock: Arc<dyn TimeProvider>) -> Client {
        Client(Arc::new(Inner { origin: Origin::Kubeconfig(path, clock), state: Mutex::default() }))
    }

    /// With these credentials.
    pub(crate) fn with(access: Access) -> Client {
        Client(Arc::new(Inner { origin: Origin::Given(Arc::new(access)), state: Mutex::default() }))
    }

    /// The way to the server as it is now. Reads files that have changed.
    pub(crate) fn access(&self) -> Result<Arc<Access>, ClientError> {
        let (path, clock) = match &self.0.origin {
            Origin::Given(access) => return Ok(access.clone()),
            Origin::Kubeconfig(path, clock) => (path, clock),
        };
        let mut state = self.state();
        if let Some((files, access)) = &state.read
            && files.iter().all(FileIdentity::holds)
        {
            return Ok(access.clone());
        }
        let config = Kubeconfig::read(path).map_err(AccessError::from)?;
        let access = Arc::new(Access::of(&config, clock.clone())?);
        tracing::info!(server = access.server(), "credentials for the API server read");
        state.read = Some((config.files, access.clone()));
        // They belong to whom we were.
        state.idle.clear();
        Ok(access)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, JSON, Vec::new()).await
    }

    /// Every object of a collection, page by page, and the version to watch it from. `query`: selectors.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<(Vec<T>, String), ClientError> {
        let (mut items, mut next) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let limit = PAGE.to_string();
            let mut query = query.to_vec();
            query.push(("limit", &limit));
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let page: Page<T> = self.get(&with_query(path, &query)).await?;
            items.extend(page.items);
            next = page.metadata.continue_.unwrap_or_default();
            if next.is_empty() {
                return Ok((items, page.metadata.resource_version.unwrap_or_default()));
            }
        }
        Err(ClientError::TooLarge(PAGES_MAX * PAGE))
    }

    /// The changes of a collection after `resource_version`.
    pub(crate) async fn watch(
        &self,
        path: &str,
        query: &[(&str, &str)],
        resource_version: &str,
        seconds: u64,
    ) -> Result<Watch, ClientError> {
        let seconds = seconds.to_string();
        let mut query = query.to_vec();
        query.extend([
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", resource_version),
        ]);
        let path = with_query(path, &query);
        let head = self.send(Method::GET, &path, JSON, Bytes::new());
        let head = tokio::time::timeout(REQUEST, head).await.map_err(|_| ClientError::Timeout(REQUEST))?;
        let (response, _) = head?;
        Ok(Watch::of(response.into_body()))
    }

    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        path: &str,
        object: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::POST, path, JSON, text(object)).await
    }

    pub(crate) async fn update<T: DeserializeOwned>(
        &self,
        path: &str,
        object: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::PUT, path, JSON, text(object)).await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        how: PatchType,
        patch: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(Method::PATCH, path, how.media_type(), text(patch)).await
    }

    /// `options`: `v1.DeleteOptions`.
    pub(crate) async fn delete(&self, path: &str, options: &impl Serialize) -> Result<(), ClientError> {
        self.json::<serde::de::IgnoredAny>(Method::DELETE, path, JSON, text(options)).await.map(|_| ())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let bytes = self.whole(method, path, content_type, body.into()).await?;
        serde_json::from_slice(&bytes).map_err(ClientError::Malformed)
    }

    /// Sends, and reads the whole answer. Not generic: there is but one of it in the binary.
    async fn whole(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let answer = tokio::time::timeout(REQUEST, async {
            let (response, sender) = self.send(method, path, content_type, body).await?;
            let bytes = read(response).await?;
            self.keep(sender);
            Ok(bytes)
        });
        answer.await.unwrap_or(Err(ClientError::Timeout(REQUEST)))
    }

    /// Sends; the head of an answer that is no failure, and the connection that its body comes on.
    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let access = self.access()?;
        let mut request = access.request(method, path).header(ACCEPT, JSON);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let mut request = request.body(Full::new(body)).map_err(|_| ClientError::Request(path.into()))?;
        let (connection, response) = loop {
            let (mut sender, reused) = match self.idle() {
                Some(sender) => (sender, true),
                None => (connect(&access).await?, false),
            };
            match sender.try_send_request(request).await {
                Ok(response) => break (Connection { sender, access: access.clone() }, response),
                // The server closed an idle connection: nothing was sent, and the next one is tried.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(ClientError::Broken(error.into_error())),
                },
            }
        };
        if response.status().is_success() {
            return Ok((response, connection));
        }
        let code = response.status().as_u16();
        let refused = StatusError::answered(code, &read(response).await?);
        // After 401 a renewed certificate may be what it wants, and that needs a new connection.
        if code != 401 {
            self.keep(connection);
        }
        Err(refused.into())
    }

    /// A connection that is still open.
    fn idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut state = self.state();
        state.idle.retain(|sender| !sender.is_closed());
        state.idle.iter().position(SendRequest::is_ready).map(|ready| state.idle.swap_remove(ready))
    }

    fn keep(&self, connection: Connection) {
        let mut state = self.state();
        let current = match (&self.0.origin, &state.read) {
            (Origin::Given(_), _) => true,
            (_, Some((_, access))) => Arc::ptr_eq(access, &connection.access),
            (_, None) => false,
        };
        if current && state.idle.len() < IDLE_MAX && !connection.sender.is_closed() {
            state.idle.push(connection.sender);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection, and whose it is.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    access: Arc<Access>,
}

async fn connect(access: &Access) -> Result<SendRequest<Full<Bytes>>, ClientError> {
    let stream = TokioIo::new(access.connect().await?);
    let (sender, connection) = http1::handshake(stream).await.map_err(ClientError::Broken)?;
    // It ends with its sender. Its error is the request's too, which is told there.
    tokio::spawn(async move { connection.await.map_err(|error| tracing::debug!(%error, "connection")) });
    Ok(sender)
}

async fn read(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ClientError::TooLarge(ANSWER_BYTES_MAX)),
        Err(error) => match error.downcast() {
            Ok(error) => Err(ClientError::Broken(*error)),
            Err(_) => Err(ClientError::TooLarge(ANSWER_BYTES_MAX)),
        },
    }
}

fn text(object: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(object).expect("an API object is plain data")
}

fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    format!("{path}?{query}")
}

/// A collection of the API, and paths into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Collection {
    /// `/api/v1`, `/apis/GROUP/VERSION`.
    pub root: &'static str,
    pub plural: &'static str,
}

impl Collection {
    pub(crate) const CONFIG_MAPS: Collection = Collection { root: "/api/v1", plural: "configmaps" };
    pub(crate) const EVENTS: Collection = Collection { root: "/api/v1", plural: "events" };
    pub(crate) const LEASES: Collection =
        Collection { root: "/apis/coordination.k8s.io/v1", plural: "leases" };
    pub(crate) const NODES: Collection = Collection { root: "/api/v1", plural: "nodes" };
    pub(crate) const PODS: Collection = Collection { root: "/api/v1", plural: "pods" };
    pub(crate) const SECRETS: Collection = Collection { root: "/api/v1", plural: "secrets" };
    pub(crate) const SERVICE_ACCOUNTS: Collection = Collection { root: "/api/v1", plural: "serviceaccounts" };

    /// Of a namespace; of all with an empty one, or where there are none.
    pub(crate) fn of(self, namespace: &str) -> String {
        let Collection { root, plural } = self;
        match namespace {
            "" => format!("{root}/{plural}"),
            namespace => format!("{root}/namespaces/{}/{plural}", segment(namespace)),
        }
    }

    /// One object.
    pub(crate) fn object(self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.of(namespace), segment(name))
    }

    /// A part of one object: `status`.
    pub(crate) fn part(self, namespace: &str, name: &str, part: &str) -> String {
        format!("{}/{part}", self.object(namespace, name))
    }
}

/// Whatever a name holds, it stays one segment of a path.
fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => encoded.push(char::from(byte)),
            b'.' if name != "." && name != ".." => encoded.push('.'),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
#[path = "client_test.rs"]
pub(super) mod tests;
