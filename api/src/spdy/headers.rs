//! Header blocks: name and value pairs, deflated with a dictionary that both ends know, one stream of zlib a direction.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Of a block, inflated. kubectl's are below 100 bytes.
pub const BYTES_MAX: usize = 16 << 10;
/// Pairs of a block.
const PAIRS_MAX: usize = 128;

/// Names in lower case, and their values.
pub type Headers = Vec<(String, String)>;

/// The value of a header.
pub fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// A block that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// Not zlib, or with another dictionary.
    #[error("a header block is not what zlib makes with SPDY's dictionary")]
    Corrupt,
    /// Beyond the bound.
    #[error("a header block is larger than {BYTES_MAX} bytes")]
    TooLarge,
    /// Lengths that do not fit, text that is no UTF-8, names in upper case.
    #[error("a header block holds no names and values")]
    Malformed,
}

/// The draft's words that come with their lengths, in its order.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade user-agent \
vary via warning www-authenticate method get status";
/// Those of its next part that do so, and the rest, which is plain text.
const MORE: [&str; 8] =
    ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"];
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of the draft, section 2.6.10.1.
fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1500);
    for word in WORDS.split(' ').chain(MORE) {
        put(&mut bytes, word);
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// Makes blocks, each after the last.
#[derive(Debug)]
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Deflater {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&dictionary()).expect("a new stream takes a dictionary");
        Deflater(zlib)
    }

    /// Values that hold NUL would be several; they are cut there.
    pub(super) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap_or(0).to_be_bytes().to_vec();
        for (name, value) in headers {
            put(&mut plain, &name.to_ascii_lowercase());
            put(&mut plain, value.split('\0').next().unwrap_or_default());
        }
        // zlib adds at most a few bytes to what it cannot make smaller.
        let mut block = Vec::with_capacity(plain.len() + plain.len() / 1000 + 64);
        let before = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(usize::MAX).min(plain.len());
            let room = block.capacity() - block.len();
            let step = self.0.compress_vec(&plain[taken..], &mut block, FlushCompress::Sync);
            step.expect("a stream of our own is in order");
            if block.len() < block.capacity() {
                return block;
            }
            block.reserve(room.max(64));
        }
    }
}

/// Reads blocks, each after the last.
#[derive(Debug)]
pub(super) struct Inflater {
    zlib: Decompress,
    dictionary: Option<Vec<u8>>,
}

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater { zlib: Decompress::new(true), dictionary: Some(dictionary()) }
    }

    pub(super) fn block(&mut self, mut block: &[u8]) -> Result<Headers, HeadersError> {
        let mut plain = Vec::with_capacity(BYTES_MAX + 1);
        while !block.is_empty() {
            let (taken, length) = (self.zlib.total_in(), plain.len());
            match self.zlib.decompress_vec(block, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(HeadersError::Corrupt),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let dictionary = self.dictionary.take().ok_or(HeadersError::Corrupt)?;
                    self.zlib.set_dictionary(&dictionary).map_err(|_| HeadersError::Corrupt)?;
                }
                Err(_) => return Err(HeadersError::Corrupt),
            }
            if plain.len() > BYTES_MAX {
                return Err(HeadersError::TooLarge);
            }
            let taken = usize::try_from(self.zlib.total_in() - taken).unwrap_or(usize::MAX);
            block = block.get(taken..).unwrap_or_default();
            if taken == 0 && plain.len() == length {
                return Err(HeadersError::Corrupt);
            }
        }
        read(&plain).ok_or(HeadersError::Malformed)
    }
}

fn read(plain: &[u8]) -> Option<Headers> {
    let (count, mut rest) = number(plain)?;
    if count > PAIRS_MAX {
        return None;
    }
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut text = || {
            let (length, tail) = number(rest)?;
            let (text, tail) = tail.split_at_checked(length)?;
            rest = tail;
            std::str::from_utf8(text).ok()
        };
        let (name, value) = (text()?, text()?);
        if name.is_empty() || name.chars().any(char::is_uppercase) {
            return None;
        }
        headers.push((name.to_string(), value.to_string()));
    }
    rest.is_empty().then_some(headers)
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_be_bytes(*number)).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        let dictionary = dictionary();
        assert_eq!(dictionary.len(), 1423);
        // Adler-32, as every zlib stream that was made with it begins.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }
}
