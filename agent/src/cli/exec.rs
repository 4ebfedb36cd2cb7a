//! `coracle exec`: a WebSocket client of the node API, with the command's exit code as its own.

use super::client::{Client, ServerError, encode};
use super::pods::{default_container, one, one_name};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use coracle_runtime::terminal;
use futures_util::{SinkExt, StreamExt};
use std::io::{IsTerminal, Write};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes read of standard input at once.
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Pod name, or pod/NAME.
    #[arg(required = true, value_name = "NAME")]
    words: Vec<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Container; the pod's first by default.
    #[arg(short, long)]
    container: Option<String>,
    /// Pass standard input.
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Command and arguments, after --.
    #[arg(last = true)]
    command: Vec<String>,
}

pub(super) async fn exec(client: &Client, exec: &Exec) -> Result<i32> {
    let Exec { stdin, tty, command, namespace, .. } = exec;
    let (stdin, tty) = (*stdin, *tty);
    let (name, rest) = one_name(&exec.words)?;
    if !rest.is_empty() {
        // kubectl took the command without `--` once.
        bail!("exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead");
    }
    if command.is_empty() {
        bail!("you must specify at least one command for the container: exec {name} -- COMMAND");
    }
    let tty = tty && std::io::stdin().is_terminal() || {
        if tty {
            writeln!(
                std::io::stderr(),
                "Unable to use a TTY - input is not a terminal or the right kind of file"
            )?;
        }
        false
    };
    let container = match &exec.container {
        Some(container) => container.clone(),
        None => default_container(&one(client, namespace, &name).await?)?,
    };
    let mut query: Vec<String> = command.iter().map(|word| format!("command={}", encode(word))).collect();
    query.extend([
        format!("stdin={stdin}"),
        format!("tty={tty}"),
        "stdout=true".into(),
        format!("stderr={}", !tty),
    ]);
    let (namespace, name) = (encode(namespace), encode(&name));
    let url = format!("ws://localhost/exec/{namespace}/{name}/{}?{}", encode(&container), query.join("&"));
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse()?);
    let stream = client.connect().await?;
    let socket = match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => socket,
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            match ServerError::of(&status) {
                Some(refused) => return Err(refused.into()),
                None => bail!("the agent answered {}", response.status()),
            }
        }
        Err(error) => return Err(error).context("the agent closed the connection"),
    };
    // Restored when this function ends, however it does.
    let _raw = if tty { Some(terminal::Raw::enter()?) } else { None };
    let (send, mut receive) = socket.split();
    // Beside each other: a command that does not read its input yet must not keep its output from being shown.
    let sending = send_input(send, stdin, tty);
    tokio::pin!(sending);
    let mut sent = false;
    loop {
        tokio::select! {
            heard = receive.next() => match heard {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(code) = hear(&bytes)? {
                        return Ok(code);
                    }
                }
                Some(Ok(Message::Close(_))) | None => bail!("the connection ended before the command did"),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("the connection ended before the command did"),
            },
            // What the command still said is on its way, and tells more than an end of sending.
            ended = &mut sending, if !sent => match ended {
                Err(error) if error.is::<Error>() => sent = true,
                ended => return ended.map(|()| 0),
            },
        }
    }
}

/// Sends standard input and the terminal's size, for ever: the command's end is heard elsewhere.
async fn send_input(
    mut send: impl SinkExt<Message, Error = Error> + Unpin,
    stdin: bool,
    tty: bool,
) -> Result<()> {
    let mut resized = signal(SignalKind::window_change())?;
    if tty {
        send.send(size()).await?;
    }
    let mut input = tokio::io::stdin();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut reading = stdin;
    loop {
        tokio::select! {
            length = input.read(&mut chunk), if reading => match length? {
                // v5: closes channel 0.
                0 => {
                    reading = false;
                    send.send(Message::Binary(Bytes::from_static(&[255, 0]))).await?;
                }
                length => {
                    let mut data = vec![0];
                    data.extend_from_slice(&chunk[..length]);
                    send.send(Message::Binary(data.into())).await?;
                }
            },
            _ = resized.recv() => if tty {
                send.send(size()).await?;
            },
        }
    }
}

fn size() -> Message {
    let (rows, columns) = terminal::own_size().unwrap_or((24, 80));
    let mut data = vec![4];
    data.extend_from_slice(serde_json::json!({"Width": columns, "Height": rows}).to_string().as_bytes());
    Message::Binary(data.into())
}

/// Passes output on; the exit code when the last message says it.
fn hear(bytes: &[u8]) -> Result<Option<i32>> {
    match bytes.split_first() {
        Some((1, data)) => {
            let mut out = std::io::stdout().lock();
            out.write_all(data).and_then(|()| out.flush())?;
        }
        Some((2, data)) => {
            let mut err = std::io::stderr().lock();
            err.write_all(data).and_then(|()| err.flush())?;
        }
        Some((3, data)) => {
            let status: serde_json::Value = serde_json::from_slice(data)?;
            if status["status"] == "Success" {
                return Ok(Some(0));
            }
            let code = status["details"]["causes"][0]["message"].as_str().and_then(|c| c.parse().ok());
            match code {
                Some(code) => {
                    writeln!(std::io::stderr(), "command terminated with exit code {code}")?;
                    return Ok(Some(code));
                }
                None => bail!("{}", status["message"].as_str().unwrap_or("the command failed")),
            }
        }
        _ => {}
    }
    Ok(None)
}
