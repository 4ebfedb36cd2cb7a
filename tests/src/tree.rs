//! File trees for image layers, taken from the Debian packages installed on this machine.
//!
//! A [`Tree`] is ordered and carries no times or owners of the host, so that the same packages always give the
//! same tar, byte for byte.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One entry of a layer.
#[derive(Clone, Debug)]
pub enum Node {
    /// A directory with its mode.
    Directory(u32),
    /// A regular file: mode and content.
    File(u32, Vec<u8>),
    /// A symbolic link and its target.
    Symlink(String),
    /// A hard link to another path of the same layer.
    HardLink(String),
}

/// The entries of one layer by relative path.
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory with mode 0755, and its parents.
    pub fn directory(mut self, path: &str) -> Self {
        self.add(path, Node::Directory(0o755));
        self
    }

    /// A directory with the given mode, and its parents.
    pub fn directory_mode(mut self, path: &str, mode: u32) -> Self {
        self.add(path, Node::Directory(mode));
        self
    }

    /// A regular file of mode 0644.
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.add(path, Node::File(0o644, content.into()));
        self
    }

    /// A regular file with the given mode (setuid too).
    pub fn file_mode(mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.add(path, Node::File(mode, content.into()));
        self
    }

    /// A symbolic link.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.add(path, Node::Symlink(target.into()));
        self
    }

    /// A hard link to `target`, which sorts before `path`.
    pub fn hard_link(mut self, path: &str, target: &str) -> Self {
        assert!(target < path, "a hard link's target comes first in the tar");
        self.add(path, Node::HardLink(target.into()));
        self
    }

    /// Hides `path` of the layers below (OCI image-spec, "Whiteouts").
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let separator = if parent.is_empty() { "" } else { "/" };
        self.file(&format!("{parent}{separator}.wh.{name}"), "")
    }

    /// Hides everything that the layers below have in the directory `path` (OCI image-spec, "Opaque Whiteout").
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), "")
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        let mut parent = Path::new(path).parent();
        while let Some(directory) = parent.and_then(Path::to_str).filter(|d| !d.is_empty()) {
            self.0.entry(directory.into()).or_insert(Node::Directory(0o755));
            parent = Path::new(directory).parent();
        }
        self.0.insert(path.into(), node);
    }

    /// The layer as an uncompressed tar: sorted, owner 0, time 0.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, node) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match node {
                Node::Directory(mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Node::File(mode, content) => {
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, content.as_slice())?;
                }
                Node::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target)?;
                }
                Node::HardLink(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    header.set_mode(0o644);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    /// Copies a file of this machine under its own path (symbolic links followed).
    pub fn host_file(mut self, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
        let name = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        self.add(name, Node::File(mode, content));
        Ok(self)
    }

    /// Copies a program of this machine with every shared library that its loader lists, and the loader.
    pub fn host_program(mut self, path: &Path) -> Result<Self> {
        self = self.host_file(path)?;
        for library in shared_libraries(path)? {
            self = self.host_file(&library)?;
        }
        Ok(self)
    }
}

/// The root file system of the `busybox-static` package: one program, a link per applet that it names itself.
pub fn busybox() -> Result<Tree> {
    busybox_of(&host_busybox()?)
}

fn host_busybox() -> Result<PathBuf> {
    host_path(&["/usr/bin/busybox", "/bin/busybox"], "busybox-static")
}

/// As [`busybox`], with a program of another architecture; the applets are those of this machine's.
pub fn busybox_of(program: &Path) -> Result<Tree> {
    let content = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    ensure!(interpreter(&content).is_none(), "busybox is not static: apt-get install busybox-static");
    let list = Command::new(host_busybox()?).arg("--list").output().context("run busybox --list")?;
    ensure!(list.status.success(), "busybox --list failed: {}", list.status);
    let mut tree = Tree::new()
        .directory("dev")
        .directory("etc")
        .directory("proc")
        .directory("root")
        .directory("sys")
        .directory_mode("tmp", 0o1777)
        .directory("var")
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nboat:x:1000:1000:boat:/tmp:/bin/sh\n")
        .file("etc/group", "root:x:0:\nboat:x:1000:\n")
        .file_mode("bin/busybox", 0o755, content);
    for applet in String::from_utf8(list.stdout)?.lines().filter(|a| *a != "busybox") {
        tree = tree.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(tree)
}

/// The web server of the `lighttpd` package with its libraries, serving `/srv/www` on port 80.
pub fn lighttpd() -> Result<Tree> {
    let program = host_path(&["/usr/sbin/lighttpd"], "lighttpd")?;
    let configuration = "server.document-root = \"/srv/www\"\n\
                         server.port = env.PORT\n\
                         server.modules = ()\n\
                         index-file.names = ( \"index.html\" )\n\
                         mimetype.assign = ( \".html\" => \"text/html\", \"\" => \"text/plain\" )\n";
    Ok(Tree::new()
        .host_program(&program)?
        .file("etc/lighttpd/lighttpd.conf", configuration)
        .file("srv/www/index.html", "a coracle carries a crew\n")
        .file("srv/www/old.html", "hidden by a whiteout above\n")
        .file("srv/opaque/below", "hidden by an opaque directory above\n"))
}

/// The first of the paths that exists on this machine.
fn host_path(candidates: &[&str], package: &str) -> Result<PathBuf> {
    let found = candidates.iter().map(PathBuf::from).find(|path| path.is_file());
    found.with_context(|| format!("the Debian package {package} is not installed: apt-get install {package}"))
}

/// What the dynamic loader named in the program's `PT_INTERP` would map, with the loader itself.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let Some(loader) = interpreter(&fs::read(program)?) else { return Ok(Vec::new()) };
    let list = Command::new(&loader).arg("--list").arg(program).output().context("run the dynamic loader")?;
    ensure!(list.status.success(), "the loader cannot resolve {}", program.display());
    let mut libraries = vec![loader];
    for line in String::from_utf8(list.stdout)?.lines() {
        if let Some(path) = line.split_once("=> ").and_then(|(_, rest)| rest.split_whitespace().next()) {
            ensure!(path.starts_with('/'), "{}: library not found: {}", program.display(), line.trim());
            libraries.push(path.into());
        }
    }
    Ok(libraries)
}

/// `PT_INTERP` of an ELF file, which is the only string in it that looks like a loader's path. ELF, chapter 5.
fn interpreter(elf: &[u8]) -> Option<PathBuf> {
    const NEEDLE: &[u8] = b"/ld-linux";
    let middle = elf.windows(NEEDLE.len()).position(|window| window == NEEDLE)?;
    let start = elf[..middle].iter().rposition(|byte| *byte == 0)? + 1;
    let end = middle + elf[middle..].iter().position(|byte| *byte == 0)?;
    Some(PathBuf::from(std::str::from_utf8(&elf[start..end]).ok()?))
}
