//! HTTP GET probes.

use super::connect;
use crate::redirect::redirected;
use coracle_pod::observed::Verdict;
use hyper::Uri;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of an answer that are read: enough for a status line and some headers.
const ANSWER_BYTES_MAX: u64 = 10 * 1024;

/// Requests of one probe, as Go's client has it ("stopped after 10 redirects").
const REQUESTS_MAX: u32 = 10;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub https: bool,
    /// A name or an address without brackets.
    pub host: String,
    pub port: u16,
    /// With the query.
    pub path: String,
}

/// Asks until somebody answers otherwise than "elsewhere", as the kubelet does (`pkg/probe/http`): on the same host it
/// follows, whatever the port; what sends it to another host, or nowhere, is alive, and a warning says so.
pub(super) async fn get(first: &Place, headers: &[(String, String)]) -> Verdict {
    match follow(first, headers).await {
        Ok(verdict) => verdict,
        Err(message) => Verdict::Failure(message),
    }
}

async fn follow(first: &Place, headers: &[(String, String)]) -> Result<Verdict, String> {
    let (mut place, mut headers) = (first.clone(), headers.to_vec());
    for _ in 0..REQUESTS_MAX {
        let (code, location) = place.ask(&headers).await?;
        match (code, location) {
            (200..300, _) => return Ok(Verdict::Success),
            (301..=303 | 307 | 308, Some(location)) => {
                let next = place.redirected(&location)?;
                if !next.host.eq_ignore_ascii_case(&first.host) {
                    return Ok(Verdict::Warning(format!("Probe terminated redirects, Location: {location}")));
                }
                if location.contains("//") {
                    // Whose name the probe gives is this host's no longer.
                    headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
                }
                place = next;
            }
            (300..400, _) => {
                return Ok(Verdict::Warning(format!("Probe terminated redirects, statuscode: {code}")));
            }
            _ => return Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
    Err(format!("stopped after {REQUESTS_MAX} redirects"))
}

impl Place {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// A bare HTTP/1.1 GET, over TLS if asked: the code, and where it leads.
    async fn ask(&self, headers: &[(String, String)]) -> Result<(u16, Option<String>), String> {
        let stream = connect(&self.host, self.port).await?;
        let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
        let mut request = format!("GET {} HTTP/1.1\r\nConnection: close\r\n", self.path);
        if !given("host") {
            request += &format!("Host: {}\r\n", self.authority());
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
        if self.https {
            exchange(tls(stream, &self.host).await?, &request).await
        } else {
            exchange(stream, &request).await
        }
    }

    fn redirected(&self, location: &str) -> Result<Place, String> {
        let bad = || format!("failed to parse Location header {location:?}");
        let base = |path: &str| {
            let scheme = if self.https { "https" } else { "http" };
            format!("{scheme}://{}{path}", self.authority()).parse::<Uri>().ok()
        };
        // A path that is no part of a URI is asked for all the same; only what is relative to it is lost.
        let base = base(&self.path).or_else(|| base("/")).ok_or_else(bad)?;
        let target = redirected(&base, location).ok_or_else(bad)?;
        let https = target.scheme_str() == Some("https");
        Ok(Place {
            https,
            host: target.host().unwrap_or_default().trim_matches(['[', ']']).to_string(),
            port: target.port_u16().unwrap_or(if https { 443 } else { 80 }),
            path: target.path_and_query().map_or("/", |path| path.as_str()).to_string(),
        })
    }
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> Result<(u16, Option<String>), String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let mut reader = stream.take(ANSWER_BYTES_MAX);
    let mut buffer = [0; 1024];
    // A status says all, unless it sends elsewhere: then the head is read to its end.
    while !answer.contains(&b'\n') || leads_on(&answer) && !head_ended(&answer) {
        match reader.read(&mut buffer).await.map_err(|e| e.to_string())? {
            0 => break,
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    let code = status(&answer).ok_or("malformed HTTP response")?;
    Ok((code, location(&answer)))
}

fn leads_on(answer: &[u8]) -> bool {
    status(answer).is_some_and(|code| (300..400).contains(&code))
}

fn head_ended(answer: &[u8]) -> bool {
    answer.windows(4).any(|end| end == b"\r\n\r\n") || answer.windows(2).any(|end| end == b"\n\n")
}

/// The value of `Location`; none that is empty, or no text.
fn location(answer: &[u8]) -> Option<String> {
    let lines = answer.split(|b| *b == b'\n').skip(1).map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut fields = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().to_string())
    });
    fields.next().filter(|value| !value.is_empty())
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
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::time::Duration;

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

    /// A server on loopback, until the test's process ends, that answers to a path with a head; it counts.
    fn server(answer: fn(&str, u16) -> String) -> (u16, std::sync::mpsc::Receiver<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("bound").port();
        let (asked, requests) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().filter_map(Result::ok) {
                let copy = stream.try_clone().expect("copied");
                let head =
                    BufReader::new(copy).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                let head: Vec<String> = head.collect();
                let path = head[0].split(' ').nth(1).unwrap_or_default();
                let answer = format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", answer(path, port));
                // A prober that has heard enough hangs up.
                drop(stream.write_all(answer.as_bytes()));
                asked.send(head.join("\n")).expect("the test waits");
            }
        });
        (port, requests)
    }

    /// A redirect was success by itself, so a server that sent its probes to its own error page was well.
    #[test]
    fn redirects_are_followed_as_the_kubelet_does() {
        let (port, requests) = server(|path, port| match path {
            "/ok" => "200 OK".into(),
            "/relative/here" => "302 Found\r\nlocation: ok".into(),
            "/relative/ok" => "204 No Content".into(),
            "/absolute" => format!("307 Temporary Redirect\r\nLocation: http://127.0.0.1:{port}/ok"),
            "/error" => "301 Moved Permanently\r\nLocation: /fails".into(),
            "/fails" => "500 Oops".into(),
            "/away" => format!("302 Found\r\nLocation: http://localhost:{port}/fails"),
            "/loop" => "302 Found\r\nLocation: /loop".into(),
            "/nowhere" => "302 Found".into(),
            "/garbage" => "302 Found\r\nLocation: file:///etc/passwd".into(),
            _ => "304 Not Modified".into(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let check = |path: &str, asked: usize, expected: Verdict| {
            let place = Place { https: false, host: "127.0.0.1".into(), port, path: path.into() };
            let headers = [("Host".to_string(), "pod.example".to_string())];
            assert_eq!(runtime.block_on(get(&place, &headers)), expected, "{path}");
            let requests: Vec<String> =
                (0..asked).map(|_| requests.recv_timeout(Duration::from_secs(10)).expect("asked")).collect();
            assert!(requests[0].contains("Host: pod.example"), "{requests:?}");
            requests
        };
        let (failed, warned) = (
            |text: &str| Verdict::Failure(text.into()),
            |text: &str| Verdict::Warning(format!("Probe terminated redirects, {text}")),
        );
        check("/ok", 1, Verdict::Success);
        let relative = check("/relative/here", 2, Verdict::Success);
        assert!(relative[1].contains("Host: pod.example"), "{relative:?}");
        let absolute = check("/absolute", 2, Verdict::Success);
        assert!(absolute[1].contains(&format!("Host: 127.0.0.1:{port}")), "{absolute:?}");
        check("/error", 2, failed("HTTP probe failed with statuscode: 500"));
        check("/away", 1, warned(&format!("Location: http://localhost:{port}/fails")));
        check("/loop", 10, failed("stopped after 10 redirects"));
        check("/nowhere", 1, warned("statuscode: 302"));
        check("/garbage", 1, failed("failed to parse Location header \"file:///etc/passwd\""));
        check("/same", 1, warned("statuscode: 304"));
        assert!(requests.try_recv().is_err(), "nobody else was asked");
    }
}
