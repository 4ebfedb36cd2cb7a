//! Which pod has which address and hostPorts: one small file per address, and the same in memory.
//!
//! A lease is the first thing made for a pod and the last thing removed, so its file is also the journal of a crash:
//! whatever else a pod has on the network, a lease still tells of it. The directory has one agent at a time as its
//! writer. A lease's file is named by its address and holds the pod's uid, then a line per hostPort and a closing one, without which it counts as half written:
//!
//! ```text
//! 5f0d6c1e-…
//! tcp * 8080 80
//! udp 192.0.2.7 53 5353
//! end
//! ```
//!
//! Addresses go round: one just freed is the last to be given again, so a peer that still talks to the old pod does
//! not reach a new one. Dual stack will add a second file, named by the IPv6 address, with the same content.

use super::cidr::Ipv4Cidr;
use super::{HostPort, NetError};
use coracle_pod::spec::{PodUid, Protocol};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Where the address given last is kept.
const LAST: &str = "last";
/// The last line of a whole lease.
const END: &str = "end\n";

/// What one pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) ports: Vec<HostPort>,
}

/// Every lease of one network.
#[derive(Debug)]
pub(super) struct Leases {
    directory: PathBuf,
    cidr: Ipv4Cidr,
    pods: BTreeMap<PodUid, Lease>,
    /// Every address in use; `None` for a file that a crash left half written.
    owners: BTreeMap<Ipv4Addr, Option<PodUid>>,
    last: Ipv4Addr,
}

impl Leases {
    /// Reads the leases below `directory`, which is made if missing.
    pub(super) fn open(directory: &Path, cidr: Ipv4Cidr) -> Result<Leases, NetError> {
        let failed = |source| NetError::Lease { path: directory.into(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let mut leases = Leases {
            directory: directory.into(),
            cidr,
            pods: BTreeMap::new(),
            owners: BTreeMap::new(),
            last: cidr.gateway(),
        };
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let content =
                fs::read_to_string(&path).map_err(|source| NetError::Lease { path: path.clone(), source })?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == LAST {
                // A cut file starts the round again, no more.
                leases.last = content.trim().parse().unwrap_or(leases.last);
            } else if let Ok(address) = name.parse() {
                leases.remember(address, parse(&content));
            }
        }
        if let Some(&foreign) = leases.owners.keys().find(|address| !cidr.contains(**address)) {
            return Err(NetError::RangeChanged { cidr, foreign, directory: directory.into() });
        }
        Ok(leases)
    }

    /// Every pod with its lease, in order of uid.
    pub(super) fn pods(&self) -> impl Iterator<Item = (&PodUid, &Lease)> {
        self.pods.iter()
    }

    pub(super) fn get(&self, uid: &PodUid) -> Option<&Lease> {
        self.pods.get(uid)
    }

    /// Gives `uid` an address, or the one that it has; its hostPorts must be free.
    pub(super) fn take(&mut self, uid: &PodUid, ports: &[HostPort]) -> Result<Lease, NetError> {
        if let Some(lease) = self.pods.get(uid) {
            return Ok(lease.clone());
        }
        self.check_ports(uid, ports)?;
        if self.owners.len() >= self.cidr.pods_max() as usize {
            return Err(NetError::Exhausted { cidr: self.cidr, pods: self.pods.len() });
        }
        let mut address = self.cidr.next_pod(self.last);
        while self.owners.contains_key(&address) {
            address = self.cidr.next_pod(address);
        }
        self.write(address, uid, ports)?;
        let lease = Lease { address, ports: ports.to_vec() };
        self.remember(address, Some((uid.clone(), ports.to_vec())));
        self.last = address;
        self.write_last()?;
        Ok(lease)
    }

    /// Frees what `uid` has; a pod without a lease is no error.
    pub(super) fn release(&mut self, uid: &PodUid) -> Result<(), NetError> {
        let Some(lease) = self.pods.get(uid) else { return Ok(()) };
        let address = lease.address;
        self.unlink(&address.to_string())?;
        self.pods.remove(uid);
        self.owners.remove(&address);
        Ok(())
    }

    /// Frees the addresses of files that a crash left half written.
    pub(super) fn release_broken(&mut self) -> Result<(), NetError> {
        let broken: Vec<Ipv4Addr> =
            self.owners.iter().filter_map(|(address, owner)| owner.is_none().then_some(*address)).collect();
        for address in broken {
            self.unlink(&address.to_string())?;
            self.owners.remove(&address);
        }
        Ok(())
    }

    /// Frees everything and removes the directory.
    pub(super) fn remove_all(&mut self) -> Result<(), NetError> {
        self.pods.clear();
        self.owners.clear();
        match fs::remove_dir_all(&self.directory) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetError::Lease { path: self.directory.clone(), source })
            }
            _ => Ok(()),
        }
    }

    fn check_ports(&self, uid: &PodUid, ports: &[HostPort]) -> Result<(), NetError> {
        for (index, port) in ports.iter().enumerate() {
            if let Some(IpAddr::V6(host)) = port.bound_to() {
                return Err(NetError::Ipv6HostPort { port: port.to_string(), host });
            }
            let others =
                self.pods.iter().flat_map(|(other, lease)| lease.ports.iter().map(move |p| (other, p)));
            let own = ports[..index].iter().filter(|earlier| *earlier != port).map(|earlier| (uid, earlier));
            if let Some((holder, _)) = others.chain(own).find(|(_, taken)| port.collides(taken)) {
                return Err(NetError::PortTaken { port: port.to_string(), holder: holder.clone() });
            }
        }
        Ok(())
    }

    fn remember(&mut self, address: Ipv4Addr, content: Option<(PodUid, Vec<HostPort>)>) {
        let Some((uid, ports)) = content else {
            self.owners.insert(address, None);
            return;
        };
        self.owners.insert(address, Some(uid.clone()));
        self.pods.insert(uid, Lease { address, ports });
    }

    /// Writes a new file, whole or not at all as far as this process can tell.
    fn write(&self, address: Ipv4Addr, uid: &PodUid, ports: &[HostPort]) -> Result<(), NetError> {
        let path = self.directory.join(address.to_string());
        let written = fs::File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| NetError::Lease { path: path.clone(), source })?
            .write_all(form(uid, ports).as_bytes());
        if let Err(source) = written {
            self.unlink(&address.to_string())?;
            return Err(NetError::Lease { path, source });
        }
        Ok(())
    }

    fn write_last(&self) -> Result<(), NetError> {
        let path = self.directory.join(LAST);
        fs::write(&path, self.last.to_string()).map_err(|source| NetError::Lease { path, source })
    }

    fn unlink(&self, name: &str) -> Result<(), NetError> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetError::Lease { path, source }),
            _ => Ok(()),
        }
    }
}

fn form(uid: &PodUid, ports: &[HostPort]) -> String {
    let mut content = format!("{}\n", uid.0);
    for port in ports {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        let host = port.host_ip.map_or_else(|| "*".into(), |ip| ip.to_string());
        content += &format!("{protocol} {host} {} {}\n", port.host_port, port.container_port);
    }
    content + END
}

/// `None` for what a crash cut short.
fn parse(content: &str) -> Option<(PodUid, Vec<HostPort>)> {
    let mut lines = content.strip_suffix(END)?.lines();
    let uid = lines.next().filter(|uid| !uid.is_empty())?;
    let port = |line: &str| {
        let [protocol, host, host_port, container_port] = *line.split(' ').collect::<Vec<_>>() else {
            return None;
        };
        Some(HostPort {
            protocol: match protocol {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => return None,
            },
            host_ip: match host {
                "*" => None,
                host => Some(host.parse().ok()?),
            },
            host_port: host_port.parse().ok()?,
            container_port: container_port.parse().ok()?,
        })
    };
    Some((PodUid(uid.into()), lines.map(port).collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(name: &str) -> PodUid {
        PodUid(name.into())
    }

    fn port(host_ip: Option<&str>, host_port: u16) -> HostPort {
        let host_ip = host_ip.map(|ip| ip.parse().expect("an address"));
        HostPort { protocol: Protocol::Tcp, host_ip, host_port, container_port: 80 }
    }

    fn open(directory: &Path) -> Leases {
        Leases::open(directory, "10.0.0.0/29".parse().expect("a range")).expect("leases")
    }

    #[test]
    fn a_lease_is_kept_freed_and_not_given_again_soon() {
        let directory = tempfile::tempdir().expect("a directory");
        let last_byte = |leases: &mut Leases, name: &str| {
            leases.take(&uid(name), &[]).map(|lease| lease.address.octets()[3]).map_err(|e| e.to_string())
        };
        let mut leases = open(directory.path());
        assert_eq!(last_byte(&mut leases, "a"), Ok(2));
        assert_eq!(last_byte(&mut leases, "a"), Ok(2), "idempotent");
        leases.release(&uid("a")).expect("release");
        leases.release(&uid("a")).expect("idempotent");
        let mut leases = open(directory.path());
        assert_eq!(last_byte(&mut leases, "b"), Ok(3), "the round goes on after a restart");
        for (name, byte) in [("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
            assert_eq!(last_byte(&mut leases, name), Ok(byte));
        }
        let full =
            "no free address in 10.0.0.0/29: 5 pods have one each; widen network_cidr or run fewer pods";
        assert_eq!(last_byte(&mut leases, "g"), Err(full.into()));
        leases.release(&uid("d")).expect("release");
        assert_eq!(last_byte(&mut leases, "g"), Ok(5));
        assert_eq!(open(directory.path()).pods, leases.pods, "what is on disk is what is in memory");
        leases.remove_all().expect("remove");
        assert!(!directory.path().exists());
    }

    #[test]
    fn a_host_port_has_one_pod() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut leases = open(directory.path());
        leases.take(&uid("a"), &[port(None, 80), port(Some("192.0.2.1"), 81)]).expect("free");
        let mut check = |ports: &[HostPort], expected: Option<&str>| {
            let found = leases.take(&uid("b"), ports).map_err(|e| e.to_string());
            match expected {
                Some(wanted) => assert_eq!(found, Err(wanted.into()), "{ports:?}"),
                None => assert!(found.is_ok(), "{found:?}"),
            }
            leases.release(&uid("b")).expect("release");
        };
        let taken = Some("hostPort 80/TCP is already used by pod a");
        check(&[port(None, 80)], taken);
        check(&[port(Some("0.0.0.0"), 80)], taken);
        check(&[port(Some("192.0.2.9"), 80)], Some("hostPort 192.0.2.9:80/TCP is already used by pod a"));
        check(&[port(None, 81)], Some("hostPort 81/TCP is already used by pod a"));
        check(&[port(Some("192.0.2.2"), 81)], None);
        check(&[HostPort { protocol: Protocol::Udp, ..port(None, 80) }], None);
        check(&[port(None, 90), port(None, 90)], None);
        let other_port = HostPort { container_port: 81, ..port(None, 90) };
        check(&[port(None, 90), other_port], Some("hostPort 90/TCP is already used by pod b"));
        check(
            &[port(Some("::1"), 82)],
            Some("hostPort [::1]:82/TCP: this network has no IPv6; give an IPv4 hostIP or none"),
        );
    }

    #[test]
    fn what_a_crash_cut_short_holds_its_address_until_it_is_released() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut leases = open(directory.path());
        leases.take(&uid("a"), &[port(Some("192.0.2.1"), 81), port(None, 80)]).expect("free");
        let whole = fs::read_to_string(directory.path().join("10.0.0.2")).expect("a lease");
        assert_eq!(whole, "a\ntcp 192.0.2.1 81 80\ntcp * 80 80\nend\n");
        assert!(parse(&whole).is_some());
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }
        fs::write(directory.path().join("10.0.0.3"), "").expect("a cut file");
        let mut leases = open(directory.path());
        assert_eq!(leases.take(&uid("b"), &[]).expect("free").address.octets()[3], 4);
        leases.release_broken().expect("release");
        assert!(!directory.path().join("10.0.0.3").exists());
        assert!(directory.path().join("10.0.0.2").exists());
    }

    #[test]
    fn a_changed_range_is_refused_while_pods_have_the_old_one() {
        let directory = tempfile::tempdir().expect("a directory");
        open(directory.path()).take(&uid("a"), &[]).expect("free");
        let refused = Leases::open(directory.path(), "10.1.0.0/16".parse().expect("a range"));
        let text = refused.map(drop).map_err(|e| e.to_string());
        assert!(
            text.as_ref().is_err_and(|text| text.contains("10.0.0.2 is outside 10.1.0.0/16")),
            "{text:?}"
        );
    }
}
