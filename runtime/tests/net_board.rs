//! The network of one board, in real namespaces: a node, a machine outside of it, and pods.
//!
//! The machine outside is the node's router: it runs a [`Network`] of its own, of which the node is the one "pod".
//! So the outside drops whatever reaches it with an address that is not the node's: pods must be masqueraded.

mod net_lab;

use coracle_pod::spec::Protocol;
use coracle_runtime::net::{HostPort, NetError, Network};
use net_lab::{
    Lab, NODE, OUTSIDE, Pod, config, listen, netns, port, raw_heard, raw_listen, raw_send, spoof, talk,
    udp_ask, udp_listen, uid, within,
};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

const GATEWAY: &str = "10.88.0.1";

#[test]
fn pods_talk_to_each_other_and_to_the_outside() {
    let lab = Lab::new();
    let (one, two) = (lab.pod("one", &[]), lab.pod("two", &[]));
    assert_eq!([one.address.as_str(), two.address.as_str()], ["10.88.0.2", "10.88.0.3"]);
    let server = listen(&two.netns, "0.0.0.0:80");
    let check = |from, to: &str, seen: &str| assert_eq!(talk(from, to, &server).as_deref(), Ok(seen), "{to}");
    check(&one.netns, "10.88.0.3:80", &one.address);
    check(&two.netns, "10.88.0.3:80", &two.address);
    check(&two.netns, "127.0.0.1:80", "127.0.0.1");
    check(&lab.node, "10.88.0.3:80", GATEWAY);
    let outside = listen(&lab.outside, "0.0.0.0:80");
    assert_eq!(talk(&one.netns, &format!("{OUTSIDE}:80"), &outside).as_deref(), Ok(NODE), "masqueraded");
    let node = listen(&lab.node, "0.0.0.0:81");
    assert_eq!(talk(&one.netns, &format!("{GATEWAY}:81"), &node).as_deref(), Ok(one.address.as_str()));
    assert_eq!(lab.net.gateway(), GATEWAY.parse::<IpAddr>().expect("an address"));
}

#[test]
fn host_ports_lead_to_the_pod_from_everywhere() {
    let lab = Lab::new();
    let only_node =
        HostPort { host_ip: Some(NODE.parse().expect("an address")), ..port(Protocol::Tcp, 8081, 80) };
    let web = lab.pod("web", &[port(Protocol::Tcp, 8080, 80), only_node]);
    let other = lab.pod("other", &[]);
    let server = listen(&web.netns, "0.0.0.0:80");
    let check = |from, to: String, seen: &str| {
        assert_eq!(talk(from, &to, &server).as_deref(), Ok(seen), "{to} is seen as {seen}");
    };
    check(&lab.outside, format!("{NODE}:8080"), OUTSIDE);
    check(&lab.outside, format!("{NODE}:8081"), OUTSIDE);
    check(&lab.node, "127.0.0.1:8080".into(), GATEWAY);
    check(&lab.node, format!("{NODE}:8080"), NODE);
    check(&lab.node, format!("{GATEWAY}:8080"), GATEWAY);
    check(&other.netns, format!("{NODE}:8080"), GATEWAY);
    check(&other.netns, format!("{GATEWAY}:8080"), GATEWAY);
    check(&web.netns, format!("{NODE}:8080"), GATEWAY);
    check(&web.netns, format!("{NODE}:8081"), GATEWAY);
    for closed in [format!("{GATEWAY}:8081"), "127.0.0.1:8081".into(), "127.0.0.1:80".into()] {
        let refused = talk(&lab.node, &closed, &server);
        assert!(refused.as_ref().is_err_and(|e| e.contains("refused")), "{closed}: {refused:?}");
    }
    lab.net.detach(&uid("web")).expect("detach");
    let refused = talk(&lab.outside, &format!("{NODE}:8080"), &server);
    assert!(refused.as_ref().is_err_and(|e| e.contains("refused")), "after the pod: {refused:?}");
}

/// Connection tracking decides once per flow: a client that goes on sending from one port must reach the pod that
/// comes, and not the one that went.
#[test]
fn a_udp_client_follows_the_pods_behind_a_host_port() {
    let lab = Lab::new();
    let ports = [port(Protocol::Udp, 5353, 53)];
    let client = udp_listen(&lab.outside, &format!("{OUTSIDE}:4000"));
    let target = format!("{NODE}:5353");
    let ask_the_host = |when: &str| {
        let node = udp_listen(&lab.node, "0.0.0.0:5353");
        assert_eq!(udp_ask(&client, &target, &node).as_deref(), Ok(OUTSIDE), "{when}: the host itself");
    };
    ask_the_host("no pod yet");
    for name in ["one", "two"] {
        let pod = lab.pod(name, &ports);
        let server = udp_listen(&pod.netns, "0.0.0.0:53");
        assert_eq!(udp_ask(&client, &target, &server).as_deref(), Ok(OUTSIDE), "{name}");
        assert_eq!(udp_ask(&client, &target, &server).as_deref(), Ok(OUTSIDE), "{name}, again");
        lab.net.detach(&uid(name)).expect("detach");
    }
    ask_the_host("no pod any more");
}

#[test]
fn a_pod_cannot_send_from_a_foreign_address() {
    let lab = Lab::new();
    let pod = lab.pod("one", &[]);
    let node = udp_listen(&lab.node, "0.0.0.0:7000");
    let client = udp_listen(&pod.netns, "0.0.0.0:0");
    for address in ["203.0.113.9", "10.89.0.2"] {
        spoof(&pod.netns, address, &format!("{GATEWAY}:7000"));
    }
    let first = udp_ask(&client, &format!("{GATEWAY}:7000"), &node);
    assert_eq!(first.as_deref(), Ok(pod.address.as_str()), "the honest packet, sent last, arrives first");
}

/// CVE-2020-8558: the bridge lets 127.0.0.0/8 pass for hostPorts, but a pod must not reach what listens there.
#[test]
fn a_pod_cannot_reach_the_loopback_of_the_host() {
    let lab = Lab::new();
    let pod = lab.pod("one", &[]);
    let node = udp_listen(&lab.node, "127.0.0.1:7000");
    let client = udp_listen(&lab.node, "127.0.0.1:0");
    net_lab::to_loopback_of_the_host(&pod.netns, [10, 88, 0, 2], [0x0a, 0x58, 10, 88, 0, 1], 7000);
    assert_eq!(udp_ask(&client, "127.0.0.1:7000", &node).as_deref(), Ok("127.0.0.1"), "the host itself may");
}

#[test]
fn attach_and_detach_may_be_repeated_and_leave_nothing() {
    let lab = Lab::new();
    let empty = lab.census();
    let ports = [port(Protocol::Tcp, 8080, 80), port(Protocol::Sctp, 8080, 80), port(Protocol::Udp, 53, 53)];
    let pod = lab.pod("one", &ports);
    let attached = lab.census();
    assert_eq!((attached.links, attached.nft_elements), (empty.links + 1, 3));
    assert_eq!(lab.attach(&pod.netns, "one", &ports), pod.address, "the same again");
    assert_eq!(lab.census(), attached);
    assert_eq!(lab.net.addresses(&uid("one")), Some(vec![pod.address.parse().expect("an address")]));

    let reborn = Pod { netns: netns(), address: lab.attach(&pod.netns, "one", &ports) };
    assert_eq!(lab.attach(&reborn.netns, "one", &ports), reborn.address, "a new sandbox of the same pod");
    assert_eq!(lab.census(), attached);
    let server = listen(&reborn.netns, "0.0.0.0:80");
    assert_eq!(talk(&lab.outside, &format!("{NODE}:8080"), &server).as_deref(), Ok(OUTSIDE));

    lab.net.detach(&uid("one")).expect("detach");
    lab.net.detach(&uid("one")).expect("again");
    lab.net.detach(&uid("never seen")).expect("unknown");
    assert_eq!((lab.census(), lab.leases(), lab.net.addresses(&uid("one"))), (empty, vec![], None));
}

#[test]
fn teardown_leaves_the_machine_as_it_was() {
    let lab = Lab::new();
    let _alive = lab.pod("one", &[port(Protocol::Tcp, 8080, 80)]);
    let forwarding =
        || within(&lab.node, || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl"));
    assert_eq!(forwarding(), "1\n");
    lab.net.teardown().expect("teardown");
    lab.net.teardown().expect("again");
    assert_eq!((lab.census(), forwarding().as_str()), (lab.bare, "0\n"));
    assert!(!lab.directory.path().join("leases").exists());
}

#[test]
fn a_restarted_agent_keeps_the_living_and_frees_the_dead() {
    let lab = Lab::new();
    let ports = |number| [port(Protocol::Tcp, number, 80)];
    let alive = lab.pod("alive", &ports(8080));
    let attached = lab.census();
    let dead = lab.pod("dead", &ports(8081));
    let again = within(&lab.node, || Network::open(config(lab.directory.path())).expect("open"));
    again.reconcile(&BTreeSet::from([uid("alive")])).expect("reconcile");
    again.reconcile(&BTreeSet::from([uid("alive")])).expect("again");
    assert_eq!((lab.census(), lab.leases()), (attached, vec![alive.address.clone()]));
    let server = listen(&alive.netns, "0.0.0.0:80");
    assert_eq!(talk(&lab.outside, &format!("{NODE}:8080"), &server).as_deref(), Ok(OUTSIDE));
    let next = again.attach(&uid("next"), &net_lab::path(&dead.netns), &ports(8081)).expect("attach");
    assert_eq!(next, ["10.88.0.4".parse::<IpAddr>().expect("an address")], "not the one just freed");
}

/// `nft flush ruleset`, `ip link del`: the next call finds the damage and repairs it.
#[test]
fn damage_by_others_is_repaired() {
    let lab = Lab::new();
    let pod = lab.pod("one", &[port(Protocol::Tcp, 8080, 80)]);
    let attached = lab.census();
    let saboteur = within(&lab.node, || {
        // A network of the same name with other leases: its teardown takes table and bridge away.
        let config = config(&lab.directory.path().join("other"));
        Network::open(config).expect("open")
    });
    saboteur.teardown().expect("teardown");
    assert_eq!(lab.census().nft_tables, 0);
    lab.net.reconcile(&BTreeSet::from([uid("one")])).expect("reconcile");
    assert_eq!(lab.attach(&pod.netns, "one", &[]), pod.address);
    assert_eq!(lab.census(), attached);
    let server = listen(&pod.netns, "0.0.0.0:80");
    assert_eq!(talk(&lab.outside, &format!("{NODE}:8080"), &server).as_deref(), Ok(OUTSIDE));
    saboteur.teardown().expect("teardown");
    lab.net.detach(&uid("one")).expect("detach, with nothing there");
}

#[test]
fn what_cannot_be_had_is_said_clearly() {
    let lab = Lab::new();
    let _alive = lab.pod("one", &[port(Protocol::Tcp, 8080, 80)]);
    let before = lab.census();
    let second = netns();
    let check = |answer: Result<(), NetError>, expected: &str| {
        assert_eq!(answer.map_err(|e| e.to_string()), Err(expected.into()));
        assert_eq!(lab.census(), before, "nothing half-made after: {expected}");
    };
    let attach = |path: &Path, ports: &[HostPort]| lab.net.attach(&uid("two"), path, ports).map(drop);
    check(
        attach(&net_lab::path(&second), &[port(Protocol::Tcp, 8080, 81)]),
        "hostPort 8080/TCP is already used by pod one",
    );
    check(
        attach(Path::new("/nonexistent/net"), &[]),
        "network namespace /nonexistent/net: No such file or directory (os error 2)",
    );
    check(attach(Path::new("/dev/null"), &[]), "network namespace /dev/null: Invalid argument (os error 22)");
    let open = |name: &str, cidr: &str| {
        let mut config = config(&lab.directory.path().join("other"));
        config.name = name.into();
        config.cidr = cidr.parse().expect("a range");
        within(&lab.node, || Network::open(config).map(drop))
    };
    check(
        open("lo", "10.99.0.0/16"),
        "a link lo exists that is not Coracle's bridge: remove it, or choose another name in the config",
    );
    check(
        open("new", "192.0.2.0/28"),
        "network_cidr 192.0.2.0/28 overlaps 192.0.2.2/24 of link eth0: choose a range that the board does not use",
    );
    check(
        open("no/slash", "10.99.0.0/16"),
        "\"no/slash\" cannot name a bridge: take 1 to 15 of a-z, A-Z, 0-9, - and _",
    );
}

#[test]
fn two_networks_on_one_machine_do_not_meddle() {
    let lab = Lab::new();
    let one = lab.pod("same uid", &[port(Protocol::Tcp, 8080, 80)]);
    let before = lab.census();
    let mut config = config(&lab.directory.path().join("other"));
    config.name = "second".into();
    config.cidr = "10.99.0.0/24".parse().expect("a range");
    let second = within(&lab.node, || Network::open(config).expect("open"));
    let pod = netns();
    let addresses = second.attach(&uid("same uid"), &net_lab::path(&pod), &[]).expect("attach");
    assert_eq!(addresses, [IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2))]);
    second.reconcile(&BTreeSet::new()).expect("reconcile");
    second.teardown().expect("teardown");
    assert_eq!(lab.census(), before);
    let server = listen(&one.netns, "0.0.0.0:80");
    assert_eq!(talk(&lab.outside, &format!("{NODE}:8080"), &server).as_deref(), Ok(OUTSIDE));
}

/// With `CAP_NET_RAW`, which containers have by default, a pod could answer for the gateway, or write as another pod.
#[test]
fn a_pod_sends_as_itself_only() {
    let lab = Lab::new();
    let (thief, victim) = (lab.pod("thief", &[]), lab.pod("victim", &[]));
    let other = lab.pod("other", &[]);
    let heard = udp_listen(&victim.netns, "0.0.0.0:90");
    // As another pod of the same bridge, which no rule for routed packets sees.
    spoof(&thief.netns, &other.address, &format!("{}:90", victim.address));
    let asker = udp_listen(&other.netns, "0.0.0.0:0");
    assert_eq!(
        udp_ask(&asker, &format!("{}:90", victim.address), &heard).as_deref(),
        Ok(other.address.as_str())
    );

    // Frames as a raw socket sends them. An honest one follows each, so that nothing has to be waited for in vain.
    let own = [0x0a, 0x58, 10, 88, 0, 2];
    let another = [0x0a, 0x58, 10, 88, 0, 4];
    let answer = |mac: [u8; 6], address: u8| {
        let rest = [&[0xff; 6][..], &[10, 88, 0, 3]].concat();
        [&[0, 1, 8, 0, 6, 4, 0, 2][..], &mac, &[10, 88, 0, address], &rest].concat()
    };
    let eavesdropper = raw_listen(&victim.netns);
    let check = |source: [u8; 6], kind: [u8; 2], packet: Vec<u8>, passes: bool| {
        let send = |source: [u8; 6], kind: [u8; 2], packet: &[u8], mark: &[u8]| {
            raw_send(&thief.netns, &[&[0xff; 6][..], &source, &kind, packet, mark].concat());
        };
        send(source, kind, &packet, b"a frame to judge");
        send(own, [8, 6], &answer(own, 2), b"an honest frame");
        let came = raw_heard(&eavesdropper, b"a frame to judge", b"an honest frame");
        assert_eq!(came, passes, "{source:x?} {kind:x?} {packet:x?}");
    };
    check(own, [8, 6], answer(own, 2), true);
    check(own, [8, 6], answer(own, 1), false);
    check(own, [8, 6], answer(another, 2), false);
    check(another, [8, 6], answer(own, 2), false);
    // A router advertisement is IPv6, and any protocol may hide in a VLAN.
    check(own, [0x86, 0xdd], vec![0x60; 40], false);
    check(own, [0x81, 0x00], vec![0, 1, 8, 0], false);
    lab.net.reconcile(&["thief", "victim", "other"].map(uid).into()).expect("reconcile");
    check(own, [8, 6], answer(own, 1), false);
    check(own, [8, 6], answer(own, 2), true);
}
