//! Exec and attach: a process's streams, and a client by WebSocket or SPDY.
//!
//! The last word on the error channel is a `Status` with the exit code, as kubectl expects it.

pub(super) mod client;
pub(super) mod port_forward;
mod process;
mod spdy;
mod websocket;

use super::{Context, Query, Response};
use crate::request::{Refusal, Request, Target};
use client::{Accepted, Broken, Client, ERROR, Heard, PROTOCOLS, Reader, STDERR, STDOUT, accept};
use coracle_runtime::exec::{self, StartError};
use coracle_runtime::readiness::watch;
use hyper::body::Incoming;
use process::{Input, Ours, Output, pipes};
use serde_json::json;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

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
    let accepted = offered(&request)?;
    let (ours, theirs) =
        if wants.tty { (None, None) } else { Some(pipes(&wants).map_err(internal)?).unzip() };
    let started =
        exec::start(&context.board, &target.spec, &target.instance, &command, &target.shim, theirs).await;
    let execed = match started {
        Ok(execed) => execed,
        Err(StartError::Command { code, message }) => {
            let channel = if wants.stderr { STDERR } else { STDOUT };
            return Ok(upgraded(&accepted, request, wants, move |client| {
                fail(client, channel, message, code)
            }));
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
    let session = Session { target, exec, exit: execed.exit };
    Ok(upgraded(&accepted, request, wants, move |client| relay(client, ours, session)))
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
    let accepted = offered(&request)?;
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
    let session = Session { target, exec: None, exit };
    Ok(upgraded(&accepted, request, wants, move |client| relay(client, ours, session)))
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

struct Session {
    target: Target,
    /// The process that [`exec`] started; an attached client has none of its own.
    exec: Option<u64>,
    exit: oneshot::Receiver<i32>,
}

/// Answers the handshake, and lets `talk` have the client once that is through.
fn upgraded<F>(
    accepted: &Accepted,
    request: hyper::Request<Incoming>,
    wants: Wants,
    talk: impl FnOnce(Client) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = Result<(), Broken>> + Send,
{
    let (websocket, protocol) = (accepted.is_websocket(), accepted.protocol);
    accepted.upgrade(request, move |io| async move {
        let client = match websocket {
            true => Client::websocket(io, protocol).await,
            false => Client::spdy(io, protocol, &wants).await?,
        };
        talk(client).await
    })
}

/// Both may be offered; the kubelet takes either.
fn offered(request: &hyper::Request<Incoming>) -> Result<Accepted, Refusal> {
    accept(request.headers(), &PROTOCOLS[..2], &PROTOCOLS[1..])
}

/// A command that was not there to be run, told as a shell tells it: what is wrong, and 126 or 127.
async fn fail(client: Client, channel: u8, said: String, code: i32) -> Result<(), Broken> {
    let Client { mut writer, says_status, .. } = client;
    writer.send(channel, format!("{said}\n").as_bytes()).await?;
    writer.send(ERROR, &status(code, says_status)).await?;
    writer.close().await
}

/// Both directions go on while the other one waits: a process that does not read its input must not keep its output
/// from coming, and the other way round.
async fn relay(client: Client, ours: Ours, session: Session) -> Result<(), Broken> {
    let Session { target, exec, mut exit } = session;
    let Client { mut writer, reader, says_status } = client;
    let (out, mut chunks) = mpsc::channel::<(u8, Vec<u8>)>(CHUNKS_MAX);
    for (channel, output) in [(STDOUT, ours.stdout), (STDERR, ours.stderr)] {
        if let Some(output) = output {
            tokio::spawn(process::read(output, channel, out.clone()));
        }
    }
    drop(out);
    let listening = listen(reader, ours.stdin, &target, ours.resize.as_ref());
    tokio::pin!(listening);
    let mut code = None;
    let mut drained = false;
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    while code.is_none() || !drained {
        tokio::select! {
            chunk = chunks.recv(), if !drained => match chunk {
                Some((channel, bytes)) => {
                    writer.send(channel, &bytes).await?;
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
                return writer.close().await;
            }
        }
    }
    let code = code.unwrap_or(0);
    writer.send(ERROR, &status(code, says_status)).await?;
    writer.close().await
}

/// The client is gone: its process gets SIGHUP, as after a hang-up.
async fn hang_up(target: &Target, exec: u64) {
    if let Err(error) = target.shim.signal_exec(exec, libc::SIGHUP).await {
        tracing::debug!(%error, "the process had already ended");
    }
}

/// Takes what the client sends until it leaves.
async fn listen(
    mut reader: Reader,
    input: Option<Input>,
    target: &Target,
    terminal: Option<&OwnedFd>,
) -> Result<(), Broken> {
    let mut stdin = input.map(|input| {
        let (send, bytes) = mpsc::channel::<Vec<u8>>(CHUNKS_MAX);
        tokio::spawn(process::write(input, bytes));
        send
    });
    while let Some(heard) = reader.next().await? {
        match heard {
            Heard::Stdin(data) => {
                if let Some(send) = &stdin
                    && send.send(data).await.is_err()
                {
                    stdin = None;
                }
            }
            Heard::StdinClosed => stdin = None,
            Heard::Resize(size) => resize(&size, target, terminal).await,
        }
    }
    Ok(())
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

/// The last word on the error channel; before v4 nothing is said of success.
fn status(code: i32, says_status: bool) -> Vec<u8> {
    let failure = format!("command terminated with non-zero exit code: exit status {code}");
    match (code, says_status) {
        (0, true) => json!({"metadata": {}, "status": "Success"}).to_string().into_bytes(),
        (0, false) => Vec::new(),
        (_, false) => failure.into_bytes(),
        (_, true) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": failure,
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })
        .to_string()
        .into_bytes(),
    }
}
