//! What `serve` is told: a TOML file, every setting with a default, unknown keys refused with their line; flags win.

use coracle_control::controllers::ClusterCidr;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the file is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/coracle/control.toml";
/// `data_dir` by default.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/coracle-control";

/// Every setting.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys, certificates and the embedded store are kept.
    pub data_dir: PathBuf,
    /// Where the API is served.
    pub listen: SocketAddr,
    /// Names and addresses of this machine, for the serving certificate.
    pub hosts: Vec<String>,
    /// `HOST[:PORT]` at which boards reach the API; the first of `hosts`, or this machine's address, when empty.
    pub advertise: String,
    /// An etcd cluster instead of the embedded store: `http://HOST:PORT`.
    pub etcd: Vec<String>,
    /// With etcd: the address at which the other control planes reach this one; where it listens, when unset.
    pub peer_address: Option<SocketAddr>,
    /// Static tokens: `TOKEN,USER,UID,"GROUP,…"` a line.
    pub token_file: Option<PathBuf>,
    /// Where services get their addresses.
    pub service_cidr: String,
    /// Where pods get their addresses, a /24 of it for each node; empty leaves that to others. 4096 boards by default:
    /// upstream's usual 10.244.0.0/16 has room for 256.
    pub cluster_cidr: String,
    /// Silence after which a node is not believed to live.
    pub node_monitor_grace_seconds: u16,
    /// Between two looks at what autoscaled pods use.
    pub autoscaler_sync_seconds: u16,
    /// Certificates.
    pub certificates: Certificates,
}

/// `[certificates]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Certificates {
    /// Longest validity of what is signed for boards and users.
    pub days_max: u16,
    /// So long after its end a board's certificate still lets it ask for the next one; 0 = never.
    pub expired_days: u16,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: DEFAULT_DATA_DIR.into(),
            listen: SocketAddr::from(([0, 0, 0, 0], 6443)),
            hosts: Vec::new(),
            advertise: String::new(),
            etcd: Vec::new(),
            peer_address: None,
            token_file: None,
            service_cidr: "10.96.0.0/16".into(),
            cluster_cidr: "10.240.0.0/12".into(),
            node_monitor_grace_seconds: 40,
            autoscaler_sync_seconds: 15,
            certificates: Certificates::default(),
        }
    }
}

impl Default for Certificates {
    fn default() -> Certificates {
        Certificates { days_max: 365, expired_days: 365 }
    }
}

/// A configuration that cannot be used: one line, with the file and the line in it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file was named and cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a wrong type.
    #[error("{path}:{line}: {message}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A value that cannot work.
    #[error("{path}: {key}: {message}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// What it must be.
        message: String,
    },
}

impl Config {
    /// Reads `path`, or the default place if that exists, else takes every default. Blocking.
    pub fn load(path: Option<&Path>) -> Result<Config, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => Config::parse(file, &text),
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => Ok(Config::default()),
            Err(source) => Err(ConfigError::Read { path: file.into(), source }),
        }
    }

    /// Reads `text` as the content of `path`. Pure.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|e: toml::de::Error| {
            let at = e.span().map_or(0, |span| span.start).min(text.len());
            let line = 1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
            let message = e.message().lines().collect::<Vec<_>>().join(" ");
            ConfigError::Parse { path: path.into(), line, message }
        })?;
        config.check().map_err(|(key, message)| ConfigError::Value { path: path.into(), key, message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        // Upstream's signers refuse less than ten minutes, and nothing here needs more than the authority lives.
        if !(1..=3650).contains(&self.certificates.days_max) {
            return Err(("certificates.days_max", "must be between 1 and 3650".into()));
        }
        if self.node_monitor_grace_seconds == 0 {
            return Err(("node_monitor_grace_seconds", "must be at least 1".into()));
        }
        if self.autoscaler_sync_seconds == 0 {
            return Err(("autoscaler_sync_seconds", "must be at least 1".into()));
        }
        if !self.cluster_cidr.is_empty() {
            self.cluster_cidr.parse::<ClusterCidr>().map_err(|error| ("cluster_cidr", error))?;
        }
        for host in &self.hosts {
            if host.is_empty() || host.len() > 253 || host.contains(['/', ' ']) {
                return Err(("hosts", format!("{host:?} is neither a name nor an address")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_with_its_line() {
        let check = |text: &str, expected: &str| {
            let error = Config::parse(Path::new("c.toml"), text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}\n{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        };
        check("hosts = []\nhost = \"b\"\n", "c.toml:2: unknown field `host`");
        check("listen = 5", "c.toml:1: invalid type");
        check("listen = ", "c.toml:1:");
        check("hosts = [\"https://a\"]", "c.toml: hosts: \"https://a\"");
        check("cluster_cidr = \"10.0.0.0/30\"", "c.toml: cluster_cidr: 10.0.0.0/30: a prefix of");
        check("node_monitor_grace_seconds = 0", "c.toml: node_monitor_grace_seconds: must be");
        check("autoscaler_sync_seconds = 0", "c.toml: autoscaler_sync_seconds: must be");
        check("[certificates]\ndays_max = 0", "c.toml: certificates.days_max: must be");
        check("[certificates]\ndays = 1", "c.toml:2: unknown field `days`");
    }

    #[test]
    fn nothing_set_is_everything_defaulted() {
        assert_eq!(Config::parse(Path::new("c"), "").expect("defaults"), Config::default());
    }
}
