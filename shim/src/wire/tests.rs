//! Every message there and back, cut anywhere, and with what a later version may add.

use super::*;
use std::time::Duration;

fn stamp(wall_seconds: i64) -> Stamp {
    Stamp { wall_seconds, wall_nanoseconds: 999_999_999, boottime: Duration::new(77, 5) }
}

fn report(message: &str) -> ExitReport {
    ExitReport {
        instance: "web.0".into(),
        pid: 42,
        code: 143,
        signal: Some(15),
        oom_killed: false,
        started: stamp(-1),
        finished: stamp(1_700_000_000),
        boot_id: "b".into(),
        message: message.into(),
    }
}

fn requests() -> Vec<Request> {
    let instance = || "web.0".to_string();
    let run = Run { instance: instance(), bundle: "/b".into(), ..Run::default() };
    vec![
        Request::Hello { version: 7 },
        Request::Run(run.clone()),
        Request::Run(Run {
            tty: true,
            stdin: true,
            oom_events: Some("/cgroup/memory.events".into()),
            termination_log: Some("/data/termination log".into()),
            ..run
        }),
        Request::Exec { instance: instance(), tty: false },
        Request::Exec { instance: instance(), tty: true },
        Request::Signal { instance: instance(), signal: -1 },
        Request::SignalExec { exec: u64::MAX, signal: 15 },
        Request::Attach { instance: instance() },
        Request::CloseStdin { instance: instance() },
        Request::Resize { instance: instance(), rows: 24, columns: u16::MAX },
        Request::State { after: String::new() },
        Request::Forget { instance: instance() },
        Request::Shutdown,
    ]
}

fn messages() -> Vec<Message> {
    let started = Started { pid: 42, start_ticks: u64::MAX, started: stamp(i64::MAX) };
    let status = |name: &str, phase| InstanceStatus { instance: name.into(), phase };
    let state = vec![
        status("a.0", Phase::Starting),
        status("b.1", Phase::Running(started.clone())),
        status("c.2", Phase::Exited { report: report("died\n"), recorded: false }),
        status("d.3", Phase::Exited { report: report(""), recorded: true }),
    ];
    let refusal = Refusal { cause: Cause::Busy, message: "no room".into() };
    let replies = [
        Reply::Done,
        Reply::Refused(refusal),
        Reply::Hello { version: 1 },
        Reply::Started(started),
        Reply::ExecStarted { exec: 9, pid: 10 },
        Reply::Attached { stdout: true, stderr: false, stdin: true },
        Reply::State { instances: state, more: true },
        Reply::State { instances: Vec::new(), more: false },
    ];
    let events = [
        Event::Exited { report: report(&"\\".repeat(4096)), recorded: true },
        Event::ExecExited { exec: 9, code: 137 },
    ];
    let replies = (1_u64..).zip(replies).map(|(id, reply)| Message::Reply(id, reply));
    replies.chain(events.map(Message::Event)).collect()
}

#[test]
fn every_message_comes_back_as_it_was() {
    for (id, request) in (u64::MAX - 20..).zip(requests()) {
        assert_eq!(Request::decode(&request.encode(id)), Ok((id, request)));
    }
    for message in messages() {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn a_message_cut_anywhere_is_read_without_panic_and_never_as_another() {
    for request in requests() {
        let bytes = request.encode(3);
        for end in 0..bytes.len() {
            // A cut between two fields is a whole message without the optional ones after it.
            if let Ok((id, cut)) = Request::decode(&bytes[..end]) {
                assert_eq!((id, std::mem::discriminant(&cut)), (3, std::mem::discriminant(&request)));
            }
            assert_eq!(id_of(&bytes[..end]), (end >= 10).then_some(3));
        }
    }
    for bytes in messages().iter().map(Message::encode) {
        (0..bytes.len()).for_each(|end| drop(Message::decode(&bytes[..end])));
    }
}

#[test]
fn what_a_later_version_adds_is_skipped_or_named() {
    let mut bytes = Request::Attach { instance: "web.0".into() }.encode(1);
    bytes.extend_from_slice(&[250, 2, 0, 7, 7]);
    assert_eq!(Request::decode(&bytes), Ok((1, Request::Attach { instance: "web.0".into() })));
    bytes[0] = 99;
    assert_eq!(Request::decode(&bytes), Err(WireError::UnknownKind(99)));
    assert_eq!(Message::decode(&bytes), Err(WireError::UnknownKind(99)));
    assert_eq!(id_of(&bytes), Some(1));
}

#[test]
fn impossible_values_are_refused() {
    let check = |request: Request, tag: u8| {
        let bytes = request.encode(1);
        let kind = u16::from_le_bytes([bytes[0], bytes[1]]);
        assert_eq!(Request::decode(&bytes), Err(WireError::Field { kind, tag }), "{request:?}");
    };
    let run = Run { instance: "web.0".into(), bundle: "/b".into(), ..Run::default() };
    check(Request::Run(Run { bundle: "".into(), ..run.clone() }), 3);
    check(Request::Run(Run { bundle: "/a\0b".into(), ..run.clone() }), 3);
    check(
        Request::Run(Run { termination_log: Some("x".repeat(70_000).into()), bundle: "".into(), ..run }),
        3,
    );
    check(Request::Attach { instance: "x".repeat(70_000) }, 2);
}
