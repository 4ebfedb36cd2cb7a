//! Where a local cluster lies, what it is called, and what it was made of: all of it follows from its directory.
//!
//! ```text
//! ROOT/local.json       what `start` was told; written before anything else is made, removed last
//! ROOT/control          data of the control plane             ROOT/boards/N         root of board N's agent
//! ROOT/boards/N.toml    its configuration, yours to edit      ROOT/run/board-N.net  its network namespace, from the second on
//! ROOT/logs             what they say, begun anew at a start
//! ```
//! Names in the kernel begin with a word that is the directory's own, so that what a crash has left is found again with nothing
//! but `--root`. One command at a time holds the lock on the directory itself.

use anyhow::{Context, Result, bail, ensure};
use coracle_control::pki;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

pub const DEFAULT_ROOT: &str = "/var/lib/coracle-local";
/// Boards at most: two digits, and addresses for all.
pub const BOARDS_MAX: u8 = 64;
/// The path of a Unix socket has 107 bytes, and those of a pod need the rest.
const ROOT_BYTES_MAX: usize = 40;

/// What the cluster is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The agent's program.
    pub coracle: PathBuf,
    /// How many boards.
    pub boards: u8,
    /// The /16 that everything has its address in.
    pub network: Network,
    /// Of the API.
    pub port: u16,
    /// kubectl's name for the cluster.
    pub context: String,
    /// What boards with a namespace of their own resolve names with, where the machine's resolver is its loopback's.
    pub resolv_conf: Option<PathBuf>,
    /// The kubeconfig that has it, and the user who may write there.
    pub kubeconfig: Option<(PathBuf, u32)>,
}

/// A /16: boards are in its first /24, with the control plane; pods in the upper half, a /24 for each board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network([u8; 2]);

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let address = text.strip_suffix("/16").and_then(|address| address.parse::<Ipv4Addr>().ok());
        match address.map(|address| address.octets()) {
            Some([a, b, 0, 0]) if Ipv4Addr::new(a, b, 0, 0).is_private() => Ok(Network([a, b])),
            _ => Err("a private network of 16 bits, such as 10.244.0.0/16".into()),
        }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Network([a, b]) = self;
        write!(f, "{a}.{b}.0.0/16")
    }
}

impl Network {
    /// This machine's, where the API is served.
    pub fn gateway(self) -> Ipv4Addr {
        self.board(1)
    }

    /// A board's; the first one is this machine.
    pub fn board(self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(self.0[0], self.0[1], 0, n)
    }

    /// Where the control plane gives boards their ranges from.
    pub fn pods(self) -> String {
        format!("{}.{}.128.0/17", self.0[0], self.0[1])
    }

    /// A board's range.
    pub fn pods_of(self, n: u8) -> String {
        format!("{}.{}.{}.0/24", self.0[0], self.0[1], 127 + n)
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.octets()[..2] == self.0
    }
}

/// The directory of a local cluster.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
    prefix: String,
}

impl Place {
    /// Pure but for finding out what a relative path means.
    ///
    /// # Errors
    /// A path that cannot be used.
    pub fn new(root: &Path) -> Result<Place> {
        let mut root = std::path::absolute(root)?;
        // One name for one directory: processes are known by it.
        if let Ok(known) = fs::canonicalize(&root) {
            root = known;
        }
        let text = root.to_str().context("the path of --root is not in UTF-8")?;
        ensure!(
            text.len() <= ROOT_BYTES_MAX && !text.contains(['\n', '"', '\\']),
            "{text}: a root is a plain path of at most {ROOT_BYTES_MAX} bytes"
        );
        let prefix = match text {
            DEFAULT_ROOT => "corlocal".into(),
            // FNV-1a: the name must be the same in every version of this code, which std's hasher does not promise.
            other => {
                let hash = other
                    .bytes()
                    .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
                format!("cl{:07x}", hash & 0x0fff_ffff)
            }
        };
        Ok(Place { root, prefix })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn control(&self) -> PathBuf {
        self.root.join("control")
    }

    pub fn board(&self, n: u8) -> PathBuf {
        self.root.join("boards").join(n.to_string())
    }

    pub fn board_config(&self, n: u8) -> PathBuf {
        self.root.join("boards").join(format!("{n}.toml"))
    }

    pub fn netns(&self, n: u8) -> PathBuf {
        self.root.join("run").join(format!("board-{n}.net"))
    }

    pub fn log(&self, of: &str) -> PathBuf {
        self.root.join("logs").join(format!("{of}.log"))
    }

    /// Where what was started says that it is ready.
    pub fn notify(&self) -> PathBuf {
        self.root.join("run").join("notify")
    }

    /// The bridge that boards meet this machine at, and the table of nftables that lets them out.
    pub fn bridge(&self) -> &str {
        &self.prefix
    }

    /// This machine's end of a board's veth pair.
    pub fn link(&self, n: u8) -> String {
        format!("{}v{n}", self.prefix)
    }

    /// What the agent calls its cgroup and bridge: at most 11 bytes.
    pub fn board_name(&self, n: u8) -> String {
        format!("{}{n}", self.prefix)
    }

    /// What `start` was told; `None` where there is no cluster.
    ///
    /// # Errors
    /// A file that cannot be read, or that this version did not write.
    pub fn settings(&self) -> Result<Option<Settings>> {
        let path = self.root.join("local.json");
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Keeps them, whole or not at all, and makes the directories that belong to them.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(&self, settings: &Settings) -> Result<()> {
        pki::write(&self.root.join("local.json"), &serde_json::to_vec_pretty(settings)?, 0o600)?;
        for dir in ["boards", "run", "logs"] {
            let path = self.root.join(dir);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Makes the directory if need be, and takes its lock.
    ///
    /// # Errors
    /// A directory of somebody else's, the disk's refusal, or another command that is at work.
    pub fn make(&self) -> Result<Lock> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.with_context(|| self.root.display().to_string())?;
        let Some(lock) = self.lock()? else { bail!("{} vanished", self.root.display()) };
        let foreign = |entry: std::io::Result<fs::DirEntry>| {
            entry.map_or(true, |entry| entry.file_name() != "local.json.tmp")
        };
        if self.settings()?.is_none() && fs::read_dir(&self.root)?.any(foreign) {
            bail!("{} is not empty and no local cluster: say another --root", self.root.display());
        }
        Ok(lock)
    }

    /// Takes the lock; `None` where there is no directory.
    ///
    /// # Errors
    /// Another command that is at work.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let file = match File::open(&self.root) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.root.display().to_string()),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another coracle-control local is at work on {}", self.root.display())
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // A `delete` may have removed it in between.
        let (ours, now) = (file.metadata()?, fs::metadata(&self.root));
        match now {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => Ok(Some(Lock { _file: file })),
            _ => bail!("another coracle-control local is at work on {}", self.root.display()),
        }
    }
}

/// Held for as long as a command is at work.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_private_and_of_sixteen_bits() {
        let check =
            |text: &str, expected: bool| assert_eq!(text.parse::<Network>().is_ok(), expected, "{text}");
        check("10.244.0.0/16", true);
        check("192.168.0.0/16", true);
        check("10.244.1.0/16", false);
        check("10.244.0.0/24", false);
        check("8.8.0.0/16", false);
        check("", false);
        let network: Network = "10.7.0.0/16".parse().expect("a network");
        assert_eq!(network.to_string(), "10.7.0.0/16");
        assert_eq!(network.gateway().to_string(), "10.7.0.1");
        assert_eq!(network.pods_of(BOARDS_MAX), "10.7.191.0/24");
    }

    #[test]
    fn names_fit_and_are_the_directorys_own() {
        let place = |root: &str| Place::new(Path::new(root)).expect("a root");
        let (one, two) = (place(DEFAULT_ROOT), place("/srv/two"));
        assert_eq!(one.board_name(1), "corlocal1");
        for place in [&one, &two] {
            assert!(place.board_name(BOARDS_MAX).len() <= 11, "what an agent may be called");
            assert!(place.link(BOARDS_MAX).len() <= 15, "what a link may be called");
        }
        assert_ne!(one.bridge(), two.bridge());
        // A cluster that an earlier version made is found by it.
        assert_eq!(two.bridge(), place("/srv/two").bridge());
        Place::new(Path::new("/var/lib/a-directory-with-a-very-long-name/x")).expect_err("too long");
    }
}
