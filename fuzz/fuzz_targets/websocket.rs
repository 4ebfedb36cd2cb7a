//! WebSocket frames of a client, read as the node API reads them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{self, Read, Write};
use tungstenite::WebSocket;
use tungstenite::protocol::{Role, WebSocketConfig};

/// Bytes in; what is written is dropped.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    const MAX: usize = 1 << 20;
    let config = WebSocketConfig::default().max_message_size(Some(MAX)).max_frame_size(Some(MAX));
    let mut socket = WebSocket::from_raw_socket(Wire(bytes), Role::Server, Some(config));
    while let Ok(message) = socket.read() {
        assert!(message.len() <= MAX);
    }
});
