//! The agent's end of a shim's socket: requests multiplexed over one connection, events as they come.
//!
//! One task owns the socket; [`ShimClient`] is a handle to it and cheap to clone. When the shim ends, every open
//! request fails with [`ShimError::Closed`] and the events end with [`ShimEvent::Closed`].

use coracle_shim::packet;
use coracle_shim::record::ExitReport;
use coracle_shim::wire::{
    Cause, Event, InstanceStatus, Message, Refusal, Reply, Request, Run, Started, VERSION,
};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::sync::{mpsc, oneshot};

/// Requests waiting to be sent.
const QUEUE_MAX: usize = 64;
/// Events that the channel to their reader takes.
const EVENTS_MAX: usize = 64;
/// Events kept for a reader that lags behind; then the socket is no longer read. A pod's containers end one at a time
/// and are restarted by that very reader, so only a shim that makes events up gets there.
const EVENTS_HELD_MAX: usize = 1024;
/// For a shim to listen, or a pause process to stand.
const SPAWN_DEADLINE: Duration = Duration::from_secs(30);
/// For a container or a process in it to start: images on slow cards are read in here.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// For anything else: the shim answers these from memory.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A shim that does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It could not be started.
    #[error("start {program}: {message}", program = program.display())]
    Start {
        /// The binary.
        program: PathBuf,
        /// What it said, or why it could not.
        message: String,
    },
    /// Nobody answers at its socket.
    #[error("shim at {path}: {source}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{0}")]
    Refused(Refusal),
    /// It ended, or said something that makes no sense.
    #[error("the pod's shim has ended")]
    Closed,
    /// It does not answer: stopped, or stuck in the kernel on a dead disk.
    #[error(
        "the pod's shim (pid {pid}) does not answer within {seconds} s: see /proc/{pid}/stack; delete the pod to replace it"
    )]
    Silent {
        /// The shim's.
        pid: i32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It speaks a protocol that this agent does not.
    #[error(
        "the pod's shim speaks version {0} of the protocol, older than this agent knows: delete the pod to replace it"
    )]
    Version(u32),
    /// It answered another question than it was asked.
    #[error("the pod's shim gave an answer of the wrong kind")]
    Answer,
}

impl ShimError {
    /// The instance or exec does not run (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, ShimError::Refused(Refusal { cause: Cause::NotFound, .. }) | ShimError::Closed)
    }
}

/// What a shim tells unasked.
#[derive(Debug)]
pub enum ShimEvent {
    /// A container ended.
    Exited {
        /// `web.0`.
        instance: String,
        /// How.
        report: Box<ExitReport>,
    },
    /// The shim ended; nothing comes after this.
    Closed,
}

/// How to start a shim.
#[derive(Debug)]
pub struct SpawnShim<'a> {
    /// `coracle-shim`.
    pub binary: &'a Path,
    /// `RUN/pods/UID`.
    pub run: &'a Path,
    /// `DATA/pods/UID`.
    pub data: &'a Path,
    /// `DATA/logs/NS_NAME_UID`.
    pub logs: &'a Path,
    /// The program that makes containers.
    pub helper: &'a Path,
    /// Bytes of a log file before it is rotated.
    pub log_max_bytes: u64,
    /// Log files per instance.
    pub log_max_files: u32,
    /// The pod's grace, for when the machine goes down; 1 s at least.
    pub grace: Duration,
    /// The cgroups that it enters before anything else.
    pub cgroup_procs: &'a [PathBuf],
}

/// Starts a shim and returns once it listens. It is no child of this process and outlives it.
pub async fn spawn(shim: SpawnShim<'_>) -> Result<(), ShimError> {
    let failed =
        |source: io::Error| ShimError::Start { program: shim.binary.into(), message: source.to_string() };
    for dir in [shim.run, shim.data] {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut arguments: Vec<OsString> = Vec::new();
    for (flag, value) in
        [("--run", shim.run), ("--data", shim.data), ("--logs", shim.logs), ("--helper", shim.helper)]
    {
        arguments.extend([flag.into(), value.into()]);
    }
    for (flag, value) in [
        ("--log-max-bytes", shim.log_max_bytes),
        ("--log-max-files", u64::from(shim.log_max_files)),
        ("--grace-seconds", shim.grace.as_secs().max(1)),
    ] {
        arguments.extend([flag.into(), value.to_string().into()]);
    }
    arguments.extend(cgroup_arguments(shim.cgroup_procs));
    // Its first process ends once the daemon is forked; the daemon closes stdout once it listens.
    run(shim.binary, &arguments).await
}

/// Leaves a pid namespace with its pid 1 behind, held at `file`, in the given cgroups.
pub async fn pause(binary: &Path, file: &Path, cgroup_procs: &[PathBuf]) -> Result<(), ShimError> {
    let mut arguments: Vec<OsString> = vec![coracle_shim::pause::FLAG.into(), file.into()];
    arguments.extend(cgroup_arguments(cgroup_procs));
    run(binary, &arguments).await
}

fn cgroup_arguments(files: &[PathBuf]) -> impl Iterator<Item = OsString> + '_ {
    files.iter().flat_map(|file| ["--cgroup-procs".into(), file.into()])
}

/// Runs a program until its output ends; what it says on standard error is its error.
async fn run(program: &Path, arguments: &[OsString]) -> Result<(), ShimError> {
    let failed = |message: String| ShimError::Start { program: program.into(), message };
    // Nothing of the agent's environment is a container's business, and this process may live for years.
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(SPAWN_DEADLINE, command.output()).await;
    let output = output.map_err(|_| failed(format!("not ready within {} s", SPAWN_DEADLINE.as_secs())))?;
    let output = output.map_err(|e| failed(e.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("coracle-shim: ");
    if output.status.success() && said.is_empty() {
        Ok(())
    } else {
        Err(failed(format!("{said} ({})", output.status)))
    }
}

/// A process that was started in a container.
#[derive(Debug)]
pub struct Execed {
    /// For [`ShimClient::signal_exec`].
    pub exec: u64,
    /// On the host.
    pub pid: i32,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
    /// Its exit code, once it ended; an error when the shim ended first.
    pub exit: oneshot::Receiver<i32>,
}

/// Standard streams of a container that was attached to.
#[derive(Debug)]
pub struct Attachment {
    /// What it writes to standard output or to its terminal.
    pub stdout: Option<OwnedFd>,
    /// What it writes to standard error.
    pub stderr: Option<OwnedFd>,
    /// Where its standard input is written.
    pub stdin: Option<OwnedFd>,
}

type Answer = Result<(Reply, Vec<OwnedFd>, Option<oneshot::Receiver<i32>>), ShimError>;

#[derive(Debug)]
struct Call {
    request: Request,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Answer>,
}

/// A handle to one shim.
#[derive(Clone, Debug)]
pub struct ShimClient {
    calls: mpsc::Sender<Call>,
    pid: i32,
    version: u32,
}

impl ShimClient {
    /// Connects and agrees on the version.
    pub async fn connect(path: &Path) -> Result<(ShimClient, mpsc::Receiver<ShimEvent>), ShimError> {
        let failed = |source| ShimError::Connect { path: path.into(), source };
        let socket = packet::connect(path).map_err(failed)?;
        let peer = getsockopt(&socket, PeerCredentials).map_err(|e| failed(e.into()))?;
        let socket =
            crate::readiness::watch(socket, Interest::READABLE | Interest::WRITABLE).map_err(failed)?;
        let (calls, inbox) = mpsc::channel(QUEUE_MAX);
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let driver = Driver {
            socket,
            inbox,
            events,
            held: VecDeque::new(),
            waiting: BTreeMap::new(),
            execs: BTreeMap::new(),
            next: 0,
        };
        tokio::spawn(driver.run());
        let mut client = ShimClient { calls, pid: peer.pid(), version: VERSION };
        match client.call(Request::Hello { version: VERSION }, Vec::new()).await? {
            (Reply::Hello { version: 0 }, ..) => Err(ShimError::Version(0)),
            (Reply::Hello { version }, ..) => {
                client.version = version.min(VERSION);
                Ok((client, heard))
            }
            _ => Err(ShimError::Answer),
        }
    }

    /// The shim's process, as it was when it began to listen.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The version of the protocol that both ends keep to.
    pub fn version(&self) -> u32 {
        self.version
    }

    async fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>, Option<oneshot::Receiver<i32>>), ShimError> {
        let deadline = match request {
            Request::Run(_) | Request::Exec { .. } => START_DEADLINE,
            _ => ANSWER_DEADLINE,
        };
        let (answer, heard) = oneshot::channel();
        let answered = async {
            self.calls.send(Call { request, fds, answer }).await.map_err(|_| ShimError::Closed)?;
            heard.await.map_err(|_| ShimError::Closed)?
        };
        let silent = ShimError::Silent { pid: self.pid, seconds: deadline.as_secs() };
        tokio::time::timeout(deadline, answered).await.unwrap_or(Err(silent))
    }

    async fn done(&self, request: Request) -> Result<(), ShimError> {
        match self.call(request, Vec::new()).await? {
            (Reply::Done, ..) => Ok(()),
            _ => Err(ShimError::Answer),
        }
    }

    /// Starts a container; returns once its program runs.
    pub async fn run(&self, run: Run) -> Result<Started, ShimError> {
        match self.call(Request::Run(run), Vec::new()).await? {
            (Reply::Started(started), ..) => Ok(started),
            _ => Err(ShimError::Answer),
        }
    }

    /// Starts a process in a container: `process` is an open file with an `ExecProcess`; `stdio` is three
    /// descriptors, or none for a terminal.
    pub async fn exec(
        &self,
        instance: &str,
        process: OwnedFd,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<Execed, ShimError> {
        let tty = stdio.is_none();
        let mut fds = vec![process];
        fds.extend(stdio.into_iter().flatten());
        match self.call(Request::Exec { instance: instance.into(), tty }, fds).await? {
            (Reply::ExecStarted { exec, pid }, fds, Some(exit)) => {
                Ok(Execed { exec, pid, terminal: fds.into_iter().next(), exit })
            }
            _ => Err(ShimError::Answer),
        }
    }

    /// Signals a container's init.
    pub async fn signal(&self, instance: &str, signal: i32) -> Result<(), ShimError> {
        self.done(Request::Signal { instance: instance.into(), signal }).await
    }

    /// Signals a process of [`ShimClient::exec`].
    pub async fn signal_exec(&self, exec: u64, signal: i32) -> Result<(), ShimError> {
        self.done(Request::SignalExec { exec, signal }).await
    }

    /// Sets the size of a container's terminal.
    pub async fn resize(&self, instance: &str, rows: u16, columns: u16) -> Result<(), ShimError> {
        self.done(Request::Resize { instance: instance.into(), rows, columns }).await
    }

    /// Closes the shim's end of a container's standard input.
    pub async fn close_stdin(&self, instance: &str) -> Result<(), ShimError> {
        self.done(Request::CloseStdin { instance: instance.into() }).await
    }

    /// Copies of a running container's streams.
    pub async fn attach(&self, instance: &str) -> Result<Attachment, ShimError> {
        let (reply, fds, _) = self.call(Request::Attach { instance: instance.into() }, Vec::new()).await?;
        let Reply::Attached { stdout, stderr, stdin } = reply else { return Err(ShimError::Answer) };
        let mut fds = fds.into_iter();
        let mut next = |present: bool| if present { fds.next() } else { None };
        Ok(Attachment { stdout: next(stdout), stderr: next(stderr), stdin: next(stdin) })
    }

    /// Every instance that the shim knows.
    pub async fn state(&self) -> Result<Vec<InstanceStatus>, ShimError> {
        let (mut all, mut after) = (Vec::<InstanceStatus>::new(), String::new());
        loop {
            match self.call(Request::State { after }, Vec::new()).await? {
                (Reply::State { instances, more }, ..) => {
                    all.extend(instances);
                    match all.last() {
                        Some(last) if more => after = last.instance.clone(),
                        _ => return Ok(all),
                    }
                }
                _ => return Err(ShimError::Answer),
            }
        }
    }

    /// Drops an ended instance from the shim's memory.
    pub async fn forget(&self, instance: &str) -> Result<(), ShimError> {
        self.done(Request::Forget { instance: instance.into() }).await
    }
}

/// Owns the socket.
struct Driver {
    socket: AsyncFd<OwnedFd>,
    inbox: mpsc::Receiver<Call>,
    events: mpsc::Sender<ShimEvent>,
    /// For a reader that lags behind: an answer must not wait for it.
    held: VecDeque<ShimEvent>,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    execs: BTreeMap<u64, oneshot::Sender<i32>>,
    next: u64,
}

impl Driver {
    async fn run(mut self) {
        let events = self.events.clone();
        loop {
            tokio::select! {
                call = self.inbox.recv() => match call {
                    Some(call) => self.send(call).await,
                    // Every handle is gone; a shim needs nobody to listen.
                    None => return,
                },
                room = events.reserve(), if !self.held.is_empty() => {
                    let event = self.held.pop_front();
                    match (room, event) {
                        (Ok(room), Some(event)) => room.send(event),
                        (Err(_), _) => self.held.clear(),
                        (Ok(_), None) => {}
                    }
                }
                packet = self.socket.async_io(Interest::READABLE, |s| packet::receive(s.as_fd())),
                    if self.held.len() < EVENTS_HELD_MAX =>
                {
                    let Ok(Some(packet)) = packet else { break };
                    match Message::decode(&packet.bytes) {
                        Ok(Message::Reply(id, reply)) => self.reply(id, reply, packet.fds),
                        Ok(Message::Event(Event::ExecExited { exec, code })) => {
                            // Whoever started it may not care any more.
                            self.execs.remove(&exec).map(|to| to.send(code).is_ok());
                        }
                        Ok(Message::Event(Event::Exited { report, .. })) => {
                            let instance = report.instance.clone();
                            self.held.push_back(ShimEvent::Exited { instance, report: Box::new(report) });
                        }
                        // An event of a newer shim.
                        Err(error) => tracing::debug!(%error, "a message of a shim was left out"),
                    }
                }
            }
        }
        for (_, answer) in std::mem::take(&mut self.waiting) {
            drop(answer.send(Err(ShimError::Closed)));
        }
        self.held.push_back(ShimEvent::Closed);
        for event in std::mem::take(&mut self.held) {
            if self.events.send(event).await.is_err() {
                return tracing::debug!("nobody listens to a shim");
            }
        }
    }

    async fn send(&mut self, call: Call) {
        self.next += 1;
        let id = self.next;
        let bytes = call.request.encode(id);
        let fds: Vec<BorrowedFd<'_>> = call.fds.iter().map(AsFd::as_fd).collect();
        match self.socket.async_io(Interest::WRITABLE, |s| packet::send(s.as_fd(), &bytes, &fds)).await {
            Ok(()) => {
                self.waiting.insert(id, call.answer);
            }
            // The asker sees it; the end of the socket is seen by the next read.
            Err(_) => drop(call.answer.send(Err(ShimError::Closed))),
        }
    }

    fn reply(&mut self, id: u64, reply: Reply, fds: Vec<OwnedFd>) {
        let Some(answer) = self.waiting.remove(&id) else { return };
        let answered = match reply {
            Reply::Refused(refusal) => Err(ShimError::Refused(refusal)),
            Reply::ExecStarted { exec, .. } => {
                // Registered before the next message is read, so its exit cannot be missed.
                let (ended, exit) = oneshot::channel();
                self.execs.insert(exec, ended);
                Ok((reply, fds, Some(exit)))
            }
            other => Ok((other, fds, None)),
        };
        // Whoever asked may have given up waiting.
        drop(answer.send(answered));
    }
}
