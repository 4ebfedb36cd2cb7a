//! Bodies: whole ones read within bounds, streams that are pulled.

use super::negotiate::{Shape, Shown};
use super::{BODY, BODY_BYTES_MAX, Context};
use crate::registry::{WatchEvent, WatchStream};
use bytes::Bytes;
use coracle_api::status::StatusError;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde_json::Value;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;

/// What fails is a body that comes from a board.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is there.
pub(super) fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| -> io::Error { match never {} }).boxed_unsync()
}

/// Reads a request's body.
///
/// # Errors
/// 413, 400 when the client breaks off, 504 when it takes too long.
pub(super) async fn read(body: Incoming) -> Result<Bytes, StatusError> {
    let collected = tokio::time::timeout(BODY, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(StatusError::too_large(format!("limit is {BODY_BYTES_MAX}")))
        }
        Ok(Err(error)) => Err(StatusError::bad_request(error.to_string())),
        Err(_) => Err(StatusError::timeout("the request's body did not arrive", 0)),
    }
}

/// An error as the object that clients read.
pub(super) fn status(error: StatusError) -> Value {
    let status = Status::from(error);
    let mut value = serde_json::to_value(&status).expect("a Status is plain data");
    // Upstream writes the empty metadata too.
    crate::object::child(&mut value, "metadata");
    value
}

/// Counts a watch for as long as its body lives.
struct Counted {
    watch: WatchStream,
    shown: Shown,
    context: Arc<Context>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.context.metrics.watch_ended();
    }
}

/// The events of a watch, one JSON object a line; each is made when the connection asks for it.
pub(super) fn events(watch: WatchStream, shown: Shown, context: Arc<Context>) -> Body {
    context.metrics.watch_began();
    let counted = Counted { watch, shown, context };
    let lines = stream::unfold(counted, |mut counted| async move {
        let event = counted.watch.next().await?;
        let line = line(event, counted.shown);
        counted.shown.headed = false;
        Some((Ok::<_, io::Error>(Frame::data(Bytes::from(line))), counted))
    });
    StreamBody::new(lines).boxed_unsync()
}

fn line(event: WatchEvent, shown: Shown) -> String {
    let (kind, object) = match event {
        WatchEvent::Added(object) => ("ADDED", object),
        WatchEvent::Modified(object) => ("MODIFIED", object),
        WatchEvent::Deleted(object) => ("DELETED", object),
        WatchEvent::Bookmark(object) => ("BOOKMARK", object),
        WatchEvent::Error(error) => return framed("ERROR", &status(error)),
    };
    match shown.shape {
        Shape::Whole => framed(kind, &object),
        _ => framed(kind, &shown.of(Arc::unwrap_or_clone(object))),
    }
}

fn framed(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}
