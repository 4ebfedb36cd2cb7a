//! `/portForward/NS/POD`: for each connection of the client two SPDY streams, one for data and one for what went wrong.
//!
//! The port is dialled on the loopback of the pod's network, as containerd does: a server that listens there only is
//! reached too. [`connect`] dials the pod's own address instead; the control plane's proxy uses it.

use super::client::{self, accept};
use super::spdy::{Connection, Received, Stream, Writer};
use super::{internal, spdy, websocket};
use crate::node_api::{Context, Response};
use crate::request::{Kind, Refusal, Request};
use coracle_api::spdy::headers::value;
use coracle_api::spdy::status;
use coracle_pod::PodSpec;
use coracle_runtime::net::PodDialer;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Of SPDY, and of SPDY within a WebSocket.
const SPDY_PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// For the second stream of a pair, as in the kubelet.
const PAIRED: Duration = Duration::from_secs(30);
/// Pairs that are not whole yet.
const PAIRS_MAX: usize = 32;
const CHUNK_BYTES: usize = 16 << 10;
/// Until a port answers.
const DIAL: Duration = Duration::from_secs(10);

pub(in crate::node_api) async fn serve(
    context: &Context,
    namespace: &str,
    name: &str,
    request: hyper::Request<Incoming>,
) -> Result<Response, Refusal> {
    let (_, dialer) = pod(context, namespace, name).await?;
    let accepted = accept(request.headers(), &[TUNNELLED], &[SPDY_PROTOCOL])?;
    let websocket = accepted.is_websocket();
    Ok(accepted.upgrade(request, move |io| async move {
        let connection = match websocket {
            true => spdy::serve(websocket::Bytestream::new(websocket::over(io).await)),
            false => spdy::serve(TokioIo::new(io)),
        };
        pairs(connection, Arc::new(dialer)).await;
        Ok(())
    }))
}

/// `/coracle/v1/connect/NS/POD/PORT`: the bytes of one connection to the pod's address.
pub(in crate::node_api) async fn connect(
    context: &Context,
    namespace: &str,
    name: &str,
    port: &str,
    mut request: hyper::Request<Incoming>,
) -> Result<Response, Refusal> {
    let port = port.parse().ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| Refusal::bad_request("a port is a number from 1 to 65535".into()))?;
    let (pod, dialer) = pod(context, namespace, name).await?;
    let ip = pod.status.and_then(|status| status.pod_ip).and_then(|ip| ip.parse().ok());
    let ip: IpAddr = ip.ok_or_else(|| Refusal::unavailable(format!("pod {name} has no address")))?;
    if request.headers().get("upgrade").is_none_or(|value| value != "tcp") {
        return Err(Refusal::bad_request("Upgrade: tcp is expected".into()));
    }
    let mut stream = dial(&dialer, &[ip], port).await.map_err(Refusal::unavailable)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let ended = match upgrade.await {
            Ok(io) => tokio::io::copy_bidirectional(&mut TokioIo::new(io), &mut stream).await,
            Err(error) => return tracing::debug!(%error, "a connection to a pod was not opened"),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to a pod broke");
        }
    });
    Ok(client::switched("tcp", []))
}

/// A pod that runs, and the way into its network.
async fn pod(context: &Context, namespace: &str, name: &str) -> Result<(Pod, PodDialer), Refusal> {
    let pods = context.ask(Request::Pods).await?;
    let named = |pod: &Pod| {
        pod.metadata.name.as_deref() == Some(name) && pod.metadata.namespace.as_deref() == Some(namespace)
    };
    let pod = pods.into_iter().find(named).ok_or_else(|| Refusal::not_found(Kind::Pod, name))?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if phase != "Running" {
        return Err(Refusal::bad_request(format!("pod {name} is not running: its phase is {phase}")));
    }
    let spec =
        PodSpec::from_api(&pod).map_err(|_| Refusal::bad_request(format!("pod {name} is not understood")))?;
    let dialer = PodDialer::open(&context.board.settings().layout, &spec).map_err(internal)?;
    Ok((pod, dialer))
}

/// The first of the addresses that answers.
async fn dial(dialer: &PodDialer, ips: &[IpAddr], port: u16) -> Result<TcpStream, String> {
    let mut failed = String::new();
    for ip in ips {
        let address = SocketAddr::new(*ip, port);
        let why = match tokio::time::timeout(DIAL, dialer.dial(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "i/o timeout".to_string(),
        };
        failed = format!("dial tcp {address}: connect: {why}");
    }
    Err(failed)
}

/// One stream of a pair, and since when.
struct Half {
    stream: Stream,
    is_data: bool,
    since: Instant,
}

/// Pairs the streams by their request, and forwards each pair.
async fn pairs(connection: Connection, dialer: Arc<PodDialer>) {
    let Connection { mut opened, writer } = connection;
    let mut halves: BTreeMap<String, Half> = BTreeMap::new();
    while let Some(stream) = opened.recv().await {
        let stale: Vec<String> = halves
            .iter()
            .filter(|(_, half)| half.since.elapsed() > PAIRED)
            .map(|(request, _)| request.clone())
            .collect();
        for half in stale.iter().filter_map(|request| halves.remove(request)) {
            refuse(&writer, half.stream.id).await;
        }
        let is_data = match value(&stream.headers, "streamtype") {
            Some("data") => true,
            Some("error") => false,
            _ => {
                refuse(&writer, stream.id).await;
                continue;
            }
        };
        // Old clients do not number requests; their data stream follows the error stream.
        let request = match value(&stream.headers, "requestid") {
            Some(request) => request.to_string(),
            None if is_data => stream.id.saturating_sub(2).to_string(),
            None => stream.id.to_string(),
        };
        match halves.remove(&request) {
            Some(other) if other.is_data != is_data => {
                let (data, error) = if is_data { (stream, other.stream) } else { (other.stream, stream) };
                tokio::spawn(forward(dialer.clone(), writer.clone(), data, error.id));
            }
            Some(other) => {
                refuse(&writer, stream.id).await;
                halves.insert(request, other);
            }
            None if halves.len() >= PAIRS_MAX => refuse(&writer, stream.id).await,
            None => drop(halves.insert(request, Half { stream, is_data, since: Instant::now() })),
        }
    }
}

async fn refuse(writer: &Writer, stream: u32) {
    if let Err(spdy::Over) = writer.reset(stream, status::REFUSED_STREAM).await {
        tracing::debug!(stream, "whoever has left needs no refusal");
    }
}

async fn forward(dialer: Arc<PodDialer>, writer: Writer, data: Stream, error: u32) {
    let port = value(&data.headers, "port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let dialled = match port {
        Some(port) => {
            let ips = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            // The first failure says more than that there is no IPv6.
            match dial(&dialer, &ips[..1], port).await {
                Ok(stream) => Ok(stream),
                Err(why) => dial(&dialer, &ips[1..], port).await.map_err(|_| why),
            }
        }
        None => Err("a port is a number from 1 to 65535".to_string()),
    };
    let Stream { id, incoming, .. } = data;
    let ended = match dialled {
        Ok(stream) => carry(stream, &writer, id, incoming).await,
        Err(why) => {
            let port = port.unwrap_or_default();
            let text = format!("error forwarding port {port} to the pod: {why}");
            writer.send(error, text.into_bytes()).await
        }
    };
    // Both streams end, whatever became of the connection.
    let told = match ended.and(writer.finish(id).await) {
        Ok(()) => writer.finish(error).await,
        Err(over) => Err(over),
    };
    if let Err(over) = told {
        tracing::debug!(port, %over, "a forwarded connection");
    }
}

/// Bytes both ways until both ends have finished, or one has broken off.
async fn carry(
    stream: TcpStream,
    writer: &Writer,
    id: u32,
    mut incoming: mpsc::Receiver<Received>,
) -> Result<(), spdy::Over> {
    let (mut from_pod, mut to_pod) = stream.into_split();
    let up = async {
        while let Some(received) = incoming.recv().await {
            match received {
                Received::Bytes(bytes) if to_pod.write_all(&bytes).await.is_ok() => {}
                // The pod does not read any more: its answer may still come.
                Received::Bytes(_) => return true,
                Received::Reset => return false,
            }
        }
        // The pod hears of the end; one that has closed already needs no word.
        drop(to_pod.shutdown().await);
        true
    };
    let down = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from_pod.read(&mut chunk).await {
            writer.send(id, chunk[..length].to_vec()).await?;
        }
        Ok(())
    };
    tokio::pin!(up, down);
    tokio::select! {
        goes_on = &mut up => if goes_on { down.await } else { Ok(()) },
        // Who has nothing more to say after the pod has finished is not waited for: TCP's half-closed state is rare here.
        ended = &mut down => ended,
    }
}
