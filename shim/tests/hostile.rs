//! What must not stop a shim: other versions, nonsense, crowds, and a disk that is full.

#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

mod lab;

use coracle_shim::packet;
use coracle_shim::wire::{Cause, Event, MESSAGE_BYTES_MAX, Message, Phase, Reply, Request, Run};
use lab::{Client, Lab};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd};

/// Sends bytes that are no request, and returns the refusal's cause.
fn refused(client: &mut Client, bytes: &[u8]) -> Cause {
    packet::send(client.socket.as_fd(), bytes, &[]).unwrap();
    let packet = client.receive().expect("the connection stays");
    match Message::decode(&packet.bytes).unwrap() {
        Message::Reply(_, Reply::Refused(refusal)) => refusal.cause,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_version_is_the_shims_own_whatever_the_agents_is() {
    let lab = Lab::new();
    lab.start();
    for version in [0, 1, 2, u32::MAX] {
        let mut client = lab.silent_client();
        assert_eq!(client.ask(&Request::Hello { version }), Ok(Reply::Hello { version: 1 }));
        assert_eq!(client.state(), []);
    }
    let mut client = lab.silent_client();
    assert_eq!(client.cause(&Request::Shutdown, &[]), Cause::Malformed, "hello comes first");
    let mut unknown = Request::Shutdown.encode(5);
    unknown[0] = 77;
    assert_eq!(refused(&mut client, &unknown), Cause::Unknown);
    assert_eq!(client.ask(&Request::Hello { version: 1 }), Ok(Reply::Hello { version: 1 }));
}

#[test]
fn nonsense_is_refused_and_the_shim_goes_on() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    let valid = [
        Request::Run(Run { oom_events: Some("/x".into()), ..lab.bundle("web.1", "exit 0", "refuse") }),
        Request::Resize { instance: "web.0".into(), rows: 1, columns: 1 },
        Request::Exec { instance: "web.0".into(), tty: true },
    ];
    for request in &valid {
        let bytes = request.encode(1);
        for end in 1..bytes.len() {
            assert!(matches!(
                refused(&mut client, &bytes[..end]),
                Cause::Malformed | Cause::Unknown | Cause::Helper
            ));
        }
    }
    // A seed, so that what fails once fails again.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..2000 {
        let length = 1 + random() as usize % 200;
        let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if let Some(kind) = bytes.first_chunk_mut::<2>() {
            // Known kinds, so that fields are looked at, but not those that would do what they say.
            *kind = [[2, 0], [3, 0], [4, 0], [8, 0], [9, 0], [200, 1]][random() as usize % 6];
        }
        packet::send(client.socket.as_fd(), &bytes, &[]).unwrap();
        let packet = client.receive().expect("the connection stays");
        assert!(matches!(Message::decode(&packet.bytes), Ok(Message::Reply(..))));
    }
    assert_eq!(client.state().len(), 1);
}

#[test]
fn what_does_not_fit_a_message_is_refused() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let (_lab, mut client) = Lab::started();
    let shim = client.shim_pid();
    let open = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = open();
    let null = fs::File::open("/dev/null").unwrap();
    let check = |client: &mut Client, bytes: &[u8], fds: usize| {
        let fds = vec![null.as_raw_fd(); fds];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let socket = client.socket.as_raw_fd();
        sendmsg::<()>(socket, &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None).unwrap();
        let packet = client.receive().expect("the connection stays");
        let Ok(Message::Reply(7, Reply::Refused(refusal))) = Message::decode(&packet.bytes) else {
            panic!("not refused");
        };
        assert_eq!(refusal.cause, Cause::Malformed);
    };
    let request = Request::Exec { instance: "web.0".into(), tty: true }.encode(7);
    let mut long = request.clone();
    long.resize(MESSAGE_BYTES_MAX + 1, 0);
    check(&mut client, &long, 0);
    for fds in [5, 100, 253] {
        check(&mut client, &request, fds);
    }
    // A refusal is sent before what came is closed; a later answer is not.
    client.state();
    assert_eq!(open(), before, "no descriptor stays");
}

#[test]
fn connections_are_bounded_and_a_deaf_one_is_let_go() {
    let (lab, mut client) = Lab::started();
    let mut others: Vec<Client> = (1..16).map(|_| lab.client()).collect();
    let mut beyond = lab.silent_client();
    let packet = beyond.receive().unwrap();
    let Ok(Message::Reply(0, Reply::Refused(refusal))) = Message::decode(&packet.bytes) else {
        panic!("served")
    };
    assert_eq!(refusal.cause, Cause::Busy);
    assert!(beyond.receive().is_none());
    // One that asks and never reads: its answers fill its socket, and the shim closes it.
    let mut deaf = others.pop().unwrap();
    let request = Request::State { after: String::new() }.encode(1);
    let lost = loop {
        match packet::send(deaf.socket.as_fd(), &request, &[]) {
            Ok(()) => {}
            // The shim has not read the questions yet; a question of another's own gives it the time.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => drop(client.state()),
            Err(error) => break error,
        }
    };
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    assert!(matches!(lost.kind(), BrokenPipe | ConnectionReset), "{lost}");
    while deaf.receive().is_some() {}
    client.run(lab.bundle("web.0", "exit 1", ""));
    assert_eq!(client.exited().code, 1);
    assert_eq!(others[0].exited().code, 1, "every other connection is told");
}

/// A mount namespace of this thread's own, which ends with the test and its shim: nothing stays mounted.
fn with_small_disk(lab: &Lab, name: &str, bytes: usize) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let options = format!("size={bytes}");
    mount(Some("tmpfs"), &lab.path(name), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

/// Writes until the disk is full.
fn fill(lab: &Lab, name: &str) {
    let mut file = fs::File::create(lab.path(name)).unwrap();
    while file.write(&[0; 4096]).is_ok() {}
}

#[test]
fn a_full_disk_costs_log_lines_which_are_counted_and_nothing_else() {
    let lab = Lab::new();
    with_small_disk(&lab, "logs", 64 * 1024);
    lab.start();
    let mut client = lab.client();
    let script = "read x; seq 1 20000; echo full; read x; echo after; exit 3";
    client.run(Run { stdin: true, ..lab.bundle("web.0", script, "") });
    let mut attached = client.attach("web.0");
    attached.write("go\n");
    lab::read_until(attached.stdout.as_mut().unwrap(), |text| text.ends_with("full\n"));
    // The shim answers, and what it wrote is whole; the log is then made room for.
    client.state();
    let log = lab.log("web.0");
    let kept = log.len();
    assert!((1000..2000).contains(&kept), "{kept}");
    assert!((1..).zip(&log).all(|(number, record)| *record == format!("stdout F {number}")));
    fs::OpenOptions::new().write(true).open(lab.log_path("web.0")).unwrap().set_len(0).unwrap();
    attached.write("on\n");
    assert_eq!(client.exited().code, 3);
    let log = fs::read_to_string(lab.log_path("web.0")).unwrap();
    let log: Vec<&str> =
        log.trim_start_matches('\0').lines().map(|line| line.split_once(' ').unwrap().1).collect();
    let [told, after] = log.as_slice() else { panic!("{log:?}") };
    let dropped = 20_001 - kept;
    assert!(told.starts_with(&format!("stderr F [coracle: {dropped} records, ")), "{told}");
    assert!(told.ends_with("were dropped here: No space left on device (os error 28)]"), "{told}");
    assert_eq!(*after, "stdout F after");
}

#[test]
fn an_exit_that_the_disk_refuses_is_told_kept_and_recorded_later() {
    let lab = Lab::new();
    with_small_disk(&lab, "data", 16 * 1024);
    fs::create_dir(lab.path("data/exits")).unwrap();
    fill(&lab, "data/ballast");
    lab.start();
    let mut client = lab.client();
    client.run(lab.bundle("web.0", "exit 3", ""));
    let Event::Exited { report, recorded: false } = client.event() else { panic!("recorded on a full disk") };
    assert_eq!(lab.record("web.0"), None);
    assert_eq!(client.state(), [("web.0".into(), Phase::Exited { report: report.clone(), recorded: false })]);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    inotify.add_watch(&lab.path("data/exits"), AddWatchFlags::IN_MOVED_TO).unwrap();
    fs::remove_file(lab.path("data/ballast")).unwrap();
    lab::wait_readable(inotify.as_fd());
    assert_eq!(lab.record("web.0"), Some(report.clone()));
    assert_eq!(client.state(), [("web.0".into(), Phase::Exited { report, recorded: true })]);
}
