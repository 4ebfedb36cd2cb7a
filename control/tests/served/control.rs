//! The real binary on a free port, and a small client for it.

use crate::etcd::Owned;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// In `CORACLE_BIN_DIR`, or beside the tests' own directory. Not `CARGO_BIN_EXE_…`: the workspace's compiler wrapper is a shell script, and dash
/// drops variables whose names have a hyphen.
pub fn binary() -> PathBuf {
    if let Some(directory) = std::env::var_os("CORACLE_BIN_DIR") {
        return Path::new(&directory).join("coracle-control");
    }
    let test = std::env::current_exe().expect("this program");
    let directory = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    directory.join("coracle-control")
}

/// A served control plane with a data directory of its own.
pub struct Control {
    pub address: String,
    pub token: String,
    pub dir: PathBuf,
    pub process: Owned,
    _data: Option<tempfile::TempDir>,
}

impl Control {
    /// Starts one in a new directory and waits until it serves.
    pub fn start(arguments: &[&str]) -> Control {
        let data = tempfile::tempdir().expect("a directory");
        let mut control = Control::start_in(data.path(), arguments);
        control._data = Some(data);
        control
    }

    /// Starts one in a directory that stays.
    pub fn start_in(dir: &Path, arguments: &[&str]) -> Control {
        Control::start_by(Command::new(binary()), dir, arguments)
    }

    /// Starts one that believes in boards that say nothing: those of the test are played, and have no lease.
    pub fn start_patient() -> Control {
        let data = tempfile::tempdir().expect("a directory");
        let config = data.path().join("control.toml");
        std::fs::write(&config, "node_monitor_grace_seconds = 3600").expect("written");
        let arguments = ["--config", config.to_str().expect("text")];
        let mut control = Control::start_by(Command::new(binary()), data.path(), &arguments);
        control._data = Some(data);
        control
    }

    /// Starts one that may open so many files.
    pub fn start_limited(files: usize) -> Control {
        let data = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}")).arg(binary());
        let mut control = Control::start_by(command, data.path(), &[]);
        control._data = Some(data);
        control
    }

    fn start_by(mut command: Command, dir: &Path, arguments: &[&str]) -> Control {
        let mut child = command
            .args(["serve", "--data-dir"])
            .arg(dir)
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the control plane starts");
        let log = child.stderr.take().expect("piped");
        let process = Owned(child);
        let (found, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                match line.split("address=").nth(1) {
                    Some(address) if line.contains("the API is served") => {
                        found.send(address.trim().to_string()).expect("the test waits for it");
                    }
                    _ => writeln!(std::io::stderr(), "control: {line}").expect("stderr takes it"),
                }
            }
        });
        let address = address.recv_timeout(Duration::from_secs(60)).expect("the control plane serves");
        let tokens = std::fs::read_to_string(dir.join("tokens.csv")).expect("the token file");
        let token = tokens.split(',').next().expect("a token").to_string();
        Control { address, token, dir: dir.into(), process, _data: None }
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.join("pki/ca.crt")
    }

    /// A connection of the administrator.
    pub async fn connect(&self) -> Client {
        Client { token: Some(self.token.clone()), ..self.try_connect(None).await.expect("connects") }
    }

    /// A connection without a token, with a client's certificate and key if there are any. With TLS 1.3 a certificate
    /// that is refused is told of with the first answer.
    pub async fn try_connect(
        &self,
        certificate: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> std::io::Result<Client> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).expect("the authority")).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match certificate {
            Some((certificate, key)) => {
                config.with_client_auth_cert(vec![certificate], key).expect("a certificate and its key")
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(&self.address).await?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(tls)).await.map_err(std::io::Error::other)?;
        // It ends with the client, or with the server; a request then says so.
        tokio::spawn(connection.with_upgrades());
        Ok(Client { sender, token: None, headers: Vec::new() })
    }
}

/// One connection.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    /// `None` is anonymous.
    pub token: Option<String>,
    /// Headers of every request: whom to act as.
    pub headers: Vec<(&'static str, String)>,
}

/// A request with everything that may be said.
#[derive(Default)]
pub struct Ask<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: Option<Bytes>,
    pub content_type: &'a str,
    pub accept: &'a str,
}

impl Client {
    /// Acts as somebody from now on (`kubectl --as`).
    pub fn act_as(mut self, user: &str, groups: &[&str]) -> Client {
        self.headers = vec![("impersonate-user", user.to_string())];
        self.headers.extend(groups.iter().map(|group| ("impersonate-group", group.to_string())));
        self
    }

    /// Asks until the answer has this code: what is granted and what is taken back takes effect a moment later.
    pub async fn until(&mut self, code: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (found, answer) = self.json(method, path, body).await;
            if found == code {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{method} {path}: {found}, not {code}: {answer}");
            tokio::task::yield_now().await;
        }
    }

    /// Sends; the head of the answer, its body yet to come.
    pub async fn send(&mut self, ask: Ask<'_>) -> hyper::Response<Incoming> {
        self.try_send(ask).await.expect("an answer")
    }

    /// Sends, on a connection that may be refused.
    pub async fn try_send(&mut self, ask: Ask<'_>) -> hyper::Result<hyper::Response<Incoming>> {
        let mut request = Request::builder().method(ask.method).uri(ask.path).header("host", "127.0.0.1");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if !ask.content_type.is_empty() {
            request = request.header("content-type", ask.content_type);
        }
        if !ask.accept.is_empty() {
            request = request.header("accept", ask.accept);
        }
        let request = request.body(Full::new(ask.body.unwrap_or_default())).expect("a request");
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Sends; the code and the body.
    pub async fn ask(&mut self, ask: Ask<'_>) -> (u16, String) {
        let response = self.send(ask).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (code, String::from_utf8(body.to_vec()).expect("text"))
    }

    /// JSON both ways.
    pub async fn json(&mut self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = body.map(|body| Bytes::from(body.to_string()));
        let (code, text) = self.ask(Ask { method, path, body, content_type, ..Ask::default() }).await;
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        (code, value)
    }
}

/// The objects of a watch, as they come.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
    /// Its connection ends with it.
    _client: Client,
}

impl Events {
    pub fn of(response: hyper::Response<Incoming>, client: Client) -> Events {
        assert_eq!(response.status().as_u16(), 200);
        Events { body: response.into_body(), buffer: Vec::new(), _client: client }
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event a line"));
            }
            let frame = tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await;
            let frame = frame.expect("an event comes")?.expect("the stream goes on");
            self.buffer.extend_from_slice(frame.data_ref().expect("data"));
        }
    }

    /// `TYPE name`.
    pub async fn said(&mut self) -> String {
        let event = self.next().await.expect("an event");
        let name = event.pointer("/object/metadata/name").and_then(Value::as_str).unwrap_or_default();
        format!("{} {name}", event["type"].as_str().expect("a type"))
    }
}
