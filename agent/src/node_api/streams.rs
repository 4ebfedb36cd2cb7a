//! Exec and attach by WebSocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! A binary message is a channel (0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; in v5 also 255: close a channel)
//! and its bytes. The last message on channel 3 is a `Status` with the exit code, as kubectl expects it.

use super::{Context, Query, Response};
use crate::request::{Refusal, Request, Target};
use bytes::Bytes;
use coracle_runtime::exec::{self, StartError};
use coracle_runtime::readiness::watch;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use hyper::{StatusCode, upgrade};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes read of a process at once.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks waiting in either direction.
const CHUNKS_MAX: usize = 16;
/// How long output is awaited once the process has ended: a grandchild may hold it open for ever.
const DRAIN: Duration = Duration::from_secs(1);

pub(super) async fn exec(
    context: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
    request: hyper::Request<Incoming>,
) -> Result<Response, Refusal> {
    let command = query.all("command");
    if command.is_empty() {
        return Err(Refusal::bad_request("you must specify at least 1 command for the container".into()));
    }
    let target = target(context, namespace, name, container).await?;
    let wants = Wants::of(query);
    let accepted = accept(&request)?;
    let (ours, theirs) = if wants.tty { (None, None) } else { streams(&wants).map_err(internal)?.unzip() };
    let started =
        exec::start(&context.board, &target.spec, &target.instance, &command, &target.shim, theirs).await;
    let execed = match started {
        Ok(execed) => execed,
        Err(StartError::Command { code, message }) => {
            let channel = if wants.stderr { STDERR } else { STDOUT };
            return Ok(upgraded(&accepted, request, move |socket| fail(socket, channel, message, code)));
        }
        Err(StartError::Other(message)) => {
            return Err(Refusal { code: 500, reason: "InternalError", message });
        }
    };
    let ours = match (ours, execed.terminal) {
        (Some(ours), _) => ours,
        (None, Some(terminal)) => Ours::terminal(terminal).map_err(internal)?,
        (None, None) => {
            return Err(Refusal {
                code: 500,
                reason: "InternalError",
                message: "the terminal did not come".into(),
            });
        }
    };
    let exec = Some(execed.exec);
    let session = Session { target, exec, exit: execed.exit, close_frames: accepted.has_close_frames() };
    Ok(upgraded(&accepted, request, move |socket| relay(socket, ours, session)))
}

pub(super) async fn attach(
    context: &Context,
    namespace: &str,
    name: &str,
    container: &str,
    query: &Query,
    request: hyper::Request<Incoming>,
) -> Result<Response, Refusal> {
    let target = target(context, namespace, name, container).await?;
    let accepted = accept(&request)?;
    let attached = target.shim.attach(&coracle_runtime::layout::instance_name(&target.instance)).await;
    let attached =
        attached.map_err(|e| Refusal { code: 500, reason: "InternalError", message: e.to_string() })?;
    let wants = Wants::of(query);
    let receiver = |fd: Option<OwnedFd>| fd.map(pipe::Receiver::from_owned_fd).transpose();
    let stdin = match attached.stdin.filter(|_| wants.stdin && target.stdin) {
        Some(fd) if target.tty => Some(Input::Terminal(watch(fd, Interest::WRITABLE).map_err(internal)?)),
        Some(fd) => Some(Input::Pipe(pipe::Sender::from_owned_fd(fd).map_err(internal)?)),
        None => None,
    };
    let ours = Ours {
        stdout: receiver(attached.stdout).map_err(internal)?.map(Output::Pipe),
        stderr: receiver(attached.stderr).map_err(internal)?.map(Output::Pipe),
        stdin,
        resize: None,
    };
    // Attaching ends with its streams; a container has no exit code for those who watch it.
    let (done, exit) = oneshot::channel();
    done.send(0).expect("the receiver is here");
    let session = Session { target, exec: None, exit, close_frames: accepted.has_close_frames() };
    Ok(upgraded(&accepted, request, move |socket| relay(socket, ours, session)))
}

async fn target(context: &Context, namespace: &str, name: &str, container: &str) -> Result<Target, Refusal> {
    let (answer, heard) = oneshot::channel();
    let (namespace, name, container) = (namespace.to_string(), name.to_string(), container.to_string());
    context.send(Request::Container { namespace, name, container, answer }).await?;
    heard.await.map_err(|_| super::ended())?
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn internal(error: io::Error) -> Refusal {
    Refusal { code: 500, reason: "InternalError", message: error.to_string() }
}

struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wants {
    /// The API server's names and the kubelet's.
    fn of(query: &Query) -> Wants {
        let either = |a: &str, b: &str| query.flag(a) || query.flag(b);
        let (stdin, tty) = (either("stdin", "input"), query.flag("tty"));
        let (stdout, stderr) = (either("stdout", "output"), either("stderr", "error"));
        Wants { stdin, tty, stdout, stderr: stderr && !tty }
    }
}

/// What to answer, or why not.
struct Accepted {
    key: String,
    protocol: &'static str,
}

impl Accepted {
    /// Only v5 has a message that closes a channel.
    fn has_close_frames(&self) -> bool {
        self.protocol == PROTOCOLS[0]
    }
}

fn accept(request: &hyper::Request<Incoming>) -> Result<Accepted, Refusal> {
    let header = |name| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let upgrade = header(UPGRADE).eq_ignore_ascii_case("websocket");
    let key = header(SEC_WEBSOCKET_KEY);
    if !upgrade || key.is_empty() {
        return Err(Refusal::bad_request(
            "this is a WebSocket: send Upgrade: websocket and Sec-WebSocket-Key".into(),
        ));
    }
    let offered: Vec<&str> = header(SEC_WEBSOCKET_PROTOCOL).split(',').map(str::trim).collect();
    let protocol = PROTOCOLS.into_iter().find(|p| offered.contains(p));
    let protocol = protocol.ok_or_else(|| {
        Refusal::bad_request(format!("Sec-WebSocket-Protocol must be one of {}", PROTOCOLS.join(", ")))
    })?;
    Ok(Accepted { key: derive_accept_key(key.as_bytes()), protocol })
}

/// Answers the handshake, and lets `talk` have the socket once that is through.
fn upgraded<F>(
    accepted: &Accepted,
    request: hyper::Request<Incoming>,
    talk: impl FnOnce(Socket) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<(), SocketError>> + Send,
{
    tokio::spawn(async move {
        let io = match upgrade::on(request).await {
            Ok(io) => TokioIo::new(io),
            Err(error) => return tracing::debug!(%error, "a WebSocket was not opened"),
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        if let Err(error) = talk(socket).await {
            tracing::debug!(%error, "a stream ended badly");
        }
    });
    let mut response: Response = hyper::Response::new(
        Empty::new().map_err(|never: std::convert::Infallible| -> io::Error { match never {} }).boxed(),
    );
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(accepted.protocol));
    if let Ok(key) = HeaderValue::from_str(&accepted.key) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, key);
    }
    response
}

/// Our ends of the process's streams.
struct Ours {
    stdout: Option<Output>,
    stderr: Option<Output>,
    stdin: Option<Input>,
    /// The exec's own terminal.
    resize: Option<OwnedFd>,
}

enum Output {
    Pipe(pipe::Receiver),
    Terminal(AsyncFd<OwnedFd>),
}

enum Input {
    Pipe(pipe::Sender),
    Terminal(AsyncFd<OwnedFd>),
}

impl Ours {
    fn terminal(master: OwnedFd) -> io::Result<Ours> {
        let flags =
            nix::fcntl::OFlag::from_bits_truncate(nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_GETFL)?);
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
        let (input, resize) = (master.try_clone()?, master.try_clone()?);
        Ok(Ours {
            stdout: Some(Output::Terminal(watch(master, Interest::READABLE)?)),
            stderr: None,
            stdin: Some(Input::Terminal(watch(input, Interest::WRITABLE)?)),
            resize: Some(resize),
        })
    }
}

/// Pipes for what is wanted, `/dev/null` for the rest: ours, and the process's.
fn streams(wants: &Wants) -> io::Result<Option<(Ours, [OwnedFd; 3])>> {
    let null = || {
        Ok::<_, io::Error>(OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null")?))
    };
    let mut ours = Ours { stdout: None, stderr: None, stdin: None, resize: None };
    let input = if wants.stdin {
        let (read, write) = io::pipe()?;
        ours.stdin = Some(Input::Pipe(pipe::Sender::from_owned_fd(write.into())?));
        read.into()
    } else {
        null()?
    };
    let output = |wanted: bool| -> io::Result<(Option<Output>, OwnedFd)> {
        if !wanted {
            return Ok((None, null()?));
        }
        let (read, write) = io::pipe()?;
        Ok((Some(Output::Pipe(pipe::Receiver::from_owned_fd(read.into())?)), write.into()))
    };
    let (stdout, out) = output(wants.stdout)?;
    let (stderr, err) = output(wants.stderr)?;
    (ours.stdout, ours.stderr) = (stdout, stderr);
    Ok(Some((ours, [input, out, err])))
}

struct Session {
    target: Target,
    /// The process that [`exec`] started; an attached client has none of its own.
    exec: Option<u64>,
    exit: oneshot::Receiver<i32>,
    close_frames: bool,
}

type Socket = WebSocketStream<TokioIo<upgrade::Upgraded>>;

/// A command that was not there to be run, told as a shell tells it: what is wrong, and 126 or 127.
async fn fail(mut socket: Socket, channel: u8, said: String, code: i32) -> Result<(), SocketError> {
    socket.send(message(channel, format!("{said}\n").as_bytes())).await?;
    socket.send(message(ERROR, status(code).to_string().as_bytes())).await?;
    socket.close(None).await
}

/// Both directions go on while the other one waits: a process that does not read its input must not keep its output
/// from coming, and the other way round.
async fn relay(socket: Socket, ours: Ours, session: Session) -> Result<(), SocketError> {
    let Session { target, exec, mut exit, close_frames } = session;
    let (mut socket, heard) = socket.split();
    let (out, mut chunks) = mpsc::channel::<(u8, Vec<u8>)>(CHUNKS_MAX);
    for (channel, output) in [(STDOUT, ours.stdout), (STDERR, ours.stderr)] {
        if let Some(output) = output {
            tokio::spawn(read(output, channel, out.clone()));
        }
    }
    drop(out);
    let listening = listen(heard, ours.stdin, &target, ours.resize.as_ref(), close_frames);
    tokio::pin!(listening);
    let mut code = None;
    let mut drained = false;
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    while code.is_none() || !drained {
        tokio::select! {
            chunk = chunks.recv(), if !drained => match chunk {
                Some((channel, bytes)) => {
                    socket.send(message(channel, &bytes)).await?;
                    // A slow reader is no silent process.
                    if code.is_some() && exec.is_some() {
                        deadline.as_mut().reset(tokio::time::Instant::now() + DRAIN);
                    }
                }
                None => drained = true,
            },
            ended = &mut exit, if code.is_none() => {
                code = Some(ended.unwrap_or(137));
                if exec.is_some() {
                    deadline.as_mut().reset(tokio::time::Instant::now() + DRAIN);
                }
            }
            () = &mut deadline => drained = true,
            left = &mut listening => {
                if let Some(exec) = exec {
                    hang_up(&target, exec).await;
                }
                left?;
                return socket.close().await;
            }
        }
    }
    let code = code.unwrap_or(0);
    socket.send(message(ERROR, status(code).to_string().as_bytes())).await?;
    socket.close().await
}

/// The client is gone: its process gets SIGHUP, as after a hang-up.
async fn hang_up(target: &Target, exec: u64) {
    if let Err(error) = target.shim.signal_exec(exec, libc::SIGHUP).await {
        tracing::debug!(%error, "the process had already ended");
    }
}

/// Takes what the client sends until it leaves.
async fn listen(
    mut heard: futures_util::stream::SplitStream<Socket>,
    input: Option<Input>,
    target: &Target,
    terminal: Option<&OwnedFd>,
    close_frames: bool,
) -> Result<(), SocketError> {
    let mut stdin = input.map(|input| {
        let (send, bytes) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
        tokio::spawn(write(input, bytes));
        send
    });
    loop {
        let bytes = match heard.next().await {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Close(_))) | None => return Ok(()),
            Some(Ok(_)) => continue,
            Some(Err(error)) => return Err(error),
        };
        match bytes.split_first() {
            Some((&STDIN, data)) if !data.is_empty() => {
                if let Some(send) = &stdin
                    && send.send(data.to_vec()).await.is_err()
                {
                    stdin = None;
                }
            }
            Some((&CLOSE, [STDIN])) if close_frames => stdin = None,
            Some((&RESIZE, size)) => resize(size, target, terminal).await,
            _ => {}
        }
    }
}

/// `{"Width": …, "Height": …}`; anything else is left alone, as the kubelet does.
async fn resize(size: &[u8], target: &Target, terminal: Option<&OwnedFd>) {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let Ok(Size { width, height }) = serde_json::from_slice(size) else { return };
    let resized = match terminal {
        Some(terminal) => {
            coracle_runtime::terminal::resize(terminal.as_fd(), height, width).map_err(|e| e.to_string())
        }
        None => {
            let instance = coracle_runtime::layout::instance_name(&target.instance);
            target.shim.resize(&instance, height, width).await.map_err(|e| e.to_string())
        }
    };
    if let Err(error) = resized {
        tracing::debug!(error, "a terminal was not resized");
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut data = Vec::with_capacity(1 + bytes.len());
    data.push(channel);
    data.extend_from_slice(bytes);
    Message::Binary(Bytes::from(data))
}

fn status(code: i32) -> serde_json::Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

async fn read(mut output: Output, channel: u8, out: mpsc::Sender<(u8, Vec<u8>)>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = match &mut output {
            Output::Pipe(pipe) => pipe.read(&mut chunk).await,
            Output::Terminal(fd) => {
                fd.async_io(Interest::READABLE, |fd| nix::unistd::read(fd, &mut chunk).map_err(Into::into))
                    .await
            }
        };
        // A terminal whose last process is gone answers EIO: its end.
        let Ok(length @ 1..) = length else { return };
        if out.send((channel, chunk[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn write(mut input: Input, mut bytes: mpsc::Receiver<Vec<u8>>) {
    while let Some(chunk) = bytes.recv().await {
        let written = match &mut input {
            Input::Pipe(pipe) => pipe.write_all(&chunk).await,
            Input::Terminal(fd) => write_terminal(fd, &chunk).await,
        };
        // A process that does not read any more is none to write to.
        if written.is_err() {
            return;
        }
    }
}

async fn write_terminal(fd: &AsyncFd<OwnedFd>, mut chunk: &[u8]) -> io::Result<()> {
    while !chunk.is_empty() {
        let length =
            fd.async_io(Interest::WRITABLE, |fd| nix::unistd::write(fd, chunk).map_err(Into::into)).await?;
        chunk = &chunk[length..];
    }
    Ok(())
}
