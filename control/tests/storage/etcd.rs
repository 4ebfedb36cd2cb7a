//! An etcd of the test's own, free ports, children that end with their test.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A child that is killed, by its id, when the test ends.
pub struct Owned(pub Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is reaped.
        let ended = self.0.kill().and_then(|()| self.0.wait());
        assert!(ended.is_ok() || std::thread::panicking(), "a child of the test did not end: {ended:?}");
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Debian's etcd on ports of its own, its data gone with it.
pub struct EtcdServer {
    pub endpoint: String,
    _process: Owned,
    _data: tempfile::TempDir,
}

impl EtcdServer {
    /// Starts it and waits until it serves.
    pub fn start() -> EtcdServer {
        let data = tempfile::tempdir().expect("a directory");
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut child = Command::new("etcd")
            .args(["--name", "t", "--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("t={peer}"), "--data-dir"])
            .arg(data.path().join("etcd"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd starts; it is in Debian's package etcd-server");
        let log = child.stderr.take().expect("piped");
        let process = Owned(child);
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Read to its end: a full pipe would stop etcd.
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if line.contains("ready to serve client requests") && ready.send(()).is_err() {
                    // Nobody waits any more: the test is over.
                    return;
                }
            }
        });
        is_ready.recv_timeout(std::time::Duration::from_secs(60)).expect("etcd says that it is ready");
        EtcdServer { endpoint, _process: process, _data: data }
    }
}
