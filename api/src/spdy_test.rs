use super::headers::{BYTES_MAX, Headers, HeadersError};
use super::*;

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| ((*name).to_string(), (*value).to_string())).collect()
}

/// Every frame of the bytes, read in pieces of `step`.
fn decoded(bytes: &[u8], step: usize) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for mut piece in bytes.chunks(step) {
        while let Some(frame) = decoder.next(&mut piece)? {
            frames.push(frame);
        }
        assert!(piece.is_empty());
    }
    Ok(frames)
}

/// Pieces of data of one stream put together again.
fn gathered(frames: Vec<Frame>) -> Vec<Frame> {
    let mut whole: Vec<Frame> = Vec::new();
    for frame in frames {
        match (whole.last_mut(), frame) {
            (
                Some(Frame::Data { stream, fin, bytes }),
                Frame::Data { stream: of, fin: last, bytes: more },
            ) if *stream == of && !*fin => {
                bytes.extend(more);
                *fin = last;
            }
            (_, frame) => whole.push(frame),
        }
    }
    whole
}

#[test]
fn what_is_written_is_read_in_whatever_pieces_it_comes() {
    let stream_type = |what: &str| headers(&[("streamtype", what), ("port", "8080"), ("requestid", "0")]);
    let frames = vec![
        Frame::SynStream { stream: 1, fin: false, headers: stream_type("error") },
        Frame::SynStream { stream: 3, fin: true, headers: stream_type("data") },
        Frame::SynReply { stream: 1, fin: false, headers: Vec::new() },
        Frame::Data { stream: 1, fin: false, bytes: b"hello".to_vec() },
        Frame::Data { stream: 3, fin: true, bytes: vec![7; 70_000] },
        Frame::Headers { stream: 1, fin: true, headers: headers(&[("a", ""), ("b", "ü")]) },
        Frame::Ping { id: 9 },
        Frame::RstStream { stream: 1, status: status::CANCEL },
        Frame::Data { stream: 5, fin: true, bytes: Vec::new() },
        Frame::GoAway { last: 3 },
    ];
    let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
    frames.iter().for_each(|frame| encoder.put(frame, &mut bytes));
    for step in [1, 2, 7, 8, 9, 4096, bytes.len()] {
        assert_eq!(gathered(decoded(&bytes, step).expect("frames")), frames, "in pieces of {step}");
    }
}

/// The first header block of `kubectl port-forward`, deflated by the original zlib.
#[test]
fn a_frame_of_another_implementation_is_read() {
    // `deflateSetDictionary` with the draft's dictionary, one `deflate` with `Z_SYNC_FLUSH`.
    let block = include!("spdy/fixture.in");
    let mut bytes = vec![0x80, 3, 0, 1, 0, 0, 0, u8::try_from(10 + block.len()).expect("short")];
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(block);
    let expected = headers(&[("streamtype", "error"), ("port", "8080"), ("requestid", "0")]);
    let expected = Frame::SynStream { stream: 1, fin: false, headers: expected };
    assert_eq!(decoded(&bytes, 3), Ok(vec![expected]));
}

#[test]
fn what_is_no_frame_ends_the_connection() {
    let check =
        |bytes: &[u8], expected: FrameError| assert_eq!(decoded(bytes, 5), Err(expected), "{bytes:?}");
    check(&[0x80, 2, 0, 1, 0, 0, 0, 0], FrameError::Version(2));
    check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], FrameError::TooLong(0xff_ffff));
    check(&[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1], FrameError::TooShort(1));
    check(&[0x80, 3, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1], FrameError::TooShort(3));
    check(&[0x80, 3, 0, 6, 0, 0, 0, 0], FrameError::TooShort(6));
    check(&[0, 0, 0, 0, 0, 0, 0, 1, 0], FrameError::NoStream);
    check(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0x80, 0, 0, 0, 0, 0, 0, 1], FrameError::NoStream);
    let garbage = [0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4];
    check(&garbage, FrameError::Headers(HeadersError::Corrupt));
    // Those that are not understood are passed over.
    let settings = [0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0];
    assert_eq!(decoded(&settings, 12), Ok(vec![Frame::Other { kind: 4 }]));
}

#[test]
fn a_small_block_that_inflates_to_much_is_refused() {
    let bomb = headers(&[("a", &"x".repeat(10 * BYTES_MAX))]);
    let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
    encoder.put(&Frame::SynStream { stream: 1, fin: false, headers: bomb }, &mut bytes);
    assert!(bytes.len() < 2048, "{}", bytes.len());
    assert_eq!(decoded(&bytes, 512), Err(FrameError::Headers(HeadersError::TooLarge)));
    let upper = headers(&[("a", "b")]);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::default();
    encoder.put(&Frame::SynReply { stream: 1, fin: false, headers: upper.clone() }, &mut bytes);
    let second = bytes.len();
    encoder.put(&Frame::SynReply { stream: 1, fin: false, headers: upper }, &mut bytes);
    // A block means nothing without the one before it.
    assert!(decoded(&bytes[second..], 512).is_err());
}

/// Random bytes, and good ones with a few changed: an error or frames, in bounds, and never a panic.
#[test]
fn garbage_is_an_error_at_worst() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let mut good = Vec::new();
    let mut encoder = Encoder::default();
    for stream in 1..20 {
        let named = headers(&[("streamtype", "data"), ("n", &stream.to_string())]);
        encoder.put(&Frame::SynStream { stream, fin: false, headers: named }, &mut good);
        encoder.put(&Frame::Data { stream, fin: true, bytes: vec![1; 50] }, &mut good);
    }
    for _ in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..=random() % 4 {
            let at = usize::try_from(random()).unwrap_or(0) % bytes.len();
            bytes[at] = u8::try_from(random() & 0xff).expect("a byte");
        }
        let step = 1 + usize::try_from(random() % 64).expect("small");
        drop(decoded(&bytes, step));
        let mut noise: Vec<u8> = (0..64).map(|_| u8::try_from(random() & 0xff).expect("a byte")).collect();
        noise[0] |= 0x80;
        noise[1] = 3;
        drop(decoded(&noise, step));
    }
}
