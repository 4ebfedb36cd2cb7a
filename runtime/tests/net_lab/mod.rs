//! Namespaces for the network tests: they live as long as the files that hold them, so nothing is left behind.

use coracle_pod::spec::{PodUid, Protocol};
use coracle_runtime::net::{Census, HostPort, Network, NetworkConfig, census};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

/// The address of the machine outside.
pub const OUTSIDE: &str = "192.0.2.1";
/// The node's own address.
pub const NODE: &str = "192.0.2.2";
/// How long an answer within one kernel may take; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node with a network for its pods, and the machine that routes for it.
pub struct Lab {
    pub outside: File,
    pub node: File,
    pub net: Network,
    pub directory: TempDir,
    /// What the node held before its network was made.
    pub bare: Census,
}

/// A pod on the node's network. Its namespace, and the link with it, goes when this is dropped.
#[must_use]
pub struct Pod {
    pub netns: File,
    pub address: String,
}

impl Lab {
    pub fn new() -> Lab {
        let (outside, node) = (netns(), netns());
        let directory = tempfile::tempdir().expect("a directory");
        let router = NetworkConfig {
            name: "wan".into(),
            cidr: "192.0.2.0/24".parse().expect("a range"),
            leases: directory.path().join("router"),
            mtu: None,
        };
        let router = within(&outside, || Network::open(router).expect("the router's network"));
        router.attach(&uid("node"), &path(&node), &[]).expect("the node's uplink");
        // A new namespace inherits what the machine has.
        within(&node, || fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("sysctl"));
        let bare = within(&node, || census().expect("census"));
        let net = within(&node, || Network::open(config(directory.path())).expect("open"));
        Lab { outside, node, net, directory, bare }
    }

    pub fn pod(&self, name: &str, ports: &[HostPort]) -> Pod {
        let netns = netns();
        let address = self.attach(&netns, name, ports);
        Pod { netns, address }
    }

    pub fn attach(&self, netns: &File, name: &str, ports: &[HostPort]) -> String {
        let addresses = self.net.attach(&uid(name), &path(netns), ports).expect("attach");
        let [address] = addresses[..] else { panic!("one address: {addresses:?}") };
        address.to_string()
    }

    /// What the node holds.
    pub fn census(&self) -> Census {
        within(&self.node, || census().expect("census"))
    }

    /// The addresses that have a lease.
    pub fn leases(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("leases")).expect("leases");
        let names = entries.map(|entry| entry.expect("a lease").file_name().into_string().expect("a name"));
        names.filter(|name| name != "last").collect()
    }
}

pub fn config(directory: &Path) -> NetworkConfig {
    NetworkConfig {
        name: "coracle-t".into(),
        cidr: "10.88.0.0/16".parse().expect("a range"),
        leases: directory.join("leases"),
        mtu: None,
    }
}

pub fn uid(name: &str) -> PodUid {
    PodUid(name.into())
}

pub fn port(protocol: Protocol, host_port: u16, container_port: u16) -> HostPort {
    HostPort { protocol, host_ip: None, host_port, container_port }
}

/// A new network namespace, alive as long as the file.
pub fn netns() -> File {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the network tests need root");
        File::open("/proc/thread-self/ns/net").expect("a namespace")
    });
    made.join().expect("a namespace")
}

/// Where other code of this process can open the namespace.
pub fn path(netns: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()).into()
}

/// Runs `work` in a thread inside the namespace.
pub fn within<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> T {
    let inside = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("setns");
            work()
        });
        worker.join()
    });
    inside.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub fn listen(netns: &File, address: &str) -> TcpListener {
    let listener = within(netns, || TcpListener::bind(address).expect("bind"));
    setsockopt(&listener, sockopt::ReceiveTimeout, &patience()).expect("SO_RCVTIMEO");
    listener
}

/// Connects from a namespace and passes a byte both ways; the answer is the address that `server` saw.
pub fn talk(from: &File, to: &str, server: &TcpListener) -> Result<String, String> {
    let target = to.parse().expect("an address");
    let client = within(from, || TcpStream::connect_timeout(&target, PATIENCE));
    let mut client = client.map_err(|e| format!("connect: {e}"))?;
    // The kernel has completed the connection by itself; accepting it cannot wait for the client.
    let (mut served, peer) = server.accept().map_err(|e| format!("somebody else answered: {e}"))?;
    for stream in [&client, &served] {
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    }
    let mut byte = [0];
    client.write_all(b"?").and_then(|()| served.read_exact(&mut byte)).map_err(|e| format!("to it: {e}"))?;
    served.write_all(b"!").and_then(|()| client.read_exact(&mut byte)).map_err(|e| format!("back: {e}"))?;
    Ok(peer.ip().to_string())
}

pub fn udp_listen(netns: &File, address: &str) -> UdpSocket {
    let socket = within(netns, || UdpSocket::bind(address).expect("bind"));
    socket.set_read_timeout(Some(PATIENCE)).expect("SO_RCVTIMEO");
    socket
}

/// Sends a datagram and has it answered; the answer is the address that `server` saw.
pub fn udp_ask(client: &UdpSocket, to: &str, server: &UdpSocket) -> Result<String, String> {
    client.send_to(b"?", to).map_err(|e| format!("send: {e}"))?;
    let mut buffer = [0; 8];
    let (length, peer) = server.recv_from(&mut buffer).map_err(|e| format!("nothing came: {e}"))?;
    assert_eq!(&buffer[..length], b"?", "a forged packet came");
    server.send_to(b"!", peer).map_err(|e| format!("answer: {e}"))?;
    let (_, answered) = client.recv_from(&mut buffer).map_err(|e| format!("no answer: {e}"))?;
    assert_eq!(answered.to_string(), to, "the answer comes from where the question went");
    Ok(peer.ip().to_string())
}

/// Sends a datagram from an address that is not the sender's.
pub fn spoof(netns: &File, from: &str, to: &str) {
    within(netns, || {
        use nix::sys::socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, sendto, socket,
        };
        let socket =
            socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        setsockopt(&socket, sockopt::IpTransparent, &true).expect("IP_TRANSPARENT");
        let address = |text: String| text.parse::<SockaddrIn>().expect("an address");
        bind(socket.as_raw_fd(), &address(format!("{from}:7001"))).expect("bind");
        sendto(socket.as_raw_fd(), b"forged", &address(to.into()), MsgFlags::empty()).expect("sendto");
    });
}

/// Puts a datagram to 127.0.0.1 on the wire to the bridge, which a pod's own routing never would.
pub fn to_loopback_of_the_host(netns: &File, from: [u8; 4], gateway_mac: [u8; 6], port: u16) {
    let udp_length = 8 + 6u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(from);
    ip.extend([127, 0, 0, 1]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = gateway_mac.to_vec();
    frame.extend([0x0a, 0x58, from[0], from[1], from[2], from[3], 0x08, 0x00]);
    frame.extend(ip);
    for field in [7001, port, udp_length, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(b"forged");
    raw_send(netns, &frame);
}

/// Puts a frame on the wire, as who has `CAP_NET_RAW` can.
pub fn raw_send(netns: &File, frame: &[u8]) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
    within(netns, || {
        let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(kind.0, kind.1, kind.2, None).expect("packet socket");
        let links = nix::ifaddrs::getifaddrs().expect("links");
        let eth0 = links.filter(|link| link.interface_name == "eth0").filter_map(|link| link.address);
        let eth0 = eth0.filter_map(|address| address.as_link_addr().copied()).next().expect("eth0");
        sendto(socket.as_raw_fd(), frame, &eth0, MsgFlags::empty()).expect("sendto");
    });
}

/// Hears every frame that comes to a namespace.
pub fn raw_listen(netns: &File) -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let kind = (AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
    let socket =
        within(netns, || socket(kind.0, kind.1, kind.2, SockProtocol::EthAll).expect("packet socket"));
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience()).expect("SO_RCVTIMEO");
    socket
}

/// Whether a frame with `mark` comes before one with `end`.
pub fn raw_heard(socket: &OwnedFd, mark: &[u8], end: &[u8]) -> bool {
    let holds = |frame: &[u8], text: &[u8]| frame.windows(text.len()).any(|part| part == text);
    let mut came = false;
    loop {
        let mut frame = [0; 2048];
        let length = nix::unistd::read(socket, &mut frame).expect("the honest frame comes");
        came |= holds(&frame[..length], mark);
        if holds(&frame[..length], end) {
            return came;
        }
    }
}

fn patience() -> TimeVal {
    TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).expect("seconds"))
}
