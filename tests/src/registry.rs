//! Debian's `docker-registry` on loopback, with images pushed into it.

use crate::agent::{DEADLINE, in_namespace};
use crate::image::{Blob, Image};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where it listens: the namespace is the board's own, so the port is free.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// A running registry; gone when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    netns: File,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one with an empty store at [`ADDRESS`] of a board's network namespace.
    pub fn start(netns: &File) -> Result<Registry> {
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("config.yml");
        let root = dir.path().join("data");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{ADDRESS}\"}}\n",
                root.display()
            ),
        )?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = in_namespace(netns, || command.spawn())?;
        let process = process.context("start docker-registry: apt-get install docker-registry")?;
        let registry = Registry { process, netns: netns.try_clone()?, _dir: dir };
        let deadline = Instant::now() + DEADLINE;
        while in_namespace(netns, || TcpStream::connect(ADDRESS).is_err())? {
            if Instant::now() > deadline {
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
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            ADDRESS,
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

/// A bad link to the registry: every connection is cut after so many bytes of its answers.
#[derive(Debug)]
pub struct CuttingProxy {
    bytes: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl CuttingProxy {
    /// Listens in the namespace until the test's process ends.
    pub fn start(netns: &File, cut_after: u64) -> Result<CuttingProxy> {
        use std::sync::atomic::{AtomicU64, Ordering};
        let listener = in_namespace(netns, || std::net::TcpListener::bind(PROXY_ADDRESS))??;
        let bytes = std::sync::Arc::new(AtomicU64::new(0));
        let (counter, netns) = (bytes.clone(), netns.try_clone()?);
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(std::io::Result::ok) {
                let Ok(Ok(server)) = in_namespace(&netns, || TcpStream::connect(ADDRESS)) else { continue };
                let (Ok(mut up), Ok(mut requests)) = (server.try_clone(), client.try_clone()) else {
                    continue;
                };
                std::thread::spawn(move || std::io::copy(&mut requests, &mut up));
                let counter = counter.clone();
                std::thread::spawn(move || {
                    let (mut answers, mut client) = (server.take(cut_after), client);
                    let copied = std::io::copy(&mut answers, &mut client).unwrap_or(0);
                    counter.fetch_add(copied, Ordering::Relaxed);
                    // Both ends see it: the bad link is gone.
                    drop(client.shutdown(std::net::Shutdown::Both));
                    drop(answers.into_inner().shutdown(std::net::Shutdown::Both));
                });
            }
        });
        Ok(CuttingProxy { bytes })
    }

    /// Bytes that came through.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(std::sync::atomic::Ordering::Relaxed)
    }
}
