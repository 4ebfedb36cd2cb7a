//! HTTP to the agent's socket.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Bytes of an answer that is read whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;

const CLOSED: &str = "the agent closed the connection";

/// A `Status` that the agent answered with, in kubectl's words.
#[derive(Debug, thiserror::Error)]
pub(crate) struct ServerError {
    /// `Status.reason`.
    pub reason: String,
    /// `Status.message`.
    pub message: String,
}

impl ServerError {
    pub(crate) fn of(status: &Value) -> Option<ServerError> {
        let text = |key: &str| status[key].as_str().map(String::from);
        Some(ServerError { reason: text("reason")?, message: text("message")? })
    }
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.reason.as_str() {
            "Invalid" => write!(f, "The {}", self.message),
            reason => write!(f, "Error from server ({reason}): {}", self.message),
        }
    }
}

/// The agent of one root directory.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn at(root: &Path) -> Client {
        Client { socket: coracle_runtime::layout::Layout::of_root(root).run.join("coracle.sock") }
    }

    pub(crate) async fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket).await.map_err(|error| {
            let hint = match error.kind() {
                std::io::ErrorKind::PermissionDenied => "only root may talk to the agent; try sudo",
                _ => {
                    "is it running? Start one with coracle agent, see systemctl status coracle, or name another's --root"
                }
            };
            anyhow::anyhow!("cannot reach the agent at {}: {error}: {hint}", self.socket.display())
        })
    }

    /// Sends a request; an answer that is a `Status` failure becomes the error it tells.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response<Incoming>> {
        let stream = hyper_util::rt::TokioIo::new(self.connect().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Its error is the request's too, which is told below.
        tokio::spawn(async move { connection.await.map_err(|error| tracing::debug!(%error, "connection")) });
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await;
        let response = response.context(CLOSED)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let bytes = read(response).await?;
        let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match ServerError::of(&status) {
            Some(refused) => Err(refused.into()),
            None => bail!("the agent answered {code}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        self.object(Method::GET, path, Vec::new()).await
    }

    /// The items of a list.
    pub(crate) async fn items<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct List<T> {
            items: Vec<T>,
        }
        let response = self.send(Method::GET, path, Vec::new()).await?;
        let list: List<T> = serde_json::from_slice(&read(response).await?)?;
        Ok(list.items)
    }

    pub(crate) async fn object(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value> {
        let response = self.send(method, path, body).await?;
        Ok(serde_json::from_slice(&read(response).await?)?)
    }

    /// Calls `chunk` with an answer's bytes as they come.
    pub(crate) async fn chunks(
        &self,
        method: Method,
        path: &str,
        chunk: impl Fn(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut body = self.send(method, path, Vec::new()).await?.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.context(CLOSED)?.into_data() {
                chunk(&data)?;
            }
        }
        Ok(())
    }

    /// Calls `line` with each line of an endless answer, until it says stop or the answer ends.
    pub(crate) async fn lines(
        &self,
        method: Method,
        path: &str,
        mut line: impl FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut body = self.send(method, path, Vec::new()).await?.into_body();
        let mut rest: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.context(CLOSED)?.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let whole: Vec<u8> = rest.drain(..=end).collect();
                if !line(&whole)? {
                    return Ok(());
                }
            }
        }
        if !rest.is_empty() {
            line(&rest)?;
        }
        Ok(())
    }
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(|e| anyhow::anyhow!("read the answer: {e}"))?.to_bytes().to_vec())
}

/// Percent-encodes one value of a query string.
pub(crate) fn encode(value: &str) -> String {
    form_urlencoded::byte_serialize(value.as_bytes()).collect()
}
