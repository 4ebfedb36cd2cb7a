//! `GET /containerLogs/NS/POD/CONTAINER`.

use super::{Context, Query, Response, receiver_stream, streaming};
use crate::request::{Change, ChangeKind, Kind, Refusal, Request};
use bytes::Bytes;
use coracle_pod::spec::PodUid;
use coracle_runtime::log::{self, LogOptions};
use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};

/// Chunks waiting for a slow reader.
const CHUNKS_MAX: usize = 8;

pub(super) async fn serve(
    context: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
) -> Result<Response, Refusal> {
    let pod = find(context.ask(Request::Pods).await?, namespace, name, container)?;
    let pod = &pod;
    let uid = PodUid(pod.metadata.uid.clone().unwrap_or_default());
    let dir = context.board.settings().layout.pod_logs(namespace, name, &uid).join(container);
    let attempts = log::attempts(&dir);
    let attempt = if query.flag("previous") {
        let previous = attempts.iter().rev().nth(1).copied();
        previous.ok_or_else(|| {
            Refusal::bad_request(format!(
                "previous terminated container \"{container}\" in pod \"{name}\" not found"
            ))
        })?
    } else {
        match attempts.last() {
            Some(attempt) => *attempt,
            None if ran(pod, container) => return Ok(super::text("")),
            None => {
                let why = waiting(pod, container).unwrap_or_else(|| "ContainerCreating".into());
                let message =
                    format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}");
                return Err(Refusal::bad_request(message));
            }
        }
    };
    let positive = |key: &str| -> Result<Option<u64>, Refusal> {
        Ok(query.number(key)?.and_then(|n| u64::try_from(n).ok()))
    };
    let stream = match query.get("stream").unwrap_or("All") {
        "All" => None,
        "Stdout" => Some(log::Stream::Stdout),
        "Stderr" => Some(log::Stream::Stderr),
        other => {
            let message = format!(
                "stream: Unsupported value: {other:?}: supported values: \"All\", \"Stderr\", \"Stdout\""
            );
            return Err(Refusal::bad_request(message));
        }
    };
    let now = context.board.now().wall;
    let ago = positive("sinceSeconds")?.map(|seconds| {
        let ago = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
        now.checked_sub(ago).unwrap_or(jiff::Timestamp::MIN)
    });
    let time = query.get("sinceTime").map(str::parse::<jiff::Timestamp>).transpose();
    let time = time.map_err(|e| Refusal::bad_request(format!("sinceTime: not an RFC 3339 time: {e}")))?;
    if ago.is_some() && time.is_some() {
        return Err(Refusal::bad_request(
            "at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
        ));
    }
    let since = ago.or(time);
    let options = LogOptions {
        follow: query.flag("follow") && !query.flag("previous"),
        tail_lines: positive("tailLines")?,
        since,
        timestamps: query.flag("timestamps"),
        limit_bytes: positive("limitBytes")?,
        stream,
    };
    if options.stream.is_some() && options.tail_lines.is_some() {
        return Err(Refusal::bad_request(
            "`tailLines` and specific `stream` are mutually exclusive for now".into(),
        ));
    }
    let (ended, over) = watch::channel(!options.follow);
    if options.follow {
        let changes = context.ask(Request::Watch).await?;
        tokio::spawn(until_ended(changes, uid.0, container.to_string(), attempt, ended));
    }
    let (out, chunks) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    tokio::spawn(async move {
        if let Err(error) = log::send(&dir, attempt, &options, over, out).await {
            tracing::debug!(%error, "a log was not sent to its end");
        }
    });
    let body = StreamBody::new(receiver_stream(chunks).map(|chunk| Ok(Frame::data(chunk))));
    // The log's bytes are whatever the container wrote.
    Ok(streaming(body, "text/plain"))
}

/// The pod, if it has such a container.
fn find(pods: Vec<Pod>, namespace: &str, name: &str, container: &str) -> Result<Pod, Refusal> {
    let named = |p: &Pod| {
        p.metadata.name.as_deref() == Some(name) && p.metadata.namespace.as_deref() == Some(namespace)
    };
    let pod = pods.into_iter().find(named).ok_or_else(|| Refusal::not_found(Kind::Pod, name))?;
    let known = pod.spec.iter().any(|spec| {
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.name);
        let others = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| &c.name);
        others.chain(ephemeral).any(|name| name == container)
    });
    if known {
        return Ok(pod);
    }
    Err(Refusal::bad_request(format!("container {container} is not valid for pod {name}")))
}

/// Says so once the container no longer runs this attempt.
async fn until_ended(
    mut changes: mpsc::Receiver<Change>,
    uid: String,
    container: String,
    attempt: u32,
    ended: watch::Sender<bool>,
) {
    while let Some(change) = changes.recv().await {
        if change.pod.metadata.uid.as_deref() != Some(&uid) {
            continue;
        }
        let over = change.kind == ChangeKind::Deleted || !started(&change.pod, &container);
        tracing::trace!(attempt, over, "a followed container");
        if over {
            ended.send_replace(true);
            return;
        }
        if ended.is_closed() {
            return;
        }
    }
    ended.send_replace(true);
}

fn started(pod: &Pod, container: &str) -> bool {
    state(pod, container).is_some_and(|s| s.running.is_some())
}

/// It runs, or has ended: one that wrote nothing has no file.
fn ran(pod: &Pod, container: &str) -> bool {
    state(pod, container).is_some_and(|s| s.waiting.is_none())
}

fn waiting(pod: &Pod, container: &str) -> Option<String> {
    state(pod, container)?.waiting?.reason
}

fn state(pod: &Pod, container: &str) -> Option<k8s_openapi::api::core::v1::ContainerState> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == container)?.state.clone()
}
