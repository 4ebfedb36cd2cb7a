//! Exec, terminals, attached readers and input.

#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

mod lab;

use coracle_shim::wire::{Cause, Event, Reply, Request, Run};
use lab::{Client, Lab, read_to_end, read_until};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

fn exec(instance: &str, tty: bool) -> Request {
    Request::Exec { instance: instance.into(), tty }
}

/// The fake helper runs the "process JSON" as a script.
fn process(script: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(script.as_bytes()).unwrap();
    file.into()
}

fn started(reply: Result<Reply, coracle_shim::wire::Refusal>) -> (u64, i32) {
    match reply {
        Ok(Reply::ExecStarted { exec, pid }) => (exec, pid),
        other => panic!("not started: {other:?}"),
    }
}

#[test]
fn an_exec_has_the_callers_pipes_and_its_code_comes_back() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    let (stdin, mut input) = std::io::pipe().unwrap();
    let (output, stdout) = std::io::pipe().unwrap();
    let (error, stderr) = std::io::pipe().unwrap();
    let script = process("read x; echo got $x; echo oops >&2; exit 42");
    let fds = [script.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let (exec, _) = started(client.ask_with(&exec("web.0", false), &fds));
    drop((stdin, stdout, stderr));
    input.write_all(b"it\n").unwrap();
    assert_eq!(client.event(), Event::ExecExited { exec, code: 42 });
    assert_eq!(read_to_end(&mut File::from(OwnedFd::from(output))), b"got it\n");
    assert_eq!(read_to_end(&mut File::from(OwnedFd::from(error))), b"oops\n");
    assert!(!lab.log_path("web.0").exists(), "an exec writes no log");
}

#[test]
fn an_exec_with_a_terminal_gets_its_master() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    let script = process("tty -s && echo terminal; read x; echo got $x; exit 5");
    let (exec, _) = started(client.ask_with(&exec("web.0", true), &[script.as_fd()]));
    let mut master = File::from(client.fds.remove(0));
    master.write_all(b"it\n").unwrap();
    let seen = read_until(&mut master, |text| text.contains("got it"));
    assert!(seen.contains("terminal\r\n"), "{seen}");
    assert_eq!(client.event(), Event::ExecExited { exec, code: 5 });
}

#[test]
fn execs_are_signalled_and_told_only_to_who_started_them() {
    let (lab, mut client) = Lab::started();
    let mut other = lab.client();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let script = process("exec sleep 1000");
    let fds = [script.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    let (exec_id, _) = started(client.ask_with(&exec("web.0", false), &fds));
    assert_eq!(other.ask(&Request::SignalExec { exec: exec_id, signal: 9 }), Ok(Reply::Done));
    assert_eq!(client.event(), Event::ExecExited { exec: exec_id, code: 137 });
    assert_eq!(other.cause(&Request::SignalExec { exec: exec_id, signal: 9 }, &[]), Cause::NotFound);
    assert!(other.events.is_empty());
    // Wrong numbers of descriptors, and nowhere to run.
    assert_eq!(client.cause(&exec("web.0", false), &fds[..1]), Cause::Malformed);
    assert_eq!(client.cause(&exec("web.0", true), &fds), Cause::Malformed);
    assert_eq!(client.cause(&exec("web.0", true), &[]), Cause::Malformed);
    assert_eq!(client.cause(&exec("db.0", true), &fds[..1]), Cause::NotFound);
}

#[test]
fn an_exec_outlives_the_connection_that_started_it_and_then_frees_its_place() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let script = process("exec sleep 1000");
    let fds = [script.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    let ids: Vec<u64> = (0..64).map(|_| started(client.ask_with(&exec("web.0", false), &fds)).0).collect();
    assert_eq!(client.cause(&exec("web.0", false), &fds), Cause::Busy);
    drop(client);
    let mut client = lab.client();
    assert_eq!(client.ask(&Request::Signal { instance: "web.0".into(), signal: 9 }), Ok(Reply::Done));
    assert!(matches!(client.event(), Event::Exited { .. }));
    assert_eq!(client.cause(&Request::Shutdown, &[]), Cause::Busy);
    for exec in ids {
        assert_eq!(client.ask(&Request::SignalExec { exec, signal: 9 }), Ok(Reply::Done));
    }
    while client.ask(&Request::Shutdown).is_err() {}
}

#[test]
fn a_containers_terminal_is_logged_attached_and_resized() {
    let (lab, mut client) = Lab::started();
    let script = "read x; stty size; echo said $x; read y; exit 6";
    client.run(Run { tty: true, ..lab.bundle("web.0", script, "") });
    let mut attached = client.attach("web.0");
    assert!(attached.stderr.is_none(), "a terminal has one stream");
    let resize = Request::Resize { instance: "web.0".into(), rows: 33, columns: 101 };
    assert_eq!(client.ask(&resize), Ok(Reply::Done));
    attached.write("hello\n");
    let seen = read_until(attached.stdout.as_mut().unwrap(), |text| text.contains("said hello\r\n"));
    assert_eq!(seen, "hello\r\n33 101\r\nsaid hello\r\n");
    attached.write("bye\n");
    assert_eq!(client.exited().code, 6);
    assert_eq!(read_to_end(attached.stdout.as_mut().unwrap()), b"bye\r\n");
    assert_eq!(
        lab.log("web.0"),
        ["stdout F hello\r", "stdout F 33 101\r", "stdout F said hello\r", "stdout F bye\r"]
    );
    assert_eq!(client.cause(&resize, &[]), Cause::NotFound);
    client.run(lab.bundle("web.1", "exec sleep 1000", ""));
    let resize = Request::Resize { instance: "web.1".into(), rows: 1, columns: 1 };
    assert_eq!(client.cause(&resize, &[]), Cause::NotFound, "no terminal");
}

#[test]
fn input_ends_with_its_last_writer_once_the_shim_lets_go() {
    let (lab, mut client) = Lab::started();
    client.run(Run { stdin: true, ..lab.bundle("web.0", "cat; echo end; exit 2", "") });
    let mut attached = client.attach("web.0");
    attached.write("line\n");
    assert_eq!(attached.read_line(), "line\n");
    let close = Request::CloseStdin { instance: "web.0".into() };
    assert_eq!(client.ask(&close), Ok(Reply::Done));
    assert_eq!(client.ask(&close), Ok(Reply::Done));
    attached.write("still\n");
    assert_eq!(attached.read_line(), "still\n");
    attached.stdin = None;
    assert_eq!(client.exited().code, 2);
    assert_eq!(read_to_end(attached.stdout.as_mut().unwrap()), b"end\n");
    // Without `stdin` there is an end to read at once.
    client.run(lab.bundle("web.1", "cat; exit 8", ""));
    assert_eq!(client.exited().code, 8);
}

/// Reads attached output on, so that the container comes to its end.
fn attach_and_read(client: &mut Client, instance: &str) -> std::thread::JoinHandle<Vec<u8>> {
    let mut attached = client.attach(instance);
    std::thread::spawn(move || read_to_end(attached.stdout.as_mut().unwrap()))
}

#[test]
fn a_slow_reader_is_cut_off_and_holds_back_neither_the_log_nor_others() {
    let mut lab = Lab::new();
    lab.log_bytes_max = 1 << 30;
    lab.start();
    let mut client = lab.client();
    client.run(Run { stdin: true, ..lab.bundle("web.0", "read x; seq 1 400000; exit 0", "") });
    let mut slow = client.attach("web.0");
    let gone = client.attach("web.0");
    drop(gone);
    slow.write("go\n");
    assert_eq!(client.exited().code, 0);
    let expected: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    let seen = read_to_end(slow.stdout.as_mut().unwrap());
    assert!(seen.len() < expected.len() && expected.as_bytes().starts_with(&seen), "{} bytes", seen.len());
    assert!(seen.len() >= 64 * 1024);
    let log = lab.log("web.0");
    assert_eq!(log.len(), 400_000);
    assert!((1..).zip(&log).all(|(number, record)| *record == format!("stdout F {number}")));
    // Readers are bounded, and those that left make room.
    client.run(Run { stdin: true, ..lab.bundle("web.1", "read x; echo done", "") });
    let readers: Vec<_> = (0..8).map(|_| client.attach("web.1")).collect();
    assert_eq!(client.cause(&Request::Attach { instance: "web.1".into() }, &[]), Cause::Kernel);
    drop(readers);
    let reader = attach_and_read(&mut client, "web.1");
    client.attach("web.1").write("go\n");
    assert_eq!(reader.join().unwrap(), b"done\n");
}
