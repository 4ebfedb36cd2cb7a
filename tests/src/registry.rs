//! Debian's `docker-registry` on loopback, with images pushed into it.

use crate::agent::{deadline, in_namespace};
use crate::image::{Blob, Image};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where it listens: the namespace is the board's own, so the port is free.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// Where [`Registry::over_tls`] listens: no loopback, which would be asked by HTTP.
pub const TLS_ADDRESS: &str = "10.253.0.1:5443";

/// A running registry; gone when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    netns: File,
    /// `Authorization` of what is pushed.
    authorization: String,
    dir: tempfile::TempDir,
}

/// Who alone may use a closed registry: `base64(name:password)`, and the line of its htpasswd file (bcrypt).
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// What HTTP's Basic sends.
    pub basic: &'static str,
    /// `name:hash`.
    pub htpasswd: &'static str,
}

impl Registry {
    /// Starts one with an empty store at [`ADDRESS`] of a board's network namespace.
    pub fn start(netns: &File) -> Result<Registry> {
        Registry::start_for(netns, None)
    }

    /// As [`Registry::start`], for one user alone; what is pushed here is pushed as them.
    pub fn start_closed(netns: &File, user: User) -> Result<Registry> {
        Registry::start_for(netns, Some(user))
    }

    fn start_for(netns: &File, user: Option<User>) -> Result<Registry> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("data");
        let (mut auth, mut authorization) = (String::new(), String::new());
        if let Some(User { basic, htpasswd }) = user {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, htpasswd)?;
            auth = format!("auth: {{htpasswd: {{realm: quay, path: {}}}}}\n", file.display());
            authorization = format!("Authorization: Basic {basic}\r\n");
        }
        configure(dir.path(), &root, &format!("http: {{addr: \"{ADDRESS}\"}}\n{auth}"))?;
        Registry::run(netns, ADDRESS, authorization, dir)
    }

    fn run(netns: &File, address: &str, authorization: String, dir: tempfile::TempDir) -> Result<Registry> {
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = in_namespace(netns, || command.spawn())?;
        let process = process.context("start docker-registry: apt-get install docker-registry")?;
        let registry = Registry { process, netns: netns.try_clone()?, authorization, dir };
        let until = Instant::now() + deadline();
        while in_namespace(netns, || TcpStream::connect(address).is_err())? {
            if Instant::now() > until {
                bail!("docker-registry does not listen");
            }
            std::thread::yield_now();
        }
        Ok(registry)
    }

    /// Pushes an image as `repository:tag`.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<()> {
        let blobs = image.blobs()?;
        for blob in blobs.layers.iter().chain([&blobs.config]) {
            self.upload(repository, blob)?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        self.send("PUT", &path, &blobs.manifest.media_type, &blobs.manifest.bytes)?;
        Ok(())
    }

    /// Pushes images as one index, `repository:tag`, that says which is for what platform.
    pub fn push_index(&self, images: &[&Image], repository: &str, tag: &str) -> Result<()> {
        let mut manifests = Vec::new();
        for image in images {
            let manifest = image.blobs()?.manifest;
            self.push(image, repository, &manifest.digest)?;
            manifests.push(serde_json::json!({
                "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len(),
                "platform": {"os": "linux", "architecture": image.architecture},
            }));
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, index.to_string().as_bytes())?;
        Ok(())
    }

    /// A second server of what this one has, by HTTPS alone, at [`TLS_ADDRESS`].
    pub fn over_tls(&self, certificate: &str, key: &str) -> Result<Registry> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("tls.crt"), certificate)?;
        std::fs::write(at("tls.key"), key)?;
        let root = self.dir.path().join("data");
        let tls = format!("{{certificate: {}, key: {}}}", at("tls.crt").display(), at("tls.key").display());
        configure(dir.path(), &root, &format!("http: {{addr: \"{TLS_ADDRESS}\", tls: {tls}}}\n"))?;
        let host = TLS_ADDRESS.split(':').next().unwrap_or_default();
        let own = in_namespace(&self.netns, || {
            Command::new("ip").args(["address", "add", host, "dev", "lo"]).status()
        })??;
        if !own.success() {
            bail!("{host} cannot be an address of the namespace");
        }
        Registry::run(&self.netns, TLS_ADDRESS, String::new(), dir)
    }

    fn upload(&self, repository: &str, blob: &Blob) -> Result<()> {
        let answer =
            self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "application/octet-stream", b"")?;
        let location =
            answer.lines().find_map(|l| l.strip_prefix("Location: ")).context("no upload location")?.trim();
        let path = location.split_once(ADDRESS).map_or(location, |(_, path)| path);
        let join = if path.contains('?') { '&' } else { '?' };
        self.send(
            "PUT",
            &format!("{path}{join}digest={}", blob.digest),
            "application/octet-stream",
            &blob.bytes,
        )?;
        Ok(())
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Result<String> {
        let mut stream = in_namespace(&self.netns, || TcpStream::connect(ADDRESS))??;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\n{}Content-Length: {}\r\n\r\n",
            ADDRESS,
            self.authorization,
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let code = answer.split(' ').nth(1).unwrap_or_default();
        if code.starts_with('2') { Ok(answer) } else { bail!("{method} {path}: {answer}") }
    }
}

/// Writes `config.yml` of a server of what is in `root`.
fn configure(dir: &Path, root: &Path, more: &str) -> Result<()> {
    let storage = format!("storage: {{filesystem: {{rootdirectory: {}}}}}", root.display());
    let text = format!("version: 0.1\nlog: {{level: error}}\n{storage}\n{more}");
    Ok(std::fs::write(dir.join("config.yml"), text)?)
}

impl Drop for Registry {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            assert!(std::thread::panicking(), "docker-registry does not end: {error}");
        }
    }
}

/// Where the [`CuttingProxy`] listens.
pub const PROXY_ADDRESS: &str = "127.0.0.1:5001";

/// A bad link to the registry: every connection is cut, or says nothing more, after so many bytes of its answers.
#[derive(Debug)]
pub struct CuttingProxy {
    bytes: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
}

/// What a bad link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Both ends see it end.
    Cut,
    /// Nothing more comes, and nobody is told.
    Stall,
}

impl CuttingProxy {
    /// Listens in the namespace until the test's process ends.
    pub fn start(netns: &File, after: u64, fault: Fault) -> Result<CuttingProxy> {
        let listener = in_namespace(netns, || std::net::TcpListener::bind(PROXY_ADDRESS))??;
        let (bytes, limit) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(after)));
        let (counter, netns, shared) = (bytes.clone(), netns.try_clone()?, limit.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(std::io::Result::ok) {
                let Ok(Ok(server)) = in_namespace(&netns, || TcpStream::connect(ADDRESS)) else { continue };
                let (Ok(mut up), Ok(mut requests)) = (server.try_clone(), client.try_clone()) else {
                    continue;
                };
                std::thread::spawn(move || std::io::copy(&mut requests, &mut up));
                let (counter, limit) = (counter.clone(), shared.load(Ordering::Relaxed));
                std::thread::spawn(move || {
                    let (mut answers, mut client) = (server.take(limit), client);
                    let mut chunk = [0; 16 * 1024];
                    // Counted as they pass, for a test that waits for them.
                    while let Ok(length @ 1..) = answers.read(&mut chunk) {
                        if client.write_all(&chunk[..length]).is_err() {
                            break;
                        }
                        counter.fetch_add(length as u64, Ordering::Relaxed);
                    }
                    if fault == Fault::Stall && answers.limit() == 0 {
                        // Until the other end gives up.
                        while let Ok(1..) = client.read(&mut chunk) {}
                    }
                    // Both ends see it: the bad link is gone.
                    drop(client.shutdown(std::net::Shutdown::Both));
                    drop(answers.into_inner().shutdown(std::net::Shutdown::Both));
                });
            }
        });
        Ok(CuttingProxy { bytes, limit })
    }

    /// New connections carry everything from now on.
    pub fn mend(&self) {
        self.limit.store(u64::MAX, Ordering::Relaxed);
    }

    /// Bytes that came through.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Where a [`Gate`] listens.
pub const GATE_ADDRESS: &str = "127.0.0.1:5002";

/// How a registry asks who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from the gate's own `/token`, which is given for name and password, and for the scope that is asked for.
    Bearer,
}

/// The registry behind a door: only who knows the name and the password gets to it.
#[derive(Debug)]
pub struct Gate;

impl Gate {
    /// Listens in the namespace until the test's process ends; `credentials` is `base64(name:password)`.
    pub fn start(netns: &File, challenge: Challenge, credentials: &'static str) -> Result<Gate> {
        let listener = in_namespace(netns, || std::net::TcpListener::bind(GATE_ADDRESS))??;
        let netns = netns.try_clone()?;
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(std::io::Result::ok) {
                let Ok(Ok(server)) = in_namespace(&netns, || TcpStream::connect(ADDRESS)) else { continue };
                std::thread::spawn(move || pass(client, server, challenge, credentials));
            }
        });
        Ok(Gate)
    }
}

/// One request and its answer; then the connection ends.
fn pass(mut client: TcpStream, mut server: TcpStream, challenge: Challenge, credentials: &str) -> Result<()> {
    const TOKEN: &str = "a-token-for-team-web";
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.split("\r\n");
    let request = lines.next().unwrap_or_default().to_string();
    let (mut said, mut others) = (String::new(), Vec::new());
    for line in lines.filter(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => said = value.into(),
            Some((name, _)) if name.eq_ignore_ascii_case("connection") => {}
            _ => others.push(line),
        }
    }
    let known = said == format!("Basic {credentials}");
    let answer = |client: &mut TcpStream, status: &str, header: &str, body: &str| {
        write!(
            client,
            "HTTP/1.1 {status}\r\n{header}Connection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    if challenge == Challenge::Bearer && request.starts_with("GET /token?") {
        let scoped = request.contains("scope=repository%3Ateam%2Fweb%3Apull")
            || request.contains("scope=repository:team/web:pull");
        let (status, token) = if known && scoped { ("200 OK", TOKEN) } else { ("401 Unauthorized", "") };
        return Ok(answer(&mut client, status, "", &format!("{{\"token\": \"{token}\"}}"))?);
    }
    let open = match challenge {
        Challenge::Basic => known,
        Challenge::Bearer => said == format!("Bearer {TOKEN}"),
    };
    if !open {
        let header = match challenge {
            Challenge::Basic => "WWW-Authenticate: Basic realm=\"gate\"\r\n".into(),
            Challenge::Bearer => format!(
                "WWW-Authenticate: Bearer realm=\"http://{GATE_ADDRESS}/token\",service=\"gate\",scope=\"repository:team/web:pull\"\r\n"
            ),
        };
        let body = "{\"errors\": [{\"code\": \"UNAUTHORIZED\", \"message\": \"authentication required\"}]}";
        return Ok(answer(&mut client, "401 Unauthorized", &header, body)?);
    }
    write!(server, "{request}\r\nConnection: close\r\n{}\r\n\r\n", others.join("\r\n"))?;
    std::io::copy(&mut server, &mut client)?;
    Ok(())
}
