//! A small builder of container images: OCI archives, docker-archives, and what a registry is pushed.
//!
//! The same input gives the same bytes: entries sorted, times zero, one compressor setting.

use crate::tree::{self, Tree};
use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// How a layer's blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `tar`
    None,
    /// `tar+gzip`
    Gzip,
    /// `tar+zstd`
    Zstd,
}

/// An image: layers from the lowest, and the `config` object of its OCI configuration.
#[derive(Clone, Debug)]
pub struct Image {
    /// The name that the archive carries: `example.test/web:1`.
    pub reference: String,
    /// `amd64`, `arm64`, …; this machine's by default.
    pub architecture: String,
    /// From the lowest.
    pub layers: Vec<(Tree, Compression)>,
    /// OCI image configuration, `config` (PascalCase keys).
    pub config: Value,
}

/// A blob: media type, digest (`sha256:…`) and bytes.
#[derive(Clone, Debug)]
pub struct Blob {
    /// OCI media type.
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// All blobs of an image.
#[derive(Clone, Debug)]
pub struct Blobs {
    /// The manifest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// The layers, from the lowest.
    pub layers: Vec<Blob>,
    /// The layers' uncompressed tars, for a docker-archive.
    pub tars: Vec<Vec<u8>>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Image {
    /// An image of this machine's architecture.
    pub fn new(reference: &str, layers: Vec<(Tree, Compression)>, config: Value) -> Self {
        Self { reference: reference.into(), architecture: host_architecture().into(), layers, config }
    }

    /// busybox, with `sh` as its command.
    pub fn busybox(reference: &str) -> Result<Self> {
        let config = json!({"Cmd": ["/bin/sh"], "Env": [PATH]});
        Ok(Self::new(reference, vec![(tree::busybox()?, Compression::Gzip)], config))
    }

    /// busybox for another architecture, in the words of the OCI image index.
    pub fn busybox_of(reference: &str, architecture: &str, program: &Path) -> Result<Self> {
        let mut image = Self::busybox(reference)?;
        image.layers = vec![(tree::busybox_of(program)?, Compression::Gzip)];
        image.architecture = architecture.into();
        Ok(image)
    }

    /// lighttpd over busybox in three layers of three compressions, with a whiteout and an opaque directory.
    /// Serves `/srv/www` on `$PORT` (80).
    pub fn web(reference: &str) -> Result<Self> {
        let top = Tree::new()
            .whiteout("srv/www/old.html")
            .opaque("srv/opaque")
            .file("srv/opaque/above", "kept\n")
            .file("srv/www/layer.html", "from the third layer\n")
            .hard_link("srv/www/linked.html", "srv/www/layer.html");
        let layers = vec![
            (tree::busybox()?, Compression::Gzip),
            (tree::lighttpd()?, Compression::Zstd),
            (top, Compression::None),
        ];
        let config = json!({
            "Entrypoint": ["/usr/sbin/lighttpd"],
            "Cmd": ["-D", "-f", "/etc/lighttpd/lighttpd.conf"],
            "Env": [PATH, "PORT=80"],
            "ExposedPorts": {"80/tcp": {}},
            "WorkingDir": "/srv/www",
        });
        Ok(Self::new(reference, layers, config))
    }

    /// As [`Image::web`], under a layer of so many bytes that no compressor makes smaller and no other image has.
    pub fn laden(reference: &str, bytes: usize) -> Result<Self> {
        let mut image = Self::web(reference)?;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let cargo = Tree::new().file("srv/cargo", noise.take(bytes).collect::<Vec<_>>());
        image.layers.push((cargo, Compression::Gzip));
        Ok(image)
    }

    /// Builds every blob.
    pub fn blobs(&self) -> Result<Blobs> {
        let (mut layers, mut tars, mut diff_ids) = (Vec::new(), Vec::new(), Vec::new());
        for (tree, compression) in &self.layers {
            let tar = tree.tar()?;
            diff_ids.push(digest(&tar));
            layers.push(compress(&tar, *compression)?);
            tars.push(tar);
        }
        let config = blob(
            "application/vnd.oci.image.config.v1+json",
            serde_json::to_vec(&json!({
                "architecture": self.architecture,
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }))?,
        );
        let manifest = blob(
            "application/vnd.oci.image.manifest.v1+json",
            serde_json::to_vec(&json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": descriptor(&config),
                "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
            }))?,
        );
        Ok(Blobs { manifest, config, layers, tars })
    }

    /// Writes an OCI archive: a tar of an OCI image layout.
    pub fn write_oci_archive(&self, path: &Path) -> Result<()> {
        let blobs = self.blobs()?;
        let mut entry = descriptor(&blobs.manifest);
        entry["annotations"] = json!({
            "org.opencontainers.image.ref.name": self.reference,
            "io.containerd.image.name": self.reference,
        });
        entry["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        let mut tar = tar::Builder::new(File::create(path)?);
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
        for blob in [&blobs.manifest, &blobs.config].into_iter().chain(&blobs.layers) {
            append(&mut tar, &format!("blobs/{}", blob.digest.replace(':', "/")), &blob.bytes)?;
        }
        tar.into_inner()?.sync_all()?;
        Ok(())
    }

    /// Writes what `docker save` writes.
    pub fn write_docker_archive(&self, path: &Path) -> Result<()> {
        let blobs = self.blobs()?;
        let name = |bytes: &[u8]| digest(bytes).replace("sha256:", "");
        let config = format!("{}.json", name(&blobs.config.bytes));
        let layers: Vec<String> = blobs.tars.iter().map(|tar| format!("{}/layer.tar", name(tar))).collect();
        let manifest = json!([{"Config": config, "RepoTags": [self.reference], "Layers": layers}]);
        let mut tar = tar::Builder::new(File::create(path)?);
        append(&mut tar, "manifest.json", &serde_json::to_vec(&manifest)?)?;
        append(&mut tar, &config, &blobs.config.bytes)?;
        for (path, layer) in layers.iter().zip(&blobs.tars) {
            append(&mut tar, path, layer)?;
        }
        tar.into_inner()?.sync_all()?;
        Ok(())
    }
}

/// This machine's architecture in the words of the OCI image index (`GOARCH`).
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `sha256:` and the digest in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(media_type: &str, bytes: Vec<u8>) -> Blob {
    Blob { media_type: media_type.into(), digest: digest(&bytes), bytes }
}

fn descriptor(blob: &Blob) -> Value {
    json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.bytes.len()})
}

fn compress(tar: &[u8], compression: Compression) -> Result<Blob> {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    Ok(match compression {
        Compression::None => blob(media_type, tar.to_vec()),
        Compression::Gzip => {
            let mut gzip = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
            gzip.write_all(tar)?;
            blob(&format!("{media_type}+gzip"), gzip.finish()?)
        }
        Compression::Zstd => blob(&format!("{media_type}+zstd"), zstd::encode_all(tar, 1)?),
    })
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_packages_give_the_same_bytes() {
        let build = || Image::web("example.test/web:1").unwrap().blobs().unwrap().manifest.digest;
        assert_eq!(build(), build());
    }

    #[test]
    fn a_web_image_has_its_program_and_every_library() {
        let blobs = Image::web("example.test/web:1").unwrap().blobs().unwrap();
        let mut tar = tar::Archive::new(blobs.tars[1].as_slice());
        let names: Vec<String> =
            tar.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        for wanted in ["usr/sbin/lighttpd", "/libc.so.6", "/ld-linux"] {
            assert!(names.iter().any(|name| name.contains(wanted)), "{wanted} is not among {names:?}");
        }
    }
}
