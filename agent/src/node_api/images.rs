//! `/coracle/v1/images`: what Kubernetes leaves to the runtime's own tools.

use super::{Context, Query, Response, object, receiver_stream, streaming};
use crate::request::{Refusal, Request};
use bytes::Bytes;
use coracle_runtime::image::{Freed, Image, ImageError, InUse, Progress};
use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::Method;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::sync::mpsc;

/// Progress lines waiting for a slow reader; newer ones are dropped, the last line never is.
const LINES_MAX: usize = 64;

pub(super) async fn serve(
    context: &Context,
    rest: &[&str],
    query: &Query,
    method: &Method,
) -> Result<Response, Refusal> {
    let need = |key: &str| {
        query.get(key).map(String::from).ok_or_else(|| Refusal::bad_request(format!("{key} is missing")))
    };
    match (method, rest) {
        (&Method::GET, []) => {
            let images = context.board.images().list().map_err(|e| failed(&e))?;
            Ok(object(&json!({"items": images.iter().map(shown).collect::<Vec<_>>()})))
        }
        (&Method::POST, ["pull"]) => Ok(pull(context, need("reference")?)),
        (&Method::POST, ["import"]) => {
            let path = PathBuf::from(need("path")?);
            if !path.is_absolute() {
                return Err(Refusal::bad_request("path must be absolute".into()));
            }
            let store = context.board.images().clone();
            let imported = tokio::task::spawn_blocking(move || store.import(&path)).await;
            let names = imported.expect("importing does not panic").map_err(|e| failed(&e))?;
            context.send(Request::ImagesChanged).await?;
            Ok(object(&json!({"items": names})))
        }
        (&Method::POST, ["prune"]) => {
            let in_use = in_use(context).await?;
            freed(context, context.board.images().prune(&in_use)).await
        }
        (&Method::DELETE, []) => {
            let in_use = in_use(context).await?;
            freed(context, context.board.images().remove(&need("reference")?, &in_use)).await
        }
        (_, [] | ["pull" | "import" | "prune"]) => Err(Refusal::method_not_allowed()),
        _ => Err(Refusal { code: 404, reason: "NotFound", message: "no such image operation".into() }),
    }
}

async fn in_use(context: &Context) -> Result<InUse, Refusal> {
    let since = context.board.images().mark();
    Ok(InUse { ids: context.ask(Request::ImagesInUse).await?, since })
}

async fn freed(context: &Context, result: Result<Freed, ImageError>) -> Result<Response, Refusal> {
    let freed = result.map_err(|e| failed(&e))?;
    context.send(Request::ImagesChanged).await?;
    Ok(object(&json!({"items": freed.images, "bytes": freed.bytes})))
}

/// A line of JSON for each step, and one at the end: `{"image": …}` or `{"error": …}`.
fn pull(context: &Context, reference: String) -> Response {
    let (send, lines) = mpsc::channel::<Value>(LINES_MAX);
    let context = context.clone();
    tokio::spawn(async move {
        let steps = send.clone();
        let progress = move |step: Progress| {
            let line = match step {
                Progress::Present { layer } => json!({"layer": layer, "state": "present"}),
                Progress::Fetched { layer, bytes, total } => {
                    json!({"layer": layer, "state": "fetched", "bytes": bytes, "total": total})
                }
                Progress::Unpacked { layer } => json!({"layer": layer, "state": "unpacked"}),
            };
            // A reader that is behind misses a step, and sees the next.
            drop(steps.try_send(line));
        };
        let last = match context.board.images().pull(&reference, &[], progress).await {
            Ok(image) => json!({"image": shown(&image)}),
            Err(error) => json!({"error": error.to_string()}),
        };
        if context.send(Request::ImagesChanged).await.is_err() || send.send(last).await.is_err() {
            tracing::debug!(reference, "nobody waits for a pull any more");
        }
    });
    let lines = receiver_stream(lines).map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n")))));
    streaming(StreamBody::new(lines), "application/json")
}

fn shown(image: &Image) -> Value {
    json!({
        "id": image.id, "references": image.references, "repoDigest": image.repo_digest,
        "sizeBytes": image.size_bytes, "layers": image.layers.len(), "pinned": image.pinned,
    })
}

fn failed(error: &ImageError) -> Refusal {
    let (code, reason) = match error {
        ImageError::NotFound { .. } => (404, "NotFound"),
        ImageError::InUse { .. } => (409, "Conflict"),
        ImageError::InvalidReference { .. }
        | ImageError::NotAnArchive { .. }
        | ImageError::WrongPlatform { .. } => (400, "BadRequest"),
        _ => (500, "InternalError"),
    };
    Refusal { code, reason, message: error.to_string() }
}
