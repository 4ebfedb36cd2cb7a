//! Which TLS is spoken: 1.2 and 1.3, nothing older.

use crate::control::Control;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, version};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

fn connect(control: &Control) -> TcpStream {
    let stream = TcpStream::connect(&control.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream
}

#[test]
fn tls_1_2_and_1_3_are_spoken() {
    let control = Control::start(&[]);
    let mut roots = RootCertStore::empty();
    let authority = rustls::pki_types::CertificateDer::from_pem_file(control.ca()).expect("the authority");
    roots.add(authority).expect("an authority");
    for (asked, spoken) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[asked])
            .expect("a version")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        let mut stream = StreamOwned::new(connection, connect(&control));
        let asked = b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
        stream.write_all(asked).expect("written");
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        assert_eq!(stream.conn.protocol_version(), Some(spoken));
    }
}

/// A `ClientHello` of what today's libraries no longer write, with ciphers and a group of its time (RFC 4346, 7.4.1.2).
fn hello(version: [u8; 2]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend([7; 32]);
    // No session; AES-CBC by ECDHE and RSA, and the GCM that TLS 1.2 has; no compression; groups, points and
    // the signature that ours has, so that nothing but the version is in the way.
    body.extend([0, 0, 6, 0xc0, 0x13, 0x00, 0x2f, 0xc0, 0x2b, 1, 0]);
    body.extend([0, 22, 0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3]);
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("a short message");
    let mut message = vec![1, 0, 0, length(&body)];
    message.extend(body);
    // A record may say 1.0 whatever it offers.
    let mut record = vec![22, 3, 1, 0, length(&message)];
    record.extend(message);
    record
}

#[test]
fn older_tls_is_refused_for_its_version() {
    let control = Control::start(&[]);
    for version in [[3, 0], [3, 1], [3, 2]] {
        let mut stream = connect(&control);
        stream.write_all(&hello(version)).expect("written");
        let mut answer = Vec::new();
        // It closes; whether by a reset is the kernel's haste.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        // A fatal alert (2): protocol_version (70).
        assert_eq!(answer.first(), Some(&21), "{version:?}: {answer:?}");
        assert_eq!(answer.get(5..), Some(&[2, 70][..]), "{version:?}: {answer:?}");
    }
    // The same hello is good for 1.2: the version was the reason.
    let mut stream = connect(&control);
    stream.write_all(&hello([3, 3])).expect("written");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello");
}
