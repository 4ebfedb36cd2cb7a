//! One record of a CRI log: `TIME STREAM P|F TEXT\n`.

/// Which of a container's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Time, stream and tag are no longer than this.
pub(super) const HEAD_BYTES_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) time: &'a [u8],
    pub(super) stream: Stream,
    /// The line ends here.
    pub(super) whole: bool,
    pub(super) text: &'a [u8],
}

impl Record<'_> {
    /// A shim writes at most 16 KiB of text into one; four times that is somebody else's.
    pub(super) const BYTES_MAX: usize = 64 * 1024;

    /// `None`: not a record.
    pub(super) fn parse(bytes: &[u8]) -> Option<Record<'_>> {
        let mut parts = bytes.strip_suffix(b"\n")?.splitn(4, |byte| *byte == b' ');
        let (time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let stream = match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        Some(Record { time, stream, whole: tag != b"P", text })
    }
}

/// Whether the record that begins so is whole.
pub(super) fn tag_of(head: &[u8]) -> Option<bool> {
    head.split(|byte| *byte == b' ').nth(2).map(|tag| tag != b"P")
}
