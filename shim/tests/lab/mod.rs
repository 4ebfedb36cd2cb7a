//! A shim of its own for each test: the real binary, with the fake helper in place of `coracle rt`.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of the lab")]
#![expect(clippy::unwrap_used, reason = "a lab that fails fails its test")]

use coracle_shim::packet::{self, Packet};
use coracle_shim::record::ExitReport;
use coracle_shim::wire::{Cause, Event, Message, Phase, Refusal, Reply, Request, Run, Started};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

/// What never takes this long has failed.
const PATIENCE_MILLISECONDS: u16 = 30_000;

/// The example that stands in for the helper; a run of one test alone does not build it.
fn fake_helper() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let directory = Path::new(env!("CARGO_BIN_EXE_coracle-shim")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "coracle-shim", "--example", "fake-helper"]);
        cargo.arg("--target-dir").arg(directory.parent().unwrap());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success());
        directory.join("examples").join("fake-helper")
    })
}

pub fn wait_readable(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(PATIENCE_MILLISECONDS)).unwrap(), 1, "nothing came");
}

pub struct Lab {
    pub dir: TempDir,
    pub log_bytes_max: u64,
    pub log_files_max: u32,
    pub grace_seconds: u32,
}

impl Lab {
    pub fn new() -> Lab {
        let dir = TempDir::new().unwrap();
        for name in ["run", "data", "logs"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Lab { dir, log_bytes_max: 1 << 20, log_files_max: 3, grace_seconds: 30 }
    }

    /// A lab whose shim serves, and a connection that has said hello.
    pub fn started() -> (Lab, Client) {
        let lab = Lab::new();
        lab.start();
        let client = lab.client();
        (lab, client)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/shim.sock")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-shim"));
        for name in ["run", "data", "logs"] {
            command.arg(format!("--{name}")).arg(self.path(name));
        }
        command
            .arg("--helper")
            .arg(fake_helper())
            .args(["--log-max-bytes", &self.log_bytes_max.to_string()])
            .args(["--log-max-files", &self.log_files_max.to_string()])
            .args(["--grace-seconds", &self.grace_seconds.to_string()])
            .stdin(Stdio::null());
        command
    }

    pub fn try_start(&self) -> Output {
        // Returns once the daemon has let go of standard output and error: it listens.
        self.command().output().unwrap()
    }

    pub fn start(&self) {
        let output = self.try_start();
        assert!(output.status.success(), "{output:?}");
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (b"\n".as_slice(), b"".as_slice()));
    }

    pub fn client(&self) -> Client {
        let mut client = self.silent_client();
        assert_eq!(client.ask(&Request::Hello { version: 1 }), Ok(Reply::Hello { version: 1 }));
        client
    }

    pub fn silent_client(&self) -> Client {
        Client {
            socket: packet::connect(&self.socket()).unwrap(),
            ids: 0,
            events: Vec::new(),
            fds: Vec::new(),
        }
    }

    /// A bundle for the fake helper.
    pub fn bundle(&self, instance: &str, command: &str, mode: &str) -> Run {
        let bundle = self.path(&format!("bundle-{instance}"));
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("command"), command).unwrap();
        fs::write(bundle.join("mode"), mode).unwrap();
        Run { instance: instance.into(), bundle, ..Run::default() }
    }

    pub fn log_path(&self, instance: &str) -> PathBuf {
        let (container, attempt) = instance.split_once('.').unwrap();
        self.path("logs").join(container).join(format!("{attempt}.log"))
    }

    /// One log file's records without their times: `stdout F text`.
    pub fn log(&self, instance: &str) -> Vec<String> {
        records(&self.log_path(instance))
    }

    pub fn record(&self, instance: &str) -> Option<ExitReport> {
        ExitReport::read(&self.path("data/exits").join(instance)).unwrap()
    }
}

pub fn records(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "a record is torn");
    text.split_terminator('\n').map(|line| line.split_once(' ').unwrap().1.to_string()).collect()
}

impl Drop for Lab {
    /// Ends the shim and all that it started.
    fn drop(&mut self) {
        let Ok(socket) = packet::connect(&self.socket()) else { return };
        let shim = packet::peer_pid(socket.as_fd()).unwrap();
        let mut client = Client { socket, ids: 0, events: Vec::new(), fds: Vec::new() };
        // Orphans become the shim's, so again until it has no child.
        loop {
            let mut descendants = children(shim);
            if descendants.is_empty() {
                break;
            }
            while let Some(pid) = descendants.pop() {
                descendants.extend(children(pid));
                assert_killed(kill(Pid::from_raw(pid), Signal::SIGKILL));
            }
            // An answer: the shim has had its turn.
            drop(client.ask(&Request::Hello { version: 1 }));
        }
        assert_killed(kill(Pid::from_raw(shim), Signal::SIGKILL));
        while client.receive().is_some() {}
    }
}

fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The fake helper's processes lead sessions of their own.
pub fn kill_group(pid: i32) {
    assert_killed(killpg(Pid::from_raw(pid), Signal::SIGKILL));
}

/// What has ended by itself is as good as killed.
fn assert_killed(answer: nix::Result<()>) {
    assert!(matches!(answer, Ok(()) | Err(nix::errno::Errno::ESRCH)), "{answer:?}");
}

/// The caller's ends of an attached container.
pub struct Attached {
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    pub stdin: Option<File>,
}

impl Attached {
    pub fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn read_line(&mut self) -> String {
        read_until(self.stdout.as_mut().unwrap(), |text| text.ends_with('\n'))
    }
}

/// Reads byte by byte until there is enough; fails if nothing comes.
pub fn read_until(file: &mut File, enough: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    while !enough(&text) {
        wait_readable(file.as_fd());
        let mut byte = [0];
        assert_eq!(file.read(&mut byte).unwrap(), 1, "ended after {text:?}");
        text.push(char::from(byte[0]));
    }
    text
}

/// Reads to the end, and fails if that does not come.
pub fn read_to_end(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 65536];
    loop {
        wait_readable(file.as_fd());
        match file.read(&mut chunk).unwrap() {
            0 => return bytes,
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
}

pub struct Client {
    pub socket: OwnedFd,
    ids: u64,
    /// Events that came while something else was awaited.
    pub events: Vec<Event>,
    /// What came with the last answer.
    pub fds: Vec<OwnedFd>,
}

impl Client {
    pub fn shim_pid(&self) -> i32 {
        packet::peer_pid(self.socket.as_fd()).unwrap()
    }

    /// Waits for one packet; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<Packet> {
        wait_readable(self.socket.as_fd());
        packet::receive(self.socket.as_fd()).unwrap_or(None)
    }

    pub fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> u64 {
        self.ids += 1;
        packet::send(self.socket.as_fd(), &request.encode(self.ids), fds).unwrap();
        self.ids
    }

    pub fn ask(&mut self, request: &Request) -> Result<Reply, Refusal> {
        self.ask_with(request, &[])
    }

    pub fn ask_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, Refusal> {
        let id = self.send(request, fds);
        self.answer(id)
    }

    pub fn answer(&mut self, id: u64) -> Result<Reply, Refusal> {
        loop {
            let Some(packet) = self.receive() else {
                return Err(Refusal { cause: Cause::Kernel, message: "closed".into() });
            };
            match Message::decode(&packet.bytes).unwrap() {
                Message::Event(event) => self.events.push(event),
                Message::Reply(found, reply) => {
                    assert_eq!(found, id);
                    self.fds = packet.fds;
                    return match reply {
                        Reply::Refused(refusal) => Err(refusal),
                        reply => Ok(reply),
                    };
                }
            }
        }
    }

    pub fn event(&mut self) -> Event {
        if !self.events.is_empty() {
            return self.events.remove(0);
        }
        let packet = self.receive().expect("the shim lives");
        match Message::decode(&packet.bytes).unwrap() {
            Message::Event(event) => event,
            other => panic!("not an event: {other:?}"),
        }
    }

    pub fn run(&mut self, run: Run) -> Started {
        match self.ask(&Request::Run(run)) {
            Ok(Reply::Started(started)) => started,
            other => panic!("not started: {other:?}"),
        }
    }

    pub fn exited(&mut self) -> ExitReport {
        match self.event() {
            Event::Exited { report, recorded: true } => report,
            other => panic!("no recorded exit: {other:?}"),
        }
    }

    pub fn attach(&mut self, instance: &str) -> Attached {
        let reply = self.ask(&Request::Attach { instance: instance.into() }).unwrap();
        let Reply::Attached { stdout, stderr, stdin } = reply else { panic!("not attached: {reply:?}") };
        let mut fds = std::mem::take(&mut self.fds).into_iter();
        let mut take = |sent: bool| sent.then(|| File::from(fds.next().unwrap()));
        let attached = Attached { stdout: take(stdout), stderr: take(stderr), stdin: take(stdin) };
        assert!(fds.next().is_none());
        attached
    }

    pub fn state(&mut self) -> Vec<(String, Phase)> {
        let mut all: Vec<(String, Phase)> = Vec::new();
        loop {
            let after = all.last().map(|(name, _)| name.clone()).unwrap_or_default();
            match self.ask(&Request::State { after }).unwrap() {
                Reply::State { instances, more } => {
                    all.extend(instances.into_iter().map(|status| (status.instance, status.phase)));
                    if !more {
                        return all;
                    }
                }
                other => panic!("no state: {other:?}"),
            }
        }
    }

    pub fn cause(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Cause {
        self.ask_with(request, fds).expect_err("refused").cause
    }
}
