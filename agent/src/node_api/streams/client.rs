//! Who is at the other end of an exec or attach, by WebSocket or by SPDY, with one face.

use super::{Wants, spdy, websocket};
use crate::node_api::Response;
use crate::request::Refusal;
use coracle_api::spdy::headers::value;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::upgrade::Upgraded;
use hyper::{StatusCode, upgrade};
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Error as SocketError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
pub(super) const CLOSE: u8 = 255;
/// Best first. v5 is of WebSockets alone.
pub(super) const PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"];
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// For the streams of a SPDY client to be opened, as in the kubelet.
const STREAMS_OPENED: Duration = Duration::from_secs(30);
/// Of one change of size.
const RESIZE_BYTES_MAX: usize = 1024;

/// A client that left in its own way.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    WebSocket(#[from] SocketError),
    #[error(transparent)]
    Spdy(#[from] spdy::Over),
    #[error("the client did not open its streams")]
    Unopened,
}

/// What it says.
pub(super) enum Heard {
    Stdin(Vec<u8>),
    StdinClosed,
    /// JSON.
    Resize(Vec<u8>),
}

/// How to answer a request for an upgrade.
pub(super) struct Accepted {
    /// Of WebSocket.
    key: Option<String>,
    pub protocol: &'static str,
}

/// Chooses among what the client offers.
///
/// # Errors
/// It asks for no upgrade, or for nothing that is spoken here.
pub(super) fn accept(
    headers: &HeaderMap,
    websockets: &[&'static str],
    spdy: &[&'static str],
) -> Result<Accepted, Refusal> {
    let header = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let offered = |name: HeaderName| -> Vec<&str> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',').map(str::trim)).collect()
    };
    let chosen = |name: HeaderName, spoken: &[&'static str]| -> Result<&'static str, Refusal> {
        let (offered, title) = (offered(name.clone()), name.as_str().to_string());
        let protocol = spoken.iter().find(|protocol| offered.contains(protocol));
        protocol
            .copied()
            .ok_or_else(|| Refusal::bad_request(format!("{title} must be one of {}", spoken.join(", "))))
    };
    let key = header(SEC_WEBSOCKET_KEY);
    if header(UPGRADE).eq_ignore_ascii_case("SPDY/3.1") {
        return Ok(Accepted { key: None, protocol: chosen(STREAM_PROTOCOL, spdy)? });
    }
    if !header(UPGRADE).eq_ignore_ascii_case("websocket") || key.is_empty() {
        let message = "an upgrade is needed: SPDY/3.1, or WebSocket with its Sec-WebSocket-Key";
        return Err(Refusal::bad_request(message.into()));
    }
    let protocol = chosen(SEC_WEBSOCKET_PROTOCOL, websockets)?;
    Ok(Accepted { key: Some(derive_accept_key(key.as_bytes())), protocol })
}

impl Accepted {
    pub(super) fn is_websocket(&self) -> bool {
        self.key.is_some()
    }

    /// The answer, and the connection once the client has it.
    pub(super) fn upgrade<F>(
        &self,
        mut request: hyper::Request<Incoming>,
        talk: impl FnOnce(Upgraded) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = Result<(), Broken>> + Send,
    {
        let upgrade = upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = match upgrade.await {
                Ok(io) => io,
                Err(error) => return tracing::debug!(%error, "a stream was not opened"),
            };
            if let Err(error) = talk(io).await {
                tracing::debug!(%error, "a stream ended badly");
            }
        });
        let protocol = HeaderValue::from_static(self.protocol);
        match &self.key {
            Some(key) => switched(
                "websocket",
                [
                    (SEC_WEBSOCKET_PROTOCOL, protocol),
                    (SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(key).expect("base64 is a header's text")),
                ],
            ),
            None => switched("SPDY/3.1", [(STREAM_PROTOCOL, protocol)]),
        }
    }
}

/// 101.
pub(in crate::node_api) fn switched<const N: usize>(
    protocol: &'static str,
    headers: [(HeaderName, HeaderValue); N],
) -> Response {
    let mut response: Response = hyper::Response::new(
        Empty::new().map_err(|never: std::convert::Infallible| -> io::Error { match never {} }).boxed(),
    );
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let all = response.headers_mut();
    all.insert(UPGRADE, HeaderValue::from_static(protocol));
    all.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    all.extend(headers.map(|(name, value)| (Some(name), value)));
    response
}

/// Both directions.
pub(super) struct Client {
    pub writer: Writer,
    pub reader: Reader,
    /// Before v4 the last word is a text, not a `Status`.
    pub says_status: bool,
}

pub(super) enum Writer {
    WebSocket(websocket::Writer),
    Spdy { writer: spdy::Writer, streams: Streams },
}

pub(super) enum Reader {
    WebSocket(websocket::Reader),
    Spdy(SpdyReader),
}

/// The numbers of the streams that we write to.
#[derive(Default)]
pub(super) struct Streams {
    stdout: Option<u32>,
    stderr: Option<u32>,
    error: Option<u32>,
}

impl Client {
    pub(super) async fn websocket(io: Upgraded, protocol: &str) -> Client {
        let (sink, stream) = websocket::over(io).await.split();
        let reader = websocket::Reader { socket: stream, close_frames: protocol == PROTOCOLS[0] };
        Client {
            writer: Writer::WebSocket(websocket::Writer(sink)),
            reader: Reader::WebSocket(reader),
            says_status: true,
        }
    }

    /// Once it has opened a stream for each thing that it wants.
    pub(super) async fn spdy(io: Upgraded, protocol: &str, wants: &Wants) -> Result<Client, Broken> {
        let mut connection = spdy::serve(TokioIo::new(io));
        let resizes = wants.tty && protocol != "v2.channel.k8s.io";
        let mut missing: Vec<&str> = [
            ("error", true),
            ("stdin", wants.stdin),
            ("stdout", wants.stdout),
            ("stderr", wants.stderr),
            ("resize", resizes),
        ]
        .into_iter()
        .filter_map(|(name, wanted)| wanted.then_some(name))
        .collect();
        let mut streams = Streams::default();
        let (mut stdin, mut resize) = (None, None);
        let opened = async {
            while !missing.is_empty() {
                let stream = connection.opened.recv().await.ok_or(Broken::Unopened)?;
                let what = value(&stream.headers, "streamtype").unwrap_or_default();
                missing.retain(|name| *name != what);
                match what {
                    "error" => streams.error = Some(stream.id),
                    "stdout" => streams.stdout = Some(stream.id),
                    "stderr" => streams.stderr = Some(stream.id),
                    "stdin" => stdin = Some(stream.incoming),
                    "resize" => resize = Some(stream.incoming),
                    _ => {}
                }
            }
            Ok::<(), Broken>(())
        };
        tokio::time::timeout(STREAMS_OPENED, opened).await.map_err(|_| Broken::Unopened)??;
        Ok(Client {
            writer: Writer::Spdy { writer: connection.writer, streams },
            reader: Reader::Spdy(SpdyReader { stdin, resize, size: Vec::new(), opened: connection.opened }),
            says_status: protocol == PROTOCOLS[1],
        })
    }
}

impl Writer {
    pub(super) async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Broken> {
        match self {
            Writer::WebSocket(writer) => writer.send(channel, bytes).await,
            Writer::Spdy { writer, streams } => {
                let stream = match channel {
                    STDOUT => streams.stdout,
                    STDERR => streams.stderr,
                    _ => streams.error,
                };
                match stream {
                    Some(stream) => Ok(writer.send(stream, bytes.to_vec()).await?),
                    None => Ok(()),
                }
            }
        }
    }

    pub(super) async fn close(self) -> Result<(), Broken> {
        match self {
            Writer::WebSocket(writer) => writer.close().await,
            Writer::Spdy { writer, streams } => {
                for stream in [streams.stdout, streams.stderr, streams.error].into_iter().flatten() {
                    writer.finish(stream).await?;
                }
                Ok(())
            }
        }
    }
}

pub(super) struct SpdyReader {
    stdin: Option<mpsc::Receiver<spdy::Received>>,
    resize: Option<mpsc::Receiver<spdy::Received>>,
    /// The beginning of a change of size.
    size: Vec<u8>,
    /// Ends when the client leaves.
    opened: mpsc::Receiver<spdy::Stream>,
}

impl Reader {
    /// `None` once the client has left.
    pub(super) async fn next(&mut self) -> Result<Option<Heard>, Broken> {
        match self {
            Reader::WebSocket(reader) => reader.next().await,
            Reader::Spdy(reader) => Ok(reader.next().await),
        }
    }
}

impl SpdyReader {
    async fn next(&mut self) -> Option<Heard> {
        loop {
            // Changes of size come one a line.
            if let Some(end) = self.size.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.size.drain(..=end).collect();
                line.pop();
                return Some(Heard::Resize(line));
            }
            tokio::select! {
                // In this order: what was said before leaving is heard.
                biased;
                chunk = receive(&mut self.stdin), if self.stdin.is_some() => match chunk {
                    Some(spdy::Received::Bytes(bytes)) => return Some(Heard::Stdin(bytes)),
                    Some(spdy::Received::Reset) | None => {
                        self.stdin = None;
                        return Some(Heard::StdinClosed);
                    }
                },
                chunk = receive(&mut self.resize), if self.resize.is_some() => match chunk {
                    Some(spdy::Received::Bytes(bytes)) if self.size.len() + bytes.len() <= RESIZE_BYTES_MAX => {
                        self.size.extend(bytes);
                    }
                    Some(spdy::Received::Bytes(_)) => self.size.clear(),
                    Some(spdy::Received::Reset) | None => self.resize = None,
                },
                // Streams beyond those that were agreed on are left alone.
                stream = self.opened.recv() => { stream?; }
            }
        }
    }
}

async fn receive(from: &mut Option<mpsc::Receiver<spdy::Received>>) -> Option<spdy::Received> {
    match from {
        Some(receiver) => receiver.recv().await,
        None => None,
    }
}
