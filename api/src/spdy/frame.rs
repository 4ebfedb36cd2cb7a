//! Frames: what is in their eight bytes of head, and behind it.

use super::headers::{Deflater, Headers, HeadersError, Inflater};

/// Of a control frame without its head; a block of headers is smaller deflated than inflated, or nearly so.
pub const CONTROL_BYTES_MAX: usize = super::headers::BYTES_MAX + 1024;
const HEAD_BYTES: usize = 8;
const VERSION: u16 = 3;
/// The top bit of a frame is that of control; the top bit of an id is reserved.
const CONTROL: u32 = 0x8000_0000;
const ID: u32 = 0x7fff_ffff;
const FLAG_FIN: u8 = 1;

/// Odd for those that clients open.
pub type StreamId = u32;

/// A frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A stream begins; `fin`: nothing follows from who opened it.
    SynStream {
        /// Which.
        stream: StreamId,
        /// No data.
        fin: bool,
        /// With what.
        headers: Headers,
    },
    /// It is accepted.
    SynReply {
        /// Which.
        stream: StreamId,
        /// No data.
        fin: bool,
        /// With what.
        headers: Headers,
    },
    /// It is over for both ends.
    RstStream {
        /// Which.
        stream: StreamId,
        /// See [`super::status`].
        status: u32,
    },
    /// To be sent back.
    Ping {
        /// Odd for those of clients.
        id: u32,
    },
    /// No more streams are taken.
    GoAway {
        /// The last that was.
        last: StreamId,
    },
    /// More headers.
    Headers {
        /// Which.
        stream: StreamId,
        /// The last of it.
        fin: bool,
        /// Which headers.
        headers: Headers,
    },
    /// Bytes of a stream; `fin`: the last.
    Data {
        /// Which.
        stream: StreamId,
        /// The last of it.
        fin: bool,
        /// At most as much as was read at once.
        bytes: Vec<u8>,
    },
    /// `SETTINGS`, `WINDOW_UPDATE`, and those that nobody knows: left alone.
    Other {
        /// The frame's type.
        kind: u16,
    },
}

/// Bytes that are no SPDY/3.1. The connection is of no use after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("SPDY/{0} is not spoken")]
    Version(u16),
    /// Beyond the bound.
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    /// Too short for its type.
    #[error("a control frame of type {0} is too short")]
    TooShort(u16),
    /// A stream numbered 0.
    #[error("no stream has the number 0")]
    NoStream,
    /// In it.
    #[error(transparent)]
    Headers(#[from] HeadersError),
}

/// From bytes to frames.
#[derive(Debug)]
pub struct Decoder {
    /// The frame that has not wholly come, of at most its head and [`CONTROL_BYTES_MAX`].
    partial: Vec<u8>,
    data: Option<Rest>,
    inflater: Inflater,
}

/// What is yet to come of a data frame.
#[derive(Clone, Copy, Debug)]
struct Rest {
    stream: StreamId,
    fin: bool,
    bytes: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { partial: Vec::new(), data: None, inflater: Inflater::new() }
    }
}

impl Decoder {
    /// Takes from the front of `input` up to the end of one frame; `None` once all is taken.
    ///
    /// # Errors
    /// What makes the connection useless.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if let Some(rest) = self.data.take() {
            return Ok(self.data_piece(rest, input));
        }
        if !self.fill(input, HEAD_BYTES) {
            return Ok(None);
        }
        let head = <[u8; HEAD_BYTES]>::try_from(&self.partial[..HEAD_BYTES]).expect("it was filled");
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let length = usize::try_from(length).expect("24 bits fit");
        let fin = head[4] & FLAG_FIN != 0;
        if first & CONTROL == 0 {
            if first == 0 {
                return Err(FrameError::NoStream);
            }
            self.partial.clear();
            return Ok(self.data_piece(Rest { stream: first, fin, bytes: length }, input));
        }
        let version = u16::from_be_bytes([head[0] & 0x7f, head[1]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if !self.fill(input, HEAD_BYTES + length) {
            return Ok(None);
        }
        let partial = std::mem::take(&mut self.partial);
        let kind = u16::from_be_bytes([head[2], head[3]]);
        control(kind, fin, &partial[HEAD_BYTES..], &mut self.inflater).map(Some)
    }

    /// Takes input until that much of the frame is there.
    fn fill(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.partial.len()).min(input.len());
        let (taken, rest) = input.split_at(missing);
        self.partial.extend_from_slice(taken);
        *input = rest;
        self.partial.len() >= wanted
    }

    fn data_piece(&mut self, rest: Rest, input: &mut &[u8]) -> Option<Frame> {
        let Rest { stream, fin, bytes } = rest;
        if input.is_empty() && bytes > 0 {
            self.data = Some(Rest { stream, fin, bytes });
            return None;
        }
        let (taken, after) = input.split_at(bytes.min(input.len()));
        *input = after;
        let left = bytes - taken.len();
        if left > 0 {
            self.data = Some(Rest { stream, fin, bytes: left });
        }
        Some(Frame::Data { stream, fin: fin && left == 0, bytes: taken.to_vec() })
    }
}

fn control(kind: u16, fin: bool, body: &[u8], inflater: &mut Inflater) -> Result<Frame, FrameError> {
    let short = || FrameError::TooShort(kind);
    let word = |index: usize| -> Result<u32, FrameError> {
        let bytes = body.get(4 * index..4 * index + 4).ok_or_else(short)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    };
    let stream = || match word(0)? & ID {
        0 => Err(FrameError::NoStream),
        stream => Ok(stream),
    };
    Ok(match kind {
        1 => {
            // The stream that it belongs to, priority and slot.
            let block = body.get(10..).ok_or_else(short)?;
            Frame::SynStream { stream: stream()?, fin, headers: inflater.block(block)? }
        }
        2 => {
            let block = body.get(4..).ok_or_else(short)?;
            Frame::SynReply { stream: stream()?, fin, headers: inflater.block(block)? }
        }
        3 => Frame::RstStream { stream: stream()?, status: word(1)? },
        6 => Frame::Ping { id: word(0)? },
        7 => Frame::GoAway { last: word(0)? & ID },
        8 => {
            let block = body.get(4..).ok_or_else(short)?;
            Frame::Headers { stream: stream()?, fin, headers: inflater.block(block)? }
        }
        kind => Frame::Other { kind },
    })
}

/// From frames to bytes. Header blocks build on each other: what is encoded must be sent, in its order.
#[derive(Debug)]
pub struct Encoder(Deflater);

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder(Deflater::new())
    }
}

impl Encoder {
    /// Appends a frame to `output`. Data of more than a frame's 24 bits of length becomes several; [`Frame::Other`]
    /// is nothing.
    pub fn put(&mut self, frame: &Frame, output: &mut Vec<u8>) {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                body.extend(self.0.block(headers));
                put_control(1, *fin, &body, output);
            }
            Frame::SynReply { stream, fin, headers } | Frame::Headers { stream, fin, headers } => {
                let kind = if matches!(frame, Frame::SynReply { .. }) { 2 } else { 8 };
                let mut body = stream.to_be_bytes().to_vec();
                body.extend(self.0.block(headers));
                put_control(kind, *fin, &body, output);
            }
            Frame::RstStream { stream, status } => {
                put_control(3, false, &[stream.to_be_bytes(), status.to_be_bytes()].concat(), output);
            }
            Frame::Ping { id } => put_control(6, false, &id.to_be_bytes(), output),
            Frame::GoAway { last } => put_control(7, false, &[last.to_be_bytes(), [0; 4]].concat(), output),
            Frame::Data { stream, fin, bytes } => {
                const PIECE: usize = 0x00ff_ffff;
                let mut rest = bytes.as_slice();
                loop {
                    let (piece, after) = rest.split_at(rest.len().min(PIECE));
                    rest = after;
                    put_head(*stream, *fin && rest.is_empty(), piece.len(), output);
                    output.extend_from_slice(piece);
                    if rest.is_empty() {
                        return;
                    }
                }
            }
            Frame::Other { .. } => {}
        }
    }
}

fn put_control(kind: u16, fin: bool, body: &[u8], output: &mut Vec<u8>) {
    put_head(CONTROL | (u32::from(VERSION) << 16) | u32::from(kind), fin, body.len(), output);
    output.extend_from_slice(body);
}

fn put_head(first: u32, fin: bool, length: usize, output: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("frames are short").to_be_bytes();
    output.extend_from_slice(&first.to_be_bytes());
    output.extend_from_slice(&[if fin { FLAG_FIN } else { 0 }, length[1], length[2], length[3]]);
}
