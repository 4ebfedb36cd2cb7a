//! The server's end of a SPDY/3.1 connection: streams that the client opens, as channels of bytes.
//!
//! ```text
//! io ─► Decoder ─► Stream.incoming (one bounded channel a stream)      Writer ─► one bounded channel ─► Encoder ─► io
//! ```
//! Invariants: a client may have [`STREAMS_MAX`] streams open; each keeps [`CHUNKS_MAX`] chunks, and then the whole connection
//! waits, as with moby/spdystream; the connection ends when the last [`Writer`] is dropped, or the client leaves.

use coracle_api::spdy::headers::Headers;
use coracle_api::spdy::{Decoder, Encoder, Frame, FrameError, StreamId, status};
use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

const STREAMS_MAX: usize = 128;
/// Of a stream, and each at most what is read at once.
const CHUNKS_MAX: usize = 8;
const READ_BYTES: usize = 16 << 10;
/// Frames that wait to be written; and bytes of them that are written at once.
const FRAMES_MAX: usize = 16;
const WRITE_BYTES: usize = 64 << 10;
/// For the client to hang up, once we have.
const LINGER: Duration = Duration::from_secs(10);

/// A connection.
pub(super) struct Connection {
    /// Those that the client opens; ends when it has left.
    pub opened: mpsc::Receiver<Stream>,
    pub writer: Writer,
}

/// A stream that the client opened and we accepted.
pub(super) struct Stream {
    pub id: StreamId,
    pub headers: Headers,
    /// Ends with the last byte.
    pub incoming: mpsc::Receiver<Received>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Bytes(Vec<u8>),
    /// The client gave the stream up, both ways.
    Reset,
}

/// Writes to streams. A clone is the same connection.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Frame>);

/// The connection is over.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client's connection is over")]
pub(super) struct Over;

impl Writer {
    pub(super) async fn send(&self, stream: StreamId, bytes: Vec<u8>) -> Result<(), Over> {
        self.0.send(Frame::Data { stream, fin: false, bytes }).await.map_err(|_| Over)
    }

    /// Nothing more from us on this stream.
    pub(super) async fn finish(&self, stream: StreamId) -> Result<(), Over> {
        self.0.send(Frame::Data { stream, fin: true, bytes: Vec::new() }).await.map_err(|_| Over)
    }

    pub(super) async fn reset(&self, stream: StreamId, status: u32) -> Result<(), Over> {
        self.0.send(Frame::RstStream { stream, status }).await.map_err(|_| Over)
    }
}

/// Serves `io`, which was upgraded, in a task of its own.
pub(super) fn serve<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Connection {
    let (send, frames) = mpsc::channel(FRAMES_MAX);
    let (announce, opened) = mpsc::channel(FRAMES_MAX);
    // Weak: its answers to pings do not keep a connection that nobody else writes to.
    let answers = send.downgrade();
    tokio::spawn(async move {
        let (reader, writer) = tokio::io::split(io);
        let mut reading = pin!(read(reader, announce, answers));
        let mut writing = pin!(write(writer, frames));
        let ended = tokio::select! {
            ended = &mut reading => ended.and(writing.await.map_err(Into::into)),
            ended = &mut writing => match (ended, timeout(LINGER, reading).await) {
                (Err(error), _) => Err(error.into()),
                (Ok(()), rest) => rest.unwrap_or(Ok(())),
            },
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a SPDY connection ended badly");
        }
    });
    Connection { opened, writer: Writer(send) }
}

#[derive(Debug, thiserror::Error)]
enum SpdyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

async fn write(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) -> io::Result<()> {
    let mut encoder = Encoder::default();
    let mut output = Vec::new();
    while let Some(frame) = frames.recv().await {
        encoder.put(&frame, &mut output);
        while output.len() < WRITE_BYTES
            && let Ok(frame) = frames.try_recv()
        {
            encoder.put(&frame, &mut output);
        }
        io.write_all(&output).await?;
        io.flush().await?;
        output.clear();
        output.shrink_to(WRITE_BYTES);
    }
    io.shutdown().await
}

async fn read(
    mut io: impl AsyncRead + Unpin,
    announce: mpsc::Sender<Stream>,
    answers: mpsc::WeakSender<Frame>,
) -> Result<(), SpdyError> {
    let mut table = Table { open: BTreeMap::new(), last: 0, announce, answers };
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        let length = io.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        let mut input = &chunk[..length];
        while let Some(frame) = decoder.next(&mut input)? {
            table.take(frame).await;
        }
    }
}

/// The streams that the client may still send on.
struct Table {
    open: BTreeMap<StreamId, mpsc::Sender<Received>>,
    /// The highest number so far: numbers only grow.
    last: StreamId,
    announce: mpsc::Sender<Stream>,
    answers: mpsc::WeakSender<Frame>,
}

impl Table {
    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { stream, fin, headers } => self.opened(stream, fin, headers).await,
            Frame::Data { stream, fin, bytes } => {
                if let Some(to) = self.open.get(&stream)
                    && !bytes.is_empty()
                    && to.send(Received::Bytes(bytes)).await.is_err()
                {
                    // Nobody reads it any more; what still comes is dropped.
                    self.open.remove(&stream);
                }
                if fin {
                    self.open.remove(&stream);
                }
            }
            Frame::Headers { stream, fin: true, .. } => drop(self.open.remove(&stream)),
            Frame::RstStream { stream, .. } => {
                if let Some(to) = self.open.remove(&stream) {
                    // An error is a stream that nobody reads.
                    drop(to.send(Received::Reset).await);
                }
            }
            // Odd ones are the client's own; even ones would answer ours.
            Frame::Ping { id } if id % 2 == 1 => self.answer(Frame::Ping { id }).await,
            Frame::Ping { .. }
            | Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::GoAway { .. }
            | Frame::Other { .. } => {}
        }
    }

    async fn opened(&mut self, stream: StreamId, fin: bool, headers: Headers) {
        if stream.is_multiple_of(2) || stream <= self.last {
            return self.answer(Frame::RstStream { stream, status: status::PROTOCOL_ERROR }).await;
        }
        self.last = stream;
        if self.open.len() >= STREAMS_MAX {
            return self.answer(Frame::RstStream { stream, status: status::REFUSED_STREAM }).await;
        }
        let (send, incoming) = mpsc::channel(CHUNKS_MAX);
        if !fin {
            self.open.insert(stream, send);
        }
        self.answer(Frame::SynReply { stream, fin: false, headers: Vec::new() }).await;
        if self.announce.send(Stream { id: stream, headers, incoming }).await.is_err() {
            // No more streams are expected.
            self.open.remove(&stream);
            self.answer(Frame::RstStream { stream, status: status::REFUSED_STREAM }).await;
        }
    }

    async fn answer(&self, frame: Frame) {
        // Whoever wrote here has finished: there is nobody to answer any more.
        if let Some(answers) = self.answers.upgrade() {
            drop(answers.send(frame).await);
        }
    }
}
