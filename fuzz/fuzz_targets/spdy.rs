//! SPDY frames in whatever pieces: the first byte says how long a piece is.
#![no_main]

use coracle_api::spdy::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let mut decoder = Decoder::default();
    for mut piece in bytes.chunks(usize::from(*step).max(1)) {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
