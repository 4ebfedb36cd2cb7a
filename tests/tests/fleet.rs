//! The fleet's network as the harness makes it, and the control plane in it.

use coracle_tests::agent::in_namespace;
use coracle_tests::fleet::{ADDRESS, Fleet, PORT};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

#[test]
fn boards_reach_the_control_plane_and_are_not_reached() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let namespaces = fleet.kubectl(&["get", "namespaces", "-o", "name"]).expect("kubectl");
    assert!(namespaces.contains("namespace/kube-system"), "{namespaces}");
    let board = fleet.board("").expect("a board");
    let netns = board.netns().expect("its namespace");
    let api: SocketAddr = format!("{ADDRESS}:{PORT}").parse().expect("an address");
    in_namespace(netns, || TcpStream::connect(api)).expect("in the board").expect("the API is reached");
    let listening = in_namespace(netns, || TcpListener::bind("0.0.0.0:10250")).expect("in the board");
    let board_address = "10.250.1.2:10250".parse().expect("an address");
    let knock = || TcpStream::connect_timeout(&board_address, Duration::from_millis(200));
    in_namespace(fleet.netns(), knock).expect("in the fleet").expect_err("a board is behind NAT");
    drop(listening);
    fleet.kill_control().expect("killed");
    fleet.start_control().expect("serves again");
    assert_eq!(fleet.kubectl(&["get", "namespaces", "-o", "name"]).expect("kubectl"), namespaces);
}
