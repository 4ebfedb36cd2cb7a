//! The pod range of one board: an IPv4 network written `10.88.0.0/16`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The longest prefix that still holds a network, a gateway, a pod and a broadcast address.
const PREFIX_LONGEST: u8 = 30;
/// The shortest prefix that fits a private range (`10.0.0.0/8`).
const PREFIX_SHORTEST: u8 = 8;

/// An IPv4 network without host bits, `/8` to `/30`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no pod range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is no IPv4 network: write it as 10.88.0.0/16")]
    Syntax(String),
    #[error("{0}: the prefix must be between /{PREFIX_SHORTEST} and /{PREFIX_LONGEST}")]
    Prefix(String),
    #[error("{text} has host bits set: write {network}/{prefix}")]
    HostBits { text: String, network: Ipv4Addr, prefix: u8 },
    #[error("{0} is no range that pods can use: take a private one such as 10.88.0.0/16")]
    Reserved(String),
}

impl Ipv4Cidr {
    /// The network address, the range's first.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Bits of the network part.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The mask, `255.255.0.0` for `/16`.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(!(u32::MAX >> self.prefix))
    }

    /// The first host address: the bridge's own, every pod's default route.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// The broadcast address, the range's last.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | (u32::MAX >> self.prefix))
    }

    /// Whether `address` lies within the range, ends included.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.network
    }

    /// How many pods can have an address: all but network, gateway and broadcast.
    pub fn pods_max(&self) -> u32 {
        (u32::MAX >> self.prefix) - 2
    }

    /// The address after `address` that a pod may have, going round at the end.
    pub(super) fn next_pod(&self, address: Ipv4Addr) -> Ipv4Addr {
        let next = u32::from(address).wrapping_add(1);
        let (first, last) = (u32::from(self.gateway()) + 1, u32::from(self.broadcast()) - 1);
        Ipv4Addr::from(if (first..=last).contains(&next) { next } else { first })
    }
}

impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Ipv4Cidr, CidrError> {
        let syntax = || CidrError::Syntax(text.into());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        if !(PREFIX_SHORTEST..=PREFIX_LONGEST).contains(&prefix) {
            return Err(CidrError::Prefix(text.into()));
        }
        let network = Ipv4Addr::from(u32::from(address) & !(u32::MAX >> prefix));
        if network != address {
            return Err(CidrError::HostBits { text: text.into(), network, prefix });
        }
        if network.octets()[0] == 0 || network.is_loopback() || network.octets()[0] >= 224 {
            return Err(CidrError::Reserved(text.into()));
        }
        Ok(Ipv4Cidr { network, prefix })
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_checked_and_shown() {
        let check = |text: &str, expected: Result<(&str, &str, &str), &str>| {
            let found = text.parse::<Ipv4Cidr>();
            let found =
                found.map(|c| (c.gateway().to_string(), c.broadcast().to_string(), c.mask().to_string()));
            match (found, expected) {
                (Ok((g, b, m)), Ok(wanted)) => {
                    assert_eq!((g.as_str(), b.as_str(), m.as_str()), wanted, "{text}")
                }
                (Err(e), Err(wanted)) => assert!(e.to_string().contains(wanted), "{text}: {e}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        };
        check("10.88.0.0/16", Ok(("10.88.0.1", "10.88.255.255", "255.255.0.0")));
        check("192.168.7.0/30", Ok(("192.168.7.1", "192.168.7.3", "255.255.255.252")));
        check("10.88.0.5/16", Err("write 10.88.0.0/16"));
        check("10.88.0.0", Err("no IPv4 network"));
        check("fd00::/64", Err("no IPv4 network"));
        check("10.88.0.0/31", Err("between /8 and /30"));
        check("127.0.0.0/8", Err("private"));
        check("224.0.0.0/8", Err("private"));
    }

    #[test]
    fn pods_go_round_without_network_gateway_and_broadcast() {
        let range: Ipv4Cidr = "10.0.0.0/29".parse().expect("a range");
        let mut address = range.network();
        let mut seen = Vec::new();
        for _ in 0..=range.pods_max() {
            address = range.next_pod(address);
            seen.push(address.octets()[3]);
        }
        assert_eq!(seen, [2, 3, 4, 5, 6, 2]);
    }
}
