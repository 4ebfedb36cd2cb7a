//! A pod's `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`: pure text, as the kubelet writes it.

use coracle_pod::spec::{DnsPolicy, PodSpec};
use std::fmt::Write;
use std::net::IpAddr;

/// What the board says about names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames {
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
            let qualified = pod
                .subdomain
                .as_ref()
                .map(|s| format!("{}.{s}.{}.svc.{}\t", pod.hostname, pod.namespace, host.cluster_domain));
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
