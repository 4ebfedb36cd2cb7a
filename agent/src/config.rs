//! The agent's one configuration file: TOML, every setting with a default, unknown keys refused with their line.

use coracle_api::names;
use coracle_runtime::image::Reference;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Where the file is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/coracle/config.toml";

/// `root` by default.
pub const DEFAULT_ROOT: &str = "/var/lib/coracle";

/// Every setting.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Directory that holds everything of the agent, where neither `--root` nor `CORACLE_ROOT` says another.
    pub root: PathBuf,
    /// Names this agent's cgroup, bridge and nftables table; at most 11 bytes of `a-z0-9-`.
    pub name: String,
    /// The node's name; the hostname when empty.
    pub node_name: String,
    /// The pods' IPv4 network on this board.
    pub network_cidr: Cidr,
    /// MTU of pod interfaces; the kernel's default when unset.
    pub network_mtu: Option<u32>,
    /// DNS servers for `dnsPolicy: ClusterFirst`; none = the board's own resolver.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Upper bound of processes in one pod.
    pub pod_pids_max: u64,
    /// Pods on this board at most.
    pub pods_max: usize,
    /// A container's log file is rotated at this size.
    pub log_bytes_max: u64,
    /// Log files kept per container, the current one included.
    pub log_files_max: u32,
    /// Pods are evicted while tasks wait for memory and less than this is available; 0 = never. The kubelet's default.
    pub eviction_memory_available_bytes: u64,
    /// The node is under disk pressure while less than this part of its disk is available; 0 = never. The kubelet's default.
    pub eviction_disk_available_percent: u8,
    /// Images.
    pub image: ImageSettings,
    /// The API server.
    pub cluster: ClusterSettings,
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSettings {
    /// Credentials; by default those that `coracle join` put into `ROOT/cluster`, and without them the board stands alone.
    pub kubeconfig: Option<PathBuf>,
    /// Of the Node, besides those that every node has.
    pub labels: BTreeMap<String, String>,
    /// Where the kubelet's API is served by HTTPS, for API servers that dial boards; 0 is nowhere.
    pub kubelet_port: u16,
    /// How often the node's Lease is renewed. It holds for four times this.
    pub lease_renew_seconds: u64,
    /// How often a status of the node that has not changed is told again, at least; at most twice this.
    pub status_report_seconds: u64,
}

/// `[image]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageSettings {
    /// Garbage collection starts when the disk is fuller than this.
    pub gc_high_percent: u8,
    /// … and stops at this.
    pub gc_low_percent: u8,
    /// Layers fetched at once.
    pub parallel_layers: usize,
    /// Never collected: references as pods write them.
    pub pinned: Vec<String>,
    /// Docker-style `config.json` files with registry credentials.
    pub credential_files: Vec<PathBuf>,
    /// By registry host: `[image.registry."docker.io"]`.
    pub registry: BTreeMap<String, Registry>,
}

/// `[image.registry."HOST"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// `HOST[:PORT][/PATH]`, asked in order before the registry itself.
    pub mirrors: Vec<String>,
    /// Plain HTTP instead of TLS.
    pub plain_http: bool,
}

/// An IPv4 network: `10.88.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cidr {
    /// Its first address.
    pub address: Ipv4Addr,
    /// Prefix length, 8–29.
    pub prefix: u8,
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Cidr, String> {
        let wrong =
            || format!("{text:?} is not an IPv4 network such as 10.88.0.0/16 with a prefix of 8 to 29");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        if !(8..=29).contains(&prefix) || address.to_bits() & host_bits != 0 {
            return Err(wrong());
        }
        Ok(Cidr { address, prefix })
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            root: DEFAULT_ROOT.into(),
            name: "coracle".into(),
            node_name: String::new(),
            network_cidr: Cidr { address: Ipv4Addr::new(10, 88, 0, 0), prefix: 16 },
            network_mtu: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            pod_pids_max: 4096,
            pods_max: 110,
            log_bytes_max: 10 << 20,
            log_files_max: 3,
            eviction_memory_available_bytes: 100 << 20,
            eviction_disk_available_percent: 10,
            image: ImageSettings::default(),
            cluster: ClusterSettings::default(),
        }
    }
}

impl Default for ClusterSettings {
    fn default() -> ClusterSettings {
        ClusterSettings {
            kubeconfig: None,
            labels: BTreeMap::new(),
            kubelet_port: 10_250,
            lease_renew_seconds: 10,
            status_report_seconds: 300,
        }
    }
}

impl Default for ImageSettings {
    fn default() -> ImageSettings {
        ImageSettings {
            gc_high_percent: 85,
            gc_low_percent: 80,
            parallel_layers: 2,
            pinned: Vec::new(),
            credential_files: Vec::new(),
            registry: BTreeMap::new(),
        }
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
            ConfigError::Parse {
                path: path.into(),
                line,
                message: e.message().lines().collect::<Vec<_>>().join(" "),
            }
        })?;
        config.check().map_err(|(key, message)| ConfigError::Value { path: path.into(), key, message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        // The bridge is called after it, and Linux allows an interface 15 bytes.
        if self.name.is_empty() || self.name.len() > 11 || !self.name.chars().all(plain) {
            return Err(("name", format!("{:?} must be 1 to 11 of a-z, 0-9 and -", self.name)));
        }
        let image = &self.image;
        if image.gc_high_percent > 100 || image.gc_low_percent >= image.gc_high_percent {
            return Err((
                "image.gc_low_percent",
                "must be below image.gc_high_percent, both at most 100".into(),
            ));
        }
        let label = |c: char| plain(c) || c == '.';
        if self.node_name.len() > 253 || !self.node_name.chars().all(label) {
            return Err((
                "node_name",
                format!("{:?} must be at most 253 of a-z, 0-9, - and .", self.node_name),
            ));
        }
        // RFC 791 for the one, an interface's own bound for the other.
        if self.network_mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
            return Err(("network_mtu", "must be between 576 and 65535".into()));
        }
        for pinned in &image.pinned {
            Reference::parse(pinned).map_err(|e| ("image.pinned", e.to_string()))?;
        }
        for (host, registry) in &image.registry {
            if Reference::parse(&format!("{host}/a/b")).map_or(true, |r| r.registry != *host) {
                return Err((
                    "image.registry",
                    format!("{host:?} is no registry: such as docker.io or host:5000"),
                ));
            }
            for mirror in &registry.mirrors {
                let place = mirror.strip_prefix("https://").or_else(|| mirror.strip_prefix("http://"));
                let place = place.unwrap_or(mirror);
                if place.is_empty() || place.contains("://") || place.contains(char::is_whitespace) {
                    let wrong = format!("{mirror:?} of {host} is no mirror: such as mirror.example:5000/hub");
                    return Err(("image.registry.mirrors", wrong));
                }
            }
        }
        for (key, value) in &self.cluster.labels {
            let wrong = [names::qualified_name(key), names::label_value(value)].concat();
            if let Some(why) = wrong.first() {
                return Err(("cluster.labels", format!("{key} = {value:?}: {why}")));
            }
        }
        let positive = [
            ("pod_pids_max", self.pod_pids_max),
            ("log_bytes_max", self.log_bytes_max),
            ("cluster.lease_renew_seconds", self.cluster.lease_renew_seconds),
            ("cluster.status_report_seconds", self.cluster.status_report_seconds),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err((key, "must be above 0".into()));
            }
        }
        if self.log_files_max == 0 || self.pods_max == 0 || image.parallel_layers == 0 {
            return Err(("log_files_max, pods_max, image.parallel_layers", "must be above 0".into()));
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
        check("name = \"a\"\nnaem = \"b\"\n", "c.toml:2: unknown field `naem`");
        check("name = 5", "c.toml:1: invalid type");
        check("name = ", "c.toml:1:");
        check("name = \"Not Good\"", "c.toml: name:");
        check("network_cidr = \"10.0.0.0\"", "c.toml:1: \"10.0.0.0\" is not an IPv4 network");
        check("network_cidr = \"10.0.0.1/16\"", "is not an IPv4 network");
        check("[image]\ngc_low_percent = 90", "gc_low_percent");
        check("[cluster]\nlease_renew_seconds = 0", "c.toml: cluster.lease_renew_seconds: must be above 0");
        check("[cluster.labels]\na = \"b c\"", "c.toml: cluster.labels: a = \"b c\": a valid label");
        check("node_name = \"Not Good\"", "c.toml: node_name:");
        check("network_mtu = 5", "c.toml: network_mtu: must be between");
        check("image.pinned = [\"Not Good\"]", "c.toml: image.pinned: invalid image name");
        check("[image.registry.\"a/b\"]", "c.toml: image.registry: \"a/b\" is no registry");
        check(
            "[image.registry.\"docker.io\"]\nmirrors = [\"ftp://a\"]",
            "image.registry.mirrors: \"ftp://a\"",
        );
        check("[image.registry.\"docker.io\"]\nmirror = []", "c.toml:2: unknown field `mirror`");
    }

    #[test]
    fn nothing_set_is_everything_defaulted() {
        assert_eq!(Config::parse(Path::new("c"), "").expect("defaults"), Config::default());
        let text = "[image.registry.\"docker.io\"]\nmirrors = [\"localhost:5000\"]\nplain_http = true\n";
        let config = Config::parse(Path::new("c"), text).expect("parses");
        assert!(config.image.registry["docker.io"].plain_http);
    }
}
