//! A pod's `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`: pure text, as the kubelet writes it.

use coracle_pod::spec::{DnsPolicy, PodSpec};
use std::fmt::Write;
use std::net::IpAddr;

/// What the board says about names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames {
    /// The board's own name, for `hostNetwork` pods.
    pub hostname: String,
    /// The board's `/etc/hosts`, for `hostNetwork` pods.
    pub hosts: String,
    /// The board's real resolver file: not the stub that only its own loopback reaches.
    pub resolv_conf: String,
    /// Cluster DNS servers; none on a standalone board.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
}

/// resolv.conf(5) limits that the kubelet enforces.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// What `hostname` says in a pod: the board's own name with `hostNetwork`, whose UTS namespace it shares; the qualified
/// name with `setHostnameAsFQDN`.
pub fn hostname(pod: &PodSpec, host: &HostNames) -> String {
    if pod.host_network {
        return host.hostname.clone();
    }
    let wanted = pod.subdomain.as_ref().filter(|_| pod.set_hostname_as_fqdn);
    wanted.map_or_else(|| pod.hostname.clone(), |subdomain| qualified(pod, subdomain, host))
}

fn qualified(pod: &PodSpec, subdomain: &str, host: &HostNames) -> String {
    format!("{}.{subdomain}.{}.svc.{}", pod.hostname, pod.namespace, host.cluster_domain)
}

/// `/etc/hosts` of a pod.
pub fn hosts(pod: &PodSpec, ips: &[IpAddr], host: &HostNames) -> String {
    let mut text = if pod.host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{}", host.hosts)
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        for ip in ips {
            let qualified = pod.subdomain.as_ref().map(|s| qualified(pod, s, host) + "\t");
            text += &format!("{ip}\t{}{}\n", qualified.unwrap_or_default(), pod.hostname);
        }
        text
    };
    if !pod.host_aliases.is_empty() {
        text += "\n# Entries added by HostAliases.\n";
        for alias in &pod.host_aliases {
            text += &format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t"));
        }
    }
    text
}

/// `/etc/resolv.conf` of a pod: its policy's servers, then `dnsConfig` merged over them.
pub fn resolv_conf(pod: &PodSpec, host: &HostNames) -> String {
    let cluster = match pod.dns.policy {
        DnsPolicy::ClusterFirst => !pod.host_network,
        DnsPolicy::ClusterFirstWithHostNet => true,
        DnsPolicy::Default | DnsPolicy::None => false,
    };
    let mut base = match pod.dns.policy {
        DnsPolicy::None => Resolver::default(),
        // Without a cluster DNS server the kubelet falls back to the node's resolver, and so do we.
        _ => Resolver::parse(&host.resolv_conf),
    };
    if cluster && !host.cluster_dns.is_empty() {
        let domain = &host.cluster_domain;
        let mut searches =
            vec![format!("{}.svc.{domain}", pod.namespace), format!("svc.{domain}"), domain.clone()];
        searches.append(&mut base.searches);
        let nameservers = host.cluster_dns.iter().map(ToString::to_string).collect();
        base = Resolver { nameservers, searches, options: vec!["ndots:5".into()] };
    }
    base.merge(&pod.dns.nameservers, &pod.dns.searches, &pod.dns.options);
    base.text()
}

#[derive(Default)]
struct Resolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Resolver {
        let mut found = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.nameservers.extend(words.next().map(String::from)),
                Some("search" | "domain") => found.searches = words.map(String::from).collect(),
                Some("options") => found.options.extend(words.map(String::from)),
                _ => {}
            }
        }
        found
    }

    fn merge(&mut self, nameservers: &[String], searches: &[String], options: &[String]) {
        let add = |list: &mut Vec<String>, more: &[String]| {
            for item in more {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut self.nameservers, nameservers);
        add(&mut self.searches, searches);
        for option in options {
            let name = |o: &str| o.split(':').next().unwrap_or_default().to_string();
            self.options.retain(|known| name(known) != name(option));
            self.options.push(option.clone());
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for server in self.nameservers.iter().take(NAMESERVERS_MAX) {
            writeln!(text, "nameserver {server}").expect("a String takes any text");
        }
        let searches: Vec<&str> = self.searches.iter().take(SEARCHES_MAX).map(String::as_str).collect();
        for (word, list) in [("search", searches.join(" ")), ("options", self.options.join(" "))] {
            if !list.is_empty() {
                writeln!(text, "{word} {list}").expect("a String takes any text");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> PodSpec {
        let text = format!(
            "{{\"metadata\": {{\"name\": \"web\", \"namespace\": \"sea\", \"uid\": \"u\"}}, \"spec\": {{{spec} \"containers\": [{{\"name\": \"web\", \"image\": \"i:1\"}}]}}}}"
        );
        PodSpec::from_api(&serde_json::from_str(&text).unwrap()).unwrap()
    }

    fn board() -> HostNames {
        HostNames {
            hostname: "board".into(),
            hosts: "127.0.0.1 localhost board\n".into(),
            resolv_conf: "# by hand\nnameserver 192.0.2.1\nsearch lan\noptions edns0 ndots:2\n".into(),
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn resolvers_follow_policy_and_config() {
        let own = "nameserver 192.0.2.1\nsearch lan\noptions edns0 ndots:2\n";
        let cluster = "nameserver 10.96.0.10\nsearch sea.svc.cluster.local svc.cluster.local cluster.local lan\noptions ndots:5\n";
        let check =
            |spec: &str, expected: &str| assert_eq!(resolv_conf(&pod(spec), &board()), expected, "{spec}");
        check("", cluster);
        check(r#""dnsPolicy": "Default","#, own);
        check(r#""hostNetwork": true,"#, own);
        check(r#""hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet","#, cluster);
        let config = r#""dnsConfig": {"nameservers": ["192.0.2.9"], "searches": ["lan", "fleet"], "options": [{"name": "ndots", "value": "1"}, {"name": "rotate"}]},"#;
        let check_with =
            |policy: &str, expected: &str| check(&format!(r#""dnsPolicy": "{policy}", {config}"#), expected);
        check_with("None", "nameserver 192.0.2.9\nsearch lan fleet\noptions ndots:1 rotate\n");
        check_with(
            "Default",
            "nameserver 192.0.2.1\nnameserver 192.0.2.9\nsearch lan fleet\noptions edns0 ndots:1 rotate\n",
        );
        let mut alone = board();
        alone.cluster_dns.clear();
        assert_eq!(resolv_conf(&pod(""), &alone), own, "no cluster DNS: the board's resolver");
    }

    #[test]
    fn hosts_and_hostnames_are_the_kubelets() {
        let ip: IpAddr = "10.88.0.2".parse().unwrap();
        let check = |spec: &str, name: &str, line: &str| {
            let pod = pod(spec);
            assert_eq!(hostname(&pod, &board()), name, "{spec}");
            let text = hosts(&pod, &[ip], &board());
            assert!(
                text.starts_with("# Kubernetes-managed hosts file") && text.contains(line),
                "{spec}: {text}"
            );
        };
        check("", "web", "\n10.88.0.2\tweb\n");
        check(r#""hostname": "h","#, "h", "\n10.88.0.2\th\n");
        let qualified = "\n10.88.0.2\th.sub.sea.svc.cluster.local\th\n";
        check(r#""hostname": "h", "subdomain": "sub","#, "h", qualified);
        let fqdn = r#""hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": true,"#;
        check(fqdn, "h.sub.sea.svc.cluster.local", qualified);
        check(r#""hostNetwork": true,"#, "board", "(host network).\n127.0.0.1 localhost board\n");
        let aliases = r#""hostAliases": [{"ip": "192.0.2.7", "hostnames": ["buoy", "buoy.lan"]}],"#;
        check(aliases, "web", "\n# Entries added by HostAliases.\n192.0.2.7\tbuoy\tbuoy.lan\n");
    }
}
