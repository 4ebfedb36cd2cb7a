//! HTTP GET probes.

use super::connect;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of an answer that are read: enough for a status line and some headers.
const ANSWER_BYTES_MAX: u64 = 10 * 1024;

/// A bare HTTP/1.1 GET, over TLS if asked: the kubelet reads no more than the status either.
pub(super) async fn get(
    https: bool,
    host: Option<&str>,
    port: u16,
    path: &str,
    headers: &[(String, String)],
    ips: &[IpAddr],
) -> Result<(), String> {
    let stream = connect(host, port, ips).await?;
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
    if !given("host") {
        let own = ips.first().map_or_else(|| "localhost".into(), ToString::to_string);
        request += &format!("Host: {}:{port}\r\n", host.map_or(own, String::from));
    }
    if !given("user-agent") {
        request += "User-Agent: kube-probe/1.35\r\n";
    }
    if !given("accept") {
        request += "Accept: */*\r\n";
    }
    for (key, value) in headers {
        request += &format!("{key}: {value}\r\n");
    }
    request += "\r\n";
    if https {
        let name = host.map(String::from).or_else(|| ips.first().map(ToString::to_string));
        let stream = tls(stream, &name.unwrap_or_else(|| "localhost".into())).await?;
        return ask(stream, &request).await;
    }
    ask(stream, &request).await
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<(), String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let mut reader = stream.take(ANSWER_BYTES_MAX);
    let mut buffer = [0; 1024];
    while !answer.contains(&b'\n') {
        match reader.read(&mut buffer).await.map_err(|e| e.to_string())? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    match status(&answer) {
        Some(code) if (200..400).contains(&code) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err("malformed HTTP response".into()),
    }
}

/// TLS without checking the certificate, as the kubelet probes: the question is whether the server works.
async fn tls(stream: TcpStream, name: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Unchecked(provider.clone()));
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_string()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|e| e.to_string())
}

/// Takes any certificate; signatures over the handshake are still checked.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The code of an HTTP/1 status line.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .trim()
        .parse()
        .ok()
        .filter(|code| (100..600).contains(code))
}

#[cfg(test)]
mod tests {
    use super::status;

    #[test]
    fn status_lines_are_read_with_care() {
        let check = |text: &str, expected| assert_eq!(status(text.as_bytes()), expected, "{text:?}");
        check("HTTP/1.1 200 OK\r\n", Some(200));
        check("HTTP/1.0 503 \r\n", Some(503));
        check("HTTP/1.1 301\r\n", Some(301));
        check("HTTP/2 200\r\n", None);
        check("HTTP/1.1 99999\r\n", None);
        check("SSH-2.0-x\r\n", None);
        check("", None);
    }
}
