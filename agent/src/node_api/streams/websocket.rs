//! WebSocket as the API server passes it on: a binary message is a channel (0 stdin, 1 stdout, 2 stderr, 3 error,
//! 4 resize; in v5 also 255: close a channel) and its bytes. For port-forward a message is bytes of SPDY.

use super::client::{Broken, CLOSE, Heard, RESIZE, STDIN};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, Utf8Bytes};

/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

pub(super) type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The socket of a connection that was upgraded.
pub(super) async fn over(io: Upgraded) -> Socket {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await
}

/// A close without a code is an error to Go's clients.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

pub(super) struct Writer(pub SplitSink<Socket, Message>);

impl Writer {
    pub(super) async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Broken> {
        let mut data = Vec::with_capacity(1 + bytes.len());
        data.push(channel);
        data.extend_from_slice(bytes);
        Ok(self.0.send(Message::Binary(Bytes::from(data))).await?)
    }

    pub(super) async fn close(mut self) -> Result<(), Broken> {
        self.0.send(goodbye()).await?;
        Ok(self.0.close().await?)
    }
}

pub(super) struct Reader {
    pub socket: SplitStream<Socket>,
    /// Only v5 has a message that closes a channel.
    pub close_frames: bool,
}

impl Reader {
    pub(super) async fn next(&mut self) -> Result<Option<Heard>, Broken> {
        loop {
            let bytes = match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error.into()),
            };
            match bytes.split_first() {
                Some((&STDIN, data)) if !data.is_empty() => return Ok(Some(Heard::Stdin(data.to_vec()))),
                Some((&CLOSE, [STDIN])) if self.close_frames => return Ok(Some(Heard::StdinClosed)),
                Some((&RESIZE, size)) => return Ok(Some(Heard::Resize(size.to_vec()))),
                _ => {}
            }
        }
    }
}

/// The bytes of all messages, one after another.
pub(super) struct Bytestream {
    socket: Socket,
    unread: Bytes,
    goodbye_said: bool,
}

impl Bytestream {
    pub(super) fn new(socket: Socket) -> Bytestream {
        Bytestream { socket, unread: Bytes::new(), goodbye_said: false }
    }
}

/// That the other end has closed is as well.
fn closed(error: SocketError) -> io::Result<()> {
    match error {
        SocketError::ConnectionClosed | SocketError::AlreadyClosed => Ok(()),
        error => Err(broken(error)),
    }
}

fn broken(error: SocketError) -> io::Error {
    match error {
        SocketError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl AsyncRead for Bytestream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bytestream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::Binary(Bytes::copy_from_slice(buf));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.goodbye_said {
            if let Err(error) = ready!(Pin::new(&mut self.socket).poll_ready(cx)) {
                return Poll::Ready(closed(error));
            }
            self.goodbye_said = true;
            if let Err(error) = Pin::new(&mut self.socket).start_send(goodbye()) {
                return Poll::Ready(closed(error));
            }
        }
        let ended = ready!(Pin::new(&mut self.socket).poll_close(cx));
        Poll::Ready(ended.or_else(closed))
    }
}
