//! Asking boards for their summaries.

use super::{Figures, Usage};
use crate::object;
use crate::tunnel::Dialer;
use bytes::Bytes;
use coracle_api::status::StatusError;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

const SUMMARY: &str = "/stats/summary";
/// Bytes of a summary.
const SUMMARY_BYTES_MAX: usize = 4 << 20;
/// Boards that are asked at once.
const BOARDS_AT_ONCE: usize = 32;
/// Of one board, both samples.
const PATIENCE: Duration = Duration::from_secs(10);

/// The boards, with what they said last.
#[derive(Debug)]
pub struct Boards {
    dialer: Arc<Dialer>,
    usage: Usage,
}

impl Boards {
    /// That are reached so.
    pub fn new(dialer: Arc<Dialer>) -> Boards {
        Boards { dialer, usage: Usage::default() }
    }

    /// Forgets boards that are not among these nodes.
    pub fn keep(&self, nodes: &[Value]) {
        self.usage.keep(nodes);
    }

    /// The figures of these nodes, by name. Those that do not answer have none.
    pub async fn figures(self: &Arc<Self>, nodes: Vec<Value>) -> HashMap<String, Arc<Figures>> {
        let one = |node: Value| {
            let boards = self.clone();
            async move {
                let name = object::name(&node).to_string();
                let asked = boards.usage.of(&name, || boards.summary(&node));
                match tokio::time::timeout(PATIENCE, asked).await {
                    Ok(Ok(figures)) => return Some((name, figures)),
                    Ok(Err(error)) => tracing::debug!(node = name, %error, "a node has no figures"),
                    Err(_) => tracing::debug!(node = name, "a node does not answer"),
                }
                None
            }
        };
        let asked = futures_util::stream::iter(nodes).map(one).buffer_unordered(BOARDS_AT_ONCE);
        asked.filter_map(std::future::ready).collect().await
    }

    async fn summary(&self, node: &Value) -> Result<Value, StatusError> {
        let failed = |why: &dyn Display| StatusError::internal(format!("{SUMMARY}: {why}"));
        let io = self.dialer.dial(node, "").await.map_err(|error| failed(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(io)).await.map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a node ended");
            }
        });
        let request = hyper::Request::get(SUMMARY)
            .header(hyper::header::HOST, "node")
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if !answer.status().is_success() {
            return Err(failed(&answer.status()));
        }
        let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| failed(&error))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| failed(&error))
    }
}
