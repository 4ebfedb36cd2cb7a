//! Debian's `docker-registry` on loopback, with images pushed into it.

use crate::image::{Blob, Image};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running registry; gone when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one with an empty store.
    pub fn start() -> Result<Registry> {
        let dir = tempfile::tempdir()?;
        // Bound and let go: the registry takes the number. Another process could take it first; then it fails loudly.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        let root = dir.path().join("data");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
                root.display()
            ),
        )?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start docker-registry: apt-get install docker-registry")?;
        let registry = Registry { process, address, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.address).is_err() {
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
        let path = location.split_once(&self.address).map_or(location, |(_, path)| path);
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
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.address,
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
