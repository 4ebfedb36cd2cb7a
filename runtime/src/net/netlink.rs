//! Netlink's wire form: messages, attributes, and a socket that asks and waits for the answer.
//!
//! Follows `include/uapi/linux/netlink.h`. The kernel handles a request within `send`, so its acknowledgement is
//! queued when `send` returns: nothing here waits but [`Socket::dump`], which the kernel always ends.

use super::sys;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

/// Bytes of one receive buffer: the kernel cuts dumps into pieces of at most this.
const RECEIVE_BYTES: usize = 32 << 10;
/// How often a dump that a concurrent change tore is asked for again.
const DUMP_ATTEMPTS_MAX: u32 = 8;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;
const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The kernel's no: an errno, and its own words where it gave some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errno: Errno,
    /// The extended acknowledgement, such as `Unknown device type`.
    pub words: Option<String>,
    /// Which message of a batch was refused, counted from 0; 0 outside a batch.
    pub message: usize,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.errno.desc())?;
        match &self.words {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal { errno, words: None, message: 0 }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        refusal.errno.into()
    }
}

/// A run of attributes, built front to back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Attributes {
        Attributes::default()
    }

    /// `kind` goes as it is, flags included.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        let length = u16::try_from(value.len() + 4).expect("no attribute here comes near 64 KiB");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A text with its closing NUL.
    pub(super) fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A number in the machine's byte order, as route netlink has them.
    pub(super) fn native(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as netfilter has them.
    pub(super) fn network(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(self, kind: u16, inner: &Attributes) -> Attributes {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    pub(super) fn join(parts: impl IntoIterator<Item = Attributes>) -> Attributes {
        Attributes(parts.into_iter().flat_map(|part| part.0).collect())
    }
}

/// The attributes in `bytes` as (type without flags, value); a broken rest is left out.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, value))
    })
}

/// The value of the first attribute of type `kind`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// A text attribute's value without its NUL.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// One request: family-specific header and attributes.
#[derive(Clone, Debug)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// `flags` beside `NLM_F_REQUEST`; what asks for an answer is added by the socket.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8], attributes: &Attributes) -> Message {
        let mut body = Vec::with_capacity(header.len() + attributes.0.len());
        body.extend(header);
        body.extend(&attributes.0);
        Message { kind, flags, body }
    }

    /// Has the kernel acknowledge this message though it is not the last of its datagram.
    pub(super) fn ask_acknowledgement(&mut self) {
        self.flags |= NLM_F_ACK;
    }

    fn write(&self, out: &mut Vec<u8>, extra_flags: u16, sequence: u32) {
        let length = u32::try_from(HEADER_BYTES + self.body.len()).expect("a message is far below 4 GiB");
        out.extend(length.to_ne_bytes());
        out.extend(self.kind.to_ne_bytes());
        out.extend((self.flags | NLM_F_REQUEST | extra_flags).to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend(0u32.to_ne_bytes());
        out.extend(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// A netlink socket and the number of its next request.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket of the calling thread's network namespace.
    pub(super) fn open(protocol: SockProtocol) -> Result<Socket, Refusal> {
        Ok(Socket { fd: sys::netlink(protocol)?, sequence: 1 })
    }

    /// Asks for one change and waits for the acknowledgement.
    pub(super) fn call(&mut self, message: &Message) -> Result<(), Refusal> {
        self.call_all(std::slice::from_ref(message))
    }

    /// Sends every message in one datagram; the last one's acknowledgement, or the first refusal, is the answer.
    pub(super) fn call_all(&mut self, messages: &[Message]) -> Result<(), Refusal> {
        let first = self.send(messages, NLM_F_ACK)?;
        let mut acknowledged = false;
        let mut refused = None;
        self.answers(first, false, |answer| {
            if answer.kind == NLMSG_ERROR {
                match answer.refusal() {
                    None => acknowledged = true,
                    Some(refusal) if refused.is_none() => {
                        let message = answer.sequence.wrapping_sub(first) as usize;
                        refused = Some(Refusal { message, ..refusal });
                    }
                    Some(_) => {}
                }
            }
            Ok(true)
        })?;
        match refused {
            Some(refusal) => Err(refusal),
            None if acknowledged => Ok(()),
            None => Err(Errno::ENOMSG.into()),
        }
    }

    /// Asks for one object: its message's body, `None` if the kernel has none such (`ENODEV`, `ENOENT`).
    pub(super) fn get(&mut self, message: &Message) -> Result<Option<Vec<u8>>, Refusal> {
        let first = self.send(std::slice::from_ref(message), 0)?;
        let mut found = None;
        self.answers(first, false, |answer| {
            if answer.kind != NLMSG_ERROR {
                found = Some(Ok(answer.body.to_vec()));
            } else if let Some(refusal) = answer.refusal() {
                found = Some(Err(refusal));
            }
            Ok(true)
        })?;
        match found {
            Some(Ok(body)) => Ok(Some(body)),
            Some(Err(refusal)) if matches!(refusal.errno, Errno::ENODEV | Errno::ENOENT) => Ok(None),
            Some(Err(refusal)) => Err(refusal),
            None => Err(Errno::ENOMSG.into()),
        }
    }

    /// Asks for every object: the bodies. A dump that a change tore is asked for again.
    pub(super) fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, Refusal> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let first = self.send(std::slice::from_ref(message), NLM_F_DUMP)?;
            let mut bodies = Vec::new();
            let mut torn = false;
            self.answers(first, true, |answer| {
                torn |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.kind {
                    NLMSG_DONE => return Ok(false),
                    NLMSG_ERROR => return answer.refusal().map_or(Ok(false), Err),
                    _ => bodies.push(answer.body.to_vec()),
                }
                Ok(true)
            })?;
            if !torn {
                return Ok(bodies);
            }
        }
        Err(Errno::EINTR.into())
    }

    fn send(&mut self, messages: &[Message], last_flags: u16) -> Result<u32, Refusal> {
        let first = self.sequence;
        let mut bytes = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            let flags = if index + 1 == messages.len() { last_flags } else { 0 };
            message.write(&mut bytes, flags, self.sequence);
            self.sequence = self.sequence.wrapping_add(1);
        }
        sys::send_all(&self.fd, &bytes)?;
        Ok(first)
    }

    /// Hands every answer to requests from `first` on to `each`, until it says enough or, unless `wait`, none is
    /// queued.
    fn answers(
        &self,
        first: u32,
        wait: bool,
        mut each: impl FnMut(&Answer<'_>) -> Result<bool, Refusal>,
    ) -> Result<(), Refusal> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        while let Some(length) = sys::receive(&self.fd, &mut buffer, wait)? {
            let mut rest = &buffer[..length];
            while let Some((answer, after)) = Answer::split(rest) {
                rest = after;
                // What an earlier request that ended in an error left behind is not this one's answer.
                let ours = answer.sequence.wrapping_sub(first) < self.sequence.wrapping_sub(first);
                if ours && !each(&answer)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// One message from the kernel.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Answer<'_> {
    /// The first message of `bytes`, and what follows.
    fn split(bytes: &[u8]) -> Option<(Answer<'_>, &[u8])> {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let answer = Answer {
            kind: u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?),
            flags: u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?),
            sequence: u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
            body: bytes.get(HEADER_BYTES..length)?,
        };
        Some((answer, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }

    /// What an `NLMSG_ERROR` says; `None` is success.
    fn refusal(&self) -> Option<Refusal> {
        let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        let code = number(self.body).unwrap_or(-libc::EBADMSG);
        if code == 0 {
            return None;
        }
        // The refused request's header follows the code, and all of the request unless capped; then the words.
        let whole = self.body.get(4..).and_then(number).and_then(|length| usize::try_from(length).ok());
        let request = if self.flags & NLM_F_CAPPED == 0 { whole.unwrap_or(0) } else { HEADER_BYTES };
        let words = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| {
                attribute(self.body.get(4 + request.next_multiple_of(4)..)?, NLMSGERR_ATTR_MSG).map(text)
            })
            .flatten();
        Some(Refusal { errno: Errno::from_raw(code.wrapping_neg()), words, message: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_and_a_broken_rest_ends_them() {
        let inner = Attributes::new().text(3, "abc").network(4, 7);
        let mut bytes = Attributes::new().native(1, 5).nest(2, &inner).bytes(9, &[1]).0;
        let found: Vec<_> = attributes(&bytes).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(found, [(1, 5u32.to_ne_bytes().to_vec()), (2, inner.0.clone()), (9, vec![1])]);
        assert_eq!(attribute(&inner.0, 3).map(text).as_deref(), Some("abc"));
        for end in 0..bytes.len() {
            assert!(attributes(&bytes[..end]).count() <= 3);
        }
        bytes[0] = 1;
        assert_eq!(attributes(&bytes).count(), 0, "a length below its own header ends the run");
    }

    #[test]
    fn hostile_answers_are_no_panic() {
        for bytes in [&[][..], &[1, 0, 0], &[0; 15], &[0; 16], &[255; 40]] {
            assert!(Answer::split(bytes).is_none(), "{bytes:?}");
        }
        let refusal = |body: &[u8], flags| Answer { kind: NLMSG_ERROR, flags, sequence: 1, body }.refusal();
        assert_eq!(refusal(&[], 0).map(|r| r.errno), Some(Errno::EBADMSG));
        assert_eq!(refusal(&[255; 8], NLM_F_ACK_TLVS).map(|r| r.words), Some(None));
        assert_eq!(refusal(&i32::MIN.to_ne_bytes(), 0).map(|r| r.errno), Some(Errno::UnknownErrno));
        assert_eq!(refusal(&[0; 4], 0), None);
    }
}
